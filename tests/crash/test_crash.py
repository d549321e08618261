"""Short runs of scripts/crash-test; longer ones are made by hand, with other seeds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "crash-test"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("rounds", "options"),
    [(8, []), (3, ["--power-loss"]), pytest.param(3, ["--encrypt"], marks=pytest.mark.long)],
    ids=["kills", "power losses", "encrypted"],
)
def test_what_was_promised_survives(tmp_path: Path, rounds: int, options: list[str]) -> None:
    """Kills at random moments: idle, during writes, saves, stops and recoveries; on the same cache and on an empty."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rounds", str(rounds), "--seed", "20261123", *options],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"^rounds +{rounds}$", done.stdout, re.MULTILINE)
    assert re.search(r"^losses +0$", done.stdout, re.MULTILINE)
