"""Threads that a stop leaves behind: they are known until they end, and change nothing any more."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import trio

from wsfs.errands import Errands, LeftBehindError


def test_it_is_work_in_a_thread_that_asks_its_owner() -> None:
    errands = Errands()

    async def main() -> None:
        def work() -> int:
            errands.check()
            assert errands.under_way
            return errands.on_owner(lambda: 3) + 1

        assert await errands.run(work) == 4
        assert not errands.under_way
        with pytest.raises(ZeroDivisionError):
            await errands.run(lambda: 1 // 0)
        assert not errands.under_way

    trio.run(main)


def test_one_that_is_left_behind_changes_nothing_and_is_known_until_it_ends() -> None:
    errands = Errands()
    begun, answered, ended = threading.Event(), threading.Event(), threading.Event()
    done: list[str] = []

    def work() -> None:
        begun.set()
        answered.wait(60)
        for step in (errands.check, lambda: errands.on_owner(lambda: done.append("changed"))):
            try:
                step()
            except LeftBehindError:
                done.append("refused")
        ended.set()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(errands.run, work)
            await trio.to_thread.run_sync(begun.wait, 60)
            nursery.cancel_scope.cancel()
        assert errands.under_way
        began = trio.current_time()
        await errands.end(0.1)
        assert errands.under_way
        assert trio.current_time() - began < 30
        answered.set()
        await errands.end(60)
        assert not errands.under_way

    trio.run(main)
    assert ended.is_set()
    assert done == ["refused", "refused"]


@pytest.mark.parametrize("starts", ["never", "late"])
def test_one_that_is_left_behind_before_it_begins_never_does(starts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    errands = Errands()
    late: list[Callable[[], object]] = []

    async def hang(work: Callable[..., object], *args: object, **_how: object) -> None:
        late.append(lambda: work(*args))
        await trio.sleep_forever()

    async def main() -> None:
        monkeypatch.setattr(trio.to_thread, "run_sync", hang)
        with trio.move_on_after(0.01):
            await errands.run(lambda: pytest.fail("it began"))
        assert not errands.under_way

    trio.run(main)
    if starts == "late":
        with pytest.raises(LeftBehindError):
            late[0]()
    assert not errands.under_way
