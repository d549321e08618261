"""A whole tree as one commit, straight into the bucket: what an import writes.

The rows come in the order of their keys, and become base partitions. As in every commit the manifest is written last
but one, and HEAD last: who dies before that leaves objects that nothing references.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from wsfs.beside import Ended, beside
from wsfs.errors import FencedError
from wsfs.log import get_log
from wsfs.model import segment_key
from wsfs.parallel import map_ordered
from wsfs.repo.head import Head, State
from wsfs.repo.manifest import Manifest, SegmentRef, encode_manifest, new_segment
from wsfs.repo.segment import Row, portions
from wsfs.repo.workspace import new_nonce, timestamp
from wsfs.store.base import Store
from wsfs.sync.commit import PARTITION_SIZE
from wsfs.sync.lease import RENEW_SECONDS, Lease, best_effort
from wsfs.sync.recover import changed_since, unchanged_since

log = get_log(__name__)

_WRITERS: Final = 8


def commit_tree(
    store: Store,
    lease: Lease,
    before: Manifest,
    rows: Iterable[Row],
    *,
    next_id: int,
    files: int,
    size: int,
    state: State = State.STOPPING,
    clock: Callable[[], float] = time.time,
) -> tuple[Manifest, int, int]:
    """Make `rows`, all rows of a tree, the commit after `before`. Returns it, the bytes that were sent for it, and the
    PUTs. Raises StoreError, FencedError."""
    base = tuple(_put_partitions(store, lease.epoch, rows))
    manifest = replace(
        before,
        seq=before.seq + 1,
        epoch=lease.epoch,
        nonce=new_nonce(),
        parent=before.key,
        created=timestamp(clock()),
        next_id=next_id,
        files=files,
        bytes=size,
        base=base,
        deltas=(),
        host=lease.host,
        left_out=0,
    )
    encoded = encode_manifest(manifest)
    store.put(manifest.key, encoded, if_none_match=True)
    sent = sum(ref.length for ref in base) + len(encoded)
    lease.grew(sent)
    lease.publish(manifest, manifest.nonce, state)
    return manifest, sent, len(base) + 2


def _put_partitions(store: Store, epoch: int, rows: Iterable[Row]) -> Iterator[SegmentRef]:
    """Several at a time, and no more than that in memory."""

    def put(numbered: tuple[int, list[Row]]) -> SegmentRef:
        number, piece = numbered
        ref, data = new_segment(segment_key(epoch, number), piece, b"" if number == 1 else piece[0][0])
        store.put(ref.key, data, if_none_match=True)
        return ref

    return map_ordered(put, enumerate(portions(rows, PARTITION_SIZE), 1), threads=_WRITERS, name="wsfs-bulk")


@contextmanager
def holding(lease: Lease, before: Head) -> Iterator[None]:
    """For a command that has no cache, and changes the workspace: who wants to mount it meanwhile waits, as for a save.
    At the end HEAD says what holds then; `before` is HEAD as it was. Raises StoreError, FencedError."""
    try:
        with renewed(lease, State.STOPPING):
            yield
    except BaseException:
        best_effort(
            lambda: lease.release(*unchanged_since(before)),
            lambda exc: log.warning("lease not given back", error=exc),
        )
        raise
    lease.release(*changed_since(before))


@contextmanager
def renewed(lease: Lease, state: State) -> Iterator[None]:
    """HEAD says `state` at once, and again as often as a mount would say that it lives. For commands, which hold a
    workspace and are no mounts. Raises StoreError, FencedError."""

    def renew(ended: Ended) -> None:
        while not ended(RENEW_SECONDS):
            best_effort(lambda: lease.renew(state), lambda exc: log.warning("lease not renewed", error=exc))

    try:
        lease.renew(state)
        with beside("wsfs-lease", renew):
            yield
    except FencedError as exc:
        # What the lease says is for a mount: that it is read-only now, and where its unsaved files are.
        raise FencedError(
            "another mount took the workspace over before this was done, so the workspace is as that mount has it:"
            " unmount it there, and try again"
        ) from exc
