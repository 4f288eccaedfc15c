"""The Python that runs PyTorch: one that is given, or a virtual environment made here."""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"


class Failed(Exception):
    """One line for the user."""


def pinned():
    """The version of torch that requirements.txt names."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    return next(line.split("==")[1].strip() for line in lines if line.startswith("torch=="))


def torch_version(python):
    """The version of torch that `python` imports; None where it has none."""
    try:
        done = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    except OSError as e:
        raise Failed(f"{python}: cannot be run ({e.strerror}); wanted a Python, see --python and --venv") from e
    return done.stdout.strip() if done.returncode == 0 else None


def given(python):
    """Checks a Python that the user named; returns it and its version of torch, whichever that is."""
    version = torch_version(python)
    if version is None:
        raise Failed(f"{python}: `import torch` fails; install torch there, or leave --python out to have it installed")
    return python, version


def made(folder, index=None):
    """The Python of the virtual environment `folder`, and its torch's version; makes and installs what is missing."""
    python = str(pathlib.Path(folder) / "bin" / "python")
    if not pathlib.Path(python).exists():
        _run(
            [sys.executable, "-m", "venv", str(folder)],
            "a virtual environment (Debian, Ubuntu: apt install python3-venv)",
        )
    version = torch_version(python)
    if version is None or version.split("+")[0] != pinned():
        print(f"installing torch {pinned()} in {folder}", file=sys.stderr)
        where = ["--index-url", index] if index else []
        _run(
            [python, "-m", "pip", "install", "--quiet", *where, "--requirement", str(REQUIREMENTS)], f"torch {pinned()}"
        )
        version = torch_version(python)
        if version is None:
            raise Failed(f"{python}: torch was installed, but `import torch` fails")
    return python, version


def _run(command, what):
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise Failed(f"cannot make {what}: `{' '.join(command)}` failed; --python takes a Python that has torch")
