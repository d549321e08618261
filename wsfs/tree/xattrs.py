"""Extended attributes: rows of their inode, one for each name. Like `namespace`, of which this is a part."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

from wsfs.index.index import Batch, Index
from wsfs.model import MARKER_INO, NAME_MAX, Ino, Inode
from wsfs.repo import codec

SIZE_MAX: Final = 64 << 10
LIST_MAX: Final = 64 << 10

_PRESENT: Final = b"="
"""Before each value: an empty one is then still a row."""

_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")
"""Not "system.": an access control list that is kept, but that nobody obeys, would be worse than none."""


class Xattrs:
    """`inode` gives an inode's attributes, or raises ENOENT; `now` the time of a change."""

    def __init__(self, index: Index, inode: Callable[[Ino], Inode], now: Callable[[], int]) -> None:
        self._index = index
        self._inode = inode
        self._now = now

    def get(self, ino: Ino, name: bytes) -> bytes:
        row = self._index.get(codec.xattr_key(ino, name))
        if row is None:
            raise _error(errno.ENODATA)
        return row[1:]

    def names(self, ino: Ino) -> list[bytes]:
        self._inode(ino)
        return [key[9:] for key, _ in self._index.scan(ino, codec.XATTR)]

    @staticmethod
    def check(ino: Ino, name: bytes, *, supported: bool) -> None:
        """Whether this extended attribute of an inode can be changed at all."""
        if ino == MARKER_INO:
            raise _error(errno.EPERM)
        if not supported or not name.startswith(_NAMESPACES):
            raise _error(errno.ENOTSUP)

    def set(self, ino: Ino, name: bytes, value: bytes) -> None:
        if len(name) > NAME_MAX:
            raise _error(errno.ERANGE)
        self.check(ino, name, supported=True)
        inode = self._inode(ino)
        if len(value) > SIZE_MAX:
            raise _error(errno.E2BIG)
        others = [other for other in self.names(ino) if other != name]
        if sum(len(other) + 1 for other in (*others, name)) > LIST_MAX:
            raise _error(errno.ENOSPC)  # listxattr could never tell them all
        batch = Batch()
        batch.put(codec.xattr_key(ino, name), _PRESENT + value)
        batch.put_inode(inode._replace(ctime_ns=self._now()))
        self._index.apply(batch)

    def remove(self, ino: Ino, name: bytes) -> None:
        self.check(ino, name, supported=True)
        self.get(ino, name)
        batch = Batch()
        batch.delete(codec.xattr_key(ino, name))
        batch.put_inode(self._inode(ino)._replace(ctime_ns=self._now()))
        self._index.apply(batch)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
