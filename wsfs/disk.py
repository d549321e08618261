"""What has to be on a disk before something else may count on it, and how a disk says that it is full."""

from __future__ import annotations

import errno
import os
from typing import Final

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""No room for anybody, or none for this user: a save makes room either way."""


def is_full(exc: OSError) -> bool:
    """Whether there is no room left."""
    return exc.errno in FULL


def free_space(directory: str | os.PathLike[str]) -> int:
    """Bytes that are left on the disk of a directory, for this user. Raises OSError."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def sync_directory(path: str | os.PathLike[str]) -> None:
    """The names in a directory survive a power loss when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
