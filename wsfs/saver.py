"""Pushes what has changed, and knows how that goes: the state of a mount and, when it is not well, the reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import trio

from wsfs.config import MountSettings
from wsfs.data.ballast import Ballast
from wsfs.errors import CacheFullError, FencedError, WsfsError
from wsfs.kernel import mountpoint as mountpoints
from wsfs.kernel.operations import Operations
from wsfs.log import get_log
from wsfs.repo.head import State
from wsfs.sync.commit import Committer, Saved
from wsfs.sync.evict import Evictor
from wsfs.sync.pace import Pace
from wsfs.sync.start import CacheDirectory
from wsfs.sync.upload import Limit

log = get_log(__name__)

T = TypeVar("T")

LAST_WORDS_SECONDS: Final = 10.0
"""How long a fenced mount takes from the kernel what programs wrote before."""

NO_ROOM_SECONDS: Final = 10.0
"""After making room has failed: programs get ENOSPC at once for so long, before it is tried again."""


def on_owner(function: Callable[[], T], /) -> T:
    """Run a function on the trio thread, from a thread that it has started."""
    return trio.from_thread.run_sync(function)


class Saver:
    """Belongs to the trio thread. `committer` is None on a read-only mount."""

    def __init__(
        self,
        settings: MountSettings,
        cache: CacheDirectory,
        committer: Committer | None,
        evictor: Evictor,
        operations: Operations,
        pace: Pace,
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._committer = committer
        self._evictor = evictor
        self._operations = operations
        self._pace = pace
        self._saving = trio.Lock()
        self.handing_over = trio.Lock()
        """Held while a background save looks into the mount, which is busy then."""
        self.ballast = Ballast(settings.cache_dir)
        self._making_room = trio.Lock()
        self._no_room_until = self._room_made_at = 0.0
        self.state = State.STARTING
        self.reason = ""
        self.saves = self.failures = 0
        self.save_seconds = 0.0
        """What the last save took."""
        self.state_changed = trio.Event()

    def set_state(self, state: State) -> None:
        if state != self.state:
            self.state_changed.set()
        self.state = state
        try:
            self._cache.note(str(self._settings.mountpoint), state)
        except OSError as exc:
            log.warning("state not noted", path=self._settings.cache_dir, error=exc, remedy="look at the cache disk")

    @property
    def busy(self) -> bool:
        """Whether a commit is under way, if only in a thread that nobody waits for any more."""
        return self._committer is not None and self._committer.busy.locked()

    def account(self) -> dict[str, Any] | None:
        """How far the save is that is under way, as docs/JSON.md describes it."""
        progress = None if self._committer is None else self._committer.progress
        return None if progress is None else progress.account() | {"state": self.state.value}

    async def save_in_background(self) -> None:
        """What the kernel has not sent yet, of files that stay open, belongs to this save as well. Raises as `save`."""
        async with self.handing_over:
            if self.state == State.STOPPING:
                return
            await trio.to_thread.run_sync(mountpoints.hand_over, self._settings.mountpoint)
        await self.save(State.RUNNING)

    async def save(
        self, state: State, *, may_fold: bool = True, limit: Limit | None = None, empty: bool = False
    ) -> Saved | None:
        """Push everything; with a limit, what fits into it; if it may be `empty`, also nothing.

        Raises StoreError, FencedError, CacheError.

        When it is cancelled, the commit goes on in its thread, and the next one waits for that.
        """
        committer = self._committer
        if committer is None:
            return None
        async with self._saving:
            try:
                saved = await self._commit(lambda: committer.commit(state, may_fold=may_fold, limit=limit, empty=empty))
            except FencedError as exc:
                await self.fence(exc)
                raise
            except WsfsError as exc:
                self.failures += 1
                self.reason = str(exc)
                if self.state == State.RUNNING:
                    self.set_state(State.SYNC_FAILED)
                raise
            self.reason = ""
            if self.state == State.SYNC_FAILED:
                self.set_state(State.RUNNING)
            if saved is not None:
                self.saves += 1
                self.save_seconds = saved.seconds
                self._pace.learn(saved)
                log.info(
                    "saved",
                    seq=saved.seq,
                    files=saved.files,
                    bytes=saved.bytes,
                    sent=saved.sent,
                    puts=saved.puts,
                    left=saved.left,
                    seconds=round(saved.seconds, 2),
                )
            return saved

    async def _commit(self, commit: Callable[[], Saved | None]) -> Saved | None:
        """A commit writes a little here itself: a full cache disk is no reason for it to fail."""
        try:
            return await trio.to_thread.run_sync(commit, abandon_on_cancel=True)
        except CacheFullError:
            await self._drop_copies()
            with self._evictor.reserve():
                self.ballast.release()
                try:
                    return await trio.to_thread.run_sync(commit, abandon_on_cancel=True)
                finally:
                    self.ballast.restore()

    async def _drop_copies(self) -> int:
        """Drop what the store has. Returns bytes freed; raises CacheError."""
        with self._evictor.reserve():
            try:
                return await self._evictor.drop_all()
            except CacheFullError:
                self.ballast.release()
                return await self._evictor.drop_all()
            finally:
                self.ballast.restore()

    async def fence(self, exc: FencedError) -> None:
        """Another mount has the workspace now: nothing may change here any more, and all of it stays readable."""
        self.reason = str(exc)
        if self.state != State.STOPPING:
            self.set_state(State.ERROR)
        if self._operations.read_only:
            return
        log.error("taken over by another mount", error=exc)
        # What programs have written already is theirs: the kernel may not have handed it over yet.
        with trio.move_on_after(LAST_WORDS_SECONDS + 1):
            await trio.to_thread.run_sync(
                mountpoints.hand_over, self._settings.mountpoint, LAST_WORDS_SECONDS, abandon_on_cancel=True
            )
        self._operations.read_only = True

    async def make_room(self, *, deleting: bool) -> bool:
        """The cache disk is full: drop what the store has, save the rest and drop that. Whether it helped.

        Whoever asks meanwhile waits for the same attempt. While nothing helps, it is not tried again at once. What
        deletes something gets the room that is kept for that.
        """
        asked = time.monotonic()
        if deleting and self.ballast.release():
            return True
        async with self._making_room:
            if asked < self._room_made_at:
                return True
            if asked < self._no_room_until:
                return False
            try:
                freed = await self._drop_copies()
                if not freed:
                    log.warning(
                        "the cache disk is full: writers wait until something is saved", path=self._settings.cache_dir
                    )
                    await self.save(State.RUNNING)
                    freed = await self._drop_copies()
                if freed:
                    self._room_made_at = time.monotonic()
                    return True
            except WsfsError as exc:
                log.error(
                    "the cache disk is full, and nothing could be saved to make room",
                    path=self._settings.cache_dir,
                    error=exc,
                )
            finally:
                self.ballast.restore()
            self._no_room_until = time.monotonic() + NO_ROOM_SECONDS
            return False
