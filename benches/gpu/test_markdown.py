"""From rows to tables."""

import pathlib
import subprocess
import sys
import json
import tempfile
import unittest

import engine
import figures
import goals
import markdown
import variants


def samples(*times, batch=128, first=1):
    return [{"round": first + i, "step_ms_median": t, "batch": batch, "wall_s": 1} for i, t in enumerate(times)]


def torch_row(name, *times, model="resnet20", status="done", why="", **more):
    v = variants.VARIANTS[name]
    row = {"id": name, "group": model, "kind": "torch", "model": model, "variant": name, "title": v.title, "why": why}
    return {**row, "status": status, "samples": samples(*times, **more)}


def engine_row(case, *times, model="resnet20", status="done", why="", **more):
    row = {"id": case.name(), "group": model, "kind": "engine", "model": model, "title": case.title(), "why": why}
    row |= {k: getattr(case, k) for k in ("method", "sparsity", "precision", "pattern")}
    return {**row, "status": status, "samples": samples(*times, **more)}


DENSE, UNIFORM = engine.Case("dense", 0.0, "fp16"), engine.Case("uniform", 0.9, "fp16")
BLOCKS = engine.Case("uniform", 0.9, "fp16", engine.BLOCK)
ROWS = [
    torch_row("eager-tf32", 12.0, 11.0, 13.0),
    torch_row("amp-fp16", 6.0, 6.0, 6.0),
    torch_row("graphed-fp16", 1.5, 1.5, 1.5),
    torch_row("masked-fp16", 0.1, 0.1, 0.1),
    torch_row("compiled-fp16", status="failed", why="exit code 1: no compiler"),
    engine_row(DENSE, 2.0, 2.0, 2.0),
    engine_row(UNIFORM, 1.0, 1.25, 0.8),
    engine_row(BLOCKS, status="not run", why="not run: deadline"),
]
HEAD = {
    "schema": 1,
    "stage": "peers-small",
    "key": {"engine": "0123", "device": "NVIDIA H100", "driver": "580"},
    "engine": {"version": "sparse-engine 0.1.0 (0123)", "commit": "0123", "changed": False, "sha256": "ab" * 32},
    "machine": {"device": "NVIDIA H100", "driver": "580", "power_limit": "700.00 W"},
    "runs": [{"started": "2026-11-24T10:00:00", "command": "python3 run.py", "ended": "deadline"}],
    "states": [{"clock_sm": "1980 MHz"}, {"clock_sm": "1755 MHz"}, {"clock_sm": "1980 MHz"}],
}


class Figures(unittest.TestCase):
    def test_medians_and_ratios(self):
        ours, theirs = figures.figure(ROWS[6]), figures.figure(ROWS[0])
        self.assertEqual((ours.median_ms, ours.min_ms, ours.max_ms, ours.n), (1.0, 0.8, 1.25, 3))
        self.assertEqual(ours.images_per_s, 128_000)
        ratio = figures.faster(ours, theirs)
        self.assertEqual((ratio.value, ratio.n), (12, 3))
        self.assertAlmostEqual(ratio.low, 11 / 1.25)
        self.assertAlmostEqual(ratio.high, 13 / 0.8)
        self.assertIsNone(figures.figure(ROWS[4]))
        self.assertIsNone(figures.faster(ours, None))

    def test_other_batches_and_rounds(self):
        ours = figures.figure(engine_row(DENSE, 2.0, 2.0, batch=256))
        theirs = figures.figure(torch_row("amp-fp16", 1.0, 3.0, batch=64, first=2))
        ratio = figures.faster(ours, theirs)  # 2 ms for 256 images against 2 for 64; one round in common
        self.assertAlmostEqual(ratio.value, 4)
        self.assertEqual(ratio.n, 1)
        self.assertAlmostEqual(ratio.low, 2)

    def test_what_failed_later_has_no_figure(self):
        self.assertIsNone(figures.figure(engine_row(DENSE, 2.0, status="failed", why="exit code 1")))

    def test_factors_multiply_to_the_lead(self):
        split = figures.Model(ROWS).split(("uniform", 0.9, None, "fp16"))
        values = {k: r.value for k, r in split.items()}
        self.assertEqual(values, {"precision": 2, "launches": 4, "fusion": 0.75, "sparsity": 2, "all": 12})
        tf32 = figures.Model([torch_row("eager-tf32", 8.0), torch_row("graphed-tf32", 4.0)])
        split = tf32.split(("uniform", 0.9, None, "tf32"))
        self.assertEqual([split["precision"].value, split["launches"].value, split["all"]], [1, 2, None])

    def test_masks_are_no_rival_for_the_best_dense(self):
        self.assertEqual(figures.Model(ROWS).fastest(lambda v: True).row["variant"], "graphed-fp16")

    def test_goals(self):
        vgg = [engine_row(DENSE, 2.0, model="vgg19"), engine_row(BLOCKS, 2.5, model="vgg19")]
        found = goals.lines(figures.by_model(ROWS + vgg))
        self.assertEqual(
            [line[0:1] + line[3:] for line in found],
            [["resnet20", "6.00", "met"], ["resnet20", "1.50", "met"], ["vgg19", "0.80", "missed"]],
        )
        (line,) = goals.lines(figures.by_model([engine_row(DENSE, 2.0, model="wrn50-2")]))
        self.assertEqual(line[3:], ["-", "not measured"])


class Markdown(unittest.TestCase):
    def test_peers(self):
        text = markdown.render({**HEAD, "rows": ROWS})
        for line in (
            "# peers-small on NVIDIA H100",
            "| power limit | 700.00 W |",
            "- 2026-11-24T10:00:00: `python3 run.py`, deadline",
            "- SM clock before the rounds: 1980 MHz, 1755 MHz",
            "6 done, 1 failed, 1 not run, of 8 rows.",
            "| resnet20 | 90 %: 3x PyTorch eager | PyTorch eager, AMP fp16 | 6.00 | met |",
            "| PyTorch eager, TF32 | 128 | 12.0 | 11.0 | 13.0 | 3 | 10,667 | - |  |",
            "| PyTorch compiled, AMP fp16 |  |  |  |  |  |  |  | failed: exit code 1: no compiler |",
            "| this engine, uniform 90 %, block:16x16, fp16 |  |  |  |  |  |  |  | not run: deadline |",
            "| speed of / over | eager, TF32 | eager, AMP fp16 | CUDA graph, AMP fp16 | eager, AMP fp16, masks "
            "multiplied | our dense |",
            "| dense, fp16 | 6.00 (5.50-6.50) | 3.00 (3.00-3.00) | **0.75 (0.75-0.75)** | **0.05 (0.05-0.05)** | - |",
            "| uniform 90 %, fp16 | 2.00 | 4.00 | **0.75** | 2.00 | 12.00 |",
        ):
            self.assertIn(line, text.splitlines())
        self.assertIn("Slower than the rival: 3 of 9.", text)
        self.assertNotIn("differs from its commit", text)

    def test_dense_through_the_vendor(self):
        dense = engine_row(DENSE, 2.0, 2.0)
        for sample, took in zip(dense["samples"], (1.5, 1.75)):
            sample |= {"vendor_step_ms_median": took, "vendor_memory_bytes": 7e6, "vendor_products": [28, 30]}
        bf16 = engine_row(engine.Case("dense", 0.0, "bf16"), 3.0)
        bf16["samples"][0]["vendor_missing"] = "no libcudnn.so.9"
        text = markdown.render({**HEAD, "rows": [ROWS[0], dense, engine_row(UNIFORM, 1.0, 1.0), bf16]})
        for line in (
            "| this engine, dense through cuDNN and cuBLASLt, fp16 | 128 | 1.62 | 1.50 | 1.75 | 2 | 78,769 | 7 | "
            "28 of 30 products by the libraries |",
            "Not through the vendor's libraries, bf16: no libcudnn.so.9.",
            "| speed of / over | eager, TF32 | our dense | dense by cuDNN, cuBLASLt |",
            "| dense, fp16 | 6.00 (5.50-6.00) | - | **0.81 (0.75-0.88)** |",
            "| uniform 90 %, fp16 | 12.00 (11.00-12.00) | 2.00 (2.00-2.00) | 1.62 (1.50-1.75) |",
            "| dense, bf16 | 4.00 | - | - |",
            "Slower than the rival: 1 of 6.",
        ):
            self.assertIn(line, text.splitlines())
        self.assertNotIn("cuBLASLt |", markdown.render({**HEAD, "rows": ROWS}))
        failed = {**dense, "status": "failed", "why": "exit code 1"}
        self.assertNotIn("dense through cuDNN and", markdown.render({**HEAD, "rows": [failed]}))

    def test_launches(self):
        row = engine_row(UNIFORM, 1.0, 1.25, 0.75)
        for sample, launched in zip(row["samples"], (3.0, 2.0, 2.5)):
            sample |= {"launches": 80, "steps_a_graph": 16, "launched_ms_median": launched}
        text = markdown.render({**HEAD, "rows": [row, ROWS[5]]})
        self.assertIn("| uniform 90 %, fp16 | 80 | 16 | 2.50 | 1.00 | 2.50 |", text.splitlines())
        self.assertNotIn("kernels a step", markdown.render({**HEAD, "rows": ROWS}))

    def test_a_rival_that_was_not_there_has_no_column(self):
        results = [{"op": "bn", "ms_median": 1.0, "dense_ms_median": 2.0, "vendor_ms_median": None}]
        row = {"title": "bn", "why": "", "status": "done", "samples": [{"results": results}]}
        text = markdown.render({**HEAD, "stage": "kernels", "rows": [row]})
        self.assertTrue("dense ms" in text and "vendor" not in text, text)

    def test_tables_are_tables(self):
        text = markdown.render({**HEAD, "rows": ROWS, "engine": {**HEAD["engine"], "changed": True}})
        self.assertIn("differs from its commit", text)
        for block in text.split("\n\n"):
            if block.startswith("|"):
                counts = {line.count("|") for line in block.splitlines()}
                self.assertEqual(len(counts), 1, block)
        self.assertEqual(markdown.table(["a"], [["x|y\nz"]]), "| a |\n| --- |\n| x\\|y z |")

    def test_from_a_file(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "2026-11-24-h100-peers-small.json")
            path.write_text(json.dumps({**HEAD, "rows": ROWS}))
            subprocess.run([sys.executable, markdown.__file__, path], check=True)
            self.assertEqual(path.with_suffix(".md").read_text(), markdown.render({**HEAD, "rows": ROWS}))


if __name__ == "__main__":
    unittest.main()
