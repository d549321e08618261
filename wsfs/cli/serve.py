"""Being the daemon of a mount, from its checks to the last save; tells systemd, whoever started it, and the record."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from wsfs import control
from wsfs.cli import daemon, mounts
from wsfs.config import MountSettings
from wsfs.errors import DeadlineError, NoWorkspaceError, SyncFailedError, UsageError
from wsfs.log import REPORT, get_log
from wsfs.logfile import set_up
from wsfs.notify import Notifier

log = get_log(__name__)

COLLECTIONS: Final = (20_000, 5, 1_000)
"""How rarely Python looks for garbage in cycles, of which a daemon makes next to none: among new records after so many,
among all as good as never. To look through what a save of 25,000 files had made took 35 ms, in which no request was
answered."""


class Reporter:
    """The daemon's end of the pipe; does nothing without one. A parent that is gone does not matter."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def status(self, message: str) -> None:
        """What the start is waiting for."""
        self._send({"status": message})

    def ready(self) -> None:
        """The mount answers; nothing is reported after this."""
        self._send({"ready": True}, last=True)

    def error(self, message: str, exit_code: int) -> None:
        """The start has failed; nothing is reported after this."""
        self._send({"error": message, "exit_code": exit_code}, last=True)

    def _send(self, message: dict[str, Any], *, last: bool = False) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        if last:
            os.close(self._descriptor)
            self._descriptor = None


def refuse_overlap(settings: MountSettings) -> None:
    """A cache in the store would be taken for objects, and a store in the cache for something that may go. Raises
    UsageError."""
    if not settings.url.startswith("file:"):
        return
    from wsfs.store.url import parse_file_url

    store, cache = os.path.realpath(parse_file_url(settings.url)), os.path.realpath(settings.cache_dir)
    if os.path.commonpath([store, cache]) in (store, cache):
        raise UsageError(
            f"the cache directory {settings.cache_dir} and the store {store} must not lie in each other: choose another"
            " with --cache-dir"
        )


@contextlib.contextmanager
def no_cache_without_workspace(directory: Path) -> Iterator[None]:
    """A cache directory that is made meanwhile goes again if there is no workspace: each mistyped URL has its own."""
    there = directory.exists()
    try:
        yield
    except NoWorkspaceError:
        if not there:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def serve(settings: MountSettings, reporter: Reporter, log_file: Path | None = None) -> int:
    """Be the daemon; returns the exit code, 0 after a stop that saved everything. The log goes to stderr without
    `log_file`. A KeyboardInterrupt is raised again, and so is everything where a person reads stderr.
    """
    about = {"workspace": settings.url, "mountpoint": str(settings.mountpoint)}
    set_up(settings.log_format, about, file=log_file)
    notifier = Notifier.from_environment()
    where = settings.mountpoint
    known = {"url": settings.url, "cache_dir": str(settings.cache_dir), "pid": os.getpid()}

    def waiting(message: str) -> None:
        log.info("waiting", text=message)
        progress(message)

    def progress(message: str) -> None:
        reporter.status(message)
        notifier.extend_timeout(3600, message)  # its end depends on a store, which has its own deadlines

    def ready() -> None:  # called from a thread that does not serve the mount: it may wait for it
        gc.freeze()  # modules, for the most part: nothing of them ever becomes garbage
        gc.set_threshold(*COLLECTIONS)
        gc.enable()
        mounts.register(settings.url, where)
        control.write_record(where, known | {"state": "RUNNING"})
        reporter.ready()
        notifier.ready(f"{settings.url} is mounted on {where}")

    gc.disable()  # what a start makes stays, and it would be looked through a dozen times
    ours = False  # a living mount that is there already has its own record
    try:
        refuse_overlap(settings)
        mounts.check(where, allow_other=settings.allow_other)
        ours = True
        if mounts.find_wsfs(where) is not None:
            mounts.unmount(where, "-l")
            log.info("took away the mount of a daemon that had died", path=where)
        daemon.wait_for_predecessor(where, waiting)
        from wsfs.mount import run

        with no_cache_without_workspace(settings.cache_dir):
            run(settings, ready, progress)
    except BaseException as exc:
        # Nothing here may touch the mount: if it is still there, this process would have to answer.
        error = control.as_wsfs_error(exc)
        reason = control.sentence(error) if error is not None else f"internal error: {type(exc).__name__}: {exc}"
        code = error.exit_code if error is not None else 1
        if error is not None:
            log.error("ended", exit_code=code, error=error)
            log.debug("ended here", exc_info=exc)
        elif not isinstance(exc, KeyboardInterrupt):
            log.error("ended", exit_code=code, error=reason, remedy=REPORT, exc_info=exc)
        state = "SYNC_FAILED" if isinstance(error, SyncFailedError) else "ERROR"
        if ours:
            control.write_record(where, known | {"state": state, "reason": reason, "exit_code": code})
        reporter.error(reason, code)
        notifier.status(reason)
        if isinstance(error, DeadlineError):
            # Threads may wait for the store still, and Python would wait for them. Nothing here needs to be tidied up.
            logging.shutdown()
            os._exit(code)
        if isinstance(exc, KeyboardInterrupt) or sys.stderr.isatty():
            raise
        return code  # who reads the log has read it
    control.write_record(where, known | {"state": "STOPPED"})
    return 0
