"""From a URL and a cache directory to an open workspace: the lease, what the cache is worth, and its repair."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final
from uuid import UUID

from wsfs.aside import command
from wsfs.data.files import Files
from wsfs.data.overlay import Overlay
from wsfs.data.packcache import PackCache
from wsfs.disk import sync_directory
from wsfs.errors import (
    CacheError,
    ForeignWorkspaceError,
    LeaseHeldError,
    MarkerError,
    NoWorkspaceError,
    WsfsError,
)
from wsfs.index.base import drop_pending
from wsfs.index.index import Batch, Index
from wsfs.model import MARKER_INO, MARKER_NAME, ROOT_INO, Ino
from wsfs.remote import fetch_all
from wsfs.repo import codec
from wsfs.repo.head import Head, HeadVersion, Holder, State, read_head
from wsfs.repo.manifest import Manifest
from wsfs.repo.workspace import Format, read_format
from wsfs.store.base import Store
from wsfs.store.probe import PROBE_KEY, check_conditional_writes
from wsfs.sync.history import as_of, find, save_points
from wsfs.sync.lease import Lease, best_effort, boot_id, wait_for
from wsfs.sync.load import Loader, read_manifest
from wsfs.sync.recover import Recovery, left_elsewhere, lost_in, set_damaged_aside, unsaved_in
from wsfs.tree.namespace import Namespace

Tell = Callable[[str], None]
Reached = Callable[[str], None]

STEPS: Final = (
    "locked",
    "replayed",
    "leased",
    "settled",
    "set aside",
    "emptied",
    "standing",
    "swept",
    "demoted",
    "verified",
)
"""What `reached` is called with, in this order; steps that have nothing to do are left out."""

PATIENCE: Final = 5.0
"""How long a mount waits for a holder that shows no sign of stopping: it may have been unmounted just now."""


class CacheDirectory:
    """The local directory of one workspace, locked: one daemon at a time. Raises CacheError, LeaseHeldError."""

    def __init__(self, path: Path, tell: Tell, sleep: Callable[[float], None] = time.sleep) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise CacheError(
                f"the cache directory {path} cannot be used ({exc.strerror}): name another with --cache-dir"
            ) from exc
        self._wait(tell, sleep)
        self.local = path / "local"
        """Index, journal and overlay. What else is here can be fetched again."""
        self._clean = path / "clean"
        self._boot = path / "boot"
        self.crashed = self._boot.exists() and not self._clean.exists()
        """Whether the last daemon here did not close it in order."""
        self.rebooted = self._boot.exists() and self._boot.read_text() != self._here()
        """Whether the machine was started anew since it was last found in order, or this is a copy of it."""
        self._clean.unlink(missing_ok=True)

    @property
    def lock_id(self) -> str:
        """What tells our lock from that of every other cache directory, a copy of this one included, for as long as
        somebody has it: the number of its file."""
        status = os.fstat(self._lock)
        return f"{status.st_dev:x}:{status.st_ino:x}"

    def repaired(self) -> None:
        """What a reboot may have left is in order now. A start that fails must not hide it from the next one."""
        try:
            self._boot.write_text(self._here())
        except OSError as exc:
            # On a full disk an old or an empty note does as well. Without any, no crash would show.
            if not self._boot.exists():
                raise CacheError(f"the cache directory {self.path} cannot be used: {exc.strerror}") from exc

    def _here(self) -> str:
        """This boot of this machine, and this very directory: a copy of a living cache may be torn as well."""
        return f"{boot_id()} {self.path.stat().st_ino}"

    def set_aside(self, kind: str) -> Path:
        """Give what is in `local` a name that says when, and that nothing else has. Raises CacheError.

        One rename: a crash leaves all of it here, or all of it there.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        names = (f"{kind}-{stamp}" + (f"-{number}" if number > 1 else "") for number in count(1))
        aside = next(path for path in map(self.path.joinpath, names) if not path.exists())
        try:
            self.local.rename(aside)
            sync_directory(self.path)  # what comes in its place must not become durable before it
        except OSError as exc:
            raise CacheError(
                f"{self.local} cannot be set aside ({exc.strerror}): free the cache disk, or mount with"
                " another --cache-dir"
            ) from exc
        return aside

    def _wait(self, tell: Tell, sleep: Callable[[float], None]) -> None:
        told = False
        waited = 0.0
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note = self._read_note()
                if note.get("state") != State.STOPPING and waited >= PATIENCE:
                    os.close(self._lock)
                    raise LeaseHeldError(
                        f"the cache directory {self.path} is in use by process {note.get('pid', '?')}, which has the"
                        f" workspace mounted at {note.get('mountpoint', '?')}: 'wsfs umount' that first; beside it"
                        " only another workspace can be mounted, or this one read-only, with another --cache-dir"
                    ) from None
                if not told and waited >= 0.5:
                    stopping = note.get("state") == State.STOPPING
                    mount = f"mount at {note.get('mountpoint', '?')} to end"
                    tell(f"waiting for the {'previous mount to finish saving' if stopping else mount}")
                    told = True
                sleep(0.1)
                waited += 0.1
            else:
                return

    def note(self, mountpoint: str, state: State) -> None:
        """Tell whoever wants this directory who has it, and whether waiting is worth it."""
        data = json.dumps({"pid": os.getpid(), "mountpoint": mountpoint, "state": state}).encode()
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, data, 0)

    def _read_note(self) -> dict[str, object]:
        try:
            note = json.loads(os.pread(self._lock, 4096, 0))
        except ValueError:
            return {}
        return note if isinstance(note, dict) else {}

    def close(self, *, clean: bool) -> None:
        """Give it up; `clean` says that everything in it is in order and on disk, or will be."""
        if clean:
            with suppress(OSError):  # on a full disk: then the next start looks more closely
                self._clean.touch()
        os.close(self._lock)


@dataclass(slots=True)
class Workspace:
    """An open workspace: everything a mount works with. `lease` is None for a read-only one."""

    format: Format
    head: HeadVersion
    lease: Lease | None
    index: Index
    overlay: Overlay
    packs: PackCache
    files: Files
    names: Namespace
    loader: Loader
    recovered: str = ""
    """What was restored after a crash, and what was not, on one line; "" if there was no crash."""
    missing: str = ""
    """What the mount before this one has kept elsewhere, on one line; "" if nothing."""

    def close(self) -> None:
        """Everything local is on disk afterwards. Raises CacheError."""
        self.index.close()
        self.overlay.close()


def open_workspace(
    store: Store,
    cache: CacheDirectory,
    me: Holder,
    *,
    takeover: bool = False,
    read_only: bool = False,
    at: str | None = None,
    cache_size: int,
    tell: Tell,
    reached: Reached = lambda _step: None,
) -> Workspace:
    """Verify the workspace at the store, take its lease, and bring the cache up to it; or, read only, up to the save
    point `at`.

    Raises NoWorkspaceError, ForeignWorkspaceError, FormatError, MarkerError, UnsafeStoreError, LeaseHeldError,
    StoreError, CacheError; the lease is given back then.
    """
    reached("locked")
    with ThreadPoolExecutor(4) as pool:
        probing = None if read_only else pool.submit(check_conditional_writes, store)
        reading = pool.submit(read_format, store)
        heading = pool.submit(read_head, store)
        try:
            fmt = reading.result()
            version = heading.result()
        except NoWorkspaceError:
            # The probe has left an object where there is nothing else: take it away again.
            best_effort(lambda: _forget_probe(store, probing), lambda _failed: None)
            raise
        if probing is not None:
            probing.result()
    if version.head.workspace != fmt.workspace_id:
        raise ForeignWorkspaceError(f"HEAD and FORMAT at {store.url} belong to different workspaces")
    if at is not None:
        assert read_only
        version = as_of(store, version, find(save_points(store), at))
    local = _Local(cache, reached)
    try:
        reached("replayed")
        if read_only:
            return local.open(store, fmt, version, None, cache_size, tell)
        patience = 0.0 if takeover else PATIENCE
        version = wait_for(store, version, me, patience=patience, insist=takeover, tell=tell)
        with ThreadPoolExecutor(1) as pool:
            # Side by side with the swap: a mount that is refused has read one object too many.
            manifest = None if local.may_stand_on(version) else pool.submit(read_manifest, store, version.head)
            lease = Lease.take(store, version, me, takeover=takeover)
            try:
                reached("leased")
                return local.open(store, fmt, version, lease, cache_size, tell, manifest, me)
            except WsfsError as exc:
                missing = local.stays(me) or left_elsewhere(version.head, me, crashed=cache.crashed, unsaved=False)
                state, reason = refused(version.head, str(exc), missing)
                best_effort(lambda: lease.release(state, reason), lambda _failed: None)
                raise
    except BaseException:
        local.close()
        raise


def refused(before: Head, reason: str, missing: str) -> tuple[State, str]:
    """What HEAD says after a start that was refused. That has changed nothing: what HEAD has warned of, and what else
    is `missing` in the store, is so still."""
    if before.state == State.SYNC_FAILED:
        return before.state, before.reason
    return (State.SYNC_FAILED, f"{reason}; {missing}") if missing else (State.ERROR, reason)


def stays_in(cache: Path, host: str) -> str:
    """For HEAD: where it is that is not in the store."""
    return f"what was not saved stays in {cache} on {host}, and the next mount with this cache saves it"


def _forget_probe(store: Store, probing: Future[None] | None) -> None:
    if probing is not None and probing.exception() is None and not any(store.list("FORMAT")):
        store.delete(PROBE_KEY)


class _Local:
    """What the cache directory holds, on its way to become a workspace."""

    def __init__(self, cache: CacheDirectory, reached: Reached) -> None:
        self._cache = cache
        self._reached = reached
        self._recovery = Recovery(power_lost=cache.crashed and cache.rebooted)
        if self._recovery.power_lost:
            self._recovery.aside = set_damaged_aside(cache.local, cache.set_aside)
        try:
            self._attach()
        except CacheError:
            # Damaged by something else, or is it only that nothing can be written here?
            aside = set_damaged_aside(cache.local, cache.set_aside)
            if aside is None:
                raise
            self._recovery.aside = aside
            self._attach()

    def _attach(self) -> None:
        self._cache.local.mkdir(mode=0o700, exist_ok=True)
        self._overlay = Overlay(self._cache.local)
        self._index = Index(self._cache.local, UUID(boot_id()).bytes, self._overlay.sync)

    def stays(self, me: Holder) -> str:
        """Where the changes are that are only here; "" if there are none."""
        return stays_in(self._cache.path, me.host) if self._index.is_dirty else ""

    def close(self) -> None:
        """The mount is refused: leave everything as it is."""
        with suppress(CacheError):
            self._index.close()
        self._overlay.close()

    def may_stand_on(self, version: HeadVersion) -> bool:
        """Whether the rows build on HEAD, or on a commit that we died in and that is HEAD. Changes nothing: before the
        lease is taken the swap that we died in may still arrive."""
        standing, pending = self._index.standing, self._index.pending
        commits = [standing.commit] if standing is not None else []
        return version.head.commit in (commits if pending is None else [*commits, pending.standing.commit])

    def open(
        self,
        store: Store,
        fmt: Format,
        version: HeadVersion,
        lease: Lease | None,
        cache_size: int,
        tell: Tell,
        manifest: Future[Manifest] | None = None,
        me: Holder | None = None,
    ) -> Workspace:
        """Bring the rows up to HEAD, repair what a crash has left, and verify the marker."""
        loader = Loader(store, self._index)
        stands = _settle(self._index, store, fmt, version, leased=lease is not None)
        if self._recovery.power_lost and self._recovery.aside is None:
            self._recovery.lost = lost_in(self._index, self._overlay)
        self._reached("settled")
        unsaved = stands and self._index.is_dirty
        missing = "" if me is None else left_elsewhere(version.head, me, crashed=self._cache.crashed, unsaved=unsaved)
        if not stands:
            if self._index.is_dirty or self._index.kept:
                self._keep_unsaved(tell, store.url)
                self._reached("set aside")
                loader = Loader(store, self._index)
            for ino in list(self._overlay.inodes()):
                self._overlay.drop(ino)
            self._reached("emptied")
            loader.start_from(manifest.result() if manifest is not None else read_manifest(store, version.head))
            self._reached("standing")
        index, overlay = self._index, self._overlay
        packs = PackCache(self._cache.path, store, cache_size)
        files = Files(index, overlay, packs)
        overlay.reap(index.serial)  # all that was replayed is in LMDB: what is dropped now can go at once
        workspace = Workspace(fmt, version, lease, index, overlay, packs, files, Namespace(index, files), loader)
        for ino, block in index.local_blocks():
            overlay.dirty.setdefault(ino, set()).add(block)
        if self._cache.crashed:
            _sweep(workspace)
            self._reached("swept")
        if self._cache.rebooted:
            _demote_residents(workspace)
            self._reached("demoted")
        workspace.recovered = self._account(index, store)
        if workspace.recovered:
            tell(workspace.recovered)
        workspace.missing = missing
        self._cache.repaired()
        verify_marker(workspace)
        self._reached("verified")
        return workspace

    def _account(self, index: Index, store: Store) -> str:
        """What was restored, and by name what was not."""
        recovery = self._recovery
        recovery.operations, recovery.unsaved = index.recovered, len(index.dirty_inodes)
        if recovery.aside is not None:
            recovery.lost = unsaved_in(recovery.aside, store, index)
        return recovery.line(self._cache.path, store.url)

    def _keep_unsaved(self, tell: Tell, url: str) -> None:
        """Set aside what was never saved and builds on a commit that is not HEAD any more; what stays on this machine
        has its place in that commit, so it goes along."""
        what, remedy = "changes that were never saved", ""
        if not self._index.is_dirty:
            what = "files that stay on this machine (.wsfsignore)"
            remedy = ", and remove that directory if nothing in it is needed"
        self._index.close()
        self._overlay.close()
        aside = self._cache.set_aside("unsaved")
        self._attach()
        tell(
            f"{what} build on a commit that is not the newest any more: they were kept in {aside}, and this mount"
            f" starts from the newest commit; '{command(aside, url)}' copies them out{remedy}"
        )


def _settle(index: Index, store: Store, fmt: Format, version: HeadVersion, *, leased: bool) -> bool:
    """Complete a commit that we died in, and say whether the cache stands on HEAD."""
    pending, standing = index.pending, index.standing
    if pending is not None:
        commit = pending.standing.commit
        here = standing is not None and standing.commit == version.head.commit
        if version.head.commit == commit or (not here and _is_history(store, commit)):
            index.advance(pending, pending.block_rows())
        elif leased:
            index.rewrite(drop_pending)
        # Without the lease the swap that we died in may still arrive: who has it next finds that out.
        index.reload()
        standing = index.standing
    if standing is None:
        return False
    return standing.workspace == fmt.workspace_id and standing.commit == version.head.commit


def _is_history(store: Store, commit: str) -> bool:
    """Whether HEAD descends from a commit, which need not be there any more. That it is there says nothing: its swap of
    HEAD may have failed. Raises StoreError, FormatError."""
    line = (point.manifest for point in save_points(store) if point.line)
    return any(commit in (one.key, one.parent) for one in line)


def _sweep(workspace: Workspace) -> None:
    """After a crash: overlay bytes that no row speaks of must not come back when a file grows over them."""
    for ino in list(workspace.overlay.inodes()):
        inode = fetch_all(lambda ino=ino: workspace.index.inode(ino))  # type: ignore[misc]
        if inode is None:
            workspace.overlay.drop(ino)
        else:
            workspace.overlay.cut(ino, inode.size)


def _demote_residents(workspace: Workspace) -> None:
    """After a reboot: the overlay may have lost what was never synced, and for clean blocks the pack is the truth."""
    index = workspace.index
    for ino in list(workspace.overlay.inodes()):
        batch = Batch()
        if batch.demote(fetch_all(lambda ino=ino: index.scan(ino, codec.BLOCK))):  # type: ignore[misc]
            index.apply(batch)
        if ino not in workspace.overlay.dirty and ino not in index.kept:
            workspace.overlay.drop(ino)


def verify_marker(workspace: Workspace) -> None:
    """Raises MarkerError unless `.workspace.initialized` is there, with the bytes that init wrote."""

    def content() -> bytes | None:
        found = workspace.index.dirent(ROOT_INO, MARKER_NAME)
        if found is None or found.ino != MARKER_INO:
            return None
        return workspace.files.read(Ino(MARKER_INO), 0, 1 << 16)

    try:
        data = fetch_all(content)
    except OSError:
        data = None
    name = os.fsdecode(MARKER_NAME)
    if data is None:
        raise MarkerError(f"the workspace is damaged: {name} is missing, so it was not started")
    if data != workspace.format.marker:
        raise MarkerError(f"the workspace is damaged: {name} does not have the bytes that init wrote")
