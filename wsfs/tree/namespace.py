"""Names and attributes: what each system call on the mount means. No FUSE in here.

Synchronous, on the owner thread, and each change is one batch: all of it happens or none. Errors are OSError with the
errno that the program sees. Everything that must be read is read first, so that NeedRemote leaves nothing half done.

The kernel checks permissions (default_permissions), the sticky bit, types and loops before it asks us.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from wsfs.data.files import Files
from wsfs.index.index import Batch, Index
from wsfs.model import MARKER_INO, MARKER_NAME, NAME_MAX, ROOT_INO, Dirent, Ino, Inode
from wsfs.repo import codec

SYMLINK_MAX: Final = 4095
LINK_MAX: Final = 65000
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
XATTR_SIZE_MAX: Final = 64 << 10
_XATTR_PRESENT: Final = b"="
"""Before each value: an empty one is then still a row."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the user and group that a new file belongs to."""

    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr is to change; None leaves a field as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Namespace:
    """Directories, links and attributes over the index."""

    def __init__(self, index: Index, files: Files, clock: Callable[[], int] = time.time_ns) -> None:
        self._index = index
        self._files = files
        self._clock = clock

    # --- reading --------------------------------------------------------------------------------------------------

    def lookup(self, parent: Ino, name: bytes) -> Inode:
        if len(name) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        found = self._index.dirent(parent, name)
        if found is None:
            raise _error(errno.ENOENT)
        return self.inode(found.ino)

    def inode(self, ino: Ino) -> Inode:
        found = self._index.inode(ino)
        if found is None:
            raise _error(errno.ENOENT)
        return found

    def readlink(self, ino: Ino) -> bytes:
        target = self._index.get(codec.symlink_key(ino))
        if target is None:
            raise _error(errno.EINVAL)
        return target

    def entries(self, ino: Ino, after: int) -> Iterator[tuple[bytes, int, Inode]]:
        """Name, cookie and attributes of each entry after the one with cookie `after`."""
        for name, dirent in self._index.names(ino, after):
            yield name, dirent.cookie, self.inode(dirent.ino)

    def path(self, ino: Ino) -> bytes:
        """A path to an inode, for people; b'?' stands for what cannot be found without waiting."""
        parts: list[bytes] = []
        while ino != ROOT_INO and len(parts) < 256:
            inode = self._index.inode(ino)
            if inode is None:
                parts.append(b"?")
                break
            name = next((n for n, d in self._index.names(inode.parent, 0) if d.ino == ino), b"?")
            parts.append(name)
            ino = inode.parent
        return b"/" + b"/".join(reversed(parts))

    # --- making ---------------------------------------------------------------------------------------------------

    def make(
        self, parent: Ino, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes | None = None
    ) -> Inode:
        """A new file, directory, device, FIFO, socket or (with `target`) symbolic link."""
        directory = self._for_new_name(parent, name)
        if target is not None and not 0 < len(target) <= SYMLINK_MAX:
            raise _error(errno.ENAMETOOLONG if target else errno.ENOENT)
        now = self._clock()
        gid = caller.gid
        is_dir = stat.S_ISDIR(mode)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if is_dir:
                mode |= stat.S_ISGID
        ino = Ino(self._index.new_id())
        size = len(target) if target is not None else 0
        inode = Inode(ino, mode, caller.uid, gid, 2 if is_dir else 1, rdev, size, now, now, now, parent)
        batch = Batch()
        batch.files = 1
        batch.bytes = size
        batch.put_inode(inode)
        if target is not None:
            batch.put(codec.symlink_key(ino), target)
        self._add_name(batch, directory, name, inode, now, subdirectories=1 if is_dir else 0)
        self._index.apply(batch)
        return inode

    def link(self, ino: Ino, parent: Ino, name: bytes) -> Inode:
        """Another name for a file."""
        if ino == MARKER_INO:
            raise _error(errno.EPERM)
        directory = self._for_new_name(parent, name)
        inode = self.inode(ino)
        if inode.is_dir:
            raise _error(errno.EPERM)
        if inode.nlink == 0:
            raise _error(errno.ENOENT)
        if inode.nlink >= LINK_MAX:
            raise _error(errno.EMLINK)
        now = self._clock()
        inode = inode._replace(nlink=inode.nlink + 1, ctime_ns=now, parent=parent)
        batch = Batch()
        batch.put_inode(inode)
        self._add_name(batch, directory, name, inode, now)
        self._index.apply(batch)
        return inode

    # --- removing -------------------------------------------------------------------------------------------------

    def unlink(self, parent: Ino, name: bytes) -> Ino:
        """Remove a name that is no directory's. Returns the inode, which may live on while it is open."""
        self._guard_name(parent, name)
        inode = self.lookup(parent, name)
        if inode.is_dir:
            raise _error(errno.EISDIR)
        return self._remove(parent, name, inode)

    def rmdir(self, parent: Ino, name: bytes) -> Ino:
        """Remove an empty directory."""
        self._guard_name(parent, name)
        inode = self.lookup(parent, name)
        if not inode.is_dir:
            raise _error(errno.ENOTDIR)
        if inode.size:
            raise _error(errno.ENOTEMPTY)
        return self._remove(parent, name, inode)

    def _remove(self, parent: Ino, name: bytes, inode: Inode) -> Ino:
        directory = self.inode(parent)
        now = self._clock()
        batch = Batch()
        batch.delete(codec.dirent_key(parent, name))
        self._drop_link(batch, inode, now)
        batch.put_inode(_touched(directory, now, entries=-1, subdirectories=-1 if inode.is_dir else 0))
        self._index.apply(batch)
        return inode.ino

    def _drop_link(self, batch: Batch, inode: Inode, now: int) -> None:
        """One name less; without names the inode is detached until nobody has it open."""
        nlink = 0 if inode.is_dir else inode.nlink - 1
        inode = inode._replace(nlink=nlink, ctime_ns=now)
        if nlink:
            batch.put_inode(inode)
            return
        batch.files -= 1
        batch.bytes -= 0 if inode.is_dir else inode.size
        self._index.detach(inode.ino, inode, batch)

    def forgotten(self, ino: Ino) -> None:
        """The kernel has no reference to the inode any more: if it has no name either, it is gone."""
        if self._index.is_detached(ino):
            self._index.forget_detached(ino)
            self._files.discard(ino)

    # --- renaming -------------------------------------------------------------------------------------------------

    def rename(self, parent: Ino, name: bytes, new_parent: Ino, new_name: bytes, flags: int = 0) -> Ino | None:
        """Move a name, over an existing one if need be; with RENAME_NOREPLACE not, with RENAME_EXCHANGE swap both.

        Returns the inode that lost its name to the moved one.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise _error(errno.EINVAL)
        self._guard_name(parent, name)
        self._guard_name(new_parent, new_name)
        if len(new_name) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        source = self.lookup(parent, name)
        found = self._index.dirent(new_parent, new_name)
        target = None if found is None else self.inode(found.ino)
        if target is not None and flags == RENAME_NOREPLACE:
            raise _error(errno.EEXIST)
        if flags == RENAME_EXCHANGE:
            if target is None:
                raise _error(errno.ENOENT)
            self._exchange(parent, name, source, new_parent, new_name, target)
            return None
        if target is not None:
            if target.ino == source.ino:
                return None
            _check_replace(source, target)
        self._move(parent, name, source, new_parent, new_name, target)
        return None if target is None else target.ino

    def _move(
        self, parent: Ino, name: bytes, source: Inode, new_parent: Ino, new_name: bytes, target: Inode | None
    ) -> None:
        old_dir, new_dir = self.inode(parent), self.inode(new_parent)
        now = self._clock()
        batch = Batch()
        moved = 1 if source.is_dir else 0
        replaced = target is not None
        lost = 1 if target is not None and target.is_dir else 0
        if target is not None:
            self._drop_link(batch, target, now)
            # The new content may not be on disk yet, and the old one is about to go.
            self._index.guard_data(source.ino)
        batch.delete(codec.dirent_key(parent, name))
        dirent = Dirent(source.ino, stat.S_IFMT(source.mode) >> 12, self._index.new_id())
        batch.put_dirent(new_parent, new_name, dirent)
        batch.put_inode(source._replace(ctime_ns=now, parent=new_parent))
        if parent == new_parent:
            batch.put_inode(_touched(old_dir, now, entries=-1 if replaced else 0, subdirectories=-lost))
        else:
            batch.put_inode(_touched(old_dir, now, entries=-1, subdirectories=-moved))
            batch.put_inode(_touched(new_dir, now, entries=0 if replaced else 1, subdirectories=moved - lost))
        self._index.apply(batch)

    def _exchange(
        self, parent: Ino, name: bytes, source: Inode, new_parent: Ino, new_name: bytes, target: Inode
    ) -> None:
        if source.ino == target.ino:
            return
        old_dir, new_dir = self.inode(parent), self.inode(new_parent)
        now = self._clock()
        batch = Batch()
        for directory, at, inode in ((new_parent, new_name, source), (parent, name, target)):
            dirent = Dirent(inode.ino, stat.S_IFMT(inode.mode) >> 12, self._index.new_id())
            batch.put_dirent(directory, at, dirent)
            batch.put_inode(inode._replace(ctime_ns=now, parent=directory))
        gain = int(source.is_dir) - int(target.is_dir)
        if parent == new_parent:
            batch.put_inode(_touched(old_dir, now))
        else:
            batch.put_inode(_touched(old_dir, now, subdirectories=-gain))
            batch.put_inode(_touched(new_dir, now, subdirectories=gain))
        self._index.apply(batch)

    # --- attributes -----------------------------------------------------------------------------------------------

    def setattr(self, ino: Ino, changes: Changes, caller: Caller) -> Inode:
        """Change attributes; a change of size changes the content too."""
        if ino == MARKER_INO:
            raise _error(errno.EPERM)
        inode = self.inode(ino)
        now = self._clock()
        batch = Batch()
        finish: Callable[[], None] | None = None
        # The kernel then leaves the times as they are, and goes on showing them.
        same_size = changes == Changes(size=inode.size)
        if changes.size is not None:
            if not inode.is_file:
                raise _error(errno.EISDIR if inode.is_dir else errno.EINVAL)
            if changes.size != inode.size:
                inode, finish = self._files.truncate(inode, changes.size, batch)
                inode = inode._replace(mtime_ns=now)
            if caller.uid != 0 and changes.mode is None:
                inode = inode._replace(mode=_without_setid(inode.mode))
        if changes.mode is not None:
            inode = inode._replace(mode=stat.S_IFMT(inode.mode) | stat.S_IMODE(changes.mode))
        if changes.uid is not None or changes.gid is not None:
            uid = inode.uid if changes.uid is None else changes.uid
            gid = inode.gid if changes.gid is None else changes.gid
            inode = inode._replace(uid=uid, gid=gid)
            if changes.mode is None and not inode.is_dir:
                inode = inode._replace(mode=_without_setid(inode.mode))
        if changes.atime_ns is not None:
            inode = inode._replace(atime_ns=changes.atime_ns)
        if changes.mtime_ns is not None:
            inode = inode._replace(mtime_ns=changes.mtime_ns)
        if not same_size:
            inode = inode._replace(ctime_ns=now if changes.ctime_ns is None else changes.ctime_ns)
        batch.put_inode(inode)
        self._index.apply(batch)
        if finish is not None:
            finish()
        return inode

    def check_open(self, ino: Ino, flags: int) -> Inode:
        """What open(2) may do: the marker cannot be opened for writing, by nobody."""
        if ino == MARKER_INO and (flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC):
            raise _error(errno.EPERM)
        return self.inode(ino)

    # --- extended attributes --------------------------------------------------------------------------------------

    def getxattr(self, ino: Ino, name: bytes) -> bytes:
        row = self._index.get(codec.xattr_key(ino, name))
        if row is None:
            raise _error(errno.ENODATA)
        return row[1:]

    def listxattr(self, ino: Ino) -> list[bytes]:
        self.inode(ino)
        return [key[9:] for key, _ in self._index.scan(ino, codec.XATTR)]

    @staticmethod
    def check_xattr(ino: Ino, name: bytes, *, supported: bool) -> None:
        """Whether this extended attribute of an inode can be changed at all."""
        if ino == MARKER_INO:
            raise _error(errno.EPERM)
        # An access control list that is kept, but that nobody obeys, would be worse than none.
        if not supported or name.startswith(b"system.posix_acl_"):
            raise _error(errno.ENOTSUP)

    def setxattr(self, ino: Ino, name: bytes, value: bytes) -> None:
        self.check_xattr(ino, name, supported=True)
        inode = self.inode(ino)
        if len(name) > NAME_MAX:
            raise _error(errno.ERANGE)
        if len(value) > XATTR_SIZE_MAX:
            raise _error(errno.E2BIG)
        batch = Batch()
        batch.put(codec.xattr_key(ino, name), _XATTR_PRESENT + value)
        batch.put_inode(inode._replace(ctime_ns=self._clock()))
        self._index.apply(batch)

    def removexattr(self, ino: Ino, name: bytes) -> None:
        self.check_xattr(ino, name, supported=True)
        self.getxattr(ino, name)
        batch = Batch()
        batch.delete(codec.xattr_key(ino, name))
        batch.put_inode(self.inode(ino)._replace(ctime_ns=self._clock()))
        self._index.apply(batch)

    # --- helpers --------------------------------------------------------------------------------------------------

    @staticmethod
    def _guard_name(parent: Ino, name: bytes) -> None:
        """Nothing happens to the marker: without it a workspace could not be started again."""
        if parent == ROOT_INO and name == MARKER_NAME:
            raise _error(errno.EPERM)

    def _for_new_name(self, parent: Ino, name: bytes) -> Inode:
        self._guard_name(parent, name)
        if len(name) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        directory = self.inode(parent)
        if directory.nlink == 0:
            raise _error(errno.ENOENT)
        if self._index.dirent(parent, name) is not None:
            raise _error(errno.EEXIST)
        return directory

    def _add_name(
        self, batch: Batch, directory: Inode, name: bytes, inode: Inode, now: int, subdirectories: int = 0
    ) -> None:
        dirent = Dirent(inode.ino, stat.S_IFMT(inode.mode) >> 12, self._index.new_id())
        batch.put_dirent(directory.ino, name, dirent)
        batch.put_inode(_touched(directory, now, entries=1, subdirectories=subdirectories))


def _touched(directory: Inode, now: int, entries: int = 0, subdirectories: int = 0) -> Inode:
    """A directory after its entries have changed."""
    return directory._replace(
        size=directory.size + entries, nlink=directory.nlink + subdirectories, mtime_ns=now, ctime_ns=now
    )


def _check_replace(source: Inode, target: Inode) -> None:
    if target.is_dir:
        if not source.is_dir:
            raise _error(errno.EISDIR)
        if target.size:
            raise _error(errno.ENOTEMPTY)
    elif source.is_dir:
        raise _error(errno.ENOTDIR)


def _without_setid(mode: int) -> int:
    """As chown(2) and write(2) leave it: no set-user-ID, and no set-group-ID where that means execution."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode
