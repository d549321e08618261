"""A file that does nothing but take up room: giving it up lets a save, or a delete, get through on a full disk."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

SIZE: Final = 16 << 20
_SHARE: Final = 16
"""At most this fraction of the disk."""


class Ballast:
    """Best effort: where the disk cannot reserve room there is none. Never raises."""

    def __init__(self, directory: Path, *, restore: bool = True) -> None:
        self._path = directory / "ballast"
        if restore:
            self.restore()

    def release(self) -> bool:
        """Give the room up. False when there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True

    def restore(self) -> None:
        """Reserve it again, unless the disk would be full then."""
        with suppress(OSError):
            disk = os.statvfs(self._path.parent)
            size = min(SIZE, disk.f_blocks * disk.f_frsize // _SHARE)
            if self._path.exists() or disk.f_bavail * disk.f_frsize < 2 * size:
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError:
                self._path.unlink()
            finally:
                os.close(descriptor)
