"""What is fetched before it is asked for, and what a mount tells the next one about its start."""

from __future__ import annotations

import os
import threading

import pytest
import trio
import trio.testing
from harness import World

from wsfs.data.ahead import PROFILE_MAX, WINDOWS, Ahead, Window
from wsfs.data.packcache import WINDOW
from wsfs.errors import FormatError
from wsfs.kernel.fetcher import Fetcher
from wsfs.model import HELD_MAX, Ino, Packed
from wsfs.remote import NeedRemote
from wsfs.sync.profile import is_news, read_profile, write_profile

END_FIRST = [WINDOWS - 1, *range(WINDOWS - 1)]


def touch(ahead: Ahead, pack: int, *numbers: int) -> None:
    for number in numbers:
        ahead.touch(Window(1, pack, number))


def test_one_window_announces_nothing() -> None:
    ahead = Ahead()
    touch(ahead, 7, 3, 3)
    touch(ahead, 8, 1)
    assert not ahead.queue


def test_three_windows_announce_the_rest_of_the_pack() -> None:
    ahead = Ahead()
    touch(ahead, 7, 3, 5)
    assert not ahead.queue
    touch(ahead, 7, 4)
    assert list(ahead.queue) == [Window(1, 7, n) for n in END_FIRST if n not in (3, 4, 5)]
    touch(ahead, 7, *range(WINDOWS))
    assert len(ahead.queue) == WINDOWS - 3


def test_pack_after_pack_announces_the_next_one() -> None:
    ahead = Ahead()
    touch(ahead, 7, *range(WINDOWS))
    touch(ahead, 8, *range(WINDOWS // 2 - 1))
    assert not [window for window in ahead.queue if window.pack == 9]
    touch(ahead, 8, WINDOWS - 1)
    assert [window.number for window in ahead.queue if window.pack == 9] == END_FIRST


def test_a_profile_is_queued_once() -> None:
    ahead = Ahead()
    touch(ahead, 1, 0)
    ahead.begin_with([Window(1, 1, 0), Window(1, 2, 0), Window(1, 2, 0)])
    assert list(ahead.queue) == [Window(1, 2, 0)]


def taken(ahead: Ahead, workers: int, *busy: int) -> list[list[int]]:
    """The numbers of the windows of each request, until nothing is left."""
    found = []
    while windows := ahead.take(workers, lambda window: window.number in busy):
        found.append([window.number for window in windows])
    return found


def test_adjacent_windows_are_one_request() -> None:
    """Of one pack, up to a limit, without what is under way; and as long as there are others, all of them get some."""
    for workers, busy, expected in (
        (1, (), [[2, 3, 4], [5, 6, 7], [8]]),
        (1, (3, 8), [[2], [4, 5, 6], [7]]),
        (1, range(9), []),
        (4, (), [[2, 3], [4, 5], [6], [7], [8]]),
    ):
        ahead = Ahead()
        ahead.begin_with(Window(1, 7, number) for number in range(2, 9))
        assert taken(ahead, workers, *busy) == expected
    ahead.begin_with([Window(1, 1, 0), Window(1, 2, 1), Window(2, 2, 2), Window(2, 2, 4)])
    assert taken(ahead, 1) == [[0], [1], [2], [4]]


def packed(world: World) -> tuple[list[Ino], Packed]:
    """Files that are only in the store, and the first one's block."""
    inodes = [world.create(b"%d" % number, os.urandom(HELD_MAX * 40)) for number in range(3)]
    world.commit()
    for ino in inodes:
        assert world.evictor.evict(ino)
    block = world.index.block(inodes[0], 0)
    assert isinstance(block, Packed)
    return inodes, block


def test_windows_arrive_together(world: World) -> None:
    """One request, and all that it brought is read without another one."""
    inodes, block = packed(world)
    world.store.log.clear()
    world.workspace.packs.fetch(block.loc.epoch, block.loc.pack, 0, 4)
    size = world.workspace.packs.size
    assert len(world.store.log) == 1
    assert all(len(world.read(ino)) == HELD_MAX * 40 for ino in inodes)
    assert len(world.store.log) == 1
    world.workspace.packs.fetch(block.loc.epoch, block.loc.pack, 0, 4)
    assert world.workspace.packs.size == size


def test_who_needs_a_part_of_what_is_fetched_ahead_waits_for_it() -> None:
    """It is not fetched twice; and what is done can be fetched again."""
    begun, go_on = threading.Event(), threading.Event()
    fetched = []

    def together() -> None:
        begun.set()
        go_on.wait(60)
        fetched.append("together")

    async def main() -> None:
        fetcher = Fetcher(10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetcher.ahead, ["a", "b"], together)
            await trio.to_thread.run_sync(begun.wait)
            assert fetcher.has("a")
            nursery.start_soon(fetcher.satisfy, NeedRemote({"b": lambda: fetched.append("alone")}))
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert not fetcher.has("b")
        await fetcher.satisfy(NeedRemote({"b": lambda: fetched.append("alone")}))

    trio.run(main)
    assert fetched == ["together", "alone"]


def test_the_first_touches_are_remembered_up_to_a_limit() -> None:
    ahead = Ahead()
    for pack in range(PROFILE_MAX + 5):
        touch(ahead, pack, 2)
    assert ahead.first == [Window(1, pack, 2) for pack in range(PROFILE_MAX)]


def test_a_profile_goes_through_the_bucket(world: World) -> None:
    assert read_profile(world.store) == (None, [])
    write_profile(world.store, 1, [Window(1, 2, 3)], None)
    write_profile(world.store, 2, [Window(1, 2, 3), Window(1, 2, 4)], "hints/00000001")
    assert read_profile(world.store) == ("hints/00000002", [Window(1, 2, 3), Window(1, 2, 4)])
    assert [info.key for info in world.store.list("hints/")] == ["hints/00000002"]


@pytest.mark.parametrize(
    "text", [b"", b"[]", b'{"windows":[[1,2]]}', b'{"windows":[[1,2,-1]]}', b'{"windows":["abc"]}']
)
def test_a_profile_that_is_none_is_refused(world: World, text: bytes) -> None:
    world.store.put("hints/00000009", text)
    with pytest.raises(FormatError):
        read_profile(world.store)


def test_only_a_profile_that_says_something_new_is_written() -> None:
    old = [Window(1, 1, n) for n in range(20)]
    assert is_news(old, [])
    assert not is_news([*old, Window(1, 2, 0)], old)
    assert is_news([*old, Window(1, 2, 0), Window(1, 2, 1), Window(1, 2, 2)], old)


def test_the_cache_tells_what_is_read_and_what_it_holds(world: World) -> None:
    inodes, block = packed(world)
    place = block.loc.epoch, block.loc.pack
    told: list[tuple[int, int, int, bool]] = []
    world.workspace.packs.on_touch = lambda *window: told.append(window)
    assert not world.workspace.packs.holds(*place, 0)
    world.read(inodes[0])
    assert told == [(*place, 0, True)]
    assert world.workspace.packs.holds(*place, 0)
    assert not world.workspace.packs.holds(*place, 1)
    world.read(inodes[2])
    assert told[1:] == [(*place, window, True) for window in range(1, 1 + (3 * 40 * HELD_MAX) // WINDOW)]
