"""Work in threads that may wait for the store for a long time, and that a stop does not wait for: it is left behind.

Such a thread goes on until its request ends, and must do no harm until the process has ended. So it has no say on the
owner's thread any more, and while one is at work, the cache directory stays open and locked, as after a kill (see
`mount.run`). What only reads the store, or leaves advice there, needs none of this: trio's own threads will do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from wsfs.errors import WsfsError

T = TypeVar("T")

_LOOK_SECONDS: Final = 0.02


class LeftBehindError(WsfsError):
    """Nobody waits for this any more."""


class _Errand:
    """Work of one thread: whether it has begun, and whether it was left behind."""

    __slots__ = ("begun", "left")

    def __init__(self) -> None:
        self.begun = self.left = False


class Errands:
    """Belongs to the trio thread; its threads call `on_owner` and `check`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at_work: set[_Errand] = set()
        self._mine = threading.local()

    @property
    def under_way(self) -> bool:
        """Whether a thread is at work, be it left behind."""
        return bool(self._at_work)

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, from a thread. Once it is cancelled, nobody waits for that thread."""
        errand = _Errand()
        self._at_work.add(errand)
        try:
            return await trio.to_thread.run_sync(self._do, errand, work, abandon_on_cancel=True)
        except trio.Cancelled:
            with self._lock:
                errand.left = True
                if not errand.begun:  # and it never will
                    self._at_work.discard(errand)
            raise

    def _do(self, errand: _Errand, work: Callable[[], T]) -> T:
        with self._lock:
            if errand.left:
                raise LeftBehindError
            errand.begun = True
        self._mine.errand = errand
        try:
            return work()
        finally:
            self._at_work.discard(errand)

    def on_owner(self, function: Callable[[], T], /) -> T:
        """From one of these threads: run a function on the trio thread. Raises LeftBehindError, and has not run it, if
        nobody waits for this thread any more: what it would change might come after the last save."""
        errand: _Errand = self._mine.errand

        def unless_left() -> T:
            if errand.left:
                raise LeftBehindError
            return function()

        return trio.from_thread.run_sync(unless_left)

    def check(self) -> None:
        """From one of these threads: raises LeftBehindError if nobody waits for it any more."""
        errand: _Errand = self._mine.errand
        if errand.left:
            raise LeftBehindError

    async def end(self, seconds: float) -> None:
        """Wait a moment for those that were left behind: most end by themselves, and then all is left in order."""
        with trio.move_on_after(seconds):
            while self.under_way:  # noqa: ASYNC110 - no event: they are threads
                await trio.sleep(_LOOK_SECONDS)
