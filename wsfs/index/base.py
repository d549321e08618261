"""The commit that this cache stands on: its partitions, and the step from one commit to the next."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any, Final

from wsfs.errors import FormatError
from wsfs.index.journal import Counters
from wsfs.index.kept import note_of
from wsfs.index.memtable import Memtable
from wsfs.index.tables import DELETED, Reader, Writer
from wsfs.model import FrameLoc, Local, Packed
from wsfs.repo import codec
from wsfs.repo.codec import table_of
from wsfs.repo.frame import dump_json, load_json
from wsfs.repo.manifest import Manifest, SegmentRef
from wsfs.repo.segment import Row, decode_segment

_U64 = struct.Struct(">Q")
_DIRENT: Final = codec.DIRENT[0]
_COUNTERS = struct.Struct(">QQQ")
_BLOCKS, _BLOCKS_END = b"pending-blocks", b"pending-blockt"
_DIGEST_ROW = struct.Struct(">IIIIIIB")
_PORTION: Final = 10_000
"""So many rows are written together, in the order of their keys: one by one takes longer."""


@dataclass(slots=True)
class Partition:
    """A base partition; its rows are in LMDB once it is loaded."""

    ref: SegmentRef
    loaded: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest commit that is known to be HEAD and on which the local rows build."""

    workspace: str
    seq: int
    commit: str
    next_id: int
    deltas: tuple[SegmentRef, ...]


@dataclass(frozen=True, slots=True)
class Pending:
    """A commit that is about to become HEAD: enough to complete it at the next start, if it did.

    `blocks` are segments with the block rows as the commit holds them.
    """

    nonce: str
    generation: int
    standing: Standing
    base: tuple[SegmentRef, ...]
    blocks: tuple[bytes, ...]

    def block_rows(self) -> Iterator[Row]:
        """The rows in `blocks`. Raises FormatError."""
        return chain.from_iterable(map(decode_segment, self.blocks))


def read_standing(reader: Reader) -> Standing | None:
    raw = reader.lookup(b"meta", b"standing")
    return None if raw is None else _standing_in(load_json(raw, "the cache's record of its commit"))


def read_pending(reader: Reader) -> Pending | None:
    raw = reader.lookup(b"meta", b"pending")
    if raw is None:
        return None
    v = load_json(raw, "the cache's pending commit")
    return Pending(
        v["nonce"],
        v["generation"],
        _standing_in(v["standing"]),
        tuple(_ref_in(r) for r in v["base"]),
        tuple(value for _, value in reader.scan(b"meta", _BLOCKS, _BLOCKS_END)),
    )


def write_pending(txn: Writer, pending: Pending) -> None:
    drop_pending(txn)
    txn.put(
        b"meta",
        b"pending",
        dump_json(
            {
                "nonce": pending.nonce,
                "generation": pending.generation,
                "standing": _standing_out(pending.standing),
                "base": [_ref_out(r) for r in pending.base],
            }
        ),
    )
    for number, blocks in enumerate(pending.blocks):
        txn.put(b"meta", _BLOCKS + b"%08d" % number, blocks)


def drop_pending(txn: Writer) -> None:
    txn.delete(b"meta", b"pending")
    for key in [key for key, _ in txn.scan(b"meta", _BLOCKS, _BLOCKS_END)]:
        txn.delete(b"meta", key)


def load_parts(reader: Reader) -> list[Partition]:
    """The partitions of the commit this cache stands on, in key order."""
    return [
        Partition(_ref_in(load_json(value[1:], "the cache's list of partitions")), value[0] == 1)
        for _, value in reader.scan(b"parts", b"")
    ]


def write_partition(txn: Writer, ref: SegmentRef, rows: Iterable[Row]) -> None:
    """Add the rows of a base partition where the cache has nothing newer, and note that it is loaded."""
    for key, value in rows:
        if value is None:
            raise FormatError(f"the base partition '{ref.key}' holds a deletion")
        if txn.put(b"rows", key, value, overwrite=False):
            _index_row(txn, key, value)
    _put_part(txn, ref, loaded=True)


def stand_on(txn: Writer, manifest: Manifest, delta_rows: Iterable[Row]) -> None:
    """Forget all local rows and start from a commit: deltas first, partitions when they are needed."""
    for table in (b"rows", b"cookies", b"dirty", b"kept", b"digests", b"parts", b"changed"):
        txn.clear(table)
    drop_pending(txn)
    for key, value in delta_rows:
        old = txn.get(key)
        if old and table_of(key) == codec.DIRENT:
            txn.delete(b"cookies", key[:8] + _U64.pack(codec.decode_dirent(old).cookie))
        txn.put(b"rows", key, DELETED if value is None else value)
        txn.put(b"changed", key, b"")
        if value is not None:
            _index_row(txn, key, value)
    for ref in manifest.base:
        _put_part(txn, ref, loaded=False)
    txn.put(b"meta", b"counters", _COUNTERS.pack(manifest.next_id, manifest.files, manifest.bytes))
    put_standing(txn, Standing(manifest.workspace, manifest.seq, manifest.key, manifest.next_id, manifest.deltas))


def move_to(
    txn: Writer,
    standing: Standing,
    counters: tuple[int, int, int],
    base: Iterable[tuple[SegmentRef, bool]],
    rows: Iterable[Row],
    in_deltas: Iterable[bytes],
    *,
    more: bool,
) -> list[bytes]:
    """Stand on another commit without forgetting what it has in common with ours; the keys that are different now.

    `rows` are those that may be; `base` the partitions, each with whether `rows` holds it whole; `in_deltas` the keys
    in the deltas, or with `more` only in those that came in addition.
    """
    different = []
    for key, value in rows:
        old = txn.get(key)
        if old is None and value is None:
            # It may be in a partition that is not loaded.
            txn.put(b"rows", key, DELETED)
            continue
        if (codec.published(key, old) if old else None) == value:
            continue
        different.append(key)
        if old and table_of(key) == codec.DIRENT:
            txn.delete(b"cookies", key[:8] + _U64.pack(codec.decode_dirent(old).cookie))
        txn.put(b"rows", key, DELETED if value is None else value)
        if value is not None:
            _index_row(txn, key, value)
    # Frames that only the old commit leads to may be deleted from now on: no later commit may lead to them.
    txn.clear(b"digests")
    if not more:
        txn.clear(b"changed")
    for key in in_deltas:
        txn.put(b"changed", key, b"")
    loaded = {part.ref for part in load_parts(txn) if part.loaded}
    txn.clear(b"parts")
    for ref, whole in base:
        _put_part(txn, ref, loaded=whole or ref in loaded)
    txn.put(b"meta", b"counters", _COUNTERS.pack(*counters))
    put_standing(txn, standing)
    return different


def advance(txn: Writer, pending: Pending, rows: Iterable[Row]) -> None:
    """A commit has become HEAD: what it holds is clean now, unless it has changed again since. Idempotent.

    `rows` are the commit's block rows. A block that was packed from the overlay stays resident there.
    """
    left = iter(rows)
    while portion := list(islice(left, _PORTION)):
        _clean_blocks(txn, portion, _U64.pack(pending.generation))
    done = list(_dirty_keys(txn, pending.generation))
    if len(done) == txn.count(b"dirty"):
        txn.clear(b"dirty")
    else:
        for key in done:
            txn.delete(b"dirty", key)
    if not pending.base:
        txn.put_all(b"changed", [(key, b"") for key in done])
    else:
        txn.clear(b"changed")
        loaded = {part.ref.start: part for part in load_parts(txn) if not part.loaded}
        txn.clear(b"parts")
        for ref in pending.base:
            old_part = loaded.get(ref.start)
            _put_part(txn, ref, loaded=old_part is None or old_part.ref != ref)
    put_standing(txn, pending.standing)
    drop_pending(txn)


def _clean_blocks(txn: Writer, rows: list[Row], newest: bytes) -> None:
    """Write the block rows of a commit, where nothing has changed since generation `newest`."""
    clean: list[tuple[bytes, bytes]] = []
    frames: list[tuple[bytes, bytes]] = []
    for key, value in rows:
        stamp = txn.lookup(b"dirty", key)
        if stamp is None or stamp > newest:
            continue
        if value is None:
            # It turned out to be all zeros.
            clean.append((key, DELETED))
            continue
        block = codec.decode_block(value)
        if isinstance(block, Packed):
            old = txn.get(key) or DELETED
            if (resident := codec.is_local(old)) or codec.is_held(old):
                clean.append((key, codec.encode_block(Packed(block.loc, resident))))
            frames.append((block.loc.digest, _DIGEST_ROW.pack(*block.loc[:7])))
        else:
            clean.append((key, value))
    txn.put_all(b"rows", clean)
    txn.put_all(b"digests", sorted(frames))


def known_frame(reader: Reader, digest: bytes) -> FrameLoc | None:
    """Where a block with this digest is already."""
    raw = reader.lookup(b"digests", digest)
    if raw is None:
        return None
    epoch, pack, offset, stored, raw_length, length, coding = _DIGEST_ROW.unpack(raw)
    return FrameLoc(epoch, pack, offset, stored, raw_length, length, coding, digest)


def note_frame(txn: Writer, loc: FrameLoc) -> None:
    """Let later commits lead to this whole frame when a block has the same content."""
    txn.put(b"digests", loc.digest, _DIGEST_ROW.pack(*loc[:7]))


def put_standing(txn: Writer, standing: Standing) -> None:
    txn.put(b"meta", b"standing", dump_json(_standing_out(standing)))


def dirty_rows(reader: Reader, generation: int) -> Iterator[Row]:
    """Every row that changed up to a generation, in key order, as it is in the reader's view. One that stays on this
    machine is as good as gone."""
    keeps = reader.count(b"kept") > 0
    for key in _dirty_keys(reader, generation):
        kept = keeps and reader.lookup(b"kept", key) is not None
        yield key, None if kept else reader.get(key) or None


def _dirty_keys(reader: Reader, generation: int) -> Iterator[bytes]:
    newest = _U64.pack(generation)
    return (key for key, stamp in reader.scan(b"dirty", b"") if stamp <= newest)


def shared_rows(reader: Reader, low: bytes, high: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    """The rows of a key range but for those that stay on this machine: these are not read, for there may be many, with
    the data of small files in them."""
    if not reader.count(b"kept"):
        yield from reader.scan(b"rows", low, high)
        return
    last, kept = b"", False
    for key in reader.keys(b"rows", low, high):
        if key[:8] != last:
            last = key[:8]
            kept = reader.lookup(b"kept", last + codec.ATTR) is not None
        if not kept and (table_of(key) != codec.DIRENT or reader.lookup(b"kept", key) is None):
            yield key, reader.get(key) or DELETED


def _index_row(txn: Writer, key: bytes, value: bytes) -> None:
    table = table_of(key)
    if table == codec.DIRENT:
        txn.put(b"cookies", key[:8] + _U64.pack(codec.decode_dirent(value).cookie), key[9:])
    elif table == codec.BLOCK:
        block = codec.decode_block(value)
        if isinstance(block, Local) or (isinstance(block, Packed) and block.resident):
            raise FormatError(f"a block of inode {codec.ino_of(key)} in the bucket is said to be on a machine")
        if isinstance(block, Packed):
            loc = block.loc
            # Only a whole frame can serve another block.
            if loc.length == loc.raw_length:
                txn.put(b"digests", loc.digest, _DIGEST_ROW.pack(*loc[:7]))


def _put_part(txn: Writer, ref: SegmentRef, *, loaded: bool) -> None:
    # LMDB has no empty keys, and the first partition starts at the empty one.
    txn.put(b"parts", b"\0" + ref.start, bytes([loaded]) + dump_json(_ref_out(ref)))


def _ref_out(ref: SegmentRef) -> dict[str, Any]:
    return {**asdict(ref), "digest": ref.digest.hex(), "start": ref.start.hex()}


def _ref_in(v: dict[str, Any]) -> SegmentRef:
    return SegmentRef(v["key"], v["length"], v["rows"], bytes.fromhex(v["digest"]), bytes.fromhex(v["start"]))


def _standing_out(s: Standing) -> dict[str, Any]:
    return {
        "workspace": s.workspace,
        "seq": s.seq,
        "commit": s.commit,
        "next_id": s.next_id,
        "deltas": [_ref_out(d) for d in s.deltas],
    }


def _standing_in(v: dict[str, Any]) -> Standing:
    return Standing(v["workspace"], v["seq"], v["commit"], v["next_id"], tuple(_ref_in(d) for d in v["deltas"]))


def no_trace(reader: Reader, table: Memtable) -> set[bytes]:
    """The keys of a memtable that came and went in it: names of temporary files, above all. No commit holds them, nor
    does one that is under way, or they would have a row or be dirty. True only while all partitions are here: what has
    no row may lie in another."""
    return {
        key
        for key, value in table.rows.items()
        if not value and key not in table.clean and not reader.get(key) and reader.lookup(b"dirty", key) is None
    }


def write_rows(txn: Writer, table: Memtable, generation: int, *, keep_deleted: bool) -> None:
    """Write a memtable, and keep the cookies in step with the dirents."""
    # Sorted by keys alone: to compare pairs takes five times as long.
    rows = [(key, table.rows[key]) for key in sorted(table.rows)]
    cookies: list[tuple[bytes, bytes]] = []
    for key, value in rows:
        if key[8] == _DIRENT:
            old = txn.get(key)
            if old:
                txn.delete(b"cookies", key[:8] + _U64.pack(codec.decode_dirent(old).cookie))
            if value:
                cookies.append((key[:8] + value[codec.COOKIE], key[9:]))
        if not value and not keep_deleted:
            txn.delete(b"rows", key)
    stamp = _U64.pack(generation)
    cookies.sort()
    txn.put_all(b"cookies", cookies)
    txn.put_all(b"rows", rows if keep_deleted else [row for row in rows if row[1]])
    txn.put_all(b"dirty", [(key, stamp) for key, _ in rows if key not in table.clean])
    if table.kept or txn.count(b"kept"):
        for key, value in rows:
            if key in table.kept:
                txn.put(b"kept", key, note_of(key, value))
            else:
                txn.delete(b"kept", key)


def write_counters(txn: Writer, counters: Counters, serial: int, generation: int) -> None:
    txn.put(b"meta", b"counters", _COUNTERS.pack(*counters))
    txn.put(b"meta", b"serial", _U64.pack(serial))
    txn.put(b"meta", b"generation", _U64.pack(generation))
