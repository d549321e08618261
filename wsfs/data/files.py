"""The bytes of files: which block is where, and what a read, a write or a truncation makes of it.

Synchronous, and called by the owner thread only. What is not local raises NeedRemote before anything has changed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from typing import Final

from wsfs.data.overlay import Overlay
from wsfs.data.packcache import PackCache
from wsfs.errors import CacheError
from wsfs.index.index import Batch, Index
from wsfs.index.quota import SMALL
from wsfs.model import BLOCK_SIZE, HELD_MAX, LOCAL, Block, Inline, Ino, Inode, Local, Packed, blocks_of, new_record
from wsfs.remote import Fetches, NeedRemote
from wsfs.repo import codec

MAX_FILE_SIZE: Final = BLOCK_SIZE * (1 << 32)
_LAST_BLOCK: Final = (1 << 32) - 1
_SETID: Final = stat.S_ISUID | stat.S_ISGID
_ALLOCATED_MIN: Final = 4096
_COUNTED_FILES: Final = 4096


def without_setid(mode: int) -> int:
    """As chown(2) and write(2) leave it: no set-user-ID, and no set-group-ID where that means execution."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def _nothing() -> None:
    """For a truncation that leaves nothing to do."""


class Files:
    """File contents over the index, the overlay and the pack cache."""

    def __init__(self, index: Index, overlay: Overlay, packs: PackCache) -> None:
        self._index = index
        self._overlay = overlay
        self._packs = packs
        self._counts: dict[int, int] = {}
        """How many blocks of a large file are no holes, for the files that were asked about last."""
        overlay.serial = lambda: index.serial
        index.after_durable = overlay.reap

    def read(self, ino: Ino, offset: int, size: int) -> bytes:
        """Up to `size` bytes at `offset`; fewer at the end of the file. Raises NeedRemote, FormatError, CacheError."""
        inode = self._index.inode(ino)
        if inode is None:
            raise OSError(errno.ENOENT, "no such inode")
        end = min(offset + size, inode.size)
        if offset >= end:
            return b""
        parts = []
        needed: Fetches = {}
        while offset < end:
            index, start = divmod(offset, BLOCK_SIZE)
            length = min(BLOCK_SIZE - start, end - offset)
            try:
                parts.append(self._read_block(ino, index, start, length))
            except NeedRemote as need:
                needed.update(need.fetches)
            offset += length
        if needed:
            raise NeedRemote(needed)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def allocated(self, inode: Inode) -> int:
        """How many bytes a file has without its holes, which are found by the block. Does not wait: all counts as data
        where the rows are not here yet.

        At least a page if it has a size: archivers take a file without any blocks for one without data, and do not read
        it, while the kernel may hold pages that it has not sent yet.
        """
        ino, size = inode.ino, inode.size
        if size <= BLOCK_SIZE or not inode.is_file:
            return size
        blocks = self._counts.get(ino)
        try:
            if blocks is None:
                blocks = self._index.count(ino, codec.BLOCK)
                if len(self._counts) >= _COUNTED_FILES:
                    self._counts.clear()
                self._counts[ino] = blocks
            last = blocks_of(size) - 1
            beyond = (last + 1) * BLOCK_SIZE - size if self._index.block(ino, last) is not None else 0
        except NeedRemote:
            return size
        return max(blocks * BLOCK_SIZE - beyond, _ALLOCATED_MIN)

    def _read_block(self, ino: Ino, index: int, start: int, length: int) -> bytes:
        block = self._index.block(ino, index)
        if block is None:
            return bytes(length)
        if self._in_overlay(ino, block):
            return self._overlay.read(ino, index, start, length)
        data = self._content(block)[start : start + length]
        return data if len(data) == length else data + bytes(length - len(data))

    def _content(self, block: Block | None) -> bytes:
        assert isinstance(block, Inline | Packed)
        if isinstance(block, Inline):
            return block.data
        data = self._packs.read(block.loc)
        return data if block.loc.length == len(data) else data[: block.loc.length]

    def write(self, ino: Ino, offset: int, data: bytes) -> int:
        """Write all of `data`. Raises NeedRemote, CacheFullError, CacheError; EFBIG beyond 4 PiB.

        Times are not touched: with the writeback cache the kernel keeps them, and sends them by setattr.
        """
        index, overlay = self._index, self._overlay
        inode = index.inode(ino)
        if inode is None:
            raise OSError(errno.ENOENT, "no such inode")
        _, mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, parent = inode
        end = offset + len(data)
        if end > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, "file too large")
        overlay.finish_cut(ino)
        if end > size and nlink and ino not in index.kept.sizes:
            index.admit(end - size, small=end <= SMALL)
        before: Batch | None = None
        after = Batch()
        begin: list[tuple[int, bytes]] = []
        held = False
        filled = 0
        for number in range(offset // BLOCK_SIZE, blocks_of(end)):
            dirty = overlay.dirty.get(ino)
            if dirty is not None and number in dirty:
                continue  # the common case: this generation has written to it before
            # Beyond the end there are none: the first write of a file need not look for it.
            block = index.block(ino, number) if number * BLOCK_SIZE < size else None
            key = codec.block_key(ino, number)
            if self._in_overlay(ino, block):
                # Its bytes change in place: the row must say so before they do, or a crash between the two would
                # leave other bytes here than in the bucket.
                before = before or Batch()
                before.put(key, codec.encode_block(LOCAL))
            else:
                covered = block is None or self._covers(inode, number, offset, end)
                if covered and len(data) <= HELD_MAX and offset == number * BLOCK_SIZE:
                    # A small file: its bytes go with its row, and need no file of their own.
                    after.put(key, codec.encode_inline(data))
                    held = True
                    filled += block is None
                    continue
                begin.append((number, b"" if covered else self._content(block)))
                after.put(key, codec.encode_block(LOCAL))
            if block is not None:
                index.guard_data(ino)
            else:
                filled += 1
        if size and not held and not overlay.has(ino):
            self._forget_residents(ino)
        if before is not None:
            self._change(ino, before)
        new_mode = without_setid(mode) if mode & _SETID else mode
        if end > size or new_mode != mode:
            new_size = end if end > size else size
            after.bytes = new_size - size
            fields = (ino, new_mode, uid, gid, nlink, rdev, new_size, atime, mtime, ctime, parent)
            after.put_inode(new_record(Inode, fields))
        try:
            for number, content in begin:
                overlay.preserve(ino, number)
                overlay.begin(ino, number, content)
            if not held:
                overlay.write(ino, offset, data)
            if after.ops:
                index.apply(after)
        except CacheError:
            # What got beyond the end must not come to light when the file grows by other means.
            overlay.cut(ino, inode.size)
            raise
        # Only now: a block that counts as dirty is never journalled again in this generation.
        for number, _ in begin:
            overlay.mark(ino, number)
        if ino in self._counts:
            self._counts[ino] += filled
        return len(data)

    def _change(self, ino: Ino, batch: Batch) -> None:
        """Keep what a commit needs of the blocks in `batch`, journal that they are LOCAL, and count them as dirty."""
        numbers = [codec.block_index(key) for _flag, key, _value in batch.ops]
        for number in numbers:
            self._overlay.preserve(ino, number)
        self._index.apply(batch)
        for number in numbers:
            self._overlay.mark(ino, number)

    def _forget_residents(self, ino: Ino) -> None:
        """There is no overlay file, although rows may trust it: a power loss can take one that was never synced, and a
        person any. What was in it must not seem to be in the next one, not even if that is begun and no more.

        Raises CacheError where it had what nobody else has.
        """
        batch = Batch()
        for key, row in self._index.scan(ino, codec.BLOCK):
            block = codec.decode_block(row)
            if isinstance(block, Local):
                raise self._overlay.missing(ino)
            if isinstance(block, Packed) and block.resident:
                batch.put_clean(key, codec.encode_block(Packed(block.loc)))
        if batch.ops:
            self._index.apply(batch)

    def _in_overlay(self, ino: Ino, block: Block | None) -> bool:
        if isinstance(block, Packed):
            return block.resident and self._overlay.has(ino)
        return isinstance(block, Local)

    @staticmethod
    def _covers(inode: Inode, index: int, offset: int, end: int) -> bool:
        """Whether a write of [offset, end) replaces all bytes that a block has."""
        start = index * BLOCK_SIZE
        return offset <= start and end >= min(start + BLOCK_SIZE, inode.size)

    def truncate(self, inode: Inode, size: int, batch: Batch) -> Callable[[], None]:
        """An inode gets another size: what to do once `batch`, which gets the changes to its blocks, is applied.

        The caller puts the inode. Raises EFBIG, CacheError.
        """
        if size > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, "file too large")
        if size > inode.size and inode.nlink and inode.ino not in self._index.kept:
            self._index.admit(size - inode.size, small=size <= SMALL)
        self._overlay.finish_cut(inode.ino)
        batch.bytes += size - inode.size
        if size >= inode.size:
            return _nothing
        ino = inode.ino
        self._counts.pop(ino, None)
        keep, rest = divmod(size, BLOCK_SIZE)
        first_gone = keep + (1 if rest else 0)
        if first_gone <= _LAST_BLOCK:
            for key, _ in self._index.scan(ino, codec.BLOCK, first_gone.to_bytes(4, "big")):
                batch.delete(key)
        self._index.guard_data(ino)
        cut_local = rest > 0 and self._cut_block(ino, keep, rest, batch)
        if size:
            self._overlay.preserve_from(ino, keep)

        def after() -> None:
            self._overlay.unmark(ino, first_gone)
            if cut_local:
                self._overlay.mark(ino, keep)
            self._overlay.cut(ino, size)

        return after

    def _cut_block(self, ino: Ino, number: int, length: int, batch: Batch) -> bool:
        """Keep only the first `length` bytes of a block. True if that changes a LOCAL block."""
        block = self._index.block(ino, number)
        key = codec.block_key(ino, number)
        if isinstance(block, Inline) and len(block.data) > length:
            batch.put(key, codec.encode_block(Inline(block.data[:length])))
        elif isinstance(block, Packed) and block.loc.length > length:
            batch.put(key, codec.encode_block(Packed(block.loc._replace(length=length), block.resident)))
        elif isinstance(block, Local):
            batch.put(key, codec.encode_block(LOCAL))
            return True
        return False

    def bring(self, ino: Ino, batch: Batch, room: int) -> tuple[int, Callable[[], None]]:
        """Let `batch` have all data of a file here, and in no pack: what remains of `room`, the bytes that may be read
        for that, and what to do before `batch` is applied. Raises NeedRemote; EXDEV when it takes more."""
        begin: list[tuple[int, bytes]] = []
        needed: Fetches = {}
        for key, row in self._index.scan(ino, codec.BLOCK):
            block = codec.decode_block(row)
            if self._in_overlay(ino, block):
                batch.put(key, codec.encode_block(LOCAL))
                continue
            if isinstance(block, Inline):
                batch.put(key, row)
                continue
            assert isinstance(block, Packed)
            room -= block.loc.length
            if room < 0:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            try:
                data = self._content(block)
            except NeedRemote as need:
                needed.update(need.fetches)
                continue
            small = len(data) <= HELD_MAX
            batch.put(key, codec.encode_block(Inline(data) if small else LOCAL))
            if not small:
                begin.append((codec.block_index(key), data))
        if needed:
            raise NeedRemote(needed)
        self._index.guard_data(ino)

        def write() -> None:
            if begin and not self._overlay.has(ino):
                self._forget_residents(ino)
            for number, data in begin:
                self._overlay.preserve(ino, number)
                self._overlay.begin(ino, number, data)

        return room, write

    def share(self, ino: Ino, batch: Batch) -> Callable[[], None]:
        """Put all blocks of a file into `batch`, and what to do once it is applied. Raises NeedRemote."""
        local = []
        for key, row in self._index.scan(ino, codec.BLOCK):
            batch.put(key, row)
            if codec.is_local(row):
                local.append(codec.block_index(key))

        def mark() -> None:
            for number in local:
                self._overlay.mark(ino, number)

        return mark

    def discard(self, ino: Ino) -> None:
        """An inode is gone: remove what the overlay has of it."""
        self._overlay.drop(ino)

    def replaced(self, inodes: Iterable[int], here: Iterable[int]) -> None:
        """On a read-only mount: `inodes` have other rows now, and those `here` have old bytes in the overlay."""
        for ino in inodes:
            self._counts.pop(ino, None)
        for ino in here:
            self._overlay.drop(Ino(ino))

    def unsaved_bytes(self, *, committing: bool = False) -> int:
        """About how many bytes are not in the bucket yet; those of a commit under way only with `committing`."""
        total = 0
        for ino, blocks in self._overlay.unsaved(committing=committing).items():
            inode = self._index.inode(ino) if ino not in self._index.kept else None
            if inode is not None:
                total += sum(min(BLOCK_SIZE, max(inode.size - index * BLOCK_SIZE, 0)) for index in blocks)
        return total + self._index.held_bytes
