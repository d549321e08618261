"""What a mount tells about what is not saved yet: how long a stop would take, which files it is, and why."""

from __future__ import annotations

import os
import time
from typing import Any, Final

import trio

from wsfs.config import MountSettings
from wsfs.model import ROOT_INO, Ino
from wsfs.repo.head import State
from wsfs.repo.pack import TARGET_SIZE
from wsfs.saver import Saver
from wsfs.sync.pace import Pace
from wsfs.sync.start import Workspace
from wsfs.tree.paths import Paths

STOP_SECONDS: Final = 0.3
"""What a stop takes when there is nothing to save: unmount, one request, the end of two processes."""

CHANGING_SECONDS: Final = 5.0
"""What has changed so lately is likely to change again."""

AT_ONCE: Final = 500
"""So many files are looked at in one step: some 20 ms."""


class Report:
    """Belongs to the trio thread."""

    def __init__(self, settings: MountSettings, workspace: Workspace, saver: Saver, pace: Pace) -> None:
        self._settings = settings
        self._workspace = workspace
        self._saver = saver
        self._pace = pace

    def forecast(self) -> dict[str, Any]:
        """For the status: how much is not saved, and for how long a stop would save it now."""
        files = len(self._unsaved())
        size = self._workspace.files.unsaved_bytes()
        running = self._saver.account()
        if running is not None:
            size = max(size, running["totalBytes"] - running["completedBytes"])
        return {
            "unsaved_files": files,
            "unsaved_bytes": size,
            "unsaved_packs": -(-size // TARGET_SIZE),
            **self.kept(),
            "stop_seconds": round(STOP_SECONDS + self._pace.round_trip + self._pace.seconds(files, size), 2),
            "saving": running,
        }

    def _unsaved(self) -> set[int]:
        """Inodes with changes, but for those that the next save takes out of the store: they stay on this machine."""
        index = self._workspace.index
        return index.dirty_inodes.difference(index.kept.sizes)

    def kept(self) -> dict[str, int]:
        """How much stays on this machine."""
        kept = self._workspace.index.kept
        return {"kept_files": kept.files, "kept_bytes": kept.bytes}

    def stays(self, path: bytes) -> bool | None:
        """Whether a path from the top stays on this machine; None if there is no such. Raises NeedRemote."""
        index = self._workspace.index
        at: Ino = ROOT_INO
        for name in filter(None, path.split(b"/")):
            found = index.dirent(at, name)
            if found is None:
                return None
            at = found.ino
        return at in index.kept

    async def unsaved(self) -> list[dict[str, Any]]:
        """Each file that is not saved, the one that waits longest first. Raises NeedRemote. There may be very many, so
        requests are answered meanwhile; what comes and goes may be in it or not."""
        index = self._workspace.index
        paths = Paths(index)
        failing = self._saver.reason if self._saver.state in (State.SYNC_FAILED, State.ERROR) else ""
        now = time.time()
        found = []
        for number, ino in enumerate(self._unsaved()):
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            inode = index.inode(ino)
            path = paths.of(ino)
            if inode is None or path is None:
                continue
            age = max(now - inode.ctime_ns / 1e9, 0.0)
            state, reason = self._why(age, failing, saving=ino in index.frozen_inodes)
            found.append(
                {
                    "path": os.fsdecode(path),
                    "size": 0 if inode.is_dir else inode.size,
                    "age": round(age, 1),
                    "state": state,
                    "reason": reason,
                }
            )
        return sorted(found, key=lambda one: -one["age"])

    def _why(self, age: float, failing: str, *, saving: bool) -> tuple[str, str]:
        if failing:
            return "failing", failing
        if saving:
            return "saving", "a save is under way"
        if age < CHANGING_SECONDS:
            return "changing", "it changed a moment ago"
        interval = self._settings.save_interval
        if self._settings.read_only:
            return "waiting", "this mount is read-only"
        return "waiting", f"it is saved every {interval:g} s" if interval else "it is saved at sync and stop"
