"""The write-ahead journal: what the file system has acknowledged and LMDB does not hold yet.

Each mutation appends one checksummed record with write(2), so it survives a kill of the daemon at once; fsync(2) on the
mount makes the journal durable. LMDB itself is only ever written in whole, durable transactions, so it cannot be torn
by a power loss: docs/DECISIONS.md has the figures that led here.

A machine that loses power may have kept some of the file data that records speak of, and lost other. So a record counts
after a power loss only if a later MARK vouches for it: marks are written after the data that had to be on disk first.

    segment := "WSFSWAL1" boot_id:16  record*
    record  := length:u32 crc32:u32 body        length 0: end
    body    := kind:u8 serial:u64 rest          kind 1 batch, 2 mark (serial: every record up to it is vouched for)
    batch   := next_id:u64 files:u64 bytes:u64 op*
    op      := flag:u8 key_length:u16 value_length:u32 key value
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from wsfs.disk import FULL, is_full, sync_directory
from wsfs.errors import CacheError, CacheFullError, FormatError
from wsfs.repo.codec import check_key

PUT: Final = 1
DELETE: Final = 2
PUT_CLEAN: Final = 3
"""A change that only concerns this machine: it is journalled, but it is nothing to push."""

KEEP: Final = 4
"""A row that stays on this machine: the bucket never has it."""

HIDE: Final = 5
"""Likewise, and what the bucket may have at this key has to go."""

DROP: Final = 6
"""A row that stayed on this machine is gone."""

_FLAGS: Final = frozenset({PUT, DELETE, PUT_CLEAN, KEEP, HIDE, DROP})

_MAGIC: Final = b"WSFSWAL1"
_HEADER_SIZE: Final = len(_MAGIC) + 16
_BATCH: Final = 1
_MARK: Final = 2
_RECORD = struct.Struct("<II")
_BODY = struct.Struct("<BQ")
_COUNTERS = struct.Struct("<QQQ")
_BATCH_HEAD = struct.Struct("<BQQQQ")
_OP = struct.Struct("<BHI")
_PREALLOCATE: Final = 4 << 20
"""Reserved at creation, so that deleting files still works, for a while, when the disk is full."""

Op = tuple[int, bytes, bytes]
"""Flag, key, value (empty for a delete)."""


class Counters(NamedTuple):
    """What every batch states anew: the next free id, and the number and bytes of files."""

    next_id: int
    files: int
    bytes: int


class Record(NamedTuple):
    """A batch as read back."""

    serial: int
    counters: Counters
    ops: list[Op]


class Journal:
    """One segment, open for appending. Appends may come from two threads: the owner's batches and a syncer's marks."""

    def __init__(self, path: Path, boot_id: bytes, first_serial: int) -> None:
        self.path = path
        self.serial = first_serial - 1
        self._lock = threading.Lock()
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise _disk_error(exc) from exc
        try:
            self._preallocate()
            os.pwrite(self._fd, _MAGIC + boot_id, 0)
        except OSError as exc:
            # The next attempt may well have the same name.
            os.close(self._fd)
            path.unlink()
            raise _disk_error(exc) from exc
        self._at = _HEADER_SIZE
        self._name_is_durable = False

    def _preallocate(self) -> None:
        """Unless the room is scarce: then a save needs it more."""
        disk = os.fstatvfs(self._fd)
        if disk.f_bavail * disk.f_frsize < 2 * _PREALLOCATE:
            return
        try:
            os.posix_fallocate(self._fd, 0, _PREALLOCATE)
        except OSError as exc:
            if exc.errno not in {errno.EOPNOTSUPP, errno.EINVAL, *FULL}:
                raise

    def append(self, counters: Counters | tuple[int, int, int], ops: list[Op]) -> None:
        """Journal a batch. Raises CacheFullError or CacheError, and then nothing has been journalled."""
        next_id, files, size = counters
        parts = [b""]
        for flag, key, value in ops:
            parts += (_OP.pack(flag, len(key), len(value)), key, value)
        self._lock.acquire()  # a `with` of it takes three times as long
        try:
            serial = self.serial + 1
            parts[0] = _BATCH_HEAD.pack(_BATCH, serial, next_id, files, size)
            self._write(b"".join(parts))
            self.serial = serial
        finally:
            self._lock.release()

    def mark(self, serial: int) -> None:
        """Vouch for every record up to `serial`, of this segment and the ones before it, and make this durable."""
        with self._lock:
            self._write(_BODY.pack(_MARK, serial))
        self.sync()

    def sync(self) -> None:
        """fdatasync; and once fsync of the directory, without which the segment itself might be gone after a power
        loss. Raises CacheError."""
        try:
            os.fdatasync(self._fd)
            if not self._name_is_durable:
                sync_directory(self.path.parent)
                self._name_is_durable = True
        except OSError as exc:
            raise _disk_error(exc) from exc

    def close(self) -> None:
        os.close(self._fd)

    @property
    def size(self) -> int:
        return self._at

    def _write(self, body: bytes) -> None:
        record = _RECORD.pack(len(body), zlib.crc32(body)) + body
        try:
            written = os.pwrite(self._fd, record, self._at)
        except OSError as exc:
            raise _disk_error(exc) from exc
        if written != len(record):
            raise CacheFullError()
        self._at += written


def read_segment(path: Path) -> tuple[bytes, list[Record], int]:
    """Boot id, batches and the highest serial that a mark vouches for. Stops at the first record that is not whole."""
    data = path.read_bytes()
    if len(data) < _HEADER_SIZE or not data.startswith(_MAGIC):
        return b"", [], 0
    boot_id = data[len(_MAGIC) : _HEADER_SIZE]
    records: list[Record] = []
    vouched = 0
    at = _HEADER_SIZE
    while at + _RECORD.size <= len(data):
        length, crc = _RECORD.unpack_from(data, at)
        body = data[at + _RECORD.size : at + _RECORD.size + length]
        if length < _BODY.size or len(body) != length or zlib.crc32(body) != crc:
            break
        kind, serial = _BODY.unpack_from(body)
        if kind == _MARK:
            vouched = max(vouched, serial)
        else:
            try:
                counters = Counters._make(_COUNTERS.unpack_from(body, _BODY.size))
                ops = list(_ops(body, _BODY.size + _COUNTERS.size))
            except (struct.error, FormatError):
                break
            records.append(Record(serial, counters, ops))
        at += _RECORD.size + length
    return boot_id, records, vouched


def _ops(body: bytes, at: int) -> Iterator[Op]:
    while at < len(body):
        flag, key_length, value_length = _OP.unpack_from(body, at)
        at += _OP.size
        key, value = body[at : at + key_length], body[at + key_length : at + key_length + value_length]
        check_key(key)
        if len(value) != value_length or flag not in _FLAGS:
            raise FormatError("a journal record is not one that wsfs writes")
        yield flag, key, value
        at += key_length + value_length


def _disk_error(exc: OSError) -> CacheError:
    if is_full(exc):
        return CacheFullError()
    return CacheError(f"the journal in the cache directory cannot be written: {exc.strerror}")
