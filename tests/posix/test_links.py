"""Hard links, and files that have lost their names."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from calls import AT_SYMLINK_FOLLOW, MIB, fails_with, linkat, tick

if TYPE_CHECKING:
    from tests.integration.conftest import Site


def test_hard_links(here: Path) -> None:
    """Names of one file share content, attributes and link count; renaming one over the other changes nothing."""
    one, two = here / "one", here / "two"
    one.write_text("x")
    os.link(one, two)
    two.write_text("changed")
    two.chmod(0o600)
    assert one.read_text() == "changed"
    assert one.stat() == two.stat()
    assert one.stat().st_nlink == 2
    one.rename(two)
    assert one.exists()
    assert two.exists()
    one.unlink()
    assert two.stat().st_nlink == 1
    fails_with(errno.EPERM, os.link, here, here / "loop")
    fails_with(errno.EEXIST, os.link, two, two)


def test_link_changes_ctime_only(here: Path) -> None:
    """A new name, and a lost one, change ctime and not mtime."""
    path = here / "file"
    path.touch()
    first = path.stat()
    tick()
    os.link(path, here / "second")
    linked = path.stat()
    assert (linked.st_mtime_ns, linked.st_nlink) == (first.st_mtime_ns, 2)
    assert linked.st_ctime_ns > first.st_ctime_ns
    tick()
    (here / "second").unlink()
    assert path.stat().st_ctime_ns > linked.st_ctime_ns


def test_links_to_what_is_no_file(here: Path) -> None:
    """Symbolic links and FIFOs have second names too."""
    os.symlink("target", here / "link")
    os.mkfifo(here / "fifo")
    for name in ("link", "fifo"):
        os.link(here / name, here / f"{name}2", follow_symlinks=False)
        assert (here / f"{name}2").lstat() == (here / name).lstat()
        assert (here / name).lstat().st_nlink == 2


def test_unlinked_open_file(here: Path) -> None:
    """A file without a name can be read and written until it is closed."""
    path = here / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(b"before")
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b" and after")
        os.fsync(file.fileno())
        os.ftruncate(file.fileno(), MIB + 20)
        os.pwrite(file.fileno(), b"end", MIB + 17)
        os.fchmod(file.fileno(), 0o600)
        os.utime(file.fileno(), ns=(1, 2))
        assert os.fstat(file.fileno()).st_mtime_ns == 2
        assert os.pread(file.fileno(), 16, 0) == b"before and after"
        assert os.pread(file.fileno(), 10, MIB + 17) == b"end"
        path.write_text("a new one")
        assert os.pread(file.fileno(), 6, 0) == b"before"
    assert path.read_text() == "a new one"


def test_an_unlinked_file_stays_without_a_name(here: Path) -> None:
    """Not even through /proc/self/fd can it get one again; nor can it be opened once its last user is gone."""
    path = here / "file"
    path.write_text("x")
    descriptor = os.open(path, os.O_RDWR)
    path.unlink()
    # /proc/self/fd leads there, but a file without names takes no new one.
    fails_with(errno.ENOENT, linkat, f"/proc/self/fd/{descriptor}", here / "revived", AT_SYMLINK_FOLLOW)
    again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    os.close(descriptor)
    assert os.read(again, 10) == b"x"
    os.close(again)
    assert os.listdir(here) == []


def test_unlinked_directory_that_is_open(here: Path) -> None:
    """A removed directory can still be asked for its attributes and its entries, of which there are none."""
    (here / "sub").mkdir()
    descriptor = os.open(here / "sub", os.O_RDONLY | os.O_DIRECTORY)
    (here / "sub").rmdir()
    assert os.fstat(descriptor).st_nlink == 0
    assert os.listdir(descriptor) == []
    fails_with(errno.ENOENT, lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def test_an_unlinked_open_file_is_gone_after_a_remount(workspace: Site) -> None:
    """What had no name at the stop is not in the next mount, nor in the store."""
    path = workspace.mountpoint / "file"
    with path.open("wb", buffering=0) as file:
        file.write(os.urandom(8 * MIB))
        os.fsync(file.fileno())
        path.unlink()
        workspace.wsfs("sync", workspace.mountpoint)
        assert os.fstat(file.fileno()).st_size == 8 * MIB
    workspace.elsewhere()
    assert os.listdir(workspace.mountpoint) == [".workspace.initialized"]
    assert workspace.stored_bytes() < MIB
    assert workspace.status()["bytes"] < MIB
