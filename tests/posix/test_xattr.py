"""Extended attributes, on mounts with -o xattr."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from calls import MIB, as_user, fails_with, python

DIRECTORY = "directory"


@pytest.fixture(scope="module")
def xattr_site(reachable: Path, new_site: Callable[[Path, str], Any]) -> Iterator[Any]:
    """A mount with extended attributes, open to other users."""
    found = new_site(reachable / "xattr", DIRECTORY).init()
    found.mount("-o", "xattr,allow_other,suid")
    yield found
    found.finish()


@pytest.fixture
def file(xattr_site: Any, request: pytest.FixtureRequest) -> Path:
    """An empty file."""
    path = Path(xattr_site.mountpoint / request.node.name)
    path.touch()
    return path


def test_set_list_replace_remove(file: Path) -> None:
    os.setxattr(file, "user.one", b"\0binary\xff")
    os.setxattr(file, "user.empty", b"")
    os.setxattr(file, "user.gone", b"x")
    os.removexattr(file, "user.gone")
    os.setxattr(file, "user.one", b"second", os.XATTR_REPLACE)
    fails_with(errno.EEXIST, os.setxattr, file, "user.one", b"x", os.XATTR_CREATE)
    fails_with(errno.ENODATA, os.setxattr, file, "user.none", b"x", os.XATTR_REPLACE)
    fails_with(errno.ENODATA, os.getxattr, file, "user.gone")
    fails_with(errno.ENODATA, os.removexattr, file, "user.gone")
    assert sorted(os.listxattr(file)) == ["user.empty", "user.one"]
    assert (os.getxattr(file, "user.one"), os.getxattr(file, "user.empty")) == (b"second", b"")


def test_limits(file: Path) -> None:
    """Names of 255 bytes, values of 64 KiB, lists of 64 KiB; what is beyond is refused, not cut."""
    name = "user." + "n" * 250
    os.setxattr(file, name, b"v" * 65536)
    assert os.getxattr(file, name) == b"v" * 65536
    fails_with(errno.ERANGE, os.setxattr, file, name + "n", b"")
    fails_with(errno.E2BIG, os.setxattr, file, "user.large", b"v" * 65537)
    fails_with(errno.ERANGE, os.setxattr, file, "", b"")
    fails_with(errno.ENOTSUP, os.setxattr, file, "nonamespace", b"")
    for number in range(200):
        os.setxattr(file, f"user.{number:03}" + "n" * 240, b"")
    assert len(os.listxattr(file)) == 201
    for number in range(200, 262):
        os.setxattr(file, f"user.{number:03}" + "n" * 240, b"")
    fails_with(errno.ENOSPC, os.setxattr, file, "user.one-more" + "n" * 240, b"")
    assert len(os.listxattr(file)) == 263
    os.setxattr(file, name, b"replaced")
    os.removexattr(file, name)
    assert len(os.listxattr(file)) == 262


def test_name_spaces(file: Path) -> None:
    """user.* is for whoever may write, trusted.* for root; a symbolic link has no user.*."""
    file.chmod(0o666)
    os.setxattr(file, "trusted.secret", b"x")
    os.setxattr(file, "security.label", b"y")
    script = """
import struct
path = sys.argv[1]
os.setxattr(path, "user.mine", b"z")
refused(errno.EPERM, os.setxattr, path, "trusted.mine", b"z")
refused(errno.ENODATA, os.getxattr, path, "trusted.secret")
capability = struct.pack("<5I", 0x02000001, 1, 0, 0, 0)
refused(errno.EPERM, os.setxattr, path, "security.capability", capability)
refused(errno.EPERM, os.removexattr, path, "trusted.secret")
"""
    python(script, file, user=as_user())
    file.chmod(0o600)
    python("refused(errno.EACCES, os.getxattr, sys.argv[1], 'user.mine')", file, user=as_user())
    link = file.with_name("link")
    os.symlink(file.name, link)
    fails_with(errno.EPERM, lambda: os.setxattr(link, "user.a", b"", follow_symlinks=False))
    os.setxattr(link, "trusted.a", b"b", follow_symlinks=False)
    assert os.listxattr(link, follow_symlinks=False) == ["trusted.a"]


def test_times(file: Path) -> None:
    """They change ctime, not mtime; they stay through rename and with every hard link, and a copy may take them."""
    before = file.stat()
    os.setxattr(file, "user.a", b"b")
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_ctime_ns >= before.st_ctime_ns
    os.link(file, file.with_name("hard"))
    file.rename(file.with_name("moved"))
    assert os.getxattr(file.with_name("hard"), "user.a") == b"b"
    subprocess.run(["cp", "-a", file.with_name("moved"), file.with_name("copy")], check=True)
    assert os.getxattr(file.with_name("copy"), "user.a") == b"b"


def test_capabilities(file: Path) -> None:
    """A program has its capability for ordinary users too, until somebody writes to it or gives it away."""
    program = file.with_name("chroot-of-ours")

    def make() -> None:
        program.write_bytes(Path("/usr/sbin/chroot").read_bytes())
        program.chmod(0o755)
        subprocess.run(["setcap", "cap_sys_chroot=ep", program], check=True)

    def has_it() -> bool:
        """Whether an ordinary user can change the root directory with this program."""
        words = [*as_user(), program, "/", "/bin/true"]
        return subprocess.run(words, check=False, capture_output=True).returncode == 0

    def write() -> None:
        with program.open("r+b") as opened:
            opened.write(b"\x7f")

    for change in (
        write,
        lambda: os.chown(program, 1, 1),
        lambda: os.truncate(program, program.stat().st_size + 1),
    ):
        program.unlink(missing_ok=True)
        make()
        assert has_it()
        change()
        fails_with(errno.ENODATA, os.getxattr, program, "security.capability")
        assert not has_it()


def test_unlinked_files_have_them_too(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    os.setxattr(descriptor, "user.a", b"before")
    file.unlink()
    assert os.getxattr(descriptor, "user.a") == b"before"
    os.setxattr(descriptor, "user.b", b"after")
    os.removexattr(descriptor, "user.a")
    assert os.listxattr(descriptor) == ["user.b"]
    os.close(descriptor)


def test_access_control_lists_are_refused(file: Path) -> None:
    """One that is kept and that nobody obeys would be worse than none."""
    done = subprocess.run(["setfacl", "-m", "u:1000:r", file], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Operation not supported" in done.stderr
    assert os.listxattr(file) == []


def test_they_survive_a_remount(workspace: Any) -> None:
    """On another host all of them are there, a capability too; a mount without the option does not show them."""
    top = workspace.mountpoint
    workspace.elsewhere("-o", "xattr")
    for name in ("file", "directory", "gone"):
        (top / name).mkdir() if name == "directory" else (top / name).write_bytes(b"x" * MIB)
        os.setxattr(top / name, "user.long" + "n" * 200, b"v" * 65536)
        os.setxattr(top / name, "user.empty", b"")
    os.symlink("file", top / "link")
    os.setxattr(top / "link", "trusted.of-link", b"t", follow_symlinks=False)
    (top / "tool").write_bytes(Path("/bin/true").read_bytes())
    subprocess.run(["setcap", "cap_net_bind_service=+ep", top / "tool"], check=True)
    (top / "gone").unlink()
    workspace.elsewhere("-o", "xattr")
    for name in ("file", "directory"):
        assert sorted(os.listxattr(top / name)) == ["user.empty", "user.long" + "n" * 200]
        assert os.getxattr(top / name, "user.long" + "n" * 200) == b"v" * 65536
    assert os.getxattr(top / "link", "trusted.of-link", follow_symlinks=False) == b"t"
    done = subprocess.run(["getcap", top / "tool"], check=True, capture_output=True, text=True)
    assert "cap_net_bind_service=ep" in done.stdout
    os.removexattr(top / "file", "user.empty")
    workspace.elsewhere()
    fails_with(errno.ENOTSUP, os.getxattr, top / "file", "user.empty")
    workspace.elsewhere("-o", "xattr")
    assert os.listxattr(top / "file") == ["user.long" + "n" * 200]
