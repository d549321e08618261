"""Save points as the daemon of a mount sees them: what commands ask about them, going back, and mass deletes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from wsfs import savepoints
from wsfs.errands import Errands
from wsfs.errors import NoSavePointError, UsageError, WsfsError
from wsfs.kernel import mountpoint as mountpoints
from wsfs.kernel.invalidate import invalidate
from wsfs.kernel.operations import Operations
from wsfs.log import get_log
from wsfs.model import Ino
from wsfs.repo.head import Head, State
from wsfs.saver import Saver
from wsfs.store.base import Store
from wsfs.sync.commit import Committer
from wsfs.sync.gc import Collector
from wsfs.sync.history import SavePoint, find, save_points
from wsfs.sync.massdelete import MassDelete, Sample
from wsfs.sync.past import Past
from wsfs.sync.pins import READER_SECONDS, Kind, pin_longer
from wsfs.sync.restore import Restored, Restorer
from wsfs.sync.start import Workspace
from wsfs.sync.survey import seq_in
from wsfs.tree.ignore import IGNORE_NAME

log = get_log(__name__)

REQUESTS: Final = frozenset({"log", "diff", "pin", "unpin", "restore", "undo"})
WATCH_SECONDS: Final = 1.0
PIN_AGAIN_SECONDS: Final = 30.0
"""When the save point from before a mass delete could not be pinned."""

MASS_DELETE_SECONDS: Final = 7 * 86400.0
"""For how long the save point from before a mass delete is kept."""

RESTORE_SECONDS: Final = 30 * 86400.0
"""For how long the one from before a restore is kept."""


class Rewind:
    """Belongs to the trio thread. `committer` is None on a read-only mount."""

    def __init__(
        self,
        store: Store,
        workspace: Workspace,
        operations: Operations,
        saver: Saver,
        committer: Committer | None,
        mountpoint: Path,
        errands: Errands,
    ) -> None:
        self._store = store
        self._workspace = workspace
        self._operations = operations
        self._saver = saver
        self._committer = committer
        self._mountpoint = mountpoint
        self._errands = errands
        self._restoring = trio.Lock()
        self._looking = trio.Lock()
        self._watcher = MassDelete()
        self._unpinned: tuple[Sample, int] | None = None
        self.collector: Collector | None = None
        """What collects garbage, once it does."""
        self._later_notice = ""
        self.notice = ""
        """What a user should know: that much was deleted, and how it comes back."""

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the commands of REQUESTS tell. Raises WsfsError."""
        operation = request["op"]
        work: Callable[[], dict[str, Any]]
        if operation == "restore":
            paths = request.get("paths")
            if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
                raise UsageError('the request must have a list of "paths"')
            if len(paths) > 1 and IGNORE_NAME in map(os.fsencode, paths):
                # What it does not keep here any more would be saved, and gone when the other paths go back.
                raise UsageError("name .wsfsignore alone: what stays on this machine depends on it")
            return await self.restore(_text(request, "at"), [os.fsencode(path) for path in paths])
        if operation == "undo":
            return await self.undo()
        if operation == "log":
            work = partial(savepoints.log, self._store)
        elif operation == "diff":
            second = None if request.get("second") is None else _text(request, "second")
            work = partial(savepoints.diff, self._store, _text(request, "first"), second)
        elif operation == "pin":
            name = None if request.get("name") is None else _text(request, "name")
            work = partial(savepoints.set_pin, self._store, _text(request, "id"), name, _seconds(request.get("keep")))
        else:
            work = partial(savepoints.unset_pin, self._store, _text(request, "id"))
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    # --- going back -----------------------------------------------------------------------------------------------

    async def restore(self, wanted: str, paths: Sequence[bytes]) -> dict[str, Any]:
        """Make these paths as they were at a save point, in one commit.

        Raises NoSavePointError, UsageError, StoreError, FencedError, CacheError; what was done until then is done, and
        can be undone.
        """
        await self._look()
        points = await trio.to_thread.run_sync(save_points, self._store, abandon_on_cancel=True)
        return await self._go_back(find(points, wanted), paths, missing_only=False, all_there=True)

    async def undo(self) -> dict[str, Any]:
        """Go back to before the last restore or mass delete, be it of just now. Raises as `restore`."""
        await self._look()
        points = await trio.to_thread.run_sync(save_points, self._store, abandon_on_cancel=True)
        able = [point for point in points if point.pin and point.pin.kind in savepoints.UNDONE]
        if not able:
            raise NoSavePointError(
                "there is nothing to undo, no restore and no mass delete: 'wsfs log' lists the save points, and 'wsfs"
                " restore --at ID PATH' goes back to one"
            )
        # Not by the age of the pin, which is new when a user has pinned it once more.
        point = max(able, key=lambda point: (point.line, point.seq))
        assert point.pin is not None
        deleted = point.pin.kind == Kind.DELETE
        found = await self._go_back(point, point.pin.paths or [b""], missing_only=deleted, all_there=False)
        if deleted:
            self.notice = self._later_notice = ""
        return found | {"undone": point.pin.reason}

    async def _go_back(
        self, point: SavePoint, paths: Sequence[bytes], *, missing_only: bool, all_there: bool
    ) -> dict[str, Any]:
        committer = self._committer
        if committer is None or self._operations.read_only:
            raise UsageError(f"{self._mountpoint} is read-only: mount the workspace writable, and restore there")
        began = time.monotonic()
        async with self._restoring:
            if all_there:
                await trio.to_thread.run_sync(self._check, point, paths, abandon_on_cancel=True)
            # What is there now is a save point first, whole: so that this can be undone.
            await trio.to_thread.run_sync(mountpoints.hand_over, self._mountpoint, abandon_on_cancel=True)
            await self._saver.save(State.RUNNING)
            work = partial(self._restore, committer, point, paths, missing_only)
            try:
                try:
                    done, before = await self._errands.run(work)
                finally:
                    await self._saver.save(State.RUNNING)
            finally:
                # What goes because of this is no mass delete, and what is deleted from now on is another one.
                self._watcher = MassDelete()
            self._watcher.note(self._sample(as_committed=True))
            self.notice = self._later_notice  # undo takes this back now, and no mass delete from before it
            # The next save has what was restored, and that may have been one in the background.
            seq = min(before + 1, self._head().seq)
        log.info("restored", save_point=point.seq, made=done.made, removed=done.removed, changed=done.changed, seq=seq)
        return {
            "id": point.seq,
            "made": done.made,
            "removed": done.removed,
            "changed": done.changed,
            "ignore_left": done.ignore_left,
            "before": before,
            "seq": seq,
            "seconds": time.monotonic() - began,
        }

    def _check(self, point: SavePoint, paths: Sequence[bytes]) -> None:
        """Whether all these paths were there."""
        self._restorer(Past(self._store, point.manifest), missing_only=False).check(paths)

    def _restore(
        self, committer: Committer, point: SavePoint, paths: Sequence[bytes], missing_only: bool
    ) -> tuple[Restored, int]:
        """On a thread of its own. While it runs there is no other commit: so it is one point in time."""
        with self._holding(point.manifest.key):
            past = Past(self._store, point.manifest)
            with committer.busy:
                head = self._head()
                what = ", ".join(os.fsdecode(path) or "/" for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
                pin_longer(
                    self._store,
                    head.commit,
                    f"before #{point.seq} was restored: {what}",
                    Kind.RESTORE,
                    RESTORE_SECONDS,
                    paths,
                )
                restorer = self._restorer(past, missing_only=missing_only)
                try:
                    for path in paths:
                        restorer.restore(path)
                finally:
                    self._forget(restorer.done)
                return restorer.done, head.seq

    def _head(self) -> Head:
        lease = self._workspace.lease
        assert lease is not None
        return lease.head

    def _restorer(self, past: Past, *, missing_only: bool) -> Restorer:
        workspace = self._workspace
        return Restorer(
            past,
            workspace.index,
            workspace.names,
            self._errands.on_owner,
            self._gone,
            self._forget,
            missing_only=missing_only,
        )

    def _gone(self, ino: Ino) -> None:
        if not self._operations.is_known(ino):
            self._workspace.names.forgotten(ino)

    def _forget(self, done: Restored) -> None:
        """Have the kernel ask again about what has changed. Raises LeftBehindError: there may be no session with it."""
        self._errands.check()
        names = [name for name in done.names if self._operations.is_known(name[0])]
        inodes = [ino for ino in done.inodes if self._operations.is_known(ino)]
        done.names.clear()
        done.inodes.clear()
        invalidate(inodes, names)

    def hold(self, commit: str) -> None:
        """Any thread: keep a commit from being deleted by this mount, until `let_go`. Raises NotFoundError."""
        if self.collector is not None:
            self.collector.hold(commit)

    def let_go(self, commit: str) -> None:
        """Any thread: undo one `hold`."""
        if self.collector is not None:
            self.collector.let_go(commit)

    @contextmanager
    def _holding(self, commit: str) -> Iterator[None]:
        self.hold(commit)
        try:
            yield
        finally:
            self.let_go(commit)

    # --- mass deletes ---------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Pin the save point from before a mass delete. For ever."""
        while self._workspace.lease is not None:
            try:
                await self._look()
            except WsfsError as exc:
                log.warning("the save point from before a mass delete is not pinned yet", error=exc)
                await trio.sleep(PIN_AGAIN_SECONDS)
            await trio.sleep(WATCH_SECONDS)

    async def _look(self) -> None:
        """Notice a mass delete now, and pin the save point from before it. Raises StoreError; then the next look tries
        again."""
        async with self._looking:
            if self._workspace.lease is None or self._restoring.locked():
                return
            sample = self._sample()
            before = self._watcher.note(sample)
            if before is not None:
                self._unpinned = before, before.files - sample.files
            if self._unpinned is not None:
                await self._keep(*self._unpinned)
                self._unpinned = None

    def _sample(self, *, as_committed: bool = False) -> Sample:
        """What there is now; or `as_committed`, as if nothing had changed since the last commit."""
        head = self._head()
        files = head.files if as_committed else self._workspace.index.shared_files
        age = self._saver.save_seconds + WATCH_SECONDS
        return Sample(trio.current_time(), files, head.commit, head.files, age)

    async def _keep(self, before: Sample, count: int) -> None:
        """Pin the save point from before so many files were deleted, and say so. Raises StoreError."""
        reason = f"before at least {count:,} of {before.files:,} files were deleted"
        work = partial(pin_longer, self._store, before.commit, reason, Kind.DELETE, MASS_DELETE_SECONDS)
        await trio.to_thread.run_sync(work, abandon_on_cancel=True)
        what = f"at least {count:,} of {before.files:,} files were deleted within a minute: for a week,"
        self.notice = f"{what} 'wsfs undo {self._mountpoint}' brings them back"
        self._later_notice = f"{what} they are in {self._mountpoint}/.wsfs/at/{seq_in(before.commit)}"
        log.warning(
            "mass delete",
            files=count,
            before=before.files,
            text=self.notice,
            remedy=f"'wsfs undo {self._mountpoint}' brings them back",
        )


async def keep_for_reader(store: Store, commit: str) -> None:
    """Keep a commit while a mount shows it, by a pin that is renewed. A reader that may not write goes without."""
    while True:
        try:
            work = partial(pin_longer, store, commit, "shown by a read-only mount", Kind.READER, READER_SECONDS)
            await trio.to_thread.run_sync(work, abandon_on_cancel=True)
        except WsfsError as exc:
            log.warning("a save point is not pinned, and may be deleted while it is shown", key=commit, error=exc)
        await trio.sleep(READER_SECONDS / 2)


def _text(request: dict[str, Any], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise UsageError(f'the request must have a text in "{name}"')
    return value


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or not value > 0:
        raise UsageError(f"{value!r} is no time for which a save point could be kept")
    return float(value)
