"""What commands ask about save points, answered for people and programs alike: as JSON objects.

Each function reads the bucket, and blocks. The daemon of a mount and commands with a URL use the same ones.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Final

from wsfs.errors import NoSavePointError, UsageError
from wsfs.store.base import Store
from wsfs.sync.compare import KINDS, Change, compare
from wsfs.sync.history import SavePoint, find, save_points
from wsfs.sync.past import Past
from wsfs.sync.pins import Kind, pin, pin_of

NAME_MAX: Final = 128
UNDONE: Final = frozenset({Kind.RESTORE, Kind.DELETE})
"""The pins that `wsfs undo` goes by; so they stay such when a user pins the same save point."""


def log(store: Store) -> dict[str, Any]:
    """Every save point, newest first. Raises StoreError, FormatError."""
    points = save_points(store)
    return {"save_points": [_describe(point, points[number + 1 :]) for number, point in enumerate(points)]}


def _describe(point: SavePoint, older: list[SavePoint]) -> dict[str, Any]:
    manifest, pin = point.manifest, point.pin
    before = next((one.manifest for one in older if one.line), None) if point.line else None
    return {
        "id": manifest.seq,
        "created": manifest.created,
        "files": manifest.files,
        "bytes": manifest.bytes,
        "files_change": None if before is None else manifest.files - before.files,
        "bytes_change": None if before is None else manifest.bytes - before.bytes,
        "host": manifest.host or None,
        "left_out": manifest.left_out,
        "commit": manifest.key,
        "in_history": point.line,
        "pinned": pin is not None,
        "name": pin.name if pin else None,
        "reason": pin.reason if pin else None,
        "kind": pin.kind if pin else None,
        "seconds_left": pin.left if pin else None,
    }


def diff(store: Store, first: str, second: str | None) -> dict[str, Any]:
    """What changed from one save point to another, by default to the newest. Raises NoSavePointError, StoreError,
    FormatError."""
    points = save_points(store)
    old = find(points, first)
    new = find(points, second) if second is not None else next(point for point in points if point.line)
    changes = list(compare(Past(store, old.manifest), Past(store, new.manifest)))
    counts = Counter(change.kind for change in changes)
    return {
        "from": old.seq,
        "to": new.seq,
        "total": {kind: counts[kind] for kind in KINDS},
        "bytes": sum(_size(change.new) - _size(change.old) for change in changes if change.kind != "renamed"),
        "changes": [_change(change) for change in changes],
    }


def _size(inode: Any) -> int:
    return 0 if inode is None or inode.is_dir else int(inode.size)


def _change(change: Change) -> dict[str, Any]:
    told: dict[str, Any] = {"change": change.kind, "path": os.fsdecode(change.path), "type": change.type}
    if change.to is not None:
        told["to"] = os.fsdecode(change.to)
    if change.old is not None:
        told["size_before"] = _size(change.old)
    if change.new is not None:
        told["size"] = _size(change.new)
    if change.kind == "changed":
        told |= {"content": change.content, "attributes": change.attributes}
    return told


def set_pin(store: Store, wanted: str, name: str | None, keep: float | None) -> dict[str, Any]:
    """Pin a save point for `keep` seconds, or for ever. Raises NoSavePointError, UsageError, StoreError."""
    points = save_points(store)
    point = find(points, wanted)
    if name is not None:
        check_name(name)
        taken = next((one for one in points if one.pin and one.pin.name == name and one.seq != point.seq), None)
        if taken is not None:
            raise UsageError(f"the save point #{taken.seq} has the name {name!r} already: choose another one")
    kind, reason, paths = Kind.USER, "pinned by a user", None
    if point.pin is not None and point.pin.kind in UNDONE:
        kind, reason, paths = Kind(point.pin.kind), point.pin.reason, point.pin.paths
    pin(store, point.manifest.key, reason, kind=kind, keep=keep, name=name, paths=paths)
    if not any(info.key == point.manifest.key for info in store.list(point.manifest.key)):
        remove_pin(store, point)
        raise NoSavePointError(f"the save point #{point.seq} is not kept any more: it was deleted just now")
    return {"id": point.seq, "pinned": True, "name": name, "seconds_left": keep}


def unset_pin(store: Store, wanted: str) -> dict[str, Any]:
    """Take the pin of a save point away: it is kept for as long as others of its age. Raises as `set_pin`."""
    point = find(save_points(store), wanted)
    if point.pin is None:
        raise NoSavePointError(f"the save point #{point.seq} is not pinned")
    if point.pin.kind == Kind.FORK:
        remedy = "delete the fork, and then 'wsfs fork URL FORK --release'"
        raise UsageError(f"the save point #{point.seq} is {point.pin.reason}: {remedy}")
    remove_pin(store, point)
    return {"id": point.seq, "pinned": False}


def remove_pin(store: Store, point: SavePoint) -> None:
    store.delete(pin_of(point.manifest.key))


def check_name(name: str) -> None:
    """Raises UsageError for what could be taken for a number or a time, or cannot be shown."""
    odd = not name.isprintable() or not name or len(name) > NAME_MAX or name[0].isdigit() or name[0] == "#"
    if odd or "/" in name:
        raise UsageError(
            f"{name[:40]!r} is no name for a save point: it must begin with a letter, and have at most {NAME_MAX}"
            " printable characters, none of them a slash"
        )
