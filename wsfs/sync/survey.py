"""What the bucket holds, and what of it the commits that are kept lead to.

Everything here is read from immutable objects, so what was read once stays true, and is remembered.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import Final, TypeVar

from wsfs.errors import FormatError, NotFoundError
from wsfs.repo import codec
from wsfs.repo.frame import digest, dump_json
from wsfs.repo.manifest import Manifest, SegmentRef, decode_manifest
from wsfs.repo.segment import Row
from wsfs.store.base import ObjectInfo, Store
from wsfs.sync.load import read_segment

log = logging.getLogger(__name__)

T = TypeVar("T")

RETENTION: Final = 3600.0
"""For how many seconds a commit is kept after the next one has replaced it: readers may still stand on it."""

PIN_RETENTION: Final = 30 * 86400.0
"""For how many seconds a pinned commit is kept after it was pinned."""

NEWEST: Final = 2
_READERS: Final = 8

_COMMIT = re.compile(r"commits/(\d{10,})-([0-9a-f]{8})-[0-9a-z]+")
_PIN = re.compile(r"kept/(\d{10,}-[0-9a-f]{8}-[0-9a-z]+)")
_SEGMENT = re.compile(r"meta/([0-9a-f]{8})/[0-9a-z-]+")
_PACK = re.compile(r"packs/[0-9a-f]{2}/([0-9a-f]{8})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that HEAD leads to. `superseded`: for how many seconds a newer one has been there; None for HEAD's."""

    key: str
    position: int
    superseded: float | None


Policy = Callable[[Iterable[Commit]], set[str]]
"""Which commits are kept. It gets them newest first, one at a time, and stops where the older ones may go."""


def retained(commits: Iterable[Commit], retention: float = RETENTION) -> set[str]:
    """The newest commits, and all that were HEAD less than `retention` seconds ago."""
    kept = set()
    for commit in commits:
        if commit.position >= NEWEST and commit.superseded is not None and commit.superseded >= retention:
            break
        kept.add(commit.key)
    return kept


def pack_id(epoch: int, number: int) -> int:
    """A pack as one number."""
    return epoch << 32 | number


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of a workspace by kind. What has another kind of name is nobody's business, and not in here."""

    commits: dict[str, ObjectInfo] = field(default_factory=dict)
    pins: dict[str, ObjectInfo] = field(default_factory=dict)
    segments: dict[str, ObjectInfo] = field(default_factory=dict)
    packs: dict[int, ObjectInfo] = field(default_factory=dict)


def list_objects(store: Store) -> Listing:
    """Every object, as it is listed now. Raises StoreError."""
    found = Listing()
    for info in store.list("commits/"):
        if _COMMIT.fullmatch(info.key):
            found.commits[info.key] = info
    for info in store.list("kept/"):
        if _PIN.fullmatch(info.key):
            found.pins[info.key] = info
    for info in store.list("meta/"):
        if _SEGMENT.fullmatch(info.key):
            found.segments[info.key] = info
    for info in store.list("packs/"):
        match = _PACK.fullmatch(info.key)
        if match:
            found.packs[pack_id(int(match[1], 16), int(match[2], 16))] = info
    return found


def epoch_in(key: str) -> int:
    """The epoch that wrote a commit or segment, from its name. Raises FormatError."""
    for pattern, group in ((_COMMIT, 2), (_SEGMENT, 1)):
        match = pattern.fullmatch(key)
        if match:
            return int(match[group], 16)
    raise FormatError(f"'{key}' is not the name of a commit or a metadata object")


def seq_in(key: str) -> int:
    """The sequence number in a commit's name. Raises FormatError."""
    match = _COMMIT.fullmatch(key)
    if match is None:
        raise FormatError(f"'{key}' is not the name of a commit")
    return int(match[1])


def pin(store: Store, commit: str, reason: str) -> str:
    """Keep a commit, and all that it leads to, for PIN_RETENTION. Returns the name of the pin."""
    key = pin_of(commit)
    store.put(key, dump_json({"commit": commit, "reason": reason}))
    return key


def pin_of(commit: str) -> str:
    """The name of the object that keeps a commit."""
    seq_in(commit)
    return "kept/" + commit.removeprefix("commits/")


def pinned(pin_key: str) -> str:
    """The commit that a pin keeps."""
    return "commits/" + pin_key.removeprefix("kept/")


@dataclass(frozen=True, slots=True)
class Live:
    """What the commits that are kept lead to: their manifests, segments, and packs."""

    commits: dict[str, Manifest]
    segments: set[str]
    packs: set[int]


class Survey:
    """Reads commits and segments, each once. Not thread safe. `check_time` may raise what ends it early."""

    def __init__(self, store: Store, policy: Policy, check_time: Callable[[], None]) -> None:
        self._store = store
        self._check_time = check_time
        self._policy = policy
        self._manifests: dict[str, Manifest] = {}
        self._bases: dict[str, frozenset[int]] = {}
        self._deltas: dict[str, dict[bytes, int]] = {}
        self._partial: dict[tuple[str, frozenset[bytes]], frozenset[int]] = {}

    def live(
        self, head: str, listing: Listing, *, head_digest: bytes | None = None, known: Container[int] = frozenset()
    ) -> Live:
        """What HEAD's commit, the ones that the policy keeps, and the pinned ones lead to.

        Rows that newer deltas hide from all of them do not count. `known` are packs that are live anyway: partitions
        that lead to no other are not looked at so closely. Raises StoreError, and FormatError when anything cannot be
        read whole: then nobody can know what is live.
        """
        if self._manifest(head, head_digest) is None:
            raise FormatError(f"the workspace at {self._store.url} is damaged: '{head}' is missing")
        keys = self._policy(self._chain(head, listing))
        keys.add(head)
        commits = {key: found for key in keys if (found := self._manifest(key)) is not None}
        pins = {key: found for key, found in self._pinned(listing).items() if key not in commits}
        for some, tolerant in ((commits, False), (pins, True)):
            bases = {ref.key: ref for manifest in some.values() for ref in manifest.base}
            deltas = {ref.key: ref for manifest in some.values() for ref in manifest.deltas}
            self._read(self._bases, list(bases.values()), _packs_in, tolerant=tolerant)
            self._read(self._deltas, list(deltas.values()), _blocks_in, tolerant=tolerant)
        commits |= pins
        packs = self._visible(list(commits.values()), known)
        segments = {ref.key for manifest in commits.values() for ref in (*manifest.base, *manifest.deltas)}
        self._manifests = dict(commits)
        self._bases = {key: found for key, found in self._bases.items() if key in segments}
        self._deltas = {key: found for key, found in self._deltas.items() if key in segments}
        self._partial = {key: found for key, found in self._partial.items() if key[0] in segments}
        return Live(dict(commits), segments, packs)

    # --- commits --------------------------------------------------------------------------------------------------

    def _pinned(self, listing: Listing) -> dict[str, Manifest]:
        """The pinned commits, as far as they can be read: one may have been pinned because it is damaged."""
        found = {}
        for name, info in listing.pins.items():
            key = pinned(name)
            if info.age < PIN_RETENTION and key in listing.commits:
                try:
                    manifest = self._manifest(key)
                except FormatError as exc:
                    log.warning("a pinned commit is damaged: key=%s error=%s", key, exc)
                else:
                    if manifest is not None:
                        found[key] = manifest
        return found

    def _chain(self, head: str, listing: Listing) -> Iterator[Commit]:
        """HEAD's commit and its ancestors, as far as they are there; each is read only when it is asked for."""
        key, superseded = head, None
        position = 0
        while (manifest := self._manifest(key)) is not None:
            yield Commit(key, position, superseded)
            # A commit that is not listed was made after the listing.
            info = listing.commits.get(key)
            superseded = max(superseded or 0.0, info.age if info else 0.0)
            key = manifest.parent
            position += 1
            if not key:
                return

    def _manifest(self, key: str, expected: bytes | None = None) -> Manifest | None:
        """A commit's manifest, None if it is not there. Raises FormatError, StoreError."""
        found = self._manifests.get(key)
        if found is None:
            try:
                data = self._store.get(key).data
            except NotFoundError:
                return None
            if expected is not None and digest(data) != expected:
                raise FormatError(f"the commit '{key}' is not the one that was written")
            found = decode_manifest(data)
            if found.key != key:
                raise FormatError(f"the commit '{key}' says that it is another one")
            self._manifests[key] = found
        return found

    # --- segments -------------------------------------------------------------------------------------------------

    def _read(
        self, known: dict[str, T], refs: list[SegmentRef], take: Callable[[list[Row]], T], *, tolerant: bool
    ) -> None:
        """Read the segments that are not known yet. Of a pinned commit some may be damaged: they stay unknown."""

        def one(ref: SegmentRef) -> T | None:
            try:
                return take(read_segment(self._store, ref))
            except FormatError as exc:
                if not tolerant:
                    raise
                log.warning("a pinned commit is damaged: %s", exc)
                return None

        rest = iter([ref for ref in refs if ref.key not in known])
        with ThreadPoolExecutor(_READERS, "wsfs-survey") as pool:
            while batch := list(islice(rest, _READERS)):
                self._check_time()
                for ref, found in zip(batch, pool.map(one, batch), strict=True):
                    if found is not None:
                        known[ref.key] = found

    def _visible(self, commits: list[Manifest], known: Container[int]) -> set[int]:
        """The packs that rows lead to which at least one of the commits shows."""
        above: dict[str, list[frozenset[str]]] = {}
        bases: dict[str, tuple[SegmentRef, bytes | None]] = {}
        for manifest in commits:
            over = [ref.key for ref in manifest.deltas]
            everything = frozenset(over)
            ends = [ref.start for ref in manifest.base[1:]]
            for ref, end in zip_longest(manifest.base, ends):
                bases[ref.key] = ref, end
                _note(above.setdefault(ref.key, []), everything)
            for number, key in enumerate(over):
                _note(above.setdefault(key, []), frozenset(over[number + 1 :]))
        hidden = _Hidden(self._deltas)
        live: set[int] = set()
        for key, rows in self._deltas.items():
            if key in above:
                gone = hidden.by(above[key])
                live.update(pack for name, pack in rows.items() if pack and name not in gone)
        unsure: list[tuple[SegmentRef, frozenset[bytes]]] = []
        for key, (ref, end) in bases.items():
            packs = self._bases.get(key, frozenset())
            gone = hidden.within(above[key], ref.start, end)
            if gone:
                unsure.append((ref, gone))
            else:
                live |= packs
        for ref, gone in unsure:
            packs = self._bases.get(ref.key, frozenset())
            if any(pack not in live and pack not in known for pack in packs):
                packs = self._shown(ref, gone)
            live |= packs
        return live

    def _shown(self, ref: SegmentRef, gone: frozenset[bytes]) -> frozenset[int]:
        """The packs that the rows of a partition lead to, without those that are hidden."""
        found = self._partial.get((ref.key, gone))
        if found is None:
            self._check_time()
            rows = read_segment(self._store, ref)
            found = _packs_in([row for row in rows if row[0] not in gone])
            for old in [key for key in self._partial if key[0] == ref.key]:
                del self._partial[old]
            self._partial[ref.key, gone] = found
        return found


class _Hidden:
    """Which block rows deltas hide; each answer is worked out once."""

    def __init__(self, deltas: dict[str, dict[bytes, int]]) -> None:
        self._deltas = deltas
        self._found: dict[tuple[frozenset[str], ...], frozenset[bytes]] = {}
        self._sorted: dict[frozenset[bytes], list[bytes]] = {}

    def by(self, above: list[frozenset[str]]) -> frozenset[bytes]:
        """The keys that are hidden in every commit, where `above` are the deltas over a segment in each."""
        name = tuple(above)
        found = self._found.get(name)
        if found is None:
            unions = [set().union(*(self._deltas.get(key, ()) for key in deltas)) for deltas in above]
            found = self._found[name] = frozenset(set.intersection(*unions))
        return found

    def within(self, above: list[frozenset[str]], start: bytes, end: bytes | None) -> frozenset[bytes]:
        """Those of them in a key range."""
        found = self.by(above)
        keys = self._sorted.get(found)
        if keys is None:
            keys = self._sorted[found] = sorted(found)
        last = len(keys) if end is None else bisect_left(keys, end)
        return frozenset(keys[bisect_left(keys, start) : last])


def _note(found: list[frozenset[str]], deltas: frozenset[str]) -> None:
    """Add a set of deltas, unless a smaller one is there: what that hides, the larger one hides too."""
    if not any(one <= deltas for one in found):
        found[:] = [one for one in found if not deltas <= one] + [deltas]


def _blocks_in(rows: list[Row]) -> dict[bytes, int]:
    """The block rows of a delta, and the pack that each leads to; 0 for none."""
    found = {}
    for key, value in rows:
        if codec.table_of(key) == codec.BLOCK:
            place = codec.place_of(value) if value else None
            found[key] = pack_id(place[0], place[1]) if place else 0
    return found


def _packs_in(rows: list[Row]) -> frozenset[int]:
    """The packs that rows lead to."""
    return frozenset(pack for pack in _blocks_in(rows).values() if pack)
