"""The newest rows, in memory, until they are written to LMDB."""

from __future__ import annotations

from wsfs.index.journal import DELETE, PUT_CLEAN, Op
from wsfs.index.tables import DELETED
from wsfs.repo.codec import BLOCK, DIRENT, XATTR, decode_dirent, ino_of, table_of

_SCANNED = (BLOCK, XATTR)


class Memtable:
    """Rows by key, and what scans need: keys by inode and table, and names by directory in cookie order.

    `clean` holds the keys whose newest change only concerns this machine. Not thread safe for writing; a table that
    is no longer written to may be read from any thread.
    """

    __slots__ = ("clean", "groups", "names", "rows")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.clean: set[bytes] = set()
        self.groups: dict[bytes, set[bytes]] = {}
        self.names: dict[int, list[tuple[int, bytes]]] = {}

    def apply(self, op: Op) -> None:
        """Make one change visible. A clean change to a row that is dirty here leaves it dirty."""
        flag, key, value = op
        if flag == PUT_CLEAN:
            if key not in self.rows:
                self.clean.add(key)
        elif self.clean:
            self.clean.discard(key)
        self.rows[key] = DELETED if flag == DELETE else value
        table = table_of(key)
        if table == DIRENT:
            if flag != DELETE:
                self.names.setdefault(ino_of(key), []).append((decode_dirent(value).cookie, key[9:]))
        elif table in _SCANNED:
            self.groups.setdefault(key[:9], set()).add(key)
