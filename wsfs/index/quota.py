"""How large a workspace may become, as the mount was told: `-o quota=` and `quota_files=`.

Only what makes it larger is asked about. The last hundredth is a reserve for people: files stay small there, and no
more than one is made a second, so that an editor can save while an installation has to stop.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Final

from wsfs.index.batch import Batch

SMALL: Final = 1 << 20
"""A file of at most this size may grow into the reserve."""

_SHARE: Final = 100
_RESERVE_MAX: Final = 64 << 20
_RESERVE_FILES_MAX: Final = 1000
_PAUSE: Final = 1.0
_NO_LIMIT: Final = 1 << 63


class Quota:
    """Belongs to the owner thread. `size` in bytes, as stat(2) has it: holes count. None is no limit."""

    def __init__(self, size: int | None, files: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size
        self.files = files
        self.refused: Callable[[], None] = lambda: None
        """Called when something was refused."""
        self.growth: dict[int, tuple[int, int]] = {}
        """Bytes and files by which each directory has grown since the mount; what lies deeper is counted deeper."""
        self._clock = clock
        self._made_at = -_PAUSE
        self._size = _NO_LIMIT if size is None else size
        self._files = _NO_LIMIT if files is None else files
        self._soft_size = self._size - min(self._size // _SHARE, _RESERVE_MAX)
        self._soft_files = self._files - min(self._files // _SHARE, _RESERVE_FILES_MAX)

    def admit(self, files: int, size: int, *, new: bool, small: bool) -> None:
        """Whether the workspace may come to have so many files and bytes, by a new file or the growth of one. Raises
        ENOSPC, for programs know what that means, and EDQUOT is rare."""
        if size <= self._soft_size and (not new or files <= self._soft_files):
            return
        if size <= self._size and small:
            if not new:
                return
            now = self._clock()
            if files <= self._files and now - self._made_at >= _PAUSE:
                self._made_at = now
                return
        self.refused()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def free(self, size: int) -> tuple[int, int] | None:
        """Of bytes, when `size` are used: how many are free, and how many of them for everybody. None: no limit."""
        if self.size is None:
            return None
        return max(self.size - size, 0), max(self._soft_size - size, 0)

    def free_files(self, files: int) -> tuple[int, int] | None:
        """Likewise, of files."""
        if self.files is None:
            return None
        return max(self.files - files, 0), max(self._soft_files - files, 0)

    def note(self, batch: Batch, files: int, size: int) -> None:
        """A batch was applied, and so many more files and bytes count: remember in which directory. By what a directory
        had grown that is gone, its parent has."""
        if not batch.inodes:
            return
        last = batch.inodes[-1]  # of a new name, or one that went, the directory that it is in
        directory = last.ino if last.is_dir else last.parent
        for more in ((size, files), *(self.growth.pop(ino, (0, 0)) for ino, _ in batch.detached)):
            before = self.growth.get(directory, (0, 0))
            self.growth[directory] = before[0] + more[0], before[1] + more[1]
        if self.growth[directory] == (0, 0):
            del self.growth[directory]
