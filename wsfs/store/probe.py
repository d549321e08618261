"""Whether a store really enforces conditional writes: some accept If-Match and If-None-Match and ignore them.

Everything that keeps two writers apart rests on these two conditions, so wsfs tries them on an object of
their own, `probe`, at init (thoroughly) and again at every mount: a bucket can move, and a gateway can be
downgraded.

The probe's content also remembers how this store wants If-Match written, because only init finds that out.
"""

from __future__ import annotations

import json
import random
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol, runtime_checkable

from wsfs.errors import (
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    UnsafeStoreError,
)
from wsfs.store.base import Blob, Store
from wsfs.store.forked import ForkedStore
from wsfs.store.retry import RetryingStore, RetryPolicy
from wsfs.store.sealed import SealedStore

PROBE_KEY = "probe"
_NO_SUCH_ETAG = "00000000000000000000000000000000"
_ROUNDS = 5
_STYLES: tuple[Literal["bare", "quoted"], ...] = ("bare", "quoted")


@runtime_checkable
class NamesVersions(Protocol):
    """A store that can write an etag in If-Match with and without quotes."""

    etag_style: Literal["bare", "quoted"]


def create_probe(store: Store) -> None:
    """Make sure that the probe object exists. Idempotent; blocks for a round trip; raises as `put` does."""
    try:
        _policy(store).call(lambda: store.put(PROBE_KEY, _content(store), if_none_match=True))
    except PreconditionFailedError:
        return


def check_conditional_writes(store: Store, *, thorough: bool = False) -> None:
    """Raise UnsafeStoreError unless the store refuses both conditional writes that it must refuse.

    With `thorough` it must also accept the one that it must accept, and `etag_style` is settled by that;
    without, it is taken from what the thorough check left in the probe. Creates the probe if it is missing.
    Blocks for one round trip (`thorough`: five) and repeats requests that fail on the way. Also raises as
    `Store.put` and `Store.get` do.
    """
    versions = _versions(store)
    if not thorough:
        try:
            _check_refusals(store, _NO_SUCH_ETAG, adopt=True)
        except UnsafeStoreError:
            # A store that ignores bare ETags and enforces quoted ones has just overwritten the probe that
            # said so. It passed at init, so it gets the same chance again.
            if versions is None:
                raise
        else:
            return
    create_probe(store)
    if versions is None:
        _check_refusals(store, _swap(store))
        return
    failures: list[UnsafeStoreError] = []
    for style in _STYLES:
        versions.etag_style = style
        try:
            _check_refusals(store, _swap(store))
        except UnsafeStoreError as exc:
            failures.append(exc)
        else:
            return
    raise failures[0]


def _check_refusals(store: Store, wrong: str, *, adopt: bool = False) -> None:
    """Raise UnsafeStoreError if the store accepts If-Match `wrong`, or If-None-Match where an object is.

    With `adopt`, use the etag style that the probe names, if it differs, and try in that.
    """
    created, replaced, probe = _try_forbidden(store, wrong)
    if adopt and _adopt_style(store, probe()):
        # Only once: a store that ignored the first style has let us overwrite the probe in it.
        created, replaced, _ = _try_forbidden(store, wrong)
    if replaced():
        raise _unsafe(store, "an If-Match that names no version of the object")
    # One success may mean that the probe was missing. It exists since then: a second one has no excuse.
    if created() and _try_forbidden(store, wrong)[0]():
        raise _unsafe(store, "If-None-Match: * on an object that exists")


def _try_forbidden(
    store: Store, wrong: str
) -> tuple[Callable[[], bool], Callable[[], bool], Callable[[], Blob | None]]:
    """Make both writes, and read the probe, at once.

    Whether If-None-Match succeeded, whether If-Match did, and the probe, each as a call that raises what the
    request raised: in the wrong etag style that is of no interest.
    """
    content = _content(store)
    policy = _policy(store)
    with ThreadPoolExecutor(3, "wsfs-probe") as pool:
        probe = pool.submit(policy.call, lambda: _read(store))
        create = pool.submit(policy.call, lambda: _succeeds(store, content, if_none_match=True))
        replace = pool.submit(policy.call, lambda: _succeeds(store, content, if_match=wrong))
    return create.result, replace.result, probe.result


def _swap(store: Store) -> str:
    """Replace the probe by compare-and-swap, in the present etag style; the etag that is stale from then on.

    Raises UnsafeStoreError if that is impossible.
    """
    policy = _policy(store)
    before = policy.call(lambda: store.get(PROBE_KEY))
    for _ in range(_ROUNDS):
        content = _content(store)
        etag = _replace(store, policy, content, before.etag)
        after = policy.call(lambda: store.get(PROBE_KEY))
        if etag is not None:
            if etag == before.etag or (after.data == content and after.etag != etag):
                raise UnsafeStoreError(
                    f"{store.url}: a write does not return the new version's ETag, so versions cannot be "
                    f"told apart; use a store that implements conditional writes"
                )
            return before.etag
        if after.etag == before.etag:
            raise UnsafeStoreError(
                f"{store.url}: the store refuses If-Match even with the right ETag, so nothing could ever be "
                f"committed; use a store that implements conditional writes"
            )
        # Somebody else probes this URL too, or our request was repeated and lost against its own first try.
        before = after
    raise StoreError(f"{store.url}: the object {PROBE_KEY} keeps changing; find the other program that writes it")


def _replace(store: Store, policy: RetryPolicy, content: bytes, etag: str) -> str | None:
    """The probe's new etag, or None if the store refused the condition or could not even parse it."""
    try:
        return policy.call(lambda: store.put(PROBE_KEY, content, if_match=etag))
    except StoreError as exc:
        if isinstance(exc, PreconditionFailedError) or type(exc) is StoreError:
            return None
        raise


def _succeeds(store: Store, content: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> bool:
    try:
        store.put(PROBE_KEY, content, if_match=if_match, if_none_match=if_none_match)
    except PreconditionFailedError:
        return False
    return True


def _read(store: Store) -> Blob | None:
    try:
        return store.get(PROBE_KEY)
    except NotFoundError:
        return None


def _content(store: Store) -> bytes:
    """Never the same twice, so that each write is a version of its own."""
    record = {"wsfs": "probe", "etag_style": _style(store), "nonce": secrets.token_hex(16)}
    return json.dumps(record).encode()


def _versions(store: Store) -> NamesVersions | None:
    while isinstance(store, RetryingStore | SealedStore | ForkedStore):
        store = store.inner
    return store if isinstance(store, NamesVersions) else None


def _style(store: Store) -> str:
    versions = _versions(store)
    return "bare" if versions is None else versions.etag_style


def _adopt_style(store: Store, probe: Blob | None) -> bool:
    """Use the etag style that the probe names, if it is readable: it is only a memo. Whether that is another."""
    versions = _versions(store)
    if versions is None or probe is None:
        return False
    try:
        style = json.loads(probe.data)["etag_style"]
    except (ValueError, TypeError, KeyError):
        return False
    if style not in _STYLES or style == versions.etag_style:
        return False
    versions.etag_style = style
    return True


def _policy(store: Store) -> RetryPolicy:
    """How to repeat the probe's own writes: all are harmless to repeat, but RetryingStore cannot know."""
    if isinstance(store, SealedStore | ForkedStore):
        return _policy(store.inner)
    if isinstance(store, RetryingStore):
        return store.policy
    return RetryPolicy(
        attempts=4,
        base_delay=0.1,
        max_delay=2.0,
        deadline=30.0,
        clock=time.monotonic,
        sleep=threading.Event().wait,
        rng=random.Random(),  # noqa: S311 - spreads load, guards no secret
    )


def _unsafe(store: Store, condition: str) -> UnsafeStoreError:
    return UnsafeStoreError(
        f"{store.url}: the store accepted a write with {condition}: it does not enforce conditional writes, "
        f"so two writers could destroy each other's data; use a store (or a version of it) that does"
    )
