"""Statistics and tables, densities, and the measure of other programs' load, without running anything."""

import pathlib
import statistics
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import densities
import machine
import programs
import table

EAGER, COMPILED, DENSE = programs.EAGER, programs.COMPILED, programs.OUR_DENSE
OURS = "this engine, uniform 90 %"


def rounds(**series):
    """Samples by round from medians by name; the minimum is a tenth less, memory ten times as many bytes."""
    long = {"eager": EAGER, "compiled": COMPILED, "dense": DENSE, "ours": OURS}
    count = len(next(iter(series.values())))
    return [{long[n]: programs.Sample(v[i], v[i] * 0.9, v[i] * 10) for n, v in series.items()} for i in range(count)]


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


if __name__ == "__main__":
    unittest.main()
