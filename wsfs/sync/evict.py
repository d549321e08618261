"""Keeps the cache within its limit: clean data goes, oldest first; what is not saved never does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from typing import Final

import trio

from wsfs.data.overlay import Overlay
from wsfs.data.packcache import PackCache
from wsfs.index.index import Batch, Index
from wsfs.index.order import in_order
from wsfs.model import Packed
from wsfs.remote import NeedRemote
from wsfs.repo import codec

_AT_ONCE: Final = 100
_LOW_WATER: Final = 0.9
"""Beyond the limit so much of it is left: else there would be something to drop each time. The rest is what packs may
have in any case, however much cannot be dropped: what is read beside that must not be fetched again and again."""


class Evictor:
    """Walks the overlay and the packs in a thread, and evicts in small portions: files on the owner thread."""

    def __init__(self, index: Index, overlay: Overlay, packs: PackCache) -> None:
        self._index = index
        self._overlay = overlay
        self._packs = packs
        self._overlay_size: int | None = None
        self._demoted: list[tuple[int, list[int]]] = []
        """Blocks that no row speaks of any more, by inode, and whose bytes are still here."""
        self.still = trio.Lock()
        """Held while rows are changed here. Whoever holds it has them to himself on a read-only mount."""

    @property
    def used(self) -> int | None:
        """Bytes that the cache takes, as of the last look; None before the first one."""
        return None if self._overlay_size is None else self._overlay_size + self._packs.size

    async def shrink(self, limit: int) -> int:
        """Drop packs, and overlay files that are only copies of packs, until all fits in `limit` bytes: what was not
        used for longest goes first. Returns bytes freed."""
        async with self.still:
            files = await trio.to_thread.run_sync(self._overlay.usage)
            packs = await trio.to_thread.run_sync(self._packs.usage)
            overlay = self._overlay_size = sum(size for _, size, _ in files)
            low = int(limit * _LOW_WATER)
            target = limit if overlay + self._packs.size <= limit else low
            freed = fetched = 0
            copies: Iterator[tuple[float, int, int | str]] = in_order(chain(files, packs), itemgetter(0))
            for number, (used, size, copy) in enumerate(copies):
                if overlay - freed + self._packs.size <= target:
                    break
                if isinstance(copy, str):
                    if self._packs.size > limit - low:
                        fetched += await trio.to_thread.run_sync(self._packs.drop, copy, used)
                elif self.evict(copy):
                    freed += size
                if number % _AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            self._overlay_size = overlay - freed
            return freed + fetched

    async def drop_all(self) -> int:
        """Drop every copy of what the store has, and wait until the room is really free. Returns bytes freed.

        Raises CacheError; CacheFullError when there is no room to note that the copies go.
        """
        fetched = await trio.to_thread.run_sync(self._packs.shrink, 0)  # first: this needs no room
        freed = await self.shrink(0)
        async with self.still:
            for ino in self._overlay.unsaved():
                self._demote(ino)
            if freed or self._demoted:
                # The bytes go once it is durable that no row speaks of them.
                await trio.to_thread.run_sync(self._index.sync_point())
            while self._demoted:
                freed += self._release(*self._demoted.pop())
                await trio.lowlevel.checkpoint()
        return fetched + freed + await trio.to_thread.run_sync(self._overlay.removals.wait)

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Programs that wait for room take all that there is, and here some is needed to make more."""
        self._overlay.reserved += 1
        try:
            yield
        finally:
            self._overlay.reserved -= 1

    def _demote(self, ino: int) -> None:
        """What the store has of a file with blocks that it has not is read from there from now on: without that no file
        could be written that is larger than the cache disk."""
        if ino in self._index.kept or self._index.is_detached(ino):
            return
        try:
            rows = self._index.scan(ino, codec.BLOCK)
        except NeedRemote:
            return
        batch = Batch()
        blocks = batch.demote(rows)
        if blocks:
            self._index.apply(batch)
            self._demoted += [(ino, blocks[start : start + _AT_ONCE]) for start in range(0, len(blocks), _AT_ONCE)]

    def _release(self, ino: int, blocks: Sequence[int]) -> int:
        """Free what they have in the overlay, unless somebody has written to them since. Returns bytes."""
        gone = []
        for index in blocks:
            row = self._index.get(codec.block_key(ino, index))
            block = None if row is None else codec.decode_block(row)
            if isinstance(block, Packed) and not block.resident:
                gone.append(index)
        return self._overlay.release(ino, gone)

    def evict(self, ino: int) -> bool:
        """Drop one file's resident blocks; False when any of its blocks has no other copy."""
        if ino in self._index.kept:
            return False  # without a look at its rows: there may be many such files
        if self._overlay.is_unsaved(ino) or self._overlay.is_frozen(ino) or self._index.is_detached(ino):
            return False
        try:
            rows = self._index.scan(ino, codec.BLOCK)
        except NeedRemote:
            return False
        if any(codec.is_local(row) for _, row in rows):
            return False
        batch = Batch()
        batch.demote(rows)
        # First the rows, then the bytes: dying in between leaves a copy that nobody reads.
        self._index.apply(batch)
        self._overlay.drop(ino)
        return True
