"""From the rows of a peers stage to figures: medians, ratios, what a lead is made of. No program runs here."""

import dataclasses
import statistics

from variants import VARIANTS


@dataclasses.dataclass
class Figure:
    """A row's time: over its rounds, of the median step of each. `by_round`: milliseconds an image."""

    row: dict
    batch: int
    median_ms: float
    min_ms: float
    max_ms: float
    n: int
    by_round: dict

    @property
    def per_image(self):
        return self.median_ms / self.batch

    @property
    def images_per_s(self):
        return 1e3 / self.per_image


@dataclasses.dataclass
class Ratio:
    """How many times as fast one is as another: images a second, of the medians; its range over common rounds."""

    value: float
    low: float
    high: float
    n: int


def figure(row):
    """None for a row without samples, or one that failed: whatever it gave before is in doubt."""
    samples = row["samples"]
    if not samples or row["status"] == "failed":
        return None
    times = [s["step_ms_median"] for s in samples]
    by_round = {s["round"]: s["step_ms_median"] / s["batch"] for s in samples}
    return Figure(row, samples[0]["batch"], statistics.median(times), min(times), max(times), len(times), by_round)


def faster(ours, theirs):
    """Above 1: `ours` is the faster. None if either has no figure."""
    if ours is None or theirs is None:
        return None
    each = [theirs.by_round[r] / ours.by_round[r] for r in ours.by_round if r in theirs.by_round]
    value = theirs.per_image / ours.per_image
    return Ratio(value, min(each, default=value), max(each, default=value), len(each))


def through_vendor(row):
    """The row of the dense network through the vendor's libraries, which is in the samples of our dense one; None if no
    sample has it."""
    measured = [s for s in row["samples"] if s.get("vendor_step_ms_median")]
    if not measured or row.get("kind") != "engine":
        return None
    taken = ("step_ms_median", "step_ms_min", "memory_bytes", "launches", "launched_ms_median")
    samples = [{**s, **{key: s.get(f"vendor_{key}") for key in taken}} for s in measured]
    title = f"this engine, dense through cuDNN and cuBLASLt, {row['precision']}"
    return {**row, "kind": "vendor", "title": title, "samples": samples}


class Model:
    """The figures of one network."""

    def __init__(self, rows):
        self.rows = rows
        self.torch = {r["variant"]: figure(r) for r in rows if r["kind"] == "torch"}
        self.ours = {_case(r): figure(r) for r in rows if r["kind"] == "engine"}
        vendor = [v for v in map(through_vendor, rows) if v]
        self.vendor = {v["precision"]: figure(v) for v in vendor}
        self.vendor_missing = _missing(rows)

    def our_dense(self, precision):
        return self.ours.get(("dense", 0.0, None, precision))

    def sparse(self):
        """Case -> figure of this engine's sparse rows that have one."""
        return {case: f for case, f in self.ours.items() if f and case[0] != "dense"}

    def fastest(self, wanted):
        """The fastest of the PyTorch rows whose variant `wanted` takes; masks are never among them."""
        found = [f for name, f in self.torch.items() if f and not VARIANTS[name].masked and wanted(VARIANTS[name])]
        return min(found, key=lambda f: f.per_image, default=None)

    def split(self, case):
        """The lead of a sparse row over PyTorch eager in TF32, as factors that multiply to it:

        precision  eager TF32 -> eager in this precision (with AMP and channels_last)
        launches   eager -> the same kernels in a CUDA graph
        fusion     PyTorch's graph -> this engine dense: kernels, fusion, fewer bytes
        sparsity   this engine dense -> sparse
        """
        precision = case[3]
        eager = "eager-tf32" if precision == "tf32" else f"amp-{precision}"
        steps = [
            self.torch.get("eager-tf32"),
            self.torch.get(eager),
            self.torch.get(f"graphed-{precision}"),
            self.our_dense(precision),
            self.ours.get(case),
        ]
        factors = [faster(after, before) for before, after in zip(steps, steps[1:])]
        return dict(zip(("precision", "launches", "fusion", "sparsity"), factors)) | {
            "all": faster(steps[-1], steps[0])
        }


def _missing(rows):
    """Why there is no time through the vendor's libraries -> the precisions without."""
    found = {}
    for row in rows:
        for why in {s["vendor_missing"] for s in row["samples"] if s.get("vendor_missing")}:
            found.setdefault(why, []).append(row["precision"])
    return found


def by_model(rows):
    return {m: Model([r for r in rows if r["model"] == m]) for m in dict.fromkeys(r["model"] for r in rows)}


def _case(row):
    return row["method"], row["sparsity"], row["pattern"], row["precision"]
