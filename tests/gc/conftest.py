"""Garbage collection on a workspace without FUSE: tests/core/harness.py, with a clock that tests move on."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from garbage import GcWorld
from harness import shrink

import wsfs.sync.recover
import wsfs.sync.repack
import wsfs.sync.start
from wsfs.index.check import copy

FAST_DISK = Path("/dev/shm")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., GcWorld]]:
    """Makes workspaces with blocks of 4 KiB; all are crashed at the end."""
    if FAST_DISK.is_dir():
        tmp_path = Path(tempfile.mkdtemp(dir=FAST_DISK, prefix="wsfs-gc-"))
    shrink(monkeypatch)
    monkeypatch.setattr(wsfs.sync.start, "PATIENCE", 0.0)
    monkeypatch.setattr(wsfs.sync.recover, "is_whole", lambda index: copy(index, None))  # without a process
    monkeypatch.setattr(wsfs.sync.repack, "TARGET_SIZE", 3 * 4096)
    made: list[GcWorld] = []

    def one(beside: GcWorld | None = None) -> GcWorld:
        root = tmp_path / f"w{len(made)}"
        root.mkdir()
        world = GcWorld(root, beside=beside)
        made.append(world)
        return world

    yield one
    for world in made:
        world.crash()
    shutil.rmtree(tmp_path)


@pytest.fixture
def world(make: Callable[..., GcWorld]) -> GcWorld:
    """One of them, mounted."""
    world = make()
    world.start()
    return world
