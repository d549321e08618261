"""Names: which there can be, when they appear and disappear, and renaming."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from calls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, fails_with, python, renameat2


def test_long_names(here: Path) -> None:
    """255 bytes are a name, 256 are not; symbolic links hold up to 4,095 bytes; deep paths work."""
    (here / ("n" * 255)).write_text("x")
    for call in (os.mkdir, os.mkfifo, os.stat, os.unlink):
        fails_with(errno.ENAMETOOLONG, call, here / ("n" * 256))
    fails_with(errno.ENAMETOOLONG, os.rename, here / ("n" * 255), here / ("n" * 256))
    fails_with(errno.ENAMETOOLONG, os.symlink, "x", here / ("n" * 256))
    os.symlink("t" * 4095, here / "link")
    assert len(os.readlink(here / "link")) == 4095
    fails_with(errno.ENAMETOOLONG, os.symlink, "t" * 4096, here / "longer")
    fails_with(errno.ENOENT, os.symlink, "", here / "nothing")
    deep = here.joinpath(*["d" * 200] * 15)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    assert (deep / "file").read_text() == "deep"


def test_any_byte_but_two(here: Path) -> None:
    """Names are bytes: only the slash and NUL are not for them, and what looks equal to a reader is not the same."""
    top = os.fsencode(here)
    every = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    special = [
        b"\xff\xfe",
        "é".encode(),
        "e\u0301".encode(),
        b"-rf",
        b" ",
        b"\n",
        b"*",
        b"...",
        b"A",
        b"a" * 254,
        b"CON",
    ]
    names = sorted({*every, *special})
    for name in names:
        with open(top + b"/" + name, "wb") as file:
            file.write(name)
    assert sorted(os.listdir(top)) == names
    for name in names:
        with open(top + b"/" + name, "rb") as file:
            assert file.read() == name


def test_what_is_not_there(here: Path) -> None:
    """A missing name stays missing until it is made, then is there at once; the same the other way round."""
    path = here / "file"
    for _ in range(3):
        fails_with(errno.ENOENT, os.stat, path)
        fails_with(errno.ENOENT, os.open, path, os.O_RDONLY)
        path.write_text("now")
        assert path.read_text() == "now"
        fails_with(errno.EEXIST, os.mkdir, path)
        fails_with(errno.ENOTDIR, os.stat, path / "below")
        path.unlink()


def test_a_working_directory_that_is_removed(here: Path) -> None:
    """Nothing can be made in a directory that was removed."""
    script = """
os.mkdir("sub"); os.chdir("sub"); os.rmdir("../sub")
assert os.listdir(".") == []
for call in (lambda: os.mkdir("x"), lambda: open("y", "w"), lambda: os.symlink("a", "z")):
    refused(errno.ENOENT, call)
"""
    python(script, cwd=here)


def test_symbolic_links(here: Path) -> None:
    """They are followed, also when they dangle or loop; their own attributes are theirs."""
    (here / "file").write_text("x")
    os.symlink("file", here / "link")
    assert (here / "link").read_text() == "x"
    assert (here / "link").lstat().st_size == 4
    fails_with(errno.ELOOP, os.open, here / "link", os.O_RDONLY | os.O_NOFOLLOW)
    os.symlink("new", here / "dangling")
    fails_with(errno.ENOENT, os.stat, here / "dangling")
    fails_with(errno.EEXIST, os.open, here / "dangling", os.O_CREAT | os.O_EXCL)
    (here / "dangling").write_text("made through the link")
    assert (here / "new").read_text() == "made through the link"
    os.symlink("loop", here / "loop")
    fails_with(errno.ELOOP, os.stat, here / "loop")
    os.chown(here / "link", 12, 34, follow_symlinks=False)
    os.utime(here / "link", ns=(5, 6), follow_symlinks=False)
    status = (here / "link").lstat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (12, 34, 6)
    assert (here / "file").stat().st_uid == 0


# --- renaming


def test_rename_flags(here: Path) -> None:
    """RENAME_NOREPLACE refuses to replace, RENAME_EXCHANGE swaps files and directories, others are refused."""
    one, two, directory = here / "one", here / "two", here / "directory"
    one.write_text("one")
    two.write_text("two")
    (directory / "sub").mkdir(parents=True)
    fails_with(errno.EEXIST, renameat2, one, two, RENAME_NOREPLACE)
    renameat2(one, here / "three", RENAME_NOREPLACE)
    renameat2(here / "three", two, RENAME_EXCHANGE)
    assert ((here / "three").read_text(), two.read_text()) == ("two", "one")
    renameat2(two, directory, RENAME_EXCHANGE)
    assert two.is_dir()
    assert (two / "sub").is_dir()
    assert directory.read_text() == "one"
    assert here.stat().st_nlink == 3
    fails_with(errno.ENOENT, renameat2, two, here / "missing", RENAME_EXCHANGE)
    fails_with(errno.EINVAL, renameat2, two, here / "missing", RENAME_NOREPLACE | RENAME_EXCHANGE)
    fails_with(errno.EINVAL, renameat2, directory, here / "missing", RENAME_WHITEOUT)
    fails_with(errno.EINVAL, renameat2, directory, here / "missing", 64)


def test_rename_across_directories(here: Path) -> None:
    """Link counts of directories follow what is moved; a directory cannot move into itself."""
    a, b = here / "a", here / "b"
    (a / "inner").mkdir(parents=True)
    b.mkdir()
    (a / "inner" / "file").write_text("content")
    assert (a.stat().st_nlink, b.stat().st_nlink) == (3, 2)
    (a / "inner").rename(b / "moved")
    assert (a.stat().st_nlink, b.stat().st_nlink) == (2, 3)
    assert (b / "moved" / "file").read_text() == "content"
    assert (b / "moved" / "..").stat().st_ino == b.stat().st_ino
    fails_with(errno.EINVAL, os.rename, b, b / "moved" / "deep")
    fails_with(errno.ENOTEMPTY, os.rename, a, b)
    b.rename(a)  # over an empty directory
    assert sorted(os.listdir(here)) == ["a"]
    (here / "file").write_text("x")
    fails_with(errno.ENOTDIR, os.rename, a, here / "file")
    fails_with(errno.EISDIR, os.rename, here / "file", a)
    fails_with(errno.ENOTEMPTY, os.rmdir, a)
    fails_with(errno.ENOTDIR, os.rmdir, here / "file")
    fails_with(errno.EISDIR, os.unlink, a)


def test_exchange_across_directories(here: Path) -> None:
    """A directory and a file change places: link counts and `..` follow."""
    (here / "a" / "directory" / "sub").mkdir(parents=True)
    (here / "b").mkdir()
    (here / "b" / "file").write_text("x")
    renameat2(here / "a" / "directory", here / "b" / "file", RENAME_EXCHANGE)
    assert (here / "a" / "directory").read_text() == "x"
    assert (here / "b" / "file" / "sub").is_dir()
    assert (here / "b" / "file" / "..").stat().st_ino == (here / "b").stat().st_ino
    assert ((here / "a").stat().st_nlink, (here / "b").stat().st_nlink) == (2, 3)
    fails_with(errno.EINVAL, renameat2, here / "b", here / "b" / "file" / "sub", RENAME_EXCHANGE)


def test_replaced_open_file(here: Path) -> None:
    """Who has a file open keeps its content when another is renamed over it."""
    (here / "old").write_bytes(b"old" * 1000)
    (here / "new").write_bytes(b"new")
    with (here / "old").open("rb", buffering=0) as file:
        (here / "new").rename(here / "old")
        assert file.read() == b"old" * 1000
        assert os.fstat(file.fileno()).st_nlink == 0
    assert (here / "old").read_bytes() == b"new"


def test_renamed_while_it_is_written(here: Path) -> None:
    """A descriptor follows its file: what is written after a rename is in the file under its new name."""
    (here / "sub").mkdir()
    with (here / "old").open("wb", buffering=0) as file:
        file.write(b"before ")
        (here / "old").rename(here / "sub" / "new")
        file.write(b"after")
        (here / "old").write_bytes(b"another")
    assert (here / "sub" / "new").read_bytes() == b"before after"
    assert (here / "old").read_bytes() == b"another"


@pytest.mark.parametrize("name", [".", ".."])
def test_dots_are_no_names(here: Path, name: str) -> None:
    """What has a name of its own cannot be made, moved or removed as a dot."""
    (here / "sub").mkdir()
    fails_with(errno.EEXIST, os.mkdir, f"{here}/sub/{name}")
    fails_with(errno.EBUSY, os.rename, f"{here}/sub/{name}", here / "x")
    fails_with(errno.EINVAL if name == "." else errno.ENOTEMPTY, os.rmdir, f"{here}/sub/{name}")
