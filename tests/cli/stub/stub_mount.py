"""Stands in for wsfs.mount, so that the commands can be tested against real mounts without the core.

What it does is named by the URL's last part: ok, refuse, crash, die, killed, hang, slow, busy, storedown.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pyfuse3
import trio

from wsfs import control
from wsfs.config import MountSettings
from wsfs.errors import MarkerError, MountBusyError, SyncFailedError


class Empty(pyfuse3.Operations):
    """An empty directory that belongs to everybody."""

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        return

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()


def run(settings: MountSettings, ready: Callable[[], None], tell: Callable[[str], None] = lambda _notice: None) -> None:
    """Be a daemon of sorts."""
    behaviour = settings.url.rstrip("/").rpartition("/")[2]
    if behaviour == "refuse":
        raise MarkerError("the marker is missing")
    if behaviour == "crash":
        raise KeyError("oops")
    if behaviour == "die":
        os.write(2, b"last words\n")
        os._exit(9)
    if behaviour == "killed":
        os.write(2, b"last words\n")
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour in ("hang", "slow"):
        tell(f"{behaviour}ing")
        time.sleep(1 if behaviour == "slow" else 1000)
    options = set(pyfuse3.default_options) | {f"fsname={settings.url}", "subtype=wsfs", *settings.kernel_options}
    pyfuse3.init(Empty(), str(settings.mountpoint), options)
    trio.run(_serve, settings, behaviour, ready)
    pyfuse3.close()


async def _serve(settings: MountSettings, behaviour: str, ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:

        async def answer(message: dict[str, Any]) -> dict[str, Any]:
            if message["op"] == "status":
                state = {"state": "RUNNING", "unsaved_files": 3, "unsaved_bytes": 1500}
                return state | {"url": settings.url, "cache_dir": settings.cache_dir, "pid": os.getpid()}
            if behaviour == "busy" and message["op"] == "stop":
                raise MountBusyError(f"{settings.mountpoint} is in use by sleep (4711)")
            if behaviour == "storedown":
                raise SyncFailedError("the store is down; everything stays in the cache")
            if message["op"] == "stop":
                command = ["umount", "-i", str(settings.mountpoint)]
                await trio.to_thread.run_sync(lambda: subprocess.run(command, check=True))
            return {"files": 3, "bytes": 1500, "seconds": 0.25, "seq": 7, "requests": 4}

        await nursery.start(control.serve, control.socket_path(settings.mountpoint), answer)
        nursery.start_soon(_kernel, nursery.cancel_scope)
        await trio.to_thread.run_sync(os.statvfs, settings.mountpoint)
        await trio.to_thread.run_sync(ready)


async def _kernel(scope: trio.CancelScope) -> None:
    await pyfuse3.main()
    await trio.sleep(0.05)  # a save after the unmount
    scope.cancel()
