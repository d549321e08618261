"""What a workspace takes in its bucket, and what for. Reads the newest commit whole, and the segments of the others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from wsfs.errors import FormatError
from wsfs.model import ROOT_INO
from wsfs.parallel import map_ordered
from wsfs.repo import codec
from wsfs.repo.head import read_head
from wsfs.repo.manifest import Manifest, SegmentRef
from wsfs.repo.segment import Row
from wsfs.repo.workspace import read_format
from wsfs.store.base import Store
from wsfs.sync.history import save_points
from wsfs.sync.load import read_manifest, read_segment
from wsfs.sync.survey import Listing, list_objects, pack_id, pack_sizes
from wsfs.sync.verify import Census, take_census

_READERS: Final = 8
T = TypeVar("T")


@dataclass(slots=True)
class _Directory:
    """What lies below one entry of the top directory. `stored`: what its blocks take, each counted where it is first
    used."""

    files: int = 0
    bytes: int = 0
    stored: int = 0


def usage(store: Store) -> dict[str, Any]:
    """What docs/JSON.md describes for `wsfs usage`, without the money. Raises StoreError, FormatError,
    NoWorkspaceError."""
    read_format(store)  # says so if the key is missing
    head = read_head(store).head
    manifest = read_manifest(store, head)
    listing = list_objects(store)
    packs = pack_sizes(store, listing)
    census = take_census(store, manifest, packs, frames=True)
    directories, data = _by_directory(census)
    points = _by_save_point(store, manifest, listing)
    total = listing.size
    metadata = sum(ref.length for ref in (*manifest.base, *manifest.deltas)) + _size_of(manifest, listing)
    older = sum(point["bytes"] for point in points)
    older += sum(info.size for kind in (listing.pins, listing.marks, listing.forks) for info in kind.values())
    return {
        "url": store.url,
        "seq": manifest.seq,
        "saved_at": manifest.created,
        "files": manifest.files,
        "bytes": manifest.bytes,
        "stored": {
            "total": total,
            "data": data["stored"],
            "metadata": metadata,
            "save_points": older,
            "other": max(total - data["stored"] - metadata - older, 0),
        },
        "deduplication": data["referenced"] - data["unique"],
        "compression": data["unique"] - data["stored"],
        "directories": [
            {"path": os.fsdecode(name), **asdict(found)}
            for name, found in sorted(directories.items(), key=lambda one: (-one[1].stored, -one[1].bytes, one[0]))
        ],
        "save_points": points,
        "ledger": asdict(head.ledger) if head.ledger else None,
    }


def _by_directory(census: Census) -> tuple[dict[bytes, _Directory], dict[str, int]]:
    """By entry of the top directory (files in it are together, as '.'), and all frames together: bytes that blocks lead
    to, bytes of frames, and what these take compressed."""
    tops: dict[int, bytes] = {ROOT_INO: b"."}
    found: dict[bytes, _Directory] = {}
    for ino, inode in census.inodes.items():
        if ino != ROOT_INO:
            one = found.setdefault(_top(census, tops, ino), _Directory())
            one.files += 1
            one.bytes += 0 if inode.is_dir else inode.size
    seen: set[tuple[int, int, int]] = set()
    data = dict.fromkeys(("referenced", "unique", "stored"), 0)
    for use in census.frames:
        loc = use.loc
        data["referenced"] += loc.raw_length
        if (place := (loc.epoch, loc.pack, loc.offset)) not in seen:
            seen.add(place)
            data["unique"] += loc.raw_length
            data["stored"] += loc.stored_length
            found.setdefault(_top(census, tops, use.ino), _Directory()).stored += loc.stored_length
    return found, data


def _top(census: Census, tops: dict[int, bytes], ino: int) -> bytes:
    """The entry of the top directory that an inode lies below."""
    way: list[int] = []
    top = b"."
    while ino not in tops:
        inode, names = census.inodes.get(ino), census.names.get(ino)
        if not names or len(way) > len(census.inodes):
            break  # a damaged workspace
        way.append(ino)
        if names[0].parent == ROOT_INO:
            top = names[0].name if inode is not None and inode.is_dir else b"."
            break
        ino = names[0].parent
    else:
        top = tops[ino]
    tops.update(dict.fromkeys(way, top))
    return top


def _by_save_point(store: Store, newest: Manifest, listing: Listing) -> list[dict[str, Any]]:
    """Each save point but the newest, and how many bytes would be gone without it and the older ones."""
    points = [point for point in save_points(store) if point.manifest.key != newest.key]
    manifests = [newest, *(point.manifest for point in points)]
    packs_of = _Packs(store, manifests)
    seen: set[object] = set()
    found = []
    for manifest in manifests:
        size = _size_of(manifest, listing)
        for ref in (*manifest.base, *manifest.deltas):
            if ref.key not in seen:
                seen.add(ref.key)
                size += ref.length
        for pack in packs_of(manifest) - seen:
            seen.add(pack)
            size += listing.packs[pack].size if pack in listing.packs else 0
        found.append({"id": manifest.seq, "created": manifest.created, "bytes": size})
    return found[1:]


def _size_of(manifest: Manifest, listing: Listing) -> int:
    """What a manifest itself takes here: that of a fork's first commit may be its base's."""
    return listing.commits[manifest.key].size if manifest.key in listing.commits else 0


class _Packs:
    """Which packs each of several commits needs: those that its rows lead to, without rows that newer ones of the same
    commit have replaced. Keeps what all rows of the deltas say, and of the base partitions, which have many more, only
    of those that a delta replaces."""

    def __init__(self, store: Store, manifests: Iterable[Manifest]) -> None:
        deltas = {ref.key: ref for manifest in manifests for ref in manifest.deltas}
        bases = {ref.key: ref for manifest in manifests for ref in manifest.base}
        self._deltas = dict(_read(store, deltas.values(), _by_key))
        replaced = {key for rows in self._deltas.values() for key in rows}

        def count(rows: Iterable[Row]) -> tuple[Counter[int], dict[bytes, int]]:
            packs = _by_key(rows)
            there = {key: pack for key, pack in packs.items() if key in replaced and pack is not None}
            return Counter(pack for pack in packs.values() if pack is not None), there

        self._bases = dict(_read(store, bases.values(), count))

    def __call__(self, manifest: Manifest) -> set[int]:
        """The packs of a commit. Of a segment that is not there, for it was deleted just now, nothing is known."""
        newest: dict[bytes, int | None] = {}
        for ref in manifest.deltas:
            newest.update(self._deltas.get(ref.key, {}))
        needed = {pack for pack in newest.values() if pack is not None}
        for ref in manifest.base:
            if ref.key in self._bases:
                packs, there = self._bases[ref.key]
                gone = Counter(pack for key, pack in there.items() if key in newest)
                needed |= {pack for pack, rows in packs.items() if rows > gone[pack]}
        return needed


def _read(store: Store, refs: Iterable[SegmentRef], take: Callable[[list[Row]], T]) -> Iterator[tuple[str, T]]:
    """What `take` makes of the rows of each segment that is there and whole."""

    def read(ref: SegmentRef) -> tuple[str, T] | None:
        try:
            return ref.key, take(read_segment(store, ref))
        except FormatError:  # deleted just now, or the damage that made somebody pin it
            return None

    return filter(None, map_ordered(read, refs, threads=_READERS, name="wsfs-usage"))


def _by_key(rows: Iterable[Row]) -> dict[bytes, int | None]:
    """The pack that each block row leads to; None for one that leads to none, or is gone."""
    found: dict[bytes, int | None] = {}
    for key, row in rows:
        if codec.table_of(key) == codec.BLOCK:
            place = codec.place_of(row) if row else None
            found[key] = pack_id(place[0], place[1]) if place else None
    return found
