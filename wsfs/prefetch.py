"""Fetches parts of packs before somebody asks for them; whoever asks goes first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from wsfs.data.ahead import Ahead, Window
from wsfs.data.packcache import PackCache, window_key
from wsfs.data.unpack import Unpacker
from wsfs.errors import WsfsError
from wsfs.kernel.fetcher import PARALLEL_AHEAD, Fetcher
from wsfs.log import get_log
from wsfs.store.base import Store
from wsfs.sync.profile import is_news, read_profile, write_profile

log = get_log(__name__)

PROFILE_SECONDS: Final = 60.0
"""For so long after the first read it is noted what is read."""

QUIET_SECONDS: Final = 3.0
"""When nothing new was read for so long, the start is over."""

_SPARE: Final = 16 << 20
"""Nothing is fetched ahead unless the cache has room for so many bytes, and the disk for four times as many."""

_LAST_WORDS: Final = 1.0
"""A stop waits for so long until the start profile is written. It is only advice."""


class Prefetcher:
    """Belongs to the trio thread. `epoch` is the mount's; None on one that may not write."""

    def __init__(self, store: Store, packs: PackCache, fetcher: Fetcher, epoch: int | None) -> None:
        self._store = store
        self._packs = packs
        self._fetcher = fetcher
        self._epoch = epoch
        self._ahead = Ahead()
        self._unpacker = Unpacker(packs)
        self._old: str | None = None
        self._profile: list[Window] = []
        self._more = trio.Event()
        self._touched = trio.Event()
        self._fetched = False
        packs.on_touch = self._touch

    def _touch(self, epoch: int, pack: int, number: int, missing: bool) -> None:
        self._ahead.touch(Window(epoch, pack, number))
        self._touched.set()
        self._fetched |= missing
        if self._ahead.queue:
            self._more.set()

    async def run(self) -> None:
        """Until cancelled. Failures are logged: what could not be fetched ahead is fetched when it is needed."""
        with self._unpacker:
            await self._run()

    async def _run(self) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(PARALLEL_AHEAD):
                nursery.start_soon(self._work)
            try:
                if not self._packs.size:
                    await self._begin()
                await self._watch_start()
            finally:
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await self._leave_profile()

    async def _work(self) -> None:
        while True:
            while windows := self._ahead.take(PARALLEL_AHEAD, self._under_way):
                await self._fetcher.ahead([window_key(*window) for window in windows], self._fetcher_of(windows))
            if self._more.is_set():
                self._more = trio.Event()
            await self._more.wait()

    def _under_way(self, window: Window) -> bool:
        return self._fetcher.has(window_key(*window))

    def _fetcher_of(self, windows: list[Window]) -> Callable[[], None]:
        def fetch() -> None:
            missing = [window for window in windows if not self._packs.holds(*window)]
            # On a small or full disk it would push out what is needed now.
            if missing and self._packs.has_room(_SPARE):
                first, last = missing[0], missing[-1]
                self._packs.fetch(*first, last.number - first.number + 1)
                self._unpacker.arrived(first.epoch, first.pack)

        return fetch

    async def _begin(self) -> None:
        try:
            self._old, self._profile = await trio.to_thread.run_sync(read_profile, self._store, abandon_on_cancel=True)
        except WsfsError as exc:
            log.info("no start profile", error=exc)
        self._ahead.begin_with(self._profile)
        self._more.set()

    async def _watch_start(self) -> None:
        """Return when the start is over: nothing new is read for a while, or long enough is enough."""
        await self._touched.wait()
        with trio.move_on_after(PROFILE_SECONDS):
            quiet = False
            while not quiet:
                self._touched = trio.Event()
                with trio.move_on_after(QUIET_SECONDS) as pause:
                    await self._touched.wait()
                quiet = pause.cancelled_caught

    async def _leave_profile(self) -> None:
        first, self._ahead.first = self._ahead.first, None
        if self._epoch is None or not first or not self._fetched or not is_news(first, self._profile):
            return
        try:
            work = partial(write_profile, self._store, self._epoch, first, self._old)
            await trio.to_thread.run_sync(work, abandon_on_cancel=True)
        except WsfsError as exc:
            log.info("start profile not written", error=exc)
