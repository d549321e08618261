"""Save points in the mount: `.wsfs/at/ID` is the tree as it was, read-only, for whoever names it.

`.wsfs` is in no listing, so that nothing finds it that looks through the tree. Inode numbers here have the highest bit
set, which no other inode has: then 15 bits for the save point, and 48 for the inode's own number in it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyfuse3
import trio

from wsfs.data.packcache import PackCache
from wsfs.errands import Errands
from wsfs.errors import FormatError, NoSavePointError
from wsfs.kernel.guard import waiting
from wsfs.kernel.operations import FOREVER, Operations, new_entry
from wsfs.log import get_log
from wsfs.model import PAST, PAST_NAME, ROOT_INO, Ino, Inode
from wsfs.remote import NeedRemote
from wsfs.store.base import Store
from wsfs.sync.history import SavePoint, find, save_points
from wsfs.sync.snapshot import Snapshot

log = get_log(__name__)

_SLOT_SHIFT: Final = 48
_SLOTS: Final = 1 << 15
_DOT_WSFS: Final = PAST | 1
_AT: Final = PAST | 2
_AT_NAME: Final = b"at"
OPEN_MAX: Final = 8
"""So many save points are open at once. One that is used again is opened again."""

IDLE_SECONDS: Final = 300.0
"""One that was not used for so long is closed, and may then be deleted when its time has come."""

_LIST_SECONDS: Final = 10.0
"""The store is asked for its save points at most so often, and for one that it may have meanwhile once more."""

_SHORT: Final = 5.0


class Shelf:
    """The save points that are open, each in a slot of inode numbers that stays its own. Belongs to the trio thread.

    `hold` and `let_go` keep a commit from being deleted; any thread calls them.
    """

    def __init__(
        self,
        store: Store,
        packs: PackCache,
        directory: Path,
        hold: Callable[[str], None],
        let_go: Callable[[str], None],
        errands: Errands,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._store = store
        self._packs = packs
        self._directory = directory
        self._hold = hold
        self._let_go = let_go
        self._errands = errands
        self._clock = clock
        self._slots: dict[str, int] = {}
        self._points: dict[int, SavePoint] = {}
        self._open: OrderedDict[int, Snapshot] = OrderedDict()
        self._used: dict[int, float] = {}
        self._opening = trio.Lock()
        self._listing = trio.Lock()
        self._known: list[SavePoint] = []
        self._listed = float("-inf")
        self._missed = float("-inf")
        """When the store was asked last for a name that it does not have."""
        shutil.rmtree(directory, ignore_errors=True)

    async def points(self) -> list[SavePoint]:
        """The save points that there are, as they were a moment ago at most. Raises StoreError, FormatError."""
        async with self._listing:
            if self._clock() - self._listed > _LIST_SECONDS:
                await self._list()
            return self._known

    async def _list(self) -> None:
        self._known = await trio.to_thread.run_sync(save_points, self._store, abandon_on_cancel=True)
        self._listed = self._clock()

    async def find(self, name: str) -> int | None:
        """The slot of a save point; None if there is none of this name. What was saved just now may be found a
        little later: the store is not asked each time that somebody looks for what is not there. Raises StoreError,
        FormatError."""
        listed = self._listed
        point = _named(await self.points(), name)
        if point is None and self._clock() - self._missed > _LIST_SECONDS:
            async with self._listing:
                if self._listed == listed:
                    await self._list()
            self._missed = self._clock()
            point = _named(self._known, name)
        return None if point is None else self.slot(point)

    def slot(self, point: SavePoint) -> int:
        """A number for a save point, for as long as the mount lives."""
        key = point.manifest.key
        if key not in self._slots:
            if len(self._slots) + 1 >= _SLOTS:
                raise OSError(errno.ENFILE, "too many save points were looked at: mount again")
            self._slots[key] = len(self._slots) + 1
            self._points[self._slots[key]] = point
        return self._slots[key]

    def point(self, slot: int) -> SavePoint:
        """The save point in a slot. Raises OSError."""
        found = self._points.get(slot)
        if found is None:
            raise OSError(errno.ESTALE, "no such save point")
        return found

    async def snapshot(self, slot: int) -> Snapshot:
        """A save point, opened if need be. Raises StoreError, FormatError, CacheError, NotFoundError."""
        found = self._open.get(slot)
        if found is None:
            async with self._opening:
                found = self._open.get(slot)
                if found is None:
                    while len(self._open) >= OPEN_MAX:
                        await self._close(next(iter(self._open)))
                    point = self.point(slot)
                    found = await self._errands.run(partial(self._make, point, slot))
                    self._open[slot] = found
        self._open.move_to_end(slot)
        self._used[slot] = self._clock()
        return found

    def _make(self, point: SavePoint, slot: int) -> Snapshot:
        key = point.manifest.key
        self._hold(key)
        try:
            return Snapshot(self._store, point.manifest, self._directory / str(slot), self._packs)
        except BaseException:
            self._let_go(key)
            raise

    async def _close(self, slot: int) -> None:
        snapshot = self._open.pop(slot)
        await trio.to_thread.run_sync(snapshot.close)
        # It waits while a collection decides what goes.
        key = self._points[slot].manifest.key
        await trio.to_thread.run_sync(self._let_go, key, abandon_on_cancel=True)

    async def keep_small(self) -> None:
        """Close what nobody uses. For ever."""
        while True:
            await trio.sleep(IDLE_SECONDS / 10)
            async with self._opening:
                for slot in [slot for slot in self._open if self._clock() - self._used[slot] > IDLE_SECONDS]:
                    await self._close(slot)

    def close(self) -> None:
        """Close all; the mount has ended."""
        for snapshot in self._open.values():
            snapshot.close()
        self._open.clear()
        shutil.rmtree(self._directory, ignore_errors=True)


class WithPast(Operations):
    """The handlers of a mount, and those of the save points in it: all inodes from PAST on. Nothing changes there."""

    shelf: Shelf
    _unknown = new_entry(1.0)  # st_ino 0: there is none; but it may come

    def _past_entry(self, slot: int, inode: Inode, seconds: float = FOREVER) -> pyfuse3.EntryAttributes:
        """Attributes of an inode in a save point."""
        entry = self._attributes(inode._replace(size=0), new_entry(seconds))
        if not inode.is_dir:
            entry.st_size = inode.size
            entry.st_blocks = (inode.size + 511) // 512
        entry.st_ino = _number(slot, inode.ino)
        return entry

    def _plain(self, ino: int, seconds: float = FOREVER) -> pyfuse3.EntryAttributes:
        """Attributes of `.wsfs` and `.wsfs/at`: those of the top directory, and nobody may write."""
        root = self._names.inode(Ino(ROOT_INO))
        entry = self._attributes(root._replace(nlink=2, mode=root.mode & ~0o222), new_entry(seconds))
        entry.st_ino = ino
        return entry

    def _noted(self, entry: pyfuse3.EntryAttributes) -> pyfuse3.EntryAttributes:
        self._lookups[entry.st_ino] = self._lookups.get(entry.st_ino, 0) + 1
        return entry

    async def _there(self, ino: int) -> tuple[Snapshot, Ino]:
        slot, own = _split(ino)
        return await self.shelf.snapshot(slot), own

    # --- reading --------------------------------------------------------------------------------------------------

    def _absent(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        if parent == ROOT_INO and name == PAST_NAME:
            return self._noted(self._plain(_DOT_WSFS))
        return super()._absent(parent, name)

    async def in_past(self, name: str, ino: int, *args: Any) -> Any:
        return await getattr(self, f"_past_{name}")(ino, *args)

    @waiting
    async def _past_lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        if parent == _DOT_WSFS:
            if name != _AT_NAME:
                raise pyfuse3.FUSEError(errno.ENOENT)
            return self._noted(self._plain(_AT))
        if parent == _AT:
            slot = await self.shelf.find(os.fsdecode(name))
            if slot is None:
                return self._unknown
            snapshot = await self.shelf.snapshot(slot)
            return self._noted(self._past_entry(slot, snapshot.names.inode(Ino(ROOT_INO)), _SHORT))
        snapshot, own = await self._there(parent)
        return self._noted(self._past_entry(_split(parent)[0], snapshot.names.lookup(own, name)))

    @waiting
    async def _past_getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        if inode in (_DOT_WSFS, _AT):
            return self._plain(inode)
        snapshot, own = await self._there(inode)
        return self._past_entry(_split(inode)[0], snapshot.names.inode(own))

    @waiting
    async def _past_readlink(self, inode: int, ctx: object) -> bytes:
        snapshot, own = await self._there(inode)
        return snapshot.names.readlink(own)

    @waiting
    async def _past_readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh == _DOT_WSFS:
            return
        if fh == _AT:
            for point in await self.shelf.points():
                # Newest first; a listing that goes on sees each once, whatever was made meanwhile.
                cookie = (1 << 62) - point.seq
                if cookie > start_id:
                    entry = self._plain(_number(self.shelf.slot(point), Ino(ROOT_INO)), 0)
                    if not pyfuse3.readdir_reply(token, b"%d" % point.seq, entry, cookie):
                        return
                    self._noted(entry)
            return
        snapshot, own = await self._there(fh)
        slot = _split(fh)[0]
        told = False
        try:
            for name, cookie, inode in snapshot.names.entries(own, start_id):
                entry = self._past_entry(slot, inode)
                if not pyfuse3.readdir_reply(token, name, entry, cookie):
                    return
                told = True
                self._noted(entry)
        except (NeedRemote, FormatError):
            # As in `Operations.readdir`: the kernel asks for the rest.
            if not told:
                raise

    @waiting
    async def _past_open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @waiting
    async def _past_read(self, fh: int, off: int, size: int) -> bytes:
        snapshot, own = await self._there(fh)
        return snapshot.files.read(own, off, size)

    @waiting
    async def _past_listxattr(self, inode: int, ctx: object) -> Sequence[bytes]:
        if inode in (_DOT_WSFS, _AT) or not self._xattr:
            return ()
        snapshot, own = await self._there(inode)
        return snapshot.names.xattrs.names(own)

    @waiting
    async def _past_getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        if not self._xattr:
            self._refuse_attribute(name)
            raise pyfuse3.FUSEError(errno.EROFS)  # pyfuse3 asks, for who wants to set one
        if inode in (_DOT_WSFS, _AT):
            raise pyfuse3.FUSEError(errno.ENODATA)
        snapshot, own = await self._there(inode)
        return snapshot.names.xattrs.get(own, name)


def _named(points: list[SavePoint], name: str) -> SavePoint | None:
    try:
        return find(points, name)
    except NoSavePointError:
        return None


def _number(slot: int, ino: Ino) -> int:
    if ino >= 1 << _SLOT_SHIFT:
        raise OSError(errno.EOVERFLOW, "this inode number is too large to be shown in a save point")
    return PAST | slot << _SLOT_SHIFT | ino


def _split(number: int) -> tuple[int, Ino]:
    """The slot, and the inode's own number in it."""
    return number >> _SLOT_SHIFT & (_SLOTS - 1), Ino(number & ((1 << _SLOT_SHIFT) - 1))
