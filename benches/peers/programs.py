"""The processes that are compared: how each is started, and what its answer must hold."""

import dataclasses
import json
import math
import pathlib
import subprocess

CHILD = pathlib.Path(__file__).resolve().parent / "torch_step.py"
OUR_DENSE = "this engine, dense"
EAGER, COMPILED = "PyTorch eager f32", "PyTorch compiled f32"
NAMES = {
    "eager": EAGER,
    "compiled": COMPILED,
    "bf16": "PyTorch eager bf16",
    "bf16-compiled": "PyTorch compiled bf16",
    "masked": "PyTorch masked",
    "sparseprop": "SparseProp",
}


class Failed(Exception):
    """A process that gave no figures: why, in one line. `expected`: a peer that is not there, which is no fault."""

    def __init__(self, why, expected=False):
        super().__init__(why)
        self.expected = expected


@dataclasses.dataclass
class Sample:
    """One process: milliseconds a step, bytes of the peak above start-up (None: not told)."""

    median_ms: float
    min_ms: float
    memory_bytes: float | None = None
    detail: str = ""


@dataclasses.dataclass
class Program:
    """One command; its answer fills the row `name`, and with `has_dense` also the row of the engine's dense network."""

    name: str
    command: list
    asked: dict  # what the answer must repeat
    is_engine: bool = False
    has_dense: bool = False

    def timing(self, dense, check):
        """The engine's command, with its dense network beside the sparse one or without, and checked or not.

        The answer must say the same of the check, so that no engine that does not know it, and no argument passed on,
        leaves it out unnoticed.
        """
        flags = [*([] if dense else ["--no-dense"]), *([] if check else ["--no-check"])]
        asked = {**self.asked, "checked": check}
        return dataclasses.replace(self, command=[*self.command, *flags], asked=asked, has_dense=dense)

    def run(self, env, timeout_s):
        """Runs it; returns its samples by row name, and its answer."""
        try:
            done = subprocess.run(self.command, capture_output=True, text=True, env=env, timeout=timeout_s)
        except OSError as e:
            raise Failed(f"cannot be run ({e.strerror}): {self.command[0]}") from e
        except subprocess.TimeoutExpired as e:
            raise Failed(f"no answer in {timeout_s:g} s") from e
        if done.returncode != 0:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise Failed(f"exit code {done.returncode}: {said[-1] if said else 'no message'}")
        answer = last_object(done.stdout)
        if "unavailable" in answer:
            raise Failed(str(answer["unavailable"]), expected=True)
        return self.samples(answer), answer

    def samples(self, answer):
        """Checks an answer and takes the samples from it."""
        for key, want in self.asked.items():
            got = answer.get(key)
            if not _same(got, want):
                raise Failed(f"answered for {key} {got!r}, asked for {want!r}")
        main = Sample(
            _positive(answer, "step_ms_median"),
            _positive(answer, "step_ms_min"),
            above_start(answer),
            self._detail(answer),
        )
        if not self.has_dense:
            return {self.name: main}
        dense = Sample(
            _positive(answer, "dense_step_ms_median"),
            _positive(answer, "dense_step_ms_min"),
            above_start(answer, "dense_"),
        )
        return {self.name: main, OUR_DENSE: dense}

    def _detail(self, answer):
        if answer.get("swapped_layers"):
            return f"{answer['swapped_layers']} layers sparse"
        share = answer.get("density_flops")
        return f"{share * 100:.1f} % of the MACs" if isinstance(share, (int, float)) else ""


def torch_program(python, variant, model, batch, threads, seconds, method=None, sparsity=None):
    """PyTorch in the child process. `method` and `sparsity`: for the variants that have masks."""
    command = [
        python,
        str(CHILD),
        "--variant",
        variant,
        "--model",
        model,
        "--batch",
        str(batch),
        "--threads",
        str(threads),
        "--seconds",
        str(seconds),
    ]
    name = NAMES[variant]
    if method:
        command += ["--method", method, "--sparsity", f"{sparsity:.10g}"]
        name += f", {method} {percent(sparsity)}"
    return Program(name, command, {"variant": variant, "model": model, "batch": batch, "threads": threads})


def engine_program(engine, model, batch, threads, method, sparsity, extra=()):
    """`sparse-engine bench step`; see `Program.timing` for what else it is told."""
    command = [
        engine,
        "bench",
        "step",
        "--model",
        model,
        "--method",
        method,
        "--sparsity",
        f"{sparsity:.10g}",
        "--batch",
        str(batch),
        "--threads",
        str(threads),
        "--json",
        *extra,
    ]
    asked = {"model": model, "batch": batch, "threads": threads, "method": method, "sparsity": float(sparsity)}
    return Program(f"this engine, {method} {percent(sparsity)}", command, asked, is_engine=True)


def interleave(a, b):
    """A B A B; what the longer list has more comes last."""
    woven = [p for pair in zip(a, b) for p in pair]
    shared = min(len(a), len(b))
    return woven + list(a[shared:]) + list(b[shared:])


def percent(share):
    return f"{share * 100:.6g} %"


def last_object(text):
    """The JSON object of the output: alone, over any lines, or the last line that is one."""
    candidates = [text, *(line for line in reversed(text.splitlines()) if line.startswith("{"))]
    for candidate in candidates:
        try:
            found = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    raise Failed(f"wanted one JSON object on standard output, got {text.strip()[:80]!r}")


def above_start(answer, prefix=""):
    """Peak less what the process held before the network was built; None unless the answer tells both."""
    peak, start = (
        answer.get(f"{prefix}peak_rss_bytes"),
        answer.get(f"{prefix}start_rss_bytes", answer.get("start_rss_bytes")),
    )
    if not all(isinstance(v, (int, float)) for v in (peak, start)):
        return None
    if not peak > start > 0:
        raise Failed(f"{prefix}peak_rss_bytes {peak} is not above start_rss_bytes {start}")
    return float(peak - start)


def _same(got, want):
    """Numbers to rounding, names without regard to case and punctuation."""
    if isinstance(want, bool):
        return got is want
    if isinstance(want, str):
        return isinstance(got, str) and _letters(got) == _letters(want)
    return not isinstance(got, bool) and isinstance(got, (int, float)) and abs(got - want) < 1e-6


def _letters(name):
    return "".join(c for c in name.lower() if c.isalnum())


def _positive(answer, key):
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise Failed(f"{key}: wanted a positive number, got {value!r}")
    return float(value)
