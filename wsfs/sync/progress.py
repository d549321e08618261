"""How far a save has come: written by its threads, read by whoever shows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

UPLOAD: Final = "upload"
DOWNLOAD: Final = "download"


class Progress:
    """One save, or one move to a newer commit. Thread safe. Bytes are those of files, before compression, but for
    `transferred`: what went over the network, metadata included."""

    def __init__(self, direction: str = UPLOAD, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._began = clock()
        self.direction = direction
        self.files = self.bytes = 0
        self.files_prepared = 0
        self.files_done = self.bytes_done = 0
        self.files_skipped = 0
        self.transferred = 0

    def plan(self, files: int, size: int) -> None:
        """What there is to do in all."""
        with self._lock:
            self.files, self.bytes = files, size

    def prepared(self, files: int) -> None:
        """So many more files are on their way, or need none."""
        with self._lock:
            self.files_prepared += files

    def done(self, files: int, size: int, transferred: int) -> None:
        """So many more files and bytes are where they belong, and so many bytes were moved for it."""
        with self._lock:
            self.files_done += files
            self.bytes_done += size
            self.transferred += transferred

    def skipped(self, files: int) -> None:
        """So many files are left out, for there was no time."""
        with self._lock:
            self.files_skipped += files

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    def account(self) -> dict[str, Any]:
        """As docs/JSON.md describes it, but for the state."""
        with self._lock:
            return {
                "direction": self.direction,
                "total": self.files,
                "processed": self.files_prepared,
                "completed": self.files_done,
                "skipped": self.files_skipped,
                "failed": 0,
                "totalBytes": self.bytes,
                "completedBytes": self.bytes_done,
                "transferredBytes": self.transferred,
                "seconds": round(self.seconds, 3),
            }
