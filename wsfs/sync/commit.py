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

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, Protocol, TypeVar

from wsfs.data.overlay import Overlay
from wsfs.data.packcache import PackCache
from wsfs.errors import DeadlineError, PreconditionFailedError, StoreError, TransientStoreError
from wsfs.index.base import Pending, Standing, dirty_rows, drop_pending, shared_rows, write_pending
from wsfs.index.index import Index
from wsfs.index.order import in_order, let_go, once_each
from wsfs.index.tables import Reader, Writer
from wsfs.log import get_log
from wsfs.model import segment_key
from wsfs.parallel import map_ordered
from wsfs.remote import fetch_all
from wsfs.repo import codec
from wsfs.repo.head import State
from wsfs.repo.manifest import Manifest, SegmentRef, encode_manifest, new_segment
from wsfs.repo.pack import PackWriter
from wsfs.repo.segment import Row, encode_segment, portions, row_size
from wsfs.repo.workspace import new_nonce, timestamp
from wsfs.store.base import Store
from wsfs.sync.changes import blocks_to_send, published_rows
from wsfs.sync.lease import Lease
from wsfs.sync.load import committed_rows
from wsfs.sync.partial import LARGE_FILES, MUST, Left, Plan, Rows
from wsfs.sync.progress import Progress
from wsfs.sync.upload import Limit, Packs, Uploaded, Work, in_time

log = get_log(__name__)

T = TypeVar("T")

STEPS: Final = ("frozen", "packs", "segments", "manifest", "pending", "head", "advanced")
"""What `reached` is called with, in this order."""

PARTITION_SIZE: Final = 1 << 20
DELTA_SIZE: Final = 64 << 20
"""More rows than this, before compression, become several deltas: readers take no segment of any size."""

MAX_DELTAS: Final = 16
_FOLD_FLOOR: Final = 128 << 10
_ROW_ESTIMATE: Final = 30
_WORTH_LEAVING: Final = 4 << 20
"""With less than this to send, nothing is left out."""

_SKIP: Final = 1 << 20
"""More names than an epoch is likely to have used."""

_POINT_SECONDS: Final = 5.0
"""With a limit: after so long what has been sent is committed, so that it counts whatever comes."""


Segment = tuple[SegmentRef, bytes]
"""One that is not in the store yet, and its content."""


class OnOwner(Protocol):
    """Runs a function on the thread that owns the index, and returns what it returns."""

    def __call__(self, function: Callable[[], T], /) -> T: ...


@dataclass(frozen=True, slots=True)
class Saved:
    """What a commit did: the files and bytes of it (before compression), bytes sent, seconds, PUTs, and how many files
    it left out."""

    seq: int
    files: int
    bytes: int
    sent: int
    puts: int
    seconds: float
    left: int = 0


class Committer:
    """Makes commits, one at a time, on a thread that is not the owner's (in tests it may be).

    `judge` is `Namespace.judge`: before a freeze it must be decided what stays on this machine.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        overlay: Overlay,
        cache: PackCache,
        lease: Lease,
        on_owner: OnOwner,
        *,
        uploads: int = 4,
        compressors: int = 2,
        clock: Callable[[], float] = time.time,
        judge: Callable[[], bool] = lambda: False,
        reached: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._store = store
        self._index = index
        self._overlay = overlay
        self._cache = cache
        self._lease = lease
        self._on_owner = on_owner
        self._uploads = uploads
        self._compressors = compressors
        self._clock = clock
        self._judge = judge
        self._reached = reached
        self._pack_numbers = count(1)
        self._segment_numbers = count(1)
        self._frozen_counters = (0, 0, 0)
        self._uploaded = Uploaded()
        self._left = Left()
        self._maybe_left = Left()
        self.progress: Progress | None = None
        """Of the commit that is under way."""
        self.busy = threading.Lock()
        """Held while a commit is under way."""

    def commit(
        self, state: State, *, may_fold: bool = True, limit: Limit | None = None, empty: bool = False
    ) -> Saved | None:
        """Push everything; HEAD then says `state`. None when there was nothing to push; HEAD is left alone then, unless
        it may be `empty`.

        With a limit it may leave out files that take too long (see `partial`), and more commits have to follow.

        Raises StoreError, FencedError, CacheError, with a limit DeadlineError: everything is kept, and it can be
        repeated.
        """
        with self.busy:
            self.progress = Progress()
            try:
                return self._commit(state, limit, self.progress, may_fold=may_fold, empty=empty)
            except PreconditionFailedError as exc:
                self._skip_names()
                raise TransientStoreError(
                    f"something else lies where this save had to write ({exc}): it is tried again with other names"
                ) from exc
            finally:
                self.progress = None

    def _commit(
        self, state: State, limit: Limit | None, progress: Progress, *, may_fold: bool, empty: bool
    ) -> Saved | None:
        began = time.monotonic()
        self._lease.check_held()
        self._uploaded.expire()
        self._settle(state)
        while self._ask(self._judge):
            pass
        if not empty and not self._on_owner(lambda: self._index.is_dirty):
            return None
        fold = limit is None and self._should_fold(may_fold=may_fold)
        left = Left()
        reader: Reader | None = None
        committed = False
        try:
            generation, reader = self._index.frozen_reader(lambda: self._ask(lambda: self._freeze(left)))
            self._reached("frozen")
            saved = self._push(reader, generation, state, left, limit, progress, fold=fold)
            committed = True
        finally:
            if reader is not None:
                reader.close()
            self._on_owner(lambda: self._thaw(left, committed=committed))
        self._left = left
        if not left.inodes:
            self._uploaded.clear()
        return replace(saved, seconds=time.monotonic() - began, left=len(left.inodes))

    # --- steps on the owner thread --------------------------------------------------------------------------------

    def _ask(self, look: Callable[[], T]) -> T:
        """What a look on the owner thread finds; what it needs is fetched on ours."""
        return fetch_all(lambda: self._on_owner(look))

    def _freeze(self, left: Left) -> int | None:
        if self._judge():
            return None
        generation = self._index.freeze()
        if generation is not None:
            self._overlay.freeze(self._index.kept.sizes)
            left.stays_here(self._index.kept)
            self._frozen_counters = (self._index.next_id, self._index.files, self._index.bytes)
        return generation

    def _thaw(self, left: Left, *, committed: bool) -> None:
        self._overlay.thaw(committed=committed, left=left.inodes)
        self._index.thaw(committed=committed, left=left.dirty)

    # --- the commit -----------------------------------------------------------------------------------------------

    def _settle(self, state: State) -> None:
        """Find out what became of a commit whose swap of HEAD got no answer."""
        pending = self._index.pending
        if pending is None:
            return
        commit = pending.standing.commit
        if self._lease.refresh().commit != commit:
            # The request may still be on its way: with another version of HEAD it cannot be applied any more.
            self._lease.renew(state)
        if self._lease.head.commit == commit:  # it may have arrived in between
            self._index.advance(pending, pending.block_rows())
            self._left = self._maybe_left
            self._on_owner(lambda: self._overlay.settled(self._left.inodes))
        else:
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

    def _push(
        self,
        reader: Reader,
        generation: int,
        state: State,
        left: Left,
        limit: Limit | None,
        progress: Progress,
        *,
        fold: bool,
    ) -> Saved:
        """The frozen generation, but for what it adds to `left`."""
        standing = self._index.standing
        assert standing is not None
        blocks = blocks_to_send(reader, generation, progress)
        packs = Packs(
            self._store,
            self._overlay,
            self._cache,
            reader,
            self.new_pack,
            self._uploaded,
            uploads=self._uploads,
            compressors=self._compressors,
            progress=progress,
            limit=limit,
            behind=state is State.RUNNING,
        )
        try:
            if limit is None:
                resolved = packs.pack(blocks, lambda _work: True)
            else:
                resolved = self._send_some(packs, blocks, self._plan(reader, generation, blocks, standing), left, limit)
            # While the last packs are on their way:
            rows = ((key, row) for key, row in dirty_rows(reader, generation) if key not in left.keys)
            changed = list(published_rows(rows, resolved, standing.next_id, left))
            base, deltas = tuple(part.ref for part in self._index.parts), standing.deltas
            if fold:
                base, segments = self._fold(reader, changed, resolved, left)
                deltas = ()
            else:
                segments = [self._new_segment(rows) for rows in portions(changed, DELTA_SIZE)]
                deltas += tuple(ref for ref, _ in segments)
            block_rows = tuple(encode_segment(rows) for rows in portions(in_order(resolved.items()), DELTA_SIZE))
            packs.wait()
        finally:
            packs.close()
        progress.skipped(len(left.inodes))
        self._reached("packs")
        puts, sent = packs.puts, packs.sent
        self._put_segments(segments)
        self._reached("segments")
        next_id, files, total = self._frozen_counters
        files, total = files - left.files, total - left.size
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
            self._lease.host,
            len(left.inodes),
        )
        encoded = encode_manifest(manifest)
        in_time(limit)
        self._store.put(manifest.key, encoded, if_none_match=True)
        self._reached("manifest")
        pending = Pending(
            nonce,
            generation,
            Standing(standing.workspace, manifest.seq, manifest.key, next_id, deltas),
            base if fold else (),
            block_rows,
        )

        def note(txn: Writer) -> None:
            write_pending(txn, pending)
            left.keep_dirty(txn, generation)

        in_time(limit)
        self._maybe_left = left
        self._index.rewrite(note)
        self._reached("pending")
        metadata = sum(len(data) for _, data in segments) + len(encoded)
        self._lease.grew(sent + metadata)
        self._lease.publish(manifest, nonce, state)
        self._reached("head")
        self._index.advance(pending, pending.block_rows())
        self._reached("advanced")
        progress.done(0, 0, metadata)
        names = sum(1 for key, row in changed if row is not None and key[8:9] == codec.ATTR)
        content = sum(work.length for work in blocks if work.ino not in left.inodes)
        content += sum(len(row) - 1 for key, row in changed if row and key not in resolved and _is_inline(key, row))
        let_go(blocks, changed, resolved)
        return Saved(manifest.seq, names, content, sent + metadata, puts + len(segments) + 2, 0.0)

    # --- under a limit --------------------------------------------------------------------------------------------

    def _plan(self, reader: Reader, generation: int, blocks: list[Work], standing: Standing) -> Plan:
        """What may be left out; nothing, if there is little to send or the bucket cannot be asked."""
        plan = Plan(reader, dirty_rows(reader, generation), lambda keys: self._in_bucket(reader, standing, keys))
        if sum(work.length for work in blocks) >= _WORTH_LEAVING:
            try:
                plan.choose({work.ino for work in blocks})
            except StoreError as exc:
                log.warning("nothing can be left out, for the last commit cannot be read", error=exc)
                plan.choices.clear()
        return plan

    def _in_bucket(self, reader: Reader, standing: Standing, keys: set[bytes]) -> Rows:
        """The rows of the commit that this cache stands on."""
        before = self._left.before
        rows: Rows = {key: before[key] for key in keys if key in before}
        rows.update((key, None) for key in keys if codec.ino_of(key) >= standing.next_id)
        asked = keys - rows.keys()
        in_deltas = {key for key in asked if reader.lookup(b"changed", key) is not None}
        refs = [part.ref for part in self._index.parts]
        return rows | committed_rows(self._store, standing.deltas if in_deltas else (), refs, asked)

    def _send_some(
        self, packs: Packs, blocks: list[Work], plan: Plan, left: Left, limit: Limit
    ) -> dict[bytes, bytes | None]:
        """Upload in the order of value, until it is time to commit; what is not in the store then is added to `left`.

        Raises DeadlineError, or why nothing could be sent, when there is nothing that a commit could hold.
        """
        began = time.monotonic()
        ranks: set[int] = set()

        def goes_on(work: Work) -> bool:
            now, rank = time.monotonic(), plan.rank(work)
            if now >= limit.uploads or (ranks - {MUST} and now - began > _POINT_SECONDS):
                return False
            if rank >= LARGE_FILES and ranks and max(ranks) < LARGE_FILES:
                return False  # the files that people care for most count at once
            ranks.add(rank)
            return True

        blocks = plan.order(blocks)
        resolved = packs.upload(blocks, goes_on)
        missing = {one.ino for one in blocks if one.key not in resolved or not packs.is_sent(resolved[one.key])}
        progress = not self._left.inodes or len(missing) < len({work.ino for work in blocks})
        if missing and not (progress and missing <= plan.choices.keys()):
            if packs.failure is not None:
                raise packs.failure
            raise DeadlineError("there was no time to send more")
        for ino in missing:
            left.add(ino, plan.choices[ino])
        left.before.update((key, row) for key, row in plan.before.items() if _concerns(key, left))
        return {key: row for key, row in resolved.items() if codec.ino_of(key) not in missing}

    # --- segments -------------------------------------------------------------------------------------------------

    def _new_segment(self, rows: list[Row], start: bytes = b"") -> Segment:
        return new_segment(segment_key(self._lease.epoch, next(self._segment_numbers)), rows, start)

    def _put_segments(self, segments: list[Segment]) -> None:
        def put(segment: Segment) -> str:
            ref, data = segment
            return self._store.put(ref.key, data, if_none_match=True)

        for _ in map_ordered(put, segments, threads=self._uploads, name="wsfs-upload"):
            pass

    def _fold(
        self, reader: Reader, changed: list[Row], resolved: dict[bytes, bytes | None], left: Left
    ) -> tuple[tuple[SegmentRef, ...], list[Segment]]:
        """New partitions where something has changed since the old ones. Returns all, and the new ones."""
        keys = once_each((key for key, _ in changed), reader.keys(b"changed", b""))
        key = next(keys, None)
        refs = [part.ref for part in self._index.parts]
        base: list[SegmentRef] = []
        segments: list[Segment] = []
        for number, ref in enumerate(refs):
            end = refs[number + 1].start if number + 1 < len(refs) else None
            first = key
            while key is not None and (end is None or key < end):
                key = next(keys, None)
            if key == first:
                base.append(ref)
                continue
            pieces = self._pieces(reader, ref.start, end, resolved, left)
            fresh = [self._new_segment(rows, start) for start, rows in pieces]
            segments.extend(fresh)
            base.extend(ref for ref, _ in fresh)
        if not base or base[0].start:
            # The partition with the lowest keys is gone: its neighbour answers for them now.
            segments.append(self._new_segment([]))
            base.insert(0, segments[-1][0])
        return tuple(base), segments

    def _pieces(
        self, reader: Reader, start: bytes, end: bytes | None, resolved: dict[bytes, bytes | None], left: Left
    ) -> Iterator[tuple[bytes, list[Row]]]:
        """The rows of a key range as partitions of about 1 MiB, each with its start key."""
        rows: list[Row] = []
        size = 0
        for key, row in shared_rows(reader, start, end):
            value = resolved.get(key, row)
            if not value:
                continue
            value = left.publish(key, codec.published(key, value))
            if size >= PARTITION_SIZE:
                yield start, rows
                start, rows, size = key, [], 0
            rows.append((key, value))
            size += row_size(key, value)
        if rows:
            yield start, rows

    # --- names ----------------------------------------------------------------------------------------------------

    def _skip_names(self) -> None:
        """Somebody has used our numbers in our epoch: a copy of this machine that was resumed from the same snapshot,
        which the swap of HEAD will sort out, or a mount before the bucket was put back to an older state."""
        log.warning("names of new objects are taken", epoch=self._lease.epoch)
        self._pack_numbers = count(next(self._pack_numbers) + _SKIP)
        self._segment_numbers = count(next(self._segment_numbers) + _SKIP)

    def forget_uploaded(self) -> None:
        """While `busy` is held: no later commit leads to what an earlier, failed one has uploaded."""
        self._uploaded.clear()

    def new_pack(self) -> PackWriter:
        """Any thread: an empty pack, with a name that no other has."""
        return PackWriter(self._lease.epoch, next(self._pack_numbers))


def _is_inline(key: bytes, row: bytes) -> bool:
    return codec.table_of(key) == codec.BLOCK and codec.is_inline(row)


def _concerns(key: bytes, left: Left) -> bool:
    """Whether the bucket's row at `key` stays as it is, with what is left out."""
    return key in left.keys or codec.ino_of(key) in left.inodes
