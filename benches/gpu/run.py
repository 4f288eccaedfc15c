#!/usr/bin/env python3
"""Checks and measures this engine on a GPU machine that has PyTorch, and no Rust: with binaries built elsewhere.

    benches/gpu/pack.sh target/gpu                                  # where Rust is
    python3 benches/gpu/run.py selftest    --bin target/gpu/sparse-engine --tests target/gpu/tests
    python3 benches/gpu/run.py sanitize    --bin target/gpu/sparse-engine
    python3 benches/gpu/run.py train       --bin target/gpu/sparse-engine
    python3 benches/gpu/run.py peers-small --bin target/gpu/sparse-engine
    python3 benches/gpu/run.py peers-224   --bin target/gpu/sparse-engine
    python3 benches/gpu/run.py kernels     --bin target/gpu/sparse-engine

A stage ends by itself before --deadline-s is over. What no longer fits is marked `not run: deadline`; the same command
again goes on there, and skips rows that are there already of the same commit, device and driver. The results,
benches/results/DATE-DEVICE-STAGE.json and .md, are replaced as a whole after every row.

Exit codes: 0 all rows done, 1 a row failed, 2 wrong usage or binaries that may not travel, 69 no usable GPU,
75 the deadline left rows out, 130 and 143 stopped by a signal.
"""

import argparse
import math
import os
import pathlib
import re
import shlex
import signal
import sys

import binaries
import checks
import children
import facts
import kernels
import markdown
import peers
import schedule
import store
import training
from reused import ROOT, names

STAGES = ("selftest", "sanitize", "train", "peers-small", "peers-224", "kernels")
MODELS = {"peers-small": peers.SMALL, "peers-224": peers.LARGE, "kernels": kernels.MODELS}
RESULTS = ROOT / "benches" / "results"
MOST_DEADLINE_S = 420


class Stopped(Exception):
    """A signal asks for the end."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


def main():
    args = arguments()
    # In the packages of the Pythons there the engine looks for cuDNN and cuBLASLt.
    if pathlib.Path(args.python).parent != pathlib.Path("."):
        os.environ["PATH"] = os.pathsep.join([str(pathlib.Path(args.python).parent), os.environ.get("PATH", "")])
    deadline = children.Deadline(args.deadline_s)
    children.become_subreaper()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    try:
        tests = binaries.tests_in(args.tests) if args.stage == "selftest" else []
        binaries.check(args.bin, tests)
        tests = [(path, checks.real_gpu_tests(path)) for path in tests]
        head = facts.head(args.bin)
    except binaries.Refused as e:
        print(f"run: {e}", file=sys.stderr)
        sys.exit(2)
    except children.Failed as e:
        print(f"run: {e}", file=sys.stderr)
        sys.exit(69)
    results = store.Store.open(args.stage, head, args.out, args.earlier, markdown.render)
    bench = peers.Bench(args.bin, peer_options(args), results.machine)
    rows = [r for r in stage_rows(args, tests, bench, results) if args.only.search(r.id)]
    if not rows:
        print(f"run: --only {args.only.pattern}: no row of {args.stage} has that in its id", file=sys.stderr)
        sys.exit(2)
    code, how = 1, "failed"
    try:
        results.begin(shlex.join(["python3", *sys.argv]), rows, args.rounds)
        schedule.say(f"{args.stage}, {head['key']['device']}: {results.path}")
        complete = schedule.run(results, deadline, rows, args.rounds, args.retry)
        failed = any(results.row(r.id)["status"] == "failed" for r in rows)
        how = "complete" if complete else "deadline"
        code = 1 if failed else 0 if complete else 75
    except Stopped as e:
        code, how = 128 + e.number, f"stopped by {e}"
    finally:
        # From here on another signal must not keep the children alive.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        children.kill_all()
        results.end(how, deadline.passed())
    counts = [results.row(r.id)["status"] for r in rows]
    schedule.say(f"{how}: " + ", ".join(f"{counts.count(s)} {s}" for s in dict.fromkeys(counts)))
    sys.exit(code)


def stage_rows(args, tests, bench, results):
    if args.stage == "selftest":
        return checks.selftest_rows(args.bin, tests)
    if args.stage == "sanitize":
        return checks.sanitize_rows(args.bin)
    if args.stage == "train":
        return training.rows(args.bin, results)
    if args.stage == "kernels":
        return kernels.rows(args.bin, args.model, args.batch)
    return bench.rows(args.stage, args.model, args.batch)


def peer_options(args):
    return peers.Options(
        python=args.python,
        seconds=args.seconds,
        compile_s=args.compile_s,
        check=args.check,
        full=args.full,
    )


def _stop(number, _):
    raise Stopped(number)


def arguments(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("stage", choices=STAGES)
    p.add_argument("--bin", type=pathlib.Path, required=True, metavar="FILE", help="sparse-engine, stripped")
    p.add_argument("--tests", type=pathlib.Path, metavar="DIR", help="test binaries, stripped: for selftest")
    p.add_argument("--out", type=pathlib.Path, default=RESULTS, metavar="DIR", help="where the results are written")
    p.add_argument(
        "--earlier", type=pathlib.Path, default=RESULTS, metavar="DIR", help="results to go on with, if --out has none"
    )
    p.add_argument("--deadline-s", type=float, default=400, metavar="S", help=f"at most {MOST_DEADLINE_S}")
    p.add_argument("--only", type=regex, default=regex(""), metavar="REGEX", help="only rows whose id matches")
    p.add_argument("--retry", action="store_true", help="run again what failed in an earlier run")
    p.add_argument("--model", action="append", help="repeatable; default: all networks of the stage")
    p.add_argument("--batch", type=int, help="images a step; default: 128, for 224x224 256 (kernels: 64)")
    g = p.add_argument_group("peers-small, peers-224")
    g.add_argument("--rounds", type=int, default=3, help="samples of each row")
    g.add_argument("--seconds", type=float, default=0.5, help="a PyTorch sample times steps for so long")
    g.add_argument("--compile-s", type=float, default=90, metavar="S", help="time limit of torch.compile, a network")
    g.add_argument("--python", default=sys.executable, metavar="PATH", help="a Python that has torch")
    g.add_argument("--check", action="store_true", help="the engine checks a step in f64 before its first sample")
    g.add_argument("--full", action="store_true", help="all densities in every precision, not in fp16 alone")
    args = p.parse_args(argv)
    if args.stage == "selftest" and not args.tests:
        p.error("selftest: wanted --tests DIR")
    if args.model and args.stage not in MODELS:
        p.error(f"--model: {args.stage} has no choice of networks")
    args.model = args.model or list(MODELS.get(args.stage, ()))
    if len(set(args.model)) < len(args.model):
        p.error(f"--model: given twice: {', '.join(args.model)}")
    for model in args.model:
        try:
            names.default_batch(model)
        except ValueError as e:
            p.error(f"--{e}")
        if args.stage in peers.BATCHES and peers.is_large(model) != (args.stage == "peers-224"):
            p.error(f"--model: {model} is not a network for the images of {args.stage}")
    if not args.stage.startswith("peers"):
        args.rounds = 1
    for name in ("rounds", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            p.error(f"--{name}: wanted at least 1, got {getattr(args, name)}")
    for name, most in (("deadline_s", MOST_DEADLINE_S), ("seconds", 60), ("compile_s", MOST_DEADLINE_S)):
        value = getattr(args, name)
        if not (math.isfinite(value) and 0 < value <= most):
            p.error(f"--{name.replace('_', '-')}: wanted above 0 and at most {most}, got {value}")
    return args


def regex(text):
    try:
        return re.compile(text)
    except re.error as e:
        raise argparse.ArgumentTypeError(f"wanted a regular expression, got {text!r}: {e}") from e


if __name__ == "__main__":
    try:
        main()
    except Stopped as e:  # before anything was measured
        children.kill_all()
        sys.exit(128 + e.number)
