"""How this engine is called, and what its answers must hold. No other file knows its command line and keys, but runs.py
those of `train`."""

import dataclasses
import re

import children
from reused import BadAnswer, last_object, ms, percent

PRECISIONS = ("fp16", "bf16", "tf32")
BLOCK = "block:16x16"
SMALL = {"steps": 200, "warmup": 20}  # 3x32x32: fractions of a millisecond to a few milliseconds a step
LARGE = {"steps": 20, "warmup": 5}  # 3x224x224
VENDOR_SHARE = 2 / 3  # of a limit, for the process with the vendor's libraries; the rest is for ours alone, if it fails


@dataclasses.dataclass(frozen=True)
class Case:
    """A network's weights and number type."""

    method: str
    sparsity: float
    precision: str
    pattern: str | None = None

    def name(self):
        """Part of a row's id."""
        parts = (
            [self.method] + ([f"{self.sparsity:g}"] if self.sparsity else []) + ([self.pattern] if self.pattern else [])
        )
        return " ".join([*parts, self.precision])

    def title(self):
        what = "dense" if self.method == "dense" else f"{self.method} {percent(self.sparsity)}"
        return f"this engine, {what}{', ' + self.pattern if self.pattern else ''}, {self.precision}"


def cases(precisions=PRECISIONS, full=False):
    """The most telling first. fp16 has all densities; the others, unless `full`, one of each kind."""
    found = []
    for precision in precisions:
        few = [("dense", 0.0, None), ("uniform", 0.9, None), ("uniform", 0.9, BLOCK)]
        more = [("erk", 0.9, None)] + [(m, s, None) for s in (0.8, 0.95) for m in ("uniform", "erk")]
        wanted = few + more if full or precision == PRECISIONS[0] else few
        found += [Case(method, sparsity, precision, pattern) for method, sparsity, pattern in wanted]
    return found


def step_command(binary, case, model, batch, *, steps, warmup, check=False, image=None, vendor=False):
    """`bench step` of one network by itself, or (`vendor`) with the dense one beside it, ours and the vendor's."""
    return [
        str(binary),
        *["bench", "step", "--device", "cuda", "--model", model, "--batch", str(batch)],
        *["--method", case.method, *(["--sparsity", f"{case.sparsity:g}"] if case.method != "dense" else [])],
        *["--precision", case.precision, *(["--pattern", case.pattern] if case.pattern else [])],
        *(["--image-size", str(image)] if image else []),
        *["--steps", str(steps), "--warmup", str(warmup), *([] if vendor else ["--no-dense"])],
        *([] if check else ["--no-check"]),
        "--json",
    ]


def kernels_command(binary, case, model, batch, ops, time_ms):
    """`bench kernels` over the distinct layers of one network."""
    return [
        str(binary),
        *["bench", "kernels", "--device", "cuda", "--set", model, "--batch", str(batch), "--op", ",".join(ops)],
        *["--density", f"{round(1 - case.sparsity, 12):g}", "--precision", case.precision],
        *(["--pattern", case.pattern] if case.pattern else []),
        *["--time", str(time_ms), "--json"],
    ]


def selftest_command(binary):
    return [str(binary), "selftest", "--device", "cuda"]


def step(binary, case, model, batch, limit_s, **options):
    """A sample of `bench step`. Raises OutOfMemory, TimedOut or Failed."""
    done = children.run(step_command(binary, case, model, batch, **options), limit_s)
    answer = _answer(done)
    asked = {"model": model, "batch": batch, "method": case.method, "sparsity": case.sparsity}
    repeats(answer, asked, required=True)
    repeats(answer, {"precision": case.precision, "pattern": case.pattern or "unstructured", "device": "cuda"})
    if str(answer.get("backend", "cpu")).startswith("cpu"):
        raise children.Failed(f"answered for backend {answer.get('backend')!r}, asked for cuda")
    if answer.get("checked") is not bool(options.get("check", False)):
        raise children.Failed(f"answered for checked {answer.get('checked')!r}, asked for {options.get('check')!r}")
    median = _positive(answer, "step_ms_median")
    vendor = _vendor(answer) if options.get("vendor") else {}
    beside = f", vendor {ms(vendor['vendor_step_ms_median'])} ms" if "vendor_step_ms_median" in vendor else ""
    return {
        "batch": batch,
        "step_ms_median": median,
        "step_ms_min": _positive(answer, "step_ms_min"),
        "steps": answer.get("steps"),
        "checked": answer["checked"],
        "maskable": answer.get("maskable"),
        "density_flops": answer.get("density_flops"),
        "memory_bytes": (answer.get("bytes") or {}).get("total"),
        "launches": answer.get("launches"),
        "launched_ms_median": answer.get("launched_ms_median"),
        "steps_a_graph": answer.get("steps_a_graph"),
        "held_steps": answer.get("held_steps"),
        "checked_batch": answer.get("checked_batch"),
        "commit": answer.get("commit"),
        "backend": answer.get("backend"),
        **vendor,
        "wall_s": round(done.wall_s, 2),
        "said": f"{ms(median)} ms{beside}",
    }


def _vendor(answer):
    """The dense network through the vendor's libraries, or why it was not measured."""
    if why := answer.get("vendor_missing"):
        return {"vendor_missing": str(why)}
    return {
        "vendor_step_ms_median": _positive(answer, "vendor_step_ms_median"),
        "vendor_step_ms_min": _positive(answer, "vendor_step_ms_min"),
        "vendor_memory_bytes": (answer.get("vendor_bytes") or {}).get("total"),
        "vendor_launches": answer.get("vendor_launches"),
        "vendor_launched_ms_median": answer.get("vendor_launched_ms_median"),
        "vendor_backend": answer.get("vendor_backend"),
        "vendor_products": answer.get("vendor_products"),
    }


def step_beside_vendor(binary, case, model, batch, limit_s, missing=None, **options):
    """A sample of our dense network, and in the same process, in turn, of the dense network through the vendor's
    libraries. Where that process fails ours alone is measured. `missing`: why an earlier sample has nothing of the
    vendor's."""
    deadline = children.Deadline(limit_s)
    if not missing:
        try:
            return step(binary, case, model, batch, limit_s * VENDOR_SHARE, vendor=True, **options)
        except children.Failed as e:
            missing = f"no answer with it: {e}"
    sample = step(binary, case, model, batch, deadline.left(), **options)
    return {**sample, "vendor_missing": missing}


def kernels(binary, case, model, batch, ops, time_ms, limit_s):
    """A sample of `bench kernels`: its results as they are."""
    done = children.run(kernels_command(binary, case, model, batch, ops, time_ms), limit_s)
    answer = _answer(done)
    results = answer.get("results")
    if not isinstance(results, list) or not results:
        raise children.Failed("answered without results")
    for each in results:
        _positive(each, "ms_median")
    return {
        "batch": batch,
        "precision": case.precision,
        "results": results,
        "peaks": answer.get("peaks"),
        "wall_s": round(done.wall_s, 2),
        "said": f"{len(results)} results",
    }


def _answer(done):
    if done.code != 0:
        if re.search(r"out[ _]of[ _]memory", done.err, re.IGNORECASE):
            raise children.OutOfMemory(f"out of memory: {done.last_line()}")
        raise children.Failed(f"exit code {done.code}: {done.last_line()}")
    try:
        return last_object(done.out)
    except BadAnswer as e:
        raise children.Failed(str(e)) from e


def repeats(answer, asked, required=False):
    """The answer must repeat what was asked; keys that it does not have count where they are required."""
    for key, want in asked.items():
        got = answer.get(key)
        same = (
            abs(got - want) < 1e-6 if isinstance(got, (int, float)) and isinstance(want, (int, float)) else got == want
        )
        if not same and (required or got is not None):
            raise children.Failed(f"answered for {key} {got!r}, asked for {want!r}")


def _positive(answer, key):
    value = answer.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise children.Failed(f"{key}: wanted a positive number, got {value!r}")
    return float(value)
