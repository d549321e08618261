"""Locks among the processes of this machine."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import fails_with, python

OFD_SETLK = 37


def ofd(file: object, kind: int) -> None:
    """Ask for an open-file-description lock on the first ten bytes, without waiting."""
    fcntl.fcntl(file, OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 10, 0))  # type: ignore[call-overload]


def test_flock(here: Path) -> None:
    """One exclusive holder, or many shared ones; closing lets go."""
    with (here / "file").open("w") as one, (here / "file").open("w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        fails_with(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fails_with(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fails_with(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        one.close()
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
def test_locks_among_processes(here: Path, lock: Callable[..., None]) -> None:
    """Who waits for a lock gets it when its holder dies; until then a try fails."""
    path = here / "file"
    script = f"import fcntl, sys; f = open(sys.argv[1], 'r+'); fcntl.{lock.__name__}(f, fcntl.LOCK_EX);"
    path.touch()
    script += "print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with path.open("r+") as file:
        with pytest.raises(BlockingIOError):
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiter = subprocess.Popen(
            [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        holder.kill()
        holder.communicate()
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "held\n"
        waiter.communicate("")
        lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_ranges(here: Path) -> None:
    """fcntl locks are for ranges of bytes, and F_GETLK names who is in the way."""
    path = here / "file"
    path.write_bytes(bytes(100))
    with path.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)
        script = """
import fcntl, struct
f = open(sys.argv[1], "r+b")
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 20, 0)
fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 30)
refused(errno.EAGAIN, fcntl.lockf, f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 29)
answer = fcntl.fcntl(f, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
kind, _, start, length, pid = struct.unpack("hhqqi4x", answer)
assert (kind, start, length, pid) == (fcntl.F_WRLCK, 20, 10, int(sys.argv[2])), (kind, start, length, pid)
"""
        python(script, path, os.getpid())


def test_locks_of_open_file_descriptions(here: Path) -> None:
    """They belong to the descriptor, also within one process."""
    with (here / "file").open("w") as one, (here / "file").open("w") as two:
        ofd(one, fcntl.F_WRLCK)
        fails_with(errno.EAGAIN, ofd, two, fcntl.F_WRLCK)
        ofd(one, fcntl.F_UNLCK)
        ofd(two, fcntl.F_WRLCK)


def test_counting_under_a_lock(here: Path) -> None:
    """Four processes that add to one number, each under a lock, miss no step."""
    path = here / "number"
    for kind in ("flock", "lockf"):
        path.write_text("0")
        script = f"""
import fcntl, sys
for _ in range(100):
    with open(sys.argv[1], "r+") as file:
        fcntl.{kind}(file, fcntl.LOCK_EX)
        number = int(file.read())
        file.seek(0)
        file.write(str(number + 1))
"""
        workers = [subprocess.Popen([sys.executable, "-c", script, path]) for _ in range(4)]
        assert [worker.wait(60) for worker in workers] == [0] * 4
        assert path.read_text() == "400"
