"""How long a save would take, judged by how long earlier ones took. Kept in the cache directory."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wsfs.sync.commit import Saved

FILE_BYTES: Final = 16 << 10
"""A file costs about as much time as so many bytes: hashing, a row, an entry in a pack."""

FIRST_RATE: Final = 50e6
"""Bytes a second before anything was saved here: half of what a slow machine does (docs/PERFORMANCE.md)."""

ROUND_TRIPS: Final = 4
"""Of a commit, one after the other: packs, a segment, the manifest, HEAD."""

_NAME: Final = "pace.json"
_WORTH: Final = 1 << 20
_SHARE: Final = 0.5


class Pace:
    """`latency` is that of small requests to the store, in seconds, as the mount's own requests have it, those of its
    start included; None before the first one."""

    def __init__(self, cache: Path, latency: Callable[[], float | None]) -> None:
        self._path = cache / _NAME
        self._latency = latency
        self.rate = FIRST_RATE
        """Bytes a second, before compression; a file counts as FILE_BYTES more."""
        self._guessed = True
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            rate = float(json.loads(self._path.read_text())["rate"])
            if math.isfinite(rate) and rate > 0:
                self.rate, self._guessed = rate, False

    @property
    def round_trip(self) -> float:
        """Seconds for one small request."""
        return self._latency() or 0.0

    def learn(self, saved: Saved) -> None:
        """From a save that has just ended. One that moved little says little about the rate."""
        work = saved.bytes + saved.files * FILE_BYTES
        seconds = saved.seconds - ROUND_TRIPS * self.round_trip
        if work < _WORTH or seconds <= 0:
            return
        self.rate += (1.0 if self._guessed else _SHARE) * (work / seconds - self.rate)
        self._guessed = False
        # Only a forecast depends on it: a full disk must not disturb the save.
        with contextlib.suppress(OSError):
            fresh = self._path.with_suffix(".new")
            fresh.write_text(json.dumps({"rate": round(self.rate)}))
            fresh.replace(self._path)

    def seconds(self, files: int, size: int) -> float:
        """For a save of so many files and bytes."""
        if not files and not size:
            return 0.0
        return ROUND_TRIPS * self.round_trip + (size + files * FILE_BYTES) / self.rate
