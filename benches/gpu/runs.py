"""How this engine trains, and what a run leaves behind (docs/formats.md)."""

import hashlib
import json
import math
import re

import children
from engine import repeats

RECORD = ("step", "epoch", "split", "loss", "accuracy", "n", "lr")  # of metrics.jsonl, the keys that hold no time


def train_command(binary, device, precision, seed, epochs, run):
    """`train` with the default recipe, cut to `epochs`. `precision`: None on the CPU."""
    return [
        *[str(binary), "train", "--device", device, *(["--precision", precision] if precision else [])],
        *["--epochs", str(epochs), "--seed", str(seed), "--out", str(run), "--quiet"],
    ]


def resume_command(binary, device, run):
    return [str(binary), "train", "--resume", str(run), "--device", device, "--quiet"]


def trained(run, device, precision, seed, epochs):
    """What `train` left in the folder `run`: it must be what was asked for."""
    summary = _json(run / "summary.json")
    config, last = summary.get("config") or {}, (summary.get("results") or {}).get("test_last") or {}
    repeats(config, {"epochs": epochs, "seed": dict.fromkeys(("init", "mask", "data"), seed)}, required=True)
    repeats(last, {"epoch": epochs}, required=True)
    if not str(summary.get("device")).startswith(f"{device} "):
        raise children.Failed(f"answered for device {summary.get('device')!r}, asked for {device}")
    if precision:
        repeats(_json(run / "plan-cuda.json"), {"precision": precision}, required=True)
    accuracy, loss = last.get("accuracy"), last.get("loss")
    if not isinstance(accuracy, float) or not 0 <= accuracy <= 1:
        raise children.Failed(f"accuracy: wanted a share, got {accuracy!r}")
    if not isinstance(loss, float) or not math.isfinite(loss):
        raise children.Failed(f"loss: wanted a number, got {loss!r}")
    return {
        "accuracy": accuracy,
        "loss": loss,
        "n": last.get("n"),
        "device": summary["device"],
        "threads": summary.get("threads"),
        "steps": summary.get("steps"),
        "train_time_s": summary.get("train_time_s"),
        "images_per_s": summary.get("images_per_s"),
        "sha256": hashlib.sha256(_bytes(run / "last.safetensors")).hexdigest(),
        "records": records(run),
    }


def records(run):
    """What a run recorded of its losses."""
    try:
        lines = [json.loads(line) for line in _bytes(run / "metrics.jsonl").splitlines()]
        return [{key: line[key] for key in RECORD} for line in lines]
    except (ValueError, KeyError, TypeError) as e:
        raise children.Failed(f"metrics.jsonl: {type(e).__name__}: {e}") from e


def stopped_at(done):
    """The step at which `train` was stopped by a signal, its checkpoint written."""
    found = re.search(r"^stopped at step (\d+); checkpoint written to ", done.err, re.MULTILINE)
    if done.code != 75 or not found:
        raise children.Failed(f"wanted exit code 75 and a checkpoint, got exit code {done.code}: {done.last_line()}")
    return int(found[1])


def recorded(run):
    """Whether a run, that may be going on, has recorded an epoch."""
    path = run / "metrics.jsonl"
    return path.exists() and path.stat().st_size > 0


def _bytes(path):
    try:
        return path.read_bytes()
    except OSError as e:
        raise children.Failed(f"{path.name}: cannot be read ({e.strerror})") from e


def _json(path):
    try:
        found = json.loads(_bytes(path))
    except ValueError as e:
        raise children.Failed(f"{path.name}: {e}") from e
    if not isinstance(found, dict):
        raise children.Failed(f"{path.name}: wanted an object")
    return found
