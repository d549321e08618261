"""`fsck --repair`: a new commit that is whole, made from one that is not. What was there before stays, pinned.

The new commit is read and judged before HEAD leads to it: if anything is still wrong with it, nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final

from wsfs.errors import FormatError, LeaseHeldError, NotFoundError
from wsfs.fsck import Checked
from wsfs.log import get_log
from wsfs.model import segment_key
from wsfs.repo.frame import digest
from wsfs.repo.head import HEAD_KEY, Head, HeadVersion, Holder, State, encode_head, read_head, swap_head
from wsfs.repo.manifest import Manifest, SegmentRef, decode_manifest, encode_manifest, new_segment
from wsfs.repo.segment import Row, portions
from wsfs.repo.workspace import Format, new_nonce, timestamp
from wsfs.store.base import Store
from wsfs.store.sealed import TamperedError
from wsfs.sync.bulk import holding
from wsfs.sync.commit import DELTA_SIZE
from wsfs.sync.lease import Lease, obstacle
from wsfs.sync.pins import pin
from wsfs.sync.repair import Fixes, Repairer
from wsfs.sync.survey import Listing, epoch_in, list_objects, newest_epoch, pack_sizes, seq_in
from wsfs.sync.verify import Census, Reading, judge, take_census, totals

log = get_log(__name__)

EPOCH_GAP: Final = 1024
"""How far a new HEAD's epoch is beyond those that are seen in names: mounts that wrote nothing left no trace."""


@dataclass(slots=True)
class Repaired:
    """What a repair did, one sentence each, and the commit that it made; `kept` is the pin of the one before."""

    done: list[str] = field(default_factory=list)
    seq: int | None = None
    kept: str | None = None


def repair(store: Store, checked: Checked, me: Holder, clock: Callable[[], float] = time.time) -> Repaired:
    """Repair what `checked` has found. Raises LeaseHeldError while it is mounted, FormatError when it cannot be done,
    FencedError when another mount takes it over meanwhile.

    Nothing of what is there is deleted or replaced, but for HEAD.
    """
    result = Repaired()
    if checked.format is None:
        raise FormatError(f"the workspace at {store.url} cannot be repaired without FORMAT: restore it from a copy")
    if checked.head is None:
        _make_head(store, checked.format, result, clock)
    version = read_head(store)
    blocked = obstacle(version, me)
    if blocked is not None:
        raise LeaseHeldError(f"{store.url} cannot be repaired: {blocked.reason}. Unmount it there first")
    if version.head.workspace != checked.format.workspace_id:
        raise FormatError(f"HEAD and FORMAT at {store.url} belong to different workspaces: restore the right one")
    if newest_epoch(listing := list_objects(store)) > version.head.epoch:
        version = _raise_epoch(store, version, listing, result)
    lease = Lease.take(store, version, me, takeover=False)
    with holding(lease, version.head):
        _Repair(store, checked, lease, result, clock).run()
    return result


class _Repair:
    """One repair, by the holder of the workspace."""

    def __init__(
        self, store: Store, checked: Checked, lease: Lease, result: Repaired, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._checked = checked
        self._lease = lease
        self._result = result
        self._clock = clock
        self._listing = list_objects(store)
        self._sizes = pack_sizes(store, self._listing)
        self._segment_numbers = count(1)

    def run(self) -> None:
        head = self._lease.head
        start = self._start(head)
        fmt = self._checked.format
        assert fmt is not None
        repairer = Repairer(
            lambda fixes: take_census(self._store, start, self._sizes, fixes=fixes),
            fmt,
            start.next_id,
            int(self._clock() * 1_000_000_000),
            self._damaged(start),
        )
        census = repairer.run()
        self._result.done += repairer.done
        manifest = self._manifest(head, start, repairer.fixes, repairer.next_id, census)
        self._verify(manifest)
        encoded = encode_manifest(manifest)
        self._store.put(manifest.key, encoded, if_none_match=True)
        if head.commit in self._listing.commits:
            self._result.kept = pin(self._store, head.commit, "before a repair")
        self._lease.publish(manifest, manifest.nonce, State.STOPPING)
        self._result.seq = manifest.seq

    # --- from which commit ----------------------------------------------------------------------------------------

    def _start(self, head: Head) -> Manifest:
        """The commit to repair: HEAD's, or the newest older one whose metadata is whole, or what is left of HEAD's."""
        newest = self._read(head.commit, head.commit_digest)
        if newest is not None and not self._bad_segments(newest):
            return newest
        for manifest in _candidates(self._store, self._listing):
            older = manifest.seq <= head.seq and manifest.key != head.commit and manifest.workspace == head.workspace
            if older and not self._bad_segments(manifest):
                self._result.done.append(
                    f"went back to commit #{manifest.seq} of {manifest.created}: newer names and attributes are damaged"
                )
                return replace(manifest, next_id=max(manifest.next_id, newest.next_id if newest else 0))
        if newest is None:
            raise FormatError("there is no whole commit in the bucket: nothing was changed")
        return self._without_bad(newest)

    def _read(self, key: str, expected: bytes) -> Manifest | None:
        try:
            data = self._store.get(key).data
            return decode_manifest(data) if digest(data) == expected else None
        except (NotFoundError, FormatError):
            return None

    def _bad_segments(self, manifest: Manifest) -> list[tuple[SegmentRef, str]]:
        reading = Reading(self._store, manifest)
        for _ in reading.rows():
            pass
        return reading.bad_segments

    def _without_bad(self, manifest: Manifest) -> Manifest:
        """The commit with empty segments in the place of those that are lost."""
        bad = {ref.key for ref, _ in self._bad_segments(manifest)}
        base = tuple(self._put_segment([], ref.start) if ref.key in bad else ref for ref in manifest.base)
        rows = sum(ref.rows for ref in (*manifest.base, *manifest.deltas) if ref.key in bad)
        self._result.done.append(f"{len(bad)} metadata objects are lost, and {rows} names and attributes with them")
        return replace(manifest, base=base, deltas=tuple(ref for ref in manifest.deltas if ref.key not in bad))

    def _damaged(self, start: Manifest) -> dict[int, set[int]]:
        """The blocks that the check has read and found bad, if it has read this commit."""
        census, manifest = self._checked.census, self._checked.manifest
        if census is None or manifest is None or manifest.key != start.key:
            return {}
        return {ino: set(blocks) for ino, blocks in census.lost.items()}

    # --- the new commit -------------------------------------------------------------------------------------------

    def _manifest(self, head: Head, start: Manifest, fixes: Fixes, next_id: int, census: Census) -> Manifest:
        files, total = totals(census)
        deltas = start.deltas
        if fixes:
            rows: list[Row] = sorted(fixes.items())
            deltas = (*deltas, *(self._put_segment(some) for some in portions(rows, DELTA_SIZE)))
        if (start.files, start.bytes) != (files, total):
            self._result.done.append(f"counted {files} files with {total} bytes")
        elif (head.files, head.bytes) != (files, total):
            self._result.done.append(f"corrected what HEAD counts: {files} files with {total} bytes")
        if next_id != start.next_id and not fixes:
            self._result.done.append(f"corrected the next free number: {next_id}")
        return Manifest(
            workspace=start.workspace,
            seq=head.seq + 1,
            epoch=self._lease.epoch,
            nonce=new_nonce(),
            parent=start.key,
            created=timestamp(self._clock()),
            next_id=next_id,
            files=files,
            bytes=total,
            base=start.base,
            deltas=deltas,
            left_out=start.left_out,
        )

    def _put_segment(self, rows: list[Row], start: bytes = b"") -> SegmentRef:
        ref, data = new_segment(segment_key(self._lease.epoch, next(self._segment_numbers)), rows, start)
        self._store.put(ref.key, data, if_none_match=True)
        return ref

    def _verify(self, manifest: Manifest) -> None:
        """Raises FormatError unless the new commit is whole."""
        census = take_census(self._store, manifest, self._sizes)
        wrong = [why for _, why in census.bad_segments] + [why for _, why in census.bad_rows]
        wrong += [problem.text for problem in judge(census)] + [f"inode {ino} has lost blocks" for ino in census.lost]
        if wrong or totals(census) != (manifest.files, manifest.bytes):
            raise FormatError(f"the repair did not succeed ({'; '.join(wrong[:3])}): nothing was changed")


def _candidates(store: Store, listing: Listing) -> Iterator[Manifest]:
    """The commits in the bucket that can be read, the newest first."""
    keys = sorted(
        listing.commits, key=lambda key: (epoch_in(key), seq_in(key), -listing.commits[key].age), reverse=True
    )
    for key in keys:
        try:
            manifest = decode_manifest(store.get(key).data)
        except (NotFoundError, FormatError) as exc:
            log.warning("passed over a commit", key=key, error=exc)
            continue
        if manifest.key == key:
            yield manifest


def _raise_epoch(store: Store, version: HeadVersion, listing: Listing, result: Repaired) -> HeadVersion:
    """HEAD beyond every epoch that was ever used, so that no name comes again. What a newer commit had stays pinned."""
    newest = next(_candidates(store, listing), None)
    if newest is not None and newest.seq > version.head.seq:
        kept = pin(store, newest.key, "newer than an old HEAD that has come back")
        result.done.append(f"kept commit #{newest.seq} of {newest.created}, which is newer than HEAD's, as {kept}")
    epoch = newest_epoch(listing) + EPOCH_GAP
    result.done.append(f"raised HEAD's epoch from {version.head.epoch} to {epoch}")
    return swap_head(store, version, replace(version.head, epoch=epoch, nonce=new_nonce()))


def _make_head(store: Store, fmt: Format, result: Repaired, clock: Callable[[], float]) -> None:
    """HEAD anew, for the newest commit that there is."""
    listing = list_objects(store)
    for manifest in _candidates(store, listing):
        if manifest.workspace == fmt.workspace_id:
            break
    else:
        raise FormatError(f"there is no whole commit at {store.url} that a new HEAD could lead to: nothing was changed")
    head = Head(
        workspace=manifest.workspace,
        epoch=newest_epoch(listing) + EPOCH_GAP,
        seq=manifest.seq,
        commit=manifest.key,
        commit_digest=digest(store.get(manifest.key).data),
        nonce=new_nonce(),
        state=State.STOPPED,
        reason="",
        holder=None,
        saved_at=manifest.created,
        files=manifest.files,
        bytes=manifest.bytes,
    )
    try:
        old: str | None = store.get(HEAD_KEY).etag
    except NotFoundError:
        old = None
    except TamperedError as exc:
        old = exc.blob.etag
    store.put(HEAD_KEY, encode_head(head), if_match=old, if_none_match=old is None)
    when = timestamp(clock())
    result.done.append(f"made HEAD anew at {when}: it leads to commit #{manifest.seq} of {manifest.created}")
