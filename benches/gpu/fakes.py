"""Programs for the tests that answer as the real ones do, or misbehave as `behaviour.json` says. They log each call."""

import json
import os
import pathlib
import subprocess
import sys
import textwrap

GPU = pathlib.Path(__file__).resolve().parent
DEVICE = "NVIDIA H100 80GB HBM3"

ENGINE = """
if "--version" in args:
    print(f"sparse-engine 0.1.0 ({behaviour.get('commit', '0123456789ab')})"); sys.exit(0)
misbehave()
if args[0] == "selftest":
    print("all kernels agree"); sys.exit(0)
if args[0] == "bench" and os.environ["PATH"].split(":")[0] != here:
    sys.exit("error: the Python that was asked for is not the first in PATH, where cuDNN is looked for")
value = lambda name, default=None: args[args.index(name) + 1] if name in args else default
if args[0] == "train":
    import pathlib
    run = pathlib.Path(value("--out") or value("--resume"))
    run.mkdir(exist_ok=True)
    if "--out" in args:
        device, seed, precision = value("--device"), int(value("--seed")), value("--precision")
        (run / "config.toml").write_text(json.dumps([device, seed, precision, int(value("--epochs"))]))
        (run / "metrics.jsonl").touch()
    device, seed, precision, epochs = json.loads((run / "config.toml").read_text())
    stop = []
    signal.signal(signal.SIGUSR1, lambda *_: stop.append(1))
    accuracy = behaviour.get("accuracy", {}).get(precision, 0.85 + 0.005 * seed)
    loss = behaviour.get("losses", {}).get(args[1], 0.5)
    key = ["step", "epoch", "split", "loss", "accuracy", "n", "lr"]
    done = (run / "metrics.jsonl").read_text().count('"test"')
    for epoch in range(done + 1, epochs + 1):
        with open(run / "metrics.jsonl", "a") as f:
            for split in ("train", "test"):
                record = dict(zip(key, (63 * epoch, epoch, split, loss, accuracy, 2000, 0.1)))
                f.write(json.dumps({"schema": 1, "time_s": time.time(), **record}) + "\\n")
        time.sleep(behaviour.get("epoch_s", 0))
        if stop and epoch < epochs and not behaviour.get("deaf"):
            print(f"stopped at step {63 * epoch}; checkpoint written to x", file=sys.stderr); sys.exit(75)
    salt = behaviour.get("bytes", {}).get("--resume" if "--resume" in args else precision, "")
    salt = str(time.time()) if salt == "any" else salt
    (run / "last.safetensors").write_text(f"{device} {precision} {seed} {salt}")
    (run / "plan-cuda.json").write_text(json.dumps({"precision": precision}))
    last = {"epoch": epochs, "loss": loss, "accuracy": accuracy, "n": 2000}
    config = {"epochs": epochs, "seed": {"init": seed, "mask": seed, "data": seed}}
    summary = {"config": config, "device": f"{device} NVIDIA H100", "threads": 16, "steps": 63 * epochs}
    summary |= {"train_time_s": 1.5, "images_per_s": 9.0, "results": {"test_last": last}}
    (run / "summary.json").write_text(json.dumps(summary))
    os._exit(0)  # Python's own end takes the handler away first: a late signal would kill
ms = 2.0 if value("--method") == "dense" else 1.0
base = {"schema": 1, "commit": "0123456789ab", "batch": int(value("--batch"))}
if args[1] == "kernels":
    shape = {"c": 16, "h": 32, "w": 32, "k": 32, "r": 3, "s": 3, "stride": 2, "pad": 1}
    result = {"op": "conv_fwd", "layers": 2, "shape": shape, "ms_median": 0.5, "ms_min": 0.4}
    result |= {"dense_ms_median": 1.0, "vendor_ms_median": 0.25, "sparse_over_vendor": 2.0, "vendor_missing": None}
    if missing := behaviour.get("vendor_missing"):
        result |= {"vendor_ms_median": None, "sparse_over_vendor": None, "vendor_missing": missing}
    peaks = {"copy_gb_s": 2512.5, "fill_gb_s": 2800.0, "mma_gflops": 612345.0}
    print(json.dumps({**base, "bench": "kernels", "peaks": peaks, "results": [result]})); sys.exit(0)
beside = "--no-dense" not in args
if base["batch"] > behaviour.get("fits", 1000) or beside and base["batch"] > behaviour.get("fits_beside", 1000):
    sys.exit("error: CUDA_ERROR_OUT_OF_MEMORY")
if beside:
    times = {"vendor_step_ms_median": 1.6 * base["batch"] / 128, "vendor_step_ms_min": 1.5 * base["batch"] / 128}
    base |= {**times, "vendor_bytes": {"total": 7000000}, "vendor_products": [58, 60], "vendor_missing": None}
    if missing := behaviour.get("vendor_missing"):
        base |= dict.fromkeys([k for k in base if k.startswith("vendor_")]) | {"vendor_missing": missing}
print(json.dumps({**base, "bench": "step", "backend": "cuda NVIDIA H100", "model": value("--model"),
    "method": value("--method"), "sparsity": float(value("--sparsity", 0)), "precision": value("--precision"),
    "pattern": value("--pattern", "unstructured"), "steps": int(value("--steps")), "maskable": 270896,
    "checked": "--no-check" not in args, "density_flops": 0.1, "bytes": {"total": 5000000},
    "launches": 80, "launched_ms_median": 2 * ms * base["batch"] / 128, "steps_a_graph": 16, "device": "cuda",
    "step_ms_median": ms * base["batch"] / 128, "step_ms_min": 0.9 * ms * base["batch"] / 128}))
"""

# Called as `python torch_peer.py --device cuda`.
TORCH = """
facts = {"torch": "2.11.0+cu130", "torch_cuda": "13.0"}
for line in sys.stdin:
    q = json.loads(line)
    log(["ask", q["model"], q["variant"], str(q["batch"])])
    args = ["ask", q["model"], q["variant"]]
    misbehave()
    if q["batch"] > behaviour.get("torch_fits", 1000):
        print(json.dumps({"error": "CUDA out of memory. Tried", "oom": True, "others": 0}), flush=True)
        continue
    ms = {"eager-tf32": 12.0, "eager-f32": 15.0, "amp-fp16": 6.0, "graphed-fp16": 1.5}.get(q["variant"], 4.0)
    ms *= q["batch"] / 128
    maskable = behaviour.get("torch_maskable", 270896)
    print(json.dumps({**{k: q[k] for k in ("model", "variant", "batch")}, "step_ms_median": ms, "step_ms_min": ms,
        "step_ms_max": ms, "maskable": maskable, "memory_bytes": 1000000, "torch": facts}), flush=True)
"""

SANITIZER = """
if "--version" in args:
    print("NVIDIA (R) Compute Sanitizer\\nVersion 2025.3.1.0"); sys.exit(0)
tool = args[args.index("--tool") + 1]
misbehave()
program = args[args.index("all") + 1:]
code = os.waitstatus_to_exitcode(os.system(" ".join(program) + " >/dev/null"))
found = behaviour.get("findings", {}).get(tool, 0)
if found:
    print("========= Invalid __global__ write of size 4 bytes")
if tool == "racecheck":
    print(f"========= RACECHECK SUMMARY: {found} hazards displayed (0 errors, 0 warnings)")
else:
    print(f"========= ERROR SUMMARY: {found} errors")
sys.exit(86 if found else code)
"""

# A shell script, since it is called most: it answers with values of `driver`, or fails where `no_gpu` exists.
NVIDIA_SMI = """\
#!/bin/sh
cd '%s' || exit
if [ -e no_gpu ]; then echo "NVIDIA-SMI has failed"; exit 9; fi
case "$*" in
    *mig.mode*) echo "Field mig.mode.current is not a valid field to query."; exit 2 ;;
    *--query-gpu=name,driver_version*) echo "%s, $(cat driver)" ;;
    *--query-gpu=*,*--format*) echo "1980 MHz, [N/A], 30, 100.00 W, 0 %%" ;;
    *clocks.max.sm*) echo "1980 MHz" ;;
    *power.limit*) echo "700.00 W" ;;
    *--query-gpu=*) echo "[N/A]" ;;
    *) echo "| NVIDIA-SMI 580.1    Driver Version: 580.159.04    CUDA Version: 13.0  |" ;;
esac
"""

TEST_BINARY = """
if "--list" in args:
    print("ops::real_gpu: test\\nops::cpu: test\\nconv::odd::on_a_real_gpu: test\\n"); sys.exit(0)
misbehave()
print("skipped: no compute-sanitizer here", file=sys.stderr)
print("test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s")
"""

# `misbehave`: the first of the rules whose words are all among the arguments. "hang" ignores SIGTERM, with a child and
# a grandchild, each in a session of its own, that do the same.
COMMON = """\
#!/usr/bin/env -S python3 -IS
import json, os, signal, sys, time
here = {folder!r}
behaviour = json.load(open(here + "/behaviour.json"))
args = sys.argv[1:]
def log(words):
    with open(here + "/calls", "a") as f:
        f.write(json.dumps([{name!r}, *words]) + "\\n")
def hang():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(2):
        if os.fork():
            break
        os.setsid()
    with open(here + "/pids", "a") as f:
        f.write(f"{{os.getpid()}}\\n")
    time.sleep(600)
def misbehave():
    for rule in behaviour.get("rules", []):
        if rule["name"] == {name!r} and all(w in args for w in rule.get("words", [])):
            if rule["does"] == "hang":
                hang()
            time.sleep(rule.get("sleep", 0))
            if rule["does"] == "fail":
                print("a library's chatter", file=sys.stderr)
                print(rule.get("says", "thread 'main' panicked at src/x.rs:1"), file=sys.stderr)
                sys.exit(rule.get("code", 1))
            return
log(args)
"""


class Lab:
    """A folder with all the programs, and the runner started in it."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()
        self.out, self.tests, path = self.folder / "results", self.folder / "tests", self.folder / "path"
        for each in (self.tests, path):
            each.mkdir()
        self.engine = self._program(self.folder / "sparse-engine", ENGINE)
        self.python = self._program(self.folder / "python", TORCH)
        for name in ("gpu_conv", "gpu_sgd"):
            self._program(self.tests / name, TEST_BINARY)
        self._program(path / "compute-sanitizer", SANITIZER)
        smi = path / "nvidia-smi"
        smi.write_text(NVIDIA_SMI % (self.folder, DEVICE))
        smi.chmod(0o755)
        # Found by PATH: the interpreter's own may lie in a home folder, which no binary may name.
        self.env = {**os.environ, "PATH": f"{path}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin"}
        self.behave()

    def behave(self, *rules, driver="580.159.04", no_gpu=False, **more):
        """From now on: `rules` as in COMMON, the others as the programs above name them."""
        (self.folder / "driver").write_text(driver)
        (self.folder / "no_gpu").unlink(missing_ok=True)
        if no_gpu:
            (self.folder / "no_gpu").touch()
        (self.folder / "behaviour.json").write_text(json.dumps({"rules": rules, **more}))

    def calls(self):
        """What was called since the last time, but for questions about machine and version."""
        path = self.folder / "calls"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return [c for c in found if "--version" not in c and "--list" not in c and (c[0] != "python" or c[1] == "ask")]

    def hanging(self):
        """Process ids of all that hung and were not killed."""
        path = self.folder / "pids"
        pids = [int(line) for line in path.read_text().split()] if path.exists() else []
        return pids, [p for p in pids if alive(p)]

    def command(self, stage, *more):
        common = ["--bin", self.engine, "--out", self.out, "--earlier", self.out]
        if stage == "selftest":
            common += ["--tests", self.tests]
        else:
            common += ["--python", self.python]
        # -S: what a machine's site-packages do at start-up costs more than the runner itself.
        return [sys.executable, "-S", GPU / "run.py", stage, *common, *more]

    def run(self, stage, *more):
        command = [str(part) for part in self.command(stage, *more)]
        return subprocess.run(command, capture_output=True, text=True, env=self.env, timeout=60)

    def results(self):
        """The one JSON file there is."""
        (path,) = self.out.glob("*.json")
        return json.loads(path.read_text())

    def markdown(self):
        (path,) = self.out.glob("*.md")
        return path.read_text()

    def _program(self, path, text):
        head = COMMON.format(folder=str(self.folder), name=path.name)
        path.write_text(head + textwrap.dedent(text))
        path.chmod(0o755)
        return path


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
