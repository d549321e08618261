"""How far a commit is can be read while it runs, and adds up to what it saves."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import trio
from harness import SMALL_BLOCK, World

from wsfs.repo.head import State
from wsfs.report import AT_ONCE, Report
from wsfs.sync.progress import Progress


def test_a_commit_tells_how_far_it_is(small: World) -> None:
    """Planned at the freeze, nothing done before the first pack is in the store, all of it at the end."""
    small.mkdir(b"empty")
    for number in range(6):
        small.create(b"f%d" % number, os.urandom(2 * SMALL_BLOCK))
    seen: list[dict[str, Any]] = []

    def look(_method: str, key: str) -> None:
        assert small.committer.progress is not None
        if key.startswith("packs/"):
            seen.append(small.committer.progress.account())

    small.store.fault = look
    steps: dict[str, dict[str, Any]] = {}
    held: list[Progress] = []

    def reached(step: str) -> None:
        assert small.committer.progress is not None
        held.append(small.committer.progress)
        steps[step] = held[-1].account()

    small.reached = reached
    saved = small.commit()
    assert saved is not None
    assert small.committer.progress is None
    first, last, end = seen[0], seen[-1], steps["packs"]
    # The directory, and the top one, of which only a row is sent.
    assert (first["total"], first["completed"], first["completedBytes"]) == (8, 2, 0)
    assert first["totalBytes"] == 12 * SMALL_BLOCK
    assert 0 < last["completedBytes"] < last["totalBytes"]
    assert 2 < last["completed"] < 8
    assert end["completed"] == end["processed"] == end["total"] == saved.files
    assert end["completedBytes"] == end["totalBytes"] == saved.bytes
    assert (end["skipped"], end["failed"], end["direction"]) == (0, 0, "upload")
    assert held[-1].account()["transferredBytes"] == saved.sent


def test_what_needs_no_room_counts_as_done(small: World) -> None:
    """Zeros, and blocks that the store has already."""
    data = os.urandom(SMALL_BLOCK)
    small.create(b"a", data)
    small.commit()
    small.create(b"again", data)
    small.create(b"zeros", bytes(3 * SMALL_BLOCK))
    ends: list[dict[str, Any]] = []

    def reached(step: str) -> None:
        assert small.committer.progress is not None
        if step == "packs":
            ends.append(small.committer.progress.account())

    small.reached = reached
    small.commit()
    assert ends[0]["completedBytes"] == ends[0]["totalBytes"] == 4 * SMALL_BLOCK
    assert ends[0]["transferredBytes"] == 0


def test_a_list_of_very_many_unsaved_files_lets_others_have_their_turn(world: World) -> None:
    """It is made on the thread that answers requests."""
    names = {b"%d" % number for number in range(4 * AT_ONCE)}
    for name in names:
        world.create(name)
    settings: Any = SimpleNamespace(read_only=False, save_interval=30.0)
    saver: Any = SimpleNamespace(state=State.RUNNING, reason="")
    pace: Any = None
    report = Report(settings, world.workspace, saver, pace)
    turns = 0
    found: list[dict[str, Any]] = []

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            if turns == 3:
                world.unlink(b"0")
            await trio.lowlevel.checkpoint()

    async def look() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            found.extend(await report.unsaved())
            nursery.cancel_scope.cancel()

    trio.run(look)
    assert turns >= 3
    told = {os.fsencode(one["path"]) for one in found}
    assert told - {b"", b"0"} == names - {b"0"}
