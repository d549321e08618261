"""Short runs of scripts/fsx and scripts/stress; longer ones are made by hand, with other seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(tmp_path: Path, name: str, *arguments: str) -> str:
    """What the script prints. It must succeed."""
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SCRIPTS.parent)}
    words = [sys.executable, str(SCRIPTS / name), *arguments]
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environ, timeout=540)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(600)
def test_files_hold_what_was_written(tmp_path: Path) -> None:
    """Random operations, remounts and evictions: at no point does a file differ from the copy in memory."""
    printed = run(tmp_path, "fsx", "--operations", "5000", "--seed", "20261123", "--cold", "2500", "--size", "700000")
    assert "5001 operations" in printed


@pytest.mark.timeout(600)
def test_many_processes_on_one_tree(tmp_path: Path) -> None:
    """Eight at once: what each was told holds for all, here and on another host."""
    assert "all is well" in run(tmp_path, "stress", "--operations", "150")
