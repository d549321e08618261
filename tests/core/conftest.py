"""A workspace without FUSE: see harness.py."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import World, new_directory, shrink, without_threads


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory in memory where there is one: what a disk does to be durable is not tested here."""
    path = new_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A mounted empty workspace, with real block sizes."""
    without_threads(monkeypatch)
    world = World(tmp_path)
    world.start()
    yield world
    world.crash()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The same with blocks of 4 KiB, and packs, partitions and windows to match."""
    shrink(monkeypatch)
    world = World(tmp_path)
    world.start()
    yield world
    world.crash()
