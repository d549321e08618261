"""The FUSE handlers: each translates one request, and nothing more. Comments say what FUSE is behind the odd ones."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pyfuse3
import trio

from wsfs.data.files import Files
from wsfs.errors import FormatError, WsfsError
from wsfs.index.index import Index
from wsfs.kernel.fetcher import Fetcher
from wsfs.kernel.guard import mutating, reading, waiting
from wsfs.kernel.mountpoint import ATTRIBUTE
from wsfs.kernel.pages import Pages
from wsfs.kernel.refusals import Refusals
from wsfs.kernel.underway import UnderWay
from wsfs.model import BLOCK_SIZE, NAME_MAX, PAST, ROOT_INO, TYPE_MASK, Ino, Inode, new_record
from wsfs.remote import NeedRemote
from wsfs.text import printable
from wsfs.tree.namespace import Changes, Namespace

FOREVER: Final = 10 * 365 * 86400.0
"""One writer, this mount: what the kernel has cached stays true until it is told, by its own requests, otherwise."""

NEGATIVE: Final = 3600.0
_BLOCK: Final = 4096
_DOT: Final = 1
_DOT_DOT: Final = 2
"""Cookies below all that the index gives out."""

_ASKED_FIRST: Final = frozenset({ATTRIBUTE.encode(), b"security.capability"})
"""Extended attributes: the daemon sees to it that the kernel asks for the one, and it asks for the other by itself."""

_NO_INODE: Final = (None,) * len(Inode._fields)


@dataclass(frozen=True, slots=True)
class View:
    """How attributes are shown: mount options uid=, gid=, umask=."""

    uid: int | None = None
    gid: int | None = None
    umask: int = 0

    def show(self, mode: int, uid: int, gid: int) -> tuple[int, int, int]:
        """A file's mode and owners, as they are shown."""
        return mode & ~self.umask, uid if self.uid is None else self.uid, gid if self.gid is None else self.gid


def new_entry(seconds: float = FOREVER) -> pyfuse3.EntryAttributes:
    """Attributes with what is the same for all inodes, for `seconds` in the kernel's caches."""
    entry = pyfuse3.EntryAttributes()
    entry.entry_timeout = entry.attr_timeout = seconds
    entry.st_blksize = _BLOCK
    return entry


class MakeRoom(Protocol):
    """`deleting`: for a request that makes room itself."""

    async def __call__(self, *, deleting: bool) -> bool: ...


async def _no_room(*, deleting: bool) -> bool:
    return False


class Operations(pyfuse3.Operations):
    """Requests to namespace and files. Runs on the trio thread, which owns the index."""

    enable_writeback_cache = True
    supports_dot_lookup = False
    enable_acl = False

    def __init__(
        self,
        namespace: Namespace,
        files: Files,
        index: Index,
        fetcher: Fetcher,
        *,
        view: View,
        xattr: bool,
        free_space: Callable[[], tuple[int, int]],
    ) -> None:
        super().__init__()
        self._names = namespace
        self._files = files
        self._index = index
        self.fetcher = fetcher
        self._view = None if view == View() else view
        self._xattr = xattr
        self._told_no_xattr = False
        self._free_space = free_space
        self._lookups: dict[int, int] = {}
        self._pages = Pages(files.read)
        self._reply = new_entry()
        self._replied: Inode | tuple[None, ...] = _NO_INODE
        """What it has the attributes of."""
        self._missing = new_entry(NEGATIVE)  # st_ino 0: the kernel remembers that there is no such name
        self.read_only = False
        self.under_way = UnderWay()
        self.make_room: MakeRoom = _no_room
        """Called when the cache disk is full: frees some of it, and says whether it did."""
        self.refusals = Refusals(self._is_there, lambda ino: self.describe((ino,)))

    def describe(self, args: Sequence[Any]) -> str:
        """The path that a request is about, for a log line."""
        try:
            path = self._names.path(Ino(args[0])) if args and isinstance(args[0], int) else b"?"
        except (NeedRemote, OSError, WsfsError):
            path = f"inode {args[0]}".encode()
        if len(args) > 1 and isinstance(args[1], bytes) and len(args[1]) <= NAME_MAX:
            path = path.rstrip(b"/") + b"/" + args[1]
        return printable(path)

    def _is_there(self, ino: int) -> bool:
        try:
            inode = self._index.inode(ino)
        except NeedRemote:
            return True
        return inode is not None and inode.nlink > 0

    # --- attributes -----------------------------------------------------------------------------------------------

    def _attributes(self, inode: Inode, entry: pyfuse3.EntryAttributes | None = None) -> pyfuse3.EntryAttributes:
        """What stat(2) tells of an inode; by default in an object that the next request reuses, for pyfuse3 sends a
        reply as soon as it has it. What is in there already, of the one before, is not set again: to set a time takes
        ten times as long as to compare it."""
        last: Inode | tuple[None, ...] = _NO_INODE
        if entry is None:
            entry, last = self._reply, self._replied
            self._replied = _NO_INODE  # if an attribute cannot be set, nobody knows which are
        ino, mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, _ = inode
        _, last_mode, last_uid, last_gid, last_nlink, last_rdev, _, last_atime, last_mtime, last_ctime, _ = last
        if mode != last_mode or uid != last_uid or gid != last_gid:
            shown = (mode, uid, gid) if self._view is None else self._view.show(mode, uid, gid)
            entry.st_mode, entry.st_uid, entry.st_gid = shown
        if mode & TYPE_MASK == stat.S_IFDIR:
            size = _BLOCK
        entry.st_ino = ino
        entry.st_size = size
        entry.st_blocks = ((size if size <= BLOCK_SIZE else self._files.allocated(inode)) + 511) // 512
        if nlink != last_nlink:
            entry.st_nlink = nlink
        if rdev != last_rdev:
            entry.st_rdev = rdev
        if atime != last_atime:
            entry.st_atime_ns = atime
        if mtime != last_mtime:
            entry.st_mtime_ns = mtime
        if ctime != last_ctime:
            entry.st_ctime_ns = ctime
        if entry is self._reply:
            self._replied = inode
        return entry

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The reply to a request after which the kernel holds one more reference to the inode."""
        ino, lookups = inode[0], self._lookups
        lookups[ino] = lookups.get(ino, 0) + 1
        return self._attributes(inode)

    def is_known(self, ino: int) -> bool:
        """Whether the kernel may have something of this inode in its caches."""
        return ino in self._lookups or ino == ROOT_INO

    def _unreferenced(self, ino: Ino | None) -> None:
        """A name is gone; so is the inode if the kernel does not know it."""
        if ino is not None and ino not in self._lookups:
            self._names.forgotten(ino)

    @reading
    def lookup(self, parent: Ino, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        inode = self._names.find(parent, name)
        return self._absent(parent, name) if inode is None else self._entry(inode)

    def _absent(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """The reply where there is no such name."""
        return self._missing

    async def in_past(self, name: str, ino: int, *args: Any) -> Any:
        """The reply to a request about an inode of a save point."""
        raise pyfuse3.FUSEError(errno.ESTALE)

    @waiting
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, times in inode_list:
            left = self._lookups.get(ino, 0) - times
            if left > 0:
                self._lookups[ino] = left
            else:
                self._lookups.pop(ino, None)
                self._pages.forgotten(ino)
                self._names.forgotten(Ino(ino))

    @reading
    def getattr(self, inode: Ino, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(self._names.inode(inode))

    @mutating
    def setattr(
        self,
        inode: Ino,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = (
            attr.st_mode if fields.update_mode else None,
            attr.st_uid if fields.update_uid else None,
            attr.st_gid if fields.update_gid else None,
            attr.st_size if fields.update_size else None,
            attr.st_atime_ns if fields.update_atime else None,
            attr.st_mtime_ns if fields.update_mtime else None,
            attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._attributes(self._names.setattr(inode, new_record(Changes, changes), ctx))

    @reading
    def readlink(self, inode: Ino, ctx: object) -> bytes:
        return self._names.readlink(inode)

    # --- names ----------------------------------------------------------------------------------------------------

    @mutating
    def mknod(
        self, parent: Ino, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self._names.make(parent, name, mode, ctx, rdev=rdev))

    @mutating
    def mkdir(self, parent: Ino, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self._names.make(parent, name, stat.S_IFDIR | mode, ctx))

    @mutating
    def symlink(self, parent: Ino, name: bytes, target: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self._names.make(parent, name, stat.S_IFLNK | 0o777, ctx, target=target))

    @mutating
    def link(self, inode: Ino, new_parent: Ino, new_name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        if new_parent >= PAST:
            raise pyfuse3.FUSEError(errno.EROFS)
        return self._entry(self._names.link(inode, new_parent, new_name))

    @mutating
    def unlink(self, parent: Ino, name: bytes, ctx: object) -> None:
        self._unreferenced(self._names.unlink(parent, name))

    @mutating
    def rmdir(self, parent: Ino, name: bytes, ctx: object) -> None:
        self._unreferenced(self._names.rmdir(parent, name))

    @mutating
    def rename(
        self, parent_old: Ino, name_old: bytes, parent_new: Ino, name_new: bytes, flags: int, ctx: object
    ) -> None:
        if parent_new >= PAST:
            raise pyfuse3.FUSEError(errno.EROFS)
        self._unreferenced(self._names.rename(parent_old, name_old, parent_new, name_new, flags))

    # --- directories ----------------------------------------------------------------------------------------------

    @waiting
    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    @reading
    def readdir(self, fh: Ino, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        told = False
        directory = self._names.inode(fh)
        # The kernel takes no reference for these two.
        for name, ino, cookie in ((b".", directory.ino, _DOT), (b"..", directory.parent, _DOT_DOT)):
            if start_id < cookie:
                entry = pyfuse3.EntryAttributes()
                entry.st_ino = ino
                entry.st_mode = stat.S_IFDIR
                if not pyfuse3.readdir_reply(token, name, entry, cookie):
                    return
                told = True
        try:
            for name, cookie, inode in self._names.entries(fh, start_id):
                if not pyfuse3.readdir_reply(token, name, self._attributes(inode), cookie):
                    return
                told = True
                self._lookups[inode.ino] = self._lookups.get(inode.ino, 0) + 1
        except (NeedRemote, FormatError):
            # What is in the reply already must not be told again: the kernel asks for the rest.
            if not told:
                raise

    @waiting
    async def releasedir(self, fh: int) -> None:
        return None

    @waiting
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._sync()

    async def _sync(self, ino: Ino | None = None) -> None:
        """Make all that is acknowledged survive a power loss; `ino` is what is asked about."""
        await trio.to_thread.run_sync(self._index.sync_point(ino))

    # --- files ----------------------------------------------------------------------------------------------------

    @mutating
    def create(
        self, parent: Ino, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        inode = self._names.make(parent, name, stat.S_IFREG | mode & 0o7777, ctx)
        self.refusals.opened(inode.ino)
        self._pages.made(inode.ino)
        return pyfuse3.FileInfo(fh=inode.ino, keep_cache=True), self._entry(inode)

    @reading
    def open(self, inode: Ino, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if self.read_only and (flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC):
            raise pyfuse3.FUSEError(errno.EROFS)
        found = self._names.check_open(inode, flags)
        # The kernel leaves O_TRUNC to us, with no setattr after it.
        if flags & os.O_TRUNC and found.size:
            self._names.setattr(inode, Changes(size=0), ctx)
        self.refusals.opened(inode)
        self._pages.opened(found, flags)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @reading
    def read(self, fh: Ino, off: int, size: int) -> bytes:
        return self._files.read(fh, off, size)

    @mutating
    def write(self, fh: Ino, off: int, buf: bytes) -> int:
        return self._files.write(fh, off, buf)

    @waiting
    async def flush(self, fh: int) -> None:
        # Never asked again: close still writes the dirty pages first, and reports what went wrong with them.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @waiting
    async def release(self, fh: int) -> None:
        self.refusals.closed(fh)

    @waiting
    async def fsync(self, fh: int, datasync: bool) -> None:
        if fh < PAST:
            # What was refused is told by the kernel, which does not ask for this before somebody has listened.
            self.refusals.told(fh)
            self._index.guard_data(fh)
            await self._sync(Ino(fh))

    # --- the rest -------------------------------------------------------------------------------------------------

    @waiting
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        free_bytes, free_inodes = self._free_space()
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = _BLOCK
        found.f_bfree = found.f_bavail = free_bytes // _BLOCK
        found.f_ffree = found.f_favail = free_inodes
        if self._index.quota is not None:
            left, files_left = (
                self._index.quota.free(self._index.shared_bytes),
                self._index.quota.free_files(self._index.shared_files),
            )
            if left is not None:
                # What the disk has not is not there for anybody, whatever is left of the quota.
                found.f_bfree = left[0] // _BLOCK
                found.f_bavail = min(left[1], free_bytes) // _BLOCK
            if files_left is not None:
                found.f_ffree, found.f_favail = files_left[0], min(files_left[1], free_inodes)
        found.f_blocks = found.f_bfree + -(-max(self._index.bytes, 0) // _BLOCK)
        found.f_files = self._index.files + found.f_ffree
        found.f_namemax = NAME_MAX
        return found

    @waiting
    async def access(self, inode: int, mode: int, ctx: object) -> bool:
        return True  # default_permissions: the kernel decides

    @reading
    def getxattr(self, inode: Ino, name: bytes, ctx: object) -> bytes:
        if not self._xattr:
            self._refuse_attribute(name)
            # pyfuse3 asks, for setxattr(2) with XATTR_CREATE or XATTR_REPLACE: that is told what any other one is.
            self._names.xattrs.check(inode, name, supported=False)
        return self._names.xattrs.get(inode, name)

    def _refuse_attribute(self, name: bytes) -> None:
        """Answer the kernel's first question for an extended attribute so that it never asks again: else it asks for
        security.capability before every write. No other question gets this answer, for pyfuse3 would give it to who
        wants to set one, and then the kernel would refuse that by itself, too, and in another way for the marker."""
        if not self._told_no_xattr and name in _ASKED_FIRST:
            self._told_no_xattr = True
            raise pyfuse3.FUSEError(errno.ENOSYS)

    @reading
    def listxattr(self, inode: Ino, ctx: object) -> Sequence[bytes]:
        return self._names.xattrs.names(inode) if self._xattr else ()

    @mutating
    def setxattr(self, inode: Ino, name: bytes, value: bytes, ctx: object) -> None:
        # No ENOSYS here: the kernel would then refuse by itself, and the marker must say EPERM.
        self._names.xattrs.check(inode, name, supported=self._xattr)
        self._names.xattrs.set(inode, name, value)

    @mutating
    def removexattr(self, inode: Ino, name: bytes, ctx: object) -> None:
        self._names.xattrs.check(inode, name, supported=self._xattr)
        self._names.xattrs.remove(inode, name)
