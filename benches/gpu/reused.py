"""What this folder shares with the comparison on CPUs."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / "benches" / "peers"
sys.path.append(str(PEERS))

import machine  # noqa: E402
import names  # noqa: E402
from programs import interleave, last_object, percent  # noqa: E402
from programs import Failed as BadAnswer  # noqa: E402
from table import ms  # noqa: E402

__all__ = ["ROOT", "PEERS", "machine", "names", "interleave", "last_object", "percent", "BadAnswer", "ms"]
