"""One commit: what changed since the last one, into the bucket, as one point in time.

    freeze   end the generation on the owner thread; nothing waits, programs go on
    packs    the blocks of the frozen generation, in (directory, name) order, compressed, several packs in parallel
    segments one delta, or new base partitions when the deltas have grown
    manifest under a name of its own
    pending  a note in LMDB, so that the next start can do the last step if we die before it
    HEAD     the commit point
    advance  one LMDB transaction: what the commit holds is clean, unless it has changed since

Dying before HEAD leaves objects that nothing references. docs/CRASHES.md has the table.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from typing import Final, Protocol, TypeVar

from wsfs.data.overlay import Overlay
from wsfs.errors import PreconditionFailedError, TransientStoreError
from wsfs.index.base import Pending, Standing, dirty_rows, drop_pending, known_frame, write_pending
from wsfs.index.index import Index
from wsfs.index.tables import Reader
from wsfs.model import BLOCK_SIZE, INLINE_MAX, FrameLoc, Inline, Packed, pack_key, segment_key
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.head import State
from wsfs.repo.manifest import Manifest, SegmentRef, encode_manifest
from wsfs.repo.pack import TARGET_SIZE, Frame, PackWriter, make_frame
from wsfs.repo.segment import Row, decode_segment, encode_segment, row_size
from wsfs.repo.workspace import new_nonce, timestamp
from wsfs.store.base import Store
from wsfs.sync.lease import Lease

log = logging.getLogger(__name__)

T = TypeVar("T")

PARTITION_SIZE: Final = 1 << 20
MAX_DELTAS: Final = 16
_FOLD_FLOOR: Final = 128 << 10
_BATCH: Final = 64
_ROW_ESTIMATE: Final = 30
_HEX_ZERO: Final = bytes(BLOCK_SIZE)


class OnOwner(Protocol):
    """Runs a function on the thread that owns the index, and returns what it returns."""

    def __call__(self, function: Callable[[], T], /) -> T: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """What a commit did: the files and bytes of it (before compression), bytes sent, seconds, and PUTs."""

    seq: int
    files: int
    bytes: int
    sent: int
    puts: int
    seconds: float


@dataclass(slots=True)
class _Work:
    """A block on its way: `name` orders it."""

    name: tuple[int, bytes]
    ino: int
    index: int
    length: int


class Committer:
    """Makes commits, one at a time, on a thread that is not the owner's (in tests it may be)."""

    def __init__(
        self,
        store: Store,
        index: Index,
        overlay: Overlay,
        lease: Lease,
        on_owner: OnOwner,
        *,
        uploads: int = 4,
        compressors: int = 2,
        clock: Callable[[], float] = time.time,
        reached: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._store = store
        self._index = index
        self._overlay = overlay
        self._lease = lease
        self._on_owner = on_owner
        self._uploads = uploads
        self._compressors = compressors
        self._clock = clock
        self._reached = reached
        self._pack_numbers = count(1)
        self._segment_numbers = count(1)
        self._frozen_counters = (0, 0, 0)
        self.busy = threading.Lock()
        """Held while a commit is under way."""

    def commit(self, state: State, *, may_fold: bool = True) -> Saved | None:
        """Push everything; HEAD then says `state`. None when there was nothing to push; HEAD is left alone then.

        Raises StoreError, FencedError, CacheError: everything is kept, and it can be repeated.
        """
        began = time.monotonic()
        self._settle(state)
        if not self._on_owner(lambda: self._index.is_dirty):
            return None
        fold = self._should_fold(may_fold=may_fold)
        reader: Reader | None = None
        committed = False
        try:
            generation, reader = self._index.frozen_reader(lambda: self._on_owner(self._freeze))
            self._reached("frozen")
            blocks = self._blocks(reader, generation)
            saved = self._push(reader, generation, blocks, state, fold=fold)
            committed = True
        finally:
            if reader is not None:
                reader.close()
            self._on_owner(lambda: self._thaw(committed=committed))
        return Saved(saved.seq, saved.files, saved.bytes, saved.sent, saved.puts, time.monotonic() - began)

    # --- steps on the owner thread --------------------------------------------------------------------------------

    def _freeze(self) -> int | None:
        generation = self._index.freeze()
        if generation is not None:
            self._overlay.freeze()
            self._frozen_counters = (self._index.next_id, self._index.files, self._index.bytes)
        return generation

    def _thaw(self, *, committed: bool) -> None:
        self._overlay.thaw(committed=committed)
        self._index.thaw(committed=committed)

    # --- the commit -----------------------------------------------------------------------------------------------

    def _settle(self, state: State) -> None:
        """Find out what became of a commit whose swap of HEAD got no answer."""
        pending = self._index.pending
        if pending is None:
            return
        head = self._lease.refresh()
        if head.commit == pending.standing.commit:
            self._index.advance(pending, decode_segment(pending.blocks))
            self._on_owner(self._overlay.settled)
        else:
            # The request may still be on its way: with another version of HEAD it cannot be applied any more.
            self._lease.renew(state)
            self._index.rewrite(drop_pending)

    def _should_fold(self, *, may_fold: bool) -> bool:
        """Whether the deltas have grown so much that new base partitions are due."""
        if self._index.unloaded():
            return False
        standing = self._index.standing
        deltas = standing.deltas if standing else ()
        rows = sum(d.rows for d in deltas) + self._on_owner(self._index.count_dirty_rows)
        base_rows = sum(part.ref.rows for part in self._index.parts)
        # A stop waits for its last commit: it folds only when that is long overdue.
        patience = 1 if may_fold else 4
        if len(deltas) >= MAX_DELTAS * patience:
            return True
        return rows * _ROW_ESTIMATE > _FOLD_FLOOR and rows * 4 > base_rows * patience

    def _push(self, reader: Reader, generation: int, blocks: list[_Work], state: State, *, fold: bool) -> Saved:
        standing = self._index.standing
        assert standing is not None
        packs = _Packs(self, reader)
        try:
            resolved = packs.upload(blocks)
        finally:
            packs.close()
        self._reached("packs")
        puts, sent = packs.puts, packs.sent
        changed = list(self._published(dirty_rows(reader, generation), resolved, standing.next_id))
        if fold:
            base, written = self._fold(reader, changed, resolved)
            deltas: tuple[SegmentRef, ...] = ()
        else:
            delta = self._put_segment(changed)
            base, written = tuple(part.ref for part in self._index.parts), [delta]
            deltas = (*standing.deltas, delta)
        self._reached("segments")
        next_id, files, total = self._frozen_counters
        nonce = new_nonce()
        manifest = Manifest(
            standing.workspace,
            standing.seq + 1,
            self._lease.epoch,
            nonce,
            standing.commit,
            timestamp(self._clock()),
            next_id,
            files,
            total,
            base,
            deltas,
        )
        encoded = encode_manifest(manifest)
        put_new(self._store, manifest.key, encoded)
        self._reached("manifest")
        pending = Pending(
            nonce,
            generation,
            Standing(standing.workspace, manifest.seq, manifest.key, next_id, deltas),
            base if fold else (),
            encode_segment(sorted(resolved.items())),
        )
        self._index.rewrite(lambda txn: write_pending(txn, pending))
        self._reached("pending")
        self._lease.publish(manifest, nonce, state)
        self._reached("head")
        self._index.advance(pending, decode_segment(pending.blocks))
        self._reached("advanced")
        names = sum(1 for key, row in changed if row is not None and key[8:9] == codec.ATTR)
        content = sum(work.length for work in blocks)
        sent += sum(ref.length for ref in written) + len(encoded)
        return Saved(manifest.seq, names, content, sent, puts + len(written) + 2, 0.0)

    def _blocks(self, reader: Reader, generation: int) -> list[_Work]:
        """The blocks to upload, so that files of one directory end up side by side."""
        names: dict[int, tuple[int, bytes]] = {}
        local: list[tuple[int, int]] = []
        for key, row in dirty_rows(reader, generation):
            table = codec.table_of(key)
            if row is None:
                continue
            if table == codec.DIRENT:
                names[codec.decode_dirent(row).ino] = (codec.ino_of(key), key[9:])
            elif table == codec.BLOCK and codec.is_local(row):
                local.append((codec.ino_of(key), codec.block_index(key)))
        work = []
        for ino, index in local:
            attributes = reader.get(codec.attr_key(ino))
            inode = codec.decode_inode(codec.ino_of(codec.attr_key(ino)), attributes) if attributes else None
            length = 0 if inode is None else min(BLOCK_SIZE, max(inode.size - index * BLOCK_SIZE, 0))
            name = names.get(ino) or ((inode.parent, b"") if inode else (0, b""))
            work.append(_Work(name, ino, index, length))
        work.sort(key=lambda w: (w.name, w.ino, w.index))
        return work

    @staticmethod
    def _published(rows: Iterator[Row], resolved: dict[bytes, bytes | None], first_new: int) -> Iterator[Row]:
        """Rows as the bucket holds them. What came and went between two commits leaves no trace."""
        for key, row in rows:
            if row is None:
                if codec.ino_of(key) < first_new:
                    yield key, None
            elif key in resolved:
                value = resolved[key]
                if value is not None or codec.ino_of(key) < first_new:
                    yield key, value
            else:
                yield key, codec.published(key, row)

    def _put_segment(self, rows: list[Row], start: bytes = b"") -> SegmentRef:
        data = encode_segment(rows)
        key = segment_key(self._lease.epoch, next(self._segment_numbers))
        self._store.put(key, data)
        return SegmentRef(key, len(data), len(rows), digest(data), start)

    # --- folding --------------------------------------------------------------------------------------------------

    def _fold(
        self, reader: Reader, changed: list[Row], resolved: dict[bytes, bytes | None]
    ) -> tuple[tuple[SegmentRef, ...], list[SegmentRef]]:
        """New partitions where something has changed since the old ones. Returns all, and the new ones."""
        keys = sorted({key for key, _ in changed} | {key for key, _ in reader.scan(b"changed", b"")})
        refs = [part.ref for part in self._index.parts]
        base: list[SegmentRef] = []
        written: list[SegmentRef] = []
        at = 0
        for number, ref in enumerate(refs):
            end = refs[number + 1].start if number + 1 < len(refs) else None
            first = at
            while at < len(keys) and (end is None or keys[at] < end):
                at += 1
            if at == first:
                base.append(ref)
                continue
            fresh = [self._put_segment(rows, start) for start, rows in self._pieces(reader, ref.start, end, resolved)]
            written.extend(fresh)
            base.extend(fresh)
        if not base or base[0].start:
            # The partition with the lowest keys is gone: its neighbour answers for them now.
            empty = self._put_segment([])
            base.insert(0, empty)
            written.append(empty)
        return tuple(base), written

    def _pieces(
        self, reader: Reader, start: bytes, end: bytes | None, resolved: dict[bytes, bytes | None]
    ) -> Iterator[tuple[bytes, list[Row]]]:
        """The rows of a key range as partitions of about 1 MiB, each with its start key."""
        rows: list[Row] = []
        size = 0
        for key, row in reader.scan(b"rows", start, end):
            value = resolved.get(key, row)
            if not value:
                continue
            value = codec.published(key, value)
            if size >= PARTITION_SIZE:
                yield start, rows
                start, rows, size = key, [], 0
            rows.append((key, value))
            size += row_size(key, value)
        if rows:
            yield start, rows

    # --- packs ----------------------------------------------------------------------------------------------------

    def new_pack(self) -> PackWriter:
        """Any thread: an empty pack, with a name that no other has."""
        return PackWriter(self._lease.epoch, next(self._pack_numbers))


class _Packs:
    """Turns blocks into rows, by way of packs that are uploaded in parallel. At most `uploads` packs wait in memory."""

    def __init__(self, committer: Committer, reader: Reader) -> None:
        self._c = committer
        self._reader = reader
        self._compress = ThreadPoolExecutor(committer._compressors, "wsfs-compress")
        self._upload = ThreadPoolExecutor(committer._uploads, "wsfs-upload")
        self._running: list[Future[None]] = []
        self._seen: dict[bytes, FrameLoc] = {}
        self._pack = committer.new_pack()
        self.puts = 0
        self.sent = 0

    def upload(self, blocks: list[_Work]) -> dict[bytes, bytes | None]:
        """The published row of each block, once all packs are in the store; None for one that is all zeros."""
        resolved: dict[bytes, bytes | None] = {}
        queue = iter(blocks)
        while chunk := list(islice(queue, _BATCH)):
            for work, data, found in zip(chunk, *self._prepare(chunk), strict=True):
                key = codec.block_key(work.ino, work.index)
                if not data:
                    resolved[key] = None
                elif len(data) <= INLINE_MAX:
                    resolved[key] = codec.encode_block(Inline(data))
                else:
                    resolved[key] = codec.encode_block(Packed(self._place(found, work)))
        if self._pack.frames:
            self._send()
        for upload in self._running:
            upload.result()
        return resolved

    def close(self) -> None:
        for upload in self._running:
            upload.cancel()
        self._compress.shutdown(wait=True)
        self._upload.shutdown(wait=True)

    def _prepare(self, chunk: list[_Work]) -> tuple[list[bytes], list[Frame | FrameLoc | None]]:
        results = list(self._compress.map(self._prepare_one, chunk))
        return [data for data, _ in results], [found for _, found in results]

    def _prepare_one(self, work: _Work) -> tuple[bytes, Frame | FrameLoc | None]:
        data = self._c._overlay.capture(work.ino, work.index, work.length)
        if data == _HEX_ZERO[: len(data)]:
            return b"", None
        if len(data) <= INLINE_MAX:
            return data, None
        name = digest(data)
        known = self._seen.get(name)
        return data, known if known is not None else make_frame(data, name)

    def _place(self, found: Frame | FrameLoc | None, work: _Work) -> FrameLoc:
        assert found is not None
        known = self._seen.get(found.digest) or known_frame(self._reader, found.digest)
        if known is None:
            assert isinstance(found, Frame)
            known = self._pack.add(found, work.ino, work.index)
            if self._pack.size >= TARGET_SIZE:
                self._send()
        self._seen[found.digest] = known
        return known

    def _send(self) -> None:
        pack, self._pack = self._pack, self._c.new_pack()
        while len(self._running) >= self._c._uploads:
            self._running.pop(0).result()
        self._running.append(self._upload.submit(self._put, pack))
        self.puts += 1

    def _put(self, pack: PackWriter) -> None:
        data = pack.finish()
        self._c._store.put(pack_key(pack.epoch, pack.number), data)
        self.sent += len(data)


def put_new(store: Store, key: str, data: bytes) -> None:
    """Write an object under a name that nobody else can choose. A refusal after a lost answer means it is there."""
    try:
        store.put(key, data, if_none_match=True)
    except TransientStoreError as exc:
        log.info("put again: key=%s error=%s", key, exc)
        try:
            store.put(key, data, if_none_match=True)
        except PreconditionFailedError:
            return
