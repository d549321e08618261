"""Writes that a program believed to be done, and that were refused when the kernel sent them.

With the write-back cache write(2) returns before the daemon sees anything. What is refused then (a full disk, a quota,
a file that would be too large) the program is told at its next close, fsync or msync. The kernel remembers it once
more, for the next syncfs(2) of the whole mount, whoever was told before. So its word alone is no reason for a save to
fail.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from wsfs.errors import SyncFailedError

_NAMES_SHOWN: Final = 5


class Refusals:
    """Belongs to the trio thread. `is_there` says whether an inode has a name, `shown` which, for people."""

    def __init__(self, is_there: Callable[[int], bool], shown: Callable[[int], str]) -> None:
        self._is_there = is_there
        self._shown = shown
        self._handles: dict[int, int] = {}
        self._untold: dict[int, int] = {}
        self._told = False
        """Whether a program was told of one since `settle`."""

    def opened(self, ino: int) -> None:
        self._handles[ino] = self._handles.get(ino, 0) + 1

    def closed(self, ino: int) -> None:
        """The kernel has released a handle: every close(2) of it has returned what there was to tell."""
        left = self._handles.get(ino, 1) - 1
        if left > 0:
            self._handles[ino] = left
            return
        self._handles.pop(ino, None)
        self.told(ino)

    def told(self, ino: int) -> None:
        """Whoever uses the file knows: all have closed it, or somebody has synced it."""
        if self._untold and self._untold.pop(ino, None) is not None:
            self._told = True

    def refused(self, ino: int, number: int) -> bool:
        """A write gets this errno. Whether it is the first one since somebody was told about this file."""
        first = ino not in self._untold
        self._untold[ino] = number
        return first

    def settle(self, kernel: str) -> None:
        """Before a save counts as one of everything. `kernel` is what syncfs(2) has complained of, if it has.

        Raises SyncFailedError, once, for files that lack something and whose programs were not told.
        """
        lacking = {ino: number for ino, number in self._untold.items() if self._is_there(ino)}
        known, self._told = self._told or bool(self._untold), False
        self._untold.clear()
        if lacking:
            names = [self._shown(ino) for ino in list(lacking)[:_NAMES_SHOWN]]
            more = f" and {len(lacking) - len(names):,} more" if len(lacking) > len(names) else ""
            reasons = ", ".join(sorted({os.strerror(number) for number in lacking.values()}))
            raise SyncFailedError(
                f"programs have written to {', '.join(names)}{more}, which they have not closed, and not all of that"
                f" could be taken: {reasons}; make room and have them write it again. All else is kept"
            )
        if kernel and not known:
            raise SyncFailedError(f"the kernel could not hand over everything that was written: {kernel}; try again")
