"""A workspace with a collector, a clock that tests move on, and checks of every commit that must be whole."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Store, World

from wsfs.errors import FormatError
from wsfs.model import ROOT_INO, Ino
from wsfs.repo.head import Holder, read_head
from wsfs.repo.manifest import Manifest, decode_manifest
from wsfs.sync.gc import Collected, Collector
from wsfs.sync.lease import Waiting, obstacle, this_process
from wsfs.sync.pins import pinned
from wsfs.sync.retain import READERS, keep_for
from wsfs.sync.survey import list_objects
from wsfs.sync.verify import judge, read_frames, take_census
from wsfs.values import Retention

HOUR = READERS
_BEGUN = 1_700_000_000.0 - time.monotonic()
retained = keep_for(Retention(HOUR, 0, 0))


class Clock:
    """Real time, and what tests add to it. It agrees with the writer's, if tests move both on."""

    def __init__(self) -> None:
        self.added = 0.0

    def __call__(self) -> float:
        return _BEGUN + time.monotonic() + self.added


class GcWorld(World):
    """`deleted` sees each key after it was deleted, `deleting` before that; either may raise."""

    def __init__(self, root: Path, *, beside: GcWorld | None = None) -> None:
        self.me = this_process() if beside is None else Holder("elsewhere", 1, "another boot", "")
        super().__init__(root, bucket=None if beside is None else beside.bucket)
        self.clock = Clock() if beside is None else beside.clock
        self.step: Callable[[str], None] = lambda _step: None
        self.deleting: Callable[[str], None] = lambda _key: None
        self.deleted: Callable[[str], None] = lambda _key: None
        self.stopping = False
        self.policy = retained
        self.collector: Collector

    def start(self, **how: Any) -> None:
        super().start(**{"me": self.me, "takeover": True, **how})
        store = self.store
        store._clock = self.clock
        plain = store.delete

        def delete(key: str) -> None:
            self.deleting(key)
            plain(key)
            self.deleted(key)

        store.delete = delete  # type: ignore[method-assign]
        lease = self.workspace.lease
        if lease is not None:
            self.collector = Collector(
                store,
                self.index,
                lease,
                self._on_owner,
                self.committer,
                policy=self.policy,
                clock=self.clock,
                stopping=lambda: self.stopping,
                reached=lambda step: self.step(step),
            )

    def load_all(self) -> None:
        for ref in self.index.unloaded():
            self.workspace.loader.load(ref)

    def collect(self) -> Collected:
        self.load_all()
        return self.collector.collect()

    def pass_time(self, seconds: float) -> None:
        self.clock.added += seconds

    def wait_for_renewal(self) -> Waiting | None:
        """Until whoever holds the workspace has renewed HEAD; what is in the way of a mount elsewhere then."""
        store = self.observer()
        before, end = read_head(store).etag, time.monotonic() + 10
        while read_head(store).etag == before and time.monotonic() < end:
            time.sleep(0.01)
        return obstacle(read_head(store), Holder("a third", 1, "its boot", ""))

    def touch(self) -> None:
        """A small change, and a commit with it."""
        name = b"touched"
        if name not in self.listing():
            self.create(name)
        ino = self.do(self.names.lookup, ROOT_INO, name).ino
        self.write(ino, 0, random.Random(self.now).randbytes(8))
        self.commit()

    def bury(self) -> None:
        """So many commits that the deltas are folded, and the retention of all but the last two of them passes."""
        for _ in range(5):
            self.touch()
        self.pass_time(HOUR + 1)

    def settle(self, rounds: int = 6) -> Collected:
        """Commits and collections until nothing more can go. Returns what went in all."""
        total = Collected()
        for _ in range(rounds):
            self.pass_time(HOUR + 1)
            self.touch()
            one = self.collect()
            total.packs += one.packs
            total.bytes += one.bytes
            total.commits += one.commits
            total.repacked += one.repacked
        return total

    def file(self, name: bytes) -> Ino:
        return self.do(self.names.lookup, ROOT_INO, name).ino

    def usage(self, prefix: str = "") -> int:
        """Bytes in the bucket."""
        return sum(len(o.data) for key, o in self.bucket.objects.items() if key.startswith(prefix))

    def live_bytes(self) -> int:
        """The stored bytes that HEAD's rows lead to."""
        store = self.observer()
        manifest = decode_manifest(store.get(read_head(store).head.commit).data)
        census = take_census(store, manifest, self.sizes(store), frames=True)
        return sum({(u.loc.epoch, u.loc.pack, u.loc.offset): u.loc.stored_length for u in census.frames}.values())

    def kept_bytes(self) -> int:
        """The stored bytes that the rows of any commit that is kept lead to."""
        store = self.observer()
        listing = list_objects(store)
        chain = [decode_manifest(store.get(read_head(store).head.commit).data)]
        while chain[-1].parent in listing.commits:
            chain.append(decode_manifest(store.get(chain[-1].parent).data))
        kept, sizes = kept_of(chain, listing), self.sizes(store)
        uses = [use for one in chain if one.key in kept for use in take_census(store, one, sizes, frames=True).frames]
        return sum({(u.loc.epoch, u.loc.pack, u.loc.offset): u.loc.stored_length for u in uses}.values())

    def observer(self) -> Store:
        """The bucket as somebody else sees it."""
        store = Store(self.bucket)
        store._clock = self.clock
        return store

    @staticmethod
    def sizes(store: Store) -> dict[int, int]:
        return {number: info.size for number, info in list_objects(store).packs.items()}

    def check(self) -> int:
        """HEAD and every commit that is kept are whole, down to the last byte. Returns how many those are."""
        store = self.observer()
        listing = list_objects(store)
        head = read_head(store).head
        chain: list[Manifest] = []
        key = head.commit
        while key in listing.commits:
            chain.append(decode_manifest(store.get(key).data))
            key = chain[-1].parent
        assert chain, "HEAD's commit is gone"
        kept = kept_of(chain, listing)
        for manifest in chain:
            if manifest.key in kept:
                check_commit(store, manifest, self.sizes(store))
        for name in listing.pins:
            check_commit(store, decode_manifest(store.get(pinned(name)).data), self.sizes(store))
        return len(kept)

    def garbage(self) -> set[str]:
        """The objects that no commit that is kept leads to."""
        store = self.observer()
        listing = list_objects(store)
        manifest = decode_manifest(store.get(read_head(store).head.commit).data)
        chain = [manifest]
        while chain[-1].parent in listing.commits:
            chain.append(decode_manifest(store.get(chain[-1].parent).data))
        kept = kept_of(chain, listing)
        used = set(kept)
        for one in chain:
            if one.key in kept:
                used |= {ref.key for ref in (*one.base, *one.deltas)}
                for use in take_census(store, one, self.sizes(store), frames=True).frames:
                    used.add(listing.packs[use.loc.epoch << 32 | use.loc.pack].key)
        everything = {*listing.commits, *listing.segments, *(info.key for info in listing.packs.values())}
        return everything - used


def kept_of(chain: list[Manifest], listing: Any) -> set[str]:
    """What the policy keeps, worked out anew and plainly: newest first, with the age of each one's successor."""
    kept = set()
    for position, manifest in enumerate(chain):
        replaced = None if position == 0 else listing.commits[chain[position - 1].key].age
        if position < 2 or (replaced is not None and replaced < HOUR):
            kept.add(manifest.key)
    return kept


def check_commit(store: Store, manifest: Manifest, sizes: dict[int, int]) -> None:
    """Every row and every frame of a commit. Raises AssertionError."""
    census = take_census(store, manifest, sizes, frames=True)
    assert not census.bad_segments, f"#{manifest.seq}: {census.bad_segments}"
    assert not census.bad_rows, f"#{manifest.seq}: {census.bad_rows}"
    assert not census.lost, f"#{manifest.seq}: {census.lost}"
    problems = judge(census)
    assert not problems, f"#{manifest.seq}: {problems}"
    for use, wrong in read_frames(store, census.frames):
        assert wrong is None, f"#{manifest.seq}: {census.path(use.ino)!r} block {use.block}: {wrong}"


__all__ = ["HOUR", "Clock", "FormatError", "GcWorld", "check_commit", "kept_of", "retained"]
