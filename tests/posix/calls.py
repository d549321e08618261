"""System calls that Python does not have, other users, and what tests expect of them."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

MIB = 1 << 20
AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
CLOCK_REALTIME_COARSE = 5
NOBODY = 65534

libc = ctypes.CDLL(None, use_errno=True)


def fails_with(number: int, call: Callable[..., object], *arguments: object) -> None:
    """`call` must raise OSError with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        call(*arguments)
    assert caught.value.errno == number, caught.value


def checked(result: int) -> int:
    """The result of a libc call; raises OSError if it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: Path, new: Path, flags: int) -> None:
    """rename(2) with flags."""
    checked(libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def linkat(old: str, new: Path, flags: int) -> None:
    """link(2) with flags."""
    checked(libc.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def tick() -> None:
    """Let the kernel's coarse clock, which stamps files, go beyond every stamp that there can be.

    One step of it is not enough: since Linux 6.13 a stamp is no older than the newest fine one of any file system, and
    when the timer comes late that may lie beyond the next step.
    """
    now = time.time_ns()
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= now:
        time.sleep(0.001)


def as_user(uid: int = NOBODY, gid: int | None = None, groups: Collection[int] = ()) -> list[str]:
    """The beginning of a command line that runs the rest as another user, without any capability."""
    also = f"--groups={','.join(map(str, groups))}" if groups else "--clear-groups"
    return ["setpriv", f"--reuid={uid}", f"--regid={uid if gid is None else gid}", also]


def python(script: str, *arguments: object, user: Collection[str] = (), cwd: Path | None = None) -> str:
    """What a Python script prints. `refused(errno, call, *arguments)` is there for it."""
    begin = (
        "import errno, os, sys\n"
        "def refused(number, call, *args):\n"
        "    try: call(*args)\n"
        "    except OSError as exc: assert exc.errno == number, (exc, args)\n"
        "    else: raise SystemExit(f'allowed: {call} {args}')\n"
    )
    words = [*user, sys.executable, "-c", begin + script, *map(str, arguments)]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=cwd, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout
