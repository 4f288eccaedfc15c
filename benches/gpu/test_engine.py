"""This engine's command line and answers."""

import json
import sys
import unittest
import unittest.mock

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
        case = engine.Case("dense", 0.0, "fp16")
        beside = engine.step_command("se", case, "vgg19", 2, steps=1, warmup=1, vendor=True)
        self.assertEqual(
            beside,
            "se bench step --device cuda --model vgg19 --batch 2 --method dense --precision fp16 --steps 1 --warmup 1 "
            "--no-check --json".split(),
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

    def test_the_vendor_is_measured_or_says_why_not(self):
        vendor = {"vendor_missing": None, "vendor_step_ms_median": 2.5, "vendor_step_ms_min": 2.25}
        found = engine._vendor({**vendor, "vendor_bytes": {"total": 7}, "vendor_products": [58, 60]})
        self.assertEqual((found["vendor_step_ms_median"], found["vendor_memory_bytes"]), (2.5, 7))
        self.assertEqual(engine._vendor({"vendor_missing": "too old"}), {"vendor_missing": "too old"})
        with self.assertRaisesRegex(children.Failed, "vendor_step_ms_median: wanted a positive number, got None"):
            engine._vendor({"vendor_missing": None})

    def beside(self, *answers, missing=None):
        with unittest.mock.patch("engine.step", side_effect=answers) as step:
            sample = engine.step_beside_vendor("se", CASE, "vgg19", 128, 90, missing, steps=1, warmup=1)
        return sample, [(c.args[-1], c.kwargs.get("vendor", False)) for c in step.call_args_list]

    def test_ours_alone_where_the_process_with_the_vendor_fails(self):
        self.assertEqual(self.beside({"batch": 1}), ({"batch": 1}, [(60, True)]))
        for fault in (children.TimedOut("no answer in 60 s"), children.OutOfMemory("full"), children.Failed("crash")):
            sample, calls = self.beside(fault, {"batch": 1})
            self.assertEqual(sample, {"batch": 1, "vendor_missing": f"no answer with it: {fault}"})
            self.assertEqual([with_it for _, with_it in calls], [True, False])
        self.assertEqual(self.beside({"batch": 1}, missing="too old")[0], {"batch": 1, "vendor_missing": "too old"})
        with self.assertRaises(children.OutOfMemory):
            self.beside(children.OutOfMemory("full"), children.OutOfMemory("full"))


if __name__ == "__main__":
    unittest.main()
