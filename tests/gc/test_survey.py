"""What is live, compared with a plain count of what each kept commit shows."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
from garbage import GcWorld

from wsfs.model import FrameLoc, Inline, Packed
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.manifest import Manifest, SegmentRef, encode_manifest
from wsfs.repo.segment import Row, encode_segment
from wsfs.store.base import ObjectInfo
from wsfs.store.memory import MemoryStore
from wsfs.sync.pins import pin
from wsfs.sync.retain import Commit
from wsfs.sync.survey import Survey, list_objects, pack_id


class History:
    """Commits over a few block rows, some of which fold, and some of which go back to an older one."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.store = MemoryStore()
        self.shown: dict[str, dict[bytes, int]] = {}
        self.manifests: dict[str, Manifest] = {}
        self.segments = 0
        self.packs = 0
        self.head = ""

    def row(self) -> tuple[bytes, int]:
        """A block row, and its pack; some lead to none."""
        if self.rng.random() < 0.1:
            return codec.encode_block(Inline(b"x")), 0
        if self.rng.random() < 0.8 or not self.packs:
            self.packs += 1
        pack = self.rng.randrange(max(1, self.packs - 2), self.packs + 1)
        return codec.encode_block(Packed(FrameLoc(1, pack, 8, 9, 9, 9, 0, bytes(20)))), pack_id(1, pack)

    def segment(self, rows: list[Row], start: bytes = b"") -> SegmentRef:
        self.segments += 1
        data = encode_segment(rows)
        key = f"meta/00000001/{self.segments:08x}"
        self.store.put(key, data)
        return SegmentRef(key, len(data), len(rows), digest(data), start)

    def commit(self) -> None:
        keys = [codec.block_key(20 + n // 3, n % 3) for n in range(12)]
        parent = self.manifests.get(self.head)
        if parent is not None and self.rng.random() < 0.1:
            parent = self.manifests[self.rng.choice(list(self.manifests))]
        shown = dict(self.shown[parent.key]) if parent else {}
        changed: dict[bytes, bytes | None] = {}
        rows: dict[bytes, bytes] = {}
        for key in self.rng.sample(keys, self.rng.randrange(1, 4)):
            changed[key] = None
            shown.pop(key, None)
            if self.rng.random() < 0.8:
                changed[key], shown[key] = self.row()
        seq = len(self.manifests) + 1
        base: tuple[SegmentRef, ...]
        deltas: tuple[SegmentRef, ...]
        if parent is None or self.rng.random() < 0.2:
            rows = {key: row_of(pack) for key, pack in shown.items()}
            middle = keys[6]
            base = (
                self.segment(sorted((k, v) for k, v in rows.items() if k < middle)),
                self.segment(sorted((k, v) for k, v in rows.items() if k >= middle), middle),
            )
            deltas = ()
        else:
            base, deltas = parent.base, (*parent.deltas, self.segment(sorted(changed.items())))
        manifest = Manifest("w", seq, 1, f"{seq:016x}", self.head, "", 100, 0, 0, base, deltas)
        self.store.put(manifest.key, encode_manifest(manifest))
        self.manifests[manifest.key] = manifest
        self.shown[manifest.key] = shown
        self.head = manifest.key


def row_of(pack: int) -> bytes:
    if not pack:
        return codec.encode_block(Inline(b"x"))
    return codec.encode_block(Packed(FrameLoc(1, pack & 0xFFFFFFFF, 8, 9, 9, 9, 0, bytes(20))))


@pytest.mark.parametrize("seed", range(60))
def test_live_is_what_the_kept_commits_show(seed: int) -> None:
    history = History(seed)
    newest = history.rng.randrange(1, 6)

    def policy(commits: Iterable[Commit]) -> set[str]:
        return {commit.key for commit, _ in zip(commits, range(newest), strict=False)}

    survey = Survey(history.store, policy, lambda: None)
    for _ in range(25):
        history.commit()
        if history.rng.random() < 0.1:
            pin(history.store, history.rng.choice(list(history.manifests)), "a test")
        listing = list_objects(history.store)
        kept = list(history.manifests)[-newest:] + ["commits/" + name.removeprefix("kept/") for name in listing.pins]
        live = survey.live(history.head, listing)
        assert set(live.commits) == set(kept)
        assert live.packs == {pack for key in kept for pack in history.shown[key].values() if pack}
        # With packs that are live anyway it may count more, and never less.
        some = frozenset(history.rng.sample(range(1 << 32, (1 << 32) + history.packs + 1), history.packs // 2))
        more = survey.live(history.head, listing, known=some)
        assert live.packs <= more.packs | some
        assert live.packs <= more.packs


def test_a_stop_does_not_wait_for_a_long_listing(world: GcWorld) -> None:
    asked = 0

    def endless(prefix: str) -> Iterator[ObjectInfo]:
        nonlocal asked
        for asked in range(1, 100_000):
            if asked == 1500:
                world.stopping = True
            yield ObjectInfo(f"{prefix}{asked}", 1, 0.0)

    world.load_all()
    world.store.list = endless  # type: ignore[method-assign]
    assert world.collector.collect().condemned == 0
    assert asked <= 2000, "no page more than the one that was under way"
