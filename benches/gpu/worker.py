"""The other end of torch_peer.py: a process that stays, since importing PyTorch, and compiling more so, takes longer
than what is to be timed."""

import json
import os
import pathlib
import select
import subprocess
import tempfile
import time

import children

SCRIPT = pathlib.Path(__file__).resolve().parent / "torch_peer.py"


class Worker:
    """Started at the first question, and again at the next after it had to be killed."""

    def __init__(self, argv, env=None):
        self._argv, self._env = argv, env
        self._child = self._said = None

    def ask(self, question, limit_s):
        """One answer. Raises OutOfMemory, TimedOut or Failed; then the process is gone, since an error may have left
        the device, or a capture, in a state that spoils what comes next."""
        began = time.monotonic()
        if self._child is None:
            self._start()
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
            answer = json.loads(self._line(began + limit_s, limit_s))
        except (children.Failed, OSError, ValueError) as e:
            # Before it is killed: then its end would look like a crash.
            why = e if isinstance(e, children.Failed) else children.Failed(self._end())
            self.stop()
            raise why from e
        if "error" in answer:
            self.stop()
            if answer.get("oom"):
                raise children.OutOfMemory(f"out of memory: {answer['error']}", others=answer.get("others", 0))
            raise children.Failed(answer["error"])
        return {**answer, "wall_s": round(time.monotonic() - began, 2)}

    def stop(self):
        child, self._child = self._child, None
        if child:
            children.kill(child)
            for stream in (child.stdin, child.stdout):
                try:
                    stream.close()
                except OSError:
                    pass  # a question that it never read
            self._said.close()

    def _start(self):
        self._said = tempfile.TemporaryFile()
        self._child = children.start(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, env=self._env
        )

    def _line(self, end, limit_s):
        line, out = b"", self._child.stdout.fileno()
        while not line.endswith(b"\n"):
            if not select.select([out], [], [], max(0.0, end - time.monotonic()))[0]:
                raise children.TimedOut(f"no answer in {limit_s:.0f} s")
            more = os.read(out, 1 << 16)
            if not more:
                raise children.Failed(self._end())
            line += more
        return line

    def _end(self):
        """How it ended: exit code and last words."""
        try:
            code = self._child.wait(timeout=children.PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = "none"
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return f"ended with exit code {code}: {lines[-1][:300] if lines else 'no message'}"


def for_torch(python, device="cuda"):
    return Worker([python, str(SCRIPT), "--device", device])
