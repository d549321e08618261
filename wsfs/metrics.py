"""How long requests take: a histogram for each operation, cheap enough to stand around every request of the kernel."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

BOUNDS: Final = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    5.0,
    30.0,
)
"""Upper ends of the buckets, in seconds; what took longer is in one more."""


class Latency:
    """Of one operation. Belongs to one thread; others may read it."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """A request has been answered."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


def account(latencies: dict[str, Latency]) -> dict[str, dict[str, Any]]:
    """Of each operation that was used: `count`, `seconds` of all together, and `buckets`."""
    return {
        name: {"count": sum(one.counts), "seconds": one.seconds, "buckets": list(one.counts)}
        for name, one in latencies.items()
        if any(one.counts)
    }


def quantile(buckets: list[int], share: float) -> float:
    """The end of the bucket below which `share` of all requests lie, in seconds; infinity past the last one."""
    wanted, seen = share * sum(buckets), 0
    for bound, count in zip(BOUNDS, buckets, strict=False):
        seen += count
        if seen >= wanted:
            return bound
    return float("inf")
