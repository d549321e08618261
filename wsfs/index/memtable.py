"""The newest rows, in memory, until they are written to LMDB."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from wsfs.index.journal import DELETE, DROP, HIDE, KEEP, Op
from wsfs.index.tables import DELETED
from wsfs.repo.codec import ATTR, BLOCK, COOKIE, DIRENT, XATTR

_ATTR: Final = ATTR[0]
_DIRENT: Final = DIRENT[0]
_SCANNED: Final = BLOCK + XATTR
_GONE: Final = (DELETE, DROP)


class Memtable:
    """Rows by key, and what scans need: keys by inode and table, and names in cookie order by directory: by the eight
    bytes that its keys begin with.

    `clean` holds the keys whose newest change only concerns this machine, `kept` those of rows that stay on it. Not
    thread safe for writing; a table that is no longer written to may be read from any thread.
    """

    __slots__ = ("clean", "groups", "kept", "names", "rows")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.clean: set[bytes] = set()
        self.kept: set[bytes] = set()
        self.groups: dict[bytes, set[bytes]] = {}
        self.names: dict[bytes, list[tuple[int, bytes]]] = {}

    def apply(self, ops: list[Op]) -> None:
        """Make the changes of a batch visible. A clean change to a row that is dirty here leaves it dirty."""
        rows, clean, kept = self.rows, self.clean, self.kept
        for flag, key, value in ops:
            if flag > DELETE:
                self._note_local(flag, key)
            elif clean or kept:
                clean.discard(key)
                kept.discard(key)
            if flag in _GONE:
                value = DELETED
            rows[key] = value
            table = key[8]
            if table == _ATTR:
                continue
            if table in _SCANNED:
                self.groups.setdefault(key[:9], set()).add(key)
            elif table == _DIRENT and value:
                listed = self.names.get(key[:8])
                if listed is None:
                    listed = self.names[key[:8]] = []
                entry = (int.from_bytes(value[COOKIE], "big"), key[9:])
                if not listed or entry > listed[-1]:
                    listed.append(entry)
                else:
                    _insert(listed, entry)

    def changed(self) -> Iterable[tuple[bytes, bytes]]:
        """The rows whose newest change a commit has to hold, and those that stay on this machine."""
        if not self.clean:
            return self.rows.items()
        return ((key, value) for key, value in self.rows.items() if key not in self.clean or key in self.kept)

    def _note_local(self, flag: int, key: bytes) -> None:
        """A change with a flag that says more than put or delete."""
        if flag == HIDE:
            self.clean.discard(key)
        elif key not in self.rows:
            self.clean.add(key)
        if flag in (KEEP, HIDE):
            self.kept.add(key)
        else:
            self.kept.discard(key)


def _insert(listed: list[tuple[int, bytes]], entry: tuple[int, bytes]) -> None:
    """A name that is put again, with the cookie that it had: it now stays on this machine, or ceases to."""
    at = bisect_left(listed, entry)
    if listed[at] != entry:
        listed.insert(at, entry)
