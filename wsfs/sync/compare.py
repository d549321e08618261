"""What differs between two commits: names that came, went or moved, and files that changed."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from wsfs.model import Inode, Packed
from wsfs.repo import codec
from wsfs.sync.past import Past, changed_keys

KINDS: Final = ("added", "removed", "changed", "renamed")
_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "device",
    stat.S_IFCHR: "device",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs. `kind` is one of KINDS; `to` is the new path of what was renamed.

    `old` and `new` are the attributes before and after; `content` and `attributes` say what of a changed one differs.
    """

    kind: str
    path: bytes
    old: Inode | None
    new: Inode | None
    to: bytes | None = None
    content: bool = False
    attributes: bool = False

    @property
    def type(self) -> str:
        inode = self.new or self.old
        return _TYPES.get(stat.S_IFMT(inode.mode), "file") if inode else "file"


def compare(old: Past, new: Past) -> Iterator[Change]:
    """The changes from one commit to another, in the order of their paths. Raises StoreError, FormatError."""
    gone: dict[tuple[int, bytes], int] = {}
    come: dict[tuple[int, bytes], int] = {}
    content: set[int] = set()
    attributes: set[int] = set()
    for key in changed_keys(old, new):
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        ino, table = int(codec.ino_of(key)), codec.table_of(key)
        if table == codec.DIRENT:
            was = int(codec.decode_dirent(before).ino) if before else None
            now = int(codec.decode_dirent(after).ino) if after else None
            if was != now:
                if was is not None:
                    gone[ino, key[9:]] = was
                if now is not None:
                    come[ino, key[9:]] = now
        elif table == codec.XATTR:
            attributes.add(ino)
        elif table == codec.ATTR:
            first, second = old.inode(ino), new.inode(ino)
            if first and second and _shape(first) != _shape(second):
                attributes.add(ino)
                if not first.is_dir and first.size != second.size:
                    content.add(ino)
        elif same_content(before) != same_content(after):
            content.add(ino)
    changes = list(_renamed(old, new, gone, come))
    removed = {_at(old, place): ino for place, ino in gone.items()}
    added = {_at(new, place): ino for place, ino in come.items()}
    for path in removed.keys() & added.keys():
        changes += _replaced(old, new, path, removed.pop(path), added.pop(path))
    changes += [Change("removed", path, old.inode(ino), None) for path, ino in removed.items()]
    changes += [Change("added", path, None, new.inode(ino)) for path, ino in added.items()]
    for ino in content | attributes:
        first, second = old.inode(ino), new.inode(ino)
        if first is not None and second is not None:
            changed, about = ino in content, ino in attributes
            changes.append(Change("changed", new.path(ino), first, second, None, changed, about))
    yield from sorted(changes, key=lambda change: (change.path, change.kind))


def _renamed(
    old: Past, new: Past, gone: dict[tuple[int, bytes], int], come: dict[tuple[int, bytes], int]
) -> Iterator[Change]:
    """Take out of both the names of inodes that only moved."""
    places: dict[int, list[tuple[int, bytes]]] = {}
    for place, ino in come.items():
        places.setdefault(ino, []).append(place)
    for place, ino in sorted(gone.items()):
        if places.get(ino):
            to = places[ino].pop()
            del gone[place], come[to]
            yield Change("renamed", _at(old, place), old.inode(ino), new.inode(ino), _at(new, to))


def _replaced(old: Past, new: Past, path: bytes, was: int, now: int) -> Iterator[Change]:
    """A path that leads to another inode: by a rename over it, or as a restore leaves it. Nothing if all is alike."""
    before, after = old.inode(was), new.inode(now)
    if before is None or after is None:
        return
    rows, others = _body(old, was), _body(new, now)
    xattrs = {key for key in rows.keys() | others.keys() if key[:1] == codec.XATTR}
    content = any(rows.get(key) != others.get(key) for key in (rows.keys() | others.keys()) - xattrs)
    attributes = _shape(before) != _shape(after) or any(rows.get(key) != others.get(key) for key in xattrs)
    if content or attributes:
        yield Change("changed", path, before, after, None, content, attributes)


def _body(past: Past, ino: int) -> dict[bytes, object]:
    return {key[8:]: same_content(row) for key, row in past.body(ino)}


def _at(past: Past, place: tuple[int, bytes]) -> bytes:
    directory = past.path(place[0])
    return directory + b"/" + place[1] if directory else place[1]


def _shape(inode: Inode) -> tuple[int, ...]:
    """What counts as a change of attributes; counts and times of a directory follow from what is in it."""
    return (inode.mode, inode.uid, inode.gid, inode.rdev, *(() if inode.is_dir else (inode.size, inode.mtime_ns)))


def same_content(row: bytes | None) -> object:
    """What two block rows, or link targets, have in common if and only if they stand for the same bytes: a frame may
    have been moved to another pack."""
    if row is None or codec.place_of(row) is None:
        return row
    block = codec.decode_block(row)
    assert isinstance(block, Packed)
    return block.loc.digest, block.loc.length
