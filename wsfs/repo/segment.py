"""Metadata segments: sorted rows in one compressed object, as a base partition or as a commit's delta.

    segment := "WSFSSEG1"  raw_length:u32be  row_count:u32be  zstd(rows)
    row     := key_length:u16be  value_length+1:u32be  key  value       value_length+1 = 0: the key was deleted

Rows are in strictly ascending order of their keys.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from wsfs.errors import FormatError
from wsfs.repo.codec import check_key
from wsfs.repo.frame import compress, decompress

MAGIC: Final = b"WSFSSEG1"
RAW_MAX: Final = 256 << 20
_HEADER = struct.Struct(">8sII")
_ROW = struct.Struct(">HI")

Row = tuple[bytes, bytes | None]
"""A key and its value; None where the key was deleted."""


def row_size(key: bytes, value: bytes | None) -> int:
    """How many bytes a row takes before compression."""
    return _ROW.size + len(key) + (len(value) if value is not None else 0)


def portions(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in portions of about this size before compression; the last row of one may make it larger."""
    portion: list[Row] = []
    room = size
    for row in rows:
        portion.append(row)
        room -= row_size(*row)
        if room <= 0:
            yield portion
            portion, room = [], size
    if portion:
        yield portion


def encode_segment(rows: Iterable[Row]) -> bytes:
    """The object for `rows`, which must come in ascending order of their keys.

    Raises FormatError rather than write one that is larger than readers take.
    """
    parts: list[bytes] = []
    count = 0
    for key, value in rows:
        parts.append(_ROW.pack(len(key), 0 if value is None else len(value) + 1))
        parts.append(key)
        if value:
            parts.append(value)
        count += 1
    raw = b"".join(parts)
    if len(raw) > RAW_MAX:
        raise FormatError(f"a metadata segment of {len(raw)} bytes would be larger than the {RAW_MAX} that are allowed")
    return _HEADER.pack(MAGIC, len(raw), count) + compress(raw)


def decode_segment(data: bytes) -> Iterator[Row]:
    """The rows of a segment. Raises FormatError, at the latest at the row that is wrong."""
    if len(data) < _HEADER.size:
        raise FormatError("a metadata segment is shorter than its header")
    magic, raw_length, count = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise FormatError("a metadata segment does not begin with its magic")
    if raw_length > RAW_MAX:
        raise FormatError(f"a metadata segment announces {raw_length} bytes, more than the {RAW_MAX} that are allowed")
    return _rows(decompress(memoryview(data)[_HEADER.size :], raw_length), count)


def _rows(raw: bytes, count: int) -> Iterator[Row]:
    at = 0
    last = b""
    for _ in range(count):
        try:
            key_length, coded = _ROW.unpack_from(raw, at)
        except struct.error as exc:
            raise FormatError("a metadata segment ends in the middle of a row") from exc
        at += _ROW.size
        key = raw[at : at + key_length]
        at += key_length
        value = None
        if coded:
            value = raw[at : at + coded - 1]
            at += coded - 1
        if at > len(raw):
            raise FormatError("a metadata segment ends in the middle of a row")
        check_key(key)
        if key <= last:
            raise FormatError("the rows of a metadata segment are out of order")
        last = key
        yield key, value
    if at != len(raw):
        raise FormatError("a metadata segment holds more bytes than its rows")
