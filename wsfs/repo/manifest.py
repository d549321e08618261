"""The manifest: what one commit consists of. Immutable, one object a commit.

    manifest := "WSFSMAN1"  raw_length:u32be  zstd(JSON)

The tree is the base partitions, in order of their start keys, with the deltas laid over them, oldest first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from wsfs.errors import FormatError
from wsfs.model import ID_MAX
from wsfs.repo.codec import DIGEST_SIZE, KEY_MAX
from wsfs.repo.frame import U32, U63, compress, decompress, digest, dump_json, field, load_json, number, word
from wsfs.repo.segment import Row, encode_segment
from wsfs.store.keys import is_key

MAGIC: Final = b"WSFSMAN1"
RAW_MAX: Final = 64 << 20
HOST_MAX: Final = 255
_HEADER = struct.Struct(">8sI")


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A metadata segment as a manifest names it. `start` is the first key of a base partition, empty for a delta."""

    key: str
    length: int
    rows: int
    digest: bytes
    start: bytes = b""

    def check(self, data: bytes) -> bytes:
        """`data` if it is the object that was written, else FormatError."""
        if len(data) != self.length or digest(data) != self.digest:
            raise FormatError(f"the metadata object '{self.key}' is not the one that was written")
        return data


def new_segment(key: str, rows: list[Row], start: bytes = b"") -> tuple[SegmentRef, bytes]:
    """A segment that is to be put under `key`, as a manifest names it, and its content. Raises as `encode_segment`."""
    data = encode_segment(rows)
    return SegmentRef(key, len(data), len(rows), digest(data), start), data


@dataclass(frozen=True, slots=True)
class Manifest:
    """One commit. `next_id` is the first inode number and cookie that no commit has used; `bytes` sums file sizes.

    `host` is the name of the machine that made it, for people; empty if it is not known. `left_out`: how many files had
    changed and could not be sent before a deadline; they are in it as they were in the commit before, or not at all.
    """

    workspace: str
    seq: int
    epoch: int
    nonce: str
    parent: str
    created: str
    next_id: int
    files: int
    bytes: int
    base: tuple[SegmentRef, ...]
    deltas: tuple[SegmentRef, ...]
    host: str = ""
    left_out: int = 0

    @property
    def key(self) -> str:
        """The object's name."""
        return f"commits/{self.seq:010d}-{self.epoch:08x}-{self.nonce}"


def encode_manifest(m: Manifest) -> bytes:
    raw = dump_json(
        {
            "format": 1,
            "workspace": m.workspace,
            "seq": m.seq,
            "epoch": m.epoch,
            "nonce": m.nonce,
            "parent": m.parent,
            "created": m.created,
            "next_id": m.next_id,
            "files": m.files,
            "bytes": m.bytes,
            "base": [_ref_out(ref) for ref in m.base],
            "deltas": [_ref_out(ref) for ref in m.deltas],
            **({"host": m.host[:HOST_MAX]} if m.host else {}),
            **({"left_out": m.left_out} if m.left_out else {}),
        }
    )
    return _HEADER.pack(MAGIC, len(raw)) + compress(raw)


def decode_manifest(data: bytes) -> Manifest:
    """Raises FormatError on anything but a whole, well-formed manifest."""
    what = "a commit's manifest"
    if len(data) < _HEADER.size:
        raise FormatError(f"{what} is shorter than its header")
    magic, raw_length = _HEADER.unpack_from(data)
    if magic != MAGIC or raw_length > RAW_MAX:
        raise FormatError(f"{what} does not begin with its header")
    v = load_json(decompress(memoryview(data)[_HEADER.size :], raw_length), what)
    if v.get("format") != 1:
        raise FormatError(f"{what} is of format {v.get('format')!r}: this wsfs reads format 1")
    base = tuple(_ref_in(r, what) for r in field(v, "base", list, what))
    if any(a.start >= b.start for a, b in pairwise(base)) or (base and base[0].start):
        raise FormatError(f"{what} lists its partitions out of order")
    parent = word(v, "parent", what)
    if parent and not is_key(parent):
        raise FormatError(f"{what} names its parent in a way that cannot be")
    return Manifest(
        workspace=word(v, "workspace", what),
        seq=number(v, "seq", what, U63 - 1),
        epoch=number(v, "epoch", what, U32),
        nonce=word(v, "nonce", what),
        parent=parent,
        created=word(v, "created", what),
        next_id=number(v, "next_id", what, ID_MAX + 1),
        files=number(v, "files", what),
        bytes=number(v, "bytes", what),
        base=base,
        deltas=tuple(_ref_in(r, what) for r in field(v, "deltas", list, what)),
        host=field(v, "host", str, what)[:HOST_MAX] if "host" in v else "",
        left_out=number(v, "left_out", what) if "left_out" in v else 0,
    )


def _ref_out(ref: SegmentRef) -> dict[str, Any]:
    return {
        "key": ref.key,
        "length": ref.length,
        "rows": ref.rows,
        "digest": ref.digest.hex(),
        "start": ref.start.hex(),
    }


def _ref_in(value: object, what: str) -> SegmentRef:
    if not isinstance(value, dict):
        raise FormatError(f"{what} names a segment in an unknown way")
    try:
        found = bytes.fromhex(field(value, "digest", str, what))
        start = bytes.fromhex(field(value, "start", str, what))
    except ValueError as exc:
        raise FormatError(f"{what} has a field that is not hexadecimal") from exc
    if len(found) != DIGEST_SIZE:
        raise FormatError(f"{what} has a digest of the wrong length")
    key = word(value, "key", what)
    if not is_key(key) or len(start) > KEY_MAX:
        raise FormatError(f"{what} names a segment, or where it starts, in a way that cannot be")
    return SegmentRef(
        key,
        number(value, "length", what),
        number(value, "rows", what, U32),
        found,
        start,
    )
