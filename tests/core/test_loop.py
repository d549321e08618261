"""The loop that reads requests: pyfuse3's, as it is without pyfuse3, over a pipe that has a byte for each request."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trio
import trio.testing

from wsfs.kernel.loop import MAX_TASKS, STARVE_SECONDS, Workers, view_of_trio
from wsfs.kernel.mountpoint import MAX_BACKGROUND

Handler = Callable[[int], Awaitable[None]]


class Session:
    """A session of pyfuse3: `main` and its workers do what they do there, in the same order."""

    def __init__(self, handler: Handler) -> None:
        self.view = view_of_trio(time.monotonic)
        self._handler = handler
        self._device, self._programs = os.pipe()
        self._readers = 0
        self._tasks = 1
        self._exited = False
        self.begun = 0
        """How many workers there were."""

    def ask(self, *requests: int) -> None:
        os.write(self._programs, bytes(requests))

    def end(self) -> None:
        """As an unmount does."""
        os.close(self._programs)

    def close(self) -> None:
        os.close(self._device)

    @property
    def waiting(self) -> int:
        return self._workers.waiting

    async def main(self) -> None:
        async with self.view.open_nursery() as nursery:
            self._workers: Workers = nursery
            nursery.start_soon(self._work, nursery, name="worker 1")

    async def _work(self, nursery: Any) -> None:
        self.begun += 1
        while not self._exited and not self._readers:
            self._readers += 1
            try:
                async with self.view.Lock():
                    await self.view.lowlevel.wait_readable(self._device)
            finally:
                self._readers -= 1
            request = os.read(self._device, 1)
            if not self._readers and self._tasks < MAX_TASKS:
                self._tasks += 1
                nursery.start_soon(self._work, nursery, name="another")
            if not request:
                self._exited = True
                break
            await self._handler(request[0])
        self._tasks -= 1


@pytest.fixture
def open_session() -> Iterator[Callable[[Handler], Session]]:
    opened: list[Session] = []

    def make(handler: Handler) -> Session:
        opened.append(Session(handler))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


def test_one_worker_answers_what_does_not_wait(open_session: Callable[[Handler], Session]) -> None:
    """However many requests there are: a task more would cost as much as a request."""
    answered = []

    async def handler(request: int) -> None:
        answered.append(request)

    session = open_session(handler)
    session.ask(*range(100))
    session.end()
    trio.run(session.main)
    assert answered == list(range(100))
    assert session.begun == 1


def gated(
    open_session: Callable[[Handler], Session], waits: Callable[[int], bool]
) -> tuple[Session, list[int], trio.Event]:
    """A session of which some requests wait for the event, and what it has answered."""
    answered: list[int] = []
    go_on = trio.Event()

    async def handler(request: int) -> None:
        if waits(request):
            await go_on.wait()
        answered.append(request)

    return open_session(handler), answered, go_on


def test_while_some_wait_others_are_answered(open_session: Callable[[Handler], Session]) -> None:
    """Each that waits costs a task, and no more; and when all have been answered nothing counts as waiting."""
    session, answered, go_on = gated(open_session, lambda request: request < 3)

    async def programs() -> None:
        session.ask(0, 10, 1, 11, 2, 12)
        await trio.testing.wait_all_tasks_blocked()
        assert answered == [10, 11, 12]
        assert session.waiting == 3
        assert session.begun == 4
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert session.waiting == 0
        session.ask(13)
        await trio.testing.wait_all_tasks_blocked()
        assert session.begun == 4
        session.end()

    with_deadline(session.main, programs)
    assert sorted(answered) == [0, 1, 2, 10, 11, 12, 13]


def test_so_many_may_wait_and_no_more(open_session: Callable[[Handler], Session]) -> None:
    session, answered, go_on = gated(open_session, lambda request: request > 0)

    async def programs() -> None:
        session.ask(*[1] * MAX_TASKS, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert session.waiting == MAX_TASKS
        assert answered == []
        go_on.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(answered) == MAX_TASKS + 1
        session.end()

    with_deadline(session.main, programs)
    assert session.waiting == 0


def test_all_that_the_kernel_sends_in_the_background_may_wait(open_session: Callable[[Handler], Session]) -> None:
    """And others are answered: what waits for the store keeps nobody from what is here."""
    session, answered, go_on = gated(open_session, lambda request: request > 0)

    async def programs() -> None:
        session.ask(*[1] * MAX_BACKGROUND, 0)
        await trio.testing.wait_all_tasks_blocked()
        assert answered == [0]
        go_on.set()
        session.end()

    with_deadline(session.main, programs)


def test_a_stop_ends_what_waits(open_session: Callable[[Handler], Session]) -> None:
    """Whoever waits is told so where it waits, and can put things in order."""
    told = []

    async def handler(_request: int) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            told.append(session.waiting)
            raise

    session = open_session(handler)

    async def stopped() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.main)
            session.ask(1, 2, 3)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    with_deadline(stopped)
    assert len(told) == 3
    assert session.waiting == 0


def test_an_error_in_a_worker_ends_all(open_session: Callable[[Handler], Session]) -> None:
    async def handler(request: int) -> None:
        await trio.lowlevel.checkpoint()
        if request:
            raise OSError("of the device")

    session = open_session(handler)
    session.ask(0, 0, 1)
    with pytest.raises(ExceptionGroup) as raised:
        with_deadline(session.main)
    assert raised.value.subgroup(OSError) is not None
    assert session.waiting == 0


def test_other_tasks_have_their_turn_while_requests_keep_coming(open_session: Callable[[Handler], Session]) -> None:
    turns: list[float] = []

    async def handler(_request: int) -> None:
        now = time.monotonic()
        if now - began < 6 * STARVE_SECONDS:
            session.ask(0)
        else:
            session.end()

    session = open_session(handler)
    began = time.monotonic()

    async def timer() -> None:
        while True:
            turns.append(time.monotonic())
            await trio.lowlevel.checkpoint()

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timer)
            session.ask(0)
            await session.main()
            nursery.cancel_scope.cancel()

    with_deadline(both)
    assert len(turns) >= 3


def with_deadline(*work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for one in work:
                    nursery.start_soon(one)

    trio.run(run)
