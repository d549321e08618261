"""A shorter way from one request to the next.

Most of what a FUSE request costs in pyfuse3 is trio's scheduler: a lock with a checkpoint, a turn through epoll, a new
task. None of it is needed while one program asks and waits for the answer. So pyfuse3 gets, in place of trio, a view of
it with three differences: a lock that does not yield when it is free, a wait that looks at the device for a moment
before it goes to sleep, and a checkpoint only when the last one is too long ago or something else wants to run.
pyfuse3's own asyncio support replaces the same attribute, so the place is a supported one.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import pyfuse3
import trio

MAX_TASKS: Final = 32
"""Requests that may wait for something at once. pyfuse3 starts spare tasks at each checkpoint, up to this number."""

STARVE_SECONDS: Final = 0.05
"""Other tasks wait at most about this long while requests keep coming."""

LINGER_MS: Final = 1
"""How long to look at the device before going to sleep. The GIL is released meanwhile."""

SWITCH_INTERVAL: Final = 0.0005
"""A thread that computes gives the GIL back after this long; Python's default lets a request wait for 5 ms."""


class Lock:
    """trio.Lock without a checkpoint when it is free."""

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        if self._held:
            # Whoever releases it hands it over.
            await self._waiting.park()
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self._held = False


class _LowLevel:
    """trio.lowlevel with a wait that lingers."""

    def __init__(self, others_wait: Callable[[], bool], clock: Callable[[], float]) -> None:
        self._others_wait = others_wait
        self._clock = clock
        self._poll: select.poll | None = None
        self._last_checkpoint = clock()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        """Return when a request can be read. Raises ClosedResourceError as trio's does."""
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
        if self._others_wait() or self._clock() - self._last_checkpoint > STARVE_SECONDS:
            await trio.lowlevel.checkpoint()
            self._last_checkpoint = self._clock()
        elif self._poll.poll(LINGER_MS):
            return
        if not self._poll.poll(0):
            await trio.lowlevel.wait_readable(fd)
            self._last_checkpoint = self._clock()


class _Trio:
    """What pyfuse3 sees as trio."""

    Lock = Lock

    def __init__(self, lowlevel: _LowLevel) -> None:
        self.lowlevel = lowlevel

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


async def serve(others_wait: Callable[[], bool]) -> None:
    """pyfuse3.main, faster. `others_wait` says whether another task wants to run now."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    pyfuse3.trio = _Trio(_LowLevel(others_wait, time.monotonic))  # type: ignore[attr-defined]
    try:
        await pyfuse3.main(min_tasks=0, max_tasks=MAX_TASKS)
    finally:
        pyfuse3.trio = trio  # type: ignore[attr-defined]
