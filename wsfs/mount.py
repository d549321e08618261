"""One mount, from start to STOPPED: puts the layers together, and decides when to flush, save, renew and stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import pyfuse3
import trio

from wsfs import control
from wsfs.config import MountSettings
from wsfs.errors import (
    CacheError,
    FencedError,
    MountError,
    NeedRemote,
    StoreError,
    UsageError,
    WsfsError,
)
from wsfs.kernel import loop
from wsfs.kernel import mountpoint as mountpoints
from wsfs.kernel.fetcher import Fetcher
from wsfs.kernel.operations import Operations, View
from wsfs.notify import Notifier
from wsfs.repo.head import State
from wsfs.saver import Saver, on_owner
from wsfs.stop import Stopper
from wsfs.store.retry import RetryingStore
from wsfs.store.url import open_store
from wsfs.sync.commit import Committer, Saved
from wsfs.sync.evict import Evictor
from wsfs.sync.gc import Collector
from wsfs.sync.lease import RENEW_SECONDS, Lease, best_effort, this_process
from wsfs.sync.start import CacheDirectory, Workspace, open_workspace
from wsfs.tree.paths import Paths

log = logging.getLogger(__name__)

T = TypeVar("T")

STORE_TIMEOUT: Final = 60.0
"""For how long a request is repeated. A read waits twice as long, for it may have to wait for others as well."""
FLUSH_SECONDS: Final = 5.0
FLUSH_ROWS: Final = 50_000
CACHE_SECONDS: Final = 30.0
GARBAGE_SECONDS: Final = 30.0


def run(settings: MountSettings, ready: Callable[[], None], tell: Callable[[str], None] = lambda _notice: None) -> None:
    """Mount, serve until stopped, and push everything. `ready` is called once the mount answers, `tell` before that
    with what the user should know: what is waited for, what was recovered.

    Raises WsfsError: before `ready` when the mount was refused, and after it (SyncFailedError) when the last push
    failed; everything is kept in the cache directory then.
    """
    mountpoint = settings.mountpoint
    if not mountpoint.is_dir():
        raise UsageError(f"{mountpoint} is not a directory: make it first, with 'mkdir -p {mountpoint}'")
    patience = settings.store_timeout or STORE_TIMEOUT
    raw = open_store(
        settings.url,
        endpoint_url=settings.endpoint_url,
        addressing_style=settings.addressing_style,
        connect_timeout=min(20.0, patience / 2),
        read_timeout=min(30.0, patience / 2),
    )
    store = RetryingStore(raw, deadline=patience)

    def notice(message: str) -> None:
        log.warning("%s", message)
        tell(message)

    cache = CacheDirectory(settings.cache_dir, notice)
    clean = False
    try:
        cache.note(str(mountpoint), State.STARTING)
        cache_size = settings.cache_size or _default_cache_size(settings.cache_dir)
        workspace = open_workspace(
            store,
            cache,
            this_process(),
            takeover=settings.takeover,
            read_only=settings.read_only,
            cache_size=cache_size,
            tell=notice,
        )
        daemon = Daemon(settings, store, workspace, cache, cache_size, ready)
        try:
            daemon.run()
        finally:
            # Else it is left as after a kill, which loses nothing.
            if not daemon.abandoned:
                workspace.close()
                clean = True
    finally:
        cache.close(clean=clean)
        counts = store.stats.snapshot()
        log.info(
            "store: puts=%d gets=%d deletes=%d lists=%d bytes_out=%d bytes_in=%d retries=%d failures=%d",
            counts.puts,
            counts.gets,
            counts.deletes,
            counts.lists,
            counts.bytes_out,
            counts.bytes_in,
            counts.retries,
            counts.failures,
        )
        store.close()


def _default_cache_size(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize // 2


class Daemon:
    """The running mount. Everything but the work in threads happens on the trio thread, which owns the index."""

    def __init__(
        self,
        settings: MountSettings,
        store: RetryingStore,
        workspace: Workspace,
        cache: CacheDirectory,
        cache_size: int,
        ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._cache_size = cache_size
        self._ready = ready
        # Now, for it looks at the mount point: this thread must never do that once it is the one that answers there.
        self._socket = control.socket_path(settings.mountpoint)
        self._last_flushed = time.monotonic()
        self._finished = trio.Event()
        self._stops_asked = 0
        self._stop_answered = trio.Event()
        self._committer = (
            None
            if workspace.lease is None
            else Committer(store, workspace.index, workspace.overlay, workspace.lease, on_owner)
        )
        self._evictor = Evictor(workspace.index, workspace.overlay, workspace.packs)
        self._operations = Operations(
            workspace.names,
            workspace.files,
            workspace.index,
            Fetcher(2 * (settings.store_timeout or STORE_TIMEOUT)),
            view=View(settings.uid, settings.gid, settings.umask or 0),
            xattr=settings.xattr,
            free_space=self._free_space,
        )
        self._operations.read_only = settings.read_only
        self._saver = Saver(settings, cache, self._committer, self._evictor, self._operations)
        self._operations.make_room = self._saver.make_room
        self._stopper = Stopper(settings, workspace, self._saver, Notifier.from_environment(), pyfuse3.terminate)

    @property
    def abandoned(self) -> bool:
        """After `run`: whether a thread that nobody waits for still works on a commit, and with the index."""
        return self._saver.busy

    def run(self) -> None:
        """Serve until stopped. Raises MountError, SyncFailedError, FencedError."""
        try:
            pyfuse3.init(self._operations, str(self._settings.mountpoint), self._fuse_options())
        except RuntimeError as exc:
            self._give_back()
            raise MountError(
                f"{self._settings.mountpoint} could not be mounted: is /dev/fuse there, and may this user mount? The"
                " line before this one says more"
            ) from exc
        try:
            trio.run(self._main, strict_exception_groups=True)
        finally:
            pyfuse3.close(unmount=not self._stopper.unmounted.is_set())
        if self._stopper.failure is not None:
            raise self._stopper.failure

    def _give_back(self) -> None:
        lease = self._workspace.lease
        if lease is not None:
            best_effort(lambda: lease.release(State.STOPPED), lambda exc: log.warning("lease not given back: %s", exc))

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
        async with trio.open_nursery() as helpers:
            await helpers.start(self._serve_control, self._socket)
            # To the very end: a long last save must not look like a dead mount.
            helpers.start_soon(self._renew_lease)
            # Nor may another signal kill it.
            helpers.start_soon(self._watch_signals)
            async with trio.open_nursery() as tasks:
                tasks.start_soon(self._serve_kernel, tasks)
                tasks.start_soon(self._announce, tasks)
                tasks.start_soon(self._flush_index)
                tasks.start_soon(self._load_partitions)
                tasks.start_soon(self._keep_cache_small)
                if self._committer is not None:
                    tasks.start_soon(self._save_periodically)
                    tasks.start_soon(self._collect_garbage, self._committer)
            await self._stopper.finish()
            self._finished.set()
            # Whoever asked for the stop is answered before the socket goes: umount(8) may return long after us.
            while self._stops_asked:
                await self._stop_answered.wait()
            helpers.cancel_scope.cancel()

    async def _serve_control(self, path: Path, *, task_status: Any) -> None:
        await control.serve(path, self._answer, task_status=task_status)

    async def _serve_kernel(self, tasks: trio.Nursery) -> None:
        await loop.serve(self._others_wait)
        self._stopper.unmounted.set()
        tasks.cancel_scope.cancel()

    def _others_wait(self) -> bool:
        """Whether a request is waiting for a thread, and should go on as soon as that is done."""
        return self._operations.fetcher.busy or self._operations.syncing > 0

    async def _announce(self, tasks: trio.Nursery) -> None:
        """Say that the mount is ready, once it answers."""
        await trio.to_thread.run_sync(mountpoints.wait_until_it_answers, self._settings.mountpoint)
        self._saver.set_state(State.RUNNING)
        tasks.start_soon(self._stopper.watch_mount)
        await trio.to_thread.run_sync(mountpoints.tune, self._settings.mountpoint)
        await trio.to_thread.run_sync(self._ready)
        log.info("mounted: url=%s mountpoint=%s", self._settings.url, self._settings.mountpoint)

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if self._stopper.unmounted.is_set():
                    log.info("stopping already, the last save goes on: signal=%s", signal.Signals(number).name)
                    continue
                log.info("stopping: signal=%s", signal.Signals(number).name)
                try:
                    await self._stopper.stop(force=True, deadline=self._settings.stop_deadline)
                except WsfsError as exc:
                    log.error("stop: %s", exc)

    async def _flush_index(self) -> None:
        index = self._workspace.index
        while True:
            await trio.sleep(1.0)
            due = time.monotonic() - self._last_flushed > FLUSH_SECONDS and index.pending_rows
            if index.pending_rows > FLUSH_ROWS or due:
                try:
                    index.rotate()
                    await trio.to_thread.run_sync(index.flush)
                except CacheError as exc:
                    log.error("index not flushed, the journal keeps everything: %s", exc)
                self._last_flushed = time.monotonic()

    async def _load_partitions(self) -> None:
        """All metadata, in the background: later requests then wait for nothing but file data."""
        while refs := self._workspace.index.unloaded():
            for ref in refs:
                need = NeedRemote({("part", ref.key, ref.start): lambda ref=ref: self._workspace.loader.load(ref)})
                try:
                    await self._operations.fetcher.satisfy(need)
                except WsfsError as exc:
                    log.warning("metadata not loaded, trying again later: %s", exc)
                    await trio.sleep(10)
                    break

    async def _keep_cache_small(self) -> None:
        pause = CACHE_SECONDS
        while True:
            await trio.sleep(pause)
            began = trio.current_time()
            try:
                await self._evictor.shrink(self._cache_size)
            except CacheError as exc:
                log.warning("cache not shrunk: %s", exc)
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
                # Files that stay open: what the kernel has not sent yet belongs to the save as well.
                await trio.to_thread.run_sync(mountpoints.hand_over, self._settings.mountpoint)
                await self._saver.save(State.RUNNING)
            except WsfsError as exc:
                log.error("background save failed, everything is kept here and tried again: %s", exc)

    async def _collect_garbage(self, committer: Committer) -> None:
        lease, index = self._workspace.lease, self._workspace.index
        assert lease is not None

        def stopping() -> bool:
            return self._saver.state not in (State.RUNNING, State.SYNC_FAILED) or self._stopper.unmounted.is_set()

        collector = Collector(self._store, index, lease, on_owner, committer, stopping=stopping)
        while True:
            await trio.sleep(GARBAGE_SECONDS)
            if collector.due() and not stopping():
                try:
                    log.info("garbage collected: %s", await trio.to_thread.run_sync(collector.collect))
                except WsfsError as exc:
                    log.warning("garbage not collected, it is tried again later: %s", exc)

    async def _renew_lease(self) -> None:
        """Tell others that this mount lives. A failure is not fatal: only politeness depends on it."""
        lease = self._workspace.lease
        while lease is not None and lease.fenced is None:
            await trio.sleep(RENEW_SECONDS)
            try:
                await trio.to_thread.run_sync(lease.renew, self._saver.state, abandon_on_cancel=True)
            except FencedError as exc:
                await self._saver.fence(exc)
            except StoreError as exc:
                log.warning("lease not renewed: %s", exc)
                await trio.to_thread.run_sync(_refresh, lease, abandon_on_cancel=True)

    # --- telling --------------------------------------------------------------------------------------------------

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = request.get("op")
        if operation == "status":
            return self._status()
        if operation == "sync":
            return _account(await self._saver.save(State.RUNNING), self._workspace.index.standing)
        if operation == "unsaved":
            return {"ok": True, "paths": [os.fsdecode(path) for path in await self._unsaved()]}
        if operation == "stop":
            self._stops_asked += 1
            try:
                await self._stopper.stop(force=False, deadline=_seconds(request.get("deadline")))
                await self._finished.wait()
            finally:
                self._stops_asked -= 1
                self._stop_answered.set()
            if self._stopper.failure is not None:
                raise self._stopper.failure
            return _account(self._stopper.outcome, self._workspace.index.standing)
        raise UsageError(f"the daemon knows no request {operation!r}: is it older than this command?")

    async def _unsaved(self) -> list[bytes]:
        """The paths of all that is not saved."""
        await trio.to_thread.run_sync(mountpoints.hand_over, self._settings.mountpoint)
        while True:
            try:
                paths = Paths(self._workspace.index)
                return [path for ino in self._workspace.index.dirty_inodes if (path := paths.of(ino))]
            except NeedRemote as need:
                await self._operations.fetcher.satisfy(need)

    def _status(self) -> dict[str, Any]:
        workspace = self._workspace
        head = workspace.lease.head if workspace.lease is not None else workspace.head.head
        age = time.time() - self._saver.last_saved
        return {
            "ok": True,
            "state": self._saver.state.value,
            "reason": self._saver.reason,
            "url": self._settings.url,
            "mountpoint": str(self._settings.mountpoint),
            "cache_dir": str(self._settings.cache_dir),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "epoch": head.epoch,
            "seq": head.seq,
            "unsaved_files": len(workspace.index.dirty_inodes),
            "unsaved_bytes": workspace.files.unsaved_bytes(),
            "last_save": head.saved_at,
            "last_save_age": age,
            "cache_used": workspace.packs.size + self._evictor.overlay_size,
            "cache_limit": self._cache_size,
            "files": workspace.index.files,
            "bytes": workspace.index.bytes,
        }

    def _free_space(self) -> tuple[int, int]:
        disk = os.statvfs(self._settings.cache_dir)
        return disk.f_bavail * disk.f_frsize, disk.f_favail or 1 << 20


def _seconds(value: object) -> float | None:
    """The deadline of a request. Raises UsageError."""
    if value is None:
        return None
    if not isinstance(value, int | float) or value <= 0:
        raise UsageError(f"{value!r} is not a deadline: it must be a positive number of seconds")
    return float(value)


def _refresh(lease: Lease) -> None:
    """Know HEAD again after a swap whose outcome is unknown; if that fails too, the next save finds out."""

    def read() -> None:
        lease.refresh()

    best_effort(read, lambda exc: log.warning("HEAD not read: %s", exc))


def _account(saved: Saved | None, standing: Any) -> dict[str, Any]:
    """What a command tells the user about a save."""
    if saved is None:
        seq = standing.seq if standing is not None else 0
        return {"ok": True, "files": 0, "bytes": 0, "sent": 0, "seconds": 0.0, "seq": seq, "requests": 0}
    return {
        "ok": True,
        "files": saved.files,
        "bytes": saved.bytes,
        "sent": saved.sent,
        "seconds": saved.seconds,
        "seq": saved.seq,
        "requests": saved.puts,
    }
