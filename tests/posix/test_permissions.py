"""Users, groups and modes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

from calls import NOBODY, as_user, fails_with, python


def test_set_id_bits(here: Path) -> None:
    """chown and a write by an ordinary user take set-user-ID away."""
    path = here / "file"
    path.write_text("x")
    path.chmod(0o6755)
    os.chown(path, NOBODY, NOBODY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.chmod(0o6755)
    here.chmod(0o755)
    python("open(sys.argv[1], 'a').write('more')", path, user=as_user())
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert path.read_text() == "xmore"


def test_truncate_by_an_ordinary_user_clears_set_id_bits(here: Path) -> None:
    """Also with O_TRUNC; not when nothing else is given away: a mode without them stays as it is."""
    here.chmod(0o755)
    for script in ("os.truncate(sys.argv[1], 1)", "os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC))"):
        path = here / "file"
        path.write_text("xyz")
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o6757)
        python(script, path, user=as_user())
        assert stat.S_IMODE(path.stat().st_mode) == 0o757
    path.chmod(0o2646)  # set-group-ID on what no group may execute is no such bit
    for script in ("os.truncate(sys.argv[1], 0)", "open(sys.argv[1], 'a').write('x')"):
        python(script, path, user=as_user())
        assert stat.S_IMODE(path.stat().st_mode) == 0o2646


def test_who_may_set_set_group_id(here: Path) -> None:
    """A user who is not in a file's group loses set-group-ID when he changes its mode."""
    here.chmod(0o777)
    path = here / "file"
    path.touch()
    os.chown(path, NOBODY, 4321)
    python("os.chmod(sys.argv[1], 0o2755)", path, user=as_user())
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    python("os.chmod(sys.argv[1], 0o2755)", path, user=as_user(groups=[4321]))
    assert stat.S_IMODE(path.stat().st_mode) == 0o2755


def test_set_user_id_program(here: Path) -> None:
    """A set-user-ID program runs as its owner where the mount has `suid`."""
    program = here / "id"
    here.chmod(0o755)
    shutil.copy("/usr/bin/id", program)
    os.chown(program, 4242, 0)
    program.chmod(0o4755)
    done = subprocess.run([*as_user(), program, "-u"], check=True, capture_output=True, text=True)
    assert done.stdout == "4242\n"


def test_setgid_directory(here: Path) -> None:
    """What is made in a set-group-ID directory gets its group; a subdirectory gets the bit too."""
    os.chown(here, 0, 4321)
    here.chmod(0o2775)
    (here / "file").touch()
    (here / "sub").mkdir()
    os.symlink("x", here / "link")
    os.mkfifo(here / "fifo")
    for name in ("file", "sub", "link", "fifo"):
        assert (here / name).lstat().st_gid == 4321
    assert (here / "sub").stat().st_mode & stat.S_ISGID
    assert not (here / "file").stat().st_mode & stat.S_ISGID


def test_umask_of_the_process(here: Path) -> None:
    """The mode of a new file is what was asked for without the process's umask."""
    old = os.umask(0o027)
    try:
        os.close(os.open(here / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(here / "dir", 0o777)
        os.mkfifo(here / "fifo", 0o666)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((here / name).stat().st_mode) for name in ("file", "dir", "fifo")]
    assert modes == [0o640, 0o750, 0o640]


def test_modes_that_forbid_what_was_just_made(here: Path) -> None:
    """A file may be made with a mode that forbids its owner to write; the descriptor can write all the same."""
    here.chmod(0o777)
    script = """
fd = os.open("file", os.O_CREAT | os.O_RDWR, 0)
os.write(fd, b"x")
os.fsync(fd)
os.fchmod(fd, 0o400)
os.ftruncate(fd, 0)
refused(errno.EACCES, os.open, "file", os.O_RDWR)
"""
    python(script, user=as_user(), cwd=here)
    assert stat.S_IMODE((here / "file").stat().st_mode) == 0o400


def test_other_users(here: Path) -> None:
    """Permissions hold for others: what a mode forbids fails with EACCES, what it allows works."""
    here.chmod(0o755)
    (here / "secret").write_text("secret")
    (here / "secret").chmod(0o600)
    (here / "public").write_text("public")
    (here / "public").chmod(0o644)
    (here / "open").mkdir()
    (here / "open").chmod(0o777)
    (here / "closed").mkdir(0o700)
    script = """
assert open("public").read() == "public"
refused(errno.EACCES, open, "secret")
refused(errno.EACCES, open, "public", "w")
refused(errno.EACCES, os.truncate, "public", 0)
refused(errno.EACCES, os.listdir, "closed")
refused(errno.EACCES, os.mkdir, "new")
refused(errno.EACCES, os.unlink, "public")
refused(errno.EACCES, os.rename, "public", "open/x")
refused(errno.EPERM, os.chmod, "public", 0o777)
refused(errno.EPERM, os.chown, "public", 65534, 65534)
refused(errno.EPERM, os.utime, "public", (1, 1))
refused(errno.EACCES, os.utime, "public")
refused(errno.EPERM, os.mknod, "open/null", 0o020666, os.makedev(1, 3))
with open("open/mine", "w") as file: file.write("x")
status = os.stat("open/mine")
assert (status.st_uid, status.st_gid) == (65534, 65534)
os.chmod("open/mine", 0o600)
refused(errno.EPERM, os.chown, "open/mine", 0, 0)
os.mkdir("open/dir"); os.rename("open/mine", "open/dir/mine"); os.unlink("open/dir/mine"); os.rmdir("open/dir")
"""
    python(script, user=as_user(), cwd=here)


def test_supplementary_groups(here: Path) -> None:
    """A group that is not the process's first one counts as well: for reading, writing, and giving a file to it."""
    here.chmod(0o777)
    path = here / "file"
    path.write_text("x")
    os.chown(path, 0, 4321)
    path.chmod(0o660)
    (here / "directory").mkdir()
    os.chown(here / "directory", 0, 4321)
    (here / "directory").chmod(0o770)
    script = """
assert open("file").read() == "x"
open("file", "a").write("y")
open("directory/new", "w").close()
open("mine", "w").close()
os.chown("mine", -1, 4321)
refused(errno.EPERM, os.chown, "mine", -1, 1234)
"""
    python(script, user=as_user(1000, 1000, groups=[100, 4321]), cwd=here)
    assert (here / "mine").stat().st_gid == 4321
    for other in (as_user(1000, 1000), as_user(1000, 1000, groups=[100])):
        python(
            "refused(errno.EACCES, open, 'file')\nrefused(errno.EACCES, os.listdir, 'directory')", user=other, cwd=here
        )


def test_sticky_directory(here: Path) -> None:
    """In a sticky directory only the owner removes or renames a file."""
    here.chmod(0o1777)
    (here / "roots").write_text("x")
    (here / "roots").chmod(0o666)
    script = """
refused(errno.EPERM, os.unlink, "roots")
refused(errno.EPERM, os.rename, "roots", "taken")
open("mine", "w").close()
refused(errno.EPERM, os.rename, "mine", "roots")
os.rename("mine", "still-mine")
os.unlink("still-mine")
"""
    python(script, user=as_user(), cwd=here)
    assert (here / "roots").read_text() == "x"


def test_owners_of_every_size(here: Path) -> None:
    """User and group numbers have 32 bits; -1 leaves one as it is."""
    path = here / "file"
    path.touch()
    os.chown(path, 0xFFFFFFFE, 0x80000001)
    os.chown(path, -1, -1)
    assert (path.stat().st_uid, path.stat().st_gid) == (0xFFFFFFFE, 0x80000001)
    path.chmod(0o7777)
    assert stat.S_IMODE(path.stat().st_mode) == 0o7777
    fails_with(errno.EPERM, os.link, here, here / "x")
