"""The save points of a workspace: which commits can be gone back to, and what each is called."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from wsfs.errors import FormatError, NoSavePointError, NotFoundError
from wsfs.parallel import map_ordered
from wsfs.repo.frame import digest
from wsfs.repo.head import HeadVersion, read_head
from wsfs.repo.manifest import Manifest, decode_manifest
from wsfs.repo.workspace import read_format
from wsfs.store.base import Store
from wsfs.sync.pins import Pin, read_forks, read_pins
from wsfs.sync.retain import lineage, seconds_of
from wsfs.sync.survey import list_objects, marked, seq_in

_READERS: Final = 8


@dataclass(frozen=True, slots=True)
class SavePoint:
    """A commit that is kept. `line`: HEAD descends from it; a repair may have pinned one where that is not so."""

    manifest: Manifest
    pin: Pin | None
    line: bool

    @property
    def seq(self) -> int:
        return self.manifest.seq


def save_points(store: Store) -> list[SavePoint]:
    """All that are kept now, newest first. Reads the manifests of all commits. Raises StoreError, FormatError,
    NoWorkspaceError."""
    read_format(store)  # says so if the key is missing
    listing = list_objects(store)
    head = read_head(store).head
    pins = read_forks(store, listing.forks.values())
    pins |= {key: pin for key, pin in read_pins(store, listing.pins.values()).items() if not pin.expired}

    def read(key: str) -> Manifest | None:
        try:
            found = decode_manifest(store.get(key).data)
        except (NotFoundError, FormatError):
            return None
        return found if found.key == key else None

    keys = list({*listing.commits, head.commit})
    known = dict(zip(keys, map_ordered(read, keys, threads=_READERS, name="wsfs-history"), strict=True))
    marks = {marked(key) for key in listing.marks}
    line = [commit.key for commit in lineage(head.commit, known.get, listing.commits, marks, seq_in)]
    if not line:
        raise FormatError(f"the workspace at {store.url} is damaged: its commit '{head.commit}' is missing")
    others = {key for key in pins if known.get(key) is not None} - set(line)
    found = [(known[key], key in others) for key in (*line, *others)]
    points = [SavePoint(one, pins.get(one.key), not other) for one, other in found if one is not None]
    return sorted(points, key=lambda point: (point.seq, point.line), reverse=True)


def as_of(store: Store, version: HeadVersion, point: SavePoint) -> HeadVersion:
    """HEAD as if a save point were the newest commit, for a reader. Raises StoreError, NotFoundError."""
    manifest = point.manifest
    head = replace(
        version.head,
        seq=manifest.seq,
        commit=manifest.key,
        commit_digest=digest(store.get(manifest.key).data),
        saved_at=manifest.created,
        files=manifest.files,
        bytes=manifest.bytes,
    )
    return replace(version, head=head)


def find(points: Iterable[SavePoint], wanted: str) -> SavePoint:
    """The save point with this number ("482" or "#482") or name, or the newest that is not newer than a time.

    A time is written as ISO 8601 with its offset from UTC. Raises NoSavePointError.
    """
    points = list(points)
    number = wanted.removeprefix("#")
    if number.isascii() and number.isdigit():
        for point in points:
            if point.seq == int(number):
                return point
        raise NoSavePointError(f"there is no save point #{number}: 'wsfs log' lists those that are kept")
    for point in points:
        if point.pin is not None and point.pin.name == wanted:
            return point
    try:
        when = datetime.fromisoformat(wanted)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise NoSavePointError(f"there is no save point with the name {wanted!r}: 'wsfs log' lists all")
    for point in points:
        if point.line and seconds_of(point.manifest.created) <= when.timestamp():
            return point
    asked = when.isoformat(timespec="seconds")
    raise NoSavePointError(f"no save point is as old as {asked}: 'wsfs log' lists those that are kept")
