"""Dies after each thing that init and a repair write, as tests/core/gaps.py lists it: exactly that is left, whoever is
named takes it away, and the next attempt succeeds."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import groupby

import pytest
from gaps import INIT, REPAIR, Left
from garbage import HOUR, GcWorld
from harness import Crash, Store

from wsfs.fsck import check
from wsfs.model import ROOT_INO
from wsfs.repair import repair
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.head import Holder, encode_head, read_head
from wsfs.repo.manifest import SegmentRef, decode_manifest, encode_manifest
from wsfs.repo.segment import encode_segment
from wsfs.repo.workspace import initialise
from wsfs.store.memory import MemoryBucket
from wsfs.sync.lease import this_process
from wsfs.sync.pins import PREFIX as PINS

GONE = replace(this_process(), pid=2**22 + 7)
"""A process of this machine that is dead."""
KINDS = {"meta": "segment", "commits": "manifest", "kept": "pin"}
_ORPHANS = {"packs": Left.PACKS, "meta": Left.SEGMENTS, "commits": Left.MANIFESTS}


def kind_of(key: str) -> str:
    return KINDS.get(key.split("/")[0], key)


def dying_at(store: Store, nth: int) -> list[str]:
    """What the store is asked to write, by kind; the process dies when it wants to write an object of the next one."""
    written: list[str] = []

    def lost(method: str, key: str) -> None:
        if method == "put":
            written.append(kind_of(key))

    def fault(method: str, key: str) -> None:
        if method == "put" and len(list(groupby([*written, kind_of(key)]))) > nth:
            raise Crash

    store.lost, store.fault = lost, fault
    return written


# --- init -------------------------------------------------------------------------------------------------------------


def left_by_init(bucket: MemoryBucket) -> set[Left]:
    found = set()
    if "probe" in bucket.objects:
        found.add(Left.PROBE)
    if "HEAD" not in bucket.objects:
        found |= {_ORPHANS[kind] for key in bucket.objects if (kind := key.split("/")[0]) in _ORPHANS}
        if "FORMAT" in bucket.objects:
            found.add(Left.BEGUN)
    return found


@pytest.mark.parametrize("nth", range(len(INIT.steps) + 1))
def test_init(make: Callable[..., GcWorld], nth: int) -> None:
    bucket = MemoryBucket()
    store = Store(bucket)
    written = dying_at(store, nth)
    with suppress(Crash):
        initialise(store)
    assert [kind for kind, _ in groupby(written)] == list(INIT.steps[:nth])
    assert left_by_init(bucket) == INIT.leaves(INIT.steps[nth - 1] if nth else None)
    if "HEAD" not in bucket.objects:
        initialise(Store(bucket))
    assert left_by_init(bucket) == {Left.PROBE}
    world = make()
    world.bucket.objects.clear()
    world.bucket.objects.update(bucket.objects)
    world.start()
    world.create(b"f", os.urandom(5000))
    world.commit()
    world.settle()
    assert not world.garbage()
    assert world.check()


# --- repair -----------------------------------------------------------------------------------------------------------

WRITTEN = ("HEAD", "HEAD", "HEAD", "segment", "manifest", "pin", "HEAD", "HEAD")
"""For each step of the table what is written in it. HEAD is made anew, taken and renewed, one after the other."""


def damaged(make: Callable[..., GcWorld]) -> GcWorld:
    """A file without its name, and no HEAD."""
    world = make()
    world.start()
    world.create(b"f", os.urandom(5000))
    world.create(b"g", os.urandom(5000))
    world.stop()
    store = world.observer()
    head = read_head(store).head
    manifest = decode_manifest(store.get(head.commit).data)
    segment = encode_segment([(codec.dirent_key(ROOT_INO, b"f"), None)])
    ref = SegmentRef("meta/00000002/altered", len(segment), 1, digest(segment))
    store.put(ref.key, segment)
    altered = replace(manifest, deltas=(*manifest.deltas, ref), seq=manifest.seq + 1, parent=manifest.key)
    encoded = encode_manifest(altered)
    store.put(altered.key, encoded)
    store.put("HEAD", encode_head(replace(head, commit=altered.key, commit_digest=digest(encoded), seq=altered.seq)))
    return world


def left_by_repair(world: GcWorld) -> set[Left]:
    found = {_ORPHANS[key.split("/")[0]] for key in world.garbage()}
    if world.head().holder is not None:
        found.add(Left.HOLDER)
    if any(key.startswith(PINS) for key in world.bucket.objects):
        found.add(Left.PIN)
    return found


def run(world: GcWorld, me: Holder, nth: int) -> list[str]:
    store = world.observer()
    found = check(store)
    written: list[str] = []

    def lost(method: str, key: str) -> None:
        if method == "put":
            written.append(kind_of(key))
            if len(written) == nth:
                store.fault = dead  # nor can what tidies up after an error
                raise Crash

    def dead(_method: str, _key: str) -> None:
        raise Crash

    store.lost = lost
    with suppress(Crash):
        repair(store, found, me)
    return written


@pytest.mark.parametrize("nth", range(1, len(REPAIR.steps) + 1))
def test_repair(make: Callable[..., GcWorld], nth: int) -> None:
    world = damaged(make)
    del world.bucket.objects["HEAD"]
    assert run(world, GONE, nth) == list(WRITTEN[:nth])
    assert left_by_repair(world) == REPAIR.leaves(REPAIR.steps[nth - 1])
    again = check(world.observer())
    assert bool(again.findings) == (nth < REPAIR.steps.index("HEAD swapped") + 1)
    if again.findings:
        repair(world.observer(), again, this_process())
    assert not check(world.observer(), data=True).findings
    world.start()
    world.settle()
    world.stop()
    assert Left.HOLDER not in left_by_repair(world)
    assert any(key.startswith(PINS) for key in world.bucket.objects), "the commit before it is kept for a while"
    world.start()
    world.pass_time(31 * 24 * HOUR)
    world.settle()
    world.stop()
    assert left_by_repair(world) == set()
