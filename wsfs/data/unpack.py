"""Opens the frames of packs before they are asked for, in threads, while somebody reads packs from front to back.

A commit lays packs out by directory and name, so a copy or an archive of a tree reads window after window, of several
packs side by side. To decompress a frame and to hash it takes longer than to answer a request, and meanwhile zstd and
BLAKE2b leave the interpreter lock to others.

What is in a pack is told by its own table of contents. That needs no trust: a frame is kept under the digest that it
has, and asked for by the digest in a block row.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from wsfs.data.packcache import WINDOW, PackCache, Place
from wsfs.errors import FormatError
from wsfs.model import FrameLoc
from wsfs.repo.pack import TocEntry, open_frame, read_toc, toc_size

AHEAD: Final = 2
"""So many windows are opened beyond the one that is read. A commit fills several packs at a time, so there may be
several places where packs are read."""

WAITING_MAX: Final = 48 << 20
"""Bytes of opened frames that nobody has asked for yet."""

SMALLEST: Final = 4 << 10
"""Bytes of the smallest frame that is opened ahead: below, to hand it over would take as long as to open it."""

_TOCS: Final = 4
_TAIL: Final = 128 << 10
THREADS: Final = 2


class _Toc:
    """A pack's frames, in the order of their offsets."""

    __slots__ = ("entries", "offsets")

    def __init__(self, entries: list[TocEntry]) -> None:
        self.entries = entries
        self.offsets = [entry.offset for entry in entries]


class Unpacker:
    """Belongs to the owner thread. As a context it stops its threads at the end."""

    def __init__(self, packs: PackCache) -> None:
        self._packs = packs
        self._pool = ThreadPoolExecutor(THREADS, "wsfs-unpack")
        self._at: Place | None = None
        self._reached: dict[tuple[int, int], int] = {}
        """The window that was read last, of each pack."""
        self._frames: OrderedDict[Place, dict[bytes, bytes]] = OrderedDict()
        self._missing: dict[Place, dict[bytes, bytes]] = {}
        """Windows that were to be opened, and were not here."""
        self._arrivals = 0
        self._waiting = 0
        self._lock = threading.Lock()  # guards `_waiting`, and whether a window is still in `_frames`
        self._tocs: OrderedDict[tuple[int, int], _Toc] = OrderedDict()
        self._toc_lock = threading.Lock()

    def __enter__(self) -> Self:
        self._packs.ahead = self.take
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._packs.ahead = None
        for place in list(self._frames):
            self._drop(place)
        self._pool.shutdown(cancel_futures=True)

    def take(self, place: Place, digest: bytes) -> bytes | None:
        """A frame is needed that begins in this window: its bytes, if they are here. They are given once."""
        if place != self._at:
            self._at = place
            self._enter(place)
        frames = self._frames.get(place)
        if not frames:
            return None
        with self._lock:
            data = frames.pop(digest, None)
            if data is not None:
                self._waiting -= len(data)
        return data

    def arrived(self, epoch: int, pack: int) -> None:
        """Any thread: more of a pack is here."""
        self._arrivals += 1
        for place in [place for place in list(self._missing) if place[:2] == (epoch, pack)]:
            frames = self._missing.pop(place, None)
            if frames is not None:
                with suppress(RuntimeError):  # the mount ends, and nothing is opened any more
                    self._pool.submit(self._open, place, frames)

    def _enter(self, place: Place) -> None:
        epoch, pack, window = place
        before = self._reached.get((epoch, pack))
        if place in self._frames:
            self._frames.move_to_end(place)
        if before is not None and before - AHEAD <= window <= before:
            return
        self._reached[epoch, pack] = window
        for other in list(self._frames):
            if other[:2] == (epoch, pack) and abs(other[2] - window) > AHEAD:
                self._drop(other)
        if before is not None and window == before + 1:
            for number in range(window + 1, window + 1 + AHEAD):
                self._plan((epoch, pack, number))

    def _plan(self, place: Place) -> None:
        if place in self._frames:
            self._frames.move_to_end(place)
            return
        while self._waiting > WAITING_MAX // 2 and self._frames:
            self._drop(next(iter(self._frames)))
        frames = self._frames[place] = {}
        self._pool.submit(self._open, place, frames)

    def _drop(self, place: Place) -> None:
        """Nobody is expected to ask for the rest of this window."""
        with self._lock:
            self._waiting -= sum(map(len, self._frames.pop(place).values()))
            self._missing.pop(place, None)

    # --- in threads -----------------------------------------------------------------------------------------------

    def _open(self, place: Place, frames: dict[bytes, bytes]) -> None:
        arrivals = self._arrivals
        try:
            self._open_window(place, frames)
        except (OSError, FormatError):
            # Not fetched yet, or damaged. Whoever reads it gets to know.
            with self._lock:
                if self._frames.get(place) is not frames:
                    return
                self._missing[place] = frames
            if self._arrivals != arrivals:  # that was perhaps it
                self.arrived(*place[:2])

    def _open_window(self, place: Place, frames: dict[bytes, bytes]) -> None:
        """Open the frames that begin in a window, while anybody wants them. Raises OSError and FormatError when some of
        them, or the end of the pack, are not here."""
        epoch, pack, window = place
        fd = os.open(self._packs.path(epoch, pack), os.O_RDONLY | os.O_CLOEXEC)
        try:
            toc = self._toc(epoch, pack, fd)
            first = bisect_left(toc.offsets, window * WINDOW)
            entries = toc.entries[first : bisect_left(toc.offsets, (window + 1) * WINDOW)]
            if not entries:
                return
            begin, end = entries[0].offset, entries[-1].offset + entries[-1].stored_length
            stored = memoryview(os.pread(fd, end - begin, begin))
        finally:
            os.close(fd)
        for offset, stored_length, raw_length, codec, digest, _ino, _block in entries:
            if raw_length < SMALLEST or digest in frames:
                continue
            if self._waiting + raw_length > WAITING_MAX:
                return
            loc = FrameLoc(epoch, pack, offset, stored_length, raw_length, raw_length, codec, digest)
            data = open_frame(stored[offset - begin :][:stored_length], loc)
            with self._lock:
                if self._frames.get(place) is not frames:
                    return
                frames[digest] = data
                self._waiting += len(data)

    def _toc(self, epoch: int, pack: int, fd: int) -> _Toc:
        """Raises FormatError when the end of the pack is not here."""
        with self._toc_lock:
            toc = self._tocs.get((epoch, pack))
            if toc is None:
                size = os.fstat(fd).st_size
                tail = os.pread(fd, _TAIL, max(size - _TAIL, 0))
                needed = toc_size(tail)
                if needed > len(tail):
                    tail = os.pread(fd, needed, size - needed)
                toc = self._tocs[epoch, pack] = _Toc(sorted(read_toc(tail, size)))
                if len(self._tocs) > _TOCS:
                    self._tocs.popitem(last=False)
            return toc
