"""The index: every name, attribute and block row of the workspace, answered without waiting.

A mutation is journalled with one write(2), then visible in the memtable. In the background the memtable is rotated and
written to LMDB in one durable transaction. Reads go memtable, rotated memtable, LMDB; rows of a partition that is not
loaded yet raise NeedRemote.

Threads: one thread, the owner (the FUSE thread), calls everything but the methods whose docstring says "any thread".
"""

from __future__ import annotations

import struct
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

from wsfs.errors import CacheError, NeedRemote
from wsfs.index.base import (
    Partition,
    Pending,
    Standing,
    advance,
    load_parts,
    read_pending,
    read_standing,
    write_partition,
)
from wsfs.index.journal import DELETE, PUT, PUT_CLEAN, Counters, Journal, Op, read_segment
from wsfs.index.memtable import Memtable
from wsfs.index.tables import DELETED, Reader, Tables, Writer
from wsfs.model import FIRST_FREE_ID, Block, Dirent, Ino, Inode
from wsfs.repo import codec
from wsfs.repo.codec import ino_of, table_of
from wsfs.repo.manifest import SegmentRef
from wsfs.repo.segment import Row

_U64 = struct.Struct(">Q")
_COUNTERS = struct.Struct(">QQQ")
_CACHED_INODES: Final = 65536
_NAMES_AT_ONCE: Final = 128

T = TypeVar("T")


class Batch:
    """The changes of one operation: all of them happen, or none. `files` and `bytes` are differences."""

    __slots__ = ("bytes", "detached", "files", "ops")

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.files = 0
        self.bytes = 0
        self.detached: list[tuple[Ino, dict[bytes, bytes]]] = []

    def put(self, key: bytes, value: bytes) -> None:
        self.ops.append((PUT, key, value))

    def delete(self, key: bytes) -> None:
        self.ops.append((DELETE, key, b""))

    def put_clean(self, key: bytes, value: bytes) -> None:
        """A change that only concerns this machine."""
        self.ops.append((PUT_CLEAN, key, value))

    def put_inode(self, inode: Inode) -> None:
        self.ops.append((PUT, codec.attr_key(inode.ino), codec.encode_inode(inode)))

    def put_dirent(self, parent: Ino, name: bytes, dirent: Dirent) -> None:
        self.ops.append((PUT, codec.dirent_key(parent, name), codec.encode_dirent(dirent)))


class Index:
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
        self._directory = directory
        self._boot_id = boot_id
        self._before_durable = before_durable
        self.after_durable: Callable[[int], None] = lambda _serial: None
        """Called, on any thread, when every journal record up to a serial number has become durable."""
        self.loader: Callable[[SegmentRef], None] = _no_loader
        self.tables = Tables(directory / "index")
        self._flush_lock = threading.RLock()
        self._mem = Memtable()
        self._imm: Memtable | None = None
        self._imm_barrier: dict[int, int] = {}
        self._barrier: dict[int, int] = {}
        self._barrier_stamp = 0
        self._barrier_lock = threading.Lock()
        self._inodes: dict[int, Inode] = {}
        self._detached: dict[int, dict[bytes, bytes]] = {}
        self._version = 0
        self._read_version = 0
        self._reader = self.tables.reader()
        self._dirty: set[int] = set()
        self._frozen_dirty: set[int] = set()
        self.files = self.bytes = self.generation = self._next_id = self._serial = 0
        self.parts: list[Partition] = []
        self._load_meta()
        self._journal: Journal
        self.recovered = self._replay()
        self._dirty = self._scan_dirty()

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
                if self._read_version != self._version:
                    self._renew()
                value = self._reader.get(key)
                if value is None and self._partial:
                    value = self._get_partial(key)
        return value or None

    def inode(self, ino: int) -> Inode | None:
        """The attributes of an inode, None when there is none."""
        found = self._inodes.get(ino)
        if found is None:
            row = self.get(codec.attr_key(ino))
            if row is None:
                return None
            found = codec.decode_inode(Ino(ino), row)
            if len(self._inodes) >= _CACHED_INODES:
                self._inodes.clear()
            self._inodes[ino] = found
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
        self._require_range(first, end)
        imm = self._imm
        if self._read_version != self._version:
            self._renew()
        found = dict(self._reader.scan(b"rows", first, end))
        for layer in (imm, self._mem):
            if layer is not None:
                for key in layer.groups.get(first[:9], ()):
                    if key >= first:
                        found[key] = layer.rows[key]
        return sorted((k, v) for k, v in found.items() if v != DELETED)

    def names(self, parent: int, after: int) -> Iterator[tuple[bytes, Dirent]]:
        """The entries of a directory in the order of their cookies, from the one after cookie `after` on.

        Entries that come and go during the iteration may or may not be seen; all others are seen exactly once.
        """
        first, end = codec.table_range(parent, codec.DIRENT)
        self._require_range(first, end)
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
            listed = layer.names.get(parent) if layer is not None else None
            if listed is None:
                continue
            for at in range(bisect_right(listed, (after, b"\xff" * 256)), len(listed)):
                cookie, name = listed[at]
                found = self.dirent(parent, name)
                if found is not None and found.cookie == cookie:
                    after = cookie
                    yield name, found

    def _renew(self) -> None:
        version = self._version
        self._reader.close()
        self._reader = self.tables.reader()
        self._read_version = version

    # --- changing -------------------------------------------------------------------------------------------------

    def new_id(self) -> int:
        """A number that no inode and no cookie ever had. It is used up even when the operation then fails."""
        self._next_id += 1
        return self._next_id - 1

    def apply(self, batch: Batch) -> None:
        """Journal the batch and make it visible. Raises CacheFullError or CacheError, and then nothing has changed."""
        ops = batch.ops
        if self._detached:
            kept: list[Op] = []
            for op in ops:
                rows = self._detached.get(ino_of(op[1]))
                if rows is None:
                    kept.append(op)
                else:
                    self._inodes.pop(ino_of(op[1]), None)
                    if op[0] == DELETE:
                        rows.pop(op[1], None)
                    else:
                        rows[op[1]] = op[2]
            ops = kept
        if not ops:
            return
        files, total = self.files + batch.files, self.bytes + batch.bytes
        self._journal.append(Counters(self._next_id, files, total), ops)
        self.files, self.bytes = files, total
        for op in ops:
            self._mem.apply(op)
            key = op[1]
            if op[0] != PUT_CLEAN:
                self._dirty.add(ino_of(key))
            if key[8:9] == codec.ATTR:
                self._inodes.pop(ino_of(key), None)
        for ino, rows in batch.detached:
            self._detached[ino] = rows
            self._dirty.discard(ino)

    def detach(self, ino: Ino, inode: Inode, batch: Batch) -> None:
        """Let `batch` remove every row of an inode without names, and keep them in memory for those who have it open.

        A commit then never sees it, and a crash forgets it.
        """
        rows = {codec.attr_key(ino): codec.encode_inode(inode)}
        for table in (codec.BLOCK, codec.XATTR):
            rows.update(self.scan(ino, table))
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
        with self._barrier_lock:
            self._barrier_stamp += 1
            self._barrier[ino] = self._barrier_stamp

    def _guarded(self) -> dict[int, int]:
        """The inodes whose data may not be on disk, and when each was last guarded."""
        with self._barrier_lock:
            return dict(self._barrier)

    def _write_data(self, guarded: dict[int, int]) -> None:
        """Any thread: bring the data of these inodes to disk. They stay guarded until that has succeeded, so that
        nothing that is made durable meanwhile overtakes it; and longer, if they were guarded again meanwhile."""
        self._before_durable(set(guarded))
        with self._barrier_lock:
            for ino, stamp in guarded.items():
                if self._barrier.get(ino) == stamp:
                    del self._barrier[ino]

    # --- durability -----------------------------------------------------------------------------------------------

    def sync_point(self) -> Callable[[], None]:
        """Everything acknowledged so far becomes durable by calling the result, on any thread. Raises CacheError."""
        serial = self._journal.serial
        journal, guarded = self._journal, self._guarded()

        def run() -> None:
            self._write_data(guarded)
            with self._flush_lock:
                self.flush()  # what was rotated before is durable in LMDB then, and its journal gone
                if journal is self._journal:
                    journal.mark(serial)
                    self.after_durable(serial)
                else:
                    self.flush()  # it was rotated just now

        return run

    def rotate(self) -> bool:
        """Set the memtable aside for `flush`. False when there is nothing to set aside, or the last is not flushed."""
        if self._imm is not None or not self._mem.rows:
            return False
        self._old_journal = self._journal
        self._journal = self._new_journal(self._journal.serial + 1)
        self._imm_barrier = self._guarded()
        self._imm_generation = self.generation
        self._imm_counters = Counters(self._next_id, self.files, self.bytes)
        self._imm, self._mem = self._mem, Memtable()
        return True

    def flush(self) -> None:
        """Any thread: write what `rotate` set aside to LMDB, durably. After CacheFullError it can be repeated."""
        with self._flush_lock:
            imm = self._imm
            if imm is None:
                return
            # From `_imm = None` on the owner may rotate again, and these are another's then.
            journal = self._old_journal
            self._write_data(self._imm_barrier)
            with self.tables.writer() as txn:
                _write_rows(txn, imm, self._imm_generation, keep_deleted=self._partial)
                _write_meta(txn, self._imm_counters, self._old_journal.serial, self.generation)
            self._version += 1
            self._imm = None
            journal.close()
            journal.path.unlink()
            self.after_durable(journal.serial)

    @property
    def serial(self) -> int:
        """The number of the newest journal record."""
        return self._journal.serial

    @property
    def next_id(self) -> int:
        """The first number that `new_id` has not given out."""
        return self._next_id

    def count_dirty_rows(self) -> int:
        """About how many rows the next commit will hold."""
        if self._read_version != self._version:
            self._renew()
        return len(self._mem.rows) + self._reader.count(b"dirty")

    @property
    def pending_rows(self) -> int:
        """How many rows wait in memory."""
        return len(self._mem.rows)

    def _new_journal(self, serial: int) -> Journal:
        return Journal(self._directory / f"journal-{serial:016x}", self._boot_id, serial)

    def _load_meta(self) -> None:
        reader = self._reader
        counters = reader.lookup(b"meta", b"counters")
        self._next_id, self.files, self.bytes = _COUNTERS.unpack(counters) if counters else (FIRST_FREE_ID, 0, 0)
        self._serial = int.from_bytes(reader.lookup(b"meta", b"serial") or b"", "big")
        # Also beyond the pending commit's, which may have been frozen without anything to flush: what is replayed now
        # came after it.
        pending = read_pending(reader)
        stored = int.from_bytes(reader.lookup(b"meta", b"generation") or b"", "big")
        self.generation = max(self.generation, stored + 1, pending.generation + 1 if pending else 0)
        self._load_parts()

    def _load_parts(self) -> None:
        self.parts = load_parts(self._reader)
        self._starts = [part.ref.start for part in self.parts]
        self._partial = any(not part.loaded for part in self.parts)

    def _replay(self) -> int:
        """Bring LMDB up to date with the journals of an earlier run. Returns how many operations that were."""
        segments = [(path, *read_segment(path)) for path in sorted(self._directory.glob("journal-*"))]
        vouched = max((mark for _, _, _, mark in segments), default=0)
        count = 0
        table = Memtable()
        counters = Counters(self._next_id, self.files, self.bytes)
        serial = self._serial
        for _path, boot_id, records, _mark in segments:
            for record in records:
                lost_power = boot_id != self._boot_id and record.serial > vouched
                if record.serial != serial + 1 or lost_power:
                    continue
                serial, counters = record.serial, record.counters
                count += 1
                for op in record.ops:
                    table.apply(op)
        if count:
            # Which of them were guarded is not known any more.
            self._before_durable({ino_of(key) for key in table.rows if table_of(key) in (codec.ATTR, codec.BLOCK)})
            with self.tables.writer() as txn:
                _write_rows(txn, table, self.generation, keep_deleted=self._partial)
                _write_meta(txn, counters, serial, self.generation)
            self._next_id, self.files, self.bytes = counters
            self.generation += 1
            self._renew()
        # A gap, so that a record that was not replayed can never be taken for one that follows.
        self._journal = self._new_journal_after(serial)
        for path, *_ in segments:
            path.unlink()
        return count

    def _new_journal_after(self, serial: int) -> Journal:
        first = serial + (1 << 20)
        with self.tables.writer() as txn:
            txn.put(b"meta", b"serial", _U64.pack(first - 1))
        self._serial = first - 1
        return self._new_journal(first)

    def close(self) -> None:
        """Flush everything and close. Raises CacheError; nothing is lost then, the journal stays."""
        self.flush()
        if self.rotate():
            self.flush()
        self._reader.close()
        self._journal.close()
        self.tables.close()

    # --- what is dirty --------------------------------------------------------------------------------------------

    @property
    def dirty_inodes(self) -> set[int]:
        """The inodes with changes that no commit holds yet."""
        return self._dirty | self._frozen_dirty

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty or self._frozen_dirty)

    def freeze(self) -> int | None:
        """End a generation: the number of what is frozen now; None while the last memtable still has to be flushed."""
        if self._imm is not None:
            return None
        self.rotate()
        generation = self.generation
        self.generation += 1
        self._frozen_dirty |= self._dirty
        self._dirty = set()
        return generation

    def frozen_reader(self, freeze: Callable[[], int | None]) -> tuple[int, Reader]:
        """Any thread: run `freeze` on the owner, and return its generation with a view of exactly that state."""
        with self._flush_lock:
            while True:
                self.flush()
                generation = freeze()
                if generation is not None:
                    break
            self.flush()
            return generation, self.tables.reader()

    def thaw(self, *, committed: bool, left: Collection[int] = ()) -> None:
        """The commit of the frozen generation has ended; with success, it left out changes of the inodes in `left`."""
        self._dirty |= self._frozen_dirty.intersection(left) if committed else self._frozen_dirty
        self._frozen_dirty = set()

    def local_blocks(self) -> list[tuple[int, int]]:
        """Inode and number of every block whose only copy is in the overlay, as far as LMDB knows. For start-up."""
        return [
            (ino_of(key), codec.block_index(key))
            for key, _ in self._reader.scan(b"dirty", b"")
            if table_of(key) == codec.BLOCK and codec.is_local(self._reader.get(key) or b"")
        ]

    def reload(self) -> None:
        """Read again what the tables say, after `advance` or `rewrite` at start-up."""
        self._renew()
        self._inodes.clear()
        self._load_meta()
        self._dirty = self._scan_dirty()

    def _scan_dirty(self) -> set[int]:
        return {ino_of(key) for key, _ in self._reader.scan(b"dirty", b"")}

    # --- partitions -----------------------------------------------------------------------------------------------

    def _get_partial(self, key: bytes) -> bytes | None:
        part = self.parts[bisect_right(self._starts, key) - 1]
        if not part.loaded:
            raise NeedRemote({("part", part.ref.key, part.ref.start): lambda: self.loader(part.ref)})
        # It may have been loaded after our look: only a reader from after that can tell.
        if self._read_version != self._version:
            self._renew()
            return self._reader.get(key)
        return None

    def _require_range(self, low: bytes, high: bytes) -> None:
        if not self._partial:
            return
        first = bisect_right(self._starts, low) - 1
        missing: dict[object, object] = {}
        for part in self.parts[first : bisect_left(self._starts, high)]:
            if not part.loaded:
                missing["part", part.ref.key, part.ref.start] = _bind(self, part.ref)
        if missing:
            raise NeedRemote(missing)

    def load(self, ref: SegmentRef, rows: Iterable[Row]) -> None:
        """Any thread: the rows of a base partition have arrived. What is newer here stays."""
        with self._flush_lock:
            part = next((p for p in self.parts if p.ref == ref), None)
            if part is None or part.loaded:
                return
            with self.tables.writer() as txn:
                write_partition(txn, ref, rows)
            self._version += 1
            part.loaded = True
            self._partial = any(not p.loaded for p in self.parts)

    def unloaded(self) -> list[SegmentRef]:
        """The base partitions that are not here yet."""
        return [part.ref for part in self.parts if not part.loaded]

    # --- commits --------------------------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing | None:
        """Any thread: the commit that the local rows build on."""
        return self._look(read_standing)

    @property
    def pending(self) -> Pending | None:
        """Any thread: a commit whose swap of HEAD was begun, and not known to have ended."""
        return self._look(read_pending)

    def rewrite(self, change: Callable[[Writer], None]) -> None:
        """Any thread: run `change` on the tables in one durable transaction, and let readers see it."""
        with self._flush_lock:
            with self.tables.writer() as txn:
                change(txn)
            reader = self.tables.reader()
            try:
                parts = load_parts(reader)
            finally:
                reader.close()
            self._version += 1
            self.parts, self._starts = parts, [part.ref.start for part in parts]
            self._partial = any(not part.loaded for part in parts)

    def restart(self, change: Callable[[Writer], None]) -> None:
        """`rewrite` for a change that replaces all rows: only before anything was read or changed."""
        assert not self._mem.rows
        assert self._imm is None
        self.rewrite(change)
        self.reload()

    def advance(self, pending: Pending, rows: Iterable[Row]) -> None:
        """Any thread: a commit is HEAD, so what it holds is clean."""
        self.rewrite(lambda txn: advance(txn, pending, rows))

    def _look(self, read: Callable[[Reader], T]) -> T:
        reader = self.tables.reader()
        try:
            return read(reader)
        finally:
            reader.close()


def _bind(index: Index, ref: SegmentRef) -> Callable[[], None]:
    return lambda: index.loader(ref)


def _no_loader(ref: SegmentRef) -> None:
    raise CacheError(f"the metadata object '{ref.key}' is not here, and nothing can load it")


def _write_rows(txn: Writer, table: Memtable, generation: int, *, keep_deleted: bool) -> None:
    """Write a memtable, and keep the cookies in step with the dirents."""
    stamp = _U64.pack(generation)
    for key, value in sorted(table.rows.items()):
        if table_of(key) == codec.DIRENT:
            old = txn.get(key)
            if old:
                txn.delete(b"cookies", key[:8] + _U64.pack(codec.decode_dirent(old).cookie))
            if value != DELETED:
                txn.put(b"cookies", key[:8] + _U64.pack(codec.decode_dirent(value).cookie), key[9:])
        if value != DELETED or keep_deleted:
            txn.put(b"rows", key, value)
        else:
            txn.delete(b"rows", key)
        if key not in table.clean:
            txn.put(b"dirty", key, stamp)


def _write_meta(txn: Writer, counters: Counters, serial: int, generation: int) -> None:
    txn.put(b"meta", b"counters", _COUNTERS.pack(*counters))
    txn.put(b"meta", b"serial", _U64.pack(serial))
    txn.put(b"meta", b"generation", _U64.pack(generation))
