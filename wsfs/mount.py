"""One mount, from start to STOPPED: opens the workspace, has it served, and gives it back.

A good part of a start is importing what serves the mount: trio, pyfuse3, and many modules of ours. That happens while
the store is asked, so nothing here may import any of that before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Final

from wsfs.config import STORE_TIMEOUT, MountSettings
from wsfs.data.ballast import Ballast
from wsfs.disk import free_space, is_full
from wsfs.errors import CacheError, CacheFullError, UsageError, WsfsError
from wsfs.log import get_log
from wsfs.logfile import no_room
from wsfs.repo.encryption import wrapper_for
from wsfs.repo.fork import open_whole
from wsfs.repo.head import State
from wsfs.repo.workspace import read_id
from wsfs.store.base import Prepares, Store
from wsfs.store.retry import RetryingStore
from wsfs.store.url import open_store
from wsfs.sync.lease import best_effort, this_process
from wsfs.sync.start import CacheDirectory, open_workspace, refused

log = get_log(__name__)

_LEAST_ROOM: Final = 1 << 20
"""For the index and the journal of a new cache."""


def run(settings: MountSettings, ready: Callable[[], None], tell: Callable[[str], None] = lambda _notice: None) -> None:
    """Mount, serve until stopped, and push everything. `ready` is called once the mount answers, `tell` before that
    with what the user should know: what is waited for, what was recovered.

    Raises WsfsError: before `ready` when the mount was refused, and after it (SyncFailedError) when the last push
    failed; everything is kept in the cache directory then.
    """
    mountpoint = settings.mountpoint
    if not mountpoint.is_dir():
        raise UsageError(f"{mountpoint} is not a directory: make it first, with 'mkdir -p {mountpoint}'")
    _keep_apart(settings)
    patience = settings.store_timeout or STORE_TIMEOUT

    def bare(url: str) -> Store:
        return open_store(
            url,
            endpoint_url=settings.endpoint_url,
            addressing_style=settings.addressing_style,
            connect_timeout=min(20.0, patience / 2),
            read_timeout=min(30.0, patience / 2),
        )

    def opened(url: str) -> RetryingStore:
        return RetryingStore(bare(url), deadline=patience)

    raw = bare(settings.url)
    store = RetryingStore(raw, deadline=patience)
    wrapper = wrapper_for(settings.key_file, settings.kms_key)

    def notice(message: str) -> None:
        log.warning("notice", text=message)
        tell(message)

    if settings.url.startswith("file:"):
        read_id(store)  # the probe would make the directory of a mistyped URL, and a look at this one costs nothing
    with _enough_room(settings.cache_dir):
        cache = CacheDirectory(settings.cache_dir, notice)
    clean = abandoned = False
    try:
        with _enough_room(settings.cache_dir):
            if free_space(settings.cache_dir) < _LEAST_ROOM:
                # What the last mount has reserved is enough to start with; then copies are dropped.
                Ballast(settings.cache_dir, restore=False).release()
            cache.note(str(mountpoint), State.STARTING)
            if not cache.local.exists():
                _look_for_room(settings.cache_dir)
            cache_size = settings.cache_size or _default_cache_size(settings.cache_dir)
            Thread(target=_import_daemon, args=(raw,), name="wsfs-import", daemon=True).start()
            whole = open_whole(store, wrapper, opened)
            workspace = open_workspace(
                whole,
                cache,
                this_process(cache=cache.lock_id),
                takeover=settings.takeover,
                read_only=settings.read_only,
                at=settings.at,
                cache_size=cache_size,
                tell=notice,
            )
        if workspace.missing:
            notice(workspace.missing)
        try:
            from wsfs.daemon import Daemon  # waits until the thread is done with it
        except ImportError as exc:
            lease = workspace.lease
            state, reason = refused(workspace.head.head, str(exc), workspace.missing)
            if lease is not None:
                best_effort(lambda: lease.release(state, reason), lambda _failed: None)
            raise
        daemon = Daemon(settings, whole, store.stats, workspace, cache, cache_size, ready)
        try:
            daemon.run()
        finally:
            # Then it is left as after a kill, which loses nothing.
            abandoned = daemon.abandoned
            if not abandoned:
                workspace.close()
                clean = True
    finally:
        # Whoever has the lock next relies on it that nothing of us can write. Of a thread that is still at work that is
        # true when the process has ended.
        if not abandoned:
            cache.close(clean=clean)
        counts = store.stats.snapshot()
        log.info(
            "requests to the store",
            puts=counts.puts,
            gets=counts.gets,
            deletes=counts.deletes,
            lists=counts.lists,
            bytes_out=counts.bytes_out,
            bytes_in=counts.bytes_in,
            retries=counts.retries,
            failures=counts.failures,
        )
        store.close()


def _keep_apart(settings: MountSettings) -> None:
    """Raise UsageError for what would lie below the mount point: the mount would wait for itself."""
    places = [("cache directory", settings.cache_dir, "choose another with -o cache_dir=DIR")]
    if settings.url.startswith("file://"):
        places.append(("store", Path(settings.url.removeprefix("file://")), "mount it on another directory"))
    top = Path(os.path.realpath(settings.mountpoint))
    for what, place, remedy in places:
        if Path(os.path.realpath(place)).is_relative_to(top):
            raise UsageError(f"the {what} {place} is inside the mount point {settings.mountpoint}: {remedy}")


@contextmanager
def _enough_room(cache_dir: Path) -> Iterator[None]:
    """A full cache disk keeps a mount from starting, and no save will make room: so there is another remedy."""
    try:
        yield
    except (CacheError, OSError) as exc:
        cause = exc if isinstance(exc, OSError) else exc.__cause__
        full = isinstance(cause, OSError) and is_full(cause)
        if not (full or isinstance(exc, CacheFullError)):
            raise
        raise CacheFullError(no_room(cache_dir)) from exc


def _look_for_room(cache_dir: Path) -> None:
    """An index is written through memory: on a full disk its first pages would end the process, without a word."""
    if free_space(cache_dir) < _LEAST_ROOM:
        raise CacheFullError()


def _import_daemon(store: Store) -> None:
    """What the mount needs once the workspace is open, as soon as requests to the store are under way: before that it
    would only keep them waiting."""
    if isinstance(store, Prepares):
        with suppress(WsfsError):  # whoever makes a request is told
            store.prepare()
    with suppress(ImportError):  # likewise
        import_module("wsfs.daemon")


def _default_cache_size(directory: Path) -> int:
    disk = os.statvfs(directory)
    return disk.f_blocks * disk.f_frsize // 2
