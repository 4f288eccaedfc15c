"""The packing script, with a cargo that builds nothing."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

PACK = pathlib.Path(__file__).resolve().parent / "pack.sh"
ROOT = PACK.parents[2]

CARGO = """\
#!/usr/bin/env -S python3 -IS
import json, os, subprocess, sys
here, args = "{folder}", sys.argv[1:]
with open(here + "/calls", "a") as f:
    f.write(json.dumps([args, dict(os.environ)]) + "\\n")
def made(path):
    with open(path, "w") as f:
        f.write(os.environ.get("CONTENT", "a binary"))
    os.chmod(path, 0o755)
    return path
os.makedirs(here + "/target/pack/deps", exist_ok=True)
if args[0] == "metadata":
    print(json.dumps({{"target_directory": here + "/target"}}))
elif args[0] == "build":
    version = subprocess.run([os.environ["NVCC"], "--version"], capture_output=True, text=True, check=True).stdout
    subprocess.run([os.environ["NVCC"], "-fatbin", "sgd.cu", version], cwd="kernels", check=True)
    made(here + "/target/pack/sparse-engine")
else:
    print(json.dumps({{"reason": "compiler-artifact", "executable": None, "target": {{"kind": ["lib"], "name": "x"}}}}))
    binary = made(here + "/target/pack/sparse-engine")
    print(json.dumps({{"executable": binary, "target": {{"kind": ["bin"], "name": "sparse-engine"}}}}))
    for name in (args[i + 1] for i, a in enumerate(args) if a == "--test"):
        binary = made(here + f"/target/pack/deps/{{name}}-0123")
        print(json.dumps({{"executable": binary, "target": {{"kind": ["test"], "name": name}}}}))
    print(json.dumps({{"reason": "build-finished", "success": True}}))
"""


NVCC = """\
#!/bin/sh
if [ "$1" = --version ]; then echo "release 13.0, V13.0.88"; exit; fi
{{ pwd; for each; do echo "$each"; done; cmp sgd.cu '{root}/kernels/sgd.cu' && echo same; }} >'{folder}/nvcc-said'
"""


def on_a_gpu(folder):
    """The test programs of which a part runs on a real GPU: those with `Cuda::open()` in their sources, which opens the
    device with the kernels of this build. Tests with a counterfeit driver bring kernels of their own (`open_with`)."""
    programs = {p.stem: [p] for p in folder.glob("*.rs")}
    programs |= {p.parent.name: list(p.parent.glob("**/*.rs")) for p in folder.glob("*/main.rs")}
    return {n for n, files in programs.items() if any("Cuda::open()" in f.read_text(encoding="utf-8") for f in files)}


class Pack(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name).resolve()
        for name, text in (("cargo", CARGO), ("nvcc", NVCC)):
            program = self.folder / name
            program.write_text(text.format(folder=self.folder, root=ROOT))
            program.chmod(0o755)

    def pack(self, *args, **env):
        path = f"{self.folder}:{pathlib.Path(sys.executable).parent}:/usr/bin:/bin"
        nvcc = str(self.folder / "nvcc")
        env = {**os.environ, "PATH": path, "RUSTFLAGS": "-Ctarget-cpu=x", "NVCC": nvcc, **env}
        return subprocess.run([PACK, *args], capture_output=True, text=True, env=env, cwd=self.folder)

    def test_binaries_and_flags(self):
        done = self.pack("out")
        self.assertEqual(done.returncode, 0, done.stderr)
        tests = sorted(p.name for p in (self.folder / "out" / "tests").iterdir())
        self.assertEqual(tests, ["on_gpu"])
        parts = re.findall(r"^mod (\w+);", (ROOT / "tests" / "on_gpu.rs").read_text(encoding="utf-8"), re.MULTILINE)
        self.assertEqual(sorted(parts), sorted(on_a_gpu(ROOT / "tests")))
        self.assertTrue(os.access(self.folder / "out" / "sparse-engine", os.X_OK))
        calls = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        self.assertEqual([args[0] for args, _ in calls], ["metadata", "build", "test"])
        self.assertNotIn("emu", calls[1][0])
        self.assertIn("emu", calls[2][0])
        for _, env in calls[1:]:
            self.assertTrue(env["RUSTFLAGS"].startswith("-Ctarget-cpu=x "))
            self.assertIn(f"--remap-path-prefix={ROOT}=sparse-engine", env["RUSTFLAGS"])
            self.assertIn(f"-ffile-prefix-map={ROOT}=.", env["CXXFLAGS"])
            self.assertEqual(env["SPARSE_ENGINE_CUDA"], "require")

    def test_tests_can_be_named_and_old_ones_go(self):
        self.assertEqual(self.pack("out").returncode, 0)
        self.assertEqual(self.pack("out", "gpu_sgd").returncode, 0)
        self.assertEqual([p.name for p in (self.folder / "out" / "tests").iterdir()], ["gpu_sgd"])

    def test_nvcc_runs_in_a_folder_that_names_no_machine(self):
        wrapper = self.folder / "target" / "pack-nvcc" / "nvcc"
        written = []
        for _ in range(2):
            self.assertEqual(self.pack("out", "gpu_sgd").returncode, 0)
            said = (self.folder / "nvcc-said").read_text().splitlines()
            self.assertRegex(said[0], "^/tmp/sparse-engine-kernels-[0-9a-f]{12}$")
            version = ["release 13.0, V13.0.88", "in a folder that names no machine"]
            self.assertEqual([line for line in said[1:] if line], ["-fatbin", "sgd.cu", *version, "same"])
            written.append(wrapper.stat().st_mtime_ns)
        self.assertEqual(*written)  # else all would be built anew

    def test_what_holds_a_path_is_refused(self):
        done = self.pack("out", "gpu_sgd", CONTENT="at /home/ann/engine/src/lib.rs")
        self.assertEqual(done.returncode, 1)
        self.assertIn("holds a path of the machine that built it, /home/ann/engine/src/lib.rs", done.stderr)

    def test_usage(self):
        done = self.pack()
        self.assertEqual((done.returncode, done.stderr.splitlines()[0]), (2, "benches/gpu/pack.sh OUT [TEST...]"))


if __name__ == "__main__":
    unittest.main()
