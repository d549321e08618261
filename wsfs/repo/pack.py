"""Packs: the bytes of many blocks in one object.

    pack   := "WSFSPAK1"  frame*  toc  footer
    frame  := the block's bytes, as they are or as one zstd frame, whichever is smaller
    toc    := zstd(entry*)
    entry  := offset:u32be stored:u32be raw:u32be codec:u8 digest:20 ino:u64be block:u32be
    footer := count:u32be toc_offset:u32be toc_length:u32be toc_digest:20 "WSFSEND1"

Block rows point straight at their frame; the table of contents serves fsck and salvage, so that a pack explains itself.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from wsfs.errors import FormatError
from wsfs.model import BLOCK_SIZE, Codec, FrameLoc
from wsfs.repo.codec import DIGEST_SIZE
from wsfs.repo.frame import ZSTD_LEVEL, compress, decompress, digest

MAGIC: Final = b"WSFSPAK1"
END: Final = b"WSFSEND1"
TARGET_SIZE: Final = 16 << 20
"""A pack is closed when its frames reach this size: large enough for few requests, small enough to send in parallel."""

_ENTRY = struct.Struct(f">IIIB{DIGEST_SIZE}sQI")
_FOOTER = struct.Struct(f">III{DIGEST_SIZE}s8s")
FOOTER_SIZE: Final = _FOOTER.size
MAX_FRAMES: Final = 1 << 20


class TocEntry(NamedTuple):
    """A frame as the pack itself describes it: where it is, what it holds, and for which block it was written."""

    offset: int
    stored_length: int
    raw_length: int
    codec: int
    digest: bytes
    ino: int
    block: int


class Frame(NamedTuple):
    """A block ready for a pack."""

    stored: bytes | memoryview
    raw_length: int
    codec: int
    digest: bytes


def make_frame(data: bytes | memoryview, data_digest: bytes, level: int = ZSTD_LEVEL) -> Frame:
    """Compress a block, unless that gains less than a thirty-second: incompressible data is then read back as it is."""
    small = compress(data, level)
    if len(small) + len(data) // 32 < len(data):
        return Frame(small, len(data), Codec.ZSTD, data_digest)
    return Frame(data, len(data), Codec.RAW, data_digest)


def open_frame(stored: bytes | memoryview, loc: FrameLoc) -> bytes:
    """The block's bytes, checked against the digest in the row that led here. Raises FormatError."""
    if len(stored) != loc.stored_length:
        raise FormatError(f"a frame has {len(stored)} bytes where {loc.stored_length} belong")
    if loc.raw_length > BLOCK_SIZE:
        raise FormatError(f"a frame announces {loc.raw_length} bytes, more than a block has")
    if loc.codec == Codec.ZSTD:
        data = decompress(stored, loc.raw_length)
    elif loc.codec == Codec.RAW:
        data = bytes(stored)
    else:
        raise FormatError(f"a frame is coded in a way ({loc.codec}) that this wsfs does not know")
    if len(data) != loc.raw_length or digest(data) != loc.digest:
        raise FormatError("a frame does not hold the bytes that were written")
    return data


class PackWriter:
    """Collects frames for one pack. Not thread safe."""

    def __init__(self, epoch: int, number: int) -> None:
        self.epoch = epoch
        self.number = number
        self.size = len(MAGIC)
        self._parts: list[bytes | memoryview] = [MAGIC]
        self._toc: list[bytes] = []

    def add(self, frame: Frame, ino: int, index: int) -> FrameLoc:
        """Append a frame and say where it will be found."""
        loc = FrameLoc(
            self.epoch,
            self.number,
            self.size,
            len(frame.stored),
            frame.raw_length,
            frame.raw_length,
            frame.codec,
            frame.digest,
        )
        self._toc.append(
            _ENTRY.pack(self.size, len(frame.stored), frame.raw_length, frame.codec, frame.digest, ino, index)
        )
        self._parts.append(frame.stored)
        self.size += len(frame.stored)
        return loc

    @property
    def frames(self) -> int:
        return len(self._toc)

    def finish(self) -> bytes:
        """The whole object."""
        toc = compress(b"".join(self._toc))
        footer = _FOOTER.pack(len(self._toc), self.size, len(toc), digest(toc), END)
        return b"".join([*self._parts, toc, footer])


def toc_size(tail: bytes) -> int:
    """How many bytes at the end of a pack `read_toc` needs, by its footer. Raises FormatError."""
    if len(tail) < FOOTER_SIZE:
        raise FormatError("a pack is shorter than its footer")
    _, _, toc_length, _, end = _FOOTER.unpack(tail[-FOOTER_SIZE:])
    if end != END:
        raise FormatError("a pack does not end with its footer")
    return FOOTER_SIZE + int(toc_length)


def read_toc(tail: bytes, object_size: int) -> list[TocEntry]:
    """The table of contents, from the end of a pack (`tail`: its last bytes, at least footer and table).

    Raises FormatError when the tail is damaged or too short.
    """
    begin = len(tail) - toc_size(tail)
    count, toc_offset, toc_length, toc_digest, _ = _FOOTER.unpack(tail[-FOOTER_SIZE:])
    if count > MAX_FRAMES or toc_offset + toc_length + FOOTER_SIZE != object_size:
        raise FormatError("a pack's footer does not fit its size")
    if begin < 0:
        raise FormatError("the tail that was read does not hold the pack's table of contents")
    toc = tail[begin : begin + toc_length]
    if digest(toc) != toc_digest:
        raise FormatError("a pack's table of contents is damaged")
    raw = decompress(toc, count * _ENTRY.size)
    return [TocEntry._make(entry) for entry in _ENTRY.iter_unpack(raw)]
