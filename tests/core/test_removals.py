"""Large files that are removed, or cut to nothing: nobody waits for the disk, no room is lost, no byte comes back."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from harness import SMALL_BLOCK as BLOCK
from harness import World, saved_tree, until

import wsfs.data.removals
from wsfs.data.overlayfile import give_back
from wsfs.errors import CacheFullError


def refuse(*_args: object, **_how: object) -> None:
    raise OSError(errno.ENOSPC, "no space left")


def aside(world: World) -> list[Path]:
    """What was moved aside and is still there."""
    return list((world.cache_path / "local" / "frozen").iterdir())


def test_a_large_file_is_given_back_although_no_new_one_can_be_made(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a disk that has no inode left."""
    ino = small.create(b"f", os.urandom(3 * BLOCK))
    descriptor = small.overlay._fd

    def without_new_ones(number: int, *, create: bool = False) -> int | None:
        if create:
            raise CacheFullError
        return descriptor(number)

    with monkeypatch.context() as patch:
        patch.setattr(small.overlay, "_fd", without_new_ones)
        small.truncate(ino, 0)
    until(lambda: not aside(small))
    small.write(ino, 0, b"new")
    assert small.read(ino) == b"new"


def test_a_large_file_that_somebody_removed_can_be_cut_to_nothing(small: World, tmp_path: Any) -> None:
    """That is one of the two ways out for a file whose bytes are lost."""
    ino = small.create(b"f", os.urandom(3 * BLOCK))
    os.unlink(small.overlay._path(ino))
    small.truncate(ino, 0)
    small.commit()
    small.write(ino, 0, b"new")
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == b"new"


def test_a_cut_that_was_refused_is_made_at_the_end(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = small.create(b"f", os.urandom(3 * BLOCK))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        small.truncate(ino, 0)
    small.overlay.close()
    assert os.path.getsize(small.overlay._path(ino)) == 0
    assert aside(small) == []


@contextlib.contextmanager
def slow_removals(world: World) -> Iterator[None]:
    """The thread that removes files has something else to do."""
    begun, go_on = threading.Event(), threading.Event()
    world.overlay._behind.later(lambda: (begun.set(), go_on.wait(60)))
    assert begun.wait(60)
    try:
        yield
    finally:
        go_on.set()


def test_a_stop_leaves_nothing_behind_of_what_was_removed(small: World) -> None:
    """Neither a file that was deleted while a commit was under way, nor one that was moved aside to be cut."""
    gone = small.create(b"gone", os.urandom(3 * BLOCK))
    cut = small.create(b"cut", os.urandom(3 * BLOCK))
    small.commit()
    small.create(b"other", os.urandom(BLOCK))

    def reached(step: str) -> None:
        if step == "frozen":
            small.unlink(b"gone")
            small.truncate(cut, 0)
        elif step == "segments":
            small.flush()

    with slow_removals(small):
        small.reached = reached
        small.commit()
        small.reached = lambda _step: None
        small.stop()
        assert not list(small.cache_path.glob(f"local/overlay/*/{gone:x}"))
        assert aside(small) == []


def test_room_that_comes_back_late_is_room(small: World) -> None:
    """A large file is written anew on a disk that is full: there is room as soon as the old bytes are gone."""
    ino = small.create(b"f", os.urandom(3 * BLOCK))
    other = small.create(b"g", os.urandom(3 * BLOCK))
    with slow_removals(small):
        small.truncate(ino, 0)
        small.truncate(other, 0)
        assert aside(small)
    assert trio.run(small.evictor.drop_all) >= 6 * BLOCK
    assert aside(small) == []
    assert trio.run(small.evictor.drop_all) == 0


def test_an_fsync_does_not_wait_for_the_room_of_another_file(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    removing, go_on = threading.Event(), threading.Event()

    def slowly(held: list[int]) -> None:
        if held:
            removing.set()
            go_on.wait(60)
        give_back(held)

    monkeypatch.setattr(wsfs.data.removals, "give_back", slowly)
    small.create(b"gone", os.urandom(3 * BLOCK))
    small.commit()
    other = small.create(b"other", os.urandom(3 * BLOCK))
    small.unlink(b"gone")
    began = time.monotonic()
    small.fsync(other)
    assert time.monotonic() - began < 30
    assert removing.wait(60)
    go_on.set()


def test_what_nfs_keeps_of_a_removed_file_is_no_inode(small: World) -> None:
    ino = small.create(b"f", os.urandom(3 * BLOCK))
    Path(small.overlay._path(ino)).with_name(".nfs0000000000000a3f00000001").touch()
    assert list(small.overlay.inodes()) == [ino]
    assert [one for _, _, one in small.overlay.usage()] == [ino]
