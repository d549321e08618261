"""RetryingStore: what is repeated, how often, how long, and what is counted. No real waiting."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from wsfs.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    TransientStoreError,
)
from wsfs.store.memory import MemoryStore
from wsfs.store.retry import RetryingStore, StoreCounts


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Highest(random.Random):
    """No luck: each delay is the longest possible."""

    def uniform(self, a: float, b: float) -> float:
        return b


def down(number: int = 0) -> TransientStoreError:
    return TransientStoreError(f"down {number}")


@pytest.fixture
def fake() -> FakeTime:
    return FakeTime()


@pytest.fixture
def scripted(scripted_store: Any) -> Any:
    return scripted_store(MemoryStore())


def retrying(scripted: Any, fake: FakeTime, **options: Any) -> RetryingStore:
    options.setdefault("rng", Highest())
    return RetryingStore(scripted, clock=fake.clock, sleep=fake.sleep, **options)


@pytest.mark.parametrize("call", ["get", "put", "delete", "list"])
def test_what_is_safe_to_repeat_is_repeated(call: str, scripted: Any, fake: FakeTime) -> None:
    store = retrying(scripted, fake)
    scripted.inner.put("key", b"x")
    scripted.script = [down(), down()]
    match call:
        case "get":
            assert store.get("key").data == b"x"
        case "put":
            store.put("key", b"y")
            assert scripted.inner.get("key").data == b"y"
        case "delete":
            store.delete("key")
            assert list(scripted.inner.list("")) == []
        case "list":
            assert [info.key for info in store.list("")] == ["key"]
    assert scripted.calls == [call] * 3
    assert fake.slept == [0.1, 0.2]


def test_a_plain_put_whose_answer_was_lost_is_repeated(scripted: Any, fake: FakeTime) -> None:
    scripted.script = [("after", down())]
    etag = retrying(scripted, fake).put("key", b"x")
    assert scripted.inner.get("key").etag == etag
    assert scripted.calls == ["put", "put"]


def test_a_replacing_put_is_never_repeated(scripted: Any, fake: FakeTime) -> None:
    scripted.script = [down(7)]
    store = retrying(scripted, fake)
    with pytest.raises(TransientStoreError, match=r"^down 7$"):
        store.put("key", b"x", if_match="e")
    assert scripted.calls == ["put"]
    assert fake.slept == []
    assert store.stats.snapshot() == StoreCounts(puts=1, failures=1, last_error="down 7")


def test_a_creating_put_whose_answer_was_lost_finds_its_own_object(scripted: Any, fake: FakeTime) -> None:
    """The second try is refused because of the first one; what is there is ours."""
    scripted.script = [("after", down())]
    etag = retrying(scripted, fake).put("key", b"x", if_none_match=True)
    assert scripted.inner.get("key").etag == etag
    assert scripted.calls == ["put", "put", "get"]


def test_a_creating_put_that_never_arrived_is_repeated(scripted: Any, fake: FakeTime) -> None:
    scripted.script = [down()]
    etag = retrying(scripted, fake).put("key", b"x", if_none_match=True)
    assert scripted.inner.get("key").etag == etag
    assert scripted.calls == ["put", "put"]


@pytest.mark.parametrize("answer", [None, down()], ids=["refused at once", "refused after a lost answer"])
def test_a_creating_put_takes_nothing_from_others(scripted: Any, fake: FakeTime, answer: Any) -> None:
    scripted.inner.put("key", b"theirs")
    scripted.script = [] if answer is None else [answer]
    with pytest.raises(PreconditionFailedError):
        retrying(scripted, fake).put("key", b"x", if_none_match=True)
    assert scripted.inner.get("key").data == b"theirs"


@pytest.mark.parametrize(
    "error", [NotFoundError("x"), PreconditionFailedError("x"), AccessDeniedError("x"), StoreError("x")]
)
def test_other_errors_are_not_repeated(error: StoreError, scripted: Any, fake: FakeTime) -> None:
    scripted.script = [error]
    with pytest.raises(type(error)) as caught:
        retrying(scripted, fake).get("key")
    assert caught.value is error
    assert scripted.calls == ["get"]


def test_attempts_are_bound(scripted: Any, fake: FakeTime) -> None:
    scripted.script = [down(number) for number in range(10)]
    store = retrying(scripted, fake, attempts=4)
    with pytest.raises(TransientStoreError, match=r"^down 3 \(gave up after 4 tries in 1 s\)$"):
        store.get("key")
    assert fake.slept == [0.1, 0.2, 0.4]
    counts = store.stats.snapshot()
    assert (counts.gets, counts.retries, counts.failures) == (4, 3, 1)
    assert counts.last_error is not None
    assert counts.last_error.startswith("down 3 (gave up")


def test_delays_are_capped_and_so_is_the_exponent(scripted: Any, fake: FakeTime) -> None:
    scripted.script = [down()] * 2000
    store = retrying(scripted, fake, attempts=2000, max_delay=1.0, deadline=1e9)
    with pytest.raises(TransientStoreError):
        store.get("key")
    assert fake.slept[:6] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert len(fake.slept) == 1999


def test_the_deadline_bounds_the_whole_call(scripted: Any, fake: FakeTime) -> None:
    scripted.script = [down()] * 100
    began = fake.now
    with pytest.raises(TransientStoreError, match="gave up"):
        retrying(scripted, fake, attempts=100, deadline=12.0).get("key")
    assert fake.now - began <= 12.0
    assert sum(fake.slept) + 5.0 > 12.0, "it gave up only when the next wait would have passed the deadline"


def test_slow_failures_count_towards_the_deadline(scripted: Any, fake: FakeTime) -> None:
    class Slow(type(scripted)):  # type: ignore[misc]
        def get(self, *arguments: Any) -> Any:
            fake.now += 35
            return super().get(*arguments)

    slow = Slow(MemoryStore(), [down()] * 10)
    with pytest.raises(TransientStoreError, match="after 2 tries in 70 s"):
        retrying(slow, fake).get("key")


def test_jitter_is_full(scripted: Any, fake: FakeTime) -> None:
    for seed in range(40):
        scripted.script = [down()]
        with pytest.raises(NotFoundError):
            retrying(scripted, fake, rng=random.Random(seed)).get("key")
    assert all(0 <= delay <= 0.1 for delay in fake.slept)
    assert min(fake.slept) < 0.02
    assert max(fake.slept) > 0.08


def test_a_listing_goes_on_where_it_broke(scripted: Any, fake: FakeTime) -> None:
    keys = [f"key-{number}" for number in range(20)]
    for key in keys:
        scripted.inner.put(key, b"")
    # It breaks after every few rows, more often in total than the attempts, but never twice without progress.
    scripted.script = [*([None] * 3), down(), *([None] * 6), down(), *([None] * 9), down()]
    store = retrying(scripted, fake, attempts=2)
    assert [info.key for info in store.list("")] == keys
    assert scripted.calls == ["list"] * 4
    counts = store.stats.snapshot()
    assert (counts.lists, counts.retries, counts.failures) == (4, 3, 0)


def test_a_listing_without_progress_gives_up(scripted: Any, fake: FakeTime) -> None:
    scripted.inner.put("key", b"")
    scripted.script = [down()] * 10
    store = retrying(scripted, fake, attempts=3)
    with pytest.raises(TransientStoreError, match="3 tries"):
        list(store.list(""))
    assert store.stats.snapshot().failures == 1


def test_counters(scripted: Any, fake: FakeTime) -> None:
    store = retrying(scripted, fake)
    etag = store.put("key", b"12345")
    store.put("key", b"123", if_match=etag)
    store.get("key")
    store.get("key", 1, 1)
    list(store.list(""))
    store.delete("key")
    with pytest.raises(NotFoundError):
        store.get("key")
    with pytest.raises(PreconditionFailedError):
        store.put("key", b"lost", if_match=etag)
    assert store.stats.snapshot() == StoreCounts(puts=3, gets=3, lists=1, deletes=1, bytes_out=8, bytes_in=4)


def test_counters_lose_nothing_between_threads(fake: FakeTime) -> None:
    store = RetryingStore(MemoryStore())
    threads = [threading.Thread(target=lambda: [store.put("key", b"xy") for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.stats.snapshot() == StoreCounts(puts=4000, bytes_out=8000)


def test_close_ends_a_wait(scripted: Any) -> None:
    scripted.script = [down()] * 5
    waiting = threading.Event()

    class Signals(Highest):
        def uniform(self, a: float, b: float) -> float:
            waiting.set()
            return b

    store = RetryingStore(scripted, base_delay=1000.0, max_delay=1000.0, deadline=1e9, rng=Signals())
    caught: list[Exception] = []

    def get() -> None:
        try:
            store.get("key")
        except StoreError as exc:
            caught.append(exc)

    thread = threading.Thread(target=get)
    thread.start()
    assert waiting.wait(60)
    store.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(caught) == 1
