"""The table of threads, from stand-ins. `python3 -m unittest discover -s benches/peers`"""

import contextlib
import io
import json
import os
import pathlib
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import threads

# Times fall with threads; the dense network takes 4 times as long as the sparse one, the second round twice as long.
STAND_IN = """\
#!{python} -IS
import json, os, sys
args = sys.argv[1:]
if args == ["--version"]:
    print("sparse-engine 0.1.0 (0123456789ab)")
    sys.exit()
value = lambda key: args[args.index(key) + 1]
n, sparsity = int(value("--threads")), float(value("--sparsity"))
if value("--sparsity") == {broken!r}:
    sys.exit("a result is wrong")
ms = 200.0 * (1 - sparsity) * (2 if "--no-check" in args else 1) / (1 if n == 1 else 1.6)
print(json.dumps({{"model": value("--model"), "batch": int(value("--batch")), "threads": n, "method": value("--method"),
    "sparsity": sparsity, "checked": "--no-check" not in args, "step_ms_median": ms, "step_ms_min": 0.5 * ms,
    "dense_step_ms_median": 4 * ms, "dense_step_ms_min": 2 * ms}}))
"""


class Threads(unittest.TestCase):
    def run_it(self, *more, broken=None):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "stand-in")
            with open(path, "w", encoding="utf-8") as f:
                f.write(STAND_IN.format(python=sys.executable, broken=broken))
            os.chmod(path, 0o755)
            out, err, found = io.StringIO(), io.StringIO(), os.path.join(folder, "json")
            argv = ["threads.py", "--engine", path, "--rounds", "2", "--json", found, *more]
            code = 0
            with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    threads.main()
                except SystemExit as stop:
                    code = stop.code
            figures = json.loads(pathlib.Path(found).read_text(encoding="utf-8")) if os.path.exists(found) else None
            return code, out.getvalue(), figures

    def test_gains_and_ratios_of_two_rounds(self):
        code, out, figures = self.run_it("--sparsity", "0.5")
        self.assertEqual(code, 0)
        want = [
            "|  | 1 thread | 2 threads | gain, 2 | sparse / dense, 1 | sparse / dense, 2 |",
            "| dense | 600, 200 | 375, 125 | 1.60 (1.60-1.60) | 1 | 1 |",
            "| 50 % | 150, 50.0 | 93.8, 31.2 | 1.60 (1.60-1.60) | 0.25 (0.25-0.25) | 0.25 (0.25-0.25) |",
        ]
        for line in want:
            self.assertIn(line, out.splitlines())
        self.assertEqual(figures["rounds"][1]["0.5"]["1"], [200.0, 100.0, 800.0, 400.0])

    def test_a_program_that_fails_ends_it(self):
        code, out, figures = self.run_it("--sparsity", "0.5", "--sparsity", "0.9", broken="0.9")
        why = "threads: this engine, uniform 90 %, 1 thread(s): exit code 1: a result is wrong"
        self.assertEqual((code, figures), (why, None))
        self.assertNotIn("|", out)

    def test_wrong_usage(self):
        twice, nowhere = "--threads 2 --threads 2", "--json /nowhere/x.json"
        more = ("--threads 0", twice, "--batch 0", "--model vgg", nowhere, "--method er")
        for wrong in ("--sparsity 1", "--rounds 0", *more):
            with self.subTest(wrong):
                self.assertEqual(self.run_it(*wrong.split())[0], 2)


if __name__ == "__main__":
    unittest.main()
