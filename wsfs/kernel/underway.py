"""The changes that programs have asked for, and that wait: for a part of the store, or for room on the cache disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class UnderWay:
    """Belongs to the trio thread. A program may be told already that its write was done: the kernel has the bytes, and
    for a part of a block that is not here it is we who wait. syncfs(2) does not, as of Linux 6.18."""

    def __init__(self) -> None:
        self._waiting: set[trio.Event] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def change(self) -> Iterator[None]:
        """Around a change that waits."""
        ended = trio.Event()
        self._waiting.add(ended)
        try:
            yield
        finally:
            self._waiting.remove(ended)
            ended.set()

    async def wait(self) -> None:
        """Return when those that are under way now have been made, or have failed: after 120 s at most, if the store
        does not answer."""
        for ended in list(self._waiting):
            await ended.wait()
