"""What is dropped when the cache disk is full, and that it is always possible."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from harness import SMALL_BLOCK as BLOCK
from harness import World, saved_tree

from wsfs.errors import CacheFullError


def test_a_file_that_is_not_saved_in_full_gives_up_what_is(small: World, tmp_path: Path) -> None:
    """Else none could be written that is larger than the cache disk. What was written since stays."""
    old, new = os.urandom(6 * BLOCK), os.urandom(BLOCK)
    ino = small.create(b"f", old)
    small.commit()
    small.write(ino, 2 * BLOCK, new)
    expected = old[: 2 * BLOCK] + new + old[3 * BLOCK :]
    before = os.stat(small.overlay._path(ino)).st_blocks * 512
    assert trio.run(small.evictor.drop_all) >= 5 * BLOCK
    assert os.stat(small.overlay._path(ino)).st_blocks * 512 <= before - 5 * BLOCK
    assert small.read(ino) == expected
    small.write(ino, 4 * BLOCK + 7, b"more")
    expected = expected[: 4 * BLOCK + 7] + b"more" + expected[4 * BLOCK + 11 :]
    small.restart()
    assert small.read(ino) == expected
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == expected


def test_what_is_written_while_copies_are_dropped_stays(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the rows and the bytes, when it is being made durable that no row speaks of them."""
    ino = small.create(b"f", bytes(6 * BLOCK))
    small.commit()
    small.write(ino, 0, b"unsaved")
    point = small.index.sync_point

    def meanwhile() -> Callable[[], None]:
        small.write(ino, 3 * BLOCK, b"x" * BLOCK)
        return point()

    monkeypatch.setattr(small.index, "sync_point", meanwhile)
    assert trio.run(small.evictor.drop_all) >= 4 * BLOCK
    assert small.read(ino)[3 * BLOCK : 4 * BLOCK] == b"x" * BLOCK
    assert small.read(ino)[:7] == b"unsaved"


def test_no_data_is_written_while_room_is_made(small: World) -> None:
    """Programs that wait would take what is needed for that."""
    ino = small.create(b"f", bytes(3 * BLOCK))
    with small.evictor.reserve(), pytest.raises(CacheFullError):
        small.write(ino, 0, b"x" * BLOCK)
    small.write(ino, 0, b"x" * BLOCK)
    assert small.read(ino)[:BLOCK] == b"x" * BLOCK
