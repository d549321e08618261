"""What `wsfs doctor` looks at in a store: credentials, clock, conditional writes, latency and bandwidth."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Iterator
from typing import Final

from wsfs.cli.checks import Finding, failed
from wsfs.cli.output import size
from wsfs.cli.stats import duration_ms
from wsfs.errors import NotFoundError, StoreError, UnsafeStoreError, WsfsError
from wsfs.repo.workspace import FORMAT_KEY
from wsfs.store.base import Describes, Store
from wsfs.store.probe import PROBE_KEY, check_conditional_writes
from wsfs.store.retry import RetryingStore
from wsfs.store.url import parse_file_url

SKEW_SECONDS: Final = 60.0
SKEW_LIMIT_SECONDS: Final = 900.0
"""S3 refuses requests whose clock is further off."""

TRIES: Final = 5
SAMPLE_BYTES: Final = 8 << 20
SLOW_ANSWER_SECONDS: Final = 0.5
SLOW_BYTES: Final = 1e6
_REACH: Final = "check URL, endpoint, network and credentials; 'wsfs config URL' shows which are used"


def store(bare: Store) -> Iterator[Finding]:
    """All about the store behind `bare`. Writes objects named `probe` and `probe-...`, and removes the latter."""
    if isinstance(bare, Describes):
        yield from _identity(bare)
    patient = RetryingStore(bare, attempts=3, deadline=20.0)
    try:
        exists = _exists(patient, FORMAT_KEY)
    except WsfsError as exc:
        yield failed("store", exc, _REACH)
        return
    if exists:
        yield Finding("workspace", "ok", "there is one at this URL")
    else:
        yield Finding("workspace", "warning", "there is none at this URL", "make it with 'wsfs init', or check the URL")
        if bare.url.startswith("file:") and not os.path.isdir(parse_file_url(bare.url)):
            return  # a write would make the directory
    yield _conditions(patient, exists=exists)
    yield _latency(patient)
    yield from _bandwidth(patient)


def _identity(bare: Describes) -> Iterator[Finding]:
    try:
        source = bare.credentials_source()
        if source is None:
            text = "there are none in the environment, in ~/.aws, nor from a role of this machine"
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give this machine a role"
            yield Finding("credentials", "error", text, remedy)
            return
        yield Finding("credentials", "ok", f"found by way of '{source}'")
        ahead = bare.clock_ahead()
    except StoreError as exc:
        yield failed("store", exc, _REACH)
        return
    if ahead is not None:
        yield clock(ahead)


def clock(ahead: float) -> Finding:
    """This machine's clock, so many seconds ahead of the store's."""
    text = f"this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the store"
    if abs(ahead) < SKEW_SECONDS:
        return Finding("clock", "ok", text)
    level: Finding = Finding("clock", "warning", text, "set the clock: timedatectl set-ntp true")
    if abs(ahead) < SKEW_LIMIT_SECONDS:
        return level
    return Finding("clock", "error", f"{text}, which then refuses every request", level.remedy)


def _conditions(patient: Store, *, exists: bool) -> Finding:
    """Whether the store enforces conditional writes. Leaves no probe where there is no workspace."""
    try:
        keep = exists or _exists(patient, PROBE_KEY)
        try:
            check_conditional_writes(patient, thorough=not exists)
        finally:
            if not keep:
                patient.delete(PROBE_KEY)
    except UnsafeStoreError as exc:
        return failed("conditional writes", exc, "use another store, or a newer version of this one")
    except WsfsError as exc:
        return failed("conditional writes", exc, "allow GetObject, PutObject and DeleteObject on the prefix")
    return Finding("conditional writes", "ok", "the store enforces them: two mounts cannot overwrite each other")


def _latency(patient: Store) -> Finding:
    times = []
    try:
        for _ in range(TRIES):
            began = time.perf_counter()
            _exists(patient, FORMAT_KEY)
            times.append(time.perf_counter() - began)
    except WsfsError as exc:
        return failed("latency", exc, _REACH)
    middle = statistics.median(times)
    text = f"a small read takes {duration_ms(middle)}"
    if middle > SLOW_ANSWER_SECONDS:
        return Finding("latency", "warning", text, "use a store, or a region, that is nearer")
    return Finding("latency", "ok", text)


def _bandwidth(patient: Store) -> Iterator[Finding]:
    key = f"{PROBE_KEY}-{secrets.token_hex(8)}"
    data = os.urandom(SAMPLE_BYTES)
    try:
        patient.put(key, b"x")  # whoever may not delete must not be left with a large object
        patient.delete(key)
        try:
            began = time.perf_counter()
            patient.put(key, data)
            sent = time.perf_counter() - began
            began = time.perf_counter()
            same = patient.get(key).data == data
            got = time.perf_counter() - began
        finally:
            patient.delete(key)
    except WsfsError as exc:
        yield failed("bandwidth", exc, "allow GetObject, PutObject and DeleteObject on the prefix")
        return
    if not same:
        yield Finding("bandwidth", "error", "the store returned other bytes than it was given", "do not use this store")
    for way, seconds in (("to", sent), ("from", got)):
        rate = SAMPLE_BYTES / seconds
        text = f"{size(rate)} a second {way} the store, with one connection"
        if rate < SLOW_BYTES:
            yield Finding("bandwidth", "warning", text, "allow stops more time, and save more often: save_interval=")
        else:
            yield Finding("bandwidth", "ok", text)


def _exists(patient: Store, key: str) -> bool:
    try:
        patient.get(key)
    except NotFoundError:
        return False
    return True
