"""A crash, a lost answer or a takeover at every step: HEAD and every commit that is kept stay whole."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from garbage import HOUR, GcWorld
from harness import Crash

from wsfs.errors import FencedError, StoreError, TransientStoreError
from wsfs.sync.gc import STEPS

Make = Callable[..., GcWorld]
BLOCK = 4096


def prepare(world: GcWorld) -> dict[bytes, bytes]:
    """A workspace in which the next collection has something to do at every step. Returns what must be in it."""
    rng = random.Random(7)
    kept: dict[bytes, bytes] = {}
    for number in range(12):
        name = b"%02d" % number
        data = rng.randbytes(3 * BLOCK if number % 4 else 5 * BLOCK)
        world.create(name, data)
        kept[name] = data
    world.commit()
    world.create(b"gone", rng.randbytes(6 * BLOCK))
    world.commit()
    world.unlink(b"gone")
    world.bury()
    world.collect()  # condemns what was in `gone`
    for number in (0, 1, 2, 5, 6, 7, 9, 10):  # now what is left of the first packs is sparse
        name = b"%02d" % number
        world.unlink(name)
        del kept[name]
    world.bury()
    return kept


def verify(world: GcWorld, kept: dict[bytes, bytes]) -> None:
    world.check()
    for name, data in kept.items():
        assert world.content(name) == data
    world.settle(8)
    world.check()
    assert not world.garbage()
    world.restart_cold()
    for name, data in kept.items():
        assert world.content(name) == data


def test_the_preparation_reaches_every_step(world: GcWorld) -> None:
    kept = prepare(world)
    seen: list[str] = []
    world.step = seen.append
    world.collect()
    assert list(dict.fromkeys(seen)) == list(STEPS)
    verify(world, kept)


@pytest.mark.parametrize("after", ["the same cache", "no cache", "another host", "the same cache, and new writes"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash(world: GcWorld, make: Make, step: str, after: str) -> None:
    kept = prepare(world)

    def crash(reached: str) -> None:
        if reached == step:
            raise Crash

    world.step = crash
    with pytest.raises(Crash):
        world.collect()
    world.step = lambda _step: None
    world.check()
    if after == "no cache":
        world.restart_cold()
    elif after == "another host":
        world.crash()
        world = make(world)
        world.start()
    else:
        world.restart()
        if "writes" in after:
            # Equal to what was deleted: whether these blocks are still known decides where the rows lead.
            rng = random.Random(7)
            for number in range(12):
                name, data = b"%02d" % number, rng.randbytes(3 * BLOCK if number % 4 else 5 * BLOCK)
                if name not in kept:
                    world.create(name, data)
                    kept[name] = data
            world.commit()
    verify(world, kept)


@pytest.mark.parametrize("nth", [1, 2, 3, 5, 8, 13, 21])
@pytest.mark.parametrize("how", ["before", "after", "applied, but answered with an error"])
def test_a_failure_at_a_deletion(world: GcWorld, how: str, nth: int) -> None:
    kept = prepare(world)
    count = 0

    def fail(_key: str) -> None:
        nonlocal count
        count += 1
        if count == nth:
            if how.startswith("applied"):
                raise TransientStoreError("the answer was lost")
            raise Crash

    if how == "before":
        world.deleting = fail
    else:
        world.deleted = fail
    with suppress(Crash, StoreError):
        world.collect()
        assert count < nth
    world.deleting = world.deleted = lambda _key: None
    world.check()
    if not how.startswith("applied"):
        world.restart()
    verify(world, kept)


@pytest.mark.parametrize("how", ["before", "applied, but answered with an error"])
@pytest.mark.parametrize("what", ["packs/", "HEAD", "commits/", "meta/"])
@pytest.mark.parametrize("method", ["get", "put"])
def test_a_failing_store(world: GcWorld, method: str, what: str, how: str) -> None:
    kept = prepare(world)

    def fail(called: str, key: str) -> None:
        if called == method and key.startswith(what):
            raise TransientStoreError("it failed")

    if how == "before":
        world.store.fault = fail
    else:
        world.store.lost = fail
    with suppress(StoreError):
        world.collect()
    world.store.heal()
    world.check()
    verify(world, kept)


@pytest.mark.parametrize("commits", [0, 1, 4])
@pytest.mark.parametrize("step", STEPS)
def test_a_zombie_that_goes_on_collecting_harms_nobody(
    world: GcWorld, make: Make, monkeypatch: pytest.MonkeyPatch, step: str, commits: int
) -> None:
    """Another host takes over in the middle of a collection, which goes on to its end with what it knew."""
    kept = prepare(world)
    other = make(world)
    assert world.workspace.lease is not None
    # The most stubborn zombie: it does not even look whether it still holds the workspace.
    monkeypatch.setattr(world.workspace.lease, "refresh", lambda: None)
    done = False

    def take_over(reached: str) -> None:
        nonlocal done
        if reached != step or done:
            return
        done = True
        other.start()
        other.load_all()
        rng = random.Random(7)
        for number in range(commits):
            other.create(b"new%d" % number, rng.randbytes(5 * BLOCK))
            other.unlink(b"03") if number == 0 else other.touch()
            other.commit()
        if commits:
            del kept[b"03"]

    world.step = take_over
    world.collect()
    assert done
    world.pass_time(HOUR + 1)
    world.collect()  # and once more
    with suppress(FencedError):
        world.touch()
    world.collect()
    other.check()
    other.commit()
    other.check()
    world.crash()
    verify(other, kept)


def test_a_cache_with_repacked_rows_that_were_never_saved(world: GcWorld, make: Make) -> None:
    """Its rows lead to packs that nobody else knows of. They last until its changes can no longer be saved."""
    kept = prepare(world)

    def crash(reached: str) -> None:
        if reached == "rows changed":
            raise Crash

    world.step = crash
    with pytest.raises(Crash):
        world.collect()
    world.step = lambda _step: None
    world.crash()
    other = make(world)
    other.start()
    for _ in range(4):
        other.pass_time(HOUR + 1)
        other.collect()
    other.stop()
    world.start()
    verify(world, kept)


@pytest.mark.parametrize("seed", range(12 if os.environ.get("WSFS_TEST_ALL") else 4))
def test_random_lives(make: Make, seed: int) -> None:
    """Files, commits, collections, crashes, lost answers and takeovers in any order."""
    rng = random.Random(seed)
    worlds = [make()]
    worlds.append(make(worlds[0]))
    active = 0
    worlds[0].start()
    contents = [rng.randbytes(rng.choice((700, BLOCK, 3 * BLOCK, 7 * BLOCK))) for _ in range(10)]
    trouble: dict[str, Any] = {"in": -1}

    def maybe(*_: str) -> None:
        trouble["in"] -= 1
        if trouble["in"] == 0:
            raise trouble["what"]

    for _ in range(120):
        world = worlds[active]
        if world.dead:
            world.start()
            world.load_all()
        world.step = world.reached = world.deleting = world.deleted = maybe
        action = rng.choices(
            ("write", "unlink", "commit", "collect", "time", "crash", "cold", "move", "trouble", "truncate"),
            (30, 14, 20, 20, 14, 2, 1, 3, 6, 5),
        )[0]
        names = [name for name in world.listing() if name.startswith(b"f")]
        try:
            if action == "write":
                name = b"f%d" % rng.randrange(12)
                if name in names:
                    world.unlink(name)
                world.create(name, rng.choice(contents))
            elif action == "truncate" and names:
                world.truncate(world.file(rng.choice(names)), rng.randrange(5 * BLOCK))
            elif action == "unlink" and names:
                world.unlink(rng.choice(names))
            elif action == "commit":
                world.commit()
            elif action == "collect":
                world.collect()
                world.check()
            elif action == "time":
                world.pass_time(rng.choice((HOUR / 5, HOUR / 2, HOUR + 1, 3 * HOUR)))
            elif action == "crash":
                world.crash()
            elif action == "cold":
                world.restart_cold()
            elif action == "move":
                world.crash()
                active = 1 - active
            else:
                what = rng.choice((Crash(), TransientStoreError("lost")))
                trouble.update({"in": rng.randrange(1, 25), "what": what})
        except Crash:
            world.crash()
        except StoreError:
            pass
        finally:
            trouble["in"] = -1 if action in ("commit", "collect") else trouble["in"]
        worlds[0].check()
    world = worlds[active]
    if world.dead:
        shutil.rmtree(world.cache_path, ignore_errors=True)
        world.start()
    world.step = world.reached = world.deleting = world.deleted = lambda _: None
    world.settle(8)
    world.check()
    assert not world.garbage()
