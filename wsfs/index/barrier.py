"""File data that must be on disk before the rows about it are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

from wsfs.errors import CacheError


class Barrier:
    """Inodes whose new data replaces bytes that were safe. `write(inodes)` brings their data to disk; on any thread."""

    def __init__(self, write: Callable[[set[int]], None]) -> None:
        self.write = write
        self._guarded: dict[int, int] = {}
        self._failed: set[int] = set()
        """What the disk has once refused to write. Linux tells of that once: then the pages count as clean, whatever
        the disk has, and the next fsync(2) succeeds."""
        self._stamp = 0
        self._lock = threading.Lock()

    def guard(self, ino: int) -> None:
        """From now on the data of this inode has to be written first."""
        with self._lock:
            self._stamp += 1
            self._guarded[ino] = self._stamp

    def guarded(self) -> dict[int, int]:
        """The inodes whose data may not be on disk, and when each was last guarded."""
        with self._lock:
            return dict(self._guarded)

    def settle(self, guarded: dict[int, int]) -> None:
        """Any thread: bring the data of these inodes to disk. They stay guarded until that has succeeded, so that
        nothing that is made durable meanwhile overtakes it; and longer, if they were guarded again meanwhile.

        Raises CacheError. Repeated, it may succeed although data is lost: `check` knows that.
        """
        try:
            self.write(set(guarded))
        except CacheError:
            with self._lock:
                self._failed |= guarded.keys()
            raise
        with self._lock:
            for ino, stamp in guarded.items():
                if self._guarded.get(ino) == stamp:
                    del self._guarded[ino]

    def check(self, ino: int) -> None:
        """Any thread: raise CacheError if nobody knows whether the data of this inode is on disk."""
        if ino in self._failed:
            raise CacheError(
                f"the cache disk has failed to write data of inode {ino} before: until that is saved, it may not"
                " survive a power loss"
            )

    def saved(self, unsaved: Callable[[], Collection[int]]) -> None:
        """A commit holds what is not `unsaved`: that no longer depends on this disk."""
        if self._failed:
            with self._lock:
                self._failed.intersection_update(unsaved())
