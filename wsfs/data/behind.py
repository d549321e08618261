"""Has the disk begin with what is being written, so that the fsync at the end does not wait for all of it.

The kernel leaves dirty pages alone until there are very many of them, or they are half a minute old. A checkpoint of
some gigabytes would be copied into the page cache first and written to the disk afterwards. RocksDB (`bytes_per_sync`)
does the same.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import Final

STEP: Final = 32 << 20
"""So many bytes in a row, and the disk begins with them. A smaller file may well be gone again before it is written."""

LARGE: Final = 64 << 10
"""Smaller writes are not looked at: they cost too little to matter, and there are too many."""

_SYNC_FILE_RANGE_WRITE: Final = 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


def begin_writeback(fd: int, offset: int, length: int) -> None:
    """Let the kernel write dirty pages of this range; may wait until the disk takes them. Promises nothing: whoever
    needs the data on disk calls fsync, which is told what went wrong."""
    _libc.sync_file_range(fd, offset, length, _SYNC_FILE_RANGE_WRITE)


class WriteBehind:
    """Belongs to the owner of the files; `begin` is called in a thread of its own."""

    def __init__(self, begin: Callable[[int, int, int], None] = begin_writeback) -> None:
        self._begin = begin
        self._runs: dict[int, tuple[int, int]] = {}
        self._thread = ThreadPoolExecutor(1, "wsfs-behind")

    def wrote(self, fd: int, offset: int, length: int) -> None:
        """So many bytes were written to a file. By the time that the disk begins with them `fd` may stand for another
        file: then that one is written a little earlier than need be, and no harm is done."""
        if length < LARGE:
            return
        start, end = self._runs.get(fd, (offset, offset))
        if offset != end:
            start = offset
        end = offset + length
        if end - start >= STEP:
            self._thread.submit(self._begin, fd, start, end - start)
            start = end
        self._runs[fd] = (start, end)

    def closed(self, fd: int) -> None:
        """Nothing more is written by this descriptor."""
        self._runs.pop(fd, None)

    def later(self, work: Callable[[], object]) -> None:
        """Any thread: do something else about files there, for which nobody waits. It is not done if this is closed
        before, and at once if it is closed already."""
        try:
            self._thread.submit(work)
        except RuntimeError:
            work()

    def wait(self) -> None:
        """Any thread but that one: return when what was to be done until now is done, or this is closed."""
        with suppress(CancelledError, RuntimeError):
            self._thread.submit(lambda: None).result()

    def close(self) -> None:
        """Leave what has not begun to the kernel."""
        self._thread.shutdown(wait=False, cancel_futures=True)
