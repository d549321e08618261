"""From the bucket into the index: manifests, deltas, and base partitions when they are first touched."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Final

from wsfs.errors import FormatError, NotFoundError
from wsfs.index.base import stand_on
from wsfs.index.index import Index
from wsfs.parallel import map_ordered
from wsfs.repo.frame import digest
from wsfs.repo.head import Head
from wsfs.repo.manifest import Manifest, SegmentRef, decode_manifest
from wsfs.repo.segment import Row, decode_segment
from wsfs.store.base import Store

_PARALLEL: Final = 16


def read_manifest(store: Store, head: Head) -> Manifest:
    """The commit that HEAD names. Raises FormatError when it is missing or not the one that was written."""
    try:
        data = store.get(head.commit).data
    except NotFoundError as exc:
        raise FormatError(f"the workspace at {store.url} is damaged: its commit '{head.commit}' is missing") from exc
    if digest(data) != head.commit_digest:
        raise FormatError(f"the workspace at {store.url} is damaged: its commit '{head.commit}' was changed")
    manifest = decode_manifest(data)
    if manifest.workspace != head.workspace or manifest.seq != head.seq:
        raise FormatError(f"the workspace at {store.url} is damaged: HEAD and its commit contradict each other")
    return manifest


def read_segment(store: Store, ref: SegmentRef) -> list[Row]:
    """The rows of a segment. Raises FormatError when it is missing or not the one that was written."""
    try:
        data = store.get(ref.key).data
    except NotFoundError as exc:
        raise FormatError(f"the workspace at {store.url} is damaged: the object '{ref.key}' is missing") from exc
    return list(decode_segment(ref.check(data)))


def read_segments(store: Store, refs: Iterable[SegmentRef]) -> Iterator[list[Row]]:
    """The rows of each of several segments, in their order. Raises as `read_segment`, and StoreError."""
    return map_ordered(partial(read_segment, store), refs, threads=_PARALLEL, name="wsfs-load")


def merge_deltas(deltas: list[list[Row]]) -> list[Row]:
    """One list of rows from several deltas, oldest first: the newest row of a key counts."""
    merged: dict[bytes, bytes | None] = {}
    for rows in deltas:
        merged.update(rows)
    return sorted(merged.items())


def committed_rows(
    store: Store, deltas: Sequence[SegmentRef], base: Sequence[SegmentRef], keys: set[bytes]
) -> dict[bytes, bytes | None]:
    """The rows of a commit at some keys, read from the store; None where it has none.

    Raises StoreError, FormatError.
    """
    rows: dict[bytes, bytes | None] = {}
    starts = [ref.start for ref in base]
    for segment in read_segments(store, reversed(deltas)):
        rows.update((key, row) for key, row in segment if key in keys and key not in rows)
    wanted = {bisect_right(starts, key) - 1 for key in keys - rows.keys()}
    for segment in read_segments(store, (base[number] for number in sorted(wanted))):
        rows.update((key, row) for key, row in segment if key in keys and key not in rows)
    return dict.fromkeys(keys) | rows


class Loader:
    """Brings partitions into an index; `load` may be called from several threads."""

    def __init__(self, store: Store, index: Index) -> None:
        self._store = store
        self._index = index
        index.loader = self.load

    def load(self, ref: SegmentRef) -> None:
        """One partition. Raises StoreError, FormatError, CacheError."""
        self._index.load(ref, read_segment(self._store, ref))

    def start_from(self, manifest: Manifest) -> None:
        """Forget what the index holds and stand on a commit: its deltas, and the partition with the root, in one step.

        Owner thread, before anything else uses the index.
        """
        first = manifest.base[:1]
        segments = list(read_segments(self._store, (*manifest.deltas, *first)))
        rows = merge_deltas(segments[: len(manifest.deltas)])
        self._index.restart(lambda txn: stand_on(txn, manifest, rows))
        for ref, segment in zip(first, segments[len(manifest.deltas) :], strict=True):
            self._index.load(ref, segment)
