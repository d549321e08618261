"""Blocks on their way into packs: how hard they are compressed, and how many are under way."""

from __future__ import annotations

import os
import threading
from itertools import count
from pathlib import Path
from typing import cast

import pytest

from wsfs.data.overlay import Overlay
from wsfs.data.packcache import PackCache
from wsfs.index.tables import Reader
from wsfs.repo import codec
from wsfs.repo.frame import ZSTD_LEVEL, ZSTD_LEVEL_FAST, compress
from wsfs.repo.pack import PackWriter
from wsfs.store.memory import MemoryStore
from wsfs.sync import upload
from wsfs.sync.progress import Progress
from wsfs.sync.upload import Packs, Uploaded, Work

BLOCKS = 12


class NoRows:
    """An index that knows no frame yet."""

    def lookup(self, _table: bytes, _key: bytes) -> None:
        return None


class Patient(Packs):
    """Has at most one upload under way, and tells when it begins to wait for that."""

    def __init__(
        self,
        store: MemoryStore,
        overlay: Overlay,
        cache: PackCache,
        *,
        all_at_once: bool,
        behind: bool = False,
        compressors: int = 1,
    ) -> None:
        numbers = count(1)
        super().__init__(
            store,
            overlay,
            cache,
            cast("Reader", NoRows()),
            lambda: PackWriter(1, next(numbers)),
            Uploaded(),
            uploads=1,
            compressors=compressors,
            progress=Progress(),
            behind=behind,
        )
        self.waits = threading.Event()
        self.all_at_once = all_at_once

    def _wait(self, running: int) -> None:
        if self._running:
            self.waits.set()
        super()._wait(running)

    def _put(self, *args: object) -> None:
        # The network is slow: no pack is through before the next one is ready.
        assert self.all_at_once or self.waits.wait(60)
        self.waits.clear()
        super()._put(*args)  # type: ignore[arg-type]

    def _send(self) -> None:
        super()._send()
        if self.all_at_once:
            super()._wait(0)


@pytest.fixture
def contents() -> list[bytes]:
    """Text as people write it, each different."""
    text = Path(upload.__file__).read_bytes()
    return [text[n * 100 :] + text[: n * 100] for n in range(BLOCKS)]


@pytest.mark.parametrize("slow", [False, True])
def test_who_waits_for_the_network_compresses_more(
    tmp_path: Path, contents: list[bytes], monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    """Fast at first, and as long as packs leave as quickly as they come; else as well as pays."""
    assert all(len(compress(one, ZSTD_LEVEL)) < len(compress(one, ZSTD_LEVEL_FAST)) for one in contents)
    monkeypatch.setattr(upload, "TARGET_SIZE", 1)
    monkeypatch.setattr(upload, "_PORTION", 1)
    store, overlay = MemoryStore(), Overlay(tmp_path)
    for ino, content in enumerate(contents):
        overlay.mark(ino, 0)
        overlay.write(ino, 0, content)
    overlay.freeze()
    packs = Patient(store, overlay, PackCache(tmp_path, store, 1 << 30), all_at_once=not slow)
    work = [Work((1, b"%03d" % ino), ino, 0, len(one), len(one)) for ino, one in enumerate(contents)]
    try:
        rows = packs.upload(work, lambda _work: True)
    finally:
        packs.close()
        overlay.close()
    assert list(rows) == [codec.block_key(ino, 0) for ino in range(BLOCKS)]
    levels = []
    for content, row in zip(contents, rows.values(), strict=True):
        place = codec.place_of(row or b"")
        assert place is not None
        levels.append(ZSTD_LEVEL if place[3] == len(compress(content, ZSTD_LEVEL)) else ZSTD_LEVEL_FAST)
    assert levels[0] == ZSTD_LEVEL_FAST
    assert levels[-1] == (ZSTD_LEVEL if slow else ZSTD_LEVEL_FAST)


@pytest.mark.parametrize("behind", [False, True])
def test_requests_of_a_mount_in_use_go_first(tmp_path: Path, behind: bool) -> None:
    """The threads of a save have a nice value of their own then; nobody else's changes."""
    store, overlay = MemoryStore(), Overlay(tmp_path)
    packs = Patient(store, overlay, PackCache(tmp_path, store, 1 << 30), all_at_once=True, behind=behind)
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        for pool in (packs._compress, packs._upload):
            theirs = pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
            assert theirs == (max(mine, 10) if behind else mine)
    finally:
        packs.close()
        overlay.close()
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


@pytest.mark.parametrize(
    ("behind", "processors", "expected"), [(True, 2, 1), (True, 4, 2), (False, 2, 2), (True, 1, 1)]
)
def test_a_mount_in_use_keeps_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bool, processors: int, expected: int
) -> None:
    """A background save compresses on one less than there are; the last save of a stop on as many as it may."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(processors)))
    store, overlay = MemoryStore(), Overlay(tmp_path)
    cache = PackCache(tmp_path, store, 1 << 30)
    packs = Patient(store, overlay, cache, all_at_once=True, behind=behind, compressors=2)
    both = threading.Barrier(2)
    try:
        waits = [packs._compress.submit(both.wait, 1) for _ in range(2)]
        assert all(one.exception() is None for one in waits) == (expected == 2)
    finally:
        packs.close()
        overlay.close()
