"""Child processes with a time limit. When it is over, the child and all that it started are killed, those too that left
its process group: this process becomes the parent of orphans ("subreaper"), so none is out of reach. Linux."""

import contextlib
import ctypes
import os
import signal
import subprocess
import tempfile
import time

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PATIENCE_S = 5  # a process that survives SIGKILL for so long is stuck in the driver; waiting longer would not help

_libc = ctypes.CDLL(None, use_errno=True)
_running = {}  # pid -> Popen: children that are meant to run


class Failed(Exception):
    """A program that gave no result: why, in one line. `more`: what else its row is to hold."""

    def __init__(self, why, **more):
        super().__init__(why)
        self.more = more


class OutOfMemory(Failed):
    """It did not fit the device."""


class TimedOut(Failed):
    """It was killed at its limit."""


class Done:
    """A child that has ended by itself."""

    def __init__(self, code, out, err, wall_s):
        self.code, self.out, self.err, self.wall_s = code, out, err, wall_s

    def last_line(self):
        """What it said last, errors first: one line for a table."""
        for text in (self.err, self.out):
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            if lines:
                return lines[-1][:300]
        return "no message"


class Deadline:
    """The end of a stage, counted from its start."""

    def __init__(self, seconds, clock=time.monotonic):
        self.seconds, self._clock, self._end = seconds, clock, clock() + seconds

    def left(self):
        return max(0.0, self._end - self._clock())

    def passed(self):
        return self._clock() - self._end + self.seconds


def become_subreaper():
    """From now on orphaned descendants become children of this process."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _die_with_parent():
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start(argv, **options):
    """A child in a process group of its own, which the kernel kills if this process is killed."""
    try:
        child = subprocess.Popen(argv, process_group=0, preexec_fn=_die_with_parent, **options)
    except OSError as e:
        raise Failed(f"cannot be run ({e.strerror}): {argv[0]}") from e
    _running[child.pid] = child
    return child


def run(argv, limit_s, env=None, cwd=None, stop_when=None):
    """Runs a program to its end. Raises TimedOut, and nothing of it is left, if that takes longer than `limit_s`. Once
    `stop_when()` is true it is sent SIGUSR1."""
    began = time.monotonic()
    # Files, not pipes: a pipe stays open as long as any grandchild holds it.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = start(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd)
        try:
            if stop_when:
                _stop(child, stop_when, began + limit_s)
            code = child.wait(timeout=max(0.0, began + limit_s - time.monotonic()))
        except subprocess.TimeoutExpired as e:
            raise TimedOut(f"no answer in {limit_s:.0f} s") from e
        finally:
            kill(child)
        wall = time.monotonic() - began
        return Done(code, _text(out), _text(err), wall)


def _stop(child, when, end):
    while child.poll() is None and time.monotonic() < end:
        if when():
            child.send_signal(signal.SIGUSR1)
            return
        time.sleep(0.001)


def kill(child):
    """Ends a child with all its descendants, and every orphan that no running child owns."""
    _running.pop(child.pid, None)

    def left():
        child.poll()
        tree = _tree()
        return _below(child.pid, tree) | (set(tree.get(os.getpid(), ())) - _running.keys())

    _kill_until_gone(left)


def kill_all():
    """Ends everything that this process started."""
    children = list(_running.values())
    _running.clear()

    def left():
        for child in children:
            child.poll()
        return _below(os.getpid(), _tree())

    _kill_until_gone(left)


def _kill_until_gone(left):
    """`left`: the processes to be killed that are there still."""
    end = time.monotonic() + PATIENCE_S
    while found := left():
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            return
        time.sleep(0.01)


def _below(pid, tree):
    found, open_ = set(), [pid]
    while open_:
        more = set(tree.get(open_.pop(), ())) - found
        found |= more
        open_ += more
    return found


def _tree():
    """Parent -> children, of all processes that are not dead. Dead orphans are reaped."""
    tree = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as f:
                state, parent = f.read().rpartition(b")")[2].split()[:2]
        except OSError:
            continue  # ended meanwhile
        pid, parent = int(name), int(parent)
        if state not in b"ZX":
            tree.setdefault(parent, []).append(pid)
        elif parent == os.getpid() and pid not in _running:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return tree


def _text(file):
    file.seek(0)
    return file.read().decode(errors="replace")
