"""The running mount: puts the layers together, and decides when to flush, save, renew and stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyfuse3
import trio

from wsfs import control
from wsfs.answers import Answers
from wsfs.collecting import Collecting
from wsfs.config import STORE_TIMEOUT, MountSettings
from wsfs.errands import Errands
from wsfs.errors import (
    CacheError,
    FencedError,
    MountError,
    WsfsError,
)
from wsfs.follower import Follower
from wsfs.growth import Growers
from wsfs.index.quota import Quota
from wsfs.kernel import loop
from wsfs.kernel import mountpoint as mountpoints
from wsfs.kernel.fetcher import Fetcher
from wsfs.kernel.operations import View
from wsfs.kernel.past import Shelf, WithPast
from wsfs.log import get_log
from wsfs.logfile import log_of
from wsfs.notify import Notifier
from wsfs.prefetch import Prefetcher
from wsfs.repo.head import State
from wsfs.report import Report
from wsfs.rewind import Rewind, keep_for_reader
from wsfs.saver import Saver, on_owner
from wsfs.stats import Stats
from wsfs.stop import Stopper
from wsfs.store.base import Store
from wsfs.store.retry import StoreStats
from wsfs.sync.commit import Committer
from wsfs.sync.evict import Evictor
from wsfs.sync.lease import RENEW_SECONDS, Lease, best_effort
from wsfs.sync.pace import Pace
from wsfs.sync.start import CacheDirectory, Workspace, refused, stays_in

log = get_log(__name__)

FLUSH_SECONDS: Final = 5.0
FLUSH_ROWS: Final = 50_000
FLUSH_BYTES: Final = 16 << 20
CACHE_SECONDS: Final = 30.0
ERRAND_SECONDS: Final = 1.0


class Daemon:
    """The running mount. Everything but the work in threads happens on the trio thread, which owns the index."""

    def __init__(
        self,
        settings: MountSettings,
        store: Store,
        stats: StoreStats,
        workspace: Workspace,
        cache: CacheDirectory,
        cache_size: int,
        ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._stats = stats
        self._workspace = workspace
        self._cache_size = cache_size
        self._ready = ready
        # Now, for it looks at the mount point: this thread must never do that once it is the one that answers there.
        self._socket = control.socket_path(settings.mountpoint)
        self._last_flushed = time.monotonic()
        self._errands = Errands()
        self._committer = (
            None
            if workspace.lease is None
            else Committer(
                store,
                workspace.index,
                workspace.overlay,
                workspace.packs,
                workspace.lease,
                on_owner,
                judge=workspace.names.judge,
            )
        )
        self._evictor = Evictor(workspace.index, workspace.overlay, workspace.packs)
        self._operations = WithPast(
            workspace.names,
            workspace.files,
            workspace.index,
            Fetcher(2 * (settings.store_timeout or STORE_TIMEOUT)),
            view=View(settings.uid, settings.gid, settings.umask or 0),
            xattr=settings.xattr,
            free_space=self._free_space,
        )
        epoch = None if workspace.lease is None else workspace.lease.epoch
        self._prefetcher = Prefetcher(store, workspace.packs, self._operations.fetcher, epoch)
        self._operations.read_only = settings.read_only
        # Else the kernel would keep sizes and times of its own, and not see those of a newer commit.
        self._operations.enable_writeback_cache = not settings.read_only
        pace = Pace(settings.cache_dir, lambda: stats.latency)
        self._saver = Saver(settings, cache, self._committer, self._evictor, self._operations, pace)
        self._report = Report(settings, workspace, self._saver, pace)
        self._counters = Stats(settings, workspace, self._operations, self._saver, self._report, stats)
        self._operations.make_room = self._saver.make_room
        if settings.quota is not None or settings.quota_files is not None:
            workspace.index.quota = Quota(settings.quota, settings.quota_files)
            workspace.index.quota.refused = Growers(workspace.index, workspace.index.quota).tell
        self._rewind = Rewind(
            store, workspace, self._operations, self._saver, self._committer, settings.mountpoint, self._errands
        )
        self._operations.shelf = Shelf(
            store, workspace.packs, settings.cache_dir / "at", self._rewind.hold, self._rewind.let_go, self._errands
        )
        self._follower = Follower(store, workspace, self._operations, self._evictor, self._errands)
        self._session = trio.CancelScope()
        """With the kernel. To cancel it leaves what waits for the store without an answer."""
        self._stopper = Stopper(
            settings,
            workspace,
            self._saver,
            Notifier.from_environment(),
            self._operations.under_way,
            pyfuse3.terminate,
            self._session.cancel,
            self._moved,
        )
        self._collecting = Collecting(
            settings,
            store,
            workspace,
            self._saver,
            self._committer,
            self._operations.fetcher,
            self._errands,
            self._has_no_time,
        )
        self._rewind.collector = self._collecting.collector
        self._answers = Answers(
            settings,
            store,
            workspace,
            cache_size,
            saver=self._saver,
            stopper=self._stopper,
            report=self._report,
            counters=self._counters,
            rewind=self._rewind,
            collecting=self._collecting,
            follower=self._follower,
            operations=self._operations,
            evictor=self._evictor,
        )

    def _has_no_time(self) -> bool:
        """Whether this is no time for what can wait: the stop is under way, or the mount gone."""
        return self._saver.state not in (State.RUNNING, State.SYNC_FAILED) or self._stopper.unmounted.is_set()

    @property
    def abandoned(self) -> bool:
        """After `run`: whether a thread that nobody waits for still works on a commit, or in the cache directory."""
        return self._saver.busy or self._errands.under_way

    def run(self) -> None:
        """Serve until stopped. Raises MountError, SyncFailedError, FencedError."""
        try:
            pyfuse3.init(self._operations, str(self._settings.mountpoint), self._fuse_options())
        except RuntimeError as exc:
            failure = MountError(
                f"{self._settings.mountpoint} could not be mounted: is /dev/fuse there, and may this user mount? The"
                f" log says more{'' if self._settings.foreground else f': {log_of(self._settings.cache_dir)}'}"
            )
            self._give_back(str(failure))
            raise failure from exc
        try:
            trio.run(self._main, strict_exception_groups=True)
        finally:
            pyfuse3.close(unmount=not self._stopper.unmounted.is_set())
            self._operations.shelf.close()
        if self._stopper.failure is not None:
            raise self._stopper.failure

    def _give_back(self, failure: str) -> None:
        """Nothing was mounted. What is not in the store, here or elsewhere, is not there for that."""
        workspace = self._workspace
        lease = workspace.lease
        if lease is None:
            return
        missing = stays_in(self._settings.cache_dir, lease.host) if workspace.index.is_dirty else workspace.missing
        state, reason = refused(workspace.head.head, failure, missing)
        if state == State.ERROR:  # what is wrong is here, and not with the workspace
            state, reason = State.STOPPED, ""
        best_effort(lambda: lease.release(state, reason), lambda exc: log.warning("lease not given back", error=exc))

    def _fuse_options(self) -> set[str]:
        settings = self._settings
        options = {f"fsname={settings.url}", "subtype=wsfs", "default_permissions", *settings.kernel_options}
        if settings.allow_other:
            options.add("allow_other")
        if settings.read_only:
            options.add("ro")
        return options

    # --- tasks ----------------------------------------------------------------------------------------------------

    async def _main(self) -> None:
        settings = self._settings
        async with trio.open_nursery() as helpers:
            await helpers.start(self._serve_control, self._socket)
            # To the very end: a long last save must not look like a dead mount.
            helpers.start_soon(self._renew_lease)
            # Nor may another signal kill it.
            helpers.start_soon(self._watch_signals)
            if settings.metrics:
                helpers.start_soon(self._export_metrics, settings.metrics)
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._serve_kernel, tasks)
                tasks.start_soon(self._announce, tasks)
                tasks.start_soon(self._flush_index)
                tasks.start_soon(self._load_partitions)
                tasks.start_soon(self._keep_cache_small)
                tasks.start_soon(self._prefetcher.run)
                tasks.start_soon(self._operations.shelf.keep_small)
                if settings.at is not None:
                    tasks.start_soon(keep_for_reader, self._store, self._workspace.head.head.commit)
                if settings.follow:
                    tasks.start_soon(self._follower.run, settings.follow)
                if self._committer is not None:
                    tasks.start_soon(self._save_periodically)
                    tasks.start_soon(self._collecting.run)
                    tasks.start_soon(self._rewind.watch)
            await self._stopper.finish()
            # Whoever asked for the stop is answered before the socket goes: umount(8) may return long after us.
            await self._answers.stopped()
            helpers.cancel_scope.cancel()
        await self._errands.end(ERRAND_SECONDS)

    async def _serve_control(self, path: Path, *, task_status: Any) -> None:
        operator = self._settings.operator
        await control.serve(path, self._answers.to, self._saver.account, operator=operator, task_status=task_status)

    async def _export_metrics(self, where: str) -> None:
        from wsfs.exporter import export  # few mounts want it, and it costs a start 0.1 s

        await export(where, str(self._settings.mountpoint), self._counters.snapshot)

    async def _serve_kernel(self, tasks: trio.Nursery) -> None:
        with self._session:
            await loop.serve()
        self._stopper.unmounted.set()
        tasks.cancel_scope.cancel()

    async def _announce(self, tasks: trio.Nursery) -> None:
        """Say that the mount is ready, once it answers."""
        await trio.to_thread.run_sync(mountpoints.wait_until_it_answers, self._settings.mountpoint)
        self._saver.set_state(State.RUNNING)
        tasks.start_soon(self._stopper.watch_mount)
        async with trio.open_nursery() as first:
            first.start_soon(trio.to_thread.run_sync, mountpoints.tune, self._settings.mountpoint)
            if not self._settings.xattr:
                first.start_soon(trio.to_thread.run_sync, mountpoints.ask_for_attribute, self._settings.mountpoint)
        await trio.to_thread.run_sync(self._ready)
        log.info("mounted", url=self._settings.url, mountpoint=self._settings.mountpoint)

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if self._stopper.unmounted.is_set():
                    log.info("stopping already, the last save goes on", signal=signal.Signals(number).name)
                    continue
                log.info("stopping", signal=signal.Signals(number).name)
                try:
                    await self._stopper.stop(force=True, deadline=self._settings.stop_deadline)
                except WsfsError as exc:
                    log.error("stopped without saving everything", error=exc)

    async def _flush_index(self) -> None:
        index = self._workspace.index
        while True:
            await trio.sleep(1.0)
            self._counters.tick()
            due = time.monotonic() - self._last_flushed > FLUSH_SECONDS and index.pending_rows
            if index.pending_rows > FLUSH_ROWS or index.pending_bytes > FLUSH_BYTES or due:
                try:
                    index.rotate()
                    await trio.to_thread.run_sync(index.flush)
                except (CacheError, OSError) as exc:  # a mount must not end with it, whatever the disk says
                    log.error(
                        "index not flushed, the journal keeps everything", path=self._settings.cache_dir, error=exc
                    )
                self._last_flushed = time.monotonic()

    async def _load_partitions(self) -> None:
        """All metadata, in the background: later requests then wait for nothing but file data."""
        while True:
            try:
                await self._collecting.load_partitions()
            except WsfsError as exc:
                log.warning("metadata not loaded, it is tried again", error=exc)
                await trio.sleep(10)
            else:
                return

    async def _keep_cache_small(self) -> None:
        pause = CACHE_SECONDS
        while True:
            await trio.sleep(pause)
            began = trio.current_time()
            try:
                await self._evictor.shrink(self._cache_size)
            except (CacheError, OSError) as exc:
                log.warning("cache not shrunk", path=self._settings.cache_dir, error=exc)
            # A delete may have used it, and the next full disk may come in the last save of a stop.
            await trio.to_thread.run_sync(self._saver.ballast.restore)
            # It looks at every file: with a million of them that may take a fiftieth of the time, and no more.
            pause = max(CACHE_SECONDS, 50 * (trio.current_time() - began))

    async def _save_periodically(self) -> None:
        interval = self._settings.save_interval
        if not interval:
            return
        while True:
            await trio.sleep(interval)
            if self._operations.read_only:
                continue
            try:
                await self._saver.save_in_background()
            except (WsfsError, OSError) as exc:
                log.error("background save failed, everything is kept here and tried again", error=exc)

    async def _renew_lease(self) -> None:
        """Tell others that this mount lives. A failure is not fatal: only politeness depends on it."""
        lease = self._workspace.lease
        while lease is not None and lease.fenced is None:
            await self._time_to_renew()
            try:
                await trio.to_thread.run_sync(
                    lease.renew, self._saver.state, self._saver.reason, abandon_on_cancel=True
                )
            except FencedError as exc:
                await self._saver.fence(exc)
            except WsfsError as exc:  # no HEAD, or a damaged one, is no reason to end: it may come back
                log.warning("lease not renewed", error=exc)
                await trio.to_thread.run_sync(_refresh, lease, abandon_on_cancel=True)
        if lease is not None and lease.fenced is not None:  # whoever found it out
            await self._saver.fence(lease.fenced)

    async def _time_to_renew(self) -> None:
        """Return after a while, or when others should know of a new state. The stop says itself what it does."""
        with trio.move_on_after(RENEW_SECONDS):
            while True:
                await self._saver.state_changed.wait()
                self._saver.state_changed = trio.Event()
                if self._saver.state in (State.RUNNING, State.SYNC_FAILED):
                    return

    def _moved(self) -> int:
        counts = self._stats.snapshot()
        return counts.bytes_out + counts.bytes_in

    def _free_space(self) -> tuple[int, int]:
        disk = os.statvfs(self._settings.cache_dir)
        return disk.f_bavail * disk.f_frsize, disk.f_favail or 1 << 20


def _refresh(lease: Lease) -> None:
    """Know HEAD again after a swap whose outcome is unknown; if that fails too, the next save finds out."""

    try:
        lease.refresh()
    except WsfsError as exc:
        log.warning("HEAD not read", error=exc)
