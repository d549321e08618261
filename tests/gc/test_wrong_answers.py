"""A store that answers wrongly once makes a collection end, or do less. What is kept stays whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from garbage import HOUR, GcWorld, check_commit

from wsfs.errors import NotFoundError, TransientStoreError, WsfsError
from wsfs.repo.fork import mark_fork
from wsfs.repo.frame import dump_json
from wsfs.repo.manifest import decode_manifest, encode_manifest
from wsfs.store.base import Blob, ObjectInfo
from wsfs.sync.history import save_points
from wsfs.sync.pins import Kind, pin, pinned
from wsfs.sync.retain import keep_for
from wsfs.sync.survey import Survey, list_objects
from wsfs.values import Retention

DAY = 86400.0
PREFIXES = ("commits/", "kept/", "points/", "forks/", "meta/", "packs/")


def later(world: GcWorld, seconds: float) -> None:
    world.pass_time(seconds)
    world.now += int(seconds * 1e9)


def days(world: GcWorld, count: int) -> None:
    """A workspace with a save point for each day, each with bytes of its own."""
    world.policy = keep_for(Retention(HOUR, DAY, 30 * DAY))
    world.crash()
    world.start()
    for number in range(count):
        later(world, DAY)
        if number:
            world.unlink(b"daily")
        world.create(b"daily", os.urandom(9000))
        world.commit()


def line(world: GcWorld) -> list[int]:
    return [point.seq for point in save_points(world.observer())]


def check_whole(world: GcWorld, commits: set[str]) -> None:
    store = world.observer()
    sizes = world.sizes(store)
    for key in sorted(commits):
        check_commit(store, decode_manifest(store.get(key).data), sizes)


def test_a_manifest_that_is_not_found_once_ends_the_collection(world: GcWorld) -> None:
    days(world, 6)
    before = line(world)
    victim = sorted(key for key in world.bucket.objects if key.startswith("commits/"))[-3]

    def missing(method: str, key: str) -> None:
        if key == victim:
            raise NotFoundError("there is no such object")

    world.store.fault = missing
    with pytest.raises(TransientStoreError, match="is listed"):
        world.collect()
    world.store.heal()
    assert line(world) == before
    world.touch()
    world.collect()
    assert set(before) <= set(line(world))


def test_what_is_older_than_a_lost_manifest_stays(world: GcWorld) -> None:
    days(world, 6)
    keys = sorted(key for key in world.bucket.objects if key.startswith("commits/"))
    del world.bucket.objects[keys[-3]]
    for _ in range(4):
        later(world, 2 * HOUR)
        world.touch()
        world.collect()
    check_whole(world, set(keys) - {keys[-3]})
    # Not for ever.
    later(world, 31 * DAY)
    world.settle(3)
    assert not set(keys) & set(world.bucket.objects)


@pytest.fixture
def rich(world: GcWorld) -> tuple[GcWorld, set[str]]:
    """Save points with gaps between them, a pinned and a forked commit that nothing else keeps, and garbage."""
    days(world, 1)
    held = []
    for name in (b"pinned", b"forked"):
        world.create(name, os.urandom(9000))
        world.commit()
        held.append(world.head().commit)
        world.unlink(name)
        world.commit()
    pin(world.observer(), held[0], "a test", kind=Kind.USER, keep=None, name="thesis")
    mark_fork(world.observer(), held[1], "a-fork", "memory://elsewhere")
    for _ in range(4):
        for _ in range(3):
            later(world, HOUR / 4)
            world.unlink(b"daily")
            world.create(b"daily", os.urandom(9000))
            world.commit()
        later(world, DAY)
        world.collect()
    world.unlink(b"daily")
    world.create(b"daily", os.urandom(9000))
    world.commit()
    store = world.observer()
    kept = set(Survey(store, world.policy, lambda: None).live(world.head().commit, list_objects(store)).commits)
    assert set(held) <= kept
    assert sum(key.startswith("points/") for key in world.bucket.objects) >= 3
    world.stop()
    return world, kept


def tell_one_lie(world: GcWorld, kept: set[str], lie: Callable[[GcWorld], object]) -> None:
    """A collection with a wrong answer in it, and two more without: all that was kept is there, and whole."""
    bucket = dict(world.bucket.objects)
    world.start()
    world.load_all()
    before = [key for key in bucket if key.startswith(("kept/", "forks/"))]
    points = {point.seq for point in save_points(world.observer()) if point.line and point.manifest.key in kept}
    lie(world)
    with suppress(WsfsError):
        world.collect()
    for name in ("get", "list"):
        world.store.__dict__.pop(name, None)
    world.touch()
    world.collect()
    world.touch()
    world.collect()
    check_whole(world, kept)
    assert set(before) <= set(world.bucket.objects)
    assert points <= set(line(world))
    world.crash()
    world.bucket.objects.clear()
    world.bucket.objects.update(bucket)
    world.told.clear()


@pytest.mark.parametrize("how", ["missing", "missing all the time", "cut short"])
def test_one_object_that_is_there_and_not_found(rich: tuple[GcWorld, set[str]], how: str) -> None:
    world, kept = rich

    def lie_about(wanted: str) -> Callable[[GcWorld], object]:
        def install(world: GcWorld) -> None:
            plain, told = world.store.get, False

            def get(key: str, *where: Any) -> Blob:
                nonlocal told
                if key != wanted or (told and how != "missing all the time"):
                    return plain(key, *where)
                told = True
                if how != "cut short":
                    raise NotFoundError("there is no such object")
                blob = plain(key, *where)
                return Blob(blob.data[:-3], blob.etag, blob.age)

            world.store.get = get  # type: ignore[method-assign]

        return install

    for key in sorted(world.bucket.objects):
        if key.startswith(("commits/", "kept/", "meta/")):
            tell_one_lie(world, kept, lie_about(key))


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_an_older_version_of_a_pin_does_not_end_it(rich: tuple[GcWorld, set[str]], nth: int) -> None:
    world, kept = rich
    (name,) = [key for key in world.bucket.objects if key.startswith("kept/")]
    later(world, HOUR)

    def lie(world: GcWorld) -> None:
        plain, asked = world.store.get, 0

        def get(key: str, *where: Any) -> Blob:
            nonlocal asked
            blob = plain(key, *where)
            asked += key == name
            old = dump_json({"commit": pinned(name), "kind": "reader", "keep": 10})
            return Blob(old, "old", blob.age) if key == name and asked == nth else blob

        world.store.get = get  # type: ignore[method-assign]

    tell_one_lie(world, kept, lie)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("lacks", ["all", "the first", "the last", "every other one"])
def test_one_wrong_listing(rich: tuple[GcWorld, set[str]], prefix: str, lacks: str) -> None:
    world, kept = rich

    def lie_in(nth: int) -> Callable[[GcWorld], object]:
        def install(world: GcWorld) -> None:
            plain, asked = world.store.list, 0

            def listed(wanted: str) -> Iterator[ObjectInfo]:
                nonlocal asked
                asked += wanted == prefix
                rows = list(plain(wanted))
                if wanted != prefix or asked != nth:
                    return iter(rows)
                short = {"all": [], "the first": rows[1:], "the last": rows[:-1], "every other one": rows[::2]}
                return iter(short[lacks])

            world.store.list = listed  # type: ignore[method-assign]

        return install

    for nth in (1, 2) if prefix in ("kept/", "forks/") else (1,):
        tell_one_lie(world, kept, lie_in(nth))


def test_a_pin_that_a_listing_lacks_keeps_what_a_young_commit_leads_to(world: GcWorld) -> None:
    """A commit that HEAD does not descend from, too young to go itself: its metadata is older than it."""
    world.create(b"a", os.urandom(20000))
    world.commit()
    world.bury()
    own = decode_manifest(world.store.get(world.head().commit).data)
    other = replace(own, seq=own.seq - 1, nonce="f" * 16, parent="")
    for _ in range(8):
        world.touch()
    world.pass_time(2 * HOUR)
    world.touch()
    world.touch()
    world.store.put(other.key, encode_manifest(other))
    pin(world.observer(), other.key, "a test", keep=None)
    plain, asked = world.store.list, 0

    def listed(prefix: str) -> Iterator[ObjectInfo]:
        nonlocal asked
        asked += prefix == "kept/"
        return iter(()) if prefix == "kept/" and asked == 1 else plain(prefix)

    world.store.list = listed  # type: ignore[method-assign]
    world.collect()
    assert asked > 1
    world.touch()
    world.collect()
    check_whole(world, {other.key})
