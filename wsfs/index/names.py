"""Which names have changes that no commit holds: lists beside the tables, for the day on which these cannot be read.

An index that is torn can be made anew from the newest commit, but what was unsaved in it may be gone, and then nobody
could say what that was. So whatever is written to the tables is noted here first: one file for each generation, which
goes when a commit holds that generation. A list is durable before the journal with the same changes is removed.

    record := length:u32le crc32:u32le entry*
    entry  := ino:u64be parent:u64be length:u8 name     a name that came; with ino 0 one that went
            | ino:u64be 0:u64 0:u8                      an inode of which something else has changed
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from wsfs.disk import sync_directory
from wsfs.log import get_log
from wsfs.repo import codec

log = get_log(__name__)

_RECORD = struct.Struct("<II")
_ENTRY = struct.Struct(">QQB")
_NO_INODE: Final = bytes(8)
_NO_NAME: Final = bytes(9)
_LENGTH: Final = [bytes([length]) for length in range(256)]
_DIRENT: Final = codec.DIRENT[0]
_PREFIX: Final = "names-"


class Entry(NamedTuple):
    """An inode, and perhaps a name of it in a directory. 0 for an inode without one, and for a name that went."""

    ino: int
    parent: int
    name: bytes


def note(directory: Path, generation: int, rows: Iterable[tuple[bytes, bytes]]) -> None:
    """Any thread, one at a time: these rows are about to be changed; an empty value is a deletion.

    The list is good to have, and nothing else depends on it: on a full disk there is none.
    """
    parts = _packed(rows)
    if not parts:
        return
    body = b"".join(parts)
    record = _RECORD.pack(len(body), zlib.crc32(body)) + body
    path = directory / f"{_PREFIX}{generation:016x}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, record) != len(record):
                os.ftruncate(descriptor, before)  # nothing is read beyond a piece of a record
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        if not before:
            sync_directory(directory)
    except OSError as exc:
        log.warning("unsaved names are not noted", path=path, error=exc)


def forget(directory: Path, generation: int) -> None:
    """Any thread: all up to this generation is saved."""
    for path in directory.glob(_PREFIX + "*"):
        if int(path.name.removeprefix(_PREFIX), 16) <= generation:
            try:
                path.unlink(missing_ok=True)
            except OSError as exc:
                log.warning("a list of names that are saved stays", path=path, error=exc)


def listed(directory: Path) -> Iterator[Entry]:
    """All that is noted; of a list that is damaged what comes before the damage."""
    for path in sorted(directory.glob(_PREFIX + "*")):
        data = path.read_bytes()
        at = 0
        while at + _RECORD.size <= len(data):
            length, crc = _RECORD.unpack_from(data, at)
            body = data[at + _RECORD.size :][:length]
            if len(body) != length or zlib.crc32(body) != crc:
                break
            yield from _parse(body)
            at += _RECORD.size + length


def entries_of(rows: Iterable[tuple[bytes, bytes]]) -> list[Entry]:
    """What `note` would note of these rows."""
    return list(_parse(b"".join(_packed(rows))))


def _packed(rows: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The entries for rows. Inodes are taken as they lie in keys and in the rows of names."""
    entries: list[bytes] = []
    named: set[bytes] = set()
    others: set[bytes] = set()
    for key, value in rows:
        if key[8] == _DIRENT:
            ino = value[:8] or _NO_INODE
            named.add(ino)
            entries.append(ino + key[:8] + _LENGTH[len(key) - 9] + key[9:])
        else:
            others.add(key[:8])
    entries += [ino + _NO_NAME for ino in others - named]
    return entries


def _parse(body: bytes) -> Iterator[Entry]:
    at = 0
    while at < len(body):
        ino, parent, length = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size
        yield Entry(ino, parent, body[at : at + length])
        at += length
