"""Pins: single commits that are kept whatever their age, each with a reason, for some time or for ever.

    kept/<name of the commit>   JSON: commit, reason, kind, name, keep, paths

A pin lives for `keep` seconds of the store's own clock, counted from when it was last written; null is for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from wsfs.errors import FormatError, NotFoundError, PreconditionFailedError, TransientStoreError
from wsfs.parallel import map_ordered
from wsfs.repo.fork import forked, url_in
from wsfs.repo.frame import dump_json, load_json
from wsfs.store.base import ObjectInfo, Store
from wsfs.store.sealed import TamperedError

PIN_SECONDS: Final = 30 * 86400.0
"""For how many seconds a pin lives that says nothing else."""

READER_SECONDS: Final = 86400.0
"""For how long a commit is kept at a time that somebody reads."""

PREFIX: Final = "kept/"
_COMMITS: Final = "commits/"
_READERS: Final = 8


class Kind(StrEnum):
    """Who pinned a commit: a user, or what was about to happen to the tree."""

    USER = "user"
    REPAIR = "repair"
    RESTORE = "restore"
    DELETE = "mass delete"
    READER = "reader"
    FORK = "fork"


@dataclass(frozen=True, slots=True)
class Pin:
    """A pin as it is in the bucket. `keep` and `age` are seconds; `keep` is None for ever.

    `paths` are what a restore was about to change, from the top of the tree; None for all of it.
    """

    commit: str
    reason: str
    kind: str = Kind.REPAIR
    name: str | None = None
    keep: float | None = PIN_SECONDS
    paths: tuple[bytes, ...] | None = None
    age: float = 0.0

    @property
    def expired(self) -> bool:
        return self.keep is not None and self.age >= self.keep

    @property
    def left(self) -> float | None:
        """Seconds that it has still to live; None for ever."""
        return None if self.keep is None else max(self.keep - self.age, 0.0)


def pin(
    store: Store,
    commit: str,
    reason: str,
    *,
    kind: str = Kind.REPAIR,
    keep: float | None = PIN_SECONDS,
    name: str | None = None,
    paths: Sequence[bytes] | None = None,
    replaces: str | None = None,
    new: bool = False,
) -> str:
    """Keep a commit, and all that it leads to. Replaces the pin that the commit may have: only the version `replaces`
    if that is given, and none if it is `new`. Returns the pin's name.

    The caller knows that the commit is there, and that no collection is about to delete it. Raises
    PreconditionFailedError, StoreError.
    """
    key = pin_of(commit)
    value: dict[str, Any] = {"commit": commit, "reason": reason, "kind": str(kind), "name": name, "keep": keep}
    if paths is not None:
        value["paths"] = [path.hex() for path in paths]
    store.put(key, dump_json(value), if_match=replaces, if_none_match=new)
    return key


def pin_longer(
    store: Store, commit: str, reason: str, kind: Kind, seconds: float, paths: Sequence[bytes] | None = None
) -> None:
    """Pin a commit for some time; a name that it has, and a longer time, stay. Raises StoreError.

    So it replaces the version that it has read and no other: neither one that somebody writes meanwhile, nor one that
    the store did not find just now, which may be for ever.
    """
    for last in (False, False, False, True):
        try:
            _pin_longer(store, commit, reason, kind, seconds, paths)
        except (PreconditionFailedError, TransientStoreError):  # the store does not repeat what has a condition
            if last:
                raise
        else:
            return


def _pin_longer(
    store: Store, commit: str, reason: str, kind: Kind, seconds: float, paths: Sequence[bytes] | None
) -> None:
    try:
        blob = store.get(pin_of(commit))
    except NotFoundError:
        pin(store, commit, reason, kind=kind, keep=seconds, paths=paths, new=True)
        return
    except TamperedError as exc:
        blob = exc.blob
    old = _understand(commit, blob.data, blob.age or 0.0)
    keep = None if old.left is None else max(old.left, seconds)
    if kind != Kind.READER:
        pin(store, commit, reason, kind=kind, keep=keep, name=old.name, paths=paths, replaces=blob.etag)
    elif old.left is not None and old.left < seconds:
        pin(store, commit, old.reason, kind=old.kind, keep=keep, name=old.name, paths=old.paths, replaces=blob.etag)


def pin_of(commit: str) -> str:
    """The name of the object that keeps a commit."""
    assert commit.startswith(_COMMITS)
    return PREFIX + commit.removeprefix(_COMMITS)


def pinned(pin_key: str) -> str:
    """The commit that a pin keeps."""
    return _COMMITS + pin_key.removeprefix(PREFIX)


def read_pins(store: Store, listed: Iterable[ObjectInfo]) -> dict[str, Pin]:
    """The pins in a listing, by commit. One that cannot be read counts as one that is there for ever: what it is for
    is not known any more. Raises StoreError."""

    def read(info: ObjectInfo) -> Pin | None:
        commit = pinned(info.key)
        try:
            return _understand(commit, store.get(info.key).data, info.age)
        except NotFoundError:
            return None
        except FormatError as exc:
            return _damaged(commit, exc, info.age)

    found = map_ordered(read, listed, threads=_READERS, name="wsfs-pins")
    return {pin.commit: pin for pin in found if pin is not None}


def read_forks(store: Store, listed: Iterable[ObjectInfo]) -> dict[str, Pin]:
    """What keeps commits for forks, as pins by commit: one each, which names all forks. Raises StoreError."""
    found: dict[str, Pin] = {}
    for info in listed:
        try:
            url = url_in(store.get(info.key).data)
        except NotFoundError:
            continue
        except FormatError:
            url = "(its name cannot be read)"
        commit = forked(info.key)
        before = found.get(commit)
        reason = f"{before.reason}, {url}" if before else f"kept for the fork {url}"
        found[commit] = Pin(commit, reason, Kind.FORK, keep=None, age=info.age)
    return found


def _understand(commit: str, data: bytes, age: float) -> Pin:
    try:
        return _decode(commit, data, age)
    except FormatError as exc:
        return _damaged(commit, exc, age)


def _damaged(commit: str, why: FormatError, age: float) -> Pin:
    return Pin(commit, f"this pin is damaged: {why}", keep=None, age=age)


def _decode(commit: str, data: bytes, age: float) -> Pin:
    v = load_json(data, f"the pin of '{commit}'")
    keep, name, paths = v.get("keep", PIN_SECONDS), v.get("name"), v.get("paths")
    if keep is not None and not isinstance(keep, int | float):
        raise FormatError("it does not say for how long")
    try:
        decoded = None if paths is None else tuple(bytes.fromhex(path) for path in paths)
    except (TypeError, ValueError) as exc:
        raise FormatError("it names paths in an unknown way") from exc
    named = name if isinstance(name, str) and name else None
    return Pin(commit, str(v.get("reason", "")), str(v.get("kind", Kind.REPAIR)), named, keep, decoded, age)
