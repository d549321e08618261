"""What commands ask of the daemon of a mount: status, sync, stop. Prints nothing."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsfs import control
from wsfs.cli import mounts
from wsfs.errors import DeadlineError, MountError, NotMountedError, SyncFailedError, UsageError, WsfsError

if TYPE_CHECKING:
    from wsfs.cli.progress import Display

STATUS_TIMEOUT = 10.0
DYING_SECONDS = 2.0  # between a daemon's last breath and the end of its process: it may have much memory to give back
DIED = "the daemon died"
ELSEWHERE = "was it mounted with another WSFS_RUNTIME_DIR or XDG_RUNTIME_DIR?"
SILENCE_SECONDS = 120.0
"""A daemon at work says so every few seconds. A slow cache disk may keep it from that for a while, but not so long."""
SIGN_SECONDS = 5.0  # between two signs of life that nobody sees
MARGIN_SECONDS = 10.0
"""A daemon keeps a deadline to a second or two. Who has set one waits for so much longer, and no more."""


class UnansweredError(DeadlineError):
    """A daemon did not answer when a stop had to be over: what it has done is not known."""


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
        answer = _state(socket_of(mountpoint))
        return known | {name: value for name, value in answer.items() if name != "ok"}
    except NotMountedError:
        pass
    except UsageError as exc:  # it is another user's
        return known | {"state": "RUNNING" if mounts.answers(mountpoint) else "ERROR", "reason": str(exc)}
    except control.SilentError as exc:
        return known | {"state": "ERROR", "reason": str(exc)}
    except WsfsError as exc:
        return known | {"state": "ERROR", "reason": f"{exc}. {control.HANGS}"}
    record = control.read_record(mountpoint, mount.owner if mount is not None else None)
    if mount is not None:
        return known | _without_socket(mount, (record or {}).get("cache_dir"))
    if record is None:
        raise NotMountedError(
            f"no workspace is mounted at {mountpoint}: 'wsfs status' lists all, 'wsfs mount' mounts one"
        )
    if record.get("state") in ("STARTING", "RUNNING", "STOPPING"):
        record |= {"state": "ERROR", "reason": f"{DIED}; {kept(record.get('cache_dir'))}"}
    return known | record


def _state(path: Path) -> dict[str, Any]:
    """What the daemon behind `path` says of itself. One that was killed hangs up on those who ask, and is gone a moment
    later: it is asked again until it answers, is gone (NotMountedError), or has had DYING_SECONDS for either."""
    give_up = time.monotonic() + DYING_SECONDS
    while True:
        try:
            return control.request(path, {"op": "status"}, timeout=STATUS_TIMEOUT)
        except control.HungUpError:
            if time.monotonic() >= give_up:
                raise
        time.sleep(0.05)


def _without_socket(mount: mounts.Mount, cache: object) -> dict[str, Any]:
    """How a mount is, if nobody listens at its control socket, or the socket is not where we look."""
    found = mounts.pulse(mount.mountpoint)
    if found is mounts.Pulse.DEAD:
        return {"state": "ERROR", "reason": f"{DIED}; {kept(cache)}", "cache_dir": cache}
    if found is mounts.Pulse.SILENT:
        reason = f"the mount did not answer within {mounts.ANSWER_SECONDS:g} s. {control.HANGS}"
        return {"state": "ERROR", "reason": reason}
    return {"state": "RUNNING", "reason": f"the mount answers, but nobody listens at its control socket: {ELSEWHERE}"}


def kept(cache_dir: object) -> str:
    """Where the changes are that are not in the store yet, and how they get there."""
    where = f"in {cache_dir}" if cache_dir else "in the cache directory"
    return f"changes that were not saved stay {where}, and the next mount with this cache saves them"


def sync(mountpoint: str | os.PathLike[str], display: Display | None = None) -> dict[str, Any]:
    """Push everything now; returns the daemon's account when it is durable. Blocks as long as that takes."""
    if mounts.find_wsfs(mountpoint) is None:
        raise NotMountedError(f"no workspace is mounted at {mountpoint}: 'wsfs status' lists those that are")
    if mounts.is_dead(mountpoint):
        raise SyncFailedError(f"the daemon of {mountpoint} died; {kept(None)}: unmount it and mount it again")
    path = socket_of(mountpoint)
    kernel = _hand_over(path, mountpoint)
    return ask(path, {"op": "sync", "kernel": kernel}, display)


def refresh(mountpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Move a read-only mount to the newest commit. Raises UsageError on a writable one."""
    if mounts.find_wsfs(mountpoint) is None:
        raise NotMountedError(f"no workspace is mounted at {mountpoint}: 'wsfs status' lists those that are")
    return ask(socket_of(mountpoint), {"op": "refresh"})


def unsaved(mountpoint: str | os.PathLike[str]) -> list[str]:
    """The paths of everything on the mount that is not saved, for os.fsencode."""
    if mounts.find_wsfs(mountpoint) is None:
        raise NotMountedError(f"no workspace is mounted at {mountpoint}: 'wsfs status' lists those that are")
    answer = ask(socket_of(mountpoint), {"op": "unsaved"})
    return [str(path) for path in answer["paths"]]


def ask(
    path: Path, message: dict[str, Any], display: Display | None = None, limit: float | None = None
) -> dict[str, Any]:
    """A request that may take long, with its progress shown. Raises SilentError if the daemon hangs, or takes longer
    than `limit`."""
    if display is None:
        return control.request(path, message | {"progress": SIGN_SECONDS}, SILENCE_SECONDS, limit=limit)
    with display:
        return control.request(path, message | {"progress": display.pause}, SILENCE_SECONDS, limit=limit, tell=display)


def told(mountpoint: str | os.PathLike[str], message: dict[str, Any]) -> dict[str, Any]:
    """What the daemon of a mount answers to `ask`, for a command to show."""
    return {name: value for name, value in ask(socket_of(mountpoint), message).items() if name != "ok"}


def _hand_over(path: Path, mountpoint: str | os.PathLike[str], *, lenient: bool = False) -> str | None:
    """mounts.hand_over, which would wait for ever for a daemon that hangs: so that one is asked first."""
    control.request(path, {"op": "status"}, SILENCE_SECONDS)
    return mounts.hand_over(mountpoint, lenient=lenient)


def unsaved_files(mountpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """What `wsfs unsaved` shows."""
    if mounts.find_wsfs(mountpoint) is None:
        raise NotMountedError(f"no workspace is mounted at {mountpoint}: 'wsfs status' lists those that are")
    return ask(socket_of(mountpoint), {"op": "unsaved", "details": True})


def stays(mountpoint: str | os.PathLike[str], path: str) -> bool | None:
    """Whether a path from the top stays on this machine; None if there is no such."""
    answer: bool | None = ask(socket_of(mountpoint), {"op": "stays", "path": path})["stays"]
    return answer


def only_mount() -> str:
    """The mount point of the writable workspace that is meant where none is named. Raises as `unnamed`."""
    return unnamed(lambda mount: "ro" not in mount.options, "mount one with 'wsfs mount URL MOUNTPOINT'").mountpoint


def unnamed(fits: Callable[[mounts.Mount], bool], instead: str) -> mounts.Mount:
    """The workspace that the current directory is in, or else the only one here that the caller may control, of those
    that fit. Raises UsageError if there are several, or NotMountedError, which says what to do `instead`."""
    with contextlib.suppress(FileNotFoundError):
        around = mounts.containing(os.getcwd())
        if around is not None and around.is_wsfs and fits(around):
            return around
    there = [mount for mount in mounts.all_mounts() if mount.is_wsfs and fits(mount)]
    if not there:
        raise NotMountedError(f"no workspace is mounted on this machine: {instead}")
    found = {mount.mountpoint: mount for mount in there if _may_control(mount)}
    if not found:
        others = ", ".join(sorted({mount.mountpoint for mount in there}))
        raise NotMountedError(
            f"no workspace of yours is mounted on this machine, only those of other users ({others}): {instead}, or try"
            " sudo"
        )
    if len(found) > 1:
        raise UsageError(f"several workspaces are mounted here: name one of {', '.join(sorted(found))}")
    return found.popitem()[1]


def _may_control(mount: mounts.Mount) -> bool:
    """Whether this user has mounted it, or is root or its operator, who owns its socket."""
    if os.geteuid() in (0, mount.owner):
        return True
    with contextlib.suppress(WsfsError):
        return os.access(control.socket_path(mount.mountpoint, mount.owner), os.W_OK)
    return False


def stop(
    mountpoint: str | os.PathLike[str], deadline: float | None = None, display: Display | None = None
) -> dict[str, Any]:
    """Push everything, unmount and end the daemon; returns its account when all is durable and it is gone.

    Whenever it raises, not everything is known to be saved. The mount is then still there, except after a
    daemon that had died: its dead mount is taken away, and the error says where the unsaved changes are. With a
    deadline, in seconds, it is gone by then unless programs use it; raises DeadlineError if not all is saved, and
    UnansweredError, with the mount as it was, if the daemon hangs.
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
            record = control.read_record(mountpoint, mount.owner if mount is not None else None) or {}
            answer = _stop_by(path, deadline, wait, display, pid, record.get("cache_dir"))
        else:
            kernel: str | None = None
            if mount is not None and not mounts.is_dead(mountpoint):
                kernel = _hand_over(path, mountpoint, lenient=True)
            answer = ask(path, {"op": "stop", "handed_over": kernel is not None, "kernel": kernel}, display)
            wait()
    left = mounts.find_wsfs(mountpoint)
    if left is not None and mount is not None and left.mount_id == mount.mount_id:
        raise MountError(f"everything is saved, but {mountpoint} is still mounted: umount -i {mountpoint}")
    return answer


def _stop_by(
    path: Path,
    deadline: float,
    wait: Callable[[float], bool],
    display: Display | None,
    pid: int | None,
    cache_dir: object,
) -> dict[str, Any]:
    """A stop with a deadline, of which the daemon itself takes care, unless it hangs."""
    try:
        answer = ask(path, {"op": "stop", "deadline": deadline}, display, deadline + MARGIN_SECONDS)
    except control.SilentError as exc:
        raise UnansweredError(
            f"{exc.what}; nothing that it has received is lost: {kept(cache_dir)};"
            f" it may still end by itself, and else end it with 'kill -9 {pid}' and mount again"
        ) from exc
    except DeadlineError:
        wait(MARGIN_SECONDS)
        raise
    if not wait(MARGIN_SECONDS):
        raise MountError(f"everything is saved, but the daemon has not ended: end it with 'kill -9 {pid}'")
    return answer


def _take_away_dead(mountpoint: str | os.PathLike[str], path: Path, mount: mounts.Mount) -> None:
    if not mounts.is_dead(mountpoint):
        raise MountError(
            f"{mountpoint} answers, but nobody listens at {path}: {ELSEWHERE} 'umount -i {mountpoint}' unmounts it, and"
            " its daemon saves after that"
        )
    record = control.read_record(mountpoint, mount.owner) or {}
    mounts.unmount(mountpoint, "-l")  # nothing that still uses it can do anything but close
    raise SyncFailedError(f"unmounted, but the daemon had died before; {kept(record.get('cache_dir'))}")


@contextlib.contextmanager
def watching(pid: int | None) -> Any:
    """Gives a call that blocks until process `pid` has ended, or for some seconds, and says whether it has; safe
    although numbers are used again."""
    descriptor: int | None = None
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)

    def wait(seconds: float | None = None) -> bool:
        return descriptor is None or bool(select.select([descriptor], [], [], seconds)[0])

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
