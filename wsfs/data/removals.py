"""Removes files of the cache while nobody waits for the disk, which takes a second or more for a large one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import Final

from wsfs.data.behind import WriteBehind
from wsfs.data.overlayfile import give_back, remove

LARGE_FILE: Final = 16 << 20
"""Bytes of a file that a disk takes long to remove, or to cut to nothing."""

_HELD_MAX: Final = 64
"""So many large files that have no name any more may wait with their descriptors open."""


class Removals:
    """Any thread may call it. What is left to `behind` is done there, one after the other."""

    def __init__(self, behind: WriteBehind) -> None:
        self._behind = behind
        self._lock = threading.Lock()
        self._leaving: set[str] = set()
        self._held = 0
        self._room = 0

    def later(self, path: str) -> None:
        """Remove a file that was moved aside for that."""
        with self._lock:
            self._leaving.add(path)
        self._behind.later(partial(self._remove, path))

    def _remove(self, path: str) -> None:
        room = 0
        with suppress(OSError):
            room = os.lstat(path).st_blocks * 512
        remove(path)
        with self._lock:
            self._room += room
            self._leaving.discard(path)

    def close(self, held: Iterable[int | None]) -> None:
        """Let go of what `hold` has returned: small files here, large ones there, for whoever calls may hold a lock."""
        small: list[int] = []
        for fd in held:
            if fd is None:
                continue
            with self._lock:
                large = self._held < _HELD_MAX and os.fstat(fd).st_size >= LARGE_FILE
                self._held += large
            if large:
                self._behind.later(partial(self._close_large, fd))
            else:
                small.append(fd)
        give_back(small)

    def _close_large(self, fd: int) -> None:
        give_back([fd])
        with self._lock:
            self._held -= 1

    def wait(self) -> int:
        """Return when what is being removed is gone: bytes that the disk has back since the last time, of files that
        were moved aside."""
        self._behind.wait()
        with self._lock:
            room, self._room = self._room, 0
        return room

    def finish(self) -> None:
        """Once `behind` is closed: do what it has left, but for files without a name, which go with the process."""
        for path in list(self._leaving):
            self._remove(path)
