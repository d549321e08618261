"""Names and attributes: what each system call on the mount means. No FUSE in here.

Synchronous, on the owner thread, and each change is one batch: all of it happens or none. Errors are OSError with the
errno that the program sees. Everything that must be read is read first, so that NeedRemote leaves nothing half done.

The kernel checks permissions (default_permissions), the sticky bit, types and loops before it asks us.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from wsfs.data.files import Files, without_setid
from wsfs.errors import FormatError
from wsfs.index.index import Batch, Index
from wsfs.index.journal import HIDE, KEEP, PUT
from wsfs.model import (
    MARKER_INO,
    MARKER_NAME,
    NAME_MAX,
    PAST_NAME,
    ROOT_INO,
    TYPE_MASK,
    Dirent,
    Ino,
    Inode,
    new_record,
)
from wsfs.repo import codec
from wsfs.text import printable
from wsfs.tree.clock import Clock, kernel_time
from wsfs.tree.keeping import Keeping, across
from wsfs.tree.paths import shown_path
from wsfs.tree.xattrs import Xattrs

SYMLINK_MAX: Final = 4095
LINK_MAX: Final = 65000
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2


class Credentials(Protocol):
    """Who asks: the user and group that a new file belongs to."""

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...


class Caller(NamedTuple):
    """Credentials of somebody who does not come from the kernel."""

    uid: int
    gid: int


class Changes(NamedTuple):
    """What setattr is to change; None leaves a field as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None


def _nothing() -> None:
    """For a rename that leads from nowhere to nowhere else."""


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Namespace:
    """Directories, links and attributes over the index."""

    def __init__(self, index: Index, files: Files, clock: Callable[[], int] = kernel_time) -> None:
        self._index = index
        self._files = files
        self._clock = Clock(clock)
        self.now = self._clock.now
        self._keeping = Keeping(index, files)
        self.xattrs = Xattrs(index, self.inode, self.now)

    def judge(self) -> bool:
        """Before a commit: decide what is saved from now on. To be called until it is False; see `Keeping.judge`."""
        return self._keeping.judge()

    # --- reading --------------------------------------------------------------------------------------------------

    def find(self, parent: Ino, name: bytes) -> Inode | None:
        """What a name leads to, None if there is no such name."""
        if len(name) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        return self._index.child(parent, name)

    def lookup(self, parent: Ino, name: bytes) -> Inode:
        """What a name leads to. Raises ENOENT."""
        found = self.find(parent, name)
        if found is None:
            raise _error(errno.ENOENT)
        return found

    def inode(self, ino: Ino) -> Inode:
        found = self._index.inode(ino)
        if found is None:
            raise _error(errno.ENOENT)
        return found

    def readlink(self, ino: Ino) -> bytes:
        target = self._index.get(codec.symlink_key(ino))
        if target is None:
            raise _error(errno.EINVAL)
        if len(target) > SYMLINK_MAX or b"\0" in target:
            raise FormatError(f"the target of the symbolic link {ino} is none that there can be")
        return target

    def entries(self, ino: Ino, after: int) -> Iterator[tuple[bytes, int, Inode]]:
        """Name, cookie and attributes of each entry after the one with cookie `after`."""
        for name, dirent in self._index.names(ino, after):
            inode = self._index.inode(dirent.ino)
            if inode is None:
                raise FormatError(f"the name {printable(name)} leads to inode {dirent.ino}, which is missing")
            yield name, dirent.cookie, inode

    def path(self, ino: Ino) -> bytes:
        """A path to an inode, for people; b'?' stands for what cannot be found without waiting."""
        return shown_path(self._index, ino)

    # --- making ---------------------------------------------------------------------------------------------------

    def make(
        self, parent: Ino, name: bytes, mode: int, caller: Credentials, *, rdev: int = 0, target: bytes | None = None
    ) -> Inode:
        """A new file, directory, device, FIFO, socket or (with `target`) symbolic link."""
        self._guard_name(parent, name)
        directory = self._for_new_name(parent, name)
        if target is not None and not 0 < len(target) <= SYMLINK_MAX:
            raise _error(errno.ENAMETOOLONG if target else errno.ENOENT)
        is_dir = mode & TYPE_MASK == stat.S_IFDIR
        stays = self._keeping.stays(parent, name, is_dir=is_dir)
        if not stays:
            self._index.admit(len(target or b""), new=True)
        now = self.now()
        gid = caller.gid
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if is_dir:
                mode |= stat.S_ISGID
        ino = Ino(self._index.new_id())
        size = len(target) if target is not None else 0
        nlink = 2 if is_dir else 1
        inode = new_record(Inode, (ino, mode, caller.uid, gid, nlink, rdev, size, now, now, now, parent))
        batch = Batch()
        batch.files = 1
        batch.bytes = size
        if stays:
            batch.keep(ino)
        batch.put_inode(inode)
        if target is not None:
            batch.put(codec.symlink_key(ino), target)
        self._add_name(batch, directory, name, inode, now, 1 if is_dir else 0, stays=stays)
        self._index.apply(batch)
        if is_dir:
            self._keeping.ignore.made(ino, name)
        return inode

    def link(self, ino: Ino, parent: Ino, name: bytes, *, saved: bool = False) -> Inode:
        """Another name for a file; `saved`: whatever is ignored, for a save point had it."""
        if ino == MARKER_INO:
            raise _error(errno.EPERM)
        self._guard_name(parent, name)
        directory = self._for_new_name(parent, name)
        inode = self.inode(ino)
        if inode.is_dir:
            raise _error(errno.EPERM)
        if inode.nlink == 0:
            raise _error(errno.ENOENT)
        if inode.nlink >= LINK_MAX:
            raise _error(errno.EMLINK)
        stays = parent in self._index.kept if saved else self._keeping.stays(parent, name, is_dir=False)
        if stays != (ino in self._index.kept):
            raise across()
        now = self.now()
        inode = inode._replace(nlink=inode.nlink + 1, ctime_ns=now, parent=parent)
        batch = Batch()
        batch.put_inode(inode)
        self._add_name(batch, directory, name, inode, now, stays=stays)
        self._index.apply(batch)
        return inode

    def adopt(self, parent: Ino, name: bytes, like: Inode, body: Iterable[tuple[bytes, bytes]]) -> Inode:
        """A new inode like one of an older commit, but for its number: with the attributes of `like`, which has no
        other name and, if it is a directory, no entries, and with its blocks, link target and extended attributes. It
        is saved, whatever is ignored; so it cannot lie in a directory that stays on this machine: EXDEV."""
        self._guard_marker(parent, name)
        directory = self._for_new_name(parent, name)
        if parent in self._index.kept:
            raise across()
        now = self.now()
        ino = Ino(self._index.new_id())
        is_dir = like.is_dir
        inode = like._replace(
            ino=ino, nlink=2 if is_dir else 1, size=0 if is_dir else like.size, ctime_ns=now, parent=parent
        )
        batch = Batch()
        batch.files = 1
        batch.bytes = inode.size
        batch.put_inode(inode)
        for key, row in body:
            batch.put(codec.attr_key(ino)[:8] + key[8:], row)
        self._add_name(batch, directory, name, inode, now, 1 if is_dir else 0)
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
        now = self.now()
        batch = Batch()
        batch.delete(codec.dirent_key(parent, name))
        self._drop_link(batch, inode, now)
        stayed = self._index.kept.has_name(parent, name)
        gone = 1 if inode.is_dir else 0
        batch.put_inode(_touched(directory, now, entries=-1, subdirectories=-gone), clean=stayed)
        self._index.apply(batch)
        self._keeping.renamed((parent, name))
        self._keeping.lost_name(inode)
        return inode.ino

    def _drop_link(self, batch: Batch, inode: Inode, now: int) -> None:
        """One name less; without names the inode is detached until nobody has it open."""
        nlink = 0 if inode.is_dir else inode.nlink - 1
        ino, mode, uid, gid, _, rdev, size, atime, mtime, _, parent = inode
        inode = new_record(Inode, (ino, mode, uid, gid, nlink, rdev, size, atime, mtime, now, parent))
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
        self._keeping.renamed((parent, name), (new_parent, new_name), moved=(source,))
        if target is not None:
            self._keeping.lost_name(target)
        return None if target is None else target.ino

    def _move(
        self, parent: Ino, name: bytes, source: Inode, new_parent: Ino, new_name: bytes, target: Inode | None
    ) -> None:
        old_dir, new_dir = self.inode(parent), self.inode(new_parent)
        stayed = source.ino in self._index.kept
        stays = self._keeping.stays(new_parent, new_name, is_dir=source.is_dir, target=target)
        now = self.now()
        batch = Batch()
        begin = finish = _nothing
        flag = KEEP if stays else PUT
        source = _moved(source, now, new_parent)
        if stayed == stays:
            batch.put_inode(source)
        elif stays:
            begin = self._keeping.hide(batch, source)
        elif source.is_dir or source.nlink > 1:
            # Its entries, or its other names, have to be looked at.
            flag = KEEP if target is None or target.ino in self._index.kept else HIDE
            batch.put_inode(source)
        else:
            finish = self._keeping.show(batch, source)
        moved = 1 if source.is_dir else 0
        replaced = target is not None
        lost = 1 if target is not None and target.is_dir else 0
        if target is not None:
            self._drop_link(batch, target, now)
            # The new content may not be on disk yet, and the old one is about to go.
            self._index.guard_data(source.ino)
        batch.delete(codec.dirent_key(parent, name))
        dirent = new_record(Dirent, (source.ino, (source.mode & TYPE_MASK) >> 12, self._index.new_id()))
        batch.put_dirent(new_parent, new_name, dirent, flag)
        if parent == new_parent:
            touched = _touched(old_dir, now, entries=-1 if replaced else 0, subdirectories=-lost)
            batch.put_inode(touched, clean=stayed and stays)
        else:
            batch.put_inode(_touched(old_dir, now, entries=-1, subdirectories=-moved), clean=stayed)
            touched = _touched(new_dir, now, entries=0 if replaced else 1, subdirectories=moved - lost)
            batch.put_inode(touched, clean=stays)
        begin()
        self._index.apply(batch)
        finish()
        if flag != PUT and not stays:
            self._keeping.later(new_parent, new_name)

    def _exchange(
        self, parent: Ino, name: bytes, source: Inode, new_parent: Ino, new_name: bytes, target: Inode
    ) -> None:
        if source.ino == target.ino:
            return
        stay = source.ino in self._index.kept
        if stay != (target.ino in self._index.kept):
            raise across()
        old_dir, new_dir = self.inode(parent), self.inode(new_parent)
        now = self.now()
        batch = Batch()
        for directory, at, inode in ((new_parent, new_name, source), (parent, name, target)):
            dirent = Dirent(inode.ino, stat.S_IFMT(inode.mode) >> 12, self._index.new_id())
            batch.put_dirent(directory, at, dirent, KEEP if stay else PUT)
            batch.put_inode(_moved(inode, now, directory))
        gain = int(source.is_dir) - int(target.is_dir)
        if parent == new_parent:
            batch.put_inode(_touched(old_dir, now), clean=stay)
        else:
            batch.put_inode(_touched(old_dir, now, subdirectories=-gain), clean=stay)
            batch.put_inode(_touched(new_dir, now, subdirectories=gain), clean=stay)
        self._index.apply(batch)
        self._keeping.renamed((parent, name), (new_parent, new_name), moved=(source, target))

    # --- attributes -----------------------------------------------------------------------------------------------

    def setattr(self, ino: Ino, changes: Changes, caller: Credentials) -> Inode:
        """Change attributes; a change of size changes the content too."""
        if ino == MARKER_INO:
            raise _error(errno.EPERM)
        inode = self.inode(ino)
        new_mode, new_uid, new_gid, new_size, new_atime, new_mtime, new_ctime = changes
        if new_ctime is not None:
            self._clock.heard(new_ctime)
        now = self.now()
        batch = Batch()
        finish: Callable[[], None] | None = None
        _, mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, parent = inode
        if new_size is not None:
            if not inode.is_file:
                raise _error(errno.EISDIR if inode.is_dir else errno.EINVAL)
            if new_size != size:
                finish = self._files.truncate(inode, new_size, batch)
                size, mtime = new_size, now
            if caller.uid != 0 and new_mode is None:
                mode = without_setid(mode)
        if new_mode is not None:
            mode = mode & TYPE_MASK | new_mode & 0o7777
        if new_uid is not None or new_gid is not None:
            uid = uid if new_uid is None else new_uid
            gid = gid if new_gid is None else new_gid
            if new_mode is None and not inode.is_dir:
                mode = without_setid(mode)
        if new_atime is not None:
            atime = new_atime
        if new_mtime is not None:
            mtime = new_mtime
        # With a size that stays the same the kernel leaves the times as they are, and goes on showing them.
        if finish is not None or changes != (None, None, None, size, None, None, None):
            ctime = now if new_ctime is None else new_ctime
        inode = new_record(Inode, (ino, mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, parent))
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

    # --- helpers --------------------------------------------------------------------------------------------------

    @staticmethod
    def _guard_marker(parent: Ino, name: bytes) -> None:
        """Nothing happens to the marker: without it a workspace could not be started again."""
        if parent == ROOT_INO and name == MARKER_NAME:
            raise _error(errno.EPERM)

    def _guard_name(self, parent: Ino, name: bytes) -> None:
        """What programs may do to a name: nothing to the marker, and nothing to what leads to the save points."""
        if parent == ROOT_INO:
            self._guard_marker(parent, name)
            if name == PAST_NAME and self._index.dirent(parent, name) is None:
                raise _error(errno.EROFS)

    def _for_new_name(self, parent: Ino, name: bytes) -> Inode:
        if len(name) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        directory = self.inode(parent)
        if directory.nlink == 0:
            raise _error(errno.ENOENT)
        if self._index.dirent(parent, name) is not None:
            raise _error(errno.EEXIST)
        return directory

    def _add_name(
        self,
        batch: Batch,
        directory: Inode,
        name: bytes,
        inode: Inode,
        now: int,
        subdirectories: int = 0,
        *,
        stays: bool = False,
    ) -> None:
        dirent = new_record(Dirent, (inode.ino, (inode.mode & TYPE_MASK) >> 12, self._index.new_id()))
        batch.put_dirent(directory.ino, name, dirent, KEEP if stays else PUT)
        batch.put_inode(_touched(directory, now, 1, subdirectories), clean=stays)
        if directory.ino == ROOT_INO:  # where the file is that says what is ignored
            self._keeping.ignore.renamed(ROOT_INO, name)


def _touched(directory: Inode, now: int, entries: int = 0, subdirectories: int = 0) -> Inode:
    """A directory after its entries have changed."""
    ino, mode, uid, gid, nlink, rdev, size, atime, _mtime, _ctime, parent = directory
    return new_record(
        Inode, (ino, mode, uid, gid, nlink + subdirectories, rdev, size + entries, atime, now, now, parent)
    )


def _moved(inode: Inode, now: int, parent: Ino) -> Inode:
    """What has another name."""
    ino, mode, uid, gid, nlink, rdev, size, atime, mtime, _ctime, _parent = inode
    return new_record(Inode, (ino, mode, uid, gid, nlink, rdev, size, atime, mtime, now, parent))


def _check_replace(source: Inode, target: Inode) -> None:
    if target.is_dir:
        if not source.is_dir:
            raise _error(errno.EISDIR)
        if target.size:
            raise _error(errno.ENOTEMPTY)
    elif source.is_dir:
        raise _error(errno.ENOTDIR)
