"""Puts small files into the kernel's page cache when they are opened.

The kernel would ask for the bytes next, and, because of that, for the attributes before the next stat(2). Both requests
are saved. Only the first open since the kernel got to know an inode does this: until then it can have no page of it,
neither one that a program has changed nor one that is locked until a request is answered, which would be a deadlock.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

import pyfuse3

from wsfs.errors import WsfsError
from wsfs.model import Ino, Inode
from wsfs.remote import NeedRemote

SMALL: Final = 128 << 10
"""Files up to this size, in bytes: they are mostly read whole. A larger one is read with requests of up to 1 MiB."""


class Pages:
    """Knows which inodes may have pages in the kernel. Belongs to the trio thread. `read` is `Files.read`."""

    def __init__(self, read: Callable[[Ino, int, int], bytes]) -> None:
        self._read = read
        self._had: set[int] = set()

    def made(self, ino: int) -> None:
        """A file was created, and is open."""
        self._had.add(ino)

    def opened(self, inode: Inode, flags: int) -> None:
        """Before the reply to an open: hand a small file's bytes over. What fails is told by the read that follows."""
        if inode.ino in self._had:
            return
        self._had.add(inode.ino)
        if 0 < inode.size <= SMALL and flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY:
            try:
                pyfuse3.notify_store(inode.ino, 0, self._read(inode.ino, 0, inode.size))
            except (NeedRemote, WsfsError, OSError):
                return

    def forgotten(self, ino: int) -> None:
        """The kernel does not know this inode any more, and has no page of it."""
        self._had.discard(ino)
