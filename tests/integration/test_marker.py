"""Nobody can touch .workspace.initialized: without it a workspace could not be told from an empty directory."""

from __future__ import annotations

import ctypes
import errno
import itertools
import json
import mmap
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

MARKER = ".workspace.initialized"
WRITING = [os.O_WRONLY, os.O_RDWR]
EXTRA = [os.O_TRUNC, os.O_APPEND, os.O_CREAT, os.O_SYNC, os.O_DIRECT]
FLAGS = [
    access | sum(more)
    for access in WRITING
    for count in range(len(EXTRA) + 1)
    for more in itertools.combinations(EXTRA, count)
] + [os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_TRUNC | os.O_CREAT]


@pytest.fixture
def marker(shared_site: Site) -> Path:
    return shared_site.mountpoint / MARKER


@pytest.fixture(autouse=True)
def _untouched(shared_site: Site, marker: Path) -> None:
    """After each test the marker is what it was before."""

    def state() -> tuple[object, ...]:
        status = marker.lstat()
        return marker.read_bytes(), status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns, status.st_nlink

    before = state()
    yield
    assert state() == before


def refuse(call: Callable[..., object], *arguments: object, **more: object) -> None:
    """The call must fail with EPERM, and nothing else."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        call(*arguments, **more)
    assert caught.value.errno == errno.EPERM, caught.value


def test_names(marker: Path, here: Path, renameat2: Callable[[Path, Path, int], None]) -> None:
    """It cannot be removed, moved, replaced, exchanged or linked."""
    other = here / "other"
    other.write_text("other")
    refuse(os.unlink, marker)
    refuse(os.rename, marker, here / "moved")
    refuse(os.rename, marker, marker.with_name("renamed"))
    refuse(os.rename, other, marker)
    for flags in (1, 2):
        refuse(renameat2, marker, here / "moved" if flags == 1 else other, flags)
    refuse(renameat2, other, marker, 2)
    with pytest.raises(FileExistsError):
        renameat2(other, marker, 1)
    refuse(os.link, marker, here / "link")
    with pytest.raises(FileExistsError):
        os.link(other, marker)
    assert other.read_text() == "other"
    assert sorted(os.listdir(here)) == ["other"]


def test_nothing_takes_its_place(marker: Path, here: Path) -> None:
    """mkdir, mknod, symlink, bind and O_EXCL on its name fail, and rmdir does too."""
    calls: list[Callable[[], object]] = [
        lambda: os.mkdir(marker),
        lambda: os.mknod(marker, stat.S_IFREG | 0o600),
        lambda: os.mkfifo(marker),
        lambda: os.symlink("x", marker),
        lambda: os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
        lambda: os.rmdir(marker),
    ]
    for call in calls:
        with pytest.raises((FileExistsError, PermissionError, NotADirectoryError)):
            call()
    directory = os.open(marker.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="in use"):
        listener.bind(f"/proc/self/fd/{directory}/{MARKER}")
    os.close(directory)


@pytest.mark.parametrize("flags", FLAGS)
def test_opening_for_writing(marker: Path, flags: int) -> None:
    """Every way to open it for writing gives EPERM."""
    refuse(os.open, marker, flags)


def test_attributes(marker: Path) -> None:
    """truncate, chmod, chown, utimes and extended attributes give EPERM, also through a descriptor."""
    refuse(os.truncate, marker, 0)
    refuse(os.truncate, marker, marker.stat().st_size)
    refuse(os.chmod, marker, 0o666)
    refuse(os.chown, marker, 1, 1)
    refuse(os.utime, marker)
    refuse(os.utime, marker, ns=(1, 1))
    refuse(os.setxattr, marker, "user.test", b"x")
    refuse(os.setxattr, marker, "trusted.test", b"x")
    with marker.open("rb") as file:
        refuse(os.fchmod, file.fileno(), 0o666)
        refuse(os.fchown, file.fileno(), 1, 1)
        refuse(os.utime, file.fileno())
        refuse(os.setxattr, file.fileno(), "user.test", b"x")
    with pytest.raises(OSError):  # noqa: PT011 - there is none to remove; it must not say yes
        os.removexattr(marker, "user.test")


@pytest.mark.parametrize("first", [os.XATTR_CREATE, os.XATTR_REPLACE])
def test_an_attribute_of_another_file_changes_no_answer(workspace: Site, first: int) -> None:
    """pyfuse3 asks for an attribute that must not exist, or must: what it is told must not become the kernel's word for
    all files. And the kernel still never asks for attributes itself: it would do so before each write."""
    top = workspace.mountpoint
    marker = top / MARKER
    (top / "file").touch()
    json.loads(workspace.wsfs("stats", top, "--json").stdout)  # requests are counted from now on
    for flags in (first, 0, os.XATTR_CREATE, os.XATTR_REPLACE):
        for name in ("user.test", "trusted.test", "user.wsfs.none"):
            with pytest.raises(OSError, match="not supported"):
                os.setxattr(top / "file", name, b"x", flags)
        refuse(os.setxattr, marker, "user.test", b"x", flags)
        with pytest.raises(OSError, match="Read-only"):
            os.setxattr(top / ".wsfs/at/1", "user.test", b"x", flags)
    refuse(os.removexattr, marker, "user.test")
    (top / "file").write_bytes(b"x")
    with pytest.raises(OSError, match="not supported"):
        os.getxattr(top / "file", "user.test")
    asked = json.loads(workspace.wsfs("stats", top, "--json").stdout)["requests"]
    assert asked["setxattr"]["count"] > 0
    assert asked["write"]["count"] > 0
    # All of them are pyfuse3's. That it asks is why this test is here.
    assert asked["getxattr"]["count"] == 3 * 5


def test_writing_through_memory(marker: Path) -> None:
    """A shared mapping cannot be made writable; a private one does not reach the file."""
    with marker.open("rb") as file:
        with pytest.raises(PermissionError):
            mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        size = marker.stat().st_size
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        address = libc.mmap(None, ctypes.c_size_t(size), mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_WRITE) == -1
        assert ctypes.get_errno() == errno.EACCES
        libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))
        private = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        private[:5] = b"wrong"
        private.flush()
        private.close()


def test_through_proc(marker: Path) -> None:
    """Opening the descriptor of a reader again, or a hard link of it, is no way round."""
    with marker.open("rb") as file:
        refuse(os.open, f"/proc/self/fd/{file.fileno()}", os.O_RDWR)
        refuse(os.open, f"/proc/self/fd/{file.fileno()}", os.O_WRONLY | os.O_TRUNC)
        at_symlink_follow = 0x400
        libc = ctypes.CDLL(None, use_errno=True)
        names = f"/proc/self/fd/{file.fileno()}".encode(), os.fsencode(marker.with_name("again"))
        assert libc.linkat(-100, names[0], -100, names[1], at_symlink_follow) == -1
        assert ctypes.get_errno() == errno.EPERM


def test_the_tools_that_people_would_try(shared_site: Site, marker: Path, here: Path) -> None:
    """rm -f, mv, cp, tee, sed -i, dd, truncate, chattr, install and ln fail, and it stays."""
    (here / "x").write_text("x")
    name = f"'{marker}'"
    for line in (
        f"rm -f {name}",
        f"mv -f {name} {here}/y",
        f"mv -f {here}/x {name}",
        f"cp -f {here}/x {name}",
        f"cp --remove-destination {here}/x {name}",
        f"echo x > {name}",
        f"echo x >> {name}",
        f"echo x | tee {name}",
        f"sed -i s/workspace/x/ {name}",
        f"dd if={here}/x of={name} conv=notrunc",
        f"truncate -s 0 {name}",
        f"install {here}/x {name}",
        f"ln -f {here}/x {name}",
        f"ln -sf {here}/x {name}",
        f"chmod 777 {name}",
        f"chown 1:1 {name}",
        f"touch {name}",
        f"find {shared_site.mountpoint} -maxdepth 1 -name '.w*' -delete",
        f"rsync {here}/x {name}",
        f"tar -C {here} --transform 's,x,{MARKER},' -cf - x | tar -C {shared_site.mountpoint} -xf -",
    ):
        assert shared_site.run("bash", "-o", "pipefail", "-c", line, code=None).returncode != 0, line


@pytest.mark.parametrize("line", ["rm -rf {0}/* {0}/.*", "rm -rf {0}", "find {0} -mindepth 1 -delete"])
def test_removing_everything_else(shared_site: Site, line: str) -> None:
    """rm -rf of all there is removes all but the marker."""
    top = shared_site.mountpoint
    for name in ("dir/sub/file", ".hidden/file", ".dot", "plain", "..odd"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
    shared_site.run("bash", "-c", line.format(top), code=1, cwd="/")
    assert os.listdir(top) == [MARKER]


def test_it_is_there_after_a_remount(site: Site, tools: type[Helpers]) -> None:
    """rm -rf, a stop and another host: the marker is the same, bytes and all, and alone."""
    site.mount()
    top = site.mountpoint
    (top / "file").write_text("x")
    facts = (top / MARKER).read_bytes(), (top / MARKER).stat()
    tools.run("rm", "-rf", top, code=1)
    site.elsewhere()
    assert os.listdir(top) == [MARKER]
    status = (top / MARKER).stat()
    assert (top / MARKER).read_bytes() == facts[0]
    assert (status.st_ino, status.st_mode, status.st_mtime_ns) == (
        facts[1].st_ino,
        facts[1].st_mode,
        facts[1].st_mtime_ns,
    )
    site.elsewhere("-o", "xattr,uid=1000,umask=000")
    refuse(os.setxattr, top / MARKER, "user.test", b"x")
    refuse(os.truncate, top / MARKER, 0)
    refuse(os.open, top / MARKER, os.O_WRONLY)
