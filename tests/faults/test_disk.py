"""The local disk is full, read-only, gone, or somebody else's."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
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
        assert time.monotonic() - began < 8
        assert (top / "small").read_text() == "here"
        for name in names[:3]:
            (top / name).unlink()
            del digests[name]
        (top / "directory").mkdir()
        (top / "directory" / "note").write_text("there is room again")
    site.wsfs("sync", top, code=None)  # reports what no program has collected
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
    tools.until(lambda: tools.is_gone(pid), 60)
    site.mount()
    assert (top / "file").read_bytes() == saved
    assert not (top / "unsaved").exists()


def test_two_daemons(site: Any, tmp_path: Path) -> None:
    """One cache directory serves one mount."""
    site.mount()
    second = tmp_path / "second"
    second.mkdir()
    result = site.mount("-o", "takeover", where=second, code=30)
    assert "in use by process" in result.stderr
    assert str(site.mountpoint) in result.stderr
    (site.mountpoint / "file").write_text("the first one goes on")
    site.elsewhere()
    assert (site.mountpoint / "file").read_text() == "the first one goes on"
