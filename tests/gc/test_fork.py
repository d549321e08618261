"""Garbage of a fork and of its base: neither collection takes what the other one needs."""

from __future__ import annotations

import random
from collections.abc import Callable

from garbage import GcWorld
from harness import Store

from wsfs.fsck import check
from wsfs.repo import fork as forks
from wsfs.repo.head import read_head
from wsfs.store.forked import ForkedStore
from wsfs.store.memory import MemoryBucket
from wsfs.sync.load import read_manifest

BASE, FORK = "memory://base", "memory://fork"


def test_both_churn_and_collect_and_nothing_is_lost(make: Callable[..., GcWorld]) -> None:
    base, fork = make(), make()
    fork.clock, fork.bucket = base.clock, MemoryBucket()
    rng = random.Random(1)

    def raw(url: str) -> Store:
        store = Store(base.bucket if url == BASE else fork.bucket)
        store.url, store._clock = url, base.clock
        return store

    def whole() -> ForkedStore:
        found = forks.open_whole(raw(FORK), None, raw)
        assert isinstance(found, ForkedStore)
        return found

    fork.observer = whole  # type: ignore[method-assign, assignment]
    base.start()
    contents = {b"%d" % number: rng.randbytes(3000) for number in range(24)}
    for name, data in contents.items():
        base.create(name, data)
    base.commit()
    forks.fork(raw(BASE), BASE, read_manifest(raw(BASE), read_head(raw(BASE)).head), raw(FORK))
    fork.start()
    fork.load_all()
    shared = {key for key in base.bucket.objects if key.startswith("packs/")}
    # The base lets go of nearly all of it, the fork of some; both write, and write again what the other one had.
    for name in list(contents)[2:]:
        base.unlink(name)
    for name in list(contents)[::3]:
        fork.unlink(name)
        del contents[name]
    for round_ in range(3):
        for world in (base, fork):
            name, data = b"new%d" % round_, rng.randbytes(3000)
            world.create(name, data)
            world.create(b"again%d" % round_, contents[b"1"])
            if world is fork:
                contents |= {name: data, b"again%d" % round_: contents[b"1"]}
            world.settle()
    deleted: list[str] = []
    base.deleting = fork.deleting = deleted.append
    base.settle()
    fork.settle()
    assert shared <= base.bucket.objects.keys()
    assert not any(key.startswith("packs/") and key in shared for key in fork.bucket.objects)
    for url, store in ((BASE, raw(BASE)), (FORK, whole())):
        assert not check(store, data=True, every_commit=True).findings, url
    fork.crash()
    fork.cache_path = fork.cache_path.with_name("elsewhere")
    fork.start()
    assert {name: fork.content(name) for name in contents} == contents
    # Without the fork the base is free to collect what only that needed.
    mark = next(key for key in base.bucket.objects if key.startswith("forks/"))
    raw(BASE).delete(mark)
    base.settle()
    assert shared - base.bucket.objects.keys()
