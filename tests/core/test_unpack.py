"""Frames that are opened before they are asked for: which, how many, and what is read when they are not here."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from harness import World, unreachable, until

from wsfs.data import packcache, unpack
from wsfs.data.packcache import WINDOW
from wsfs.data.unpack import Unpacker
from wsfs.errors import TransientStoreError
from wsfs.model import BLOCK_SIZE, Ino, Packed

BLOCKS = 14
LAST = BLOCKS * BLOCK_SIZE // WINDOW
"""The last window of a pack with such a file, whose blocks cannot be compressed. Its end tells what is in the pack."""


class Big:
    """A file that is only in the store, and how it is read."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.data = os.urandom(BLOCKS * BLOCK_SIZE)
        self.ino: Ino = world.create(b"big", self.data)
        world.commit()
        assert world.evictor.evict(self.ino)
        block = world.index.block(self.ino, 0)
        assert isinstance(block, Packed)
        self.place = block.loc.epoch, block.loc.pack

    def fetch(self, window: int = 0, count: int = LAST + 1) -> None:
        self.world.workspace.packs.fetch(*self.place, window, count)

    def read(self, *blocks: int) -> None:
        for block in blocks:
            found = self.world.do(self.world.files.read, self.ino, block * BLOCK_SIZE, BLOCK_SIZE)
            assert found == self.data[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE]


@pytest.fixture
def big(world: World) -> Big:
    return Big(world)


@pytest.fixture
def unpacker(big: Big) -> Iterator[Unpacker]:
    with Unpacker(big.world.workspace.packs) as found:
        yield found


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets of the frames that whoever asked for them had to open."""
    offsets: list[int] = []
    real = packcache.open_frame

    def noted(stored: Any, loc: Any) -> bytes:
        offsets.append(loc.offset)
        return real(stored, loc)

    monkeypatch.setattr(packcache, "open_frame", noted)
    return offsets


def ready(unpacker: Unpacker) -> dict[int, int]:
    """How many frames of each window wait."""
    return {place[2]: len(frames) for place, frames in list(unpacker._frames.items()) if frames}


def test_the_windows_after_one_that_follows_another_are_opened(big: Big, unpacker: Unpacker, inline: list[int]) -> None:
    big.fetch()
    big.read(0, 1)
    assert not unpacker._frames
    big.read(2)  # it begins in the window after
    until(lambda: ready(unpacker) == {2: 2, 3: 2})
    inline.clear()
    big.read(4, 5)
    until(lambda: ready(unpacker) == {3: 2, 4: 2})
    big.read(6, 7)
    assert not inline
    assert big.world.workspace.packs.missed == 0


def test_reads_here_and_there_open_nothing_ahead(big: Big, unpacker: Unpacker) -> None:
    big.fetch()
    big.read(0, 9, 4, 12, 7, 0, 1)
    assert not unpacker._frames


def test_a_second_pass_is_opened_ahead_as_well(big: Big, unpacker: Unpacker) -> None:
    big.fetch()
    big.read(*range(BLOCKS))
    big.world.workspace.packs._opened.clear()
    big.read(0, 1, 2)
    until(lambda: ready(unpacker).get(2) == 2)


@pytest.mark.parametrize("order", [(2, LAST), (LAST, 2)])
def test_what_comes_later_is_opened_when_it_is_here(big: Big, unpacker: Unpacker, order: tuple[int, int]) -> None:
    """The window itself, and the end of the pack, which tells what is in it."""
    big.fetch(0, 2)
    big.read(0, 1, 2)
    until(lambda: (*big.place, 2) in unpacker._missing)
    for window in (order[0], *range(3, LAST), order[1]):
        assert 2 not in ready(unpacker)
        big.fetch(window, 1)
        unpacker.arrived(*big.place)
    until(lambda: ready(unpacker).get(2) == 2)


def test_a_store_that_fails_meanwhile_fails_the_reader_and_nothing_else(big: Big, unpacker: Unpacker) -> None:
    """Who reads what is not here is told so; what is here is right; and later all of it is."""
    big.fetch(0, 2)
    big.fetch(LAST, 1)
    big.world.store.fault = unreachable
    big.read(0, 1, 2)
    until(lambda: (*big.place, 2) in unpacker._missing)
    with pytest.raises(TransientStoreError):
        big.read(6)
    big.world.store.heal()
    big.read(*range(BLOCKS))


def test_damaged_frames_are_left_to_the_reader(big: Big, unpacker: Unpacker) -> None:
    """Bits that went bad on this disk are fetched again, and never served."""
    big.fetch()
    path = big.world.workspace.packs.path(*big.place)
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, b"bad", 2 * WINDOW + 5000)
    os.close(fd)
    big.read(*range(BLOCKS))


def test_what_waits_is_bounded(big: Big, unpacker: Unpacker, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bytes, whoever asks for them or not; and what is not opened ahead is opened by who reads it."""
    monkeypatch.setattr(unpack, "WAITING_MAX", 3 * BLOCK_SIZE)
    monkeypatch.setattr(unpack, "AHEAD", 5)
    most = 0
    big.fetch()
    for block in range(BLOCKS):
        big.read(block)
        for _ in range(10):
            most = max(most, sum(ready(unpacker).values()))
            time.sleep(0.002)
    assert 0 < most <= 3 + unpack.THREADS - 1
    until(lambda: unpacker._waiting == sum(sum(map(len, frames.values())) for frames in unpacker._frames.values()))


def test_at_the_end_nothing_is_opened_any_more(big: Big) -> None:
    big.fetch()
    with Unpacker(big.world.workspace.packs) as unpacker:
        big.read(0, 1, 2)
    assert not unpacker._frames
    unpacker.arrived(*big.place)
    big.read(*range(BLOCKS))
