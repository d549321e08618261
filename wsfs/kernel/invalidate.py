"""What the kernel must forget when a read-only mount has moved to another commit."""

from __future__ import annotations

import errno
from collections.abc import Iterable

import pyfuse3


def invalidate(inodes: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
    """Have the kernel ask again for attributes, data and names. Never on the thread that serves it: it takes locks that
    a request may hold which is waiting for an answer."""
    for ino in inodes:
        _lenient(ino)
    for parent, name in names:
        _lenient(parent, name)


def _lenient(ino: int, name: bytes | None = None) -> None:
    """What the kernel does not know needs no forgetting; nor does a mount that is gone."""
    try:
        if name is None:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(ino))
        else:
            pyfuse3.invalidate_entry(pyfuse3.InodeT(ino), pyfuse3.FileNameT(name))
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTCONN, errno.ENODEV, errno.EBADF):
            raise
