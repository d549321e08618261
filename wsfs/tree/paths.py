"""The paths of inodes: of one, for people, or of many, where each directory is looked at once."""

from __future__ import annotations

from itertools import islice
from typing import Final

from wsfs.index.index import Index
from wsfs.model import ROOT_INO
from wsfs.remote import Have, as_it_is

SEARCHED: Final = 1000
"""So many names of each directory are looked at for one path. 20,000 would take 70 ms."""

_DEPTH: Final = 256


def shown_path(index: Index, ino: int) -> bytes:
    """A path to an inode, in little time; b'?' stands for a name that cannot be found so. Raises NeedRemote."""
    parts: list[bytes] = []
    while ino != ROOT_INO and len(parts) < _DEPTH:
        inode = index.inode(ino)
        if inode is None:
            parts.append(b"?")
            break
        # A name's cookie is not below the number of its inode. It is close to it, unless the name is a later one.
        near = islice(index.names(inode.parent, ino - 1), SEARCHED)
        parts.append(next((name for name, dirent in near if dirent.ino == ino), b"?"))
        ino = inode.parent
    return b"/" + b"/".join(reversed(parts))


class Paths:
    """For one moment: it remembers names. Belongs to the owner thread; what is not here raises what `have` raises."""

    def __init__(self, index: Index, have: Have = as_it_is) -> None:
        self._index = index
        self._have = have
        self._names: dict[int, dict[int, bytes]] = {}
        self._found: dict[int, int] | None = None

    def of(self, ino: int) -> bytes | None:
        """A path from the top, without a slash at its beginning; None for what has no name any more, or, in a damaged
        workspace, cannot be reached from the top."""
        parts: list[bytes] = []
        seen: set[int] = set()
        while ino != ROOT_INO:
            if ino in seen:
                return None
            seen.add(ino)
            inode = self._have(lambda at=ino: self._index.inode(at))  # type: ignore[misc]
            if inode is None or inode.nlink == 0:
                return None
            parent: int | None = inode.parent
            name = self._names_in(inode.parent).get(ino)
            if name is None and not inode.is_dir:
                # It has lost the name that was made last: others may be anywhere.
                parent = self._search(ino)
                name = None if parent is None else self._names_in(parent).get(ino)
            if parent is None or name is None:
                return None
            parts.append(name)
            ino = parent
        return b"/".join(reversed(parts))

    def _search(self, ino: int) -> int | None:
        """A directory where a file has a name. Looks through all of them, once."""
        if self._found is None:
            found: dict[int, int] = {}
            pending: list[int] = [ROOT_INO]
            seen = {int(ROOT_INO)}
            while pending:
                directory = pending.pop()
                for child in self._names_in(directory):
                    inode = self._have(lambda at=child: self._index.inode(at))  # type: ignore[misc]
                    if inode is None or child in seen:
                        continue
                    if inode.is_dir:
                        seen.add(child)
                        pending.append(child)
                    else:
                        found[child] = directory
            self._found = found
        return self._found.get(ino)

    def _names_in(self, directory: int) -> dict[int, bytes]:
        found = self._names.get(directory)
        if found is None:
            names = self._have(lambda: list(self._index.names(directory, 0)))
            found = self._names[directory] = {int(dirent.ino): name for name, dirent in names}
        return found
