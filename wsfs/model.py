"""The records everything else speaks of: inodes, dirents, blocks, and where a block's bytes are.

All names are bytes, all times nanoseconds since 1970 (negative before it), all sizes bytes.
"""

from __future__ import annotations

import stat
from enum import IntEnum
from typing import Final, NamedTuple, NewType

Ino = NewType("Ino", int)

BLOCK_SIZE: Final = 1 << 20
"""Files are cut into blocks of this many bytes, at fixed offsets."""

INLINE_MAX: Final = 512
"""A block with at most this many bytes travels inside its row instead of in a pack."""

HELD_MAX: Final = 32 << 10
"""A block with at most this many bytes that is written at once waits in its row, on this machine, to be packed."""

NAME_MAX: Final = 255
TYPE_MASK: Final = 0o170000
"""What stat.S_IFMT keeps of a mode, without a call."""

ROOT_INO: Final = Ino(1)
MARKER_INO: Final = Ino(2)
FIRST_FREE_ID: Final = 16
"""Inode numbers and dirent cookies come from one counter that starts here and never goes back."""

ID_MAX: Final = (1 << 62) - 1
"""The largest inode number and cookie: the kernel takes a cookie for a signed offset."""

MARKER_NAME: Final = b".workspace.initialized"

PAST: Final = 1 << 63
"""In the mount, inode numbers from here on are those of save points, and of what leads to them. No row has one."""

PAST_NAME: Final = b".wsfs"
"""What leads to them: a name in the top directory that is in no listing, unless there is a real one."""


new_record: Final = tuple.__new__
"""Makes a record of the fields in a tuple, in a third of the time that its own `__new__` takes, which is a function in
Python; and `_replace` takes seven times as long."""


class Inode(NamedTuple):
    """What stat(2) tells of a file, and its parent directory (for a hard-linked file: the one linked last).

    A directory's `size` counts its entries. A NamedTuple rather than a dataclass: immutable, and made and taken
    apart on the path of every request.
    """

    ino: Ino
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    parent: Ino

    @property
    def is_dir(self) -> bool:
        return self[1] & TYPE_MASK == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self[1] & TYPE_MASK == stat.S_IFREG


class Dirent(NamedTuple):
    """A name in a directory: the inode it leads to, the type bits of its mode (>> 12), its place in readdir's order."""

    ino: Ino
    kind: int
    cookie: int

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR >> 12


class Codec(IntEnum):
    """How a frame is stored in its pack."""

    RAW = 0
    ZSTD = 1


class FrameLoc(NamedTuple):
    """Where a block's bytes lie in the bucket, and what they must hash to.

    `length` is how many of the frame's `raw_length` bytes still belong to the block: truncating a file to the middle of
    a block shortens it without touching the pack. The rest of the block reads as zeros.
    """

    epoch: int
    pack: int
    offset: int
    stored_length: int
    raw_length: int
    length: int
    codec: int
    digest: bytes


class Local(NamedTuple):
    """A block whose only copy is in the overlay on this machine's disk."""


class Inline(NamedTuple):
    """A block so small that its row holds its bytes."""

    data: bytes


class Packed(NamedTuple):
    """A block in a pack. `resident`: the overlay still has the same bytes, so reading it needs no pack."""

    loc: FrameLoc
    resident: bool = False


Block = Local | Inline | Packed
LOCAL: Final = Local()


def pack_key(epoch: int, number: int) -> str:
    """The object name of a pack. The shard spreads packs over the key space, which stores partition by prefix."""
    return f"packs/{number & 0xFF:02x}/{epoch:08x}-{number:08x}"


def segment_key(epoch: int, number: int) -> str:
    """The object name of a metadata segment."""
    return f"meta/{epoch:08x}/{number:08x}"


def blocks_of(size: int) -> int:
    """How many blocks a file of `size` bytes has."""
    return -(-size // BLOCK_SIZE)
