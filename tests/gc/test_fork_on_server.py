"""A fork and its base on a real S3 server: both churn and collect, and neither takes what the other one needs."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from garbage import Clock, GcWorld

from wsfs.fsck import check
from wsfs.repo import fork as forks
from wsfs.repo.head import read_head
from wsfs.repo.workspace import initialise
from wsfs.store.base import Blob, ObjectInfo, Store
from wsfs.store.retry import RetryingStore
from wsfs.store.s3 import S3Store
from wsfs.sync.load import read_manifest

BUCKET = "wsfs-tests"


class Aged:
    """A store whose objects are as old as they are, and older by what a test's clock was moved on since they were
    written."""

    def __init__(self, inner: Store, clock: Clock, written: dict[str, float]) -> None:
        self.inner = inner
        self.url = inner.url
        self._clock = clock
        self._written = written

    def _age(self, key: str) -> float:
        return self._clock.added - self._written.get(f"{self.url}/{key}", 0.0)

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        found = self.inner.get(key, start, length)
        return Blob(found.data, found.etag, None if found.age is None else found.age + self._age(key))

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        etag = self.inner.put(key, data, if_match=if_match, if_none_match=if_none_match)
        self._written[f"{self.url}/{key}"] = self._clock.added
        return etag

    def delete(self, key: str) -> None:
        self.inner.delete(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        for info in self.inner.list(prefix):
            yield replace(info, age=info.age + self._age(info.key))

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def open_bare() -> Iterator[Callable[[str], Store]]:
    """Opens a prefix of our bucket; what is in it is gone at the end."""
    endpoint = os.environ.get("WSFS_TEST_S3_ENDPOINT")
    if not endpoint:
        pytest.skip("WSFS_TEST_S3_ENDPOINT names no S3 server")
    import boto3

    client = boto3.session.Session().client("s3", endpoint_url=endpoint)
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    client.close()
    opened: dict[str, Store] = {}

    def one(name: str) -> Store:
        if name not in opened:
            opened[name] = RetryingStore(S3Store(BUCKET, f"forks-{os.getpid()}/{name}", endpoint_url=endpoint))
        return opened[name]

    yield one
    for store in opened.values():
        for info in list(store.list("")):
            store.delete(info.key)
        store.close()


def names(store: Store, prefix: str) -> set[str]:
    return {info.key for info in store.list(prefix)}


@pytest.mark.s3
@pytest.mark.timeout(600)
def test_both_churn_and_collect_on_a_server(make: Callable[..., GcWorld], open_bare: Callable[[str], Store]) -> None:
    base, fork = make(), make()
    fork.clock = base.clock
    written: dict[str, float] = {}
    rng = random.Random(2)
    base_url = open_bare("base").url

    def raw(url: str) -> Aged:
        return Aged(open_bare("base" if url == base_url else "fork"), base.clock, written)

    def whole(url: str) -> Store:
        return forks.open_whole(raw(url), None, raw)

    base.observer = lambda: whole(base_url)  # type: ignore[method-assign, assignment, return-value]
    fork.observer = lambda: whole("fork")  # type: ignore[method-assign, assignment, return-value]
    initialise(raw(base_url), owner=(1000, 1000))
    base.start()
    contents = {b"%d" % number: rng.randbytes(3000) for number in range(24)}
    for name, data in contents.items():
        base.create(name, data)
    base.commit()
    forks.fork(whole(base_url), base_url, read_manifest(raw(base_url), read_head(raw(base_url)).head), raw("fork"))
    fork.start()
    fork.load_all()
    shared = names(raw(base_url), "packs/")
    for name in list(contents)[2:]:
        base.unlink(name)
    for name in list(contents)[::3]:
        fork.unlink(name)
        del contents[name]
    for world in (base, fork):
        name, data = b"new", rng.randbytes(3000)
        world.create(name, data)
        world.create(b"again", contents[b"1"])
        if world is fork:
            contents |= {name: data, b"again": contents[b"1"]}
        world.settle()
    assert shared <= names(raw(base_url), "packs/")
    assert not shared & names(raw("fork"), "packs/")
    for url in (base_url, "fork"):
        assert not check(whole(url), data=True, every_commit=True).findings, url
    fork.crash()
    fork.cache_path = fork.cache_path.with_name("elsewhere")
    fork.start()
    assert {name: fork.content(name) for name in contents} == contents
    # Without the fork the base is free to collect what only that needed.
    (mark,) = names(raw(base_url), "forks/")
    raw(base_url).delete(mark)
    base.settle()
    assert shared - names(raw(base_url), "packs/")
    assert not check(whole(base_url), data=True, every_commit=True).findings
