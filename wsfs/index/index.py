"""The index: every name, attribute and block row of the workspace, answered without waiting.

Reads go memtable, rotated memtable, LMDB, and what was decoded lately is remembered. How rows are kept is in `rows`.

Threads: one thread, the owner (the FUSE thread), calls everything but the methods whose docstring says "any thread".
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from wsfs.errors import FormatError
from wsfs.index import names
from wsfs.index.batch import Batch
from wsfs.index.journal import DELETE, DROP, Op
from wsfs.index.kept import Kept
from wsfs.index.quota import Quota
from wsfs.index.rows import Rows
from wsfs.index.tables import DELETED
from wsfs.index.unsaved import Unsaved
from wsfs.model import ID_MAX, Block, Dirent, Ino, Inode
from wsfs.repo import codec
from wsfs.repo.codec import ino_of, table_of

__all__ = ["Batch", "Index"]

_U64 = struct.Struct(">Q")
_CACHED_INODES: Final = 65536
_NAMES_AT_ONCE: Final = 128
_COUNTER_MAX: Final = (1 << 63) - 1


class Index(Rows):
    """Rows with a journal in `directory`. Raises CacheError when that cannot be used.

    `boot_id` is this boot's (16 bytes): journal records of another boot survived a power loss, and count only as far as
    a mark vouches for them. `before_durable(inodes)` is called, on any thread, before rows become durable, with the
    inodes whose file data must be on disk first.
    """

    def __init__(
        self,
        directory: Path,
        boot_id: bytes,
        before_durable: Callable[[set[int]], None] = lambda _inodes: None,
    ) -> None:
        super().__init__(directory, boot_id, before_durable)
        self._inodes: dict[int, Inode] = {}
        self._detached: dict[int, dict[bytes, bytes]] = {}
        self._unsaved = Unsaved()
        self._frozen = 0
        self.kept = Kept()
        self.quota: Quota | None = None
        self._scan()

    def _scan(self) -> None:
        """Look in the tables what no commit holds, and what stays here."""
        self._unsaved.scan(self._reader)
        self.kept.scan(self._reader)
        if not self._unsaved:
            names.forget(self._directory, self.generation)

    # --- reading --------------------------------------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """The row at `key`. Raises NeedRemote when it would be in a partition that is not loaded."""
        if self._detached:
            rows = self._detached.get(ino_of(key))
            if rows is not None:
                return rows.get(key)
        value = self._mem.rows.get(key)
        if value is None:
            imm = self._imm
            if imm is not None:
                value = imm.rows.get(key)
            if value is None:
                # Asked first: what arrives while we look must not make a stale view the last word.
                partial = self._parts.partial
                if self._read_version != self._version:
                    self._renew()
                value = self._reader.get(key)
                if value is None and partial:
                    value = self._get_partial(key)
        return value or None

    def inode(self, ino: int) -> Inode | None:
        """The attributes of an inode, None when there is none."""
        found = self._inodes.get(ino)
        if found is None:
            row = self.get(codec.attr_key(ino))
            if row is None:
                return None
            found = self._decoded(ino, row)
        return found

    def _decoded(self, ino: int, row: bytes) -> Inode:
        found = codec.decode_inode(ino, row)
        if len(self._inodes) >= _CACHED_INODES:
            self._inodes.clear()
        self._inodes[ino] = found
        return found

    def child(self, parent: int, name: bytes) -> Inode | None:
        """The attributes of what a name leads to, None when there is no such name, or nothing where it leads."""
        key = codec.dirent_key(parent, name)
        if self._detached or self._imm is not None or self._parts.partial:
            row = self.get(key)
            return None if row is None else self.inode(codec.dirent_fields(row)[0])
        # `get` and `inode` for when all rows are in two places: of what most programs ask for most often a tenth.
        if self._read_version != self._version:
            self._renew()
        rows, read = self._mem.rows, self._reader.get
        row = rows.get(key)
        if row is None:
            row = read(key)
        if not row:
            return None
        ino = codec.dirent_fields(row)[0]
        found = self._inodes.get(ino)
        if found is None:
            key = codec.attr_key(ino)
            row = rows.get(key)
            if row is None:
                row = read(key)
            if row:
                found = self._decoded(ino, row)
        return found

    def dirent(self, parent: int, name: bytes) -> Dirent | None:
        row = self.get(codec.dirent_key(parent, name))
        return None if row is None else codec.decode_dirent(row)

    def block(self, ino: int, index: int) -> Block | None:
        """Where block `index` of a file is; None for a hole."""
        row = self.get(codec.block_key(ino, index))
        return None if row is None else codec.decode_block(row)

    def scan(self, ino: int, table: bytes, low: bytes = b"") -> list[tuple[bytes, bytes]]:
        """The rows of one table of one inode, in order, from suffix `low` on. For blocks and extended attributes."""
        first, end = codec.table_range(ino, table)
        first += low
        detached = self._detached.get(ino)
        if detached is not None:
            return sorted((k, v) for k, v in detached.items() if first <= k < end)
        return sorted(self._between(first, end, first[:9]).items())

    def _between(self, first: bytes, end: bytes, *groups: bytes) -> dict[bytes, bytes]:
        """The rows from one key on, below another, of inodes that are not detached. `groups`: what the keys of blocks
        and extended attributes begin with there."""
        self._parts.require_range(first, end, self.loader)
        imm = self._imm
        if self._read_version != self._version:
            self._renew()
        found = dict(self._reader.scan(b"rows", first, end))
        for layer in (imm, self._mem):
            if layer is not None and layer.groups:
                for group in groups:
                    for key in layer.groups.get(group, ()):
                        if key >= first:
                            found[key] = layer.rows[key]
        return {key: value for key, value in found.items() if value != DELETED}

    def count(self, ino: int, table: bytes) -> int:
        """How many rows `scan` would find."""
        first, end = codec.table_range(ino, table)
        detached = self._detached.get(ino)
        if detached is not None:
            return sum(first <= key < end for key in detached)
        self._parts.require_range(first, end, self.loader)
        imm = self._imm
        if self._read_version != self._version:
            self._renew()
        newer: dict[bytes, bytes] = {}
        for layer in (imm, self._mem):
            if layer is not None:
                newer.update((key, layer.rows[key]) for key in layer.groups.get(first[:9], ()))
        older = sum(value != DELETED and key not in newer for key, value in self._reader.scan(b"rows", first, end))
        return older + sum(value != DELETED for value in newer.values())

    def names(self, parent: int, after: int) -> Iterator[tuple[bytes, Dirent]]:
        """The entries of a directory in the order of their cookies, from the one after cookie `after` on.

        Entries that come and go during the iteration may or may not be seen; all others are seen exactly once.
        """
        first, end = codec.table_range(parent, codec.DIRENT)
        self._parts.require_range(first, end, self.loader)
        imm, mem = self._imm, self._mem
        if self._read_version != self._version:
            self._renew()
        prefix, stop = _U64.pack(parent), _U64.pack(parent + 1)
        while True:
            # In portions: a look-up may renew the reader, which would end a scan that is still open.
            rows = list(islice(self._reader.scan(b"cookies", prefix + _U64.pack(after + 1), stop), _NAMES_AT_ONCE))
            if not rows:
                break
            for key, name in rows:
                after = int.from_bytes(key[8:], "big")
                found = self.dirent(parent, name)
                if found is not None and found.cookie == after:
                    yield name, found
        for layer in (imm, mem):
            listed = layer.names.get(prefix) if layer is not None else None
            if listed is None:
                continue
            for at in range(bisect_right(listed, (after, b"\xff" * 256)), len(listed)):
                cookie, name = listed[at]
                found = self.dirent(parent, name)
                if found is not None and found.cookie == cookie:
                    after = cookie
                    yield name, found

    # --- changing -------------------------------------------------------------------------------------------------

    def new_id(self) -> int:
        """A number that no inode and no cookie ever had. It is used up even when the operation then fails.

        Raises FormatError when a damaged workspace has no number left.
        """
        if self._next_id > ID_MAX:
            raise FormatError("this workspace has used up all inode numbers, which cannot be: check with 'wsfs fsck'")
        self._next_id += 1
        return self._next_id - 1

    def admit(self, size: int, *, new: bool = False, small: bool = True) -> None:
        """Before a change that adds `size` bytes, and perhaps a new inode: ENOSPC if the quota does not allow it. What
        stays on this machine is not asked about, and does not count."""
        if self.quota is not None:
            self.quota.admit(self.shared_files + new, self.shared_bytes + size, new=new, small=small)

    @property
    def shared_files(self) -> int:
        """How many inodes the next commit has."""
        return self.files - self.kept.files

    @property
    def shared_bytes(self) -> int:
        """How many bytes of files."""
        return self.bytes - self.kept.bytes

    def apply(self, batch: Batch) -> None:
        """Journal the batch and make it visible. Raises CacheFullError or CacheError, and then nothing has changed."""
        ops = batch.ops
        if self.kept.sizes or batch.ways:
            ops = self.kept.route(batch)
        if self._detached:
            kept: list[Op] = []
            for op in ops:
                rows = self._detached.get(ino_of(op[1]))
                if rows is None:
                    kept.append(op)
                else:
                    self._inodes.pop(ino_of(op[1]), None)
                    if op[0] in (DELETE, DROP):
                        rows.pop(op[1], None)
                    else:
                        rows[op[1]] = op[2]
            ops = kept
        if not ops:
            return
        files, total = self.files + batch.files, self.bytes + batch.bytes
        if not (0 <= files <= _COUNTER_MAX and 0 <= total <= _COUNTER_MAX):
            # In a damaged workspace they may be wrong, and that must not keep anybody from removing files.
            files, total = min(max(files, 0), _COUNTER_MAX), min(max(total, 0), _COUNTER_MAX)
        before = (self.shared_files, self.shared_bytes) if self.quota is not None else (0, 0)
        self._journal.append((self._next_id, files, total), ops)
        self.files, self.bytes = files, total
        self._mem.apply(ops)
        self._unsaved.note(ops)
        if self.kept.sizes or batch.ways:
            self.kept.note(ops, batch.opened)
        if self.quota is not None and (batch.files or batch.bytes):
            self.quota.note(batch, self.shared_files - before[0], self.shared_bytes - before[1])
        if len(self._inodes) >= _CACHED_INODES:
            self._inodes.clear()
        for inode in batch.inodes:
            self._inodes[inode[0]] = inode
        for ino, rows in batch.detached:
            self._inodes.pop(ino, None)
            self._detached[ino] = rows
            self._unsaved.forget(ino)

    def detach(self, ino: Ino, inode: Inode, batch: Batch) -> None:
        """Let `batch` remove every row of an inode without names, and keep them in memory for those who have it open.

        A commit then never sees it, and a crash forgets it.
        """
        rows = {codec.attr_key(ino): codec.encode_inode(inode)}
        blocks, attributes = codec.table_range(ino, codec.BLOCK), codec.table_range(ino, codec.XATTR)
        if inode.is_dir:  # it is empty, but rows of names that were there may lie between
            rows.update(self._between(*attributes, attributes[0]))
        else:
            rows.update(self._between(blocks[0], attributes[1], blocks[0], attributes[0]))
        if not inode.is_file:
            key = codec.symlink_key(ino)
            target = self.get(key)
            if target is not None:
                rows[key] = target
        for key in rows:
            batch.delete(key)
        batch.detached.append((ino, rows))

    def is_detached(self, ino: int) -> bool:
        return ino in self._detached

    def detached_rows(self) -> list[tuple[bytes, bytes]]:
        """The rows of every inode that has no name any more, but is open."""
        return [row for rows in self._detached.values() for row in rows.items()]

    def forget_detached(self, ino: int) -> None:
        """Nobody has the inode open any more."""
        self._detached.pop(ino, None)
        self._inodes.pop(ino, None)

    def guard_data(self, ino: int) -> None:
        """The data of this inode must be on disk before the rows about it are: it replaces bytes that were safe."""
        self._barrier.guard(ino)

    # --- what is dirty --------------------------------------------------------------------------------------------

    @property
    def dirty_inodes(self) -> set[int]:
        """The inodes with changes that no commit holds yet."""
        return self._unsaved.inodes

    @property
    def frozen_inodes(self) -> Collection[int]:
        """Those of them that a commit is under way for."""
        return self._unsaved.frozen

    @property
    def held_bytes(self) -> int:
        """About how many bytes of data are in rows and not in the bucket."""
        return self._unsaved.bytes

    @property
    def is_dirty(self) -> bool:
        return bool(self._unsaved)

    def freeze(self) -> int | None:
        """End a generation: the number of what is frozen now; None while the last memtable still has to be flushed."""
        if self._imm is not None:
            return None
        self.rotate()
        generation = self._frozen = self.generation
        self.generation += 1
        self._unsaved.freeze()
        return generation

    def thaw(self, *, committed: bool, left: Collection[int] = ()) -> None:
        """The commit of the frozen generation has ended; with success, it left out changes of the inodes in `left`."""
        self._unsaved.thaw(committed=committed, left=left)
        if committed:
            self._barrier.saved(lambda: self._unsaved.inodes)
        if committed and not left:
            names.forget(self._directory, self._frozen)

    def local_blocks(self) -> list[tuple[int, int]]:
        """Inode and number of every block whose only copy is in the overlay, and that a commit waits for, as far as
        LMDB knows. For start-up."""
        return [(ino, block) for ino, block in self._local_blocks(b"dirty") if ino not in self.kept]

    def kept_blocks(self) -> list[tuple[int, int]]:
        """Likewise, of those that stay here."""
        return list(self._local_blocks(b"kept"))

    def _local_blocks(self, table: bytes) -> Iterator[tuple[int, int]]:
        for key, _ in self._reader.scan(table, b""):
            if table_of(key) == codec.BLOCK and codec.is_local(self._reader.get(key) or b""):
                yield ino_of(key), codec.block_index(key)

    def reload(self) -> None:
        """Read again what the tables say, after `advance` or `rewrite` at start-up."""
        super().reload()
        self._inodes.clear()
        self._scan()
