"""The base partitions of the commit that the local rows build on, and which of them are here."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

from wsfs.errors import CacheError
from wsfs.index.base import Partition
from wsfs.remote import NeedRemote
from wsfs.repo.manifest import SegmentRef


def no_loader(ref: SegmentRef) -> None:
    """For an index that nothing can load partitions for."""
    raise CacheError(f"the metadata object '{ref.key}' is not here, and nothing can load it")


class Partitions:
    """Sorted by their first keys; the first one starts at the empty key. Never changes but for what is loaded."""

    def __init__(self, parts: list[Partition]) -> None:
        self.all: Final = parts
        self._starts: Final = [part.ref.start for part in parts]
        self.partial = any(not part.loaded for part in parts)
        """Whether any of them is not here."""

    def require(self, key: bytes, loader: Callable[[SegmentRef], None]) -> None:
        """Raise NeedRemote unless the partition of `key` is here."""
        part = self.all[bisect_right(self._starts, key) - 1]
        if not part.loaded:
            raise NeedRemote(dict([_fetch(part.ref, loader)]))

    def require_range(self, low: bytes, high: bytes, loader: Callable[[SegmentRef], None]) -> None:
        """Raise NeedRemote unless all partitions with keys from `low` on, below `high`, are here."""
        if not self.partial:
            return
        first = bisect_right(self._starts, low) - 1
        found = self.all[first : bisect_left(self._starts, high)]
        missing = dict(_fetch(part.ref, loader) for part in found if not part.loaded)
        if missing:
            raise NeedRemote(missing)

    def unloaded(self) -> list[SegmentRef]:
        """Those that are not here yet."""
        return [part.ref for part in self.all if not part.loaded]

    def find(self, ref: SegmentRef) -> Partition | None:
        """The partition that `ref` names, if it is still one of these, and not here."""
        return next((part for part in self.all if part.ref == ref and not part.loaded), None)

    def arrived(self, part: Partition) -> None:
        """The rows of this one are in LMDB."""
        part.loaded = True
        self.partial = any(not part.loaded for part in self.all)


def _fetch(ref: SegmentRef, loader: Callable[[SegmentRef], None]) -> tuple[object, Callable[[], object]]:
    return ("part", ref.key, ref.start), lambda: loader(ref)
