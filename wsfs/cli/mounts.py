"""What is mounted where, as the kernel tells it, and the few calls that commands make on a mount themselves."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from wsfs.control import real_path
from wsfs.errors import MountBusyError, MountError, SyncFailedError

log = logging.getLogger(__name__)

FSTYPE = "fuse.wsfs"
REGISTER_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    mount_id: int
    mountpoint: str
    fstype: str
    source: str
    options: tuple[str, ...]  # of the mount, then of the file system

    @property
    def is_wsfs(self) -> bool:
        return self.fstype == FSTYPE

    @property
    def owner(self) -> int:
        """The user who mounted it; FUSE notes it."""
        for option in self.options:
            if option.startswith("user_id="):
                return int(option.removeprefix("user_id="))
        return 0


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts of a mountinfo file, in the order in which they were made."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 6 or len(right) < 3:
            continue
        options = tuple(left[5].split(",") + right[2].split(","))
        mounts.append(Mount(int(left[0]), _unescape(left[4]), right[0], _unescape(right[1]), options))
    return mounts


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def all_mounts() -> list[Mount]:
    """Every mount that this process sees."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def find(mountpoint: str | os.PathLike[str]) -> Mount | None:
    """The mount on top at `mountpoint`, or None if nothing is mounted right there. Never touches the mount."""
    path = real_path(mountpoint)
    return next((mount for mount in reversed(all_mounts()) if mount.mountpoint == path), None)


def find_wsfs(mountpoint: str | os.PathLike[str]) -> Mount | None:
    """The wsfs mount on top at `mountpoint`, or None."""
    mount = find(mountpoint)
    return mount if mount is not None and mount.is_wsfs else None


def is_dead(mountpoint: str | os.PathLike[str]) -> bool:
    """Is there a mount whose daemon is gone, so that every access fails?

    Asks with statvfs(2), which always goes to the daemon: stat(2) may be answered from the kernel's memory.
    """
    try:
        os.statvfs(mountpoint)
    except OSError as exc:
        return exc.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def answers(mountpoint: str | os.PathLike[str]) -> bool:
    """Is a wsfs mounted at `mountpoint`, and does it answer?"""
    if find_wsfs(mountpoint) is None:
        return False
    try:
        device = os.stat(mountpoint).st_dev
        os.statvfs(mountpoint)
        return device != os.stat(os.path.dirname(real_path(mountpoint))).st_dev
    except PermissionError:
        return True  # a mount of another user without allow_other: the kernel refuses us before it asks the daemon
    except OSError:
        return False


def hand_over(mountpoint: str | os.PathLike[str], *, lenient: bool = False) -> None:
    """Have the kernel give the daemon every page that programs have written: syncfs(2). Blocks until it has
    them.

    Raises SyncFailedError if some could not be given. `lenient`: does nothing where we may not even open the
    mount.
    """
    try:
        descriptor = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        if lenient:  # root on a mount of a user without allow_other; the kernel hands over at the unmount as well
            return
        raise MountError(f"{mountpoint} belongs to another user, who mounted it without allow_other") from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise SyncFailedError(
                f"the kernel could not hand over everything that was written to {mountpoint}: {reason}; "
                f"nothing was unmounted, free space and try again"
            )
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
        log.warning("plain umount will not wait for the last save mountpoint=%s error=%s", mountpoint, exc)


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
