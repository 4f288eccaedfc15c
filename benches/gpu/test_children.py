"""Time limits: nothing of a killed child is left."""

import contextlib
import os
import pathlib
import sys
import tempfile
import time
import unittest

import children
from fakes import alive

# Prints its own process id and that of a grandchild in a session of its own, whose parent has ended.
DAEMON = """
import os, sys, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, str(os.getpid()).encode())
        time.sleep(600)
    os._exit(0)
print(os.getpid(), os.read(read, 32).decode(), flush=True)
time.sleep(float(sys.argv[1]))
"""


class Limits(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        children.become_subreaper()

    def test_output_and_exit_code(self):
        done = children.run(["sh", "-c", "echo out; echo one >&2; echo two >&2; exit 3"], 20)
        self.assertEqual((done.code, done.out, done.err, done.last_line()), (3, "out\n", "one\ntwo\n", "two"))
        self.assertEqual(children.run(["true"], 20).last_line(), "no message")
        with self.assertRaisesRegex(children.Failed, "^cannot be run .No such file or directory.: /no/program$"):
            children.run(["/no/program"], 20)

    def test_a_daemon_is_killed_with_its_parent(self):
        for seconds, limit in ((600, 1), (0, 20)):  # it hangs; it ends, and leaves its daemon behind
            with self.subTest(seconds), tempfile.NamedTemporaryFile() as f:
                # Its output goes to a file too, to be read after the kill.
                command = ["sh", "-c", f"exec {sys.executable} -ISc '{DAEMON}' {seconds} >{f.name}"]
                late = self.assertRaises(children.TimedOut) if seconds else contextlib.nullcontext()
                began = time.monotonic()
                with late:
                    children.run(command, limit)
                self.assertLess(time.monotonic() - began, 10)
                pids = [int(p) for p in pathlib.Path(f.name).read_text().split()]
                self.assertEqual((len(pids), [p for p in pids if alive(p)]), (2, []))

    def test_running_children_are_spared_until_all_are_killed(self):
        other = children.start(["sleep", "600"])
        children.run(["true"], 20)
        self.assertTrue(alive(other.pid))
        children.kill_all()
        self.assertFalse(alive(other.pid))

    def test_deadline(self):
        now = [100.0]
        deadline = children.Deadline(7, clock=lambda: now[0])
        now[0] = 105.0
        self.assertEqual(deadline.left(), 2)
        now[0] = 110.0
        self.assertEqual(deadline.left(), 0)

    def test_nothing_else_is_touched(self):
        self.assertTrue(alive(os.getppid()))


if __name__ == "__main__":
    unittest.main()
