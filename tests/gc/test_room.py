"""What the bytes of a bucket are counted for, and collections that somebody asks for."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from garbage import HOUR, GcWorld, retained
from harness import tree

from wsfs.errors import LeaseHeldError
from wsfs.garbage import collect_unmounted, report
from wsfs.repo.head import State
from wsfs.repo.manifest import decode_manifest
from wsfs.store.base import ObjectInfo
from wsfs.sync import bulk
from wsfs.sync.lease import Waiting
from wsfs.sync.pins import pin
from wsfs.sync.room import Room, room

BLOCK = 4096


def churn(world: GcWorld, rounds: int = 12) -> None:
    """Files that are written anew and in place, and go, in several commits, some of them folded."""
    rng = random.Random(11)
    for number in range(rounds):
        world.create(b"f%02d" % number, rng.randbytes(3 * BLOCK))
        if number > 2:
            world.write(world.file(b"f%02d" % (number - 1)), BLOCK, rng.randbytes(BLOCK))
            world.unlink(b"f%02d" % (number - 3))
        world.commit()
        world.pass_time(HOUR / 4)


def test_live_kept_and_garbage_are_what_a_census_of_each_commit_finds(world: GcWorld) -> None:
    churn(world)
    for _ in range(2):
        metadata = {"commits/", "meta/"}
        found = room(world.observer(), retained)
        assert found.live == world.live_bytes() + head_metadata(world)
        assert found.live + found.kept <= world.kept_bytes() + sum(world.usage(kind) for kind in metadata)
        assert found.live + found.kept >= world.kept_bytes() + head_metadata(world)
        assert found.total == sum(world.usage(kind) for kind in ("packs/", *metadata))
        assert found.garbage > 0
        world.settle(3)


def head_metadata(world: GcWorld) -> int:
    manifest = decode_manifest(world.bucket.objects[world.head().commit].data)
    keys = {ref.key for ref in (*manifest.base, *manifest.deltas)} | {manifest.key}
    return sum(len(world.bucket.objects[key].data) for key in keys)


def test_a_pin_keeps_what_else_is_garbage(world: GcWorld) -> None:
    world.create(b"f", os.urandom(20 * BLOCK))
    world.commit()
    commit = world.head().commit
    world.unlink(b"f")
    world.touch()
    world.bury()
    before = room(world.observer(), retained)
    assert before.garbage >= 20 * BLOCK
    pin(world.observer(), commit, "the test wants it")
    after = room(world.observer(), retained)
    assert after.live == before.live
    assert after.kept - before.kept >= 20 * BLOCK
    assert after.garbage <= before.garbage - 20 * BLOCK


def stopped(world: GcWorld) -> dict[bytes, object]:
    """A workspace with garbage that nobody holds, and its tree."""
    churn(world)
    found = tree(world)
    world.stop()
    world.pass_time(HOUR + 1)
    return dict(found)


def test_a_workspace_that_nobody_holds(world: GcWorld, tmp_path: Path) -> None:
    """One command takes all of it away that is old enough, in two collections with an empty commit in between."""
    before = stopped(world)
    store = world.observer()
    room_before = room(store, retained)
    told = report(store, retained)
    assert (told["applied"], told["freed"]) == (False, 0)
    assert Room(told["live"], told["kept"], told["garbage"]) == room_before
    done = collect_unmounted(store, retained, tmp_path / "cache")
    assert done["applied"]
    assert done["packs"] > 0
    assert done["freed"] >= room_before.garbage / 2
    assert room(store, retained).garbage == done["garbage"] < room_before.garbage
    head = world.head()
    assert (head.state, head.holder) == (State.STOPPED, None)
    world.start()
    assert tree(world) == before
    world.check()


def test_nothing_to_collect_makes_no_commit(world: GcWorld, tmp_path: Path) -> None:
    world.create(b"f", os.urandom(BLOCK))
    world.stop()
    seq = world.head().seq
    done = collect_unmounted(world.observer(), retained, tmp_path / "cache")
    assert (done["freed"], done["seq"], world.head().seq) == (0, seq, seq)


def test_a_long_collection_keeps_the_workspace(world: GcWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads everything: a mount that comes after more than two minutes of that waits, as for a save."""
    stopped(world)
    monkeypatch.setattr(bulk, "RENEW_SECONDS", 0.01)
    store = world.observer()
    waiting: list[Waiting | None] = []
    plain = store.list

    def slow(prefix: str) -> Iterator[ObjectInfo]:
        if not waiting:
            world.pass_time(200)
            waiting.append(world.wait_for_renewal())
        return plain(prefix)

    store.list = slow  # type: ignore[method-assign]
    collect_unmounted(store, retained, tmp_path / "cache")
    assert [one is not None and one.worth for one in waiting] == [True]
    assert world.head().state is State.STOPPED


@pytest.mark.parametrize("state", ["mounted", "crashed", "failed"])
def test_what_was_not_stopped_in_order_is_left_alone(world: GcWorld, tmp_path: Path, state: str) -> None:
    """A cache somewhere may have what is not saved, and it builds on this commit."""
    churn(world, 4)
    world.create(b"unsaved")
    if state == "failed":
        assert world.workspace.lease is not None
        world.workspace.lease.release(State.SYNC_FAILED, "the store was full")
    if state != "mounted":
        world.crash()
    objects = dict(world.bucket.objects)
    with pytest.raises(LeaseHeldError, match="mount and stop it first"):
        collect_unmounted(world.observer(), retained, tmp_path / "cache")
    assert world.bucket.objects == objects
