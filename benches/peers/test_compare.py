"""The driver with neither PyTorch nor the engine: stand-ins answer. `python3 -m unittest discover -s benches/peers`"""

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
import compare
import names
import programs
import torch_env

EAGER, COMPILED, DENSE = programs.EAGER, programs.COMPILED, programs.OUR_DENSE
OURS = "this engine, uniform 90 %"

ANSWER = {
    "model": "resnet20", "batch": 128, "threads": 2, "method": "uniform", "sparsity": 0.9, "density_flops": 0.105,
    "step_ms_median": 50.0, "step_ms_min": 45.0, "dense_step_ms_median": 210.0, "dense_step_ms_min": 200.0,
    "peak_rss_bytes": 150e6, "start_rss_bytes": 10e6, "checked": True, "some_new_field": [1, 2],
}  # fmt: skip


def engine_program(dense=True, check=True):
    return programs.engine_program("engine", "resnet20", 128, 2, "uniform", 0.9).timing(dense, check)


class Answers(unittest.TestCase):
    def test_the_engine_fills_its_row_and_the_dense_one(self):
        got = engine_program().samples(ANSWER)
        self.assertEqual(got[OURS], programs.Sample(50.0, 45.0, 140e6, "10.5 % of the MACs"))
        self.assertEqual(got[DENSE], programs.Sample(210.0, 200.0, None))

    def test_without_its_dense_network_the_engine_fills_one_row(self):
        answer = {**ANSWER, "dense_step_ms_median": None, "dense_step_ms_min": None}
        self.assertEqual(list(engine_program(dense=False).samples(answer)), [OURS])

    def test_an_answer_that_was_checked_otherwise_than_asked_is_refused(self):
        for check, told in ((True, False), (False, True), (True, None), (False, None), (True, 1), (False, 0)):
            with self.subTest(check=check, told=told), self.assertRaisesRegex(programs.Failed, "answered for checked"):
                engine_program(check=check).samples({**ANSWER, "checked": told})
        self.assertIn(OURS, engine_program(check=False).samples({**ANSWER, "checked": False}))

    def test_memory_of_the_dense_network_where_it_is_told(self):
        got = engine_program().samples({**ANSWER, "dense_peak_rss_bytes": 250e6})
        self.assertEqual(got[DENSE].memory_bytes, 240e6)

    def test_memory_needs_both_figures_and_a_peak_above_the_start(self):
        self.assertIsNone(
            engine_program().samples({k: v for k, v in ANSWER.items() if k != "start_rss_bytes"})[OURS].memory_bytes
        )
        with self.assertRaisesRegex(programs.Failed, "not above"):
            engine_program().samples({**ANSWER, "peak_rss_bytes": 10e6})

    def test_an_answer_to_another_question_is_refused(self):
        for key, other in {"model": "resnet56", "batch": 64, "threads": 1, "method": "erk", "sparsity": 0.8}.items():
            with self.subTest(key), self.assertRaisesRegex(programs.Failed, f"answered for {key}"):
                engine_program().samples({**ANSWER, key: other})
            with self.subTest(key), self.assertRaisesRegex(programs.Failed, f"answered for {key} None"):
                engine_program().samples({k: v for k, v in ANSWER.items() if k != key})
        self.assertIn(OURS, engine_program().samples({**ANSWER, "model": "ResNet-20", "sparsity": 0.9000000001}))

    def test_a_time_must_be_a_positive_number(self):
        for bad in (None, "50", 0, -1, float("nan"), float("inf"), True):
            for key in ("step_ms_median", "step_ms_min", "dense_step_ms_median", "dense_step_ms_min"):
                with (
                    self.subTest(key=key, bad=bad),
                    self.assertRaisesRegex(programs.Failed, f"{key}: wanted a positive"),
                ):
                    engine_program().samples({**ANSWER, key: bad})

    def test_json_is_found_alone_over_several_lines_and_after_chatter(self):
        self.assertEqual(programs.last_object(json.dumps(ANSWER, indent=2)), ANSWER)
        self.assertEqual(programs.last_object('{"a": 1}\nnoise {\n{"a": 2}\n'), {"a": 2})
        for bad in ("", "nothing", "[1]", "{broken"):
            with self.subTest(bad), self.assertRaisesRegex(programs.Failed, "wanted one JSON object"):
                programs.last_object(bad)

    def test_commands(self):
        peer = programs.torch_program("py", "sparseprop", "resnet20", 16, 2, 5, "erk", 0.95)
        self.assertEqual(peer.name, "SparseProp, erk 95 %")
        self.assertEqual(peer.command[-4:], ["--method", "erk", "--sparsity", "0.95"])
        ours = programs.engine_program("e", "resnet20", 16, 2, "erk", 0.95, ["--plan", "p"])
        want = "e bench step --model resnet20 --method erk --sparsity 0.95 --batch 16 --threads 2 --json --plan p"
        self.assertEqual(ours.command, want.split())
        self.assertEqual(ours.timing(dense=True, check=True).command, want.split())
        self.assertEqual(ours.timing(dense=True, check=False).command[-1:], ["--no-check"])
        self.assertEqual(ours.timing(dense=False, check=False).command[-2:], ["--no-dense", "--no-check"])
        self.assertEqual(ours.command, want.split())  # a timing is a copy

    def test_interleaving_alternates(self):
        self.assertEqual(programs.interleave([1, 3], [2, 4]), [1, 2, 3, 4])
        self.assertEqual(programs.interleave([1, 3, 5, 6], [2, 4]), [1, 2, 3, 4, 5, 6])
        self.assertEqual(programs.interleave([1], [2, 3]), [1, 2, 3])


STAND_IN = """\
#!{python} -IS
# Stands for both programs: as the engine, and as a Python that runs torch_step.py.
import json, os, sys
args = sys.argv[1:]
if args == ["--version"]:
    print("sparse-engine 0.1.0 (0123456789ab)")
    sys.exit()
if args[0] == "-c":
    print("2.15.0+cpu")
    sys.exit()
value = lambda key: args[args.index(key) + 1]
answer = {{"model": value("--model"), "batch": int(value("--batch")), "threads": int(value("--threads"))}}
if args[0] == "bench":
    asked = {{"--no-dense", "--no-check"}} & set(args)
    with open(os.path.join(os.path.dirname(sys.argv[0]), "calls"), "a") as f:
        print(value("--method"), value("--sparsity"), *sorted(asked), file=f)
    if value("--sparsity") == {broken!r}:
        sys.exit("a result is wrong")
    answer |= {{"method": value("--method"), "sparsity": float(value("--sparsity")), "density_flops": 0.1,
               "step_ms_median": 50.0, "step_ms_min": 48.0, "peak_rss_bytes": 111_000_000,
               "start_rss_bytes": 11_000_000, "checked": "--no-check" not in asked}}
    if "--no-dense" not in asked:
        answer |= {{"dense_step_ms_median": 190.0, "dense_step_ms_min": 180.0}}
else:
    variant = value("--variant")
    if variant == "sparseprop":
        print(json.dumps({{"unavailable": "not importable (No module named 'sparseprop')"}}))
        sys.exit()
    if variant == {broken!r}:
        sys.exit("RuntimeError: no compiler")
    answer |= {{"variant": variant, "step_ms_median": 200.0 if variant == "eager" else 250.0, "step_ms_min": 190.0,
               "peak_rss_bytes": 500_000_000, "start_rss_bytes": 300_000_000}}
print("chatter")
print(json.dumps(answer))
"""


class WholeRun(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def stand_in(self, broken=None):
        path = os.path.join(self.folder.name, "stand-in")
        with open(path, "w", encoding="utf-8") as f:
            f.write(STAND_IN.format(python=sys.executable, broken=broken))
        os.chmod(path, 0o755)
        return path

    def run_it(self, *more, broken=None):
        program = self.stand_in(broken)
        out, err = io.StringIO(), io.StringIO()
        argv = ["compare.py", "--engine", program, "--python", program, *more]
        with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with self.assertRaises(SystemExit) as stop:
                compare.main()
        return stop.exception.code, out.getvalue(), err.getvalue()

    def calls(self):
        """How the engine was called, in order, since the last look."""
        path = os.path.join(self.folder.name, "calls")
        with open(path, encoding="utf-8") as f:
            lines = f.read().splitlines()
        os.remove(path)
        return lines

    def test_the_first_round_checks_and_the_first_case_has_the_dense_network(self):
        code, _, err = self.run_it("--pairs", "3", "--variants", "eager", "--sparsity", "0.8", "--sparsity", "0.9")
        self.assertEqual(code, 0, err)
        later = ["uniform 0.8 --no-check", "uniform 0.9 --no-check --no-dense"]
        self.assertEqual(self.calls(), ["uniform 0.8", "uniform 0.9 --no-dense", *later, *later])

    def test_where_the_first_case_fails_the_next_has_the_dense_network_checked(self):
        code, out, _ = self.run_it("--pairs", "2", "--variants", "eager", broken="0.8")
        self.assertEqual(code, 1)
        first = ["uniform 0.8", "uniform 0.9", "uniform 0.95 --no-dense"]
        self.assertEqual(self.calls(), [*first, "uniform 0.9 --no-check", "uniform 0.95 --no-check --no-dense"])
        self.assertRegex(out, "this engine, dense +190 ")
        self.assertRegex(out, "this engine, uniform 80 % +exit code 1: a result is wrong")

    def test_each_model_is_checked(self):
        models = ["--model", "resnet20", "--model", "vgg16"]
        self.run_it("--pairs", "1", "--variants", "eager", "--sparsity", "0.9", *models)
        self.assertEqual(self.calls(), ["uniform 0.9"] * 2)

    def test_an_engine_that_changes_meanwhile_ends_the_run(self):
        plan = os.path.join(self.folder.name, "plan.json")
        with open(plan, "w", encoding="utf-8") as f:
            f.write("{}")
        both = [f"--engine-args=--plan={plan}", f"--engine-args=--plan {plan}"]
        for file, engine_args in zip((os.path.join(self.folder.name, "stand-in"), plan), both):
            real, runs = programs.Program.run, []

            def run(program, env, timeout_s, file=file, real=real, runs=runs):
                runs.append(program)
                if len(runs) == 3:
                    with open(file, "a", encoding="utf-8") as f:
                        f.write("\n")
                return real(program, env, timeout_s)

            more = ["--pairs", "4", "--variants", "eager", "--sparsity", "0.9", engine_args]
            with self.subTest(file), mock.patch.object(programs.Program, "run", run):
                code, out, _ = self.run_it(*more)
                self.assertEqual(code, f"compare: {file} is not the file it was when the run began; start it again")
                self.assertEqual(self.calls(), ["uniform 0.9"])
                self.assertNotIn("| this engine", out)

    def test_a_run(self):
        file = os.path.join(self.folder.name, "out.json")
        code, out, err = self.run_it(
            "--pairs", "2", "--markdown", "--json", file, "--method", "uniform", "--method", "erk"
        )
        self.assertEqual(code, 0, err)
        for wanted in (
            "PyTorch 2.15.0+cpu; sparse-engine 0.1.0 (0123456789ab)",
            "Command: `python3 compare.py --engine",
            "resnet20, batch 128, 2 threads; rounds: 2, interleaved, none discarded; ratios to PyTorch eager f32.",
            "| PyTorch eager f32 | 200 | 190 | 0.00 | 1.00 (1.00-1.00) | 200 | 1.00 |",
            "| PyTorch compiled f32 | 250 | 190 | 0.00 | 1.25 (1.25-1.25) | 200 | 1.00 |",
            "| SparseProp, erk 95 % | not importable (No module named 'sparseprop') |",
            "| this engine, dense | 190 | 180 | 0.00 | 0.95 (0.95-0.95) | - | - |",
            "| this engine, erk 90 % (10.0 % of the MACs) | 50.0 | 48.0 | 0.00 | 0.25 (0.25-0.25) | 100 | 0.50 |",
            "WARNING: rounds: wanted at least 5, got 2",
        ):
            self.assertIn(wanted, out)
        first = [line.strip().split(":")[0] for line in err.splitlines() if line.startswith("  ")][:6]
        engine = ["this engine, uniform 80 %", DENSE]
        self.assertEqual(first[:5], [EAGER, *engine, COMPILED, "this engine, uniform 90 %"])
        self.assertNotIn(DENSE, first[5:])
        with open(file, encoding="utf-8") as f:
            report = json.load(f)
        self.assertEqual(len(report["rounds"]), 2)
        self.assertEqual(len(report["rounds"][0]["runs"]), 5 + 6)
        self.assertEqual(report["tables"][0]["rows"][0]["median_ms"], 200.0)
        self.assertEqual([len(h) for h in report["engine_files"].values()], [64])

    def test_a_failing_program_is_named_and_tried_once(self):
        code, out, err = self.run_it("--pairs", "3", broken="compiled")
        self.assertEqual(code, 1)
        self.assertRegex(out, "PyTorch compiled f32 +exit code 1: RuntimeError: no compiler\n")
        self.assertEqual(err.count("no compiler"), 1)

    def test_no_rival_no_ratio(self):
        code, out, _ = self.run_it("--pairs", "1", "--variants", "eager", broken="eager")
        self.assertEqual(code, 1)
        self.assertIn("WARNING: no PyTorch dense figure, so no ratios", out)

    def test_an_interrupted_round_is_left_out_and_told(self):
        real, calls = programs.Program.run, []

        def run(program, env, timeout_s):
            calls.append(program)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return real(program, env, timeout_s)

        with mock.patch.object(programs.Program, "run", run):
            code, out, _ = self.run_it("--variants", "eager", "--pairs", "4")
        self.assertEqual(code, 130)
        self.assertIn("rounds: 1, interleaved, none discarded; stopped in round 2 of 4, which is left out", out)

    def test_wrong_usage(self):
        wrong = ["--variants bf16", "--variants eager,jax", "--variants ,", "--sparsity 1", "--pairs 0", "--method er"]
        wrong += [
            "--model resnet20 --model resnet20",
            "--json /no/such/folder/x.json",
            "--python a --venv b",
            "--model vgg",
        ]
        for argv in wrong:
            with self.subTest(argv), contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as stop:
                compare.arguments(argv.split())
            self.assertEqual(stop.exception.code, 2)

    def test_a_missing_binary_or_python_is_told_in_a_line(self):
        program = self.stand_in()
        for argv, said in (
            (["--engine", "/no/engine", "--python", program], "/no/engine: cannot be run"),
            (["--engine", program, "--python", "/no/python"], "/no/python: cannot be run"),
            (["--engine", program, "--python", "/bin/false"], "/bin/false: `import torch` fails"),
        ):
            with self.subTest(said), mock.patch.object(sys, "argv", ["compare.py", *argv]):
                with self.assertRaises(SystemExit) as stop:
                    compare.main()
                self.assertIn(said, str(stop.exception.code))

    def test_batches(self):
        known = (
            "resnet8",
            "resnet56",
            "cifar-resnet50",
            "vgg16",
            "resnet18",
            "resnet50",
            "wrn50-2",
            "wide-resnet101-2",
        )
        self.assertEqual([names.default_batch(n) for n in known], [128, 128, 128, 128, 16, 16, 16, 16])
        for bad in ("resnet21", "resnet2", "resnet1208", "resnet020", "cifar-resnet18", "vgg16-bn", "vgg", "wrn50", ""):
            with self.subTest(bad), self.assertRaisesRegex(ValueError, "wanted resnetN or cifar-resnetN"):
                names.default_batch(bad)


class Environment(unittest.TestCase):
    def commands(self, versions):
        """The commands that `made` runs, given what `import torch` says before and after."""
        found, ran = iter(versions), []
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch.object(torch_env, "torch_version", lambda python: next(found)),
            mock.patch.object(torch_env, "_run", lambda command, what: ran.append(command)),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            torch_env.made(folder, "INDEX")
        return ran

    def test_installs_only_what_is_missing(self):
        pin = torch_env.pinned()
        self.assertEqual([c[2] for c in self.commands([pin + "+cpu"])], ["venv"])
        for before in (None, "1.0.0", pin + "1"):
            venv, pip = self.commands([before, pin])
            self.assertEqual(pip[1:4], ["-m", "pip", "install"])
            self.assertIn("INDEX", pip)
            self.assertTrue(pathlib.Path(pip[-1]).samefile(torch_env.REQUIREMENTS))

    def test_says_so_when_torch_cannot_be_imported_after_all(self):
        with self.assertRaisesRegex(torch_env.Failed, "fails"):
            self.commands([None, None])


if __name__ == "__main__":
    unittest.main()
