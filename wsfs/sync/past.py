"""A commit as a tree that can be looked into: its rows, read from the bucket when they are asked for."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from wsfs.model import ROOT_INO, Dirent, Ino, Inode
from wsfs.repo import codec
from wsfs.repo.manifest import Manifest
from wsfs.repo.segment import Row
from wsfs.store.base import Store
from wsfs.sync.load import merge_deltas, read_segment, read_segments

_PARTITIONS: Final = 48
"""So many partitions of about 1 MiB are kept in memory."""


class Past:
    """The rows of one commit. Blocks while it reads; belongs to one thread. Raises StoreError, FormatError."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.manifest = manifest
        self._store = store
        self.over: dict[bytes, bytes | None] = dict(merge_deltas(list(read_segments(store, manifest.deltas))))
        """What the deltas say; None for what they delete."""
        self._over_keys = sorted(self.over)
        self._starts = [ref.start for ref in manifest.base]
        self._parts: OrderedDict[int, list[Row]] = OrderedDict()
        self._names: dict[int, dict[int, bytes]] = {}

    def get(self, key: bytes) -> bytes | None:
        """A row."""
        if key in self.over:
            return self.over[key]
        rows = self.partition(bisect_right(self._starts, key) - 1)
        at = bisect_left(rows, key, key=lambda row: row[0])
        return rows[at][1] if at < len(rows) and rows[at][0] == key else None

    def scan(self, low: bytes, high: bytes) -> list[tuple[bytes, bytes]]:
        """The rows in a key range, in order."""
        found: dict[bytes, bytes | None] = {}
        for number in range(max(bisect_right(self._starts, low) - 1, 0), bisect_left(self._starts, high)):
            rows = self.partition(number)
            first = bisect_left(rows, low, key=lambda row: row[0])
            last = bisect_left(rows, high, key=lambda row: row[0])
            found.update(rows[first:last])
        for key in self._over_keys[bisect_left(self._over_keys, low) : bisect_left(self._over_keys, high)]:
            found[key] = self.over[key]
        return sorted((key, row) for key, row in found.items() if row is not None)

    def partition(self, number: int) -> list[Row]:
        """The rows of one base partition, without what deltas say."""
        rows = self._parts.get(number)
        if rows is None:
            if not 0 <= number < len(self.manifest.base):
                return []
            rows = self._parts[number] = read_segment(self._store, self.manifest.base[number])
            if len(self._parts) > _PARTITIONS:
                self._parts.popitem(last=False)
        else:
            self._parts.move_to_end(number)
        return rows

    # --- as a tree ------------------------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode | None:
        row = self.get(codec.attr_key(ino))
        return None if row is None else codec.decode_inode(Ino(ino), row)

    def dirent(self, parent: int, name: bytes) -> Dirent | None:
        row = self.get(codec.dirent_key(parent, name))
        return None if row is None else codec.decode_dirent(row)

    def entries(self, parent: int) -> Iterator[tuple[bytes, Dirent]]:
        """The names in a directory, in the order of their bytes."""
        for key, row in self.scan(*codec.table_range(parent, codec.DIRENT)):
            yield key[9:], codec.decode_dirent(row)

    def body(self, ino: int) -> list[tuple[bytes, bytes]]:
        """What belongs to an inode beside its attributes and the names in it: blocks, link target, xattrs."""
        rows = self.scan(*codec.table_range(ino, codec.BLOCK))
        for table in (codec.SYMLINK, codec.XATTR):
            rows += self.scan(*codec.table_range(ino, table))
        return rows

    def lookup(self, path: bytes) -> Inode | None:
        """The inode at a path from the top; links are not followed."""
        inode = self.inode(ROOT_INO)
        for name in path.split(b"/"):
            if name and inode is not None:
                found = self.dirent(inode.ino, name)
                inode = None if found is None else self.inode(found.ino)
        return inode

    def path(self, ino: int) -> bytes:
        """A path of an inode from the top, without a slash at its beginning."""
        parts: list[bytes] = []
        while ino != ROOT_INO and len(parts) < 4096:
            inode = self.inode(ino)
            if inode is None:
                parts.append(b"(inode %d)" % ino)
                break
            if inode.parent not in self._names:
                names = self._names[inode.parent] = {}
                for name, dirent in self.entries(inode.parent):
                    names.setdefault(int(dirent.ino), name)
            parts.append(self._names[inode.parent].get(ino, b"(inode %d)" % ino))
            ino = inode.parent
        return b"/".join(reversed(parts))


def changed_keys(old: Past, new: Past) -> Iterator[bytes]:
    """The keys whose rows may differ, each once. Partitions that both commits have are not read."""
    shared = {ref.key for ref in old.manifest.base} & {ref.key for ref in new.manifest.base}
    deltas = {key for key in old.over.keys() | new.over.keys() if _differs(old.over, new.over, key)}
    told = set(deltas)
    yield from sorted(deltas)
    for past in (old, new):
        for number, ref in enumerate(past.manifest.base):
            if ref.key not in shared:
                for key, _ in past.partition(number):
                    if key not in told:
                        told.add(key)
                        yield key


def _differs(one: dict[bytes, bytes | None], other: dict[bytes, bytes | None], key: bytes) -> bool:
    return key not in one or key not in other or one[key] != other[key]
