"""From a mount to STOPPED: push, unmount, push what came last, give the workspace back. With a deadline, if told.

A stop without a deadline either saves everything or leaves the mount as it is. One with a deadline ends by then: what
is not saved stays in the cache directory.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import trio

from wsfs.config import MountSettings
from wsfs.errors import DeadlineError, FencedError, MountBusyError, NeedRemote, SyncFailedError, WsfsError
from wsfs.kernel import mountpoint as mountpoints
from wsfs.notify import Notifier
from wsfs.repo.head import State
from wsfs.saver import Saver
from wsfs.sync.commit import Saved
from wsfs.sync.lease import best_effort
from wsfs.sync.start import Workspace
from wsfs.sync.upload import Limit
from wsfs.tree.paths import Paths

log = logging.getLogger(__name__)

FINAL_TRIES: Final = 3
HELD_ELSEWHERE_SECONDS: Final = 2.0
WATCH_SECONDS: Final = 2.0
NAMES_SHOWN: Final = 20
_STOPPING_IS_WORTH_SAYING: Final = 8 << 20
_AGAIN_SECONDS: Final = 1.0
_FOR_UNMOUNT: Final = 3.0
_FOR_COMMIT: Final = 5.0
_GIVE_BACK_SECONDS: Final = 1.0


class Stopper:
    """Belongs to the trio thread. `cut_off` ends the session with the kernel, whoever still uses it."""

    def __init__(
        self,
        settings: MountSettings,
        workspace: Workspace,
        saver: Saver,
        notifier: Notifier,
        cut_off: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._saver = saver
        self._notifier = notifier
        self._cut_off = cut_off
        self._end: float | None = None
        self._began = 0.0
        self._late = False
        self.unmounted = trio.Event()
        self.outcome: Saved | None = None
        self.failure: WsfsError | None = None

    # --- before the unmount ---------------------------------------------------------------------------------------

    async def stop(self, *, force: bool, deadline: float | None = None) -> None:
        """Push everything while programs may still read, then unmount. `finish` does the rest.

        Raises SyncFailedError or MountBusyError, and the mount stays; with `force` it goes all the same, and with a
        deadline unless programs use it.
        """
        mountpoint = self._settings.mountpoint
        self._set_deadline(deadline)
        self._saver.set_state(State.STOPPING)
        failed: WsfsError | None = None
        try:
            async with self._extending_timeout():
                await self._take_from_kernel()
                await self._say_stopping()
                await self._push(self._before_end(_FOR_UNMOUNT))
        except WsfsError as exc:
            failed = exc
            self._late = isinstance(exc, DeadlineError)
            if not (force or self._late):
                self._saver.set_state(State.SYNC_FAILED)
                raise SyncFailedError(
                    f"not everything could be saved ({exc}); {mountpoint} is still mounted, and what is missing"
                    f" stays in {self._settings.cache_dir}: try again"
                ) from exc
            log.error("not everything could be saved: %s", exc)
        if not await trio.to_thread.run_sync(mountpoints.unmount, mountpoint):
            if not force:
                self._refuse(failed)
            await self._take_from_kernel()
            await trio.to_thread.run_sync(partial(mountpoints.unmount, mountpoint, lazy=True))
        await self._end_session()

    def _refuse(self, failed: WsfsError | None) -> None:
        """The mount is in use: it goes on as if nobody had asked for a stop."""
        mountpoint = self._settings.mountpoint
        self._end, self._late = None, False
        users = f"find the programs with 'fuser -vm {mountpoint}', end them, and try again"
        if failed is not None:
            self._saver.set_state(State.SYNC_FAILED)
            raise MountBusyError(f"{mountpoint} is in use, so it is still mounted: {users}. Also, {failed}")
        self._saver.set_state(State.RUNNING)
        raise MountBusyError(f"everything is saved, but {mountpoint} is in use, so it is still mounted: {users}")

    def _set_deadline(self, seconds: float | None) -> None:
        if seconds is not None:
            self._began = time.monotonic()
            end = self._began + seconds
            self._end = end if self._end is None else min(self._end, end)

    def _before_end(self, seconds: float) -> float | None:
        """Some time before the stop must have ended, but not more than a fifth of all the time that there is."""
        return None if self._end is None else self._end - min(seconds, (self._end - self._began) / 5)

    async def _take_from_kernel(self) -> None:
        """Let the kernel hand over what programs have written. Under a deadline it gets a part of the time."""
        mountpoint = self._settings.mountpoint
        if self._end is None:
            await trio.to_thread.run_sync(mountpoints.hand_over, mountpoint)
            return
        seconds = max((self._end - time.monotonic()) / 3, 0.1)
        with trio.move_on_after(seconds + 0.5):  # a process that hangs in the kernel cannot be killed at once
            await trio.to_thread.run_sync(mountpoints.hand_over, mountpoint, seconds, abandon_on_cancel=True)

    async def _say_stopping(self) -> None:
        """Let other hosts see that waiting is worth it, when there is something to wait for."""
        lease = self._workspace.lease
        if lease is None or lease.fenced or self._workspace.files.unsaved_bytes() < _STOPPING_IS_WORTH_SAYING:
            return
        end = self._before_end(_FOR_UNMOUNT)
        with trio.move_on_after(float("inf") if end is None else max((end - time.monotonic()) / 4, 0.1)):
            await trio.to_thread.run_sync(
                best_effort,
                lambda: lease.renew(State.STOPPING),
                lambda exc: log.warning("HEAD does not say STOPPING: %s", exc),
                abandon_on_cancel=end is not None,
            )

    # --- pushing --------------------------------------------------------------------------------------------------

    async def _push(self, end: float | None) -> None:
        """Save everything; with an end, commit after commit, and again after failures, until then.

        Raises FencedError; without an end whatever the save raises, with one DeadlineError for anything else.
        """
        if end is None:
            self.outcome = _add(self.outcome, await self._saver.save(State.STOPPING, may_fold=False))
            return
        limit = Limit(end, min(_FOR_COMMIT, (end - self._began) / 4))
        reason = ""
        with trio.move_on_after(max(end - time.monotonic(), 0)):
            while time.monotonic() < end:
                try:
                    saved = await self._saver.save(State.STOPPING, may_fold=False, limit=limit)
                except FencedError:
                    raise
                except DeadlineError as exc:
                    reason = str(exc)
                    break
                except WsfsError as exc:
                    reason = str(exc)
                    log.error("not everything could be saved yet: %s", exc)
                    await trio.sleep(_AGAIN_SECONDS)
                    continue
                self.outcome = _add(self.outcome, saved)
                if saved is None or not saved.left:
                    return
        raise DeadlineError(self._time_is_up(reason))

    def _time_is_up(self, reason: str) -> str:
        """What to tell: how much is not saved, why, where it is, and the names of some of it."""
        index, files = self._workspace.index, self._workspace.files
        inodes = sorted(filter(self._is_worth_telling, index.dirty_inodes))
        paths = Paths(index)
        names = [self._name(paths, ino) for ino in inodes[:NAMES_SHOWN]]
        more = len(inodes) - len(names)
        because = f" ({reason})" if reason else ""
        sentence = (
            f"time is up, and {len(inodes):,} files with about {files.unsaved_bytes():,} bytes are not saved{because};"
            f" they stay in {self._settings.cache_dir}, and the next mount with this cache saves them:"
        )
        return "\n  ".join([sentence, *names, *([f"and {more:,} more"] if more else [])])

    @staticmethod
    def _name(paths: Paths, ino: int) -> str:
        try:
            return os.fsdecode(paths.of(ino) or b"?")
        except NeedRemote:
            return f"inode {ino}"

    def _is_worth_telling(self, ino: int) -> bool:
        """Files, links and so on; not a directory because something in it has changed, nor what is gone."""
        try:
            inode = self._workspace.index.inode(ino)
        except NeedRemote:
            return False
        return inode is not None and not inode.is_dir

    # --- after the unmount ----------------------------------------------------------------------------------------

    async def _end_session(self) -> None:
        """The mount is gone here. Another mount namespace, or a program with open files, may still hold it: cut it."""
        with trio.move_on_after(HELD_ELSEWHERE_SECONDS):
            await self.unmounted.wait()
        if not self.unmounted.is_set():
            log.warning("the mount is still held elsewhere (another mount namespace, an open file): cutting it off")
            self._cut_off()
            await self.unmounted.wait()

    async def watch_mount(self) -> None:
        """Notice an unmount that does not end the session: a lazy one while files are open, or one in this mount
        namespace only. Whoever has the mount still goes on; what is there is saved now, and then as before.
        """
        while await trio.to_thread.run_sync(mountpoints.is_mounted, self._settings.mountpoint):  # noqa: ASYNC110 - no event
            await trio.sleep(WATCH_SECONDS)
        with trio.move_on_after(HELD_ELSEWHERE_SECONDS):
            await self.unmounted.wait()
        if not self.unmounted.is_set() and self._saver.state != State.STOPPING:
            log.warning("unmounted, but an open file or another mount namespace holds it: served until that ends")
            try:
                await self._saver.save(State.RUNNING)
            except WsfsError as exc:
                log.error("not everything could be saved yet: %s", exc)

    async def finish(self) -> None:
        """After the unmount: push what came last, and say STOPPED. Nothing changes any more."""
        self._saver.set_state(State.STOPPING)
        lease = self._workspace.lease
        if lease is None:
            self._saver.set_state(State.STOPPED)
            return
        if self._end is None and not self._late:
            self._set_deadline(self._settings.stop_deadline)
        with trio.CancelScope(shield=True):
            async with self._extending_timeout():
                for attempt in range(FINAL_TRIES):
                    try:
                        if self._late:
                            raise DeadlineError(self._time_is_up(self._saver.reason))
                        if self._workspace.index.is_dirty:
                            await self._say_stopping()
                        await self._push(self._before_end(_GIVE_BACK_SECONDS))
                        await self._give_back(State.STOPPED)
                    except (FencedError, DeadlineError) as exc:
                        self.failure = exc
                        break
                    except WsfsError as exc:
                        log.error("final save: attempt=%d error=%s", attempt + 1, exc)
                        self._saver.reason = str(exc)
                    else:
                        self._saver.set_state(State.STOPPED)
                        return
                if isinstance(self.failure, DeadlineError):
                    await self._give_up()
        if isinstance(self.failure, FencedError):
            return
        self._saver.set_state(State.SYNC_FAILED)
        if self.failure is None:
            self.failure = SyncFailedError(
                f"not everything could be saved ({self._saver.reason}); it stays in {self._settings.cache_dir}, and the"
                " next mount with this cache saves it"
            )

    async def _give_back(self, state: State, reason: str = "") -> None:
        lease = self._workspace.lease
        assert lease is not None
        if self._end is None:
            await trio.to_thread.run_sync(lease.release, state, reason)
            return
        with trio.move_on_after(max(self._end - time.monotonic(), _GIVE_BACK_SECONDS)) as scope:
            await trio.to_thread.run_sync(lease.release, state, reason, abandon_on_cancel=True)
        if scope.cancelled_caught:
            # Everything is saved: that HEAD does not say STOPPED only keeps another host waiting.
            log.warning("the workspace could not be given back in time")

    async def _give_up(self) -> None:
        """Time is up: tell other hosts what they would miss, if that can be done at once."""
        log.error("%s", self.failure)
        self._saver.reason = str(self.failure).partition("\n")[0]
        if self._saver.busy:
            return
        try:
            await self._give_back(State.SYNC_FAILED, self._saver.reason)
        except WsfsError as exc:
            log.warning("HEAD does not say SYNC_FAILED: %s", exc)

    @asynccontextmanager
    async def _extending_timeout(self) -> AsyncIterator[None]:
        """Keep the service manager patient as long as the body runs."""
        self._notifier.stopping("saving")

        async def extend() -> None:
            while True:
                self._notifier.extend_timeout(60, f"saving: {self._workspace.files.unsaved_bytes()} bytes left")
                await trio.sleep(10)

        failed: WsfsError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(extend)
            try:
                yield
            except WsfsError as exc:  # the nursery would wrap it in a group, which nobody expects
                failed = exc
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed


def _add(first: Saved | None, second: Saved | None) -> Saved | None:
    """What two commits did together."""
    if first is None or second is None:
        return first or second
    return Saved(
        second.seq,
        first.files + second.files,
        first.bytes + second.bytes,
        first.sent + second.sent,
        first.puts + second.puts,
        first.seconds + second.seconds,
        second.left,
    )
