"""A short run of scripts/fsx; longer ones are made by hand, with other seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fsx"

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs root and FUSE"),
]


@pytest.mark.timeout(300)
def test_files_hold_what_was_written(tmp_path: Path) -> None:
    """Random operations, remounts and evictions: at no point does a file differ from the copy in memory."""
    environment = {**os.environ, "WSFS_RUNTIME_DIR": str(tmp_path / "run"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--operations", "3000", "--seed", "20261123"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3001 operations" in done.stdout
