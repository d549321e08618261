"""What the bucket holds, and what of it the commits that are kept lead to.

Everything here is read from immutable objects, so what was read once stays true, and is remembered.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Final, NamedTuple, TypeVar

from wsfs.errors import FormatError, NotFoundError, TransientStoreError
from wsfs.log import get_log
from wsfs.parallel import map_ordered
from wsfs.repo import codec
from wsfs.repo.fork import FORKS, base_of, forked
from wsfs.repo.frame import digest
from wsfs.repo.manifest import Manifest, SegmentRef, decode_manifest
from wsfs.repo.segment import Row
from wsfs.store.base import ObjectInfo, Store
from wsfs.sync.load import read_segment
from wsfs.sync.pins import PREFIX as PINS
from wsfs.sync.pins import pinned, read_pins
from wsfs.sync.retain import NEWEST, READERS, Commit, Policy, keep_for, lineage
from wsfs.values import Retention

log = get_log(__name__)

T = TypeVar("T")

_READERS: Final = 8
_PAGE: Final = 1000

_COMMIT = re.compile(r"commits/(\d{10,})-([0-9a-f]{8})-[0-9a-z]+")
_PIN = re.compile(r"kept/(\d{10,}-[0-9a-f]{8}-[0-9a-z]+)")
_MARK = re.compile(r"points/(\d{10,}-[0-9a-f]{8}-[0-9a-z]+)")
_FORK = re.compile(r"forks/(\d{10,}-[0-9a-f]{8}-[0-9a-z]+)/[0-9a-z-]+")
_SEGMENT = re.compile(r"meta/([0-9a-f]{8})/[0-9a-z-]+")
_PACK = re.compile(r"packs/[0-9a-f]{2}/([0-9a-f]{8})-([0-9a-f]{8})")


def pack_id(epoch: int, number: int) -> int:
    """A pack as one number."""
    return epoch << 32 | number


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of a workspace by kind. What has another kind of name is nobody's business, and not in here."""

    commits: dict[str, ObjectInfo] = field(default_factory=dict)
    pins: dict[str, ObjectInfo] = field(default_factory=dict)
    marks: dict[str, ObjectInfo] = field(default_factory=dict)
    forks: dict[str, ObjectInfo] = field(default_factory=dict)
    segments: dict[str, ObjectInfo] = field(default_factory=dict)
    packs: dict[int, ObjectInfo] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """All of them together, in bytes."""
        kinds = (self.commits, self.pins, self.marks, self.forks, self.segments, self.packs)
        return sum(info.size for kind in kinds for info in kind.values())


def list_objects(store: Store, check_time: Callable[[], None] = lambda: None) -> Listing:
    """Every object, as it is listed now. `check_time` may raise what ends it early. Raises StoreError."""
    return Listing(
        commits=dict(_list(store, "commits/", _COMMIT, check_time)),
        pins=list_pins(store, check_time),
        marks=dict(_list(store, "points/", _MARK, check_time)),
        forks=list_forks(store, check_time),
        segments=dict(_list(store, "meta/", _SEGMENT, check_time)),
        packs=dict(_list_packs(store, check_time)),
    )


def list_pins(store: Store, check_time: Callable[[], None] = lambda: None) -> dict[str, ObjectInfo]:
    """The pins that are there now. Raises StoreError."""
    return dict(_list(store, PINS, _PIN, check_time))


def list_forks(store: Store, check_time: Callable[[], None] = lambda: None) -> dict[str, ObjectInfo]:
    """What keeps commits for forks now. Raises StoreError."""
    return dict(_list(store, FORKS, _FORK, check_time))


def _list(
    store: Store, prefix: str, name: re.Pattern[str], check_time: Callable[[], None]
) -> Iterator[tuple[str, ObjectInfo]]:
    check_time()
    for number, info in enumerate(store.list(prefix), 1):
        if name.fullmatch(info.key):
            yield info.key, info
        if not number % _PAGE:  # before the next page is asked for
            check_time()


def _list_packs(store: Store, check_time: Callable[[], None] = lambda: None) -> Iterator[tuple[int, ObjectInfo]]:
    for key, info in _list(store, "packs/", _PACK, check_time):
        match = _PACK.fullmatch(key)
        assert match is not None
        yield pack_id(int(match[1], 16), int(match[2], 16)), info


def pack_sizes(store: Store, listing: Listing) -> dict[int, int]:
    """The size of each pack that is there: the listed ones, and those that a fork shares with its base.

    Raises StoreError.
    """
    sizes = {number: info.size for number, info in listing.packs.items()}
    base = base_of(store)
    while base is not None:
        # Of what a base shares with its own base it has only what is older.
        epoch, store = base.epoch, base.store
        sizes.update((number, info.size) for number, info in _list_packs(store) if number >> 32 <= epoch)
        below = base_of(store)
        base = below and below._replace(epoch=min(below.epoch, epoch))
    return sizes


def newest_epoch(listing: Listing) -> int:
    """The highest epoch that any object's name carries; 0 if there is none."""
    named = [epoch_in(key) for key in (*listing.commits, *listing.segments)]
    return max([*named, *(number >> 32 for number in listing.packs)], default=0)


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


def mark_of(commit: str) -> str:
    """The name of the object that says that a commit, whose successor is gone, is one of HEAD's ancestors."""
    seq_in(commit)
    return "points/" + commit.removeprefix("commits/")


def marked(mark: str) -> str:
    """The commit that a mark is for."""
    return "commits/" + mark.removeprefix("points/")


@dataclass(frozen=True, slots=True)
class Live:
    """What the commits that are kept lead to: their manifests, segments, and packs.

    `lonely` are those whose successor is not kept: without a mark nobody would find them. `lasting` are the packs that
    commits lead to which stay for longer than readers need. `expired` are pins that keep nothing any more.
    """

    commits: dict[str, Manifest]
    segments: set[str]
    packs: set[int]
    lonely: set[str] = field(default_factory=set)
    lasting: set[int] = field(default_factory=set)
    expired: set[str] = field(default_factory=set)


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
        self,
        head: str,
        listing: Listing,
        *,
        head_digest: bytes | None = None,
        known: Container[int] = frozenset(),
        held: Collection[str] = (),
    ) -> Live:
        """What HEAD's commit, the ones that the policy keeps, the pinned ones and those in `held` lead to.

        Rows that newer deltas hide from all of them do not count. `known` are packs that are live anyway: partitions
        that lead to no other are not looked at so closely. Raises StoreError, and FormatError when anything cannot be
        read whole: then nobody can know what is live. One answer of the store that is wrong makes nothing dead.
        """
        if self._manifest(head, head_digest) is None:
            raise FormatError(f"the workspace at {self._store.url} is damaged: '{head}' is missing")
        self._read_manifests(listing)
        history: list[Commit] = []
        keys = self._policy(self._chain(head, listing, history))
        keys.add(head)
        lonely = {old.key for new, old in pairwise(history) if old.key in keys and new.key not in keys}
        lonely |= {one.key for one in history if one.key in keys and mark_of(one.key) in listing.marks}
        commits = self._read_all(keys, listing)
        recent = keep_for(Retention(0, 0, 0))(history)
        pins, expired = self._pinned(listing)
        pins |= self._read_all(held, listing) | self._unexplained(history, listing)
        # Not among the pins: if what a fork needs cannot be read whole, nothing may be deleted.
        commits |= self._read_all(map(forked, listing.forks), listing)
        pins = {key: found for key, found in pins.items() if key not in commits}
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
        lasting = self._all_packs([one for key, one in commits.items() if key not in recent])
        return Live(dict(commits), segments, packs, lonely, lasting, expired)

    # --- commits --------------------------------------------------------------------------------------------------

    def _pinned(self, listing: Listing) -> tuple[dict[str, Manifest], set[str]]:
        """The pinned commits, as far as they can be read (one may have been pinned because it is damaged), and the
        names of pins that keep nothing."""
        found, expired = {}, set()
        pins = read_pins(self._store, listing.pins.values())
        # What an older version of a pin says is not enough to end it.
        again = [info for info in listing.pins.values() if (pin := pins.get(pinned(info.key))) and pin.expired]
        pins |= read_pins(self._store, again)
        for info in listing.pins.values():
            key = pinned(info.key)
            # One that is listed counts, also if it cannot be found: until it is not listed either.
            pin = pins.get(key)
            if pin is not None and pin.expired:
                expired.add(info.key)
                continue
            try:
                manifest = self._find(key, listing)
            except FormatError as exc:
                log.warning("a pinned commit is damaged", key=key, error=exc)
                continue
            if manifest is not None:
                found[key] = manifest
            elif info.age >= READERS:
                # What is pinned while we look is not listed, and is not older than the listing.
                expired.add(info.key)
        return found, expired

    def _unexplained(self, history: list[Commit], listing: Listing) -> dict[str, Manifest]:
        """Commits that may be HEAD's ancestors although neither parents nor marks lead to them: older than one that is
        missing, and newer than where the history goes on. Either they never became HEAD, or the store has lost what led
        to them, or says so. They stay until nothing of that age is kept."""
        found = {}
        for new, old in zip_longest(history, history[1:]):
            parent = self._manifests[new.key].parent
            if not parent or parent in listing.commits or (old is not None and old.key == parent):
                continue
            newest, oldest = seq_in(parent), -1 if old is None else seq_in(old.key)
            age = listing.commits[new.key].age if new.key in listing.commits else 0.0
            replaced = max(new.superseded or 0.0, age)
            for key in listing.commits:
                if oldest < seq_in(key) < newest and self._policy([Commit(key, NEWEST, replaced)]):
                    with suppress(FormatError):
                        manifest = self._manifest(key)
                        if manifest is not None:
                            found[key] = manifest
        return found

    def _chain(self, head: str, listing: Listing, history: list[Commit]) -> Iterator[Commit]:
        """HEAD's commit and its ancestors; they are noted in `history` as they are asked for."""
        marks = {marked(key) for key in listing.marks}
        for commit in lineage(head, lambda key: self._find(key, listing), listing.commits, marks, seq_in):
            history.append(commit)
            yield commit

    def _read_manifests(self, listing: Listing) -> None:
        """Read many at once, where one after the other would take long. What fails is told when it is needed."""
        unread = [key for key in listing.commits if key not in self._manifests]
        if len(unread) <= _READERS:
            return

        def read(key: str) -> None:
            with suppress(FormatError):
                self._manifest(key)

        for _ in map_ordered(read, unread, threads=_READERS, name="wsfs-survey"):
            self._check_time()

    def _read_all(self, keys: Iterable[str], listing: Listing) -> dict[str, Manifest]:
        return {key: found for key in keys if (found := self._find(key, listing)) is not None}

    def _find(self, key: str, listing: Listing) -> Manifest | None:
        """A commit's manifest, None if it is gone. Raises FormatError, StoreError.

        To take a commit for gone by mistake would make all dead that it leads to. So both answers must say it.
        """
        found = self._manifest(key)
        if found is None and key in listing.commits:
            raise TransientStoreError(
                f"{self._store.url}: '{key}' is listed, but cannot be read: one of these answers is wrong"
            )
        return found

    def _manifest(self, key: str, expected: bytes | None = None) -> Manifest | None:
        """A commit's manifest, None if the store does not find it. Raises FormatError, StoreError."""
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
                log.warning("a pinned commit is damaged", key=ref.key, error=exc)
                return None

        unread = [ref for ref in refs if ref.key not in known]
        # Nothing ahead of the threads: many segments are large.
        for ref, found in zip(
            unread, map_ordered(one, unread, threads=_READERS, name="wsfs-survey", ahead=0), strict=True
        ):
            self._check_time()
            if found is not None:
                known[ref.key] = found

    def _visible(self, commits: list[Manifest], known: Container[int]) -> set[int]:
        """The packs that rows lead to which at least one of the commits shows."""
        above, bases = layers(commits)
        hidden = Hidden(self._deltas)
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

    def _all_packs(self, commits: list[Manifest]) -> set[int]:
        """The packs that rows of these commits lead to, those that newer deltas hide included."""
        packs: set[int] = set()
        for key in {ref.key for one in commits for ref in one.base}:
            packs |= self._bases.get(key, frozenset())
        for key in {ref.key for one in commits for ref in one.deltas}:
            packs.update(pack for pack in self._deltas.get(key, {}).values() if pack)
        return packs

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


class Layers(NamedTuple):
    """How the segments of some commits lie over each other: for each segment the sets of deltas that lie over it in one
    of them, and for each partition where it ends."""

    above: dict[str, list[frozenset[str]]]
    bases: dict[str, tuple[SegmentRef, bytes | None]]


def layers(commits: list[Manifest]) -> Layers:
    """How the segments of these commits lie over each other."""
    found = Layers({}, {})
    for manifest in commits:
        over = [ref.key for ref in manifest.deltas]
        everything = frozenset(over)
        ends = [ref.start for ref in manifest.base[1:]]
        for ref, end in zip_longest(manifest.base, ends):
            found.bases[ref.key] = ref, end
            _note(found.above.setdefault(ref.key, []), everything)
        for number, key in enumerate(over):
            _note(found.above.setdefault(key, []), frozenset(over[number + 1 :]))
    return found


class Hidden:
    """Which block rows deltas hide; each answer is worked out once."""

    def __init__(self, deltas: Mapping[str, Collection[bytes]]) -> None:
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
