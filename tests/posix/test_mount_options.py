"""Mounts with options: read-only, for one user alone, for a user who is not root, with other owners."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from calls import RENAME_EXCHANGE, as_user, fails_with, linkat, renameat2

from wsfs.mountinfo import all_mounts

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site


def test_owner_and_umask_options(workspace: Site) -> None:
    """uid=, gid= and umask= change what is shown, not what is kept."""
    path = workspace.mountpoint / "file"
    path.write_text("x")
    path.chmod(0o666)
    os.chown(path, 12, 34)
    workspace.elsewhere("-o", "uid=1000,gid=nogroup,umask=027")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 65534, 0o640)
    assert workspace.mountpoint.stat().st_uid == 1000
    workspace.elsewhere()
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o666)


@pytest.mark.parametrize("options", [["--read-only"], ["-o", "ro,xattr"]])
def test_read_only(workspace: Site, tmp_path: Path, options: list[str]) -> None:
    """A read-only mount shows everything, and there is no way to change anything; two of them may exist at a time."""
    path, directory = workspace.mountpoint / "file", workspace.mountpoint / "directory"
    path.write_bytes(b"x" * 100_000)
    directory.mkdir()
    os.symlink("file", workspace.mountpoint / "link")
    workspace.umount()
    before = sorted((p, p.stat().st_mtime_ns) for p in workspace.store.rglob("*"))
    workspace.mount(*options)
    shown = {name: os.lstat(workspace.mountpoint / name) for name in ("file", "directory", "link", ".")}
    assert path.read_bytes() == b"x" * 100_000
    reader = os.open(path, os.O_RDONLY)
    new = path.with_name("new")
    for call in (
        lambda: os.open(path, os.O_WRONLY),
        lambda: os.open(path, os.O_RDWR),
        lambda: os.open(path, os.O_WRONLY | os.O_APPEND),
        lambda: os.open(path, os.O_RDONLY | os.O_TRUNC),
        lambda: os.open(new, os.O_RDONLY | os.O_CREAT),
        lambda: os.open(workspace.mountpoint / "link", os.O_WRONLY),
        lambda: os.open(f"/proc/self/fd/{reader}", os.O_RDWR),
        lambda: os.truncate(path, 0),
        lambda: os.chmod(path, 0o777),
        lambda: os.fchmod(reader, 0o777),
        lambda: os.chown(path, 1, 1),
        lambda: os.lchown(workspace.mountpoint / "link", 1, 1),
        lambda: os.utime(path),
        lambda: os.utime(path, ns=(1, 1)),
        lambda: os.utime(reader, ns=(1, 1)),
        lambda: os.unlink(path),
        lambda: os.rmdir(directory),
        lambda: os.rename(path, new),
        lambda: os.rename(path, directory / "file"),
        lambda: renameat2(path, directory, RENAME_EXCHANGE),
        lambda: os.link(path, new),
        lambda: linkat(f"/proc/self/fd/{reader}", new, 0x400),
        lambda: os.symlink("x", new),
        lambda: os.mkdir(new),
        lambda: os.mkfifo(new),
        lambda: os.setxattr(path, "user.a", b"b"),
        lambda: os.removexattr(path, "user.a"),
    ):
        fails_with(errno.EROFS, call)
    fails_with(errno.EBADF, os.write, reader, b"x")
    fails_with(errno.EINVAL, os.ftruncate, reader, 0)
    fails_with(errno.EACCES, lambda: mmap.mmap(reader, 100))
    fails_with(errno.EXDEV, os.link, path, tmp_path / "outside")
    with mmap.mmap(reader, 100, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as area:
        area[:3] = b"yyy"
    os.fsync(reader)
    os.close(reader)
    done = subprocess.run(["mount", "-i", "-o", "remount,rw", workspace.mountpoint], check=False, capture_output=True)
    assert done.returncode != 0 or os.statvfs(workspace.mountpoint).f_flag & os.ST_RDONLY or _still_refuses(path)
    second = tmp_path / "second"
    second.mkdir()
    workspace.mount("-o", "ro", where=second, cache=tmp_path / "second-cache")
    assert (second / "file").read_bytes() == b"x" * 100_000
    workspace.wsfs("umount", second, cache=tmp_path / "second-cache")
    assert {name: os.lstat(workspace.mountpoint / name) for name in shown} == shown
    assert path.read_bytes() == b"x" * 100_000
    workspace.umount()
    assert sorted((p, p.stat().st_mtime_ns) for p in workspace.store.rglob("*")) == before


def _still_refuses(path: Path) -> bool:
    """Root may tell the kernel to forget that it is read-only: the daemon does not."""
    for call in (lambda: os.open(path, os.O_WRONLY), lambda: path.chmod(0o777), lambda: path.unlink()):
        fails_with(errno.EROFS, call)
    return True


def test_without_allow_other_nobody_else_gets_in(site: Site, reachable: Path, tools: type[Helpers]) -> None:
    """Other users cannot even look, unless the mount says allow_other."""
    where = reachable / "private"
    where.mkdir()
    for options, code in (((), 1), (("--allow-other",), 0)):
        site.mount(*options, where=where)
        (where / "file").write_text("x")
        tools.run(*as_user(), "cat", where / "file", code=code)
        site.wsfs("umount", where)


class Rootless:
    """A workspace of user 1000, who has no rights but his own, as in an image whose user is not root."""

    def __init__(self, base: Path, root: Any) -> None:
        self.base = base
        self.root = root
        self.mountpoint = base / "workspace"
        for path in (base, self.mountpoint, base / "home", base / "run"):
            path.mkdir()
            os.chown(path, 1000, 1000)
        self.environ = root.environ | {
            "HOME": str(base / "home"),
            "XDG_RUNTIME_DIR": str(base / "run"),
            "USER": "somebody",
            "TMPDIR": str(base),
        }
        self.environ.pop("WSFS_RUNTIME_DIR")
        self.url = f"file://{base}/store"

    def run(self, *command: object, code: int | None = 0) -> str:
        words = [*as_user(1000), *map(str, command)]
        done = self.root_run(words)
        assert code is None or done.returncode == code, done
        return done.stdout + done.stderr

    def root_run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        # Not captured by pipes: a daemon would keep them open.
        with (self.base / "out").open("w+") as out:
            done = subprocess.run(
                words, check=False, env=self.environ, cwd=self.base, stdout=out, stderr=out, stdin=-3, timeout=90
            )
            out.seek(0)
            return subprocess.CompletedProcess(words, done.returncode, out.read(), "")

    def wsfs(self, *arguments: object, code: int | None = 0) -> str:
        return self.run(sys.executable, "-P", "-m", "wsfs.cli.main", *arguments, code=code)


@pytest.fixture
def rootless(site: Site) -> Iterator[Rootless]:
    """Where /dev/fuse is for everybody, as most systems have it."""
    base = Path(tempfile.mkdtemp(prefix="wsfs-test-"))
    base.chmod(0o755)
    device = Path("/dev/fuse")
    mode = stat.S_IMODE(device.stat().st_mode)
    device.chmod(0o666)
    found = Rootless(base / "rootless", site)
    yield found
    device.chmod(mode)
    if any(mount.mountpoint == str(found.mountpoint) for mount in all_mounts()):
        subprocess.run(["umount", "-i", "-l", found.mountpoint], check=False)
    shutil.rmtree(base)


def test_a_mount_without_root(rootless: Rootless) -> None:
    """init, mount by fusermount3, work, sync, umount, and a cold mount, all as user 1000; root cannot look in."""
    where = rootless.mountpoint
    rootless.wsfs("init", rootless.url)
    rootless.wsfs("mount", rootless.url, where)
    with pytest.raises(PermissionError):
        os.listdir(where)
    script = f"""
import os
os.chdir({str(where)!r})
open("file", "w").write("content")
os.mkdir("directory"); os.link("file", "directory/hard"); os.symlink("file", "link"); os.mkfifo("fifo")
os.chmod("file", 0o2640); os.utime("file", ns=(1, 2))
for call in (lambda: os.chown("file", 0, 0), lambda: os.mknod("null", 0o020666, os.makedev(1, 3)),
             lambda: os.unlink(".workspace.initialized")):
    try: call()
    except PermissionError: pass
    else: raise SystemExit("allowed")
assert os.stat("file").st_uid == 1000
"""
    rootless.run(sys.executable, "-c", script)
    assert "RUNNING" in rootless.wsfs("status", where)
    rootless.wsfs("sync", where)
    rootless.wsfs("umount", where)
    rootless.run("rm", "-rf", rootless.base / "home" / ".cache")
    rootless.wsfs("mount", rootless.url, where)
    assert rootless.run("stat", "-c", "%u:%g %a %h %Y", where / "file") == "1000:1000 2640 2 0\n"
    assert rootless.run("cat", where / "directory" / "hard") == "content"
    # fusermount3 refuses what /etc/fuse.conf does not allow, and says so.
    rootless.run("fusermount3", "-u", where)
    rootless.wsfs("mount", rootless.url, where)
    rootless.wsfs("umount", where)


def test_allow_other_without_root(rootless: Rootless) -> None:
    """Unless /etc/fuse.conf allows it, it is refused in one sentence that names the remedy."""
    configuration = Path("/etc/fuse.conf")
    if any(line.strip() == "user_allow_other" for line in configuration.read_text().splitlines()):
        pytest.skip("/etc/fuse.conf allows it here")
    rootless.wsfs("init", rootless.url)
    said = rootless.wsfs("mount", rootless.url, rootless.mountpoint, "-o", "allow_other", code=40)
    assert "user_allow_other" in said
    assert "Traceback" not in said
