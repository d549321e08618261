"""Trying again, with backoff, and counting what goes to the store.

Repeating is safe where doing a thing twice is doing it once: reads, deletes, listings, and plain writes,
which are of immutable objects. After a timeout a conditional write may have happened, and a second try would lose
against the first. So what must not exist is read back when a later try is refused: our own bytes mean success. What
replaces a version is never repeated here: whoever made that must find out who won.
"""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from wsfs.errors import NotFoundError, PreconditionFailedError, StoreError, TransientStoreError
from wsfs.store.base import Blob, ObjectInfo, Store

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """What was asked of a store. Requests count each try; bytes count what arrived; `failures` are calls that
    gave up.

    An object that is missing and a condition that does not hold are answers, not failures.
    """

    puts: int = 0
    gets: int = 0
    lists: int = 0
    deletes: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    retries: int = 0
    failures: int = 0
    last_error: str | None = None


SMALL = 64 * 1024
"""A request that moves no more than this takes as long as the way to the store and back."""

_NEWEST_SHARE = 0.2


class StoreStats:
    """Counters that any thread may add to and read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts = StoreCounts()
        self.latency: float | None = None
        """Seconds that small requests took lately."""

    def took(self, seconds: float) -> None:
        """A small request has been answered."""
        with self._lock:
            before = seconds if self.latency is None else self.latency
            self.latency = before + _NEWEST_SHARE * (seconds - before)

    def snapshot(self) -> StoreCounts:
        """All counters at one instant."""
        with self._lock:
            return self._counts

    def add(self, *, error: StoreError | None = None, **amounts: int) -> None:
        """Add to the named counters, and remember `error` as the last one."""
        with self._lock:
            now = {name: getattr(self._counts, name) + amount for name, amount in amounts.items()}
            last = self._counts.last_error if error is None else str(error)
            self._counts = dataclasses.replace(self._counts, **now, last_error=last)


class Backoff:
    """The waits between the tries of one call: full jitter, doubling, bound in number and in time.

    Create one per call; `failed` decides after each failure.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._began = policy.clock()
        self._tries = 0

    def failed(self, error: TransientStoreError) -> None:
        """Wait, so that the caller can try again; or raise TransientStoreError if it is enough."""
        policy = self._policy
        self._tries += 1
        spent = policy.clock() - self._began
        # The exponent is capped as well: 2.0**1024 overflows, and somebody will want a million attempts.
        ceiling = min(policy.max_delay, policy.base_delay * 2.0 ** min(self._tries - 1, 60))
        delay = policy.rng.uniform(0.0, ceiling)
        if self._tries >= policy.attempts or spent + delay > policy.deadline:
            if self._tries == 1:
                raise error
            raise TransientStoreError(f"{error} (gave up after {self._tries} tries in {spent:.0f} s)") from error
        policy.sleep(delay)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to keep trying: at most `attempts` tries, and no new one `deadline` seconds after the first
    began.

    Delays are uniform in [0, min(max_delay, base_delay * 2^n)] seconds: with jitter less than full, the
    clients that an outage synchronised would come back together. A try under way is bound by the store's own
    timeouts.
    """

    attempts: int
    base_delay: float
    max_delay: float
    deadline: float
    clock: Callable[[], float]
    sleep: Callable[[float], object]
    rng: random.Random

    def call(self, function: Callable[[], T], on_retry: Callable[[TransientStoreError], None] | None = None) -> T:
        """`function()`, called again after TransientStoreError. Raises what it raises in the end."""
        backoff = Backoff(self)
        while True:
            try:
                return function()
            except TransientStoreError as exc:
                backoff.failed(exc)
                if on_retry is not None:
                    on_retry(exc)


class RetryingStore:
    """A store that tries again. As thread-safe as `inner`; calls block up to `deadline` and one more request.

    `sleep` takes seconds; the default returns early when the store is closed, so that a shutdown need not
    wait.
    """

    def __init__(
        self,
        inner: Store,
        *,
        attempts: int = 6,
        base_delay: float = 0.1,
        max_delay: float = 5.0,
        deadline: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.inner = inner
        self.url = inner.url
        self.stats = StoreStats()
        self._closed = threading.Event()
        self.policy = RetryPolicy(
            attempts=attempts,
            base_delay=base_delay,
            max_delay=max_delay,
            deadline=deadline,
            clock=clock,
            sleep=self._closed.wait if sleep is None else sleep,
            rng=random.Random() if rng is None else rng,  # noqa: S311 - spreads load, guards no secret
        )

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """See `base.Store.get`."""

        def once() -> Blob:
            self.stats.add(gets=1)
            began = self.policy.clock()
            blob = self.inner.get(key, start, length)
            if len(blob.data) <= SMALL:
                self.stats.took(self.policy.clock() - began)
            return blob

        blob = self._retried(once)
        self.stats.add(bytes_in=len(blob.data))
        return blob

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        """See `base.Store.put`. With `if_match` it is sent once only.

        TransientStoreError from that leaves open whether it happened: read back. With `if_none_match` nobody else may
        write the same bytes, or it does not matter who did.
        """

        def once() -> str:
            self.stats.add(puts=1)
            began = self.policy.clock()
            etag = self.inner.put(key, data, if_match=if_match, if_none_match=if_none_match)
            if len(data) <= SMALL:
                self.stats.took(self.policy.clock() - began)
            return etag

        if if_match is not None:
            with_condition = dataclasses.replace(self.policy, attempts=1)
            etag = self._retried(once, with_condition)
        elif if_none_match:
            etag = self._created(key, data, once)
        else:
            etag = self._retried(once)
        self.stats.add(bytes_out=len(data))
        return etag

    def _created(self, key: str, data: bytes, once: Callable[[], str]) -> str:
        tries = 0

        def create() -> str:
            nonlocal tries
            tries += 1
            try:
                return once()
            except PreconditionFailedError:
                if tries == 1:
                    raise
                self.stats.add(gets=1)
                found = self.inner.get(key)
                if found.data != data:
                    raise
                return found.etag

        return self._retried(create)

    def delete(self, key: str) -> None:
        """See `base.Store.delete`."""

        def once() -> None:
            self.stats.add(deletes=1)
            self.inner.delete(key)

        self._retried(once)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `base.Store.list`. After a failure the listing starts again, without the keys that were handed
        out.

        Attempts and deadline count from the last new key: a long listing may take long.
        """
        seen: set[str] = set()
        backoff = Backoff(self.policy)
        while True:
            self.stats.add(lists=1)
            try:
                for info in self.inner.list(prefix):
                    if info.key not in seen:
                        seen.add(info.key)
                        yield info
                        backoff = Backoff(self.policy)
            except TransientStoreError as exc:
                self._wait(backoff, exc)
            except StoreError as exc:
                self._count(exc)
                raise
            else:
                return

    def close(self) -> None:
        """See `base.Store.close`. Calls that wait to try again do so at once, and fail."""
        self._closed.set()
        self.inner.close()

    def _retried(self, function: Callable[[], T], policy: RetryPolicy | None = None) -> T:
        try:
            return (policy or self.policy).call(function, lambda exc: self.stats.add(retries=1, error=exc))
        except StoreError as exc:
            self._count(exc)
            raise

    def _wait(self, backoff: Backoff, error: TransientStoreError) -> None:
        try:
            backoff.failed(error)
        except StoreError as exc:
            self._count(exc)
            raise
        self.stats.add(retries=1, error=error)

    def _count(self, error: StoreError) -> None:
        if not isinstance(error, NotFoundError | PreconditionFailedError):
            self.stats.add(failures=1, error=error)
