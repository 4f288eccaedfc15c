"""The driver with neither PyTorch nor the engine: stand-ins answer. `python3 -m unittest discover -s benches/peers`"""

import contextlib
import io
import json
import os
import pathlib
import statistics
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import compare
import densities
import machine
import programs
import table
import torch_env

EAGER, COMPILED, DENSE = programs.EAGER, programs.COMPILED, programs.OUR_DENSE
OURS = "this engine, uniform 90 %"

ANSWER = {
    "model": "resnet20", "batch": 128, "threads": 2, "method": "uniform", "sparsity": 0.9, "density_flops": 0.105,
    "step_ms_median": 50.0, "step_ms_min": 45.0, "dense_step_ms_median": 210.0, "dense_step_ms_min": 200.0,
    "peak_rss_bytes": 150e6, "start_rss_bytes": 10e6, "some_new_field": [1, 2],
}  # fmt: skip


def engine_program():
    return programs.engine_program("engine", "resnet20", 128, 2, "uniform", 0.9)


def rounds(**series):
    """Samples by round from medians by name; the minimum is a tenth less, memory ten times as many bytes."""
    names = {"eager": EAGER, "compiled": COMPILED, "dense": DENSE, "ours": OURS}
    count = len(next(iter(series.values())))
    return [{names[n]: programs.Sample(v[i], v[i] * 0.9, v[i] * 10) for n, v in series.items()} for i in range(count)]


class Statistics(unittest.TestCase):
    def test_ratios_are_of_medians_with_the_spread_of_rounds(self):
        eager, ours = [200.0, 260.0, 220.0, 210.0, 240.0], [60.0, 50.0, 55.0, 80.0, 52.0]
        rows, fastest, base = table.summarise([EAGER, OURS], rounds(eager=eager, ours=ours), {}, (EAGER, COMPILED))
        self.assertEqual((fastest, base), (EAGER, EAGER))
        row = rows[1]
        self.assertEqual(row.median_ms, 55.0)
        self.assertEqual(row.min_ms, 45.0)
        self.assertEqual(row.iqr_ms, 60.0 - 52.0)
        self.assertEqual(row.ratio, 55.0 / 220.0)  # not the median of the ratios, 0.25 by chance of none of these
        self.assertEqual((row.ratio_min, row.ratio_max), (50.0 / 260.0, 80.0 / 210.0))
        self.assertEqual(row.memory_bytes, 550.0)
        self.assertEqual(row.memory_ratio, 0.25)

    def test_median_of_medians_differs_from_median_of_ratios(self):
        eager, ours = [100.0, 200.0, 400.0], [90.0, 20.0, 80.0]
        rows, _, _ = table.summarise([EAGER, OURS], rounds(eager=eager, ours=ours), {}, (EAGER,))
        self.assertEqual(rows[1].ratio, 80.0 / 200.0)
        self.assertNotEqual(rows[1].ratio, statistics.median(a / b for a, b in zip(ours, eager)))

    def test_the_rival_is_the_faster_one_in_time_and_eager_in_memory(self):
        samples = rounds(eager=[200.0, 220.0, 240.0], compiled=[190.0, 230.0, 210.0], ours=[50.0, 50.0, 50.0])
        for r in samples:
            r[COMPILED].memory_bytes = 1000.0
        rows, fastest, base = table.summarise([EAGER, COMPILED, OURS], samples, {}, (EAGER, COMPILED))
        self.assertEqual((fastest, base), (COMPILED, EAGER))
        self.assertEqual(rows[2].ratio, 50.0 / 210.0)
        self.assertEqual((rows[1].memory_ratio, rows[2].memory_ratio), (1000.0 / 2200.0, 500.0 / 2200.0))
        self.assertEqual(rows[0].ratio, 220.0 / 210.0)

    def test_a_failed_row_has_no_figures_even_if_some_rounds_had(self):
        samples = rounds(eager=[200.0, 220.0], compiled=[100.0, 110.0])
        del samples[1][COMPILED]
        rows, fastest, _ = table.summarise(
            [EAGER, COMPILED], samples, {COMPILED: "exit code 1: boom"}, (EAGER, COMPILED)
        )
        self.assertEqual(fastest, EAGER)
        self.assertEqual((rows[1].failed, rows[1].median_ms, rows[1].ratio), ("exit code 1: boom", None, None))

    def test_without_a_rival_there_are_times_but_no_ratios(self):
        rows, fastest, base = table.summarise([EAGER, OURS], rounds(ours=[50.0, 51.0]), {EAGER: "no"}, (EAGER,))
        self.assertEqual((fastest, base), (None, None))
        self.assertEqual((rows[1].median_ms, rows[1].ratio, rows[1].memory_ratio), (50.5, None, None))

    def test_no_round_gives_rows_without_figures(self):
        rows, fastest, _ = table.summarise([EAGER, OURS], [], {}, (EAGER,))
        self.assertEqual([r.failed for r in rows], ["no answer"] * 2)
        self.assertIsNone(fastest)

    def test_unknown_memory_stays_unknown(self):
        samples = rounds(eager=[200.0, 220.0], ours=[50.0, 60.0])
        samples[0][OURS].memory_bytes = None
        rows, _, base = table.summarise([EAGER, OURS], samples, {}, (EAGER,))
        self.assertEqual((rows[1].memory_bytes, rows[1].memory_ratio, base), (None, None, EAGER))

    def test_spread_needs_two_rounds(self):
        self.assertIsNone(table.iqr([3.0]))
        self.assertEqual(table.iqr([1.0, 2.0, 3.0, 4.0, 5.0]), 2.0)


class Tables(unittest.TestCase):
    def setUp(self):
        samples = rounds(eager=[200.0, 220.0, 240.0], ours=[50.0, 60.0, 70.0])
        for r in samples:
            r[EAGER].memory_bytes, r[OURS].memory_bytes, r[OURS].detail = 359e6, 140.4e6, "10.5 % of the MACs"
        failures = {COMPILED: "exit code 1: no compiler | at all"}
        self.rows, _, _ = table.summarise([EAGER, COMPILED, OURS], samples, failures, (EAGER, COMPILED))

    def test_markdown(self):
        lines = table.markdown(self.rows).splitlines()
        self.assertEqual(lines[2], "| PyTorch eager f32 | 220 | 180 | 20.0 | 1.00 (1.00-1.00) | 359 | 1.00 |")
        self.assertEqual(
            lines[4], f"| {OURS} (10.5 % of the MACs) | 60.0 | 45.0 | 10.0 | 0.27 (0.25-0.29) | 140 | 0.39 |"
        )
        self.assertIn("no compiler \\| at all", lines[3])
        columns = {line.replace("\\|", "").count("|") for line in lines}
        self.assertEqual(columns, {len(table.HEADINGS) + 1})

    def test_plain_columns_line_up(self):
        head, eager, failed, ours = table.plain(self.rows).splitlines()
        self.assertTrue(failed.endswith("no compiler | at all"))
        self.assertEqual(len(eager), len(head))
        self.assertEqual(len(ours), len(head))
        self.assertEqual(eager.index(" 220"), ours.index("60.0"))

    def test_milliseconds(self):
        self.assertEqual([table.ms(v) for v in (0.5, 9.99, 99.94, 3460.2)], ["0.50", "9.99", "99.9", "3460"])


class Answers(unittest.TestCase):
    def test_the_engine_fills_its_row_and_the_dense_one(self):
        got = engine_program().samples(ANSWER)
        self.assertEqual(got[OURS], programs.Sample(50.0, 45.0, 140e6, "10.5 % of the MACs"))
        self.assertEqual(got[DENSE], programs.Sample(210.0, 200.0, None))

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

    def test_interleaving_alternates(self):
        self.assertEqual(programs.interleave([1, 3], [2, 4]), [1, 2, 3, 4])
        self.assertEqual(programs.interleave([1, 3, 5, 6], [2, 4]), [1, 2, 3, 4, 5, 6])
        self.assertEqual(programs.interleave([1], [2, 3]), [1, 2, 3])


class Densities(unittest.TestCase):
    # ResNet-20's weights: stem, then segments of 6 with their shortcut, linear.
    SHAPES = (
        [(16, 3, 3, 3)] + [(16, 16, 3, 3)] * 6
        + [(32, 16, 3, 3), (32, 16, 1, 1)] + [(32, 32, 3, 3)] * 5
        + [(64, 32, 3, 3), (64, 32, 1, 1)] + [(64, 64, 3, 3)] * 5 + [(10, 64)]
    )  # fmt: skip

    def test_erk_is_the_papers(self):
        d = densities.layer_densities(self.SHAPES, "erk", 0.1)
        want = {
            0: 0.982985,
            1: 0.280151,
            7: 0.199055,
            8: 1,
            9: 0.129017,
            14: 0.093998,
            15: 0.812806,
            16: 0.061744,
            21: 1,
        }
        for layer, density in want.items():
            self.assertLess(abs(d[layer] - density), 1e-6, layer)

    def test_the_budget_is_kept(self):
        total = 270_896
        for method in densities.METHODS:
            for density in (0.05, 0.1, 0.2, 0.5, 0.999, 1.0):
                got = sum(densities.layer_counts(self.SHAPES, method, density))
                self.assertLessEqual(abs(got - density * total), len(self.SHAPES) / 2, (method, density))
        self.assertEqual(densities.layer_counts([(2, 2), (500, 500)], "uniform", 0.001)[0], 1)

    def test_refused(self):
        for method, density in (("uniform", 0), ("erk", 1.1), ("uniform", float("nan")), ("ER", 0.5)):
            with self.subTest(method=method, density=density), self.assertRaises(ValueError):
                densities.layer_densities(self.SHAPES, method, density)


class Load(unittest.TestCase):
    def test_others_are_the_busy_time_that_is_not_ours(self):
        stat = iter(
            [{"busy_s": 100.0, "wall_s": 50.0}, {"busy_s": 118.0, "wall_s": 60.0}, {"busy_s": 119.0, "wall_s": 70.0}]
        )
        own, average = iter([5.0, 20.0, 22.0]), iter([(0.5, 0, 0), (1.9, 0, 0), (1.0, 0, 0)])
        load = machine.Load(lambda: next(stat), lambda: next(own), lambda: next(average))
        self.assertEqual(load.lap(), {"load_start": 0.5, "load_end": 1.9, "others_cpus": 0.3})
        self.assertEqual(load.lap()["others_cpus"], 0.0)  # clock granularity must not make it negative

    def test_this_machine_can_be_described(self):
        self.assertGreaterEqual(machine.describe()["cores"], 1)
        self.assertGreaterEqual(machine.Load().lap()["others_cpus"], 0)


STAND_IN = """\
#!{python} -IS
# Stands for both programs: as the engine, and as a Python that runs torch_step.py.
import json, sys
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
    answer |= {{"method": value("--method"), "sparsity": float(value("--sparsity")), "density_flops": 0.1,
               "step_ms_median": 50.0, "step_ms_min": 48.0, "dense_step_ms_median": 190.0, "dense_step_ms_min": 180.0,
               "peak_rss_bytes": 111_000_000, "start_rss_bytes": 11_000_000}}
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
        self.assertEqual(first, [EAGER, *engine, COMPILED, "this engine, uniform 90 %", DENSE])
        with open(file, encoding="utf-8") as f:
            report = json.load(f)
        self.assertEqual(len(report["rounds"]), 2)
        self.assertEqual(len(report["rounds"][0]["runs"]), 4 + 6)
        self.assertEqual(report["tables"][0]["rows"][0]["median_ms"], 200.0)

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
        wrong += ["--model resnet20 --model resnet20", "--json /no/such/folder/x.json", "--python a --venv b"]
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
        names = ("resnet20", "resnet56", "vgg16-bn", "resnet18", "resnet50", "wide_resnet50_2", "wrn-50-2")
        self.assertEqual([compare.default_batch(n) for n in names], [128, 128, 128, 16, 16, 16, 16])


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
