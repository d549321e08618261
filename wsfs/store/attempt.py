"""One attempt at what may hang, for all who need it: each waits for so long, and no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class NotYetError(Exception):
    """What is waited for takes too long; it goes on."""


class Attempt(Generic[T]):
    """Safe from any thread. The work is done on a thread of its own, one at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._latest: Future[T] | None = None

    def result(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` returns or raises; if such work is under way already, that is waited for instead.

        Raises NotYetError after so many seconds.
        """
        with self._lock:
            latest = self._latest
            if latest is None or latest.done():
                latest = self._latest = Future()
                # A daemon: if it hangs for ever, the process must be able to end.
                threading.Thread(target=_do, args=(work, latest), name=self._name, daemon=True).start()
        if not wait([latest], seconds).done:
            raise NotYetError(f"this takes longer than {seconds:g} s")
        return latest.result()


def _do(work: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(work())
    except BaseException as exc:
        # Whoever waits for it raises it.
        future.set_exception(exc)
