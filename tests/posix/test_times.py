"""Times."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from calls import tick

if TYPE_CHECKING:
    from tests.integration.conftest import Site

SECOND = 1_000_000_000


def test_times(here: Path) -> None:
    """mtime moves with writes, ctime with every change, both stay with reads; utime sets each nanosecond."""
    path = here / "file"
    path.write_text("x")
    first = path.stat()
    assert abs(first.st_mtime - time.time()) < 10
    path.read_text()
    assert path.stat() == first
    tick()
    path.chmod(0o600)
    second = path.stat()
    assert second.st_mtime_ns == first.st_mtime_ns
    assert second.st_ctime_ns > first.st_ctime_ns
    tick()
    with path.open("a") as file:
        file.write("y")
    third = path.stat()
    assert third.st_mtime_ns > second.st_mtime_ns
    tick()
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    status = path.stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_000_000_001)
    assert status.st_ctime_ns > third.st_ctime_ns


def test_time_never_goes_back(here: Path) -> None:
    """What is done later is not older, whether the kernel or the daemon has stamped it."""
    path = here / "file"
    newest = 0
    for _ in range(30):
        path.unlink(missing_ok=True)
        path.touch()  # the daemon's time
        steps = [path.stat().st_mtime_ns, here.stat().st_mtime_ns]
        os.utime(path)  # the kernel's
        steps.append(path.stat().st_mtime_ns)
        path.write_text("x")
        steps.append(path.stat().st_mtime_ns)
        path.chmod(0o600)
        steps.append(path.stat().st_ctime_ns)
        assert steps == sorted(steps)
        assert steps[0] >= newest
        newest = steps[-1]


def test_times_set_after_a_write_stay(here: Path) -> None:
    """write, then utime, then close: the time that was set counts, as for tar, cp -p and rsync -t."""
    path = here / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 200_000)
    os.utime(descriptor, ns=(7, 1_000_000_007))
    os.fchmod(descriptor, 0o4751)
    os.close(descriptor)
    assert path.stat().st_mtime_ns == 1_000_000_007
    assert path.stat().st_mode == stat.S_IFREG | 0o4751
    os.sync()
    assert path.stat().st_mtime_ns == 1_000_000_007


def test_reading_leaves_all_times(here: Path) -> None:
    """atime is what was set; neither read, nor readdir, nor readlink, nor execve changes it."""
    path = here / "file"
    path.write_text("x")
    (here / "sub").mkdir()
    os.symlink("file", here / "link")
    names = [path, here / "sub", here / "link"]
    for name in names:
        os.utime(name, ns=(SECOND, 2 * SECOND), follow_symlinks=False)
    path.read_text()
    os.listdir(here / "sub")
    os.readlink(here / "link")
    assert [name.lstat().st_atime_ns for name in names] == [SECOND] * 3
    os.utime(path, ns=(path.stat().st_atime_ns, 3 * SECOND))
    assert path.stat().st_atime_ns == SECOND


@pytest.mark.parametrize("change", ["larger", "smaller", "same"])
def test_times_of_a_truncation(here: Path, change: str) -> None:
    """A change of size changes mtime and ctime; ftruncate to the same size too, truncate to it may."""
    path = here / "file"
    path.write_text("12345")
    first = path.stat()
    tick()
    os.truncate(path, {"larger": 10, "smaller": 2, "same": 5}[change])
    second = path.stat()
    if change != "same":
        assert second.st_mtime_ns > first.st_mtime_ns
        assert second.st_ctime_ns > first.st_ctime_ns
    assert second.st_mtime_ns >= first.st_mtime_ns


def test_times_of_other_centuries_survive_a_remount(workspace: Site) -> None:
    """1901 and 2446, before and after what 32 bits hold, to the nanosecond; for files, directories and links."""
    stamps = {
        "1901": -2177452800 * SECOND + 123_456_789,
        "1969": -1,
        "1970": 0,
        "2038": (1 << 31) * SECOND + 999_999_999,
        "2106": (1 << 32) * SECOND + 1,
        "2446": 15_026_083_200 * SECOND + 500_000_001,
    }
    top = workspace.mountpoint
    for name, stamp in stamps.items():
        (top / name).write_text(name)
        (top / f"{name}.d").mkdir()
        os.symlink(name, top / f"{name}.l")
        for path in (top / name, top / f"{name}.d", top / f"{name}.l"):
            os.utime(path, ns=(stamp + 1 if stamp != -1 else stamp, stamp), follow_symlinks=False)
    for _ in range(2):
        for name, stamp in stamps.items():
            for path in (top / name, top / f"{name}.d", top / f"{name}.l"):
                status = path.lstat()
                assert (status.st_mtime_ns, status.st_atime_ns) == (stamp, stamp + 1 if stamp != -1 else stamp), path
        workspace.elsewhere()
