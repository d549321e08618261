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

import stat
import struct
from typing import Final

from wsfs.errors import FormatError
from wsfs.model import (
    BLOCK_SIZE,
    ID_MAX,
    INLINE_MAX,
    LOCAL,
    TYPE_MASK,
    Block,
    Dirent,
    FrameLoc,
    Inline,
    Ino,
    Inode,
    Local,
    Packed,
    new_record,
)

ATTR: Final = b"a"
BLOCK: Final = b"b"
DIRENT: Final = b"d"
SYMLINK: Final = b"s"
XATTR: Final = b"x"
TABLES: Final = frozenset(b"abdsx")

_INO = struct.Struct(">Q")
_TABLE_KEY = struct.Struct(">Qc")
_BLOCK_KEY = struct.Struct(">QcI")
_INODE = struct.Struct(">BIIIIIQQqIqIqI")
_INODE_AND_TIMES = struct.Struct(">BIIIIIQQ12s12s12s")
_TIME = struct.Struct(">qI")
_MODE_AND_SIZE = struct.Struct(">BI16xQ")
_PARENT: Final = slice(29, 37)
_DIRENT = struct.Struct(">QBQ")
_LOC = struct.Struct(">BIIIIIIB20s")
_PLACE = struct.Struct(">BIIII")

_INODE_VERSION: Final = 1
_TAG_LOCAL: Final = 0
_TAG_INLINE: Final = 1
_TAG_PACKED: Final = 2
_TAG_RESIDENT: Final = 3
_LOCAL_ROW: Final = bytes([_TAG_LOCAL])
_INLINE: Final = bytes([_TAG_INLINE])
_SECOND: Final = 1_000_000_000
_TIMES_MAX: Final = 1024

COOKIE: Final = slice(9, 17)
"""Where the cookie is in a name's row."""

DIGEST_SIZE: Final = 20
KEY_MIN: Final = 9
KEY_MAX: Final = 9 + 255

_SIZE_MAX: Final = 1 << 52
_TYPES: Final = frozenset(
    {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR}
)
_KINDS: Final = frozenset(kind >> 12 for kind in _TYPES)


def attr_key(ino: int) -> bytes:
    return _TABLE_KEY.pack(ino, ATTR)


def block_key(ino: int, index: int) -> bytes:
    return _BLOCK_KEY.pack(ino, BLOCK, index)


def dirent_key(parent: int, name: bytes) -> bytes:
    return _TABLE_KEY.pack(parent, DIRENT) + name


def symlink_key(ino: int) -> bytes:
    return _TABLE_KEY.pack(ino, SYMLINK)


def xattr_key(ino: int, name: bytes) -> bytes:
    return _TABLE_KEY.pack(ino, XATTR) + name


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
    ok = KEY_MIN <= len(key) <= KEY_MAX and key[8] in TABLES and 0 < ino_of(key) <= ID_MAX
    if ok:
        table, suffix = key[8:9], key[9:]
        if table in (ATTR, SYMLINK):
            ok = not suffix
        elif table == BLOCK:
            ok = len(suffix) == 4
        elif table == DIRENT:
            ok = bool(suffix) and b"/" not in suffix and b"\0" not in suffix and suffix not in (b".", b"..")
        else:
            ok = bool(suffix) and b"\0" not in suffix
    if not ok:
        raise FormatError(f"a metadata row has an impossible key ({key[:32].hex()})")


def encode_inode(i: Inode) -> bytes:
    """Raises FormatError on a count that cannot be: one that a damaged workspace had wrong, and that was changed."""
    ino, mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, parent = i
    try:
        packed_atime = _times.get(atime) or _pack_time(atime)
        packed_mtime = _times.get(mtime) or _pack_time(mtime)
        packed_ctime = _times.get(ctime) or _pack_time(ctime)
        return _INODE_AND_TIMES.pack(
            _INODE_VERSION, mode, uid, gid, nlink, rdev, size, parent, packed_atime, packed_mtime, packed_ctime
        )
    except struct.error as exc:
        raise FormatError(f"the attributes of inode {ino} do not fit what is in it: check with 'wsfs fsck'") from exc


_times: dict[int, bytes] = {}
"""How times are packed: most that are written are those of some change a moment ago, and to divide takes long."""


def _pack_time(ns: int) -> bytes:
    packed = _TIME.pack(ns // _SECOND, ns % _SECOND)
    if len(_times) >= _TIMES_MAX:
        _times.clear()
    _times[ns] = packed
    return packed


def decode_inode(ino: int, row: bytes) -> Inode:
    try:
        version, mode, uid, gid, nlink, rdev, size, parent, asec, ansec, msec, mnsec, csec, cnsec = _INODE.unpack(row)
    except struct.error as exc:
        raise FormatError(f"the attributes of inode {ino} have {len(row)} bytes instead of {_INODE.size}") from exc
    if version != _INODE_VERSION:
        raise FormatError(f"the attributes of inode {ino} are of version {version}: a newer wsfs wrote them")
    if ansec >= _SECOND or mnsec >= _SECOND or cnsec >= _SECOND:
        raise FormatError(f"the attributes of inode {ino} have a time with more nanoseconds than a second has")
    if mode & TYPE_MASK not in _TYPES or mode > 0xFFFF:
        raise FormatError(f"the attributes of inode {ino} are those of no type of file (mode {mode:o})")
    if size > _SIZE_MAX or not 0 < parent <= ID_MAX:
        raise FormatError(f"the attributes of inode {ino} have a size or a directory that cannot be")
    # Most files have one time two or three times, and numbers of this size take long to multiply.
    mtime = msec * _SECOND + mnsec
    atime = mtime if ansec == mnsec and asec == msec else asec * _SECOND + ansec
    ctime = mtime if cnsec == mnsec and csec == msec else csec * _SECOND + cnsec
    return new_record(Inode, (ino, mode, uid, gid, nlink, rdev, size, atime, mtime, ctime, parent))


def content_size(row: bytes) -> int:
    """The size in the row of an inode, and nothing else of it; 0 for a directory, whose size counts its entries."""
    _version, mode, size = _MODE_AND_SIZE.unpack_from(row)
    return 0 if stat.S_ISDIR(mode) else size


def parent_of(row: bytes) -> int:
    """The directory in the row of an inode: that of the name which it got last."""
    return int.from_bytes(row[_PARENT], "big")


def encode_dirent(d: Dirent) -> bytes:
    return _DIRENT.pack(d.ino, d.kind, d.cookie)


def decode_dirent(row: bytes) -> Dirent:
    return new_record(Dirent, dirent_fields(row))


def dirent_fields(row: bytes) -> tuple[Ino, int, int]:
    """What `decode_dirent` makes a record of, for who only wants to know where a name leads."""
    try:
        ino, kind, cookie = fields = _DIRENT.unpack(row)
    except struct.error as exc:
        raise FormatError(f"a directory entry has {len(row)} bytes instead of {_DIRENT.size}") from exc
    if not 0 < ino <= ID_MAX or kind not in _KINDS or cookie > ID_MAX:
        raise FormatError(f"a directory entry leads to what cannot be (inode {ino}, type {kind}, cookie {cookie})")
    return fields


def encode_block(block: Block) -> bytes:
    if isinstance(block, Local):
        return _LOCAL_ROW
    if isinstance(block, Inline):
        return encode_inline(block.data)
    return _LOC.pack(_TAG_RESIDENT if block.resident else _TAG_PACKED, *block.loc)


def encode_inline(data: bytes) -> bytes:
    """`encode_block` of a block whose bytes are in its row."""
    return _INLINE + data


def decode_block(row: bytes) -> Block:
    tag = row[0] if row else -1
    if tag == _TAG_LOCAL and len(row) == 1:
        return LOCAL
    if tag == _TAG_INLINE:
        return new_record(Inline, (row[1:],))
    if tag in (_TAG_PACKED, _TAG_RESIDENT) and len(row) == _LOC.size:
        loc = new_record(FrameLoc, _LOC.unpack(row)[1:])
        if loc.raw_length > BLOCK_SIZE or loc.length > loc.raw_length or loc.stored_length > 2 * BLOCK_SIZE:
            raise FormatError("a block row announces more bytes than a block has")
        return new_record(Packed, (loc, tag == _TAG_RESIDENT))
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


def is_inline(row: bytes) -> bool:
    """Whether a block row has the block's bytes."""
    return row[:1] == _INLINE


def is_held(row: bytes) -> bool:
    """Whether it has more of them than the bucket takes in a row: the next commit puts them into a pack."""
    return is_inline(row) and len(row) > 1 + INLINE_MAX


def published(key: bytes, row: bytes) -> bytes:
    """The row as the bucket holds it: what only concerns this machine is left out. Raises on a block that only this
    machine has."""
    if key[8:9] != BLOCK:
        return row
    tag = row[0]
    if tag == _TAG_LOCAL or is_held(row):
        raise AssertionError("a block that was never uploaded must not be published")
    if tag == _TAG_RESIDENT:
        return bytes([_TAG_PACKED]) + row[1:]
    return row
