"""What commands ask of the daemon of a mount: status, sync, stop. Prints nothing."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsfs import control
from wsfs.cli import mounts
from wsfs.errors import DeadlineError, MountError, NotMountedError, SyncFailedError, UsageError

STATUS_TIMEOUT = 10.0


def socket_of(mountpoint: str | os.PathLike[str]) -> Path:
    """The control socket for `mountpoint`: that of whoever mounted it, else where ours would be."""
    mount = mounts.find_wsfs(mountpoint)
    return control.socket_path(mountpoint, mount.owner if mount is not None else None)


def status(mountpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """The state of the mount, from the daemon, else from what is left of it. Raises NotMountedError.

    Always has "state" and "mountpoint"; the other fields are the daemon's, as far as they are known.
    """
    mount = mounts.find_wsfs(mountpoint)
    known: dict[str, Any] = {"mountpoint": control.real_path(mountpoint)}
    if mount is not None:
        known["url"] = mount.source
    try:
        answer = control.request(socket_of(mountpoint), {"op": "status"}, timeout=STATUS_TIMEOUT)
        return known | {name: value for name, value in answer.items() if name != "ok"}
    except NotMountedError:
        pass
    except UsageError as exc:  # it is another user's
        return known | {"state": "RUNNING" if mounts.answers(mountpoint) else "ERROR", "reason": str(exc)}
    record = control.read_record(mountpoint, mount.owner if mount is not None else None)
    if mount is not None and mounts.is_dead(mountpoint):
        cache = (record or {}).get("cache_dir")
        return known | {"state": "ERROR", "reason": f"the daemon died; {kept(cache)}", "cache_dir": cache}
    if mount is not None:
        return known | {"state": "RUNNING", "reason": "the mount answers, but not its control socket"}
    if record is None:
        raise NotMountedError(
            f"no workspace is mounted at {mountpoint}: 'wsfs status' lists all, 'wsfs mount' mounts one"
        )
    if record.get("state") in ("STARTING", "RUNNING", "STOPPING"):
        record |= {"state": "ERROR", "reason": f"the daemon died; {kept(record.get('cache_dir'))}"}
    return known | record


def kept(cache_dir: object) -> str:
    """Where the changes are that are not in the store yet, and how they get there."""
    where = f"in {cache_dir}" if cache_dir else "in the cache directory"
    return f"changes that were not saved stay {where}, and the next mount with this cache saves them"


def sync(mountpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Push everything now; returns the daemon's account when it is durable. Blocks as long as that takes."""
    if mounts.find_wsfs(mountpoint) is None:
        raise NotMountedError(f"no workspace is mounted at {mountpoint}: 'wsfs status' lists those that are")
    if mounts.is_dead(mountpoint):
        raise SyncFailedError(f"the daemon of {mountpoint} died; {kept(None)}: unmount it and mount it again")
    path = socket_of(mountpoint)
    mounts.hand_over(mountpoint)
    return control.request(path, {"op": "sync"})


def unsaved(mountpoint: str | os.PathLike[str]) -> list[str]:
    """The paths of everything on the mount that is not saved, for os.fsencode."""
    if mounts.find_wsfs(mountpoint) is None:
        raise NotMountedError(f"no workspace is mounted at {mountpoint}: 'wsfs status' lists those that are")
    answer = control.request(socket_of(mountpoint), {"op": "unsaved"})
    return [str(path) for path in answer["paths"]]


def stop(mountpoint: str | os.PathLike[str], deadline: float | None = None) -> dict[str, Any]:
    """Push everything, unmount and end the daemon; returns its account when all is durable and it is gone.

    Whenever it raises, not everything is known to be saved. The mount is then still there, except after a
    daemon that had died: its dead mount is taken away, and the error says where the unsaved changes are. With a
    deadline, in seconds, it is gone by then unless programs use it; raises DeadlineError if not all is saved.
    """
    mount = mounts.find_wsfs(mountpoint)
    path = socket_of(mountpoint)
    pid = control.daemon_pid(path)
    if pid is None:
        if mount is None:
            raise NotMountedError(f"no workspace is mounted at {mountpoint}: 'wsfs status' lists those that are")
        _take_away_dead(mountpoint, path, mount)
    with watching(pid) as wait:
        if deadline is not None:
            answer = _stop_by(path, deadline, wait)
        else:
            if mount is not None and not mounts.is_dead(mountpoint):
                mounts.hand_over(mountpoint, lenient=True)
            answer = control.request(path, {"op": "stop"})
            wait()
    left = mounts.find_wsfs(mountpoint)
    if left is not None and mount is not None and left.mount_id == mount.mount_id:
        raise MountError(f"everything is saved, but {mountpoint} is still mounted: umount -i {mountpoint}")
    return answer


def _stop_by(path: Path, deadline: float, wait: Callable[[], None]) -> dict[str, Any]:
    """A stop with a deadline, of which the daemon itself takes care."""
    try:
        answer = control.request(path, {"op": "stop", "deadline": deadline})
    except DeadlineError:
        wait()
        raise
    wait()
    return answer


def _take_away_dead(mountpoint: str | os.PathLike[str], path: Path, mount: mounts.Mount) -> None:
    if not mounts.is_dead(mountpoint):
        raise MountError(
            f"{mountpoint} answers, but nobody listens at {path}: was it mounted with another WSFS_RUNTIME_DIR "
            f"or XDG_RUNTIME_DIR? 'umount -i {mountpoint}' unmounts it, and its daemon saves after that"
        )
    record = control.read_record(mountpoint, mount.owner) or {}
    mounts.unmount(mountpoint, "-l")  # nothing that still uses it can do anything but close
    raise SyncFailedError(f"unmounted, but the daemon had died before; {kept(record.get('cache_dir'))}")


@contextlib.contextmanager
def watching(pid: int | None) -> Any:
    """Gives a call that blocks until process `pid` has ended; safe although numbers are used again."""
    descriptor: int | None = None
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)

    def wait() -> None:
        if descriptor is not None:
            select.select([descriptor], [], [])

    try:
        yield wait
    finally:
        if descriptor is not None:
            os.close(descriptor)


def wait_for_predecessor(mountpoint: str | os.PathLike[str], report: Callable[[str], None]) -> None:
    """Block while a daemon that has lost its mount here still saves; says so to `report` first."""
    pid = control.daemon_pid(control.socket_path(mountpoint))
    if pid is not None and pid != os.getpid() and mounts.find_wsfs(mountpoint) is None:
        report("waiting for the previous mount to finish saving")
        with watching(pid) as wait:
            wait()
