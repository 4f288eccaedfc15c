"""The stage `train`: what counts as the same run, and which accuracy is allowed."""

import copy
import os
import pathlib
import signal
import sys
import tempfile
import unittest

import children
import runs
import training
from fakes import Lab

BASE = {
    "sha256": "ab",
    "records": [
        {"step": 63, "epoch": 1, "split": "train", "loss": 0.5, "accuracy": 0.8, "n": 8000, "lr": 0.1},
        {"step": 63, "epoch": 1, "split": "test", "loss": 0.4, "accuracy": 0.9, "n": 2000, "lr": 0.1},
    ],
}


class Rules(unittest.TestCase):
    def test_verdict(self):
        near, far = [0.85, 0.85, 0.85], [0.80, 0.85, 0.90]  # deviations of 0 and 5 points
        self.assertAlmostEqual(training.verdict(0.8301, near)["low"], 0.83)
        self.assertAlmostEqual(training.verdict(0.71, far)["high"], 1.0)
        for got, cpu in ((0.8299, near), (0.8701, near), (0.6999, far), (float("nan"), near)):
            with self.subTest(got), self.assertRaises(children.Failed) as caught:
                training.verdict(got, cpu)
            self.assertIn("allowed", str(caught.exception))
            self.assertIn("mean", caught.exception.more)

    def differs(self, change, records=None):
        got = copy.deepcopy(BASE)
        change(got)
        training.same(BASE, got, "cuda fp16 seed 0", got["records"])

    def test_same(self):
        self.differs(lambda got: None)
        for change, said in (
            (lambda got: got.update(sha256="cd"), "is not that of cuda fp16 seed 0; the records are the same"),
            (lambda got: got["records"][1].update(loss=0.5), "not the records: step 63, test: loss 0.5, there 0.4"),
            (lambda got: got["records"].pop(), "not the records: 1 in place of 2"),
            (lambda got: got.update(sha256="cd", records=[]), "first other record: 0 in place of 2"),
        ):
            with self.subTest(said), self.assertRaises(children.Failed) as caught:
                self.differs(change)
            self.assertIn(said, str(caught.exception))

    def test_every_precision_is_run_again_resumed_and_judged(self):
        ids = [r.id for r in training.rows("se", None)]
        for precision in ("fp16", "bf16", "tf32", "f32"):
            first = f"cuda {precision} seed 0"
            self.assertLessEqual({first, f"{first} again", f"{first} resumed", f"verdict {precision}"}, set(ids))
        self.assertEqual(len(ids), len(set(ids)))
        self.assertEqual(ids[-4:], [f"verdict {p}" for p in training.PRECISIONS])

    def test_commands(self):
        self.assertEqual(
            runs.train_command("se", "cuda", "f32", 0, 4, "run"),
            "se train --device cuda --precision f32 --epochs 4 --seed 0 --out run --quiet".split(),
        )
        self.assertEqual(
            runs.train_command("se", "cpu", None, 2, 4, "run"),
            "se train --device cpu --epochs 4 --seed 2 --out run --quiet".split(),
        )
        self.assertEqual(
            runs.resume_command("se", "cuda", "run"), "se train --resume run --device cuda --quiet".split()
        )


class Stage(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.lab = Lab(folder.name)

    def rows(self):
        return {r["id"]: r for r in self.lab.results()["rows"]}

    def why(self, row_id):
        row = self.rows()[row_id]
        return (row["status"], row["why"])

    def test_all_rows(self):
        self.lab.behave(epoch_s=0.05)
        done = self.lab.run("train")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({r["status"] for r in self.rows().values()}, {"done"})
        calls = self.lab.calls()
        self.assertEqual(len(calls), 3 + 4 * 4)
        self.assertEqual(len([c for c in calls if "--resume" in c]), 4)
        sample = self.rows()["cuda bf16 seed 0 resumed"]["samples"][0]
        self.assertIn(sample["stopped_at"], (63, 126, 189))
        text = self.lab.markdown()
        self.assertRegex(text, r"\| CPU, seed 2 \| 86.00 % \| 0.5000 \| 1.5 \| `[0-9a-f]{12}` \| done \|")
        self.assertIn("| the same bytes as cuda f32 seed 0 |", text)
        self.assertIn("| the same bytes as cuda tf32 seed 0, stopped at step ", text)
        self.assertIn(
            "| GPU, fp16 | 85.00 % | 85.50 % | 0.50 % | 83.50 % to 87.50 % | within |",
            text.splitlines(),
        )
        self.assertEqual((self.lab.run("train").returncode, self.lab.calls()), (0, []))

    def test_what_differs_or_is_off_fails(self):
        self.lab.behave(
            epoch_s=0.05,
            bytes={"bf16": "any", "--resume": "other"},
            accuracy={"f32": 0.80, "tf32": 0.90},
        )
        done = self.lab.run("train", "--only", "again|resumed|seed|verdict")
        self.assertEqual(done.returncode, 1, done.stderr)
        other = "last.safetensors is not that of cuda {} seed 0; the records are the same"
        self.assertEqual(self.why("cuda fp16 seed 0 again"), ("done", ""))
        self.assertEqual(self.why("cuda bf16 seed 0 again"), ("failed", other.format("bf16")))
        self.assertEqual(self.why("cuda fp16 seed 0 resumed"), ("failed", other.format("fp16")))
        self.assertEqual(self.why("verdict fp16"), ("done", ""))
        for precision, got in (("f32", "80.00"), ("tf32", "90.00")):
            said = f"test accuracy {got} %, allowed 83.50 to 87.50 %"
            self.assertEqual(self.why(f"verdict {precision}"), ("failed", said))
        self.assertIn("| GPU, f32 | 80.00 % | 85.50 % | 0.50 % | 83.50 % to 87.50 % | failed:", self.lab.markdown())

    def test_nothing_to_compare_with(self):
        rule = {"name": "sparse-engine", "words": ["train", "fp16"], "does": "fail", "says": "illegal address"}
        self.lab.behave(rule)
        done = self.lab.run("train", "--only", "fp16|cpu seed 0")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertEqual(self.why("cuda fp16 seed 0"), ("failed", "exit code 1: illegal address"))
        said = "nothing to compare with: cuda fp16 seed 0: exit code 1: illegal address"
        for row_id in ("cuda fp16 seed 0 again", "cuda fp16 seed 0 resumed", "verdict fp16"):
            self.assertEqual(self.why(row_id), ("failed", said))
        self.assertEqual(len(self.lab.calls()), 2)  # no run that could not be compared
        self.lab.behave(epoch_s=0.05)
        done = self.lab.run("train", "--only", "fp16", "--retry")
        self.assertEqual(self.why("cuda fp16 seed 0 resumed")[0], "done", done.stderr)
        self.assertEqual(self.why("verdict fp16"), ("failed", "nothing to compare with: cpu seed 1: it was not run"))

    def test_a_run_that_cannot_be_stopped_or_answers_for_another(self):
        self.lab.behave(deaf=True)
        done = self.lab.run("train", "--only", "cuda fp16")
        self.assertEqual(done.returncode, 1, done.stderr)
        late = ("failed", "3 runs ended before the signal reached them")
        self.assertEqual(self.why("cuda fp16 seed 0 resumed"), late)
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            run = pathlib.Path(folder)
            with self.assertRaisesRegex(children.Failed, "summary.json: cannot be read"):
                runs.trained(run, "cuda", "fp16", 0, 4)
            os.system(f"{self.lab.engine} train --device cuda --precision fp16 --epochs 4 --seed 0 --out {run}")
            self.assertEqual(runs.trained(run, "cuda", "fp16", 0, 4)["steps"], 252)
            for asked, said in (
                (("cuda", "fp16", 1, 4), "answered for seed"),
                (("cuda", "fp16", 0, 5), "answered for epochs 4"),
                (("cuda", "bf16", 0, 4), "answered for precision 'fp16'"),
                (("cpu", None, 0, 4), "answered for device 'cuda NVIDIA H100', asked for cpu"),
            ):
                with self.assertRaisesRegex(children.Failed, said):
                    runs.trained(run, *asked)
            with open(run / "metrics.jsonl", "a", encoding="utf-8") as f:
                f.write('{"schema":1')
            with self.assertRaisesRegex(children.Failed, "metrics.jsonl: JSONDecodeError"):
                runs.records(run)

    def test_a_signal_is_sent_once_asked_for(self):
        ready = self.lab.folder / "ready"
        program = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75)); open(sys.argv[1], 'w'); time.sleep(20)"
        argv = [sys.executable, "-ISc", f"import signal, sys, time; {program}", str(ready)]
        done = children.run(argv, 20, stop_when=ready.exists)
        self.assertEqual(done.code, 75)
        done = children.run([sys.executable, "-ISc", "raise SystemExit(3)"], 20, stop_when=lambda: False)
        self.assertEqual(done.code, 3)
        with self.assertRaises(children.TimedOut):
            children.run(["sleep", "20"], 0.2, stop_when=lambda: False)
        self.assertEqual(children.run(["sleep", "20"], 20, stop_when=lambda: True).code, -signal.SIGUSR1)


if __name__ == "__main__":
    unittest.main()
