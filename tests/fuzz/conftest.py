"""Makes what scripts/fuzz shares with the tests importable, and the workspace without FUSE of tests/core."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "core")]
