"""Random operations on a real mount and, at the same time, on a directory of this machine: both do the same.

The longer runs are made by hand: WSFS_TEST_EXAMPLES sets their number, --hypothesis-seed the first one,
and WSFS_TEST_SHRINK makes a failure small.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from calls import renameat2
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

EXAMPLES = int(os.environ.get("WSFS_TEST_EXAMPLES", "3"))
STEPS = 15
OPEN_FLAGS = (
    os.O_RDONLY,
    os.O_WRONLY,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_TRUNC,
    os.O_WRONLY | os.O_APPEND | os.O_CREAT,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDWR | os.O_NOFOLLOW,
)

name = st.sampled_from(["a", "b", "c", "n" * 255])
path = st.lists(name, min_size=1, max_size=3).map("/".join)
offset = st.sampled_from([0, 1, 4095, 4096, 100_000, (1 << 20) - 1, 1 << 20, (3 << 20) + 5])
length = st.sampled_from([0, 1, 100, 4096, 70_000, (1 << 20) + 1])
mode = st.sampled_from([0o600, 0o644, 0o755, 0o1777, 0o000])
byte = st.integers(0, 255)
slot = st.integers(0, 3)
nanoseconds = st.sampled_from([0, 1, 1_234_567_890_123_456_789, (1 << 31) * 10**9, -1_000_000_000])
operation = st.one_of(
    st.tuples(st.just("mkdir"), path, mode),
    st.tuples(st.just("write_file"), path, offset, length, byte),
    st.tuples(st.just("read_file"), path),
    st.tuples(st.just("truncate"), path, offset),
    st.tuples(st.just("unlink"), path),
    st.tuples(st.just("rmdir"), path),
    st.tuples(st.just("rename"), path, path, st.sampled_from([0, 0, 0, 1, 2, 3, 4])),
    st.tuples(st.just("link"), path, path),
    st.tuples(st.just("symlink"), st.sampled_from(["a", "../a", "b/c", "missing", "x" * 4095]), path),
    st.tuples(st.just("mkfifo"), path, mode),
    st.tuples(st.just("chmod"), path, mode),
    st.tuples(st.just("chown"), path, st.sampled_from([-1, 0, 1000]), st.sampled_from([-1, 0, 100])),
    st.tuples(st.just("utime"), path, nanoseconds, nanoseconds),
    st.tuples(st.just("listdir"), path),
    st.tuples(st.just("open"), slot, path, st.sampled_from(OPEN_FLAGS), mode),
    st.tuples(st.just("fd_write"), slot, offset, length, byte),
    st.tuples(st.just("fd_append"), slot, length, byte),
    st.tuples(st.just("fd_read"), slot, offset, length),
    st.tuples(st.just("fd_truncate"), slot, offset),
    st.tuples(st.just("fd_stat"), slot),
    st.tuples(st.just("fd_sync"), slot),
    st.tuples(st.just("close"), slot),
)


def data(size: int, value: int) -> bytes:
    """Bytes of which no two pages are the same."""
    return (bytes([value]) + (size + value).to_bytes(6, "big")) * (size // 7 + 1)


class Side:
    """One of the two directories, and the files that are open in it."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.fds: dict[int, int] = {}

    def make(self, operation: tuple[Any, ...]) -> object:
        """What the operation gives, or the errno that it fails with."""
        kind, *arguments = operation
        try:
            return getattr(self, kind)(*arguments)
        except OSError as exc:
            return errno.errorcode.get(exc.errno or 0, str(exc))

    def mkdir(self, where: str, bits: int) -> None:
        os.mkdir(self.top / where, bits)

    def write_file(self, where: str, at: int, size: int, value: int) -> int:
        fd = os.open(self.top / where, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o644)
        try:
            return os.pwrite(fd, data(size, value)[:size], at)
        finally:
            os.close(fd)

    def read_file(self, where: str) -> bytes:
        fd = os.open(self.top / where, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
        finally:
            os.close(fd)

    def truncate(self, where: str, size: int) -> None:
        os.truncate(self.top / where, size)

    def unlink(self, where: str) -> None:
        os.unlink(self.top / where)

    def rmdir(self, where: str) -> None:
        os.rmdir(self.top / where)

    def rename(self, old: str, new: str, flags: int) -> None:
        if flags == 4:  # RENAME_WHITEOUT: some have it, and we say that we do not
            return
        renameat2(self.top / old, self.top / new, flags)

    def link(self, old: str, new: str) -> None:
        os.link(self.top / old, self.top / new, follow_symlinks=False)

    def symlink(self, target: str, where: str) -> None:
        os.symlink(target, self.top / where)

    def mkfifo(self, where: str, bits: int) -> None:
        os.mkfifo(self.top / where, bits)

    def chmod(self, where: str, bits: int) -> None:
        os.chmod(self.top / where, bits)

    def chown(self, where: str, uid: int, gid: int) -> None:
        os.chown(self.top / where, uid, gid, follow_symlinks=False)

    def utime(self, where: str, atime: int, mtime: int) -> tuple[int, int]:
        os.utime(self.top / where, ns=(atime, mtime), follow_symlinks=False)
        status = os.lstat(self.top / where)
        return status.st_atime_ns, status.st_mtime_ns

    def listdir(self, where: str) -> list[str]:
        return sorted(os.listdir(self.top / where))

    def open(self, number: int, where: str, flags: int, bits: int) -> None:
        if number in self.fds:
            return
        self.fds[number] = os.open(self.top / where, flags | os.O_NONBLOCK, bits)

    def _fd(self, number: int) -> int:
        if number not in self.fds:
            raise OSError(errno.EBADF, "not open")
        return self.fds[number]

    def fd_write(self, number: int, at: int, size: int, value: int) -> int:
        return os.pwrite(self._fd(number), data(size, value)[:size], at)

    def fd_append(self, number: int, size: int, value: int) -> int:
        os.lseek(self._fd(number), 0, os.SEEK_END)
        return os.write(self._fd(number), data(size, value)[:size])

    def fd_read(self, number: int, at: int, size: int) -> bytes:
        return os.pread(self._fd(number), size, at)

    def fd_truncate(self, number: int, size: int) -> None:
        os.ftruncate(self._fd(number), size)

    def fd_stat(self, number: int) -> tuple[object, ...]:
        return self.facts(os.fstat(self._fd(number)))

    def fd_sync(self, number: int) -> None:
        os.fsync(self._fd(number))

    def close(self, number: int) -> None:
        if number in self.fds:
            os.close(self.fds.pop(number))

    def close_all(self) -> None:
        for number in list(self.fds):
            self.close(number)

    @staticmethod
    def facts(status: os.stat_result) -> tuple[object, ...]:
        """What both must have alike: a directory's size and a FIFO's are each file system's own."""
        plain = stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)
        return oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink, plain and status.st_size

    def tree(self) -> dict[str, tuple[object, ...]]:
        found: dict[str, tuple[object, ...]] = {}
        for directory, directories, files in os.walk(self.top):
            for entry in directories + files:
                where = os.path.join(directory, entry)
                status = os.lstat(where)
                content: object = None
                if stat.S_ISREG(status.st_mode):
                    content = Path(where).read_bytes()
                elif stat.S_ISLNK(status.st_mode):
                    content = os.readlink(where)
                found[os.path.relpath(where, self.top)] = (*self.facts(status), content)
        return found

    def identities(self) -> dict[str, tuple[int, int]]:
        """What a remount must not change."""
        found = {}
        for directory, directories, files in os.walk(self.top):
            for entry in directories + files:
                status = os.lstat(os.path.join(directory, entry))
                found[os.path.join(directory, entry)] = status.st_ino, status.st_mtime_ns
        return found


class Machine(RuleBasedStateMachine):
    """Both sides, and what may happen to the mount between two operations."""

    site: ClassVar[Any]
    native: ClassVar[Path]
    numbers: ClassVar[Any] = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        number = next(self.numbers)
        self.ours = Side(self.site.mountpoint / f"{number}")
        self.theirs = Side(self.native / f"{number}")
        for side in (self.ours, self.theirs):
            side.top.mkdir()

    def teardown(self) -> None:
        try:
            self.look()
        finally:
            for side in (self.ours, self.theirs):
                side.close_all()
                shutil.rmtree(side.top)

    @rule(op=operation)
    def one(self, op: tuple[Any, ...]) -> None:
        ours, theirs = self.ours.make(op), self.theirs.make(op)
        assert ours == theirs, (op, str(ours)[:200], str(theirs)[:200])

    @rule(ops=st.lists(operation, min_size=5, max_size=40))
    def several(self, ops: list[tuple[Any, ...]]) -> None:
        for op in ops:
            self.one(op)

    @rule()
    def look(self) -> None:
        assert self.ours.tree() == self.theirs.tree()

    @rule()
    def save(self) -> None:
        self.site.wsfs("sync", self.site.mountpoint)

    def between(self, change: Callable[[], object]) -> None:
        """Nothing is open when this happens, and nothing that was acknowledged may be different afterwards."""
        for side in (self.ours, self.theirs):
            side.close_all()
        before = self.ours.identities()
        change()
        assert self.ours.identities() == before
        self.look()

    @rule(how=st.sampled_from(["warm", "cold", "crash"]))
    def remount(self, how: str) -> None:
        if how == "cold":
            self.between(self.site.elsewhere)
        else:
            self.between(lambda: (self.site.umount() if how == "warm" else self.site.kill(), self.site.mount()))


@pytest.mark.timeout(0)
def test_the_same_as_a_native_directory(new_site: Callable[[Path, str], Any], tmp_path: Path) -> None:
    """Results, errnos, attributes and contents, through saves, remounts with and without the cache, and crashes."""
    Machine.site, Machine.native = new_site(tmp_path / "site", "directory").init(), tmp_path / "native"
    Machine.native.mkdir()
    Machine.site.mount()
    phases = [Phase.generate, Phase.shrink] if "WSFS_TEST_SHRINK" in os.environ else [Phase.generate]
    try:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                database=None,
                derandomize="WSFS_TEST_EXAMPLES" not in os.environ,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        Machine.site.finish()
