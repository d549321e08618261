"""What is done to a mount point from outside: by processes and files of the system, never by looking into the mount.

A daemon that waits in the kernel for its own answer cannot even be killed.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from wsfs.errors import MountError
from wsfs.log import get_log
from wsfs.mountinfo import all_mounts

log = get_log(__name__)

READ_AHEAD_KB: Final = 1024
MAX_BACKGROUND: Final = 256
"""How many requests the kernel may send at once for which no program waits itself. Reads ahead and the writing of pages
share them. Of the 12 that it allows by itself, a dozen readers whom the store keeps waiting take all, and then fsync
and close of any file wait with them."""

_CONGESTED: Final = MAX_BACKGROUND * 3 // 4
"""From so many on the kernel reads ahead less, and writes pages only if it must. It takes the same share by itself."""

_CONNECTIONS: Final = Path("/sys/fs/fuse/connections")
_ALLOW: Final = 'echo "$2" > "$1/max_background" && echo "$3" > "$1/congestion_threshold"'

ATTRIBUTE: Final = "user.wsfs.none"
"""What `ask_for_attribute` asks for. No file has it."""

_ASK: Final = """
import os, sys
try:
    os.getxattr(*sys.argv[1:])
except OSError:
    pass
"""


def is_mounted(mountpoint: Path) -> bool:
    """Whether a wsfs mount is there in this process's mount namespace."""
    return _device(mountpoint) is not None


def _device(mountpoint: Path) -> str | None:
    """The device number, as major:minor, of the newest wsfs mount that is there."""
    here = [mount for mount in all_mounts() if mount.is_wsfs and mount.mountpoint == str(mountpoint)]
    return here[-1].device if here else None


def wait_until_it_answers(mountpoint: Path) -> None:
    """Return when a request to the mount has been answered. Raises MountError when it fails."""
    command = ["stat", "--file-system", "--format=", "--", str(mountpoint)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise MountError(f"{mountpoint} does not answer: {done.stderr.strip()}")


def ask_for_attribute(mountpoint: Path) -> None:
    """Let the kernel ask for an extended attribute: it is to hear that there are none before any program asks."""
    command = [sys.executable, "-I", "-S", "-c", _ASK, str(mountpoint), ATTRIBUTE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        log.warning("the kernel was not told that there are no extended attributes", error=done.stderr.strip())


def hand_over(mountpoint: Path, seconds: float = 600.0) -> None:
    """Let the kernel send us the pages that it still holds; what takes longer than `seconds` stays there."""
    try:
        subprocess.run(["sync", "-f", str(mountpoint)], check=False, capture_output=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as exc:
        log.warning("the kernel may not have handed over all that was written", mountpoint=mountpoint, error=exc)


def unmount(mountpoint: Path, *, lazy: bool = False) -> bool:
    """Unmount; False if it is in use. -i: our own umount helper would ask this daemon."""
    commands = [["umount", "-i", *(["-l"] if lazy else []), str(mountpoint)]]
    if os.geteuid() != 0:
        commands = [[tool, "-u", *(["-z"] if lazy else []), str(mountpoint)] for tool in ("fusermount3", "fusermount")]
    for command in commands:
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if done.returncode == 0 or "not mounted" in done.stderr:
            return True
        log.info("not unmounted", mountpoint=mountpoint, error=done.stderr.strip())
        return False
    return False


def tune(mountpoint: Path) -> None:
    """Where we may (root): read ahead a mebibyte at once instead of 128 KiB, and let more requests be under way."""
    device = _device(mountpoint)
    if device is None or os.geteuid() != 0:
        return
    path = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
    try:
        path.write_text(str(READ_AHEAD_KB))
    except OSError as exc:
        if exc.errno not in (errno.EACCES, errno.EROFS, errno.ENOENT, errno.EPERM):
            log.warning("read-ahead not raised", path=path, error=exc)
    _allow_background(_CONNECTIONS / device.partition(":")[2])


def _allow_background(connection: Path) -> None:
    """pyfuse3 cannot ask for this when it mounts. What sets it is a file system of its own, which containers mostly do
    not have: then it is mounted for the moment, where nobody else sees it. That may be forbidden, too."""
    words = ["sh", "-c", _ALLOW]
    if not connection.is_dir():
        words = ["unshare", "--mount", "sh", "-c", f'mount -t fusectl none "{_CONNECTIONS}" && {_ALLOW}']
    words += ["sh", str(connection), str(MAX_BACKGROUND), str(_CONGESTED)]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        problem = done.stderr.strip() if done.returncode else ""
    except OSError as exc:
        problem = str(exc)
    if problem:
        log.info("the kernel allows few requests at a time", path=connection, error=problem)
