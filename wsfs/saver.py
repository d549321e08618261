"""Pushes what has changed, and knows how that goes: the state of a mount and, when it is not well, the reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from wsfs.config import MountSettings
from wsfs.data.ballast import Ballast
from wsfs.errors import FencedError, WsfsError
from wsfs.kernel import mountpoint as mountpoints
from wsfs.kernel.operations import Operations
from wsfs.repo.head import State
from wsfs.sync.commit import Committer, Saved
from wsfs.sync.evict import Evictor
from wsfs.sync.start import CacheDirectory
from wsfs.sync.upload import Limit

log = logging.getLogger(__name__)

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
    ) -> None:
        self._settings = settings
        self._cache = cache
        self._committer = committer
        self._evictor = evictor
        self._operations = operations
        self._saving = trio.Lock()
        self._ballast = Ballast(settings.cache_dir)
        self._making_room = trio.Lock()
        self._no_room_until = self._room_made_at = 0.0
        self.state = State.STARTING
        self.reason = ""
        self.last_saved = time.time()

    def set_state(self, state: State) -> None:
        self.state = state
        try:
            self._cache.note(str(self._settings.mountpoint), state)
        except OSError as exc:
            log.warning("state not noted in the cache directory: %s", exc)

    @property
    def busy(self) -> bool:
        """Whether a commit is under way, if only in a thread that nobody waits for any more."""
        return self._committer is not None and self._committer.busy.locked()

    async def save(self, state: State, *, may_fold: bool = True, limit: Limit | None = None) -> Saved | None:
        """Push everything; with a limit, what fits into it. Raises StoreError, FencedError, CacheError.

        When it is cancelled, the commit goes on in its thread, and the next one waits for that.
        """
        committer = self._committer
        if committer is None:
            return None
        async with self._saving:
            try:
                saved = await trio.to_thread.run_sync(
                    lambda: committer.commit(state, may_fold=may_fold, limit=limit),
                    abandon_on_cancel=True,
                )
            except FencedError as exc:
                await self.fence(exc)
                raise
            except WsfsError as exc:
                self.reason = str(exc)
                if self.state == State.RUNNING:
                    self.set_state(State.SYNC_FAILED)
                raise
            self.reason = ""
            if self.state == State.SYNC_FAILED:
                self.set_state(State.RUNNING)
            self.last_saved = time.time()
            if saved is not None:
                log.info(
                    "saved: seq=%d files=%d bytes=%d sent=%d puts=%d left=%d seconds=%.2f",
                    saved.seq,
                    saved.files,
                    saved.bytes,
                    saved.sent,
                    saved.puts,
                    saved.left,
                    saved.seconds,
                )
            return saved

    async def fence(self, exc: FencedError) -> None:
        """Another mount has the workspace now: nothing may change here any more, and all of it stays readable."""
        self.reason = str(exc)
        if self.state != State.STOPPING:
            self.set_state(State.ERROR)
        if self._operations.read_only:
            return
        log.error("%s", exc)
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
        if deleting and self._ballast.release():
            return True
        async with self._making_room:
            if asked < self._room_made_at:
                return True
            if asked < self._no_room_until:
                return False
            try:
                freed = await self._evictor.drop_all()
                if not freed:
                    log.warning("the cache disk is full: writers wait until something is saved")
                    self._ballast.release()  # a commit writes a little itself
                    await self.save(State.RUNNING)
                    freed = await self._evictor.drop_all()
                if freed:
                    self._room_made_at = time.monotonic()
                    return True
            except WsfsError as exc:
                log.error("the cache disk is full, and nothing could be saved to make room: %s", exc)
            finally:
                self._ballast.restore()
            self._no_room_until = time.monotonic() + NO_ROOM_SECONDS
            return False
