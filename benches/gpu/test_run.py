"""The runner from outside, with programs that answer, fail and hang on request."""

import contextlib
import io
import json
import os
import signal
import subprocess
import tempfile
import time
import unittest

import checks
import engine
import run
from fakes import DEVICE, Lab

FEW = ["--model", "resnet20", "--only", "engine (dense|uniform 0.9) fp16|torch (amp|graphed|compiled)-fp16"]
HANG = {"name": "sparse-engine", "words": ["uniform", "0.9"], "does": "hang"}


class Runs(unittest.TestCase):
    def setUp(self):
        # Not below a home folder, whose name no binary may hold.
        folder = tempfile.TemporaryDirectory(dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.lab = Lab(folder.name)

    def status(self):
        return {r["id"]: r["status"] for r in self.lab.results()["rows"]}

    def test_peers_take_turns_and_a_second_run_does_nothing(self):
        done = self.lab.run("peers-small", *FEW, "--rounds", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        asked = [c[3] if c[1] == "ask" else c[c.index("--method") + 1] for c in self.lab.calls()]
        each = ["graphed-fp16", "dense", "amp-fp16", "uniform", "compiled-fp16"]
        self.assertEqual(asked, each * 2)
        data = self.lab.results()
        self.assertEqual(data["key"], {"engine": "0123456789ab", "device": DEVICE, "driver": "580.159.04"})
        self.assertEqual(data["machine"]["cuda_of_driver"], "13.0")
        self.assertEqual(data["machine"]["power_limit"], "700.00 W")
        self.assertEqual(data["machine"]["mig"], "not readable")
        self.assertEqual(data["machine"]["torch"], "2.11.0+cu130")
        self.assertEqual([s["clock_sm"] for s in data["states"]], ["1980 MHz"] * 2)
        self.assertEqual([len(r["samples"]) for r in data["rows"]], [2] * 5)
        self.assertEqual(set(self.status().values()), {"done"})
        (path,) = self.lab.out.glob("*.json")
        self.assertRegex(path.name, r"^\d{4}-\d\d-\d\d-h100-80gb-hbm3-peers-small\.json$")
        # 1.5 and 6 ms of PyTorch's, 2 of our dense, 1 of our sparse.
        self.assertIn("| uniform 90 %, fp16 | 1.50 (1.50-1.50) | 6.00 (6.00-6.00) |", self.lab.markdown())
        self.assertIn("| dense, fp16 | **0.75 (0.75-0.75)** |", self.lab.markdown())
        done = self.lab.run("peers-small", *FEW, "--rounds", "2")
        self.assertEqual((done.returncode, self.lab.calls()), (0, []))
        # One round more takes one sample more of each.
        self.assertEqual(self.lab.run("peers-small", *FEW, "--rounds", "3").returncode, 0)
        self.assertEqual(len(self.lab.calls()), 5)
        self.assertEqual([r["run"] for r in self.lab.results()["rows"][0]["samples"]], [1, 1, 3])

    def test_another_commit_or_driver_is_another_file(self):
        only = ["--model", "resnet20", "--only", "engine dense fp16", "--rounds", "1"]
        for more in ({}, {"driver": "590.1"}, {"commit": "ffff56789abc, changed"}, {}):
            self.lab.behave(**more)
            self.assertEqual(self.lab.run("peers-small", *only).returncode, 0)
        self.assertEqual(len(self.lab.calls()), 3)
        self.assertEqual(len(list(self.lab.out.glob("*.json"))), 3)
        self.assertTrue(any("differs from its commit" in p.read_text() for p in self.lab.out.glob("*.md")))

    def test_results_of_another_folder_are_gone_on_with(self):
        self.assertEqual(self.lab.run("selftest").returncode, 0)
        earlier, self.lab.out = self.lab.out, self.lab.folder / "out"
        done = self.lab.run("selftest", "--earlier", str(earlier))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(self.lab.calls()), 5)
        self.assertEqual(set(self.status().values()), {"done"})

    def test_deadline_kills_what_hangs_with_all_that_it_started(self):
        self.lab.behave(HANG)
        began = time.monotonic()
        done = self.lab.run("peers-small", *FEW, "--rounds", "1", "--deadline-s", "6")
        self.assertLess(time.monotonic() - began, 8)
        self.assertEqual(done.returncode, 75, done.stderr)
        pids, left = self.lab.hanging()
        self.assertEqual((len(pids), left), (3, []))
        rows = {r["id"]: r for r in self.lab.results()["rows"]}
        self.assertEqual(rows["resnet20 b128 engine uniform 0.9 fp16"]["why"], "not run: deadline")
        self.assertEqual(rows["resnet20 b128 torch compiled-fp16"]["why"], "not run: deadline")
        self.assertEqual(rows["resnet20 b128 torch amp-fp16"]["status"], "done")
        self.assertEqual(self.lab.results()["runs"][0]["ended"], "deadline")
        self.assertLess(self.lab.results()["runs"][0]["wall_s"], 6)
        self.assertIn("| not run: deadline |", self.lab.markdown())
        # The next run does the rest, and only that.
        self.lab.behave()
        self.lab.calls()
        self.assertEqual(self.lab.run("peers-small", *FEW, "--rounds", "1").returncode, 0)
        self.assertEqual(len(self.lab.calls()), 2)
        self.assertEqual(set(self.status().values()), {"done"})

    def started(self, stage, *more):
        """The runner, once a program of it hangs."""
        command = [str(part) for part in self.lab.command(stage, *more)]
        child = subprocess.Popen(command, env=self.lab.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while len(self.lab.hanging()[0]) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        return child

    def test_results_before_a_kill_are_readable(self):
        self.lab.behave(HANG)
        child = self.started("peers-small", *FEW)
        child.kill()
        child.wait()
        data = self.lab.results()
        self.assertEqual(data["runs"][0]["ended"], "killed")
        self.assertEqual(sorted(self.status().values()), ["not run"] * 2 + ["partial"] * 3)
        self.assertIn("partial: not reached", self.lab.markdown())
        time.sleep(0.1)  # the kernel's signal to the child
        pids, left = self.lab.hanging()
        self.assertEqual((len(pids), len(left)), (3, 2))
        for pid in left:  # whose parents were not the runner: only a living runner finds these
            os.kill(pid, signal.SIGKILL)

    def test_sigterm_ends_it_and_its_children(self):
        self.lab.behave(HANG)
        child = self.started("peers-small", *FEW)
        child.terminate()
        self.assertEqual(child.wait(timeout=10), 143)
        self.assertEqual(self.lab.hanging()[1], [])
        self.assertEqual(self.lab.results()["runs"][0]["ended"], "stopped by SIGTERM")

    def test_torch_compile_has_its_own_limit(self):
        self.lab.behave({"name": "python", "words": ["compiled-fp16"], "does": "hang"})
        only = ["--only", "engine dense fp16|torch (amp|compiled|compiled-graphed)-fp16", "--compile-s", "1"]
        done = self.lab.run("peers-small", "--model", "resnet20", *only, "--rounds", "2")
        self.assertEqual(done.returncode, 1, done.stderr)
        rows = {r["id"].split()[-1] if "torch" in r["id"] else "ours": r for r in self.lab.results()["rows"]}
        why = "torch.compile gave no answer in its limit of 1 s"
        self.assertEqual([rows[n]["why"] for n in ("compiled-fp16", "compiled-graphed-fp16")], [why] * 2)
        self.assertEqual(len(rows["amp-fp16"]["samples"]), 2)
        self.assertEqual(len(rows["ours"]["samples"]), 2)
        self.assertEqual(self.lab.hanging()[1], [])
        # A failure is not tried again by itself.
        self.lab.behave()
        self.lab.calls()
        self.lab.run("peers-small", "--model", "resnet20", *only, "--rounds", "2")
        self.assertEqual(self.lab.calls(), [])
        done = self.lab.run("peers-small", "--model", "resnet20", *only, "--rounds", "2", "--retry")
        self.assertEqual((done.returncode, len(self.lab.calls())), (0, 4))

    def test_a_crash_costs_one_row(self):
        self.lab.behave({"name": "python", "words": ["graphed-fp16"], "does": "fail", "says": "illegal address"})
        done = self.lab.run("peers-small", *FEW, "--rounds", "1")
        self.assertEqual(done.returncode, 1)
        failed = [r for r in self.lab.results()["rows"] if r["status"] == "failed"]
        self.assertEqual([r["why"] for r in failed], ["ended with exit code 1: illegal address"])
        self.assertEqual(sorted(self.status().values()), ["done"] * 4 + ["failed"])

    def test_smaller_batch_where_memory_ends(self):
        self.lab.behave(fits=128, torch_fits=64)
        only = ["--model", "resnet50", "--only", "engine dense fp16|amp-fp16"]
        done = self.lab.run("peers-224", *only, "--rounds", "2")
        self.assertEqual(done.returncode, 0, done.stderr)
        batches = {r["title"]: [s["batch"] for s in r["samples"]] for r in self.lab.results()["rows"]}
        self.assertEqual(batches, {"PyTorch eager, AMP fp16": [64] * 2, "this engine, dense, fp16": [128] * 2})
        # PyTorch 256, 128, 64; ours 256 with the vendor's and alone, 128; then one each.
        self.assertEqual(len(self.lab.calls()), 3 + 3 + 2)
        self.assertIn("3.00 (3.00-3.00)", self.lab.markdown())  # an image, not a step
        self.lab.behave(fits=1)
        done = self.lab.run("peers-224", "--model", "wrn50-2", "--only", "engine dense fp16")
        self.assertEqual(done.returncode, 1)
        self.assertIn("out of memory: error: CUDA_ERROR_OUT_OF_MEMORY", self.lab.markdown())

    def test_the_vendor_beside_our_dense(self):
        only = ["--model", "resnet20", "--only", "engine (dense|uniform 0.9) fp16", "--rounds", "2"]
        self.assertEqual(self.lab.run("peers-small", *only).returncode, 0)
        beside = ["--no-dense" not in c for c in self.lab.calls()]
        self.assertEqual(beside, [True, False] * 2)
        text = self.lab.markdown()
        line = "| this engine, dense through cuDNN and cuBLASLt, fp16 | 128 | 1.60 | 1.60 | 1.60 | 2 | 80,000 | 7 |"
        self.assertIn(f"{line} 58 of 60 products by the libraries |", text)
        self.assertNotIn("Not through the vendor's libraries", text)

    def test_our_dense_is_measured_where_the_vendor_is_not(self):
        only = ["--model", "resnet20", "--only", "engine dense fp16", "--rounds", "2"]
        full = "no answer with it: out of memory: error: CUDA_ERROR_OUT_OF_MEMORY"
        for behaviour, said, calls in (
            ({"vendor_missing": "no libcudnn.so.9"}, "no libcudnn.so.9", [True, False]),
            ({"fits_beside": 64}, full, [True, False, False]),
        ):
            with self.subTest(said):
                self.lab.out = self.lab.folder / f"results {said[:4]}"
                self.lab.behave(**behaviour)
                done = self.lab.run("peers-small", *only)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(["--no-dense" not in c for c in self.lab.calls()], calls)
                (row,) = self.lab.results()["rows"]
                self.assertEqual([(s["batch"], s["vendor_missing"]) for s in row["samples"]], [(128, said)] * 2)
                self.assertIn(f"Not through the vendor's libraries, fp16: {said}.", self.lab.markdown())

    def test_other_networks_and_wrong_answers_have_no_time(self):
        self.lab.behave(torch_maskable=99)
        done = self.lab.run("peers-small", *FEW, "--rounds", "1")
        self.assertEqual(done.returncode, 1)
        self.assertIn("not the same network", done.stderr)

    def test_selftest(self):
        fails = {"name": "gpu_conv", "words": ["ops::real_gpu"], "does": "fail", "code": 101, "says": "test half FAILED"}
        self.lab.behave(fails)
        done = self.lab.run("selftest")
        self.assertEqual(done.returncode, 1, done.stderr)
        rows = {r["id"]: r for r in self.lab.results()["rows"]}
        self.assertEqual(rows["selftest"]["status"], "done")
        self.assertEqual(rows["test gpu_conv ops"]["why"], "exit code 101: test half FAILED")
        self.assertIn("a library's chatter", rows["test gpu_conv ops"]["output"])
        sample = rows["test gpu_sgd conv"]["samples"][0]
        self.assertEqual((sample["passed"], sample["ignored"]), (12, 1))
        # The tests that run on a real GPU, each module by itself.
        asked = [c[1:] for c in self.lab.calls() if c[0] == "gpu_sgd"]
        self.assertEqual(asked, [["--exact", "ops::real_gpu"], ["--exact", "conv::odd::on_a_real_gpu"]])
        self.assertEqual(rows["test gpu_conv conv"]["status"], "done")
        self.assertIn("| gpu_sgd: conv | done | 12 | 1 | skipped: no compute-sanitizer here |", self.lab.markdown())

    def test_sanitize(self):
        self.lab.behave(findings={"racecheck": 3})
        done = self.lab.run("sanitize", "--only", "^(mem|race)check resnet8 .*uniform 0.9 (block:16x16 )?fp16")
        self.assertEqual(done.returncode, 1, done.stderr)
        steps = [c for c in self.lab.calls() if c[0] == "sparse-engine"]
        self.assertEqual(len(steps), 4)
        self.assertTrue(all(c[c.index("--image-size") + 1] == "8" for c in steps))
        whys = [r["why"] for r in self.lab.results()["rows"]]
        found = "RACECHECK SUMMARY: 3 hazards; first: Invalid __global__ write of size 4 bytes"
        self.assertEqual(whys, ["", found] * 2)
        self.assertIn("| memcheck | no findings |", self.lab.markdown())
        self.lab.behave({"name": "sparse-engine", "does": "fail", "code": 69, "says": "no usable GPU"})
        self.lab.run("sanitize", "--only", "^memcheck vgg11")
        self.assertIn("exit code 69: no usable GPU", self.lab.markdown() + json.dumps(self.lab.results()))

    def test_sanitized_is_every_precision_and_kind_of_weights(self):
        cases = [case for _, _, _, case in checks.SANITIZED]
        self.assertEqual({c.precision for c in cases}, {"fp16", "bf16", "tf32", "f32"})
        self.assertTrue(any(c.method == "dense" for c in cases) and any(c.pattern == engine.BLOCK for c in cases))

    def test_kernels(self):
        done = self.lab.run("kernels", "--model", "resnet20", "--only", "uniform 0.9 fp16, conv_fwd")
        self.assertEqual(done.returncode, 0, done.stderr)
        text = self.lab.markdown()
        self.assertIn("| op | layer | layers | ms | min | dense ms | speed / dense | vendor ms | speed / vendor |", text)
        self.assertIn("| conv_fwd | 16x32x32 to 32, 3x3 / 2 | 2 | 0.50 | 0.40 | 1.00 | 2.00 | 0.25 | 0.50 |", text)
        self.assertIn("Slower than at least one rival: 1 of 1.", text)
        self.assertIn("Measured beside them: 612.3 TFLOP/s by mma.sync in fp16, 2,512 GB/s copied.", text)
        self.assertNotIn("without a time", text)
        self.lab.behave(vendor_missing="no libcudnn.so.9")
        self.lab.run("kernels", "--model", "resnet20", "--only", "uniform 0.95 fp16")
        text = self.lab.markdown()
        self.assertIn("Layers without a time through the vendor's libraries: 2 of 3, no libcudnn.so.9.", text)

    def test_no_gpu_and_wrong_usage(self):
        self.lab.behave(no_gpu=True)
        done = self.lab.run("selftest")
        self.assertEqual(
            (done.returncode, done.stderr), (69, "run: no GPU here: nvidia-smi says: NVIDIA-SMI has failed\n")
        )
        self.lab.behave()
        for more, said in (
            (["kernels", "--only", "nothing has this"], "no row of kernels has that in its id"),
            (["peers-224", "--model", "resnet20"], "resnet20 is not a network for the images of peers-224"),
        ):
            done = self.lab.run(*more)
            self.assertEqual(done.returncode, 2)
            self.assertIn(said, done.stderr)
        (self.lab.tests / "gpu_sgd").write_bytes(b"\0/root/project/src/lib.rs\0")
        done = self.lab.run("selftest")
        self.assertEqual(done.returncode, 2)
        self.assertIn("gpu_sgd: holds a path of the machine that built it, /root/project/src/lib.rs", done.stderr)

    def test_arguments(self):
        for more in (
            "peers-small --model resnet50",
            "peers-224 --model resnet21",
            "peers-small --model vgg19 --model vgg19",
            "selftest",
            "sanitize --model resnet20",
            "kernels --deadline-s 600",
            "kernels --seconds nan",
            "kernels --batch 0",
            "peers-small --rounds 0",
            "kernels --only (",
        ):
            with self.subTest(more), contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as caught:
                run.arguments(more.split() + ["--bin", "sparse-engine"])
            self.assertEqual(caught.exception.code, 2)
        args = run.arguments("peers-224 --bin x --rounds 4".split())
        self.assertEqual((args.model, args.rounds, args.batch), (["resnet50", "wrn50-2"], 4, None))
        self.assertEqual(run.arguments("kernels --bin x --rounds 4".split()).rounds, 1)


if __name__ == "__main__":
    unittest.main()
