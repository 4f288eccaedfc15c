"""The stage `train`: short runs of the default recipe on the GPU. The same bytes again and across a stop, and the
accuracy that the CPU's runs have."""

import pathlib
import statistics
import tempfile

import children
import runs
from schedule import Row

PRECISIONS = ("fp16", "bf16", "tf32", "f32")
EPOCHS = 4
SEED, CPU_SEEDS = 0, (0, 1, 2)
CUDA_LIMIT_S, RESUMED_LIMIT_S, CPU_LIMIT_S, VERDICT_LIMIT_S = 60, 90, 120, 5
TRIES = 3  # to stop a run before it ends by itself

# How far from the CPU's mean an accuracy may be: this many of their standard deviations, or this much if that is more.
# The deviation of three runs is a poor estimate, often far too small: by it alone one right run in eight would be
# refused; with the least margin one in 300, where seeds deviate by 0.6 points, as those in the README do.
DEVIATIONS, LEAST_MARGIN = 3, 0.02


def cuda_id(precision):
    return f"cuda {precision} seed {SEED}"


def cpu_id(seed):
    return f"cpu seed {seed}"


def rows(binary, results):
    """`results`: the store, which has the rows that others are compared with."""
    found = []
    for precision in PRECISIONS:
        found += _cuda_rows(binary, results, precision)
        if precision == PRECISIONS[0]:
            found += [_cpu_row(binary, seed) for seed in CPU_SEEDS]
    return found + [_verdict_row(results, precision) for precision in PRECISIONS]


def _cuda_rows(binary, results, precision):
    first, group = cuda_id(precision), f"cuda {precision}"

    def once(limit_s, _):
        return _trained(binary, limit_s, "cuda", precision, SEED)

    def again(limit_s, _):
        wanted = _done(results, first)
        got = once(limit_s, _)
        same(wanted, got, first, got["records"])
        return {**got, "said": f"the same bytes as {first}"}

    def resumed(limit_s, _):
        wanted = _done(results, first)
        got = _resumed(binary, limit_s, precision)
        # A stop within an epoch leaves a record of the part before it, which a run without a stop does not have.
        at = {(r["step"], r["split"]) for r in wanted["records"]}
        same(wanted, got, first, [r for r in got["records"] if (r["step"], r["split"]) in at])
        return {**got, "said": f"the same bytes as {first}, stopped at step {got['stopped_at']}"}

    asked = {"kind": "cuda", "precision": precision, "seed": SEED, "epochs": EPOCHS}
    return [
        Row(first, group, f"GPU, {precision}, seed {SEED}", asked, once, CUDA_LIMIT_S),
        Row(f"{first} again", group, f"GPU, {precision}, again", {**asked, "like": first}, again, CUDA_LIMIT_S),
        Row(
            f"{first} resumed",
            group,
            f"GPU, {precision}, stopped and resumed",
            {**asked, "like": first},
            resumed,
            RESUMED_LIMIT_S,
        ),
    ]


def _cpu_row(binary, seed):
    def run(limit_s, _):
        return _trained(binary, limit_s, "cpu", None, seed)

    asked = {"kind": "cpu", "precision": "f32", "seed": seed, "epochs": EPOCHS}
    return Row(cpu_id(seed), "cpu", f"CPU, seed {seed}", asked, run, CPU_LIMIT_S)


def _verdict_row(results, precision):
    def run(_, __):
        got = _done(results, cuda_id(precision))["accuracy"]
        return verdict(got, [_done(results, cpu_id(seed))["accuracy"] for seed in CPU_SEEDS])

    asked = {"kind": "verdict", "precision": precision}
    return Row(f"verdict {precision}", "verdict", f"GPU, {precision}", asked, run, VERDICT_LIMIT_S)


def verdict(got, cpu):
    """A sample if an accuracy is one that the CPU's runs have, else Failed."""
    mean, deviation = statistics.fmean(cpu), statistics.stdev(cpu)
    margin = max(DEVIATIONS * deviation, LEAST_MARGIN)
    found = {"accuracy": got, "mean": mean, "deviation": deviation, "low": mean - margin, "high": mean + margin}
    said = f"test accuracy {100 * got:.2f} %, allowed {100 * (mean - margin):.2f} to {100 * (mean + margin):.2f} %"
    if not mean - margin <= got <= mean + margin:
        raise children.Failed(said, **found)
    return {**found, "wall_s": 0.0, "said": said}


def same(wanted, got, name, records):
    """Raises Failed unless a run ended in the bytes of another, the row `name`, with that one's losses on the way."""
    pairs = zip(wanted["records"], records)
    first = next((f"step {w['step']}, {w['split']}: {_pair(g, w)}" for w, g in pairs if w != g), None)
    if not first and len(wanted["records"]) != len(records):
        first = f"{len(records)} in place of {len(wanted['records'])}"
    more = {"sha256": got["sha256"], "records": got["records"]}
    if got["sha256"] != wanted["sha256"]:
        what = f"first other record: {first}" if first else "the records are the same"
        raise children.Failed(f"last.safetensors is not that of {name}; {what}", **more)
    if first:
        raise children.Failed(f"last.safetensors is that of {name}, but not the records: {first}", **more)


def _pair(got, wanted):
    return ", ".join(f"{key} {got[key]!r}, there {wanted[key]!r}" for key in wanted if got[key] != wanted[key])


def _done(results, row_id):
    """The sample of another row."""
    row = results.find(row_id)
    if row is None or row["status"] != "done":
        why = "it was not run" if row is None else row["why"]
        raise children.Failed(f"nothing to compare with: {row_id}: {why}")
    return row["samples"][-1]


def _trained(binary, limit_s, device, precision, seed):
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder, "run")
        done = children.run(runs.train_command(binary, device, precision, seed, EPOCHS, run), limit_s)
        _ended(done)
        return _sample(runs.trained(run, device, precision, seed, EPOCHS), done.wall_s)


def _resumed(binary, limit_s, precision):
    """A run that is stopped once its first epoch is recorded, and then goes on to its end."""
    deadline = children.Deadline(limit_s)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(TRIES):
            run = pathlib.Path(folder, f"run{number}")
            command = runs.train_command(binary, "cuda", precision, SEED, EPOCHS, run)
            done = children.run(command, deadline.left(), stop_when=lambda run=run: runs.recorded(run))
            if done.code != 0:
                break
        else:
            raise children.Failed(f"{TRIES} runs ended before the signal reached them")
        at = runs.stopped_at(done)
        _ended(children.run(runs.resume_command(binary, "cuda", run), deadline.left()))
        got = _sample(runs.trained(run, "cuda", precision, SEED, EPOCHS), deadline.passed())
        if not 0 < at < got["steps"]:
            raise children.Failed(f"stopped at step {at} of {got['steps']}: wanted a step in between")
        return {**got, "stopped_at": at}


def _ended(done):
    if done.code != 0:
        raise children.Failed(f"exit code {done.code}: {done.last_line()}")


def _sample(found, wall_s):
    return {**found, "wall_s": round(wall_s, 2), "said": f"test accuracy {100 * found['accuracy']:.2f} %"}
