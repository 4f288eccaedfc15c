"""This engine's command line and answers."""

import json
import sys
import unittest

import children
import engine

CASE = engine.Case("uniform", 0.9, "fp16", engine.BLOCK)


class Engine(unittest.TestCase):
    def test_commands(self):
        self.assertEqual(
            engine.step_command("se", CASE, "resnet20", 128, steps=200, warmup=20),
            "se bench step --device cuda --model resnet20 --batch 128 --method uniform --sparsity 0.9 --precision fp16 "
            "--pattern block:16x16 --steps 200 --warmup 20 --no-dense --no-check --json".split(),
        )
        dense = engine.step_command(
            "se", engine.Case("dense", 0.0, "tf32"), "vgg19", 2, steps=1, warmup=1, image=8, check=True
        )
        self.assertEqual(
            dense,
            "se bench step --device cuda --model vgg19 --batch 2 --method dense --precision tf32 --image-size 8 "
            "--steps 1 --warmup 1 --no-dense --json".split(),
        )
        kernels = engine.kernels_command("se", CASE, "resnet50", 64, ("conv_fwd", "bn"), 50)
        self.assertIn(
            "--op conv_fwd,bn --density 0.1 --precision fp16 --pattern block:16x16 --time 50", " ".join(kernels)
        )

    def test_cases(self):
        found = engine.cases()
        self.assertEqual(len(found), 8 + 3 + 3)
        self.assertEqual(len(engine.cases(full=True)), 3 * 8)
        self.assertEqual(len({c.name() for c in found}), len(found))
        self.assertEqual(found[0].title(), "this engine, dense, fp16")
        self.assertEqual(CASE.title(), "this engine, uniform 90 %, block:16x16, fp16")

    def test_answers_must_repeat_what_was_asked(self):
        right = {"model": "resnet20", "batch": 128, "method": "uniform", "sparsity": 0.9, "backend": "cuda H100"}
        right |= {"checked": False, "step_ms_median": 1.5, "step_ms_min": 1.25, "maskable": 9, "precision": "fp16"}

        def answered(**changed):
            text = json.dumps({**right, **changed})
            program = [sys.executable, "-ISc", f"print({text!r})"]
            was, engine.step_command = engine.step_command, lambda *_, **__: program
            try:
                return engine.step("se", CASE, "resnet20", 128, 20, steps=200, warmup=20)
            finally:
                engine.step_command = was

        self.assertEqual(answered()["step_ms_median"], 1.5)
        for changed, said in (
            ({"batch": 64}, "batch 64, asked for 128"),
            ({"sparsity": 0.8}, "sparsity 0.8, asked for 0.9"),
            ({"model": None}, "model None"),
            ({"precision": "bf16"}, "precision 'bf16', asked for 'fp16'"),
            ({"pattern": "unstructured"}, "asked for 'block:16x16'"),
            ({"backend": "cpu avx2+fma, 2 threads"}, "asked for cuda"),
            ({"checked": True}, "checked True"),
            ({"step_ms_median": None}, "wanted a positive number, got None"),
            ({"step_ms_min": 0}, "wanted a positive number, got 0"),
        ):
            with self.subTest(changed), self.assertRaises(children.Failed) as caught:
                answered(**changed)
            self.assertIn(said, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
