"""What may travel."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

import binaries


class Travel(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def made(self, name, content):
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o755)
        return path

    def test_paths_of_the_build_machine(self):
        for content in (b"\0/home/ann/x.rs\0", b"src:/work/engine", b"/root/.cargo/registry/src/a.rs"):
            with self.subTest(content), self.assertRaisesRegex(binaries.Refused, "engine: holds a path.*/pack.sh"):
                binaries.check(self.made("engine", content))
        # Strings of the kind that libraries search, and mapped paths.
        fine = self.made("engine", b"/home/\0/root\0 /work/ \0cargo/registry/src/a.rs\0/usr/lib/x\0/rustc/9fc/lib.rs")
        self.assertEqual(binaries.check(fine), {"engine": 74})

    def test_size_together(self):
        engine, test = self.made("engine", b""), self.made("gpu_conv", b"")
        for size, fits in ((20_000_000, True), (20_000_001, False)):
            for path in (engine, test):
                with open(path, "r+b") as f:
                    f.truncate(size if path == test else 20_000_000)
            with self.subTest(size):
                if fits:
                    self.assertEqual(sum(binaries.check(engine, [test]).values()), 40_000_000)
                else:
                    with self.assertRaisesRegex(
                        binaries.Refused, r"together 40.0 MB, at most 40 MB may be \(engine 20.0"
                    ):
                        binaries.check(engine, [test])

    def test_test_binaries_are_the_executables(self):
        with self.assertRaisesRegex(binaries.Refused, "found no executable"):
            binaries.tests_in(self.folder)
        names = [self.made(n, b"x").name for n in ("gpu_sgd", "gpu_conv", "notes")]
        (self.folder / "notes").chmod(0o644)
        self.assertEqual([p.name for p in binaries.tests_in(self.folder)], sorted(names[:2]))
        with self.assertRaisesRegex(binaries.Refused, "cannot be read"):
            binaries.check(self.folder / "missing")

    def test_command(self):
        command = [sys.executable, binaries.__file__, "--bin", self.made("engine", b"x" * 10_000)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout.splitlines()[0]), (0, "    0.01 MB  engine"))
        self.made("engine", b"/work/x")
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 1)
        self.assertTrue(done.stderr.startswith("binaries: engine: holds a path"))


if __name__ == "__main__":
    unittest.main()
