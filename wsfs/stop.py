"""From a mount to STOPPED: push, unmount, push what came last, give the workspace back. With a deadline, if told.

A stop without a deadline either saves everything or leaves the mount as it is. One with a deadline ends by then: what
is not saved stays in the cache directory. A deadline that comes while a stop without one is under way is for both.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Final

import trio

from wsfs.config import MountSettings
from wsfs.errors import DeadlineError, FencedError, MountBusyError, SyncFailedError, WsfsError
from wsfs.kernel import mountpoint as mountpoints
from wsfs.kernel.underway import UnderWay
from wsfs.log import get_log
from wsfs.notify import Notifier
from wsfs.remote import NeedRemote
from wsfs.repo.head import State
from wsfs.saver import Saver
from wsfs.sync.commit import Saved
from wsfs.sync.lease import best_effort
from wsfs.sync.start import Workspace
from wsfs.sync.upload import Limit
from wsfs.text import files, printable, size
from wsfs.tree.paths import Paths

log = get_log(__name__)

FINAL_TRIES: Final = 3
HELD_ELSEWHERE_SECONDS: Final = 2.0
BUSY_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 2.0
NAMES_SHOWN: Final = 20
EXTEND_SECONDS: Final = 10.0
STALLED_SECONDS: Final = 300.0
"""After so long without progress a stop has failed, for the service manager: as TimeoutStopSec= of the unit."""
_STOPPING_IS_WORTH_SAYING: Final = 8 << 20
_AGAIN_SECONDS: Final = 1.0
_FOR_UNMOUNT: Final = 3.0
_FOR_COMMIT: Final = 5.0
_GIVE_BACK_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.02


class Stopper:
    """Belongs to the trio thread. `close_door` takes no request from the kernel any more; `cut_off` ends the session
    with it, whoever still waits for an answer; `moved` counts the bytes that went to the store and came from it."""

    def __init__(
        self,
        settings: MountSettings,
        workspace: Workspace,
        saver: Saver,
        notifier: Notifier,
        under_way: UnderWay,
        close_door: Callable[[], None],
        cut_off: Callable[[], None],
        moved: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._saver = saver
        self._notifier = notifier
        self._under_way = under_way
        self._close_door = close_door
        self._cut_off = cut_off
        self._not_made = 0
        """Changes that were under way when there was no more time to wait for them."""
        self._moved = moved
        self._end: float | None = None
        self._began = 0.0
        self._late = False
        self._patient: set[trio.CancelScope] = set()
        """Around what is done without a deadline."""
        self.unmounted = trio.Event()
        self.outcome: Saved | None = None
        self.failure: WsfsError | None = None

    # --- before the unmount ---------------------------------------------------------------------------------------

    async def stop(self, *, force: bool, deadline: float | None = None, handed_over: bool = False) -> None:
        """Push everything while programs may still read, then unmount. `finish` does the rest. `handed_over`: whoever
        asks for it has just had the kernel send us its pages.

        Raises SyncFailedError, FencedError or, with everything saved, MountBusyError, and the mount stays; with `force`
        it goes all the same, and with a deadline unless programs use it.
        """
        mountpoint = self._settings.mountpoint
        self._set_deadline(deadline)
        self._saver.set_state(State.STOPPING)
        failed: WsfsError | None = None
        try:
            async with self._extending_timeout():
                await self._in_time(partial(self._save, handed_over=handed_over))
        except WsfsError as exc:
            failed = exc
            self._late = isinstance(exc, DeadlineError)
            # A mount that was cut off can save nothing more: a deadline need not be waited for.
            if not (force or self._late or (deadline is not None and isinstance(exc, FencedError))):
                self._saver.set_state(self._state_after(exc))
                if isinstance(exc, FencedError):
                    raise FencedError(
                        f"{exc}. {self._unsaved()} can no longer be saved from here, however often you try: copy that"
                        f" with 'wsfs export --unsaved DIR {mountpoint}', and then take the mount away with"
                        f" 'umount -i {mountpoint}'"
                    ) from exc
                raise SyncFailedError(
                    f"not everything could be saved ({exc}); {mountpoint} is still mounted, and what is missing"
                    f" stays in {self._settings.cache_dir}: try again"
                ) from exc
            log.error("not everything could be saved", error=exc)
        if not await self._unmount():
            if not force:
                self._refuse(failed)
            await self._take_from_kernel()
            await trio.to_thread.run_sync(partial(mountpoints.unmount, mountpoint, lazy=True))
        await self._end_session()

    async def _save(self, *, handed_over: bool) -> None:
        """All that there is before the unmount. Raises as `_push`."""
        if not handed_over:
            await self._take_from_kernel()
        await self._wait_for_changes(0.25)
        await self._say_stopping()
        await self._push(_FOR_UNMOUNT)

    async def _unmount(self) -> bool:
        """False if programs use the mount. What only looks into it for a moment, as we do, is waited for."""
        await self._in_time(self._wait_for_background_save)
        give_up = trio.current_time() + BUSY_SECONDS
        while not await trio.to_thread.run_sync(mountpoints.unmount, self._settings.mountpoint):
            if trio.current_time() > give_up:
                return False
            await trio.sleep(0.1)
        return True

    async def _wait_for_background_save(self) -> None:
        with trio.move_on_after(float("inf") if self._end is None else HELD_ELSEWHERE_SECONDS):
            async with self._saver.handing_over:
                pass

    def _refuse(self, failed: WsfsError | None) -> None:
        """The mount is in use: it goes on as if nobody had asked for a stop. The code says whether all is saved."""
        mountpoint = self._settings.mountpoint
        self._end, self._late = None, False
        users = f"find the programs with 'fuser -vm {mountpoint}', end them, and try again"
        if failed is None:
            self._saver.set_state(State.RUNNING)
            raise MountBusyError(f"everything is saved, but {mountpoint} is in use, so it is still mounted: {users}")
        self._saver.set_state(self._state_after(failed))
        if isinstance(failed, FencedError):
            raise FencedError(
                f"{failed}. {self._unsaved()} can no longer be saved from here: copy that with 'wsfs export --unsaved"
                f" DIR {mountpoint}'. The mount is in use, so it is still there: {users}"
            ) from failed
        # Not DeadlineError: that is for a mount that is gone, and what is missing is for the next one to save.
        because = f" ({self._saver.reason})" if self._saver.reason else ""
        raise SyncFailedError(
            f"time is up, and {self._unsaved()} could not be saved{because}; but {mountpoint} is in use, so it is still"
            f" mounted, and goes on saving: {users}"
        ) from failed

    @staticmethod
    def _state_after(failed: WsfsError) -> State:
        return State.ERROR if isinstance(failed, FencedError) else State.SYNC_FAILED

    def _unsaved(self) -> str:
        """How much is not saved. A commit that is under way is not waited for any more: its part is in this."""
        count = sum(map(self._is_worth_telling, self._workspace.index.dirty_inodes))
        return f"{files(count)} with about {size(self._workspace.files.unsaved_bytes(committing=True))}"

    def _set_deadline(self, seconds: float | None) -> None:
        if seconds is not None:
            self._began = time.monotonic()
            end = self._began + seconds
            self._end = end if self._end is None else min(self._end, end)
            for scope in self._patient:
                scope.cancel()

    async def _in_time(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something that can be cancelled and done again: as it is, and with a deadline once somebody sets one."""
        while self._end is None:
            with trio.CancelScope() as patient:
                self._patient.add(patient)
                try:
                    await work()
                finally:
                    self._patient.discard(patient)
                return
        await work()

    def _before_end(self, seconds: float) -> float | None:
        """Some time before the stop must have ended, but not more than a fifth of all the time that there is."""
        return None if self._end is None else self._end - min(seconds, (self._end - self._began) / 5)

    async def _take_from_kernel(self) -> None:
        """Let the kernel hand over what programs have written. Under a deadline it gets a part of the time."""
        mountpoint = self._settings.mountpoint
        if self._end is None:
            await trio.to_thread.run_sync(mountpoints.hand_over, mountpoint, abandon_on_cancel=True)
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
                lambda exc: log.warning("HEAD does not say STOPPING", error=exc),
                abandon_on_cancel=True,
            )

    # --- pushing --------------------------------------------------------------------------------------------------

    async def _push(self, margin: float) -> None:
        """Save everything; with a deadline, commit after commit, and again after failures, until `margin` before it.

        Raises FencedError; without a deadline whatever the save raises, with one DeadlineError if time is up and
        anything is not saved.
        """
        end = self._before_end(margin)
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
                    log.error("not everything could be saved yet", error=exc)
                    await trio.sleep(_AGAIN_SECONDS)
                    continue
                self.outcome = _add(self.outcome, saved)
                if saved is None or not saved.left:
                    return
        if not self._is_all_saved:
            raise DeadlineError(self._time_is_up(reason))

    @property
    def _is_all_saved(self) -> bool:
        """Whether nothing has changed since the last commit, and no commit is in doubt."""
        index = self._workspace.index
        return not index.is_dirty and index.pending is None

    def _time_is_up(self, reason: str) -> str:
        """What to tell: how much is not saved, why, where it is, and the names of some of it."""
        index = self._workspace.index
        inodes = sorted(filter(self._is_worth_telling, index.dirty_inodes))
        paths = Paths(index)
        names = [self._name(paths, ino) for ino in inodes[:NAMES_SHOWN]]
        more = len(inodes) - len(names)
        because = f" ({reason})" if reason else ""
        sentence = (
            f"time is up, and {self._unsaved()} could not be saved{because}; {self._lost}what is missing stays in"
            f" {self._cache}, and the next mount with this cache saves it:"
        )
        return "\n  ".join([sentence, *names, *([f"and {more:,} more"] if more else [])])

    @property
    def _lost(self) -> str:
        """What to tell of changes that were not made, with a semicolon after it; empty if there are none."""
        if not self._not_made:
            return ""
        changes = f"{self._not_made} {'change' if self._not_made == 1 else 'changes'}"
        return f"{changes} that waited for the store could not be made: what programs have just written there is lost; "

    @property
    def _cache(self) -> str:
        """Where the cache is, for who may read it in HEAD, on another machine."""
        lease = self._workspace.lease
        return f"{self._settings.cache_dir} on {lease.host if lease else 'this machine'}"

    @staticmethod
    def _name(paths: Paths, ino: int) -> str:
        try:
            return printable(paths.of(ino) or b"?")
        except (NeedRemote, WsfsError):
            return f"inode {ino}"

    def _is_worth_telling(self, ino: int) -> bool:
        """Files, links and so on; not a directory because something in it has changed, nor what is gone."""
        try:
            inode = self._workspace.index.inode(ino)
        except NeedRemote:
            return False
        return inode is not None and not inode.is_dir and ino not in self._workspace.index.kept

    # --- after the unmount ----------------------------------------------------------------------------------------

    async def _end_session(self) -> None:
        """The mount is gone here. Another mount namespace, or a program with open files, may still hold it: cut it."""
        left = float("inf") if self._end is None else max(self._end - time.monotonic(), _LOOK_SECONDS)
        with trio.move_on_after(min(HELD_ELSEWHERE_SECONDS, left)):
            await self.unmounted.wait()
        if not self.unmounted.is_set():
            log.warning(
                "the mount is held by an open file or another mount namespace: cut off",
                mountpoint=self._settings.mountpoint,
            )
            self._close_door()
            await self._in_time(self._wait_for_changes)
            self._not_made = len(self._under_way)
            self._cut_off()
            await self.unmounted.wait()

    async def _wait_for_changes(self, share: float = 1.0) -> None:
        """What programs were told is done, and waits for the store, is not in the cache yet. Under a deadline it gets a
        share of the time that is left."""
        end = self._before_end(_GIVE_BACK_SECONDS)
        with trio.move_on_after(float("inf") if end is None else max(end - time.monotonic(), 0) * share):
            await self._under_way.wait()

    async def watch_mount(self) -> None:
        """Notice an unmount that does not end the session: a lazy one while files are open, or one in this mount
        namespace only. Whoever has the mount still goes on; what is there is saved now, and then as before.
        """
        while await trio.to_thread.run_sync(mountpoints.is_mounted, self._settings.mountpoint):  # noqa: ASYNC110 - no event
            await trio.sleep(WATCH_SECONDS)
        with trio.move_on_after(HELD_ELSEWHERE_SECONDS):
            await self.unmounted.wait()
        if not self.unmounted.is_set() and self._saver.state != State.STOPPING:
            log.warning(
                "unmounted, but an open file or another mount namespace holds it: served on",
                mountpoint=self._settings.mountpoint,
            )
            try:
                await self._saver.save(State.RUNNING)
            except WsfsError as exc:
                log.error("not everything could be saved yet", error=exc)

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
                        if self._late and not self._is_all_saved:  # a commit that nobody waits for may have ended
                            raise DeadlineError(self._time_is_up(self._saver.reason))
                        await self._in_time(self._save_the_rest)
                    except (FencedError, DeadlineError) as exc:
                        self.failure = exc
                        break
                    except WsfsError as exc:
                        log.error("last save failed", attempt=attempt + 1, error=exc)
                        self._saver.reason = str(exc)
                    else:
                        self._saver.set_state(State.STOPPED)
                        return
                if self.failure is None:
                    self.failure = SyncFailedError(
                        f"not everything could be saved ({self._saver.reason}); it stays in {self._cache}, and the"
                        " next mount with this cache saves it"
                    )
                if not isinstance(self.failure, FencedError):
                    await self._give_up()
        if isinstance(self.failure, FencedError):
            self._saver.set_state(State.ERROR)
            if self._workspace.index.is_dirty:
                cache = self._settings.cache_dir
                self.failure = FencedError(
                    f"{self.failure}. {self._unsaved()} can be found only in {cache}: copy that with 'wsfs export"
                    f" --unsaved DIR --cache-dir {cache}'"
                )
            return
        self._saver.set_state(State.SYNC_FAILED)

    async def _save_the_rest(self) -> None:
        if self._workspace.index.is_dirty:
            await self._say_stopping()
        await self._push(_GIVE_BACK_SECONDS)
        if self._not_made:
            raise DeadlineError(f"time is up, and {self._lost}everything else is saved")
        await self._give_back(State.STOPPED)

    async def _give_back(self, state: State, reason: str = "") -> None:
        lease = self._workspace.lease
        assert lease is not None
        if self._end is None:
            await trio.to_thread.run_sync(lease.release, state, reason, abandon_on_cancel=True)
            return
        with trio.move_on_after(max(self._end - time.monotonic(), _GIVE_BACK_SECONDS)) as scope:
            # Nothing may be committed once others can have the workspace: not by a thread that was left behind either.
            while self._saver.busy:  # noqa: ASYNC110 - no event
                await trio.sleep(_LOOK_SECONDS)
            await trio.to_thread.run_sync(lease.release, state, reason, abandon_on_cancel=True)
        if scope.cancelled_caught:
            # Everything is saved: that HEAD does not say STOPPED only keeps another host waiting.
            log.warning("the workspace could not be given back in time")

    async def _give_up(self) -> None:
        """Not everything is saved: tell other hosts what they would miss, if that can be done at once."""
        log.error("not everything could be saved", error=self.failure)
        self._saver.reason = str(self.failure).partition("\n")[0].removesuffix(":")
        if self._saver.busy:
            return
        if self._end is None:
            self._set_deadline(_FOR_COMMIT)
        try:
            await self._give_back(State.SYNC_FAILED, self._saver.reason)
        except WsfsError as exc:
            log.warning("HEAD does not say SYNC_FAILED", error=exc)

    def _extending_timeout(self) -> AbstractAsyncContextManager[None]:
        left = self._workspace.files.unsaved_bytes
        return extending_timeout(self._notifier, lambda: (self._moved(), left()), lambda: f"{left()} bytes left")


@asynccontextmanager
async def extending_timeout(
    notifier: Notifier, progress: Callable[[], object], left: Callable[[], str]
) -> AsyncIterator[None]:
    """Keep the service manager patient while the body runs and `progress` changes: not for a save that hangs."""
    notifier.stopping("saving")

    async def extend() -> None:
        before: object = None
        idle = 0.0
        while True:
            now = progress()
            if now != before:
                before, idle = now, 0.0
                notifier.extend_timeout(STALLED_SECONDS, f"saving: {left()}")
            else:
                idle += EXTEND_SECONDS
                notifier.status(f"saving: {left()}, no progress for {idle:.0f} s")
            await trio.sleep(EXTEND_SECONDS)

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
