#!/usr/bin/env python3
"""This engine's training step on one thread and on several, sparse and dense, in one run on one machine.

    cargo build --release
    python3 benches/peers/threads.py --model resnet20

Each round starts `bench step` for every sparsity and number of threads in a process of its own, in turn; each times the
dense network beside the sparse one. The gain is the time on the first number of threads over that on another; medians
over the rounds, with the smallest and the largest. The first round is checked in f64 before it is timed.

Exit codes: 0 done, 1 a program failed, 2 wrong usage.
"""

import argparse
import datetime
import os
import shutil
import statistics
import sys

import compare
import machine
import names
import programs
import table
from densities import METHODS


def main():
    args = arguments()
    try:
        content = compare.Content([shutil.which(args.engine) or args.engine])
        engine = compare.engine_version(args.engine)
        here = machine.describe()
        print(f"{here['cpu']}, {here['cores']} cores, {here['simd']}; {datetime.date.today().isoformat()}; {engine}")
        rounds, load = [], machine.Load()
        for number in range(args.rounds):
            rounds.append(measure(args, number, content))
            compare.save(args.json, {"engine": engine, "machine": here, "rounds": rounds})
    except (compare.Changed, compare.torch_env.Failed, programs.Failed) as e:
        sys.exit(f"threads: {e}")
    print(
        f"{args.model}, {args.method}, batch {args.batch}; rounds: {args.rounds}, interleaved, none discarded; ms a "
        f"step: median, minimum\n\n{markdown(lines(args, rounds))}"
    )
    if (others := load.lap()["others_cpus"]) > machine.OTHERS_MAX:
        print(f"\nWARNING: other programs used {others:.2f} processors; wanted at most {machine.OTHERS_MAX}")
    if max(args.threads) > here["cores"]:
        print(f"\nWARNING: {max(args.threads)} threads on {here['cores']} cores")


def measure(args, number, content):
    """A round: {sparsity: {threads: [sparse median, its minimum, dense median, its minimum]}}, in milliseconds."""
    found = {}
    for sparsity in args.sparsity:
        for threads in args.threads:
            content.must_be_the_same()
            program = programs.engine_program(args.engine, args.model, args.batch, threads, args.method, sparsity)
            try:
                samples, _ = program.timing(dense=True, check=number == 0).run(env=None, timeout_s=1800)
            except programs.Failed as e:
                raise programs.Failed(f"{program.name}, {threads} thread(s): {e}") from e
            ours = [samples[program.name], samples[programs.OUR_DENSE]]
            figures = [t for s in ours for t in (s.median_ms, s.min_ms)]
            found.setdefault(sparsity, {})[threads] = figures
            compare.say(f"round {number + 1} of {args.rounds}: {sparsity:g}, {threads} threads: {figures}")
    return found


def lines(args, rounds):
    """Heading and rows of the table. The dense network was timed beside every sparsity, so its row has more samples."""
    first, others = args.threads[0], args.threads[1:]
    head = ["", *(f"{t} thread{'s' if t > 1 else ''}" for t in args.threads), *(f"gain, {t}" for t in others)]
    rows = [[*head, *(f"sparse / dense, {t}" for t in args.threads)]]
    cases = [("dense", args.sparsity, 2)] + [(programs.percent(s), [s], 0) for s in args.sparsity]
    for name, of, at in cases:
        each = [r[s] for r in rounds for s in of]  # {threads: figures}
        row = [name]
        for t in args.threads:
            median, least = statistics.median(f[t][at] for f in each), min(f[t][at + 1] for f in each)
            row.append(f"{table.ms(median)}, {table.ms(least)}")
        row += [spread([f[first][at] / f[t][at] for f in each]) for t in others]
        row += ["1" if at else spread([f[t][0] / f[t][2] for f in each]) for t in args.threads]
        rows.append(row)
    return rows


def spread(ratios):
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def markdown(rows):
    rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [rows[0], rule, *rows[1:]])


def arguments(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engine", default=str(compare.ROOT / "target/release/sparse-engine"), metavar="PATH")
    p.add_argument("--model", default="resnet20")
    p.add_argument("--method", choices=METHODS, default="uniform")
    p.add_argument("--sparsity", action="append", type=float, help="repeatable; 0.6, 0.8 and 0.9 if none is given")
    p.add_argument("--threads", action="append", type=int, help="repeatable; 1 and 2 if none is given")
    p.add_argument("--batch", type=int, help="128; 16 for networks for 224x224 images")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--json", metavar="FILE", help="all figures")
    args = p.parse_args(argv)
    args.sparsity = args.sparsity or [0.6, 0.8, 0.9]
    args.threads = args.threads or [1, 2]
    if not all(0 < s < 1 for s in args.sparsity):
        p.error("--sparsity: wanted shares between 0 and 1")
    if args.rounds < 1 or min(args.threads) < 1 or (args.batch is not None and args.batch < 1):
        p.error("--rounds, --threads and --batch: wanted at least 1")
    try:
        args.batch = args.batch or names.default_batch(args.model)
    except ValueError as e:
        p.error(f"--{e}")
    if args.json and not os.path.isdir(os.path.dirname(args.json) or "."):
        p.error(f"--json: no such folder: {os.path.dirname(args.json)}")
    for name in ("sparsity", "threads"):
        if len(set(getattr(args, name))) < len(getattr(args, name)):
            p.error(f"--{name}: one is given twice")
    return args


if __name__ == "__main__":
    main()
