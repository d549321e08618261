"""Rows by key, and how they last: journal, memtables, LMDB, partitions.

A mutation is journalled with one write(2), then visible in the memtable. In the background the memtable is rotated and
written to LMDB in one durable transaction. Rows of a partition that is not loaded yet raise NeedRemote.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from wsfs.index import names
from wsfs.index.barrier import Barrier
from wsfs.index.base import (
    Partition,
    Pending,
    Standing,
    advance,
    load_parts,
    no_trace,
    read_pending,
    read_standing,
    write_counters,
    write_partition,
    write_rows,
)
from wsfs.index.journal import Counters, Journal, read_segment
from wsfs.index.memtable import Memtable
from wsfs.index.partitions import Partitions, no_loader
from wsfs.index.tables import Reader, Tables, Writer
from wsfs.log import get_log
from wsfs.model import FIRST_FREE_ID
from wsfs.repo import codec
from wsfs.repo.codec import ino_of, table_of
from wsfs.repo.manifest import SegmentRef
from wsfs.repo.segment import Row

log = get_log(__name__)

_U64 = struct.Struct(">Q")
_COUNTERS = struct.Struct(">QQQ")

T = TypeVar("T")


class Rows:
    """What `Index` stands on: bytes, whatever they mean. The owner and its threads are those of the index."""

    def __init__(self, directory: Path, boot_id: bytes, before_durable: Callable[[set[int]], None]) -> None:
        self._directory = directory
        self._boot_id = boot_id
        self._barrier = Barrier(before_durable)
        self.after_durable: Callable[[int], None] = lambda _serial: None
        """Called, on any thread, when every journal record up to a serial number has become durable."""
        self.loader: Callable[[SegmentRef], None] = no_loader
        self.tables = Tables(directory / "index")
        self._flush_lock = threading.RLock()
        self._mem = Memtable()
        self._imm: Memtable | None = None
        self._imm_barrier: dict[int, int] = {}
        self._version = 0
        self._read_version = 0
        self._reader = self.tables.reader()
        self.files = self.bytes = self.generation = self._next_id = self._serial = 0
        self._parts = Partitions([])
        self._load_meta()
        self._journal: Journal
        self.dropped: dict[bytes, bytes] = {}
        """After a power loss: keys and values of what was acknowledged and never synced, so that it is not replayed."""
        self.recovered = self._replay()

    def reload(self) -> None:
        """Read again what the tables say, after `advance` or `rewrite` at start-up."""
        self._renew()
        self._load_meta()

    def _renew(self) -> None:
        version = self._version
        self._reader.close()
        self._reader = self.tables.reader()
        self._read_version = version

    # --- durability -----------------------------------------------------------------------------------------------

    def sync_point(self, ino: int | None = None) -> Callable[[], None]:
        """Everything acknowledged so far becomes durable by calling the result, on any thread. Raises CacheError; for
        `ino` also if the disk has failed with its data before."""
        serial = self._journal.serial
        journal, guarded = self._journal, self._barrier.guarded()

        def run() -> None:
            self._barrier.settle(guarded)
            if ino is not None:
                self._barrier.check(ino)
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
        if self._read_version != self._version:
            self._renew()  # look-ups may all end in memory, and LMDB uses no page again that an old view may need
        self._old_journal = self._journal
        self._journal = self._new_journal(self._journal.serial + 1)
        self._imm_barrier = self._barrier.guarded()
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
            self._barrier.settle(self._imm_barrier)
            with self.tables.writer() as txn:
                self._write(txn, imm, self._imm_generation)
                write_counters(txn, self._imm_counters, self._old_journal.serial, self.generation)
            self._version += 1
            self._imm = None
            journal.close()
            try:
                journal.path.unlink(missing_ok=True)
            except OSError as exc:  # the next start knows by their serial numbers that its records are in LMDB
                log.warning("a journal that is not needed stays", path=journal.path, error=exc)
            self.after_durable(journal.serial)

    def _write(self, txn: Writer, table: Memtable, generation: int) -> None:
        if not self._parts.partial:
            table.clean |= no_trace(txn, table)
        names.note(self._directory, generation, table.changed())
        write_rows(txn, table, generation, keep_deleted=self._parts.partial)

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
        return len(self._mem.rows) - len(self._mem.clean) + self._reader.count(b"dirty")

    @property
    def pending_rows(self) -> int:
        """How many rows wait in memory."""
        return len(self._mem.rows)

    @property
    def pending_bytes(self) -> int:
        """About how large they are."""
        return self._journal.size

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
        self._parts = Partitions(load_parts(reader))

    def _replay(self) -> int:
        """Bring LMDB up to date with the journals of an earlier run. Returns how many operations that were."""
        segments = [(path, *read_segment(path)) for path in sorted(self._directory.glob("journal-*"))]
        vouched = max((mark for _, _, _, mark in segments), default=0)
        count = 0
        table = Memtable()
        counters = Counters(self._next_id, self.files, self.bytes)
        serial = self._serial
        if not serial:  # of a torn index all that is left counts
            serial = min((records[0].serial for _, _, records, _ in segments if records), default=1) - 1
        for _path, boot_id, records, _mark in segments:
            for record in records:
                if record.serial <= self._serial:
                    continue  # it is in LMDB: the segment went then, but that was not durable
                lost_power = boot_id != self._boot_id and record.serial > vouched
                if lost_power:
                    self.dropped.update((key, value) for _flag, key, value in record.ops)
                if record.serial != serial + 1 or lost_power:
                    continue
                serial, counters = record.serial, record.counters
                count += 1
                table.apply(record.ops)
        if count:
            # Which of them were guarded is not known any more.
            self._barrier.write({ino_of(key) for key in table.rows if table_of(key) in (codec.ATTR, codec.BLOCK)})
            with self.tables.writer() as txn:
                self._write(txn, table, self.generation)
                write_counters(txn, counters, serial, self.generation)
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
        with self._flush_lock:  # a thread that nobody waits for any more may still bring a partition
            self.flush()
            if self.rotate():
                self.flush()
            self._reader.close()
            self._journal.close()
            self.tables.close()

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

    # --- partitions -----------------------------------------------------------------------------------------------

    @property
    def parts(self) -> list[Partition]:
        """The base partitions of the commit that the local rows build on."""
        return self._parts.all

    def _get_partial(self, key: bytes) -> bytes | None:
        self._parts.require(key, self.loader)
        # It may have been loaded after our look: only a reader from after that can tell.
        if self._read_version != self._version:
            self._renew()
            return self._reader.get(key)
        return None

    def load(self, ref: SegmentRef, rows: Iterable[Row]) -> None:
        """Any thread: the rows of a base partition have arrived. What is newer here stays."""
        with self._flush_lock:
            part = self._parts.find(ref)
            if part is None:
                return
            with self.tables.writer() as txn:
                write_partition(txn, ref, rows)
            self._version += 1
            self._parts.arrived(part)

    def unloaded(self) -> list[SegmentRef]:
        """The base partitions that are not here yet."""
        return self._parts.unloaded()

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
            self._parts = Partitions(parts)

    def restart(self, change: Callable[[Writer], None]) -> None:
        """`rewrite` for a change that replaces all rows: only before anything was read or changed."""
        assert not self._mem.rows
        assert self._imm is None
        self.rewrite(change)
        self.reload()

    def replace_rows(self, change: Callable[[Writer], None], on_owner: Callable[[Callable[[], bool]], bool]) -> None:
        """Any thread but the owner's: `rewrite` for a change that replaces rows which the owner may be reading. It sees
        the old ones until all of it is done.

        Nothing may be dirty, and nothing may change rows meanwhile.
        """
        with self._flush_lock:
            while on_owner(self._set_aside):
                self.flush()
            with self.tables.writer() as txn:
                change(txn)
            on_owner(self._see_all)

    def _set_aside(self) -> bool:
        """Whether there is something to flush; if not, this is the view that is kept."""
        if self.rotate() or self._imm is not None:
            return True
        if self._read_version != self._version:
            self._renew()
        return False

    def _see_all(self) -> bool:
        self._version += 1
        self.reload()
        return True

    def keys_in_deltas(self) -> list[bytes]:
        """Any thread: the keys of the rows that are in a delta of the commit that the local rows build on."""
        return self._look(lambda reader: [key for key, _ in reader.scan(b"changed", b"")])

    def advance(self, pending: Pending, rows: Iterable[Row]) -> None:
        """Any thread: a commit is HEAD, so what it holds is clean."""
        self.rewrite(lambda txn: advance(txn, pending, rows))

    def _look(self, read: Callable[[Reader], T]) -> T:
        reader = self.tables.reader()
        try:
            return read(reader)
        finally:
            reader.close()
