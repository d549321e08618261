"""A read-only mount beside a writer: it moves to newer commits when it is told to, or every so often."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio

from wsfs.errands import Errands
from wsfs.errors import UsageError, WsfsError
from wsfs.kernel.invalidate import invalidate
from wsfs.kernel.operations import Operations
from wsfs.log import get_log
from wsfs.store.base import Store
from wsfs.sync.evict import Evictor
from wsfs.sync.follow import follow
from wsfs.sync.progress import DOWNLOAD, Progress
from wsfs.sync.start import Workspace

log = get_log(__name__)


class Follower:
    """Belongs to the trio thread."""

    def __init__(
        self, store: Store, workspace: Workspace, operations: Operations, evictor: Evictor, errands: Errands
    ) -> None:
        self._store = store
        self._workspace = workspace
        self._operations = operations
        self._evictor = evictor
        self._errands = errands

    async def follow(self) -> dict[str, Any]:
        """Move to the newest commit; what docs/JSON.md says about it. Raises StoreError, FormatError, CacheError;
        UsageError on a writable mount."""
        if self._workspace.lease is not None:
            raise UsageError("this mount is the one that writes: it shows the newest state already")
        progress = Progress(DOWNLOAD)
        index, overlay = self._workspace.index, self._workspace.overlay
        async with self._evictor.still:
            moved = await self._errands.run(partial(follow, self._store, index, self._errands.on_owner, progress))
            if moved is not None:
                self._workspace.head = moved.version
                here = await trio.to_thread.run_sync(lambda: moved.inodes.intersection(overlay.inodes()))
                self._workspace.files.replaced(moved.inodes, here)
                known = [ino for ino in moved.inodes if self._operations.is_known(ino)]
                names = [name for name in moved.names if self._operations.is_known(name[0])]
                # In a thread: see there. Meanwhile the kernel still shows some of the old commit.
                await trio.to_thread.run_sync(invalidate, known, names)
                log.info("moved to a newer commit", seq=moved.version.head.seq, files=len(moved.inodes))
        head = self._workspace.head.head
        return progress.account() | {"seq": head.seq, "saved_at": head.saved_at, "state": "RUNNING"}

    async def run(self, interval: float) -> None:
        """Follow every `interval` seconds. A failure is tried again the next time."""
        while True:
            await trio.sleep(interval)
            try:
                await self.follow()
            except WsfsError as exc:
                log.warning("not moved to the newest commit, it is tried again", error=exc)
