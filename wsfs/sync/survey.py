"""What the bucket holds, and what of it the commits that are kept lead to.

Everything here is read from immutable objects, so what was read once stays true, and is remembered.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from wsfs.errors import FormatError, NotFoundError
from wsfs.repo import codec
from wsfs.repo.frame import digest, dump_json
from wsfs.repo.manifest import Manifest, SegmentRef, decode_manifest
from wsfs.store.base import ObjectInfo, Store
from wsfs.sync.load import read_segment

log = logging.getLogger(__name__)

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


def _refs(commits: dict[str, Manifest]) -> dict[str, SegmentRef]:
    return {ref.key: ref for manifest in commits.values() for ref in (*manifest.base, *manifest.deltas)}


class Survey:
    """Reads commits and segments, each once. Not thread safe. `check_time` may raise what ends it early."""

    def __init__(self, store: Store, policy: Policy, check_time: Callable[[], None]) -> None:
        self._store = store
        self._check_time = check_time
        self._policy = policy
        self._manifests: dict[str, Manifest] = {}
        self._packs: dict[str, frozenset[int]] = {}

    def live(self, head: str, listing: Listing, *, head_digest: bytes | None = None) -> Live:
        """What HEAD's commit, the ones that the policy keeps, and the pinned ones lead to.

        Counts too much rather than too little: a row that a newer delta hides counts until the next fold. Raises
        StoreError, and FormatError when anything cannot be read whole: then nobody can know what is live.
        """
        if self._manifest(head, head_digest) is None:
            raise FormatError(f"the workspace at {self._store.url} is damaged: '{head}' is missing")
        keys = self._policy(self._chain(head, listing))
        keys.add(head)
        commits = {key: found for key in keys if (found := self._manifest(key)) is not None}
        refs = _refs(commits)
        self._read([ref for key, ref in refs.items() if key not in self._packs])
        pins = self._pinned(listing)
        more = {key: ref for key, ref in _refs(pins).items() if key not in refs}
        packs = set().union(*(self._packs[key] for key in refs), *map(self._packs_of_pin, more.values()))
        live = Live(commits | pins, {*refs, *more}, packs)
        self._manifests = dict(live.commits)
        self._packs = {key: found for key, found in self._packs.items() if key in live.segments}
        return live

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

    def _packs_of_pin(self, ref: SegmentRef) -> frozenset[int]:
        if ref.key not in self._packs:
            try:
                self._packs[ref.key] = self._packs_in(ref)
            except FormatError as exc:
                # Not remembered: somebody may put it back.
                log.warning("a pinned commit is damaged: %s", exc)
                return frozenset()
        return self._packs[ref.key]

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

    def _read(self, refs: list[SegmentRef]) -> None:
        rest = iter(refs)
        with ThreadPoolExecutor(_READERS, "wsfs-survey") as pool:
            while batch := list(islice(rest, _READERS)):
                self._check_time()
                for ref, packs in zip(batch, pool.map(self._packs_in, batch), strict=True):
                    self._packs[ref.key] = packs

    def _packs_in(self, ref: SegmentRef) -> frozenset[int]:
        found = set()
        for key, value in read_segment(self._store, ref):
            if value and codec.table_of(key) == codec.BLOCK:
                place = codec.place_of(value)
                if place is not None:
                    found.add(pack_id(place[0], place[1]))
        return frozenset(found)
