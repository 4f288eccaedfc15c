#!/usr/bin/env python3
"""This engine's training step beside PyTorch's and SparseProp's, in one run on one machine.

    cargo build --release
    python3 benches/peers/compare.py --markdown

Each round starts every program in a process of its own, PyTorch and the engine in turn (A B A B), so that what the
machine does meanwhile falls on all of them. Reported over the rounds: medians, minima, spreads, and the ratio to
PyTorch dense in f32, whichever of eager and compiled is faster. No round is discarded; one that is interrupted (Ctrl-C)
is left out, and the table says so.

In its first round each of the engine's cases is checked in f64 before it is timed; later rounds only time them, which
for ResNet-50 saves minutes a process. All of them must find the binary (and files named in --engine-args) with the
content it had at the start, or the run ends. The engine's dense network is timed once a round, in turns with the first
sparse one.

Memory is the peak resident set of the process less what it held before the network was built, for all alike (Linux);
so it has in it what libraries load at their first use (PyTorch 2.15: 170 MB, seen with ResNet-20 at batch 1). Its ratio
is to PyTorch eager, the usual way to run it: the compiled network's start-up already holds a compiler.

Without --python, PyTorch (requirements.txt) is installed in a virtual environment, once. SparseProp is measured if
that Python can import it; nothing here fetches or builds it.

Exit codes: 0 done, 1 a program failed, 2 wrong usage, 130 stopped.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import machine
import names
import programs
import table
import torch_env
from densities import METHODS

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAIRS = 5  # fewer rounds than this get a warning
RIVALS = (programs.EAGER, programs.COMPILED)  # the ratio in memory is to the first that has a figure
MASKED = ("masked", "sparseprop")


def main():
    args = arguments()
    try:
        python, torch = torch_env.given(args.python) if args.python else torch_env.made(args.venv, args.index)
        content = Content([shutil.which(args.engine) or args.engine, *args.engine_args])
        engine = engine_version(args.engine)
    except torch_env.Failed as e:
        sys.exit(f"compare: {e}")
    report = {
        "command": shlex.join(["python3", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(),
        "engine": engine,
        "engine_files": content.hashes,
        "torch": torch,
        "threads": args.threads,
        "tables": [],
        "rounds": [],
    }
    show = table.markdown if args.markdown else table.plain
    print(header(report), flush=True)
    stopped = False
    for model in args.model:
        batch = args.batch or names.default_batch(model)
        every = plan(args, python, model, batch)
        try:
            samples, failures, stopped = measure(args, model, every, report, content)
        except Changed as e:
            sys.exit(f"compare: {e}")
        titles = row_names(every)
        rows, fastest, base = table.summarise(titles, samples, {n: str(e) for n, e in failures.items()}, RIVALS)
        entry = {
            "model": model,
            "batch": batch,
            "rounds": len(samples),
            "rounds_asked": args.pairs,
            "stopped": stopped,
            "time_rival": fastest,
            "memory_rival": base,
            "rows": [vars(r) for r in rows],
        }
        entry["warnings"] = warnings(args, entry, report)
        entry["failed"] = sorted(n for n, e in failures.items() if not e.expected)
        report["tables"].append(entry)
        save(args.json, report)
        print(
            f"\n{caption(entry, args.threads)}\n\n{show(rows)}\n"
            + "".join(f"\nWARNING: {w}\n" for w in entry["warnings"]),
            flush=True,
        )
        if stopped:
            break
    sys.exit(130 if stopped else 1 if any(t["failed"] for t in report["tables"]) else 0)


def plan(args, python, model, batch):
    """The programs of one round, in order. A masked network's time does not depend on its masks, so the last sparsity
    stands for all."""
    sparse = [(m, s) for m in args.method for s in args.sparsity]
    peers = []
    for variant in args.variants:
        choices = [(None, None)] if variant not in MASKED else sparse if variant == "sparseprop" else sparse[-1:]
        peers += [
            programs.torch_program(python, variant, model, batch, args.threads, args.seconds, *c) for c in choices
        ]
    ours = [programs.engine_program(args.engine, model, batch, args.threads, m, s, args.engine_args) for m, s in sparse]
    return programs.interleave(peers, ours)


def row_names(every):
    """Peers first, then the engine dense, then sparse."""
    ours = [p.name for p in every if p.is_engine]
    return [p.name for p in every if not p.is_engine] + [programs.OUR_DENSE] + ours


def measure(args, model, every, report, content):
    """Runs the rounds. Returns the samples of each finished round, why programs failed, and whether it was stopped.

    Raises Changed if the engine is not what was checked.
    """
    env = dict(os.environ, OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads))
    rounds, failures, checked = [], {}, set()  # `checked`: names of rows
    try:
        for number in range(1, args.pairs + 1):
            load = machine.Load()
            say(f"{model}, round {number} of {args.pairs}: load average {os.getloadavg()[0]:.2f}")
            found, answers = {}, []
            for program in every:
                if program.name in failures:
                    continue
                if program.is_engine:
                    content.must_be_the_same()
                    # If the program that had the dense network beside it fails, the next takes it over.
                    dense = programs.OUR_DENSE not in found
                    wanted = {program.name, programs.OUR_DENSE} if dense else {program.name}
                    program = program.timing(dense, check=not wanted <= checked)
                try:
                    samples, answer = program.run(env, args.timeout)
                except programs.Failed as e:
                    failures[program.name] = e
                    say(f"  {program.name}: {e}")
                    continue
                answers.append({"name": program.name, "answer": answer})
                checked |= set(samples)
                for name, sample in samples.items():
                    found[name] = sample
                    say(f"  {name}: {table.ms(sample.median_ms)} ms")
            rounds.append(found)
            lap = load.lap()
            say(f"  load average {lap['load_end']:.2f}; other programs used {lap['others_cpus']:.2f} processors")
            report["rounds"].append({"model": model, "round": number, **lap, "runs": answers})
            save(args.json, report)
    except KeyboardInterrupt:
        return rounds, failures, True
    return rounds, failures, False


def warnings(args, entry, report):
    found = []
    if entry["rounds"] < PAIRS:
        found.append(f"rounds: wanted at least {PAIRS}, got {entry['rounds']}; the spread says little")
    laps = [r for r in report["rounds"] if r["model"] == entry["model"]]
    busy = [f"{r['others_cpus']:.2f} in round {r['round']}" for r in laps if r["others_cpus"] > machine.OTHERS_MAX]
    if busy:
        found.append(f"other programs used the processors ({', '.join(busy)}; wanted at most {machine.OTHERS_MAX})")
    if args.threads > report["machine"]["cores"]:
        found.append(f"{args.threads} threads on {report['machine']['cores']} cores")
    if ", changed" in report["engine"]:
        found.append("the engine was built from source that differs from its commit")
    if entry["time_rival"] is None:
        found.append("no PyTorch dense figure, so no ratios")
    return found


def header(report):
    m = report["machine"]
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['simd']}; {report['date']}; "
        f"PyTorch {report['torch']}; {report['engine']}\n"
        f"Command: `{report['command']}`"
    )


def caption(entry, threads):
    rounds = f"rounds: {entry['rounds']}, interleaved, none discarded"
    if entry["stopped"]:
        rounds += f"; stopped in round {entry['rounds'] + 1} of {entry['rounds_asked']}, which is left out"
    time, memory = entry["time_rival"], entry["memory_rival"]
    rivals = f"; ratios to {time}" if time else ""
    if memory and memory != time:
        rivals += f", in memory to {memory}"
    return f"{entry['model']}, batch {entry['batch']}, {threads} threads; {rounds}{rivals}."


class Changed(Exception):
    """A file changed between the check and a timing."""


class Content:
    """Hashes of those of some arguments that are files: an answer that was checked stands for these alone."""

    def __init__(self, arguments):
        paths = [a.partition("=")[2] if a.startswith("-") else a for a in arguments]
        self.hashes = {p: found for p in paths if (found := file_hash(p))}

    def must_be_the_same(self):
        for path, was in self.hashes.items():
            if file_hash(path) != was:
                raise Changed(f"{path} is not the file it was when the run began; start it again")


def file_hash(path):
    """SHA-256 of a file's content; None where there is no such file."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def engine_version(engine):
    """What `sparse-engine --version` prints: version and commit."""
    try:
        done = subprocess.run([engine, "--version"], capture_output=True, text=True)
    except OSError as e:
        raise torch_env.Failed(
            f"{engine}: cannot be run ({e.strerror}); `cargo build --release` makes it, or see --engine"
        ) from e
    if done.returncode != 0 or not done.stdout.strip():
        raise torch_env.Failed(f"{engine} --version: exit code {done.returncode}; wanted this engine's binary")
    return done.stdout.strip().splitlines()[0]


def save(path, report):
    """The report so far; replaced as a whole, so that a crash leaves the one before."""
    if path:
        partial = f"{path}.tmp"
        with open(partial, "w", encoding="utf-8") as f:
            json.dump(report, f, indent=1)
            f.write("\n")
        os.replace(partial, path)


def say(line):
    print(line, file=sys.stderr, flush=True)


def arguments(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--engine", default=str(ROOT / "target/release/sparse-engine"), metavar="PATH", help="this engine's binary"
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--venv", default=str(ROOT / "target/peers-venv"), metavar="DIR", help="virtual environment, made if missing"
    )
    where.add_argument("--python", metavar="PATH", help="a Python that has torch; nothing is installed")
    p.add_argument(
        "--index", metavar="URL", help="where pip finds torch; PyTorch's own index of CPU wheels saves gigabytes"
    )
    p.add_argument("--model", action="append", help="repeatable; resnet20 if none is given")
    p.add_argument("--method", action="append", choices=METHODS, help="repeatable; uniform if none is given")
    p.add_argument("--sparsity", action="append", type=float, help="repeatable; 0.8, 0.9 and 0.95 if none is given")
    p.add_argument("--batch", type=int, help="128; 16 for networks for 224x224 images")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--pairs", type=int, default=PAIRS, help="rounds")
    p.add_argument("--variants", default=",".join(programs.NAMES), help="of PyTorch and peers, comma-separated")
    p.add_argument("--seconds", type=float, default=5, help="a PyTorch process times steps for so long")
    p.add_argument("--timeout", type=float, default=1800, help="seconds until a process counts as hanging")
    p.add_argument(
        "--engine-args",
        type=shlex.split,
        default=[],
        metavar="TEXT",
        help="more arguments of `bench step`, such as '--plan FILE'",
    )
    p.add_argument("--json", metavar="FILE", help="all answers and the tables, written after each round")
    p.add_argument("--markdown", action="store_true", help="tables for a README")
    args = p.parse_args(argv)
    args.model = args.model or ["resnet20"]
    args.method = args.method or ["uniform"]
    args.sparsity = args.sparsity or [0.8, 0.9, 0.95]
    args.variants = [v for v in args.variants.split(",") if v]
    unknown = [v for v in args.variants if v not in programs.NAMES]
    if unknown or not args.variants:
        p.error(f"--variants: wanted some of {', '.join(programs.NAMES)}, got {', '.join(unknown) or 'none'}")
    if not {"eager", "compiled"} & set(args.variants):
        p.error("--variants: wanted eager or compiled among them, which the ratios are taken to")
    for name in ("model", "method", "sparsity", "variants"):
        given = getattr(args, name)
        if len(set(given)) < len(given):
            p.error(f"--{name}: given twice: {', '.join(str(g) for g in given)}")
    for model in args.model:
        try:
            names.default_batch(model)
        except ValueError as e:
            p.error(f"--{e}")
    for s in args.sparsity:
        if not 0 < s < 1:
            p.error(f"--sparsity: wanted between 0 and 1, got {s}")
    for name, value in (("batch", args.batch), ("threads", args.threads), ("pairs", args.pairs)):
        if value is not None and value < 1:
            p.error(f"--{name}: wanted at least 1, got {value}")
    if args.json and not pathlib.Path(args.json).resolve().parent.is_dir():
        p.error(f"--json: no folder {pathlib.Path(args.json).resolve().parent}")
    return args


if __name__ == "__main__":
    main()
