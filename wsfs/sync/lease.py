"""Who may write: the holder of HEAD's epoch.

A mount takes the workspace by swapping HEAD to the next epoch. Whoever held it before can then no longer swap, so it is
fenced, whatever its clock says. Clocks only decide how politely a mount asks: HEAD's age comes from the store's own
clock, and a holder that renewed it lately is refused instead of taken over.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from wsfs.errors import FencedError, LeaseHeldError, StoreError, SyncFailedError, WsfsError
from wsfs.repo.frame import digest
from wsfs.repo.head import Head, HeadVersion, Holder, LateError, State, not_ours, read_head, swap_head
from wsfs.repo.ledger import Ledger
from wsfs.repo.manifest import Manifest, encode_manifest
from wsfs.repo.workspace import new_nonce, timestamp
from wsfs.store.base import Store

RENEW_SECONDS: Final = 30.0
SILENT_SECONDS: Final = 120.0
"""A holder that has not renewed HEAD for this long, four times its interval, is taken for dead."""

PAST: Final = 1000
"""So many versions of HEAD that we have replaced are known again: those of eight hours."""


def boot_id() -> str:
    """A number that changes with each boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def this_process(clock: Callable[[], float] = time.time, *, cache: str = "") -> Holder:
    """Us, as a holder. `cache` names a lock that we have: `CacheDirectory.lock_id`."""
    # Process ids mean something within one boot and one pid namespace (a container) only.
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    return Holder(socket.gethostname(), os.getpid(), f"{boot_id()}/{namespace}", timestamp(clock()), cache)


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a mount cannot have the workspace now; `worth` says whether the holder is on its way out."""

    reason: str
    worth: bool


def obstacle(version: HeadVersion, me: Holder) -> Waiting | None:
    """What keeps this mount from taking the workspace politely; None if nothing does."""
    head, holder = version.head, version.head.holder
    if holder is None or head.state in (State.STOPPED, State.ERROR):
        return None
    here = holder.boot_id == me.boot_id and holder.host == me.host
    if here and (holder.pid == me.pid or not _alive(holder.pid)):
        return None  # it crashed here: nothing of it can write any more
    if holder.cache and holder.cache == me.cache and _boot(holder) == _boot(me):
        return None  # it had the lock that we have now, so it has ended, in whatever container
    if version.age is not None and version.age > SILENT_SECONDS:
        return None
    age = "an unknown time" if version.age is None else f"{version.age:.0f} s"
    who = f"{holder.host} (process {holder.pid}, mounted since {holder.since}, last heard of {age} ago)"
    if head.state == State.STOPPING:
        return Waiting(f"{who} is still saving it", worth=True)
    return Waiting(f"it is mounted on {who}", worth=False)


def _boot(holder: Holder) -> str:
    return holder.boot_id.partition("/")[0]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # A process that has exited and was not waited for holds nothing.
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in ("Z", "X")


class Lease:
    """The right to commit. Thread safe: one swap of HEAD at a time."""

    def __init__(
        self, store: Store, version: HeadVersion, holder: Holder, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._grown = 0
        self._store = store
        self._version = version
        self._holder = holder
        self._lock = threading.Lock()
        self._fenced: FencedError | None = None
        self._unanswered: dict[str, int] = {}
        """Nonces of swaps whose outcome is not known, each with the growth that it told the ledger."""
        self._past: deque[str] = deque(maxlen=PAST)
        self._released = False

    @classmethod
    def take(cls, store: Store, version: HeadVersion, me: Holder, *, takeover: bool) -> Lease:
        """Swap HEAD to the next epoch. Raises LeaseHeldError when another mount has it and `takeover` is not set."""
        blocked = obstacle(version, me)
        if blocked is not None and not takeover:
            raise LeaseHeldError(
                f"{store.url} cannot be mounted: {blocked.reason}. Stop it there, or cut it off by mounting with"
                " -o takeover"
            )
        head = replace(
            version.head,
            epoch=version.head.epoch + 1,
            nonce=new_nonce(),
            state=State.STARTING,
            reason="",
            holder=me,
        )
        try:
            return cls(store, swap_head(store, version, head), me)
        except FencedError as exc:
            raise LeaseHeldError(f"{store.url} cannot be mounted: another mount took it at the same moment") from exc

    @property
    def head(self) -> Head:
        """HEAD as this mount last wrote or read it."""
        return self._version.head

    @property
    def epoch(self) -> int:
        return self._version.head.epoch

    @property
    def host(self) -> str:
        """The machine that holds it."""
        return self._holder.host

    @property
    def fenced(self) -> FencedError | None:
        """Set for good once another mount has taken over."""
        return self._fenced

    def grew(self, by: int) -> None:
        """So many bytes have come into the bucket or, below 0, gone: the next change of HEAD has it in its ledger."""
        with self._lock:
            self._grown += by

    def measured(self, stored: int) -> None:
        """All objects together have so many bytes. It corrects what the ledger has missed, as after a crash."""
        with self._lock:
            ledger = self._version.head.ledger or Ledger()
            self._grown = stored - ledger.stored

    def publish(self, manifest: Manifest, nonce: str, state: State) -> None:
        """Make a commit HEAD. Raises FencedError; TransientStoreError when it is not known whether it happened;
        SyncFailedError once the lease is released."""
        self._swap(
            publish=True,
            commit=manifest.key,
            commit_digest=digest(encode_manifest(manifest)),
            seq=manifest.seq,
            saved_at=manifest.created,
            files=manifest.files,
            bytes=manifest.bytes,
            state=state,
            reason="",
            nonce=nonce,
        )

    def check_held(self) -> None:
        """Raise FencedError, or SyncFailedError once the lease is released: what is saved now would be for nobody."""
        if self._fenced is not None:
            raise self._fenced
        if self._released:
            raise SyncFailedError(
                "this mount has given the workspace back already: what is missing stays in its cache directory, and the"
                " next mount with it saves it"
            )

    def renew(self, state: State, reason: str = "") -> None:
        """Say that this mount lives, and in which state it is. Says nothing once the lease is released."""
        self._swap(state=state, reason=reason, holder=self._holder, nonce=new_nonce())

    def release(self, state: State, reason: str = "") -> None:
        """Give the workspace back: STOPPED, or ERROR with the reason."""
        self._swap(state=state, reason=reason, holder=None, nonce=new_nonce(), release=True)

    def refresh(self) -> Head:
        """Read HEAD again, after a swap whose outcome is unknown. Raises FencedError; TransientStoreError when what is
        read is older than what we know."""
        with self._lock:
            if self._fenced is not None:
                raise self._fenced
            now = read_head(self._store)
            if now.head.nonce in self._unanswered:
                self._adopt(now)
                return now.head
            wrong = not_ours(self._store, self.head, now.head, self._past)
            if isinstance(wrong, FencedError):
                self._fenced = wrong
            if wrong is not None:
                raise wrong
            self._version = now
            return now.head

    def _adopt(self, now: HeadVersion) -> None:
        """A swap that got no answer was applied. No other one can be any more: they were against older versions."""
        self._grown -= self._unanswered[now.head.nonce]
        self._replaced(now)

    def _replaced(self, now: HeadVersion) -> None:
        self._past.append(self.head.nonce)
        self._version = now
        self._unanswered.clear()

    def _swap(self, *, release: bool = False, publish: bool = False, **changes: object) -> None:
        with self._lock:
            if publish:
                self.check_held()  # here, where nobody can release it any more
            if self._fenced is not None:
                raise self._fenced
            if self._released:
                return
            head: Head = replace(self._version.head, **changes)  # type: ignore[arg-type]
            grown, stopped = self._grown, release and head.state == State.STOPPED
            ledger = (head.ledger or Ledger()).changed(timestamp(self._clock()), grown, stopped=stopped)
            head = replace(head, ledger=ledger)
            try:
                now = swap_head(self._store, self._version, head, self._unanswered, self._past)
            except FencedError as exc:
                self._fenced = exc
                raise
            except LateError as exc:
                self._adopt(exc.version)
                raise
            except WsfsError:  # also when HEAD cannot be read, or makes no sense
                self._unanswered[head.nonce] = grown
                raise
            self._replaced(now)
            self._released = release
            self._grown -= grown


def wait_for(
    store: Store,
    version: HeadVersion,
    me: Holder,
    *,
    patience: float,
    insist: bool = False,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> HeadVersion:
    """HEAD, once nothing is in the way; or, when waiting is pointless, as it is after `patience` seconds.

    `version` is HEAD as it was just read. A mount that is saving is waited for as long as it renews HEAD, unless we
    `insist`, as a takeover does. One that only runs gets a short moment: it may have been unmounted just now.
    """
    started = clock()
    told = ""
    while True:
        blocked = obstacle(version, me)
        waited = clock() - started
        if blocked is None or (waited >= patience and (insist or not blocked.worth)):
            return version
        if blocked.reason != told and waited > 0:
            told = blocked.reason
            tell(f"waiting: {blocked.reason}")
        sleep(min(0.2 + waited / 10, 2.0))
        version = read_head(store)


def best_effort(action: Callable[[], None], failed: Callable[[StoreError | FencedError], None]) -> None:
    """Run a store action whose failure must not stop what is under way."""
    try:
        action()
    except (StoreError, FencedError) as exc:
        failed(exc)
