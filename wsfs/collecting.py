"""When a mount collects garbage: every now and then, and when somebody asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import trio

from wsfs.config import MountSettings
from wsfs.errands import Errands
from wsfs.errors import UsageError, WsfsError
from wsfs.garbage import add, needs_commit, report
from wsfs.kernel.fetcher import Fetcher
from wsfs.log import get_log
from wsfs.remote import NeedRemote
from wsfs.repo.head import State
from wsfs.saver import Saver
from wsfs.store.base import Store
from wsfs.sync.commit import Committer
from wsfs.sync.gc import Collected, Collector
from wsfs.sync.retain import keep_for
from wsfs.sync.start import Workspace

log = get_log(__name__)

GARBAGE_SECONDS: Final = 30.0


class Collecting:
    """Belongs to the trio thread. `committer` is None on a read-only mount; `stopping` says that there is no time."""

    def __init__(
        self,
        settings: MountSettings,
        store: Store,
        workspace: Workspace,
        saver: Saver,
        committer: Committer | None,
        fetcher: Fetcher,
        errands: Errands,
        stopping: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._saver = saver
        self._fetcher = fetcher
        self._errands = errands
        self._stopping = stopping
        self._policy = keep_for(settings.retain)
        self._one = trio.Lock()
        self.collector: Collector | None = None
        if committer is not None and workspace.lease is not None:
            self.collector = Collector(
                store,
                workspace.index,
                workspace.lease,
                errands.on_owner,
                committer,
                policy=self._policy,
                stopping=stopping,
            )

    async def run(self) -> None:
        """For ever: collect when it is time for it."""
        collector = self.collector
        while collector is not None:
            await trio.sleep(GARBAGE_SECONDS)
            if collector.due() and not self._stopping():
                try:
                    async with self._one:
                        log.info("garbage collected", **asdict(await self._errands.run(collector.collect)))
                except WsfsError as exc:
                    log.warning("garbage not collected, it is tried again", error=exc)

    async def load_partitions(self) -> None:
        """Have all metadata here. Raises StoreError, FormatError, CacheError."""
        load = self._workspace.loader.load
        while refs := self._workspace.index.unloaded():
            for ref in refs:
                await self._fetcher.satisfy(NeedRemote({("part", ref.key, ref.start): partial(load, ref)}))

    async def answer(self, *, dry_run: bool) -> dict[str, Any]:
        """What `wsfs gc` tells: without `dry_run` after a collection, with a commit where one is needed.

        Raises StoreError, FormatError, FencedError, CacheError: what was collected until then is.
        """
        done = None if dry_run else await self._collect()
        return await trio.to_thread.run_sync(report, self._store, self._policy, done, abandon_on_cancel=True)

    async def _collect(self) -> Collected:
        collector = self.collector
        if collector is None:
            raise UsageError(f"{self._settings.mountpoint} is read-only: name the mount that writes, or add --dry-run")
        async with self._one:
            await self.load_partitions()
            await self._saver.save(State.RUNNING)  # also finds out what became of a commit that is in doubt
            done = await self._errands.run(collector.collect)
            if needs_commit(done) and not self._stopping():
                await self._saver.save(State.RUNNING, empty=True)
                done = add(done, await self._errands.run(collector.collect))
        log.info("garbage collected", **asdict(done))
        return done
