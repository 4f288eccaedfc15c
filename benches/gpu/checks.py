"""The stages `selftest` and `sanitize`: is it right, before anybody asks how fast it is."""

import re
import shutil

import binaries
import children
import engine
from reused import ROOT
from schedule import Row

TEST_LIMIT_S, SANITIZER_LIMIT_S, LIST_LIMIT_S = 300, 120, 20
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
FOUND_CODE = 86  # compute-sanitizer's exit code for findings; the program's own are 0, 1, 2, 69, 75
KEPT_LINES = 40  # of a failure's output, in the JSON

# model, side of the images, batch, case: each kind of layer and number type, as small as it can be
SANITIZED = (
    ("resnet8", 8, 2, engine.Case("uniform", 0.9, "fp16")),
    ("resnet8", 8, 2, engine.Case("uniform", 0.9, "fp16", engine.BLOCK)),
    ("resnet8", 8, 2, engine.Case("dense", 0.0, "fp16")),
    ("resnet8", 8, 2, engine.Case("uniform", 0.9, "tf32")),
    ("resnet8", 8, 2, engine.Case("uniform", 0.9, "bf16")),
    ("resnet8", 8, 2, engine.Case("uniform", 0.9, "f32")),
    ("vgg11", 32, 1, engine.Case("uniform", 0.9, "fp16")),
    ("resnet18", 32, 2, engine.Case("uniform", 0.9, "fp16")),
)


def selftest_rows(binary, tests):
    """`tests`: programs with their `real_gpu_tests`."""

    def selftest(limit_s, _):
        return _passed(children.run(engine.selftest_command(binary), limit_s))

    rows = [Row("selftest", "selftest", "sparse-engine selftest --device cuda", {}, selftest, TEST_LIMIT_S)]
    for path, parts in tests:
        for part, names in parts.items():
            # In the repository's root, as cargo runs them.
            def test(limit_s, _, path=path, names=names):
                command = [str(path.resolve()), "--exact", *names]
                return _passed(children.run(command, limit_s, cwd=ROOT), wanted="test result")

            asked = {"tests": names}
            rows.append(Row(f"test {path.name} {part}", "tests", f"{path.name}: {part}", asked, test, TEST_LIMIT_S))
    return rows


def real_gpu_tests(path):
    """The tests of a program that run on a real GPU, which their names end with, by module. The emulated ones tell
    nothing there. Raises Refused if there are none."""
    done = children.run([str(path.resolve()), "--list", "--format", "terse"], LIST_LIMIT_S, cwd=ROOT)
    names = [line.removesuffix(": test") for line in done.out.splitlines() if line.endswith("real_gpu: test")]
    if done.code != 0 or not names:
        raise binaries.Refused(f"{path}: wanted a test program with tests named ..real_gpu, got {done.last_line()!r}")
    parts = {}
    for name in names:
        parts.setdefault(name.split("::")[0], []).append(name)
    return parts


def _passed(done, wanted=""):
    """Counts of a test program; what it says it left out is kept, since on a GPU machine no GPU test may be."""
    text = done.out + done.err
    if done.code != 0:
        raise children.Failed(f"exit code {done.code}: {_telling(text) or done.last_line()}", output=_tail(text))
    counts = [
        tuple(map(int, found)) for found in re.findall(r"test result: ok\. (\d+) passed; \d+ failed; (\d+) ign", text)
    ]
    if wanted and not counts:
        raise children.Failed(f"exit code 0, but it says no {wanted!r}", output=_tail(text))
    skipped = sorted({line.strip() for line in text.splitlines() if line.strip().startswith("skipped:")})
    passed = sum(n for n, _ in counts)
    return {
        "passed": passed or None,
        "ignored": sum(n for _, n in counts),
        "skipped": skipped,
        "last_line": done.last_line(),
        "wall_s": round(done.wall_s, 2),
        "said": f"{passed} passed" + (f", {len(skipped)} skipped" if skipped else ""),
    }


def _telling(text):
    """The line that says what failed."""
    found = re.search(r"^(?:test .* FAILED|thread '.*' panicked.*|error.*|FAIL.*)$", text, re.MULTILINE)
    return found[0][:300] if found else ""


def sanitize_rows(binary):
    rows = []
    for model, side, batch, case in SANITIZED:
        what = f"{model} {side}x{side} batch {batch}, {case.name()}"
        for tool in TOOLS:

            def run(limit_s, _, tool=tool, model=model, side=side, batch=batch, case=case):
                command = engine.step_command(binary, case, model, batch, steps=1, warmup=1, image=side)
                return sanitized(tool, command, limit_s)

            asked = {"tool": tool, "model": model, "image": side, "batch": batch, "case": case.name()}
            rows.append(Row(f"{tool} {what}", what, f"{tool}, {what}", asked, run, SANITIZER_LIMIT_S))
    return rows


def sanitized(tool, command, limit_s):
    """Runs a command under compute-sanitizer. Findings are a failure with their first line."""
    program = shutil.which("compute-sanitizer")
    if not program:
        raise children.Failed("no compute-sanitizer in PATH; it is part of the CUDA toolkit")
    options = ["--tool", tool, "--error-exitcode", str(FOUND_CODE), "--target-processes", "all"]
    done = children.run([program, *options, *command], limit_s)
    text = done.out + done.err
    summary = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", text)
    if summary and int(summary[1]):
        first = re.search(
            r"^=+ *((?:Invalid|Uninitialized|Race|Error|Warning|Barrier|Program hit|Misaligned).*)$", text, re.M
        )
        raise children.Failed(f"{summary[0]}s; first: {first[1] if first else 'not told'}", output=_tail(text))
    if done.code != 0:
        raise children.Failed(f"exit code {done.code}: {done.last_line()}", output=_tail(text))
    if not summary:
        raise children.Failed("exit code 0, but compute-sanitizer says no summary", output=_tail(text))
    return {"findings": 0, "wall_s": round(done.wall_s, 2), "said": f"no findings, {done.wall_s:.0f} s"}


def _tail(text):
    return text.splitlines()[-KEPT_LINES:]
