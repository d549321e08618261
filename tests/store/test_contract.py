"""Every rule of wsfs.store.base, for every store."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from wsfs.errors import NotFoundError, PreconditionFailedError, StoreError
from wsfs.store.base import Store

THREADS = 8
ROUNDS = 12


def winners(attempt: Callable[[int], str]) -> list[str]:
    """The etags of those of 8 simultaneous attempts that were not refused."""
    barrier = threading.Barrier(THREADS)

    def one(number: int) -> str | None:
        barrier.wait()
        try:
            return attempt(number)
        except PreconditionFailedError:
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return [etag for etag in pool.map(one, range(THREADS)) if etag is not None]


def test_a_written_object_is_read_back(store: Store) -> None:
    data = os.urandom(5000)
    etag = store.put("packs/00/1-1", data)
    blob = store.get("packs/00/1-1")
    assert (blob.data, blob.etag) == (data, etag)
    assert '"' not in etag


def test_an_empty_object_is_an_object(store: Store) -> None:
    etag = store.put("empty", b"")
    assert store.get("empty").data == b""
    assert store.get("empty", 0, 10).data == b""
    assert store.get("empty", 0, 10).etag == etag
    assert [(info.key, info.size) for info in store.list("")] == [("empty", 0)]


def test_a_big_object(store: Store) -> None:
    data = os.urandom(1 << 20) * 20
    store.put("big", data)
    assert store.get("big").data == data
    assert store.get("big", 19 << 20, 2 << 20).data == data[19 << 20 :]


def test_missing_objects_are_not_found(store: Store) -> None:
    for arguments in ((), (0, 10), (5, None), (0, 0)):
        with pytest.raises(NotFoundError, match="missing"):
            store.get("missing", *arguments)
    store.put("here/below", b"x")
    with pytest.raises(NotFoundError):
        store.get("here")
    with pytest.raises(NotFoundError):
        store.get("here/below/deeper")


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, 10),
        (0, 4),
        (3, 4),
        (9, 1),
        (9, 5),
        (0, 100),
        (10, 1),
        (50, 5),
        (3, 0),
        (50, 0),
        (4, None),
        (10, None),
        (0, None),
        (None, 4),
        (None, 0),
    ],
)
def test_ranges(store: Store, start: int | None, length: int | None) -> None:
    data = b"0123456789"
    etag = store.put("ten", data)
    first = start or 0
    blob = store.get("ten", start, length)
    assert blob.data == (data[first:] if length is None else data[first : first + length])
    assert blob.etag == etag


@pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, -1), (-5, None)])
def test_negative_ranges_are_refused(store: Store, start: int, length: int | None) -> None:
    store.put("ten", b"0123456789")
    with pytest.raises(StoreError, match="negative"):
        store.get("ten", start, length)


def test_put_replaces(store: Store) -> None:
    first = store.put("key", b"one")
    second = store.put("key", b"two")
    assert first != second
    assert store.get("key").data == b"two"
    assert store.get("key").etag == second


def test_put_if_none_match_creates_once(store: Store) -> None:
    etag = store.put("key", b"one", if_none_match=True)
    for data in (b"two", b"one"):
        with pytest.raises(PreconditionFailedError):
            store.put("key", data, if_none_match=True)
    assert store.get("key").data == b"one"
    assert store.get("key").etag == etag
    store.delete("key")
    store.put("key", b"three", if_none_match=True)
    assert store.get("key").data == b"three"


def test_put_if_match_replaces_only_that_version(store: Store) -> None:
    first = store.put("key", b"one")
    second = store.put("key", b"two", if_match=first)
    assert store.get("key").etag == second
    with pytest.raises(PreconditionFailedError):
        store.put("key", b"three", if_match=first)
    assert store.get("key").data == b"two"


def test_put_if_match_does_not_create(store: Store) -> None:
    etag = store.put("other", b"x")
    with pytest.raises(PreconditionFailedError):
        store.put("key", b"one", if_match=etag)
    with pytest.raises(NotFoundError):
        store.get("key")
    store.put("key", b"one")
    current = store.get("key").etag
    store.delete("key")
    with pytest.raises(PreconditionFailedError):
        store.put("key", b"two", if_match=current)


def test_of_concurrent_swaps_exactly_one_wins(store: Store) -> None:
    etag = store.put("HEAD", b"start")
    for round_ in range(ROUNDS):
        current = etag
        won = winners(lambda number, r=round_, e=current: store.put("HEAD", b"%d by %d" % (r, number), if_match=e))
        assert len(won) == 1
        etag = won[0]
        assert store.get("HEAD").etag == etag


def test_of_concurrent_creations_exactly_one_wins(store: Store) -> None:
    for round_ in range(ROUNDS):
        key = f"commits/{round_}"
        won = winners(lambda number, k=key: store.put(k, b"by %d" % number, if_none_match=True))
        assert len(won) == 1
        assert store.get(key).etag == won[0]


def test_a_reader_sees_one_version_whole(store: Store) -> None:
    versions = [bytes([65 + number]) * (100_000 + number) for number in range(4)]
    store.put("key", versions[0])
    stop = threading.Event()

    def write() -> None:
        for turn in range(1, 60):
            store.put("key", versions[turn % 4])
        stop.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not stop.is_set() and not writing.done():
            assert store.get("key").data in versions
        writing.result()


def test_delete_is_idempotent(store: Store) -> None:
    store.put("a/b", b"x")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    store.delete("a")
    with pytest.raises(NotFoundError):
        store.get("a/b")
    assert list(store.list("")) == []


def test_list_by_prefix(store: Store) -> None:
    keys = ["FORMAT", "packs/00/1-1", "packs/00/1-10", "packs/01/1-2", "packs-not", "meta/1/1"]
    for number, key in enumerate(keys):
        store.put(key, b"x" * number)

    def listed(prefix: str) -> list[str]:
        return sorted(info.key for info in store.list(prefix))

    assert listed("") == sorted(keys)
    assert listed("packs/") == ["packs/00/1-1", "packs/00/1-10", "packs/01/1-2"]
    assert listed("packs/0") == ["packs/00/1-1", "packs/00/1-10", "packs/01/1-2"]
    assert listed("packs/00/1-1") == ["packs/00/1-1", "packs/00/1-10"]
    assert listed("packs") == ["packs-not", "packs/00/1-1", "packs/00/1-10", "packs/01/1-2"]
    assert listed("nothing/") == []
    assert {info.key: info.size for info in store.list("")} == {key: n for n, key in enumerate(keys)}


def test_list_more_than_a_page(store: Store, request: pytest.FixtureRequest) -> None:
    if "s3" in request.node.callspec.params.values():
        pytest.skip("1,100 writes to the test server take long; paging is in test_s3.py")
    keys = {f"packs/{number % 7:02}/1-{number}" for number in range(1100)}
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    listed = [info.key for info in store.list("packs/")]
    assert len(listed) == 1100
    assert set(listed) == keys


def test_ages_are_small_and_not_negative(store: Store) -> None:
    store.put("key", b"x")
    age = store.get("key").age
    assert age is not None
    assert 0 <= age < 60
    assert [0 <= info.age < 60 for info in store.list("")] == [True]
    (first,) = [info.written for info in store.list("")]
    assert first is not None
    assert [info.written for info in store.list("")] == [first], "always the same moment, whenever it is asked for"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "/abs",
        "end/",
        "a//b",
        ".",
        "..",
        "a/../b",
        "../a",
        "a/./b",
        ".tmp/x",
        ".lock",
        "a b",
        "a\nb",
        "é",
        "a\x00b",
        "a?b",
        "a%2Fb",
        "x" * 900,
        "a/" + "y" * 250,
    ],
)
def test_unsafe_keys_are_refused(store: Store, key: str) -> None:
    for call in (store.get, store.delete, lambda key: store.put(key, b"x")):
        with pytest.raises(StoreError, match="not an object key"):
            call(key)


@pytest.mark.parametrize("prefix", ["/", "..", "a/../", ".tmp/", "a//", "a b"])
def test_unsafe_prefixes_are_refused(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError, match="not the beginning"):
        store.list(prefix)


def test_a_closed_store_refuses(store: Store) -> None:
    store.put("key", b"x")
    store.close()
    store.close()
    for call in (
        lambda: store.get("key"),
        lambda: store.put("key", b"y"),
        lambda: store.delete("key"),
        lambda: store.list(""),
    ):
        with pytest.raises(StoreError, match="closed"):
            call()
