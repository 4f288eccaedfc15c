"""What the figures depend on: device, driver, clocks, libraries, and which binary ran. Only reads; nothing is set."""

import datetime
import hashlib
import platform
import re
import shutil

import children
from reused import machine

UNKNOWN = "not readable"
FIXED = {  # what a device is set to: nvidia-smi's name -> ours
    "memory.total": "memory",
    "power.limit": "power_limit",
    "power.max_limit": "power_limit_max",
    "clocks.max.sm": "clock_sm_max",
    "clocks.max.mem": "clock_memory_max",
    "persistence_mode": "persistence_mode",
    "compute_mode": "compute_mode",
    "ecc.mode.current": "ecc",
    "mig.mode.current": "mig",
}
MOVING = {  # what it does at the moment
    "clocks.sm": "clock_sm",
    "clocks.mem": "clock_memory",
    "temperature.gpu": "temperature_c",
    "power.draw": "power",
    "utilization.gpu": "busy",
}
LIMIT_S = 20


def device():
    """Name and driver version. Raises Failed where there is no usable GPU."""
    if not shutil.which("nvidia-smi"):
        raise children.Failed("no GPU here: there is no nvidia-smi")
    done = children.run(["nvidia-smi", "-i", "0", *_query("name", "driver_version")], LIMIT_S)
    fields = [f.strip() for f in done.out.splitlines()[0].split(",")] if done.out.strip() else []
    if done.code != 0 or len(fields) != 2:
        raise children.Failed(f"no GPU here: nvidia-smi says: {done.last_line()}")
    return fields[0], fields[1]


def engine(binary):
    """The binary's version line, its commit (None: not told), whether its source was changed, and its hash."""
    done = children.run([str(binary), "--version"], LIMIT_S)
    line = done.out.strip().splitlines()[0] if done.out.strip() else ""
    if done.code != 0 or not line:
        raise children.Failed(
            f"{binary} --version: exit code {done.code}, {done.last_line()}; wanted this engine's binary"
        )
    commit = re.search(r"\(([0-9a-f]{7,40})\b", line)
    with open(binary, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    return {
        "version": line,
        "commit": commit[1] if commit else None,
        "changed": "changed" in line,
        "sha256": digest,
    }


def head(binary):
    """Everything above the figures. `key` decides whether rows of an earlier run are of the same thing."""
    name, driver = device()
    built = engine(binary)
    # A commit does not say which source a changed tree had.
    same = built["commit"] if built["commit"] and not built["changed"] else f"sha256 {built['sha256'][:16]}"
    return {
        "key": {"engine": same, "device": name, "driver": driver},
        "engine": built,
        "machine": {
            "device": name,
            "driver": driver,
            "cuda_of_driver": _first(["nvidia-smi"], r"CUDA Version:\s*([\d.]+)"),
            "nvcc": _first(["nvcc", "--version"], r"release ([\d.]+)"),
            "compute_sanitizer": _first(["compute-sanitizer", "--version"], r"[Vv]ersion ([\d.]+)"),
            "torch": _package("torch"),
            **_read(FIXED),
            "cpu": machine.describe()["cpu"],
            "cores": machine.describe()["cores"],
            "python": platform.python_version(),
            "system": platform.platform(),
        },
    }


def state():
    """Clocks, temperature and power at the moment."""
    return {"at": datetime.datetime.now().isoformat(timespec="seconds"), **_read(MOVING)}


def slug(name):
    """A device's name for a file: "NVIDIA H100 80GB HBM3" -> "h100-80gb-hbm3"."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower().replace("nvidia", ""))) or "gpu"


def _read(fields):
    """The values of all fields; a field that this driver does not know makes it refuse all, so then one by one."""
    try:
        values = _values(list(fields))
        if values is None:
            values = [(_values([f]) or [UNKNOWN])[0] for f in fields]
    except children.Failed:
        values = [UNKNOWN] * len(fields)
    return dict(zip(fields.values(), values))


def _values(fields):
    done = children.run(["nvidia-smi", "-i", "0", *_query(*fields)], LIMIT_S)
    if done.code != 0 or not done.out.strip():
        return None
    values = [v.strip() for v in done.out.splitlines()[0].split(",")]
    if len(values) != len(fields):
        return None
    return [UNKNOWN if not v or v.startswith("[") else v for v in values]


def _query(*fields):
    return [f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]


def _first(argv, pattern):
    """What `pattern` finds in a program's output; UNKNOWN where there is no such program."""
    try:
        found = re.search(pattern, children.run(argv, LIMIT_S).out)
    except children.Failed:
        return UNKNOWN
    return found[1] if found else UNKNOWN


def _package(name):
    import importlib.metadata  # late: most of the time that the runner takes to start

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN
