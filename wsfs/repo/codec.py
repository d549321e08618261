"""Rows as bytes: the same keys and values in LMDB and in the bucket, so the two cannot drift apart.

A key is the inode number first and the table second, so that everything about a file is adjacent: a directory's inode
and names, a file's inode and blocks, and the files of one package, whose numbers follow each other. A cold look-up then
touches one partition where a table-first order would touch three.

    key    := ino:u64be  table:u8  suffix
    table  := 'a' attributes (no suffix) | 'b' block (suffix index:u32be) | 'd' dirent (suffix name)
            | 's' symbolic link target (no suffix) | 'x' extended attribute (suffix name)

Decoding raises FormatError on anything that is not exactly what encoding makes.
"""

from __future__ import annotations

import struct
from typing import Final

from wsfs.errors import FormatError
from wsfs.model import LOCAL, Block, Dirent, FrameLoc, Inline, Ino, Inode, Local, Packed

ATTR: Final = b"a"
BLOCK: Final = b"b"
DIRENT: Final = b"d"
SYMLINK: Final = b"s"
XATTR: Final = b"x"
TABLES: Final = frozenset(b"abdsx")

_INO = struct.Struct(">Q")
_BLOCK_KEY = struct.Struct(">QcI")
_INODE = struct.Struct(">BIIIIIQQqIqIqI")
_DIRENT = struct.Struct(">QBQ")
_LOC = struct.Struct(">BIIIIIIB20s")
_PLACE = struct.Struct(">BIIII")

_INODE_VERSION: Final = 1
_TAG_LOCAL: Final = 0
_TAG_INLINE: Final = 1
_TAG_PACKED: Final = 2
_TAG_RESIDENT: Final = 3
_LOCAL_ROW: Final = bytes([_TAG_LOCAL])
_SECOND: Final = 1_000_000_000

DIGEST_SIZE: Final = 20
KEY_MIN: Final = 9
KEY_MAX: Final = 9 + 255


def attr_key(ino: int) -> bytes:
    return _INO.pack(ino) + ATTR


def block_key(ino: int, index: int) -> bytes:
    return _BLOCK_KEY.pack(ino, BLOCK, index)


def dirent_key(parent: int, name: bytes) -> bytes:
    return _INO.pack(parent) + DIRENT + name


def symlink_key(ino: int) -> bytes:
    return _INO.pack(ino) + SYMLINK


def xattr_key(ino: int, name: bytes) -> bytes:
    return _INO.pack(ino) + XATTR + name


def table_range(ino: int, table: bytes) -> tuple[bytes, bytes]:
    """The half-open key range of one table of one inode."""
    prefix = _INO.pack(ino)
    return prefix + table, prefix + bytes([table[0] + 1])


def ino_of(key: bytes) -> Ino:
    return Ino(int.from_bytes(key[:8], "big"))


def table_of(key: bytes) -> bytes:
    return key[8:9]


def block_index(key: bytes) -> int:
    return int.from_bytes(key[9:13], "big")


def check_key(key: bytes) -> None:
    """Raise FormatError unless `key` could be a row's key."""
    ok = KEY_MIN <= len(key) <= KEY_MAX and key[8] in TABLES
    if ok:
        table, suffix = key[8:9], key[9:]
        if table in (ATTR, SYMLINK):
            ok = not suffix
        elif table == BLOCK:
            ok = len(suffix) == 4
        elif table == DIRENT:
            ok = bool(suffix) and b"/" not in suffix and b"\0" not in suffix and suffix not in (b".", b"..")
        else:
            ok = bool(suffix)
    if not ok:
        raise FormatError(f"a metadata row has an impossible key ({key[:32].hex()})")


def encode_inode(i: Inode) -> bytes:
    asec, ansec = divmod(i.atime_ns, _SECOND)
    msec, mnsec = divmod(i.mtime_ns, _SECOND)
    csec, cnsec = divmod(i.ctime_ns, _SECOND)
    return _INODE.pack(
        _INODE_VERSION,
        i.mode,
        i.uid,
        i.gid,
        i.nlink,
        i.rdev,
        i.size,
        i.parent,
        asec,
        ansec,
        msec,
        mnsec,
        csec,
        cnsec,
    )


def decode_inode(ino: Ino, row: bytes) -> Inode:
    try:
        version, mode, uid, gid, nlink, rdev, size, parent, asec, ansec, msec, mnsec, csec, cnsec = _INODE.unpack(row)
    except struct.error as exc:
        raise FormatError(f"the attributes of inode {ino} have {len(row)} bytes instead of {_INODE.size}") from exc
    if version != _INODE_VERSION:
        raise FormatError(f"the attributes of inode {ino} are of version {version}: a newer wsfs wrote them")
    if max(ansec, mnsec, cnsec) >= _SECOND:
        raise FormatError(f"the attributes of inode {ino} have a time with more nanoseconds than a second has")
    return Inode(
        ino,
        mode,
        uid,
        gid,
        nlink,
        rdev,
        size,
        asec * _SECOND + ansec,
        msec * _SECOND + mnsec,
        csec * _SECOND + cnsec,
        Ino(parent),
    )


def encode_dirent(d: Dirent) -> bytes:
    return _DIRENT.pack(d.ino, d.kind, d.cookie)


def decode_dirent(row: bytes) -> Dirent:
    try:
        ino, kind, cookie = _DIRENT.unpack(row)
    except struct.error as exc:
        raise FormatError(f"a directory entry has {len(row)} bytes instead of {_DIRENT.size}") from exc
    return Dirent(Ino(ino), kind, cookie)


def encode_block(block: Block) -> bytes:
    if isinstance(block, Local):
        return _LOCAL_ROW
    if isinstance(block, Inline):
        return bytes([_TAG_INLINE]) + block.data
    return _LOC.pack(_TAG_RESIDENT if block.resident else _TAG_PACKED, *block.loc)


def decode_block(row: bytes) -> Block:
    tag = row[0] if row else -1
    if tag == _TAG_LOCAL and len(row) == 1:
        return LOCAL
    if tag == _TAG_INLINE:
        return Inline(row[1:])
    if tag in (_TAG_PACKED, _TAG_RESIDENT) and len(row) == _LOC.size:
        return Packed(FrameLoc._make(_LOC.unpack(row)[1:]), tag == _TAG_RESIDENT)
    raise FormatError(f"a block row of {len(row)} bytes with tag {tag} is none that wsfs writes")


def place_of(row: bytes) -> tuple[int, int, int, int] | None:
    """Epoch, number, offset and stored length of the frame that a block row leads to; None if it leads to no pack."""
    if len(row) != _LOC.size or row[0] not in (_TAG_PACKED, _TAG_RESIDENT):
        return None
    _, epoch, pack, offset, stored = _PLACE.unpack_from(row)
    return epoch, pack, offset, stored


def is_local(row: bytes) -> bool:
    """Whether a block row says that the overlay has the only copy."""
    return row == _LOCAL_ROW


def published(key: bytes, row: bytes) -> bytes:
    """The row as the bucket holds it: what only concerns this machine is left out. Raises on a LOCAL block."""
    if key[8:9] != BLOCK:
        return row
    tag = row[0]
    if tag == _TAG_LOCAL:
        raise AssertionError("a block that was never uploaded must not be published")
    if tag == _TAG_RESIDENT:
        return bytes([_TAG_PACKED]) + row[1:]
    return row
