"""What the bytes in a bucket are for: the newest commit, older ones that are kept, and nobody."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from wsfs.errors import FormatError
from wsfs.parallel import map_ordered
from wsfs.repo import codec
from wsfs.repo.head import read_head
from wsfs.repo.manifest import Manifest, SegmentRef
from wsfs.repo.segment import Row
from wsfs.store.base import Store
from wsfs.sync.load import read_segment
from wsfs.sync.retain import Policy
from wsfs.sync.survey import Hidden, Layers, Listing, Survey, layers, list_objects, pack_id

_READERS: Final = 8


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes, each counted for the first of these that needs it. `kept`: save points, pins, forks, and what readers may
    still stand on; `garbage`: also what is dead in packs that live, and the tables of packs."""

    live: int
    kept: int
    garbage: int

    @property
    def total(self) -> int:
        return self.live + self.kept + self.garbage


def room(store: Store, policy: Policy, check_time: Callable[[], None] = lambda: None) -> Room:
    """Read all segments of all commits that are kept, and see what they lead to.

    Raises StoreError, and FormatError when anything of them cannot be read.
    """
    listing = list_objects(store, check_time)
    head = read_head(store).head
    found = Survey(store, policy, check_time).live(head.commit, listing, head_digest=head.commit_digest)
    newest = found.commits[head.commit]
    ours, all_frames = _frames(store, [[newest], list(found.commits.values())], check_time)
    live = _stored(ours, listing) + _metadata([newest], listing)
    kept = _stored(all_frames, listing) + _metadata(list(found.commits.values()), listing) - live
    kept += sum(info.size for kind in (listing.pins, listing.marks, listing.forks) for info in kind.values())
    return Room(live, kept, max(listing.size - live - kept, 0))


def _stored(frames: dict[int, int], listing: Listing) -> int:
    """The bytes of frames by pack and offset; what a fork shares with its base is the base's."""
    return sum(stored for frame, stored in frames.items() if frame >> 32 in listing.packs)


def _metadata(commits: list[Manifest], listing: Listing) -> int:
    segments = {ref.key for one in commits for ref in (*one.base, *one.deltas)} & listing.segments.keys()
    names = {one.key for one in commits} & listing.commits.keys()
    return sum(listing.segments[key].size for key in segments) + sum(listing.commits[key].size for key in names)


def _frames(store: Store, groups: Sequence[list[Manifest]], check_time: Callable[[], None]) -> list[dict[int, int]]:
    """For each group of commits the frames that rows lead to which at least one of them shows, with their sizes."""
    over = [layers(commits) for commits in groups]
    refs = {ref.key: ref for commits in groups for one in commits for ref in one.deltas}
    deltas = {ref.key: _places(rows) for ref, rows in _read(store, list(refs.values()), check_time)}
    hidden = Hidden(deltas)
    found: list[dict[int, int]] = [{} for _ in groups]
    for key, rows in deltas.items():
        for layer, frames in zip(over, found, strict=True):
            if key in layer.above:
                _add(frames, rows, hidden.by(layer.above[key]))
    bases = {ref.key: ref for commits in groups for one in commits for ref in one.base}
    for ref, some in _read(store, list(bases.values()), check_time):
        rows = _places(some)
        for layer, frames in zip(over, found, strict=True):
            if ref.key in layer.bases:
                _add(frames, rows, _hidden_in(layer, hidden, ref.key))
    return found


def _hidden_in(layer: Layers, hidden: Hidden, key: str) -> frozenset[bytes]:
    ref, end = layer.bases[key]
    return hidden.within(layer.above[key], ref.start, end)


def _add(frames: dict[int, int], rows: dict[bytes, tuple[int, int]], gone: frozenset[bytes]) -> None:
    frames.update(place for key, place in rows.items() if place[1] and key not in gone)


def _places(rows: list[Row]) -> dict[bytes, tuple[int, int]]:
    """The frame that each block row leads to, as one number, and its size; zeros for none."""
    found = {}
    for key, value in rows:
        if codec.table_of(key) == codec.BLOCK:
            place = codec.place_of(value) if value else None
            found[key] = (pack_id(place[0], place[1]) << 32 | place[2], place[3]) if place else (0, 0)
    return found


def _read(
    store: Store, refs: list[SegmentRef], check_time: Callable[[], None]
) -> Iterator[tuple[SegmentRef, list[Row]]]:
    def one(ref: SegmentRef) -> list[Row]:
        try:
            return read_segment(store, ref)
        except FormatError:
            return []  # of a pinned commit, which may be damaged: of the others the survey has read all

    # Nothing ahead of the threads: many segments are large.
    for found in zip(refs, map_ordered(one, refs, threads=_READERS, name="wsfs-room", ahead=0), strict=True):
        check_time()
        yield found
