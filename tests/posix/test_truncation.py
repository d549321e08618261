"""Truncation: what is cut off is gone, what is added is zeros, and what takes no room is not counted."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from calls import MIB, fails_with

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

PIB = 1 << 50


def test_truncate_in_open(here: Path) -> None:
    """O_TRUNC empties the file: what was there never shines through."""
    path = here / "file"
    path.write_bytes(b"old" * MIB)
    descriptor = os.open(path, os.O_RDWR | os.O_TRUNC)
    assert os.fstat(descriptor).st_size == 0
    assert os.read(descriptor, 10) == b""
    os.pwrite(descriptor, b"new", 5000)
    os.close(descriptor)
    assert path.read_bytes() == bytes(5000) + b"new"
    path.write_text("short")
    assert path.read_text() == "short"


def test_truncate_down_and_up(here: Path) -> None:
    """What a truncation cuts off reads as zeros when the file grows again, in every block and at every edge."""
    path = here / "file"
    path.write_bytes(b"x" * (3 * MIB))
    for size in (2 * MIB + 1, 2 * MIB, 2 * MIB - 1, MIB, 4097, 4096, 1, 0):
        path.write_bytes(b"x" * (3 * MIB))
        os.truncate(path, size)
        os.truncate(path, 3 * MIB)
        data = path.read_bytes()
        assert data.count(b"x") == size
        assert data[size:] == bytes(3 * MIB - size)


def test_truncation_seen_by_others(here: Path) -> None:
    """Who has the file open sees its new end, and a write behind it leaves zeros in between."""
    path = here / "file"
    path.write_bytes(b"x" * 10_000)
    with path.open("r+b", buffering=0) as one, path.open("rb", buffering=0) as two:
        assert two.read(10) == b"x" * 10
        os.ftruncate(one.fileno(), 5)
        assert two.read(10) == b""
        assert os.fstat(two.fileno()).st_size == 5
        os.pwrite(one.fileno(), b"y", 20)
        assert os.pread(two.fileno(), 100, 0) == b"x" * 5 + bytes(15) + b"y"


def test_what_cannot_be_truncated(here: Path) -> None:
    """Directories, negative and impossible sizes, descriptors that are not for writing."""
    path = here / "file"
    path.write_text("x")
    fails_with(errno.EISDIR, os.truncate, here, 0)
    fails_with(errno.EINVAL, os.truncate, path, -1)
    fails_with(errno.ENOENT, os.truncate, here / "missing", 0)
    fails_with(errno.EFBIG, os.truncate, path, 1 << 62)
    fails_with(errno.EFBIG, os.truncate, path, 4 * PIB + 1)
    with path.open("rb") as file:
        fails_with(errno.EINVAL, os.ftruncate, file.fileno(), 0)
    os.truncate(path, 4 * PIB)
    assert path.stat().st_size == 4 * PIB
    with path.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 10, 4 * PIB - 5) == bytes(5)
    assert path.stat().st_blocks * 512 <= MIB


def test_a_write_where_the_cache_cannot_hold_it(here: Path, shared_site: Site) -> None:
    """Beyond what the file system of the cache allows for one file, fsync gives EFBIG, and the rest is fine."""
    with tempfile.TemporaryFile(dir=shared_site.cache) as probe:
        try:
            os.pwrite(probe.fileno(), b"x", 3 * PIB)
        except OSError as exc:
            if exc.errno != errno.EFBIG:
                raise
        else:
            pytest.skip("the file system of the cache allows for every size")
    path = here / "file"
    path.write_bytes(b"kept")
    descriptor = os.open(path, os.O_RDWR)
    os.pwrite(descriptor, b"too far" * 100_000, 3 * PIB)
    fails_with(errno.EFBIG, os.fsync, descriptor)
    os.ftruncate(descriptor, 10)
    os.pwrite(descriptor, b"after", 5)
    os.fsync(descriptor)
    os.close(descriptor)
    assert path.read_bytes() == b"kept\0after"
    shared_site.wsfs("sync", shared_site.mountpoint)  # the program was told, and has mended it


def test_holes_take_no_room(workspace: Site, tools: type[Helpers]) -> None:
    """du counts what a sparse file has, by the MiB: here, after a remount, and on another host."""

    def used(name: str) -> int:
        return int(tools.run("du", "-B1", workspace.mountpoint / name).stdout.split()[0])

    with (workspace.mountpoint / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(500 << 30)
        file.write(b"x" * (2 * MIB))
    (workspace.mountpoint / "hole").touch()
    os.truncate(workspace.mountpoint / "hole", 5 << 30)
    (workspace.mountpoint / "full").write_bytes(b"x" * (3 * MIB + 1000))
    for _ in range(2):
        assert used("sparse") == 2 * MIB
        # Never nothing: tar would take that for a file without any data, and not even look.
        assert 0 < used("hole") <= 4096
        assert 3 * MIB + 1000 <= used("full") < 3 * MIB + 1000 + 4096
        workspace.elsewhere()
    with (workspace.mountpoint / "sparse").open("r+b") as file:
        file.write(b"y")
    assert used("sparse") == 3 * MIB
    os.truncate(workspace.mountpoint / "sparse", MIB + 1)
    assert used("sparse") == MIB
    with (workspace.mountpoint / "sparse").open("r+b") as file:
        file.seek(MIB)
        file.write(b"y")
    assert MIB < used("sparse") <= MIB + 4096
    (workspace.mountpoint / "sparse").write_bytes(b"")
    assert used("sparse") == 0
