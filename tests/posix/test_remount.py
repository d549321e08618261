"""What another host shows after a stop in the middle of work."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from calls import MIB, libc

if TYPE_CHECKING:
    from tests.integration.conftest import Site, Tree

GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")
IN_OPEN, IN_NONBLOCK = 0x20, 0o4000


class Opens:
    """Counts how often files in some directories are opened."""

    def __init__(self, *directories: Path) -> None:
        self._fd = libc.inotify_init1(IN_NONBLOCK)
        self._names = {libc.inotify_add_watch(self._fd, os.fsencode(path), IN_OPEN): path for path in directories}

    def seen(self) -> list[str]:
        """The names of the files, not of directories, that were opened since the last call."""
        found = []
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return found
            while data:
                watch, _mask, _cookie, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode()
                if (self._names[watch] / name).is_file():
                    found.append(name)
                data = data[16 + length :]

    def close(self) -> None:
        os.close(self._fd)


def test_git_reads_no_file_after_a_remount(workspace: Site) -> None:
    """Inode numbers, ctime and mtime are what git's index says: a status on another host opens no file of the tree."""
    repository = workspace.mountpoint / "repository"
    source = Path(os.__file__).parent
    repository.mkdir()
    for name in ("json", "email", "unittest"):
        workspace.run("cp", "-r", source / name, repository)
    workspace.run(*GIT, "init", "-q", cwd=repository)
    workspace.run(*GIT, "add", ".", cwd=repository)
    workspace.run(*GIT, "commit", "-qm", "all", cwd=repository)
    # Git looks into every file that is not older than the index, in whole seconds.
    os.utime(repository / ".git" / "index", (time.time() + 2, time.time() + 2))
    workspace.elsewhere()
    opens = Opens(*(repository / name for name in ("json", "email", "unittest")))
    for options in ([], ["--porcelain", "--untracked-files=all"]):
        workspace.run(*GIT, "status", *options, cwd=repository)
    assert opens.seen() == []
    # Not just touched: in whole seconds that may be when it was copied.
    os.utime(repository / "json" / "decoder.py", (0, 0))
    assert workspace.run(*GIT, "status", "--porcelain", cwd=repository).stdout == ""
    assert "decoder.py" in opens.seen()
    opens.close()


def test_a_directory_renamed_while_its_content_is_unsaved(workspace: Site, tree: type[Tree]) -> None:
    """A subtree that is saved in part, moved, changed, moved back and over an empty directory, is all there."""
    top = workspace.mountpoint
    (top / "a" / "deep" / "deeper").mkdir(parents=True)
    (top / "target").mkdir()
    for number in range(30):
        (top / "a" / "deep" / f"saved{number}").write_bytes(os.urandom(2000))
    workspace.wsfs("sync", top)
    with (top / "a" / "deep" / "deeper" / "open").open("wb", buffering=0) as file:
        for number in range(30):
            (top / "a" / "deep" / "deeper" / f"dirty{number}").write_bytes(os.urandom(50_000))
        file.write(b"before ")
        (top / "a").rename(top / "b")
        file.write(b"between ")
        (top / "b" / "deep").rename(top / "target")
        (top / "target" / "saved3").rename(top / "target" / "deeper" / "saved3")
        workspace.wsfs("sync", top)
        file.write(b"after")
        (top / "target").rename(top / "b" / "deep")
    (top / "b" / "deep" / "saved4").unlink()
    before = tree.of(top)
    assert len(before) == 1 + 1 + 3 + 60
    workspace.elsewhere()
    assert tree.of(top) == before
    assert (top / "b" / "deep" / "deeper" / "open").read_bytes() == b"before between after"


def test_a_rename_over_an_open_file(workspace: Site) -> None:
    """Who had the old file open keeps it; another host sees only the new one, and the old bytes are not stored."""
    top = workspace.mountpoint
    (top / "file").write_bytes(b"old" * MIB)
    with (top / "file").open("r+b", buffering=0) as old:
        old.write(b"OLD")
        (top / "new").write_bytes(b"new content")
        (top / "new").rename(top / "file")
        old.write(os.urandom(4 * MIB))
        workspace.wsfs("sync", top)
        assert os.pread(old.fileno(), 3, 0) == b"OLD"
    workspace.elsewhere()
    assert (top / "file").read_bytes() == b"new content"
    assert sorted(os.listdir(top)) == [".workspace.initialized", "file"]
    assert workspace.stored_bytes() < MIB


def test_hard_links(workspace: Site, tree: type[Tree]) -> None:
    """Names of one file, across directories, some removed: the same number of links, and still one content."""
    top = workspace.mountpoint
    (top / "one").mkdir()
    (top / "two").mkdir()
    (top / "one" / "first").write_bytes(b"x" * 100_000)
    for number in range(5):
        os.link(top / "one" / "first", top / "two" / f"link{number}")
    (top / "one" / "first").unlink()
    (top / "two" / "link0").rename(top / "one" / "back")
    workspace.elsewhere()
    assert (top / "one" / "back").stat().st_nlink == 5
    with (top / "two" / "link3").open("r+b") as file:
        file.write(b"through another name")
    os.link(top / "two" / "link1", top / "six")
    (top / "two" / "link2").unlink()
    before = tree.of(top)
    assert (
        len({facts["ino"] for name, facts in before.items() if b"link" in name or name in (b"six", b"one/back")}) == 1
    )
    workspace.elsewhere()
    assert tree.of(top) == before
    assert (top / "six").read_bytes() == b"through another name" + b"x" * (100_000 - 20)


def test_every_attribute_of_a_subtree(workspace: Site, tree: type[Tree]) -> None:
    """Modes, owners, times, devices, odd names, deep paths: the same on another host, inode numbers and ctime too."""
    top = workspace.mountpoint
    for mode in (0o0, 0o400, 0o4755, 0o2640, 0o1777, 0o7777):
        (top / f"f{mode:o}").touch()
        os.chown(top / f"f{mode:o}", mode, 0xFFFFFFFE)
        (top / f"f{mode:o}").chmod(mode)
        (top / f"d{mode:o}").mkdir()
        (top / f"d{mode:o}").chmod(mode)
    os.mknod(top / "device", 0o060640, os.makedev(259, 70_000))
    os.mkfifo(top / "fifo", 0o622)
    os.symlink("x" * 4095, top / "link")
    deep = top.joinpath(*["d" * 250] * 14)
    deep.mkdir(parents=True)
    for name in (b"\xff\xfe", b"new\nline", b" ", b"-rf", "ü".encode(), b"n" * 255):
        with open(os.fsencode(deep) + b"/" + name, "wb") as file:
            file.write(name)
    before = tree.of(top)
    for _ in range(2):
        workspace.elsewhere()
        assert tree.of(top) == before


def test_watchers(workspace: Site) -> None:
    """inotify tells of what happens on this mount, also right after a remount."""
    workspace.elsewhere()
    top = workspace.mountpoint
    every = 0xFFF
    watch = libc.inotify_init1(IN_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(top), every) == 1
    (top / "file").write_text("x")
    (top / "file").rename(top / "other")
    (top / "other").unlink()
    (top / "sub").mkdir()
    data = os.read(watch, 1 << 16)
    os.close(watch)
    events = []
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        events.append((mask & every, data[16 : 16 + length].rstrip(b"\0").decode()))
        data = data[16 + length :]
    create, modify, closed, moved_from, moved_to, delete = 0x100, 0x2, 0x8, 0x40, 0x80, 0x200
    wanted = [(create, "file"), (modify, "file"), (closed, "file"), (moved_from, "file"), (moved_to, "other")]
    wanted += [(delete, "other"), (create, "sub")]
    assert [event for event in events if event in wanted] == wanted
