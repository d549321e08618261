"""The bytes of files: which block is where, and what a read, a write or a truncation makes of it.

Synchronous, and called by the owner thread only. What is not local raises NeedRemote before anything has changed.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Final

from wsfs.data.overlay import Overlay
from wsfs.data.packcache import PackCache
from wsfs.errors import CacheError, NeedRemote
from wsfs.index.index import Batch, Index
from wsfs.model import BLOCK_SIZE, LOCAL, Block, Inline, Ino, Inode, Local, Packed, blocks_of
from wsfs.repo import codec

MAX_FILE_SIZE: Final = BLOCK_SIZE * (1 << 32)
_LAST_BLOCK: Final = (1 << 32) - 1
_SETID: Final = stat.S_ISUID | stat.S_ISGID


def _nothing() -> None:
    """For a truncation that leaves nothing to do."""


class Files:
    """File contents over the index, the overlay and the pack cache."""

    def __init__(self, index: Index, overlay: Overlay, packs: PackCache) -> None:
        self._index = index
        self._overlay = overlay
        self._packs = packs
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
        needed: dict[object, object] = {}
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
        inode = self._index.inode(ino)
        if inode is None:
            raise OSError(errno.ENOENT, "no such inode")
        end = offset + len(data)
        if end > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, "file too large")
        index, overlay = self._index, self._overlay
        before, after = Batch(), Batch()
        begin: list[tuple[int, bytes]] = []
        for number in range(offset // BLOCK_SIZE, blocks_of(end)):
            dirty = overlay.dirty.get(ino)
            if dirty is not None and number in dirty:
                continue  # the common case: this generation has written to it before
            block = index.block(ino, number)
            local_row = (codec.block_key(ino, number), codec.encode_block(LOCAL))
            if self._in_overlay(ino, block):
                # Its bytes change in place: the row must say so before they do, or a crash between the two would
                # leave other bytes here than in the bucket.
                before.put(*local_row)
            else:
                covered = block is None or self._covers(inode, number, offset, end)
                begin.append((number, b"" if covered else self._content(block)))
                after.put(*local_row)
            if block is not None:
                index.guard_data(ino)
        if begin and inode.size > BLOCK_SIZE and not overlay.has(ino):
            self._forget_residents(ino)
        self._change(ino, before)
        mode = inode.mode & ~_SETID if inode.mode & _SETID else inode.mode
        if end > inode.size or mode != inode.mode:
            after.bytes = max(end - inode.size, 0)
            after.put_inode(inode._replace(size=max(end, inode.size), mode=mode))
        try:
            for number, content in begin:
                overlay.preserve(ino, number)
                overlay.begin(ino, number, content)
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
        return len(data)

    def _change(self, ino: Ino, batch: Batch) -> None:
        """Keep what a commit needs of the blocks in `batch`, journal that they are LOCAL, and count them as dirty."""
        if not batch.ops:
            return
        numbers = [codec.block_index(key) for _flag, key, _value in batch.ops]
        for number in numbers:
            self._overlay.preserve(ino, number)
        self._index.apply(batch)
        for number in numbers:
            self._overlay.mark(ino, number)

    def _forget_residents(self, ino: Ino) -> None:
        """A power loss may have taken the overlay file: what was in it must not seem to be in the next one."""
        batch = Batch()
        for key, row in self._index.scan(ino, codec.BLOCK):
            block = codec.decode_block(row)
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

    def truncate(self, inode: Inode, size: int, batch: Batch) -> tuple[Inode, Callable[[], None]]:
        """The inode with another size, and what to do once `batch`, which gets the changes to its blocks, is applied.

        The caller puts the inode. Raises EFBIG, CacheError.
        """
        if size > MAX_FILE_SIZE:
            raise OSError(errno.EFBIG, "file too large")
        batch.bytes += size - inode.size
        resized = inode._replace(size=size)
        if size >= inode.size:
            return resized, _nothing
        ino = inode.ino
        keep, rest = divmod(size, BLOCK_SIZE)
        first_gone = keep + (1 if rest else 0)
        if first_gone <= _LAST_BLOCK:
            for key, _ in self._index.scan(ino, codec.BLOCK, first_gone.to_bytes(4, "big")):
                batch.delete(key)
        self._index.guard_data(ino)
        cut_local = rest > 0 and self._cut_block(ino, keep, rest, batch)
        self._overlay.preserve_from(ino, keep)

        def after() -> None:
            self._overlay.cut(ino, size)
            self._overlay.unmark(ino, first_gone)
            if cut_local:
                self._overlay.mark(ino, keep)

        return resized, after

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

    def discard(self, ino: Ino) -> None:
        """An inode is gone: remove what the overlay has of it."""
        self._overlay.drop(ino)

    def unsaved_bytes(self) -> int:
        """About how many bytes are not in the bucket yet."""
        total = 0
        for ino, blocks in self._overlay.unsaved().items():
            inode = self._index.inode(ino)
            if inode is not None:
                total += sum(min(BLOCK_SIZE, max(inode.size - index * BLOCK_SIZE, 0)) for index in blocks)
        return total
