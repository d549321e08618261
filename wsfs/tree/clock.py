"""What time a change has: the kernel's, for it stamps half of all changes itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_CLOCK_REALTIME_COARSE: Final = 5
_AHEAD_MAX: Final = 10_000_000
"""From Linux 6.13 on the kernel's time may be ahead of its coarse clock by up to one tick, in nanoseconds."""


def kernel_time() -> int:
    """The clock that the kernel stamps files with, in nanoseconds. It moves every few milliseconds.

    Half of all times come from the kernel: those of writes, and of utimes without a time. A finer clock would be ahead
    of it, and a file would seem older after a change than before.
    """
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class Clock:
    """The time for changes, in nanoseconds: never before what the kernel has sent a moment ago."""

    def __init__(self, read: Callable[[], int] = kernel_time) -> None:
        self._read = read
        self._newest = 0

    def now(self) -> int:
        """The time for a change."""
        now = self._read()
        return self._newest if now < self._newest < now + _AHEAD_MAX else now

    def heard(self, ctime_ns: int) -> None:
        """The kernel has stamped a change with this time."""
        if ctime_ns > self._newest:
            self._newest = ctime_ns
