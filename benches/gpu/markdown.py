#!/usr/bin/env python3
"""The tables of a stage, made from its JSON alone.

    python3 benches/gpu/markdown.py benches/results/FILE.json...

writes FILE.md beside each.
"""

import collections
import json
import pathlib
import statistics
import sys

import figures
import goals
import store
import training
import variants
from reused import ms

METHOD = """\
A step is zero_grad, forward, cross-entropy, backward and SGD with Nesterov momentum and weight decay. All take turns,
one sample each a round, in processes that share the device with no other work. PyTorch trains on one batch of random
images that is already on the device, and is timed by CUDA events around blocks of several steps after a warm-up, with
cuDNN choosing its algorithms by measuring and SGD `fused`; f32 and TF32 in PyTorch's default layout, AMP in
channels_last, fp16 with a GradScaler. This engine is timed by its own `bench step`, a process a sample; in that of
its dense network the same through cuDNN and cuBLASLt takes turns, with this engine's kernels around their products.
Milliseconds: median, minimum and maximum over the rounds of each sample's median step."""
TRAIN = f"""\
Runs of the default recipe cut to {training.EPOCHS} epochs, on the images inside the binary. An accuracy is allowed
within {training.DEVIATIONS} sample standard deviations of the mean of the CPU's runs, or within
{100 * training.LEAST_MARGIN:g} percentage points if that is more."""
MEMORY = "Memory: of PyTorch, what its tensors took at most; of this engine, all that its backend holds."


def render(data):
    """The whole text."""
    parts = [f"# {data['stage']} on {data['key']['device']}", _head(data), _runs(data)]
    known = {"selftest": _selftest, "sanitize": _sanitize, "train": _train, "kernels": _kernels}
    body = known.get(data["stage"], _peers)
    return "\n\n".join([*parts, *body(data["rows"])]) + "\n"


def table(head, lines, text_columns=1):
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    cells = [[str(c).replace("|", "\\|").replace("\n", " ") for c in line] for line in [head, rule, *lines]]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _head(data):
    built = data["engine"]
    lines = [["engine", built["version"]], ["binary, sha256", built["sha256"][:16]]]
    lines += [[k.replace("_", " "), v] for k, v in data["machine"].items()]
    text = table(["", ""], lines, 2)
    if built["changed"]:
        text += "\n\n**The binary was built from source that differs from its commit.**"
    return text


def _runs(data):
    lines = [f"- {r['started']}: `{r['command']}`, {r['ended']}" for r in data["runs"]]
    clocks = [s["clock_sm"] for s in data["states"] if s.get("clock_sm")]
    if clocks:
        lines.append(f"- SM clock before the rounds: {', '.join(dict.fromkeys(clocks))}")
    return "\n".join(["Runs:", "", *lines])


def _status(row):
    return row["status"] if not row["why"] or row["status"] == "done" else _why(row)


def _why(row):
    return row["why"] if row["why"].startswith(row["status"]) else f"{row['status']}: {row['why']}"


def _summary(rows):
    counts = {s: sum(r["status"] == s for r in rows) for s in ("done", "partial", "failed", "not run")}
    return ", ".join(f"{n} {s}" for s, n in counts.items() if n) + f", of {len(rows)} rows."


def _selftest(rows):
    lines = []
    for r in rows:
        s = r["samples"][-1] if r["samples"] else {}
        skipped = "; ".join(s.get("skipped", []))
        lines.append(
            [r["title"], _status(r), s.get("passed") or "", s.get("ignored") or "", skipped, s.get("wall_s", "")]
        )
    return [_summary(rows), table(["", "status", "passed", "ignored", "left out", "s"], lines, 2)]


def _sanitize(rows):
    lines = []
    for r in rows:
        s = r["samples"][-1] if r["samples"] else {}
        lines.append([r["group"], r["tool"], "no findings" if r["status"] == "done" else _why(r), s.get("wall_s", "")])
    return [
        "A few training steps, launched one by one, op by op and in a graph, under NVIDIA's compute-sanitizer.",
        _summary(rows),
        table(["", "tool", "", "s"], lines, 3),
    ]


def _train(rows):
    lines, verdicts = [], []
    for r in rows:
        s = r["samples"][-1] if r["samples"] else {}
        if r.get("kind") == "verdict":
            found = s or r  # what was refused is in the row itself
            allowed = f"{_percent(found.get('low'))} to {_percent(found.get('high'))}"
            values = [_percent(found.get(key)) for key in ("accuracy", "mean", "deviation")]
            verdicts.append([r["title"], *values, allowed, "within" if r["status"] == "done" else _why(r)])
            continue
        what = f"the same bytes as {r['like']}" if r.get("like") else ""
        note = (what or "done") if r["status"] == "done" else _why(r)
        stopped = f", stopped at step {s['stopped_at']}" if "stopped_at" in s else ""
        figures_ = [_percent(s.get("accuracy")), f"{s['loss']:.4f}" if s else "-", s.get("train_time_s", "-")]
        lines.append([r["title"], *figures_, f"`{s['sha256'][:12]}`" if s else "-", note + stopped])
    return [
        TRAIN,
        _summary(rows),
        table(["", "test accuracy", "loss", "s in steps", "last.safetensors, sha256", ""], lines),
        "Is the accuracy one that the CPU's runs have?",
        table(["", "test accuracy", "CPU: mean", "deviation", "allowed", ""], verdicts),
    ]


def _percent(share):
    return "-" if share is None else f"{100 * share:.2f} %"


def _kernels(rows):
    parts = ["Milliseconds a call; each result is checked in f64 before it is timed.", _summary(rows)]
    if peaks := _peaks(rows):
        parts.append(f"Measured beside them: {peaks}.")
    if missing := _without_vendor(rows):
        parts.append(f"Layers without a time through the vendor's libraries: {missing}.")
    for r in rows:
        parts.append(f"## {r['title']}")
        if not r["samples"]:
            parts.append(_why(r))
            continue
        results = r["samples"][-1]["results"]
        rivals = [
            k
            for k in dict.fromkeys(k for each in results for k in each)
            if k.endswith("_ms_median") and any(each.get(k) for each in results)
        ]
        head = ["op", "layer", "layers", "ms", "min"]
        for k in rivals:
            name = k.removesuffix("_ms_median")
            head += [f"{name} ms", f"speed / {name}"]
        lines, slower = [], 0
        for each in results:
            line = [
                each.get("op"),
                _shape(each),
                each.get("layers", ""),
                ms(each["ms_median"]),
                _ms(each.get("ms_min")),
            ]
            for k in rivals:
                rival = each.get(k)
                line += [_ms(rival), f"{rival / each['ms_median']:.2f}" if rival else "-"]
            slower += any(each.get(k) and each[k] < each["ms_median"] for k in rivals)
            lines.append(line)
        parts.append(table(head, lines, 2))
        parts.append(f"Slower than at least one rival: {slower} of {len(results)}.")
    return parts


def _peaks(rows):
    """What the device reached, of the last row of each precision."""
    found = {}
    for r in rows:
        for s in r["samples"]:
            peaks = s.get("peaks") or {}
            if peaks.get("mma_gflops"):
                found[s["precision"]] = f"{peaks['mma_gflops'] / 1e3:,.1f} TFLOP/s by mma.sync in {s['precision']}"
            if peaks.get("copy_gb_s"):
                found["copy"] = f"{peaks['copy_gb_s']:,.0f} GB/s copied"
    return ", ".join(found.values())


def _without_vendor(rows):
    """Each reason once, with how many results have it."""
    results = [each for r in rows for s in r["samples"][-1:] for each in s["results"]]
    counts = collections.Counter(each["vendor_missing"] for each in results if each.get("vendor_missing"))
    return "; ".join(f"{n} of {len(results)}, {why}" for why, n in counts.items())


def _shape(result):
    s = result.get("shape") or {}
    if result.get("op", "").startswith("conv"):
        stride = f" / {s['stride']}" if s.get("stride", 1) != 1 else ""
        return f"{s.get('c')}x{s.get('h')}x{s.get('w')} to {s.get('k')}, {s.get('r')}x{s.get('s')}{stride}"
    return "x".join(str(s[k]) for k in ("c", "h", "w", "k") if s.get(k, 1) != 1)


def _peers(rows):
    models = figures.by_model(rows)
    parts = [METHOD, _summary(rows)]
    if met := goals.lines(models):
        parts += ["## Goals", table(["network", "goal", "rival", "speed / rival", ""], met, 3)]
    for name, model in models.items():
        parts += [f"## {name}", _times(model), *_ratios(model), *_split(model), *_launches(model)]
    return parts


def _times(model):
    lines = []
    for row in [r for row in model.rows for r in (row, figures.through_vendor(row)) if r]:
        f = figures.figure(row)
        if f is None and row["kind"] == "vendor":
            continue  # the line of our own dense network says why
        if f is None:
            lines.append([row["title"], "", "", "", "", "", "", "", _why(row)])
            continue
        memory = row["samples"][-1].get("memory_bytes")
        checked = row.get("kind") != "torch" and any(s.get("checked") for s in row["samples"])
        note = "; ".join(
            n
            for n in (
                "checked first" if checked else "",
                _products(row),
                "" if row["status"] == "done" else _why(row),
            )
            if n
        )
        lines.append(
            [row["title"], f.batch, ms(f.median_ms), ms(f.min_ms), ms(f.max_ms), f.n, f"{f.images_per_s:,.0f}"]
            + [f"{memory / 1e6:,.0f}" if memory else "-", note]
        )
    head = ["", "batch", "step ms", "min", "max", "n", "images/s", "memory MB", ""]
    missing = [f"Not through the vendor's libraries, {', '.join(p)}: {why}." for why, p in model.vendor_missing.items()]
    return "\n\n".join([table(head, lines), MEMORY, *missing])


def _products(row):
    """How much of the dense network the vendor's libraries make: the rest is made by our kernels."""
    made = row["samples"][-1].get("vendor_products") if row["kind"] == "vendor" else None
    return f"{made[0]} of {made[1]} products by the libraries" if made else ""


def _ratios(model):
    ours = [f for f in model.ours.values() if f]
    theirs = [(name, f) for name, f in model.torch.items() if f]
    if not ours or not theirs:
        return []
    head = ["speed of / over", *(variants.VARIANTS[n].title.removeprefix("PyTorch ") for n, _ in theirs), "our dense"]
    vendor = any(model.vendor.values())
    head += ["dense by cuDNN, cuBLASLt"] if vendor else []
    lines, losses, all_ = [], 0, 0
    for f in ours:
        ratios = [figures.faster(f, rival) for _, rival in theirs]
        dense = model.our_dense(f.row["precision"])
        own = None if f.row["method"] == "dense" else figures.faster(f, dense)
        ratios.append(own)
        if vendor:
            ratios.append(figures.faster(f, model.vendor.get(f.row["precision"])))
        losses += sum(r.value < 1 for r in ratios if r)
        all_ += sum(r is not None for r in ratios)
        lines.append([f.row["title"].removeprefix("this engine, "), *map(_ratio, ratios)])
    return [
        "Images a second of this engine (rows) over a rival's (columns); in brackets the range over the rounds. Below "
        "1 this engine is the slower one, in bold.",
        table(head, lines),
        f"Slower than the rival: {losses} of {all_}.",
    ]


def _split(model):
    lines = []
    for case, f in model.sparse().items():
        factors = model.split(case)
        if any(factors.values()):
            lines.append(
                [f.row["title"].removeprefix("this engine, "), *(_ratio(r, spread=False) for r in factors.values())]
            )
    if not lines:
        return []
    return [
        "What the lead over PyTorch eager in TF32 is made of: precision (eager in TF32 to eager in this one, with "
        "AMP and channels_last), launches (eager to CUDA graph), fusion (PyTorch's graph to this engine dense: "
        "kernels, fusion, fewer bytes), sparsity (this engine dense to sparse). They multiply to the last column.",
        table(["", "precision", "launches", "fusion", "sparsity", "all"], lines),
    ]


def _launches(model):
    """What graphs gain this engine: each sample also has its steps launched kernel by kernel."""
    lines = []
    for f in model.ours.values():
        samples = [s for s in f.row["samples"] if s.get("launched_ms_median")] if f else []
        if not samples:
            continue
        launched = statistics.median(s["launched_ms_median"] for s in samples)
        last = samples[-1]
        line = [f.row["title"].removeprefix("this engine, "), last.get("launches"), last.get("steps_a_graph")]
        lines.append([*line, ms(launched), ms(f.median_ms), f"{launched / f.median_ms:.2f}"])
    if not lines:
        return []
    return [
        "This engine's steps launched kernel by kernel, and as timed above, in graphs of several steps.",
        table(["", "kernels a step", "steps a graph", "launched ms", "graph ms", "launched / graph"], lines),
    ]


def _ratio(ratio, spread=True):
    if ratio is None:
        return "-"
    text = f"{ratio.value:.2f}" + (f" ({ratio.low:.2f}-{ratio.high:.2f})" if spread and ratio.n > 1 else "")
    return f"**{text}**" if ratio.value < 1 else text


def _ms(value):
    return ms(value) if value else "-"


def main():
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    for name in sys.argv[1:]:
        path = pathlib.Path(name)
        store.replace(path.with_suffix(".md"), render(json.loads(path.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
