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
from wsfs.errors import NeedRemote
from wsfs.index.index import Index
from wsfs.kernel.fetcher import Fetcher
from wsfs.kernel.guard import guarded, mutating
from wsfs.model import NAME_MAX, Ino, Inode
from wsfs.tree.namespace import Caller, Changes, Namespace

FOREVER: Final = 10 * 365 * 86400.0
"""One writer, this mount: what the kernel has cached stays true until it is told, by its own requests, otherwise."""

NEGATIVE: Final = 3600.0
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class View:
    """How attributes are shown: mount options uid=, gid=, umask=."""

    uid: int | None = None
    gid: int | None = None
    umask: int = 0


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
        self._view = view
        self._xattr = xattr
        self._free_space = free_space
        self._lookups: dict[int, int] = {}
        self.read_only = False
        self.make_room: MakeRoom = _no_room
        """Called when the cache disk is full: frees some of it, and says whether it did."""
        self.syncing = 0
        """How many fsyncs are waiting for the disk."""

    def describe(self, args: Sequence[Any]) -> str:
        """The path that a request is about, for a log line."""
        try:
            path = self._names.path(Ino(args[0])) if args and isinstance(args[0], int) else b"?"
        except (NeedRemote, OSError):
            path = f"inode {args[0]}".encode()
        if len(args) > 1 and isinstance(args[1], bytes) and len(args[1]) <= NAME_MAX:
            path = path.rstrip(b"/") + b"/" + args[1]
        return os.fsdecode(path)

    # --- attributes -----------------------------------------------------------------------------------------------

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        view = self._view
        entry.st_ino = inode.ino
        entry.entry_timeout = FOREVER
        entry.attr_timeout = FOREVER
        entry.st_mode = inode.mode & ~view.umask if view.umask else inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid if view.uid is None else view.uid
        entry.st_gid = inode.gid if view.gid is None else view.gid
        entry.st_rdev = inode.rdev
        size = _BLOCK if stat.S_ISDIR(inode.mode) else inode.size
        entry.st_size = size
        entry.st_blksize = _BLOCK
        entry.st_blocks = (size + 511) // 512
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        return entry

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The reply to a request after which the kernel holds one more reference to the inode."""
        self._lookups[inode.ino] = self._lookups.get(inode.ino, 0) + 1
        return self._attributes(inode)

    def _unreferenced(self, ino: Ino | None) -> None:
        """A name is gone; so is the inode if the kernel does not know it."""
        if ino is not None and ino not in self._lookups:
            self._names.forgotten(ino)

    @guarded
    async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        try:
            inode = self._names.lookup(Ino(parent), name)
        except OSError as exc:
            if exc.errno != errno.ENOENT:
                raise
            missing = pyfuse3.EntryAttributes()  # st_ino 0: the kernel remembers that there is no such name
            missing.entry_timeout = NEGATIVE
            return missing
        return self._entry(inode)

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, times in inode_list:
            left = self._lookups.get(ino, 0) - times
            if left > 0:
                self._lookups[ino] = left
            else:
                self._lookups.pop(ino, None)
                self._names.forgotten(Ino(ino))

    @guarded
    async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(self._names.inode(Ino(inode)))

    @mutating
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
        )
        return self._attributes(self._names.setattr(Ino(inode), changes, Caller(ctx.uid, ctx.gid)))

    @guarded
    async def readlink(self, inode: int, ctx: object) -> bytes:
        return self._names.readlink(Ino(inode))

    # --- names ----------------------------------------------------------------------------------------------------

    @mutating
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(self._names.make(Ino(parent), name, mode, Caller(ctx.uid, ctx.gid), rdev=rdev))

    @mutating
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self._names.make(Ino(parent), name, stat.S_IFDIR | mode, Caller(ctx.uid, ctx.gid)))

    @mutating
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        caller = Caller(ctx.uid, ctx.gid)
        return self._entry(self._names.make(Ino(parent), name, stat.S_IFLNK | 0o777, caller, target=target))

    @mutating
    async def link(self, inode: int, new_parent: int, new_name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        return self._entry(self._names.link(Ino(inode), Ino(new_parent), new_name))

    @mutating
    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        self._unreferenced(self._names.unlink(Ino(parent), name))

    @mutating
    async def rmdir(self, parent: int, name: bytes, ctx: object) -> None:
        self._unreferenced(self._names.rmdir(Ino(parent), name))

    @mutating
    async def rename(
        self, parent_old: int, name_old: bytes, parent_new: int, name_new: bytes, flags: int, ctx: object
    ) -> None:
        self._unreferenced(self._names.rename(Ino(parent_old), name_old, Ino(parent_new), name_new, flags))

    # --- directories ----------------------------------------------------------------------------------------------

    @guarded
    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        told = False
        try:
            for name, cookie, inode in self._names.entries(Ino(fh), start_id):
                if not pyfuse3.readdir_reply(token, name, self._attributes(inode), cookie):
                    return
                told = True
                self._lookups[inode.ino] = self._lookups.get(inode.ino, 0) + 1
        except NeedRemote:
            # What is in the reply already must not be told again: the kernel asks for the rest.
            if not told:
                raise

    @guarded
    async def releasedir(self, fh: int) -> None:
        return None

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._sync()

    async def _sync(self) -> None:
        """Make all that is acknowledged survive a power loss."""
        self.syncing += 1
        try:
            await trio.to_thread.run_sync(self._index.sync_point())
        finally:
            self.syncing -= 1

    # --- files ----------------------------------------------------------------------------------------------------

    @mutating
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        inode = self._names.make(Ino(parent), name, stat.S_IFREG | stat.S_IMODE(mode), Caller(ctx.uid, ctx.gid))
        return pyfuse3.FileInfo(fh=inode.ino, keep_cache=True), self._entry(inode)

    @guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if self.read_only and (flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC):
            raise pyfuse3.FUSEError(errno.EROFS)
        found = self._names.check_open(Ino(inode), flags)
        # The kernel leaves O_TRUNC to us, with no setattr after it.
        if flags & os.O_TRUNC and found.size:
            self._names.setattr(Ino(inode), Changes(size=0), Caller(ctx.uid, ctx.gid))
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return self._files.read(Ino(fh), off, size)

    @mutating
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return self._files.write(Ino(fh), off, buf)

    @guarded
    async def flush(self, fh: int) -> None:
        # Never asked again: close still writes the dirty pages first, and reports what went wrong with them.
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @guarded
    async def release(self, fh: int) -> None:
        return None

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        self._index.guard_data(fh)
        await self._sync()

    # --- the rest -------------------------------------------------------------------------------------------------

    @guarded
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        free_bytes, free_inodes = self._free_space()
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = _BLOCK
        found.f_bfree = found.f_bavail = free_bytes // _BLOCK
        found.f_blocks = found.f_bfree + -(-max(self._index.bytes, 0) // _BLOCK)
        found.f_ffree = found.f_favail = free_inodes
        found.f_files = self._index.files + free_inodes
        found.f_namemax = NAME_MAX
        return found

    @guarded
    async def access(self, inode: int, mode: int, ctx: object) -> bool:
        return True  # default_permissions: the kernel decides

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        if not self._xattr:
            # Never asked again: else the kernel asks for security.capability before every write.
            raise pyfuse3.FUSEError(errno.ENOSYS)
        return self._names.getxattr(Ino(inode), name)

    @guarded
    async def listxattr(self, inode: int, ctx: object) -> Sequence[bytes]:
        return self._names.listxattr(Ino(inode)) if self._xattr else ()

    @mutating
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        # No ENOSYS here: the kernel would then refuse by itself, and the marker must say EPERM.
        self._names.check_xattr(Ino(inode), name, supported=self._xattr)
        self._names.setxattr(Ino(inode), name, value)

    @mutating
    async def removexattr(self, inode: int, name: bytes, ctx: object) -> None:
        self._names.check_xattr(Ino(inode), name, supported=self._xattr)
        self._names.removexattr(Ino(inode), name)
