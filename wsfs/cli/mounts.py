"""What is mounted where, as the kernel tells it, and the few calls that commands make on a mount themselves."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
from enum import Enum
from pathlib import Path

from wsfs.control import real_path
from wsfs.errors import MountBusyError, MountError
from wsfs.log import get_log
from wsfs.mountinfo import FSTYPE
from wsfs.mountinfo import Mount as Mount
from wsfs.mountinfo import all_mounts as all_mounts

log = get_log(__name__)

REGISTER_TIMEOUT = 10.0
ANSWER_SECONDS = 5.0
KILL_SECONDS = 1.0


def find(mountpoint: str | os.PathLike[str]) -> Mount | None:
    """The mount on top at `mountpoint`, or None if nothing is mounted right there. Never touches the mount."""
    path = real_path(mountpoint)
    return next((mount for mount in reversed(all_mounts()) if mount.mountpoint == path), None)


def containing(path: str | os.PathLike[str]) -> Mount | None:
    """The mount in which `path` lies, a real path. Never touches the mount."""
    inside = f"{os.fspath(path).rstrip('/')}/"
    best: Mount | None = None
    for mount in all_mounts():  # a later one at the same place hides an earlier one
        top = f"{mount.mountpoint.rstrip('/')}/"
        if inside.startswith(top) and (best is None or len(mount.mountpoint) >= len(best.mountpoint)):
            best = mount
    return best


def find_wsfs(mountpoint: str | os.PathLike[str]) -> Mount | None:
    """The wsfs mount on top at `mountpoint`, or None."""
    mount = find(mountpoint)
    return mount if mount is not None and mount.is_wsfs else None


class Pulse(Enum):
    """How a mount takes a question."""

    ANSWERS = "it answers"
    DEAD = "its daemon is gone, so that every access fails"
    SILENT = "no answer comes in time"


def pulse(mountpoint: str | os.PathLike[str]) -> Pulse:
    """Ask a mount whether it is there. Takes ANSWER_SECONDS at most.

    Asks with statfs(2), which always goes to the daemon: stat(2) may be answered from the kernel's memory. Asks in a
    process of its own: what waits in the kernel for a daemon that hangs can perhaps not even be killed.
    """
    command = ["stat", "--file-system", "--format=", "--", real_path(mountpoint)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        complaint = process.communicate(timeout=ANSWER_SECONDS)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_SECONDS)
        return Pulse.SILENT
    dead = any(os.strerror(number) in complaint for number in (errno.ENOTCONN, errno.ECONNABORTED))
    return Pulse.DEAD if dead else Pulse.ANSWERS


def is_dead(mountpoint: str | os.PathLike[str]) -> bool:
    """Is there a mount whose daemon is gone, so that every access fails?"""
    return pulse(mountpoint) is Pulse.DEAD


def answers(mountpoint: str | os.PathLike[str]) -> bool:
    """Is a wsfs mounted at `mountpoint`, and does it answer? For a mount that we may not use the kernel does."""
    return find_wsfs(mountpoint) is not None and pulse(mountpoint) is Pulse.ANSWERS


def check(where: Path, *, allow_other: bool) -> None:
    """Raise MountError unless something can be mounted there. A dead mount is no obstacle."""
    mounted = find_wsfs(where)
    if mounted is not None:
        if not is_dead(where):
            raise MountError(f"{where} is mounted already, from {mounted.source}: 'wsfs umount {where}' first")
        return
    if not where.is_dir():
        missing = "does not exist: make it with mkdir" if not where.exists() else "is not a directory"
        raise MountError(f"the mount point {where} {missing}")
    if os.geteuid() != 0 and not os.access(where, os.W_OK):
        raise MountError(f"this user may not write to {where}, and so not mount there: choose a directory of your own")
    if not os.path.exists("/dev/fuse"):
        raise MountError("this machine has no /dev/fuse: load the fuse module, or give the container the device")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError("this user may not open /dev/fuse: chmod 666 it, as most systems have it, or mount as root")
    if allow_other and os.geteuid() != 0 and not others_allowed():
        raise MountError(
            "allow_other is for root alone on this machine: add a line 'user_allow_other' to /etc/fuse.conf, or mount"
            " without it"
        )


def others_allowed() -> bool:
    """Whether fusermount3 lets every user open a mount to others."""
    try:
        lines = Path("/etc/fuse.conf").read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)


def hand_over(mountpoint: str | os.PathLike[str], *, lenient: bool = False) -> str | None:
    """Have the kernel give the daemon every page that programs have written: syncfs(2). Blocks until it has
    them.

    Returns what the kernel complains of, which the daemon can judge: perhaps a program knows that already. "" if
    all is well. `lenient`: does nothing where we may not even open the mount, and returns None.
    """
    try:
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        if lenient:  # root on a mount of a user without allow_other; the kernel hands over at the unmount as well
            return None
        raise MountError(f"{mountpoint} belongs to another user, who mounted it without allow_other") from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return "" if libc.syncfs(descriptor) == 0 else os.strerror(ctypes.get_errno())
    finally:
        os.close(descriptor)


def register(url: str, mountpoint: str | os.PathLike[str]) -> None:
    """Make plain umount(8) call our helper, by noting the mount in libmount's table of user-space options.

    Without an entry there root's umount asks only statfs(2) for the type, learns "fuse" and never looks for
    umount.fuse.wsfs. Nothing is mounted here (-f). Best effort, and for root only: libmount lets nobody else.
    """
    if os.geteuid() != 0:
        return
    options = ["--no-canonicalize", "-i", "-f", "-t", FSTYPE, "-o", "uhelper=wsfs"]
    try:
        subprocess.run(
            ["mount", *options, "--", url, real_path(mountpoint)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=REGISTER_TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError) as exc:
        log.warning(
            "plain umount will not wait for the last save",
            mountpoint=mountpoint,
            error=exc,
            remedy=f"stop it with 'wsfs umount {mountpoint}'",
        )


def unmount(mountpoint: str | os.PathLike[str], *flags: str) -> None:
    """Take the mount away at once, whoever serves it, without our helper. `flags` as for umount(8): -l, -f.

    Raises MountBusyError while programs use it.
    """
    if os.geteuid() == 0:
        command = ["umount", "-i", *flags, "--", real_path(mountpoint)]
    else:
        command = ["fusermount3", "-u", *(["-z"] if "-l" in flags else []), "--", real_path(mountpoint)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MountError(f"{command[0]} is missing: install util-linux and fuse3") from None
    if result.returncode != 0:
        kind = MountBusyError if "busy" in result.stderr else MountError
        raise kind(f"{mountpoint} could not be unmounted: {' '.join(result.stderr.split())}")
