"""What stays on this machine because `.wsfsignore` says so: how it comes to stay, and how it ceases to.

A name that is made at an ignored path stays here, with its inode and all that is made below it. What a commit may hold
already goes on being saved, whatever the file says later. What stays here, and is not ignored any more, is saved by the
next commit: `judge` finds it.

An inode stays here with all of its names or with none, so a hard link never leads across; and a rename across has to
change the rows of all that moves, so there is a limit to that. What goes beyond gets EXDEV, as between two file
systems: mv(1) copies then.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from wsfs.data.files import Files
from wsfs.errors import FormatError
from wsfs.index.index import Batch, Index
from wsfs.model import Ino, Inode
from wsfs.remote import Fetches, NeedRemote
from wsfs.repo import codec
from wsfs.text import printable
from wsfs.tree.ignore import Ignore

MOVED_MAX: Final = 4096
"""A directory with more files and directories is not renamed to where it would stay here."""

FETCHED_MAX: Final = 8 << 20
"""Nor is what has more bytes that are only in the store."""

_AT_ONCE: Final = 256
_NEVER: Final = object()


class Keeping:
    """Belongs to the owner thread."""

    def __init__(self, index: Index, files: Files) -> None:
        self._index = index
        self._files = files
        self._kept = index.kept
        self.ignore = Ignore(index, files)
        self._judged: object = _NEVER
        self._queue: deque[tuple[int, bytes]] = deque()
        self._waiting: dict[int, set[tuple[int, bytes]]] = {}
        self._split = False

    # --- names ----------------------------------------------------------------------------------------------------

    def stays(self, parent: Ino, name: bytes, *, is_dir: bool, target: Inode | None = None) -> bool:
        """Whether what is put at this name stays here; `target` is what it replaces. Raises NeedRemote, FormatError."""
        if self.ignore.absent and not self._kept.sizes:
            return False  # most workspaces
        if parent in self._kept.sizes:
            return True
        if target is not None and target.ino not in self._kept:
            return False  # that is saved, and so its name goes on being
        return self.ignore.covers(parent, name, is_dir=is_dir)

    def renamed(self, *names: tuple[Ino, bytes], moved: Iterable[Inode] = ()) -> None:
        """These names lead to something else now, and `moved` have others."""
        for parent, name in names:
            self.ignore.renamed(parent, name)
        for inode in moved:
            if inode.is_dir:
                self.ignore.moved(inode.ino)
                if inode.ino not in self._kept:
                    self._judged = _NEVER  # patterns with a path may not fit any more

    def lost_name(self, inode: Inode) -> None:
        """An inode has a name less: perhaps the one for which it stayed here."""
        if self._split and inode.ino in self._kept:
            self._judged = _NEVER

    # --- from one side to the other -------------------------------------------------------------------------------

    def hide(self, batch: Batch, inode: Inode) -> Callable[[], None]:
        """Let `batch` keep an inode here, and all that is below it. The result has to be called before it is applied.

        Raises NeedRemote, FormatError, and EXDEV if that is too much, or a file has other names.
        """
        room, count = FETCHED_MAX, 0
        needed: Fetches = {}
        begins: list[Callable[[], None]] = []
        pending = [inode]
        while pending:
            one = pending.pop()
            count += 1
            if count > MOVED_MAX or (one.nlink > 1 and not one.is_dir):
                raise across()
            batch.hide(one.ino)
            batch.put_inode(one)
            self._put_rest(batch, one.ino)
            try:
                if one.is_dir:
                    pending += self._hide_entries(batch, one.ino)
                elif one.is_file:
                    room, begin = self._files.bring(one.ino, batch, room)
                    begins.append(begin)
            except NeedRemote as need:
                needed.update(need.fetches)
        if needed:
            raise NeedRemote(needed)

        def begin_all() -> None:
            for begin in begins:
                begin()

        return begin_all

    def _hide_entries(self, batch: Batch, directory: Ino) -> list[Inode]:
        """The names in a directory stay here; returns what they lead to, if it does not yet."""
        found = []
        for name, dirent in list(self._index.names(directory, 0)):
            if not self._kept.has_name(directory, name):
                child = self._index.inode(dirent.ino)
                if child is None:
                    raise FormatError(f"the name {printable(name)} leads to inode {dirent.ino}, which is missing")
                batch.put_dirent(directory, name, dirent)
                found.append(child)
        return found

    def show(self, batch: Batch, inode: Inode) -> Callable[[], None]:
        """Let `batch` have an inode saved from now on. Of a directory the entries still stay here. The result has to be
        called once it is applied. Raises NeedRemote."""
        ino = inode.ino
        batch.show(ino)
        batch.put_inode(inode)
        self._put_rest(batch, ino)
        if inode.is_dir:
            batch.opened[ino] = {name: dirent.is_dir for name, dirent in self._index.names(ino, 0)}
        return self._files.share(ino, batch)

    def _put_rest(self, batch: Batch, ino: Ino) -> None:
        """The rows of an inode that are neither attributes, names nor blocks."""
        for key, row in self._index.scan(ino, codec.XATTR):
            batch.put(key, row)
        target = self._index.get(codec.symlink_key(ino))
        if target is not None:
            batch.put(codec.symlink_key(ino), target)

    # --- judging --------------------------------------------------------------------------------------------------

    def later(self, parent: Ino, name: bytes) -> None:
        """A name that stays here lies where it is not ignored: have the next `judge` see to it."""
        self._queue.append((parent, name))

    def judge(self) -> bool:
        """Have saved what stays here and is not ignored any more, some of it; True if there may be more.

        Costs nothing if no pattern has changed, no directory was moved, and nothing came here from where it was
        ignored. Raises NeedRemote, CacheError.
        """
        if not self._kept.names:
            self._queue.clear()
            return False
        rules = self.ignore.rules()
        if self.ignore.damaged:
            return False
        if rules is not self._judged:
            self._queue = deque((ino, name) for ino, names in self._kept.names.items() for name in names)
            self._waiting = {}
            self._judged = rules
        for _ in range(min(len(self._queue), _AT_ONCE)):
            self._reconsider(*self._queue[0])
            self._queue.popleft()
        if not self._queue:
            self._split = bool(self._waiting)
        return bool(self._queue)

    def _reconsider(self, parent: int, name: bytes) -> None:
        if name not in self._kept.names.get(parent, ()):
            return
        inode = self._at(parent, name)
        if inode is None or self.ignore.covers(parent, name, is_dir=inode.is_dir):
            return
        names = {(parent, name)}
        if not inode.is_dir and inode.nlink > 1:
            # All names at once, or none: while one is ignored, the file stays here.
            waiting = self._waiting.setdefault(inode.ino, set())
            waiting |= names
            names = {one for one in waiting if self._at(*one) == inode}
            if len(names) < inode.nlink:
                return
        batch = Batch()
        finish = self.show(batch, inode)
        for directory, one in names:
            self._save_name(batch, directory, one)
        self._index.apply(batch)
        finish()
        self._waiting.pop(inode.ino, None)
        self._queue.extend((inode.ino, one) for one in batch.opened.get(inode.ino, ()))

    def _at(self, parent: int, name: bytes) -> Inode | None:
        found = self._index.dirent(parent, name)
        return None if found is None else self._index.inode(found.ino)

    def _save_name(self, batch: Batch, parent: int, name: bytes) -> None:
        directory, dirent = self._index.inode(parent), self._index.dirent(parent, name)
        assert directory is not None
        assert dirent is not None
        batch.put_dirent(directory.ino, name, dirent)
        if directory not in batch.inodes:
            batch.put_inode(directory)


def across() -> OSError:
    """What a rename or a link gets that would have to lead across, and cannot."""
    return OSError(errno.EXDEV, os.strerror(errno.EXDEV))
