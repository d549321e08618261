"""Garbage: what no commit that is kept leads to goes away. docs/GC.md has the rules and why they are safe.

    survey    list the objects; read the commits that are kept (`retain`, `pins`), and their segments
    condemn   between two commits: packs that nothing leads to are never used again, and the cache forgets them
    sweep     delete commits, segments, and the packs that were condemned before the newest commit was made
    repack    packs that are mostly dead: write their live frames anew, and have the next commit lead there

Dying at any step leaves garbage, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final

from wsfs.errors import NotFoundError
from wsfs.index.base import Standing
from wsfs.index.index import Index
from wsfs.index.tables import Reader, Writer
from wsfs.log import get_log
from wsfs.parallel import map_ordered
from wsfs.repo import codec
from wsfs.repo.fork import forked
from wsfs.repo.frame import dump_json
from wsfs.store.base import ObjectInfo, Store
from wsfs.sync.commit import Committer, OnOwner
from wsfs.sync.lease import Lease
from wsfs.sync.pins import pinned
from wsfs.sync.repack import Repacker, Usage
from wsfs.sync.retain import READERS, Policy
from wsfs.sync.survey import (
    Listing,
    Live,
    Survey,
    epoch_in,
    list_forks,
    list_objects,
    list_pins,
    mark_of,
    marked,
    pack_id,
    seq_in,
)

log = get_log(__name__)

INTERVAL: Final = 600.0
"""Seconds between two collections, at least, and before the first."""

STEPS: Final = (
    "listed",
    "surveyed",
    "flushed",
    "forgotten",
    "condemned",
    "confirmed",
    "commits deleted",
    "segments deleted",
    "packs deleted",
    "frames read",
    "pack written",
    "rows changed",
    "digests changed",
)
"""What `reached` is called with, in this order; steps that have nothing to do are left out."""

_BATCH: Final = 64
_DELETERS: Final = 4


class _NoTimeError(Exception):
    """The mount is being stopped."""


@dataclass(slots=True)
class Collected:
    """What a collection did. `condemned` counts the packs that wait for the next commit, `bytes` what was deleted."""

    commits: int = 0
    segments: int = 0
    packs: int = 0
    bytes: int = 0
    condemned: int = 0
    repacked: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to go, in order of its deletion, and what is in use."""

    standing: Standing
    live: Live
    listing: Listing
    marks: list[str]
    pins: list[str]
    commits: list[tuple[str, int]]
    segments: list[tuple[str, int]]
    packs: list[tuple[str, int]]
    usage: Usage


class Collector:
    """Collects garbage on a thread that is not the owner's (in tests it may be). One collection at a time.

    `stopping` says that there is no time for this any more.
    """

    def __init__(
        self,
        store: Store,
        index: Index,
        lease: Lease,
        on_owner: OnOwner,
        committer: Committer,
        *,
        policy: Policy,
        grace: float = READERS,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
        stopping: Callable[[], bool] = lambda: False,
        reached: Callable[[str], None] = lambda _step: None,
    ) -> None:
        self._store = store
        self._index = index
        self._lease = lease
        self._on_owner = on_owner
        self._committer = committer
        self._grace = grace
        self._interval = interval
        self._clock = clock
        self._stopping = stopping
        self._reached = reached
        self._survey = Survey(store, policy, self._check_time)
        self._repacker = Repacker(
            store, index, on_owner, committer.new_pack, grace=grace, stopping=stopping, reached=reached
        )
        self._condemned: dict[int, int] = {}
        self._known: frozenset[int] = frozenset()
        self._held: Counter[str] = Counter()
        self._going: frozenset[str] = frozenset()
        self._deciding = threading.Lock()
        self._collected_at = clock()
        self._collected_seq = 0

    def due(self) -> bool:
        """Whether there may be something to do: a while has passed, and there is another commit."""
        waited = self._clock() - self._collected_at >= self._interval
        return waited and self._lease.head.seq != self._collected_seq

    @contextmanager
    def holding(self, commit: str) -> Iterator[None]:
        """Any thread: a commit, and all it leads to, stays while the body runs. Its rows may be made anew meanwhile.

        Raises NotFoundError when it is about to be deleted already. May block for as long as a collection decides.
        """
        self.hold(commit)
        try:
            yield
        finally:
            self.let_go(commit)

    def hold(self, commit: str) -> None:
        """Any thread: like `holding`, until `let_go` was called as often."""
        with self._deciding:
            if commit in self._going:
                raise NotFoundError(f"the save point '{commit}' is not kept any more, and is being deleted")
            self._held[commit] += 1

    def let_go(self, commit: str) -> None:
        """Any thread: undo one `hold`."""
        with self._deciding:
            self._held[commit] -= 1
            self._held += Counter()  # without those that nobody holds

    def collect(self) -> Collected:
        """One collection. Raises StoreError, FencedError, CacheError, and FormatError when a commit that is kept is
        damaged: nothing is deleted then. Whatever it raises, it can be repeated."""
        self._collected_at = self._clock()
        done = Collected()
        try:
            self._collect(done)
        except _NoTimeError:
            log.info("no time to collect garbage now")
        return done

    def _collect(self, done: Collected) -> None:
        if self._index.unloaded():
            return
        listing = list_objects(self._store, self._check_time)
        self._lease.measured(listing.size)
        self._reached("listed")
        # What takes long is read here, so that no commit has to wait for it; then again, for what came since.
        self._look(listing)
        with self._committer.busy, self._deciding:
            if self._index.pending is not None:
                return  # which commit is the newest is not known
            standing, live = self._look(listing)
            self._reached("surveyed")
            plan = self._condemn(standing, live, listing)
            self._going = frozenset(listing.commits.keys() - live.commits.keys())
        self._collected_seq = standing.seq
        done.condemned = len(self._condemned)
        self._sweep(plan, done)
        self._lease.grew(-done.bytes)
        done.condemned -= done.packs
        done.repacked, done.sent = self._repacker.repack(plan.usage, listing, plan.live.lasting)
        self._lease.grew(done.sent)

    def _check_time(self) -> None:
        if self._stopping():
            raise _NoTimeError

    # --- what is live ---------------------------------------------------------------------------------------------

    def _look(self, listing: Listing) -> tuple[Standing, Live]:
        standing = self._index.standing
        assert standing is not None
        head = self._lease.head
        known = head.commit_digest if head.commit == standing.commit else None
        return standing, self._survey.live(
            standing.commit, listing, head_digest=known, known=self._known, held=tuple(self._held)
        )

    def _flush(self) -> None:
        """Have LMDB hold every row."""
        index = self._index
        while True:
            index.flush()
            if self._on_owner(lambda: index.rotate() or not index.pending_rows):
                break
        index.flush()
        self._reached("flushed")

    def _local(self) -> Usage:
        """What the rows on this machine lead to, those of open files without a name included."""
        usage = Usage()
        self._flush()
        reader = self._index.tables.reader()
        try:
            for number, (key, row) in enumerate(reader.scan(b"rows", b"")):
                if key[8:9] == codec.BLOCK:
                    usage.add(row)
                if not number & 0xFFFF:
                    self._check_time()
        finally:
            reader.close()
        # After the snapshot: whoever loses the last name in between is in one of both.
        for key, row in self._on_owner(self._index.detached_rows):
            if codec.table_of(key) == codec.BLOCK:
                usage.add(row)
        return usage

    # --- condemning -----------------------------------------------------------------------------------------------

    def _condemn(self, standing: Standing, live: Live, listing: Listing) -> _Plan:
        """While no commit is under way: decide what goes, and make sure that no later commit leads there."""
        usage = self._local()
        epoch = self._lease.epoch
        self._known = frozenset(usage.packs)
        dead = {
            number
            for number, info in listing.packs.items()
            if number not in live.packs
            and number not in usage.packs
            and number >> 32 <= epoch
            and info.age >= self._grace
        }
        alive_again = self._condemned.keys() & (live.packs | usage.packs.keys())
        if alive_again:  # cannot be; but if it is, they are needed
            log.error("condemned packs are in use, they are kept", packs=sorted(alive_again))
        fresh = dead - self._condemned.keys()
        if fresh:
            self._committer.forget_uploaded()
            self._index.rewrite(partial(_forget, packs=fresh))
            self._reached("forgotten")
        self._condemned = {number: self._condemned.get(number, standing.seq) for number in dead}
        self._reached("condemned")
        # A commit of this epoch has been made since: whoever stands on an older one can make no more.
        due = sorted(number for number, seq in self._condemned.items() if seq < standing.seq)
        # A newer holder's marks are for commits that this history does not have.
        stale = [
            key
            for key in listing.marks
            if (old := marked(key)) not in live.commits and epoch_in(old) <= epoch and seq_in(old) < standing.seq
        ]
        return _Plan(
            standing,
            live,
            listing,
            stale,
            sorted(live.expired),
            self._old(listing.commits.items(), live.commits, epoch, by_age=False),
            self._old(listing.segments.items(), live.segments, epoch, by_age=True),
            [(listing.packs[number].key, listing.packs[number].size) for number in due],
            usage,
        )

    def _old(
        self, listed: Iterable[tuple[str, ObjectInfo]], live: Container[str], epoch: int, *, by_age: bool
    ) -> list[tuple[str, int]]:
        """The objects of our epoch and older ones that nothing leads to; the oldest commits first."""
        found = [
            (key, info.size)
            for key, info in listed
            if key not in live and epoch_in(key) <= epoch and info.age >= self._grace
        ]
        return found if by_age else sorted(found, key=lambda one: seq_in(one[0]))

    # --- deleting -------------------------------------------------------------------------------------------------

    def _sweep(self, plan: _Plan, done: Collected) -> None:
        """Delete from the top down: what is left of a half deleted commit leads to nothing that is missing unseen."""
        if not (plan.marks or plan.pins or plan.commits or plan.segments or plan.packs):
            return
        # Not needed for safety (a fenced collector deletes nothing that anybody uses), but it may be time to stop.
        self._lease.refresh()
        pins, forks = list_pins(self._store), list_forks(self._store)
        fresh = [pinned(key) for key in pins.keys() - plan.listing.pins.keys()]
        fresh += [forked(key) for key in forks.keys() - plan.listing.forks.keys()]
        # Also if the commit itself does not go now: what it leads to may.
        if any(commit not in plan.live.commits for commit in fresh):
            log.info("a save point was pinned or forked meanwhile: garbage is collected later")
            return
        for commit in sorted(plan.live.lonely):
            if mark_of(commit) not in plan.listing.marks:
                self._store.put(mark_of(commit), dump_json({"commit": commit}))
        self._reached("confirmed")
        for key in (*plan.marks, *(key for key in plan.pins if key in pins and pins[key].age >= self._grace)):
            self._store.delete(key)
        for size in self._delete(plan.commits, "commits"):
            done.commits += 1
            done.bytes += size
        for size in self._delete(plan.segments, "segments"):
            done.segments += 1
            done.bytes += size
        for size in self._delete(plan.packs, "packs"):
            done.packs += 1
            done.bytes += size

    def _delete(self, objects: list[tuple[str, int]], kind: str) -> Iterator[int]:
        """Delete objects, and yield the size of each that is gone. Raises StoreError; deleting again is fine."""
        rest = iter(objects)
        while not self._stopping() and (batch := list(islice(rest, _BATCH))):
            # A machine may have been suspended in between. Not needed for safety, as long as all keep alike.
            self._lease.refresh()
            keys = (key for key, _ in batch)
            gone = map_ordered(self._store.delete, keys, threads=_DELETERS, name="wsfs-delete")
            for (key, size), _ in zip(batch, gone, strict=True):
                log.debug("deleted", key=key, size=size)
                yield size
            self._reached(f"{kind} deleted")


def _forget(txn: Writer, packs: set[int]) -> None:
    """Remove what would let a later commit lead to these packs."""
    for name in _names_in(txn, packs):
        txn.delete(b"digests", name)


def _names_in(reader: Reader, packs: set[int]) -> list[bytes]:
    """The digests of blocks in these packs. Both numbers lead the row, as in `pack_id`."""
    return [
        name
        for name, row in reader.scan(b"digests", b"")
        if pack_id(int.from_bytes(row[:4], "big"), int.from_bytes(row[4:8], "big")) in packs
    ]
