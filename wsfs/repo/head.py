"""HEAD: the only object that changes, by compare-and-swap. It names the newest commit, and who may write the next."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from wsfs.errors import (
    FencedError,
    FormatError,
    NotFoundError,
    NoWorkspaceError,
    PreconditionFailedError,
    StoreError,
    TransientStoreError,
)
from wsfs.repo.codec import DIGEST_SIZE
from wsfs.repo.frame import U32, U63, dump_json, field, load_json, number, word
from wsfs.repo.ledger import Ledger, ledger_in, ledger_out
from wsfs.store.base import Store
from wsfs.store.keys import is_key

HEAD_KEY: Final = "HEAD"
HEAD_MAX: Final = 4096
_REASON_MAX: Final = 1500
_HOST_MAX: Final = 500


class State(StrEnum):
    """A workspace's state, as users see it. STOPPED is the promise that everything is in the bucket."""

    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    ERROR = "ERROR"
    SYNC_FAILED = "SYNC_FAILED"


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the workspace mounted: enough to find the process, and to see on its own host whether it still lives.

    `cache` names the lock of its cache directory among all files of one boot; empty if it is not known.
    """

    host: str
    pid: int
    boot_id: str
    since: str
    cache: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """`nonce` is new in each version, so that whoever lost the answer to a swap can see whose swap it was."""

    workspace: str
    epoch: int
    seq: int
    commit: str
    commit_digest: bytes
    nonce: str
    state: State
    reason: str
    holder: Holder | None
    saved_at: str
    files: int
    bytes: int
    ledger: Ledger | None = None


@dataclass(frozen=True, slots=True)
class HeadVersion:
    """HEAD as it was read: the etag to swap against, and its age in seconds by the store's clock."""

    head: Head
    etag: str
    age: float | None


def encode_head(head: Head) -> bytes:
    holder = head.holder
    data = dump_json(
        {
            "format": 1,
            "workspace": head.workspace,
            "epoch": head.epoch,
            "seq": head.seq,
            "commit": head.commit,
            "commit_digest": head.commit_digest.hex(),
            "nonce": head.nonce,
            "state": head.state.value,
            "reason": _cut(head.reason, _REASON_MAX),
            "holder": None
            if holder is None
            else {
                "host": _cut(holder.host, _HOST_MAX),
                "pid": holder.pid,
                "boot_id": holder.boot_id,
                "since": holder.since,
                **({"cache": holder.cache} if holder.cache else {}),
            },
            "saved_at": head.saved_at,
            "files": head.files,
            "bytes": head.bytes,
            **({"ledger": ledger_out(head.ledger)} if head.ledger else {}),
        }
    )
    assert len(data) <= HEAD_MAX
    return data


def decode_head(data: bytes) -> Head:
    """Raises FormatError on anything but a whole, well-formed HEAD."""
    what = "HEAD"
    if len(data) > HEAD_MAX:
        raise FormatError(f"HEAD has {len(data)} bytes, more than the {HEAD_MAX} that are allowed")
    v = load_json(data, what)
    if v.get("format") != 1:
        raise FormatError(f"HEAD is of format {v.get('format')!r}: this wsfs reads format 1")
    try:
        commit_digest = bytes.fromhex(field(v, "commit_digest", str, what))
        state = State(field(v, "state", str, what))
    except ValueError as exc:
        raise FormatError("HEAD has a field of an unknown value") from exc
    if len(commit_digest) != DIGEST_SIZE:
        raise FormatError("HEAD has a digest of the wrong length")
    commit = word(v, "commit", what)
    if not is_key(commit):
        raise FormatError("HEAD names a commit in a way that cannot be")
    return Head(
        workspace=word(v, "workspace", what),
        epoch=number(v, "epoch", what, U32 - 1),  # the next mount's is one more
        seq=number(v, "seq", what, U63 - 1),
        commit=commit,
        commit_digest=commit_digest,
        nonce=word(v, "nonce", what),
        state=state,
        reason=field(v, "reason", str, what),
        holder=_holder(v.get("holder")),
        saved_at=word(v, "saved_at", what),
        files=number(v, "files", what),
        bytes=number(v, "bytes", what),
        ledger=ledger_in(v["ledger"], "HEAD's ledger") if "ledger" in v else None,
    )


def _cut(text: str, room: int) -> str:
    """As much of the beginning of `text` as takes at most `room` bytes in JSON, where some characters take twelve."""
    text = text[:room]
    while len(dump_json(text)) - 2 > room:
        text = text[:-1]
    return text


def _holder(value: Any) -> Holder | None:
    if value is None:
        return None
    what = "HEAD's holder"
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a JSON object")
    return Holder(
        field(value, "host", str, what),
        number(value, "pid", what, U32 >> 1),
        word(value, "boot_id", what),
        word(value, "since", what),
        word(value, "cache", what) if "cache" in value else "",
    )


def read_head(store: Store) -> HeadVersion:
    """The newest HEAD. Raises NoWorkspaceError when there is none, FormatError when it is damaged."""
    try:
        blob = store.get(HEAD_KEY)
    except NotFoundError as exc:
        remedy = (
            f"'wsfs fsck {store.url} --repair' makes it anew from the newest commit; repeat an interrupted 'wsfs init'"
        )
        raise no_workspace(store, "HEAD", "FORMAT", remedy) from exc
    return HeadVersion(decode_head(blob.data), blob.etag, blob.age)


def no_workspace(store: Store, missing: str, other: str, remedy: str) -> NoWorkspaceError:
    """What to raise when the object `missing` is not there. If `other` is, there was a workspace."""
    there = False
    with suppress(StoreError):  # what is missing is known
        there = any(info.key == other for info in store.list(other))
    if there:
        return NoWorkspaceError(f"the object {missing} is missing from the workspace at {store.url}: {remedy}")
    return NoWorkspaceError(
        f"there is no workspace at {store.url}: check the URL, or make one with 'wsfs init {store.url}'"
    )


class LateError(TransientStoreError):
    """An earlier swap of ours that got no answer has been applied after all: `version` is HEAD now."""

    def __init__(self, message: str, version: HeadVersion) -> None:
        super().__init__(message)
        self.version = version


def swap_head(
    store: Store, old: HeadVersion, new: Head, unanswered: Collection[str] = (), past: Collection[str] = ()
) -> HeadVersion:
    """Replace `old` by `new`, if nobody else has replaced it. Never retried blindly.

    A refusal and a lost answer are both ambiguous: the swap may have been applied. So HEAD is read again, and our nonce
    in it means success. Raises FencedError when somebody else was there first, TransientStoreError when it cannot be
    known now (swap again later with the HEAD that is read then), LateError when it was one of `unanswered`: the nonces
    of swaps of ours that got no answer. `past` as in `not_ours`.
    """
    try:
        etag = store.put(HEAD_KEY, encode_head(new), if_match=old.etag)
    except (PreconditionFailedError, TransientStoreError) as exc:
        now = read_head(store)
        if now.head.nonce == new.nonce:
            return now
        if now.head.nonce in unanswered:
            raise LateError(f"an earlier change of HEAD of {store.url} arrived late: {exc}", now) from exc
        wrong = not_ours(store, old.head, now.head, past)
        if wrong is not None:
            raise wrong from exc
        if isinstance(exc, PreconditionFailedError):
            raise _stale(store) from exc
        raise TransientStoreError(f"HEAD of {store.url} could not be replaced: {exc}") from exc
    return HeadVersion(new, etag, 0.0)


def not_ours(store: Store, ours: Head, now: Head, past: Collection[str]) -> FencedError | TransientStoreError | None:
    """Why HEAD is not as its holder left it; None if it is.

    A store may show an older version than the newest: that of an earlier epoch, or one with a nonce of `past`, those
    that we have replaced. That fences nobody.
    """
    if now.epoch > ours.epoch:
        return fenced(now)
    if now.nonce == ours.nonce:
        return None
    if now.epoch < ours.epoch or now.nonce in past:
        return _stale(store)
    return FencedError(
        f"HEAD of {store.url} was changed by somebody who does not hold the workspace: this mount stops writing"
    )


def _stale(store: Store) -> TransientStoreError:
    return TransientStoreError(f"the store shows an old HEAD of {store.url}: try again later")


def fenced(now: Head) -> FencedError:
    """The error for a mount whose workspace somebody else has taken over."""
    holder = now.holder
    who = f"{holder.host} (process {holder.pid}, since {holder.since})" if holder else "another mount"
    return FencedError(
        f"this workspace was taken over by {who}: this mount is read-only now, and what it had not saved stays in its"
        " cache directory"
    )
