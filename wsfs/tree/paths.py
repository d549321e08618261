"""The paths of many inodes, where each directory is looked at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from wsfs.index.index import Index
from wsfs.model import ROOT_INO

T = TypeVar("T")


class Have:
    """How a look at the index gets what it needs; this one lets NeedRemote pass."""

    def __call__(self, look: Callable[[], T], /) -> T:
        return look()


class Paths:
    """For one moment: it remembers names. Belongs to the owner thread; what is not here raises what `have` raises."""

    def __init__(self, index: Index, have: Have | None = None) -> None:
        self._index = index
        self._have = have or Have()
        self._names: dict[int, dict[int, bytes]] = {}

    def of(self, ino: int) -> bytes | None:
        """A path from the top, without a slash at its beginning; None for what has no name any more."""
        parts: list[bytes] = []
        while ino != ROOT_INO:
            inode = self._have(lambda at=ino: self._index.inode(at))  # type: ignore[misc]
            name = None if inode is None else self._names_in(inode.parent).get(ino)
            if inode is None or name is None:
                return None
            parts.append(name)
            ino = inode.parent
        return b"/".join(reversed(parts))

    def _names_in(self, directory: int) -> dict[int, bytes]:
        found = self._names.get(directory)
        if found is None:
            names = self._have(lambda: list(self._index.names(directory, 0)))
            found = self._names[directory] = {int(dirent.ino): name for name, dirent in names}
        return found
