#!/usr/bin/env python3
"""What may travel to a GPU machine: binaries of at most 40 MB together, without paths of the machine that built them.

    python3 benches/gpu/binaries.py --bin FILE [--tests DIR]

Exit codes: 0 they may, 1 they may not, 2 wrong usage.
"""

import argparse
import pathlib
import re
import sys

MOST_BYTES = 40_000_000
# A path below a home or work folder; a string such as "/home/" alone is none.
BUILD_PATH = re.compile(rb"/(?:home|root|work)/[\w.+@-][\w.+@/-]*")


class Refused(Exception):
    """What is wrong with them, in one line."""


def tests_in(folder):
    """The executables of a folder, by name. Raises Refused if there is none."""
    found = [p for p in sorted(pathlib.Path(folder).glob("*")) if p.is_file() and p.stat().st_mode & 0o111]
    if not found:
        raise Refused(f"{folder}: wanted test binaries, found no executable file")
    return found


def check(engine, tests=()):
    """Raises Refused if they are too large together or hold a path of the build machine. Returns their sizes."""
    sizes = {}
    for path in [pathlib.Path(engine), *tests]:
        try:
            content = path.read_bytes()
        except OSError as e:
            raise Refused(f"{path}: cannot be read ({e.strerror})") from e
        if found := BUILD_PATH.search(content):
            at = found[0].decode(errors="replace")[:100]
            raise Refused(
                f"{path.name}: holds a path of the machine that built it, {at}; benches/gpu/pack.sh maps them"
            )
        sizes[path.name] = len(content)
    if sum(sizes.values()) > MOST_BYTES:
        each = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items())
        raise Refused(f"together {sum(sizes.values()) / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:.0f} MB may be ({each})")
    return sizes


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", required=True, metavar="FILE", help="sparse-engine")
    p.add_argument("--tests", metavar="DIR", help="test binaries")
    args = p.parse_args()
    try:
        sizes = check(args.bin, tests_in(args.tests) if args.tests else ())
    except Refused as e:
        sys.exit(f"binaries: {e}")
    for name, size in sizes.items():
        print(f"{size / 1e6:8.2f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:8.2f} MB  together; at most {MOST_BYTES / 1e6:.0f}")


if __name__ == "__main__":
    main()
