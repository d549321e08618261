"""A read-only mount moves to the newest commit: what is different there, and the rows of it in one step.

What a commit changed since ours is in its new deltas, and in the base partitions that were written anew. Everything
else is the same by name, and is not read.
"""

from __future__ import annotations

from dataclasses import dataclass

from wsfs.errors import CacheError
from wsfs.index.base import Standing, move_to
from wsfs.index.index import Index
from wsfs.index.tables import Writer
from wsfs.log import get_log
from wsfs.repo import codec
from wsfs.repo.head import HeadVersion, read_head
from wsfs.repo.manifest import Manifest, SegmentRef
from wsfs.repo.segment import Row
from wsfs.store.base import Store
from wsfs.sync.commit import OnOwner
from wsfs.sync.load import merge_deltas, read_manifest, read_segments
from wsfs.sync.progress import Progress
from wsfs.sync.survey import epoch_in, seq_in

log = get_log(__name__)


@dataclass(frozen=True, slots=True)
class Moved:
    """The commit that this mount shows now, and the inodes and names (parent, name) that are not what they were."""

    version: HeadVersion
    inodes: frozenset[int]
    names: frozenset[tuple[int, bytes]]


def follow(store: Store, index: Index, on_owner: OnOwner, progress: Progress) -> Moved | None:
    """Move to the commit that HEAD names; None if the index stands on it already, or on a newer one.

    On a thread that is not the owner's. Until it returns the owner sees the old commit, and then the new one. Nothing
    else may change rows meanwhile: no change, no eviction. Raises StoreError, FormatError, CacheError, and then the
    index is as it was.
    """
    standing = index.standing
    version = read_head(store)
    if standing is None or version.head.commit == standing.commit:
        return None
    if _order(version.head.commit) <= _order(standing.commit):
        # Shown by a store that is not strictly consistent. Whatever puts back what was, as a restore or a repair does,
        # makes a commit, and that is newer than all: with the next sequence number, or of a new epoch.
        log.warning("the store shows an old HEAD: this mount stays where it is", seq=version.head.seq, at=standing.seq)
        return None
    if on_owner(lambda: index.is_dirty):
        raise CacheError(
            "this mount shows changes that were never saved, so it cannot move to another commit: mount it writable"
            " once with the same cache directory, which saves them"
        )
    if on_owner(lambda: bool(index.kept)):
        raise CacheError(
            "this mount shows files that stay on this machine (.wsfsignore), so it cannot move to another commit: mount"
            " with another --cache-dir to follow"
        )
    manifest = read_manifest(store, version.head)
    keeps = manifest.deltas[: len(standing.deltas)] == standing.deltas
    fresh = _fresh(index, manifest, None if keeps else index.keys_in_deltas())
    deltas = manifest.deltas[len(standing.deltas) :] if keeps and not fresh else manifest.deltas
    partitions = dict(zip(fresh, read_segments(store, fresh), strict=True))
    changes = merge_deltas(list(read_segments(store, deltas)))
    progress.plan(0, sum(ref.length for ref in (*fresh, *deltas)))
    progress.done(0, progress.bytes, progress.bytes)
    different: list[bytes] = []
    index.replace_rows(lambda txn: different.extend(_apply(txn, manifest, partitions, changes, keeps=keeps)), on_owner)
    names = frozenset((int(codec.ino_of(key)), key[9:]) for key in different if codec.table_of(key) == codec.DIRENT)
    inodes = frozenset(int(codec.ino_of(key)) for key in different if codec.table_of(key) != codec.DIRENT)
    progress.plan(len(inodes), progress.bytes)
    progress.prepared(len(inodes))
    progress.done(len(inodes), 0, 0)
    return Moved(version, inodes, names)


def _order(commit: str) -> tuple[int, int]:
    """The later of two commits has the higher one."""
    return epoch_in(commit), seq_in(commit)


def _fresh(index: Index, manifest: Manifest, again: list[bytes] | None) -> list[SegmentRef]:
    """The partitions that have to be read: those that our commit has not, and those with a key of `again`."""
    ours = {part.ref for part in index.parts}
    fresh = [ref for ref in manifest.base if ref not in ours]
    if again:
        ends = [*(ref.start for ref in manifest.base[1:]), None]
        for ref, end in zip(manifest.base, ends, strict=True):
            if ref in ours and any(ref.start <= key and (end is None or key < end) for key in again):
                fresh.append(ref)
    return fresh


def _apply(
    txn: Writer,
    manifest: Manifest,
    partitions: dict[SegmentRef, list[Row]],
    changes: list[Row],
    *,
    keeps: bool,
) -> list[bytes]:
    """Make the tables those of `manifest`; the keys of the rows that are different now."""
    target: dict[bytes, bytes | None] = {}
    ends = [*(ref.start for ref in manifest.base[1:]), None]
    for ref, end in zip(manifest.base, ends, strict=True):
        if ref in partitions:
            target.update((key, None) for key, _ in txn.scan(b"rows", ref.start or b"\0", end))
            target.update(partitions[ref])
    target.update(changes)
    standing = Standing(manifest.workspace, manifest.seq, manifest.key, manifest.next_id, manifest.deltas)
    counters = (manifest.next_id, manifest.files, manifest.bytes)
    in_deltas = [key for key, _ in changes]
    return move_to(
        txn,
        standing,
        counters,
        [(ref, ref in partitions) for ref in manifest.base],
        sorted(target.items()),
        in_deltas,
        more=keeps and not partitions,
    )
