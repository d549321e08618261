"""The local disk is full, read-only, gone, or somebody else's."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
IMPATIENT = ("-o", "store_timeout=10")


@pytest.fixture
def disk(site: Any, tools: Any) -> Iterator[Path]:
    """A file system of 64 MiB for the cache."""
    path = Path(tempfile.mkdtemp(prefix="wsfs-test-disk-"))
    tools.run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path)
    site.cache = path / "cache"
    yield path
    try:
        if tools.is_mounted(site.mountpoint):
            site.umount()
    finally:
        tools.run("umount", "-l", path)
        path.rmdir()


def salted(number: int) -> bytes:
    """A mebibyte that does not compress."""
    return os.urandom(MIB - 2) + number.to_bytes(2, "big")


@pytest.mark.usefixtures("disk")
def test_more_than_fits(site: Any) -> None:
    """Writers wait until something is saved, and what is saved makes room: no program sees an error."""
    site.mount()
    top = site.mountpoint
    contents = {f"file{number}": salted(number) for number in range(150)}
    for name, content in contents.items():
        with (top / name).open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
    for name, content in contents.items():
        assert (top / name).read_bytes() == content
    site.elsewhere()
    for name, content in contents.items():
        assert (top / name).read_bytes() == content


@pytest.mark.usefixtures("disk")
def test_a_file_that_is_larger_than_the_disk(site: Any) -> None:
    """And a second one over it, and a delete: there is always a way on."""
    site.mount()
    path = site.mountpoint / "file"
    for _ in range(2):
        content = os.urandom(90 * MIB)
        path.write_bytes(content)
        assert path.read_bytes() == content
    (site.mountpoint / "other").write_bytes(content[: 5 * MIB])
    site.elsewhere()
    assert path.read_bytes() == content
    path.unlink()
    site.umount()


@pytest.mark.parametrize(
    "left", [0, pytest.param(16 << 10, marks=pytest.mark.long), pytest.param(256 << 10, marks=pytest.mark.long)]
)
def test_a_mount_on_a_disk_that_is_full(site: Any, disk: Path, left: int) -> None:
    """However far the start gets: it is the cache disk, and no save will make room."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(MIB)):
            pass
    os.truncate(filler, filler.stat().st_size - left)
    told = site.mount(code=61).stderr
    assert (
        f"the cache disk is full, so nothing was mounted: free some space for {site.cache}, or choose another" in told
    )
    assert site.status(site.url)["state"] in ("STOPPED", "ERROR")
    filler.unlink()
    site.mount()


def error_of(path: Path, content: bytes) -> int:
    """The errno with which writing and syncing a file fails; 0 if it does not."""
    try:
        with path.open("wb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
    except OSError as exc:
        return exc.errno or -1
    return 0


def fill(top: Path) -> list[str]:
    """Write files until there is no room; the names of those that were synced."""
    names = []
    for number in range(200):
        name = f"full{number}"
        if error_of(top / name, salted(number)) == errno.ENOSPC:
            return names
        names.append(name)
    raise AssertionError("the disk does not fill up")


def fill_up(disk: Path) -> Path:
    """What somebody else leaves on the disk of the cache: no room at all."""
    path = disk / "not-ours"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def test_somebody_else_fills_the_disk(site: Any, disk: Path) -> None:
    """What the daemon has itself is room enough: to read what is in the store, to write, save by save, and to stop."""
    site.mount()
    top = site.mountpoint
    contents = {f"file{number}": salted(number) for number in range(24)}
    for name, content in contents.items():
        (top / name).write_bytes(content)
    site.elsewhere()
    (top / "unsaved").write_bytes(salted(99))
    (top / "small").write_text("unsaved, too")
    fill_up(disk)
    for name, content in contents.items():
        assert (top / name).read_bytes() == content
    contents["more"] = b"".join(salted(number) for number in range(20))
    assert error_of(top / "more", contents["more"]) == 0
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: (top / name).read_bytes(), contents)) == list(contents.values())
    site.umount()
    (disk / "not-ours").unlink()
    site.wipe()
    site.mount()
    assert (top / "small").read_text() == "unsaved, too"
    for name, content in contents.items():
        assert (top / name).read_bytes() == content


def test_a_mount_with_a_cache_on_a_disk_that_is_full_by_now(site: Any, disk: Path) -> None:
    """What the mount before has reserved is enough to start with, and the copies that it has left make room."""
    site.mount()
    contents = {f"file{number}": salted(number) for number in range(24)}
    for name, content in contents.items():
        (site.mountpoint / name).write_bytes(content)
    site.umount()
    fill_up(disk)
    site.mount()
    contents["more"] = b"".join(salted(number) for number in range(12))
    assert error_of(site.mountpoint / "more", contents["more"]) == 0
    site.umount()
    (disk / "not-ours").unlink()
    site.wipe()
    site.mount()
    for name, content in contents.items():
        assert (site.mountpoint / name).read_bytes() == content


@pytest.mark.long
def test_full_and_the_store_is_away(site: Any, proxy: Any, disk: Path) -> None:
    """Programs get ENOSPC, in time; reads and deletes go on, what is unsaved stays, and everything works once the store
    is back."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    (top / "small").write_text("here")
    with proxy.fault("refuse"):
        names = fill(top)
        assert len(names) > 30
        digests = {name: (top / name).read_bytes() for name in names}
        status = site.status()
        assert status["state"] == "SYNC_FAILED"
        assert status["unsaved_files"] >= len(names)
        began = time.monotonic()
        assert errno.ENOSPC in [error_of(top / f"more{number}", salted(number)) for number in range(20)]
        assert time.monotonic() - began < 20
        assert (top / "small").read_text() == "here"
        for name in names[:3]:
            (top / name).unlink()
            del digests[name]
        (top / "directory").mkdir()
        (top / "directory" / "note").write_text("there is room again")
    site.wsfs("sync", top)
    assert site.status()["state"] == "RUNNING"
    (top / "after").write_bytes(salted(7))
    site.elsewhere()
    for name, content in digests.items():
        assert (top / name).read_bytes() == content
    assert (top / "directory" / "note").read_text() == "there is room again"


def test_a_crash_on_a_full_disk(site: Any, proxy: Any, disk: Path) -> None:
    """A full disk is no reason to forget what is unsaved, nor to refuse the next mount."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    with proxy.fault("refuse"):
        contents = {name: (top / name).read_bytes() for name in fill(top)}
        site.kill()
    site.mount()
    for name, content in contents.items():
        assert (top / name).read_bytes() == content
    site.elsewhere()
    for name, content in contents.items():
        assert (top / name).read_bytes() == content


def test_read_only(site: Any, tools: Any, disk: Path) -> None:
    """A mount is refused in one sentence, and gives back what it took."""
    site.mount()
    (site.mountpoint / "file").write_text("x")
    site.umount()
    tools.run("mount", "-o", "remount,ro", disk)
    try:
        result = site.mount(code=60)
        assert result.stderr.count("\n") == 1
        assert "Read-only" in result.stderr
    finally:
        tools.run("mount", "-o", "remount,rw", disk)
    site.mount()
    assert (site.mountpoint / "file").read_text() == "x"


def test_the_cache_directory_is_deleted(site: Any, tools: Any) -> None:
    """What was saved stays as it is: missing bytes are never taken for zeros. That the rest is lost is said."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    saved = salted(1)
    (top / "file").write_bytes(saved)
    site.wsfs("sync", top)
    (top / "file").write_bytes(salted(2))
    (top / "unsaved").write_bytes(salted(3))
    subprocess.run(["sync", "-f", top], check=True)
    shutil.rmtree(site.cache)
    result = site.wsfs("sync", top, code=None, timeout=60)
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1
    assert site.status()["state"] == "SYNC_FAILED"
    site.wsfs("umount", top, code=50, timeout=60)
    pid = site.pid()
    tools.run("umount", "-i", "-l", top)
    os.kill(pid, 15)
    tools.until(lambda: tools.is_gone(pid))
    site.mount()
    assert (top / "file").read_bytes() == saved
    assert not (top / "unsaved").exists()


def test_two_daemons(site: Any, tmp_path: Path) -> None:
    """One cache directory serves one mount."""
    site.mount()
    second = tmp_path / "second"
    second.mkdir()
    result = site.mount("-o", "takeover", where=second, code=30)
    assert f"wsfs: waiting for the mount at {site.mountpoint} to end\n" in result.stderr
    assert "in use by process" in result.stderr
    assert "beside it only another workspace can be mounted, or this one read-only" in result.stderr
    assert str(site.mountpoint) in result.stderr
    (site.mountpoint / "file").write_text("the first one goes on")
    site.elsewhere()
    assert (site.mountpoint / "file").read_text() == "the first one goes on"


def after_a_reboot(site: Any) -> None:
    """After a kill: the next start believes that the machine lost power."""
    (site.cache / "boot").write_text("an earlier boot")


def test_a_power_loss_is_told_with_names(site: Any) -> None:
    """The disk has kept less of a file than its size: one line at the mount, in the log, and in the status."""
    site.mount()
    top = site.mountpoint
    for name in ("short", "whole"):
        (top / name).write_bytes(salted(1))
        with (top / name).open("rb") as file:
            os.fsync(file.fileno())
    inode = (top / "short").stat().st_ino
    site.kill()
    os.truncate(site.cache / "local" / "overlay" / f"{inode & 0xFF:02x}" / f"{inode:x}", 4096)
    after_a_reboot(site)
    result = site.mount()
    (line,) = result.stderr.splitlines()
    assert line.endswith("1 file may lack what was not synced: short")
    told = line.removeprefix("wsfs: ")
    assert told in site.log()
    assert site.status()["recovered"] == told
    assert told.removeprefix("recovered ") in site.wsfs("status", top).stdout
    assert len((top / "short").read_bytes()) == MIB
    site.umount()
    assert site.mount().stderr == ""


def test_a_torn_index(site: Any, tmp_path: Path) -> None:
    """The mount starts from the newest commit, names what was not saved, and what can be read is rescued."""
    site.mount()
    top = site.mountpoint
    (top / "directory").mkdir()
    saved = {f"saved{number}": salted(number)[: MIB // 4] for number in range(3)}
    for name, content in saved.items():
        (top / name).write_bytes(content)
    site.wsfs("sync", top)
    (top / "saved1").write_bytes(salted(9))
    (top / "directory" / "unsaved").write_bytes(salted(10))
    subprocess.run(["sync", top / "directory" / "unsaved"], check=True)
    site.kill()
    index = site.cache / "local" / "index" / "data.mdb"
    os.truncate(index, 2 * 4096)
    after_a_reboot(site)
    (line,) = site.mount().stderr.splitlines()
    assert "the index in the cache was damaged" in line
    assert "saved1" in line
    for name, content in saved.items():
        assert (top / name).read_bytes() == content
    assert list((top / "directory").iterdir()) == []
    (aside,) = site.cache.glob("damaged-*")
    assert str(aside) in line
    assert len([path for path in aside.rglob("overlay/*/*") if path.stat().st_size == MIB]) == 2
    (top / "after").write_text("and on it goes")
    site.elsewhere()
    assert (top / "after").read_text() == "and on it goes"


@pytest.mark.long
def test_two_copies_of_a_cache(site: Any, tmp_path: Path) -> None:
    """Each may be mounted in turn: what one has saved is never mixed with what the other has not."""
    site.mount()
    top = site.mountpoint
    (top / "file").write_text("one")
    site.wsfs("sync", top)
    (top / "file").write_text("two, unsaved")
    (top / "new").write_text("unsaved")
    site.kill()
    first, second = site.cache, tmp_path / "copy"
    shutil.copytree(first, second)
    site.cache = second
    assert "recovered" in site.mount().stderr
    assert (top / "file").read_text() == "two, unsaved"
    (top / "new").write_text("of the copy")
    site.umount()
    site.cache = first
    result = site.mount()
    assert "changes that were never saved build on a commit that is not the newest any more" in result.stderr
    assert (top / "file").read_text() == "two, unsaved"
    assert (top / "new").read_text() == "of the copy"
    (top / "third").write_text("saved by the first")
    site.umount()
    (aside,) = first.glob("unsaved-*")
    site.wsfs("export", "--unsaved", tmp_path / "rescued", "--cache-dir", aside)
    assert (tmp_path / "rescued" / "new").read_text() == "unsaved"
    site.cache = second
    assert site.mount().stderr == ""
    assert (top / "third").read_text() == "saved by the first"
