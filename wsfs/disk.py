"""What has to be on a disk before something else may count on it."""

from __future__ import annotations

import os


def sync_directory(path: str | os.PathLike[str]) -> None:
    """The names in a directory survive a power loss when this returns. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
