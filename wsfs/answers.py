"""What a mount answers to commands: the requests of its control socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, TypeVar

import trio

from wsfs.aside import about, aside_in
from wsfs.collecting import Collecting
from wsfs.config import MountSettings
from wsfs.errors import UsageError
from wsfs.follower import Follower
from wsfs.kernel import mountpoint as mountpoints
from wsfs.kernel.operations import Operations
from wsfs.remote import NeedRemote
from wsfs.repo.head import Head, State
from wsfs.report import AT_ONCE, Report
from wsfs.rewind import REQUESTS, Rewind
from wsfs.saver import Saver
from wsfs.stats import Stats
from wsfs.stop import Stopper
from wsfs.store.base import Store
from wsfs.sync.commit import Saved
from wsfs.sync.evict import Evictor
from wsfs.sync.progress import UPLOAD
from wsfs.sync.start import Workspace
from wsfs.tree.paths import Paths
from wsfs.usage import usage

T = TypeVar("T")

_DEADLINE_MAX: Final = 10 * 365 * 86400.0


class Answers:
    """Belongs to the trio thread."""

    def __init__(
        self,
        settings: MountSettings,
        store: Store,
        workspace: Workspace,
        cache_size: int,
        *,
        saver: Saver,
        stopper: Stopper,
        report: Report,
        counters: Stats,
        rewind: Rewind,
        collecting: Collecting,
        follower: Follower,
        operations: Operations,
        evictor: Evictor,
    ) -> None:
        self._settings = settings
        self._store = store
        self._workspace = workspace
        self._cache_size = cache_size
        self._saver = saver
        self._stopper = stopper
        self._report = report
        self._counters = counters
        self._rewind = rewind
        self._collecting = collecting
        self._follower = follower
        self._operations = operations
        self._evictor = evictor
        self._finished = trio.Event()
        self._stops_asked = 0
        self._stop_answered = trio.Event()

    async def to(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer, once it is known. Raises WsfsError."""
        operation = request.get("op")
        if operation == "status":
            return self._status()
        if operation == "stats":
            return self._counters.snapshot()
        if operation == "sync":
            await self._operations.under_way.wait()
            saved = await self._saver.save(State.RUNNING)
            self._settle(request)
            return self._account(saved)
        if operation == "refresh":
            if self._settings.at is not None:
                raise UsageError(f"{self._settings.mountpoint} shows one save point for as long as it is mounted")
            return await self._follower.follow()
        if operation == "unsaved":
            if request.get("details"):
                found = await self._here(self._report.unsaved)
                return {"state": self._saver.state.value, "unsaved": found, **self._report.kept()}
            return {"ok": True, "paths": [os.fsdecode(path) for path in await self._unsaved()]}
        if operation == "gc":
            return await self._collecting.answer(dry_run=request.get("dry_run") is True)
        if operation == "stays":
            path = request.get("path")
            if not isinstance(path, str):
                raise UsageError('the request must have a text in "path"')

            async def stays() -> bool | None:
                return self._report.stays(os.fsencode(path))

            return {"ok": True, "stays": await self._here(stays)}
        if operation == "usage":
            return await trio.to_thread.run_sync(usage, self._store, abandon_on_cancel=True)
        if operation in REQUESTS:
            return await self._rewind.answer(request)
        if operation == "stop":
            return await self._stop(request)
        raise UsageError(f"the daemon knows no request {operation!r}: is it older than this command?")

    async def stopped(self) -> None:
        """The stop has come to its end: return when all who asked for it know."""
        self._finished.set()
        while self._stops_asked:
            await self._stop_answered.wait()

    def _settle(self, request: dict[str, Any]) -> None:
        """Whoever asks has had the kernel hand over what it had, and says what that has complained of. Raises
        SyncFailedError."""
        kernel = request.get("kernel")
        if not self._operations.read_only:
            self._operations.refusals.settle(kernel if isinstance(kernel, str) else "")

    async def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        deadline = _seconds(request.get("deadline"))
        if deadline is None:
            self._settle(request)
        self._stops_asked += 1
        try:
            await self._stopper.stop(
                force=False,
                deadline=deadline,
                handed_over=request.get("handed_over") is True,
            )
            await self._finished.wait()
        finally:
            self._stops_asked -= 1
            self._stop_answered.set()
            self._stop_answered = trio.Event()
        if self._stopper.failure is not None:
            raise self._stopper.failure
        return self._account(self._stopper.outcome)

    async def _unsaved(self) -> list[bytes]:
        """The paths of all that is not saved, what stays on this machine included."""
        await trio.to_thread.run_sync(mountpoints.hand_over, self._settings.mountpoint)
        index = self._workspace.index

        async def look() -> list[bytes]:
            paths = Paths(index)
            found = []
            for number, ino in enumerate(index.dirty_inodes.union(index.kept.sizes)):
                if number % AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
                if path := paths.of(ino):
                    found.append(path)
            return found

        return await self._here(look)

    async def _here(self, look: Callable[[], Awaitable[T]]) -> T:
        """What `look` returns once it finds all that it needs here."""
        while True:
            try:
                return await look()
            except NeedRemote as need:
                await self._operations.fetcher.satisfy(need)

    @property
    def _head(self) -> Head:
        """HEAD as this mount knows it."""
        lease = self._workspace.lease
        return lease.head if lease is not None else self._workspace.head.head

    def _account(self, saved: Saved | None) -> dict[str, Any]:
        """What a command tells the user about a save: docs/JSON.md."""
        if saved is None:
            saved = Saved(self._head.seq, 0, 0, 0, 0, 0.0)
        return {
            "ok": True,
            "state": self._saver.state.value,
            "direction": UPLOAD,
            "total": saved.files + saved.left,
            "processed": saved.files + saved.left,
            "completed": saved.files,
            "skipped": saved.left,
            "failed": 0,
            "transferredBytes": saved.sent,
            "files": saved.files,
            "bytes": saved.bytes,
            "sent": saved.sent,
            "seconds": saved.seconds,
            "seq": saved.seq,
            "saved_at": self._head.saved_at,
            "requests": saved.puts,
            **self._report.kept(),
        }

    def _status(self) -> dict[str, Any]:
        workspace = self._workspace
        head = self._head
        return {
            "ok": True,
            "state": self._saver.state.value,
            "reason": self._saver.reason,
            "url": self._settings.url,
            "mountpoint": str(self._settings.mountpoint),
            "cache_dir": str(self._settings.cache_dir),
            "read_only": self._settings.read_only,
            "follow": self._settings.follow,
            "at": self._settings.at,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "epoch": head.epoch,
            "seq": head.seq,
            **self._report.forecast(),
            "last_save": head.saved_at,
            "last_save_age": _age(head.saved_at),
            "cache_used": self._evictor.used,
            "cache_limit": self._cache_size,
            "files": workspace.index.files,
            "bytes": workspace.index.bytes,
            "quota": self._settings.quota,
            "quota_files": self._settings.quota_files,
            "recovered": workspace.recovered,
            "notice": self._notice(),
        }

    def _notice(self) -> str:
        """All that a user should know, each on a line of its own."""
        settings = self._settings
        aside = about(aside_in(settings.cache_dir), settings.url)
        return "\n".join(filter(None, (self._workspace.missing, self._rewind.notice, aside)))


def _seconds(value: object) -> float | None:
    """The deadline of a request. Raises UsageError."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 < value < _DEADLINE_MAX:
        raise UsageError(f"{value!r} is not a deadline: it must be a positive number of seconds")
    return float(value)


def _age(when: str) -> float | None:
    """Seconds since a moment that HEAD names, None if that is no time; clocks of other hosts may be ahead of ours."""
    try:
        return max(0.0, time.time() - datetime.fromisoformat(when).timestamp())
    except ValueError:
        return None
