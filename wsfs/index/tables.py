"""The LMDB tables. lmdb is imported only here.

    rows     key                      -> value      the metadata, with local additions (LOCAL and resident blocks)
    cookies  parent:u64 cookie:u64    -> name       readdir's order; follows from the dirents
    dirty    key                      -> generation what no commit holds yet; an absent row that is dirty was deleted
    kept     key                      -> note       rows that stay on this machine: a size, whether a name is that of a
                                                    directory. One that is dirty, too, has to go from the bucket
    digests  digest                   -> location   where a block of this content is already; may be dropped
    parts    start key                -> loaded:u8 JSON   the base partitions of the commit this cache stands on
    changed  key                      -> nothing    what the deltas since the base partitions hold
    meta     name                     -> value      counters, the commit, the pending commit

An empty value in `rows` says that the key was deleted while its partition is not loaded yet.
Every transaction is durable when it returns (LMDB's defaults), and none is made on the FUSE thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lmdb

from wsfs.disk import FULL, free_space
from wsfs.errors import CacheError, CacheFullError

DELETED: Final = b""
_MAP_SIZE: Final = 1 << 40
"""More than an index will ever have, whatever becomes of the disk: address space costs nothing, and a map that cannot
be full never has to grow under its readers."""

_MAP_MIN: Final = 1 << 30
_FULL: Final = tuple(os.strerror(number) for number in sorted(FULL))
"""lmdb has a class of its own for few errnos. Of the others only the text is left."""

_SHORT: Final = os.strerror(errno.EIO)
_LITTLE: Final = 1 << 20

_NAMES: Final = (b"rows", b"cookies", b"dirty", b"digests", b"parts", b"changed", b"meta", b"kept")


class Reader:
    """A read transaction: one point in time. Belongs to the thread that made it."""

    def __init__(self, env: Any, dbs: dict[bytes, Any]) -> None:
        self._begin(env.begin(db=dbs[b"rows"], buffers=False), dbs)

    def _begin(self, txn: Any, dbs: dict[bytes, Any]) -> None:
        self._txn = txn
        self.dbs = dbs
        self.get: Callable[[bytes], bytes | None] = txn.get
        """A row; DELETED when it is known to be gone. LMDB's own method: each look-up would pay for another call."""

    def lookup(self, table: bytes, key: bytes) -> bytes | None:
        found: bytes | None = self._txn.get(key, db=self.dbs[table])
        return found

    def scan(self, table: bytes, low: bytes, high: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values from `low` on, below `high`."""
        cursor = self._txn.cursor(db=self.dbs[table])
        if cursor.set_range(low):
            for key, value in cursor:
                if high is not None and key >= high:
                    return
                yield key, value

    def keys(self, table: bytes, low: bytes, high: bytes | None = None) -> Iterator[bytes]:
        """As `scan`, but without reading the values."""
        cursor = self._txn.cursor(db=self.dbs[table])
        if cursor.set_range(low):
            for key in cursor.iternext(keys=True, values=False):
                if high is not None and key >= high:
                    return
                yield key

    def count(self, table: bytes) -> int:
        entries: int = self._txn.stat(self.dbs[table])["entries"]
        return entries

    def close(self) -> None:
        self._txn.abort()


class Writer(Reader):
    """A write transaction."""

    def __init__(self, env: Any, dbs: dict[bytes, Any]) -> None:
        self._begin(env.begin(db=dbs[b"rows"], write=True, buffers=False), dbs)

    def put(self, table: bytes, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        done: bool = self._txn.put(key, value, db=self.dbs[table], overwrite=overwrite)
        return done

    def put_all(self, table: bytes, rows: list[tuple[bytes, bytes]]) -> None:
        """Put many at once: in the order of their keys that is much faster than one by one."""
        self._txn.cursor(db=self.dbs[table]).putmulti(rows)

    def delete(self, table: bytes, key: bytes) -> None:
        self._txn.delete(key, db=self.dbs[table])

    def clear(self, table: bytes) -> None:
        self._txn.drop(self.dbs[table], delete=False)

    def commit(self) -> None:
        self._txn.commit()


class Tables:
    """The LMDB environment in `directory`. Raises CacheError when it cannot be opened."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        try:
            self._env = self._open(directory)
            with self._env.begin(write=True) as txn:  # each new one would be a durable transaction of its own
                self._dbs = {name: self._env.open_db(name, txn) for name in _NAMES}
        except lmdb.Error as exc:
            if self._is_full(exc):
                raise CacheFullError() from exc
            raise CacheError(f"the index in {directory} cannot be opened ({exc}): move the directory away") from exc

    @staticmethod
    def _open(directory: Path) -> Any:
        size = _MAP_SIZE
        while True:
            try:
                return lmdb.open(str(directory), map_size=size, max_dbs=len(_NAMES), mode=0o600, max_spare_txns=8)
            except lmdb.MemoryError:
                # An address-space limit (ulimit -v): take what there is. When that is full, a save makes room.
                if size <= _MAP_MIN:
                    raise
                size //= 4

    def reader(self) -> Reader:
        return Reader(self._env, self._dbs)

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """A durable transaction: all of it or, when the block raises, nothing. One at a time; blocks for its turn."""
        try:
            txn = Writer(self._env, self._dbs)
            try:
                yield txn
            except BaseException:
                txn.close()
                raise
            txn.commit()
        except lmdb.Error as exc:
            if self._is_full(exc):
                raise CacheFullError() from exc
            raise CacheError(f"the index in the cache directory cannot be written: {exc}") from exc

    def close(self) -> None:
        self._env.close()

    def _is_full(self, exc: lmdb.Error) -> bool:
        if isinstance(exc, (lmdb.MapFullError, lmdb.DiskError)) or any(text in str(exc) for text in _FULL):
            return True
        # The last write to get room is cut short, and LMDB calls that an error of the disk.
        return _SHORT in str(exc) and free_space(self._directory) < _LITTLE
