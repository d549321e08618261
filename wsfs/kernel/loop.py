"""A shorter way from one request to the next.

Most of what a FUSE request costs in pyfuse3 is trio's scheduler: a lock with a checkpoint, a turn through epoll, a new
task. None of it is needed while one program asks and waits for the answer. So pyfuse3 gets, in place of trio, a view of
it with four differences: a lock that does not yield when it is free, a wait that looks at the device for a moment
before it goes to sleep, a checkpoint only when the last one is too long ago or a request waits for something, and spare
tasks that are started when a request begins to wait, not with each request that might. pyfuse3's own asyncio support
replaces the same attribute, so the place is a supported one.
"""

from __future__ import annotations

import select
import sys
import time
import types
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any, Final

import pyfuse3
import trio

from wsfs.kernel.mountpoint import MAX_BACKGROUND

MAX_TASKS: Final = 2 * MAX_BACKGROUND
"""Requests that may wait for something at once: all that the kernel sends in the background, and as many others. When
so many wait, nothing is answered any more."""

STARVE_SECONDS: Final = 0.05
"""Other tasks wait at most about this long while requests keep coming."""

LOOKS_MS: Final = (*(0,) * 100, 1)
"""How long to wait for a request at each look at the device, before going to sleep; the GIL can be taken by others
meanwhile. The next request of a program that does nothing else comes after 5 to 20 us, and two processors that wake
each other up take three times as long: so for some 60 us the thread does not give its processor up. The last look is
for what comes a little later, without all of trio's bookkeeping."""

SWITCH_INTERVAL: Final = 0.00005
"""A thread that computes gives the GIL back after this long; Python's default lets a request wait for 5 ms, more than
once."""


def _ended() -> Awaitable[None]:
    """What needs no waiting: a generator that has ended, which can be awaited again and again, and without Python code.
    A coroutine that returns at once would cost many times as much."""

    @types.coroutine
    def nothing() -> Generator[None, None, None]:
        yield from ()

    generator = nothing()
    assert not list(generator)
    return generator


_DONE: Final = _ended()


class Turn:
    """Whose turn it is to read the next request: trio.Lock without a checkpoint when it is free."""

    __slots__ = ("_lot", "_parked", "asking", "held")

    def __init__(self) -> None:
        self.held = False
        self.asking = False
        """Whether the next wait is for a request: set just before it."""
        self._lot = trio.lowlevel.ParkingLot()
        self._parked = 0
        """How many tasks are in there: to ask it would be two calls more for each request."""

    def __aenter__(self) -> Awaitable[None]:
        if self.held:
            return self._park()
        self.held = True
        return _DONE

    async def _park(self) -> None:
        self.asking = True
        self._parked += 1
        try:
            await self._lot.park()  # whoever releases it hands it over
        except BaseException:
            self._parked -= 1
            raise

    def __aexit__(self, _type: object, _exc: object, _traceback: object, /) -> Awaitable[None]:
        if self._parked:
            self._parked -= 1
            self._lot.unpark()
        else:
            self.held = False
        return _DONE


Worker = Callable[..., Coroutine[Any, Any, None]]


class Workers:
    """The tasks that read and answer requests, in the place of pyfuse3's nursery.

    pyfuse3 starts a spare task with each request, because that might have to wait, and nobody would read the next one.
    Here a spare is no more than a note until a request does wait.
    """

    def __init__(self, nursery: trio.Nursery, turn: Turn) -> None:
        self._nursery = nursery
        self._turn = turn
        self._spares: deque[tuple[Worker, tuple[Any, ...], str | None]] = deque()
        self._running = 0
        self.waiting = 0
        """Requests that wait, most of them for a thread: when it is done they should go on at once."""

    def start_soon(self, worker: Worker, *args: Any, name: str | None = None) -> None:
        self._spares.append((worker, args, name))
        if not self._running:
            self._start()

    def _start(self) -> None:
        worker, args, name = self._spares.popleft()
        self._running += 1
        self._nursery.start_soon(self._run, worker, args, name=name)

    async def _run(self, worker: Worker, args: tuple[Any, ...]) -> None:
        try:
            await self._watched(worker(*args))
        finally:
            self._running -= 1

    @types.coroutine
    def _watched(self, worker: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
        """Run a worker, and notice when it waits with a request that it has read."""
        value: Any = None
        turn = self._turn
        while True:
            try:
                trap = worker.send(value)
            except StopIteration:
                return
            answering, turn.asking = not turn.asking, False
            if answering:
                self.waiting += 1
                if self._spares and not turn.held:
                    self._start()
            try:
                value = yield trap  # a cancellation, too: trio sends it, and what made the trap raises it
            finally:
                self.waiting -= answering


class _Device:
    """The wait for the next request, in the place of trio's: one that lingers."""

    def __init__(self, turn: Turn, clock: Callable[[], float]) -> None:
        self.workers: Workers
        self._turn = turn
        self._clock = clock
        self._look: Callable[[int], object] | None = None
        self._last_checkpoint = clock()

    def wait_readable(self, fd: int) -> Awaitable[None]:
        """Return when a request can be read. Raises ClosedResourceError as trio's does."""
        look = self._look
        if look is None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            look = self._look = poll.poll
        if self.workers.waiting or self._clock() - self._last_checkpoint > STARVE_SECONDS:
            return self._let_others(fd, look)
        for milliseconds in LOOKS_MS:
            if look(milliseconds):
                return _DONE
        return self._sleep(fd)

    async def _let_others(self, fd: int, look: Callable[[int], object]) -> None:
        self._turn.asking = True
        await trio.lowlevel.checkpoint()
        self._last_checkpoint = self._clock()
        if not look(0):
            await self._sleep(fd)

    async def _sleep(self, fd: int) -> None:
        self._turn.asking = True
        await trio.lowlevel.wait_readable(fd)
        self._last_checkpoint = self._clock()


def view_of_trio(clock: Callable[[], float]) -> types.SimpleNamespace:
    """What pyfuse3 sees as trio: all of its names, some of which are others here."""
    turn = Turn()
    device = _Device(turn, clock)

    @asynccontextmanager
    async def open_nursery() -> AsyncIterator[Workers]:
        async with trio.open_nursery() as nursery:
            device.workers = Workers(nursery, turn)
            yield device.workers

    # Copies: a module, or a class with __getattr__, takes longer to find a name.
    lowlevel = types.SimpleNamespace(**{**vars(trio.lowlevel), "wait_readable": device.wait_readable})
    own = {"Lock": lambda: turn, "open_nursery": open_nursery, "lowlevel": lowlevel}
    return types.SimpleNamespace(**{**vars(trio), **own})


async def serve() -> None:
    """pyfuse3.main, faster."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    pyfuse3.trio = view_of_trio(time.monotonic)  # type: ignore[attr-defined]
    try:
        await pyfuse3.main(min_tasks=0, max_tasks=MAX_TASKS)
    finally:
        pyfuse3.trio = trio  # type: ignore[attr-defined]
