"""What is fuzzed: each decoder of bytes that others wrote, with seeds, and with wrappers that get past its checksums.

A target takes any bytes. It may raise WsfsError, which is how damage is told; anything else is a finding. The first
byte of most inputs chooses whether the rest goes to the decoder as it is, or into a frame with right lengths and
digests, so that what is behind the checks is fuzzed too.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wsfs import control
from wsfs.answers import _seconds
from wsfs.config import load_settings
from wsfs.errors import FormatError, WsfsError
from wsfs.index.journal import PUT, read_segment
from wsfs.index.memtable import Memtable
from wsfs.model import Codec, Dirent, FrameLoc, Inline, Ino, Inode, Packed
from wsfs.repo import codec, pack, segment
from wsfs.repo.frame import compress, decompress, digest
from wsfs.repo.head import Head, Holder, State, decode_head, encode_head
from wsfs.repo.manifest import MAGIC as MANIFEST_MAGIC
from wsfs.repo.manifest import Manifest, SegmentRef, decode_manifest, encode_manifest
from wsfs.repo.pack import PackWriter, make_frame, open_frame, read_toc
from wsfs.repo.segment import Row, decode_segment, encode_segment
from wsfs.repo.workspace import Format, decode_format, encode_format
from wsfs.store.url import parse_file_url, parse_s3_url

LARGE = 1 << 24
"""Nothing that these inputs lead to may be larger: they are small themselves, or compress well."""

PLAIN, WRAPPED = b"\0", b"\1"


@dataclass(frozen=True, slots=True)
class Target:
    """A decoder: `run` takes any bytes, `seeds` are inputs that it accepts."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


# --- whole objects ----------------------------------------------------------------------------------------------------

FORMAT = Format("11111111-2222-3333-4444-555555555555", "2026-01-01T00:00:00Z", "jupyter", {"team": "a"})
HEAD = Head(
    FORMAT.workspace_id,
    7,
    42,
    "commits/0000000042-00000007-0123456789abcdef",
    bytes(range(20)),
    "0123456789abcdef",
    State.RUNNING,
    "a reason",
    Holder("host", 123, "boot", "2026-01-01T00:00:00Z"),
    "2026-01-01T00:00:00Z",
    3,
    4,
)
REF = SegmentRef("meta/00000007/00000001", 100, 3, bytes(20))
MANIFEST = Manifest(
    FORMAT.workspace_id, 42, 7, "0123456789abcdef", "", "2026-01-01T00:00:00Z", 99, 3, 4, (REF,), (REF,)
)
LOC = FrameLoc(7, 1, 8, 100, 4096, 4000, Codec.ZSTD, bytes(range(20)))
ROWS: list[Row] = [
    (codec.attr_key(1), codec.encode_inode(Inode(Ino(1), 0o40755, 0, 0, 2, 0, 2, 1, -2, 3, Ino(1)))),
    (codec.dirent_key(1, b"name\xff"), codec.encode_dirent(Dirent(Ino(16), 8, 17))),
    (codec.dirent_key(1, b"link"), codec.encode_dirent(Dirent(Ino(17), 10, 18))),
    (codec.attr_key(16), codec.encode_inode(Inode(Ino(16), 0o100644, 5, 6, 1, 0, 5000, 1, 2, 3, Ino(1)))),
    (codec.block_key(16, 0), codec.encode_block(Packed(LOC))),
    (codec.block_key(16, 1), codec.encode_block(Inline(b"inline"))),
    (codec.symlink_key(17), b"target"),
    (codec.xattr_key(17, b"user.k"), None),
]
ROWS.sort(key=lambda row: row[0])


def fuzz_format(data: bytes) -> None:
    """FORMAT, and the marker that follows from it."""
    found = decode_format(data, "file:///x")
    assert found.marker.endswith(b"\n")
    assert decode_format(encode_format(found), "file:///x") == found


def fuzz_head(data: bytes) -> None:
    """HEAD: what was read can be written back, and the next epoch with it."""
    found = decode_head(data)
    again = decode_head(encode_head(found))
    assert (again.workspace, again.epoch, again.commit) == (found.workspace, found.epoch, found.commit)
    f"{found.epoch + 1:08x}".encode("ascii")
    struct.pack(">IQQQ", found.epoch + 1, found.seq, found.files, found.bytes)


def fuzz_manifest(data: bytes) -> None:
    """A manifest as it is, or JSON in a right frame."""
    kind, data = data[:1], data[1:]
    if kind == WRAPPED:
        data = struct.pack(">8sI", MANIFEST_MAGIC, len(data)) + compress(data)
    found = decode_manifest(data)
    assert decode_manifest(encode_manifest(found)) == found
    struct.pack(">IQQQQ", found.epoch, found.seq, found.next_id, found.files, found.bytes)
    assert ".." not in found.key + found.parent + "".join(ref.key for ref in (*found.base, *found.deltas))


def fuzz_segment(data: bytes) -> None:
    """A segment as it is, or rows in a right frame, and what each row says."""
    if data[:1] == WRAPPED and len(data) >= 3:
        count = int.from_bytes(data[1:3], "big")
        data = struct.pack(">8sII", segment.MAGIC, len(data) - 3, count) + compress(data[3:])
    else:
        data = data[1:]
    rows = []
    for key, value in decode_segment(data):
        rows.append((key, value))
        if value is not None:
            with suppress(FormatError):
                decode_row(key, value)
    assert list(decode_segment(encode_segment(rows))) == rows


def decode_row(key: bytes, value: bytes) -> None:
    """A row as the tables decode it; what decodes is what encoding makes, and fits what reads it."""
    table, ino = codec.table_of(key), codec.ino_of(key)
    assert 0 < ino < 1 << 63
    if table == codec.ATTR:
        inode = codec.decode_inode(ino, value)
        assert codec.encode_inode(inode) == value
        assert inode.size < 1 << 63
    elif table == codec.DIRENT:
        dirent = codec.decode_dirent(value)
        assert codec.encode_dirent(dirent) == value
        struct.pack(">QQ", dirent.cookie + 1, dirent.ino + 1)
    elif table == codec.BLOCK:
        block = codec.decode_block(value)
        assert codec.encode_block(block) == value
        if isinstance(block, Packed):
            assert block.loc.stored_length <= LARGE


def fuzz_row(data: bytes) -> None:
    """A key, and the row of its table: the first byte is the key's length."""
    length = data[0] + 9 if data else 9
    key, value = data[1 : length + 1], data[length + 1 :]
    codec.check_key(key)
    codec.place_of(value)
    decode_row(key, value)


def fuzz_frame(data: bytes) -> None:
    """A frame in a pack: as it is with lengths of its own, or with the lengths and digest that it has."""
    if len(data) < 14:
        return
    kind, coding = data[0], data[1]
    stored, raw, length = struct.unpack(">III", data[2:14])
    body = data[14:]
    checksum = bytes(20)
    if kind & 1:  # compressed here, so that lengths and digest can be right
        raw, length, checksum = len(body), min(length, len(body)), digest(body)
        body = compress(body)
        stored, coding = len(body), Codec.ZSTD
    elif kind & 2:
        raw, checksum, stored = len(body), digest(body), len(body)
    assert len(open_frame(body, FrameLoc(1, 2, 8, stored, raw, length, coding, checksum))) <= LARGE


def fuzz_pack(data: bytes) -> None:
    """The end of a pack: as it is, or entries in a right table of contents."""
    if data[:1] == WRAPPED:
        table = compress(data[1:])
        count = (len(data) - 1) // pack._ENTRY.size
        data = table + pack._FOOTER.pack(count, 8, len(table), digest(table), pack.END)
        size = 8 + len(data)
    else:
        data = data[1:]
        size = len(data)
    assert len(read_toc(data, size)) <= pack.MAX_FRAMES


# --- on this machine --------------------------------------------------------------------------------------------------


def journal(bodies: list[bytes]) -> bytes:
    """A journal segment with right lengths and checksums."""
    records = [struct.pack("<II", len(body), zlib.crc32(body)) + body for body in bodies]
    return b"WSFSWAL1" + bytes(16) + b"".join(records)


def fuzz_journal(data: bytes) -> None:
    """A journal segment as it is, or bodies of records (each after its length) with right checksums, and their
    replay."""
    if data[:1] == WRAPPED:
        bodies, at = [], 1
        while at < len(data):
            length = int.from_bytes(data[at : at + 2], "big")
            bodies.append(data[at + 2 : at + 2 + length])
            at += 2 + length
        data = journal(bodies)
    else:
        data = data[1:]
    _SCRATCH.write_bytes(data)
    _boot, records, vouched = read_segment(_SCRATCH)
    assert vouched >= 0
    table = Memtable()
    for record in records:
        with suppress(FormatError):
            table.apply(record.ops)
    for key in table.rows:
        assert len(key) <= codec.KEY_MAX


def batch(serial: int, ops: list[tuple[int, bytes, bytes]]) -> bytes:
    parts = [struct.pack("<BQQQQ", 1, serial, 20, 3, 4)]
    parts += [struct.pack("<BHI", flag, len(key), len(value)) + key + value for flag, key, value in ops]
    return b"".join(parts)


_SCRATCH = Path(tempfile.mkdtemp(prefix="wsfs-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None), "f")
_BATCH_BODY = batch(1, [(PUT, key, value or b"") for key, value in ROWS])


# --- what users and programs say --------------------------------------------------------------------------------------


def fuzz_options(data: bytes) -> None:
    """A URL, and mount options behind it."""
    first, _, second = data.decode("utf-8", "surrogateescape").partition("\n")
    for parse in (parse_s3_url, parse_file_url):
        with suppress(WsfsError):
            parse(first)
    with suppress(WsfsError):
        load_settings(first, "/mnt", environ={"WSFS_CACHE_SIZE": second, "WSFS_ENDPOINT_URL": second})
    load_settings(first, "/mnt", options=second, environ={"HOME": "/home/x"})


def fuzz_control(data: bytes) -> None:
    """A request to the daemon, and a daemon's answer."""
    with suppress(WsfsError):
        request = control._parse(data)
        seconds = _seconds(request.get("deadline"))
        assert seconds is None or 0 < seconds < 1e12
    control.parse_answer(data)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _pack() -> bytes:
    writer = PackWriter(7, 1)
    for number in range(3):
        content = b"%d" % number * 5000
        writer.add(make_frame(content, digest(content)), 16, number)
    return writer.finish()


def _entries() -> bytes:
    return struct.pack(">IIIB20sQI", 8, 100, 200, 1, bytes(20), 16, 0) * 3


def _manifest_json() -> bytes:
    return decompress(encode_manifest(MANIFEST)[12:], int.from_bytes(encode_manifest(MANIFEST)[8:12], "big"))


def _raw_rows() -> bytes:
    encoded = encode_segment(ROWS)
    return decompress(encoded[16:], int.from_bytes(encoded[8:12], "big"))


def _row_inputs() -> tuple[bytes, ...]:
    return tuple(bytes([len(key) - 9]) + key + (value or b"") for key, value in ROWS)


def _frame_inputs() -> tuple[bytes, ...]:
    content = bytes(5000)
    lengths = struct.pack(">III", len(content), len(content), len(content))
    small = compress(content)
    plain = struct.pack(">III", len(small), len(content), len(content))
    return b"\1\1" + lengths + content, b"\2\0" + lengths + content, b"\0\1" + plain + small


def _journal_inputs() -> tuple[bytes, ...]:
    mark = struct.pack("<BQ", 2, 1)
    bodies = b"".join(struct.pack(">H", len(body)) + body for body in (_BATCH_BODY, mark))
    return PLAIN + journal([_BATCH_BODY, mark]), WRAPPED + bodies


TARGETS: dict[str, Target] = {
    "format": Target(fuzz_format, (encode_format(FORMAT),)),
    "head": Target(fuzz_head, (encode_head(HEAD),)),
    "manifest": Target(fuzz_manifest, (PLAIN + encode_manifest(MANIFEST), WRAPPED + _manifest_json())),
    "segment": Target(
        fuzz_segment, (PLAIN + encode_segment(ROWS), WRAPPED + struct.pack(">H", len(ROWS)) + _raw_rows())
    ),
    "row": Target(fuzz_row, _row_inputs()),
    "frame": Target(fuzz_frame, _frame_inputs()),
    "pack": Target(fuzz_pack, (PLAIN + _pack(), WRAPPED + _entries())),
    "journal": Target(fuzz_journal, _journal_inputs()),
    "options": Target(
        fuzz_options,
        (
            b"s3://bucket/prefix\nro,cache_dir=/x,cache_size=10G,save_interval=2m,umask=022,uid=0",
            b'file:///a%20b\nendpoint_url=https://s3.example.org,nosuid,x-systemd.automount,"a,b"',
            b"s3://[::1]/x\nstop_deadline=500ms,store_timeout=1h,addressing_style=path,xattr=no",
        ),
    ),
    "control": Target(
        fuzz_control,
        (
            b'{"op": "stop", "deadline": 25.5}',
            b'{"ok": true, "op": "status"}',
            b'{"ok": false, "error": "a sentence", "exit_code": 31}',
        ),
    ),
}


def run(name: str, data: bytes) -> bool:
    """Give one input to a target. True if it was accepted, False if it was refused as it should be."""
    try:
        TARGETS[name].run(data)
    except WsfsError:
        return False
    return True
