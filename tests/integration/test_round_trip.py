"""Everything comes back on another host: a stop, an empty cache, a mount, and every file is as it was."""

from __future__ import annotations

import os
import random
import socket
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site, Tree

MIB = 1 << 20
STORES = [pytest.param("directory", marks=pytest.mark.long), "moto", pytest.param("real", marks=pytest.mark.s3)]


def populate(top: Path) -> None:
    """One of everything that a file system can hold."""
    base = os.fsencode(top)
    noise = random.Random(7)

    def put(name: bytes, data: bytes, mode: int = 0o644) -> bytes:
        path = os.path.join(base, name)
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)
        return path

    for name in (b"plain", b"deep/er/and/deeper", b"empty", b"names", b"links", b"special", b"setgid", b"sticky"):
        os.makedirs(os.path.join(base, name))
    put(b"plain/nothing", b"")
    put(b"plain/inline", b"x" * 512)
    put(b"plain/packed", b"y" * 513)
    put(b"plain/text", b"".join(b"line %d\n" % n for n in range(5000)))
    put(b"plain/block", noise.randbytes(MIB))
    put(b"plain/two blocks", noise.randbytes(MIB + 1))
    put(b"plain/many", noise.randbytes(5 * MIB + 12345))
    put(b"plain/zeros", bytes(3 * MIB))
    put(b"deep/er/and/deeper/file", b"found")
    for mode in (0o000, 0o400, 0o755, 0o4755, 0o2755, 0o1644, 0o7777):
        put(b"plain/mode %o" % mode, b"%o" % mode, mode)
    for number, owner in enumerate([(1, 2), (12345, 54321), (2**32 - 3, 2**31)]):
        os.chown(put(b"plain/owner %d" % number, b"mine"), *owner)
    os.chown(put(b"plain/owned setuid", b"#!"), 1000, 1000)
    os.chmod(os.path.join(base, b"plain/owned setuid"), 0o6755)
    os.chmod(os.path.join(base, b"setgid"), 0o2775)
    os.chmod(os.path.join(base, b"sticky"), 0o1777)
    os.chown(os.path.join(base, b"empty"), 4242, 4343)
    for byte in range(1, 256):
        if bytes([byte]) not in (b"/", b"."):
            put(b"names/%c" % byte, bytes([byte]))
    names = (b"a\nline\r\t", b"\xff\xfe invalid \x80", b" lead and trail ", b"-rf", b"'\"`$(x)\\", "żółw ☃ 😀".encode())
    for name in (*names, b"n" * 255, b"\xc3" * 255, b"...", b"*"):
        put(b"names/" + name, name)
    os.mkdir(os.path.join(base, b"names/" + b"d" * 255))
    first = put(b"links/one", b"hard")
    for name in (b"links/two", b"deep/three"):
        os.link(first, os.path.join(base, name))
    for number, target in enumerate((b"one", b"../plain", b"/absolute/nowhere", b"\xff\n", b"t" * 4000)):
        os.symlink(target, os.path.join(base, b"links/symbolic %d" % number))
    os.lchown(os.path.join(base, b"links/symbolic 0"), 77, 88)
    os.mkfifo(os.path.join(base, b"special/fifo"), 0o640)
    os.mknod(os.path.join(base, b"special/null"), stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(os.path.join(base, b"special/block"), stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(os.path.join(base, b"special"), os.O_PATH)
        listener.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
    hole = os.open(put(b"plain/sparse", b""), os.O_WRONLY)
    for offset in (3 * MIB - 2, 20 * MIB + 1):
        os.pwrite(hole, b"island", offset)
    os.ftruncate(hole, 32 * MIB + 5)
    os.close(hole)
    odd = {
        b"plain/nothing": (-1_500_000_001, -123_456_789_987_654_321),
        b"plain/inline": (0, 1),
        b"empty": (2**33 * 10**9 + 999_999_999, 2**32 * 10**9 + 1),
    }
    for directory, subdirectories, files in os.walk(base, topdown=False):
        for name in files + subdirectories:
            path = os.path.join(directory, name)
            if name != b".workspace.initialized":
                relative = os.path.relpath(path, base)
                number = zlib.crc32(relative.replace(b"deep/three", b"links/one").replace(b"links/two", b"links/one"))
                usual = (1_600_000_000_123_456_789 + number, 1_500_000_000_987_654_321 + number * 999)
                os.utime(path, ns=odd.get(relative, usual), follow_symlinks=False)


@pytest.mark.parametrize("site", STORES, indirect=True)
def test_everything_comes_back(site: Site, tree: type[Tree], tools: type[Helpers], tmp_path: Path) -> None:
    """Bytes, modes, owners, times, numbers, links, special files, holes and odd names survive an empty cache."""
    native = tmp_path / "native"
    native.mkdir()
    populate(native)
    site.mount()
    mounted = site.mountpoint
    populate(mounted)
    marker = (mounted / ".workspace.initialized").read_bytes()
    skip = [b".workspace.initialized"]
    before = tree.of(mounted)
    here, there = (tree.of(top, inodes=False, skip=skip) for top in (native, mounted))
    for facts in (here[b""], there[b""]):
        facts.pop("mtime")
    assert there == here
    site.elsewhere()
    assert tree.of(mounted) == before
    assert (mounted / ".workspace.initialized").read_bytes() == marker
    # The same from the programs that people compare with.
    for source, target in ((native, mounted), (mounted, native)):
        words = ["rsync", "-aHn", "--itemize-changes", "--checksum", "--delete", "--omit-dir-times"]
        result = tools.run(*words, "--exclude=/.workspace.initialized", f"{source}/", f"{target}/")
        assert result.stdout == ""
        words = ["diff", "-r", "--no-dereference", "-x", "special", "-x", ".workspace.initialized"]
        assert tools.run(*words, source, target).stdout == ""
    # And once more, from a warm cache.
    site.umount()
    site.mount()
    assert tree.of(mounted) == before


def test_holes_stay_holes(workspace: Site) -> None:
    """A sparse file of 1 GiB takes a few MiB in the store and in the cache, and reads as zeros between its islands."""
    path = workspace.mountpoint / "sparse"
    before = workspace.stored_bytes()
    with path.open("wb") as file:
        for offset in (0, 500 * MIB, 1024 * MIB - 6):
            file.seek(offset)
            file.write(b"island")
    assert path.stat().st_size == 1024 * MIB
    workspace.elsewhere()
    assert workspace.stored_bytes() - before < MIB
    assert path.stat().st_size == 1024 * MIB
    with path.open("rb") as file:
        for offset, expected in ((0, b"island\0"), (500 * MIB - 1, b"\0island\0"), (1024 * MIB - 7, b"\0island")):
            file.seek(offset)
            assert file.read(len(expected)) == expected
        file.seek(800 * MIB)
        assert file.read(4 * MIB) == bytes(4 * MIB)
    used = sum(p.stat().st_blocks * 512 for p in (workspace.cache / "local" / "overlay").rglob("*") if p.is_file())
    assert used < 8 * MIB


@pytest.mark.parametrize("site", ["directory", pytest.param("real", marks=pytest.mark.s3)], indirect=True)
def test_changes_to_what_a_commit_holds(workspace: Site, tree: type[Tree]) -> None:
    """Renames, truncations, growth, mode changes and deletions of saved files come back as they were left."""
    top = workspace.mountpoint
    noise = random.Random(3)
    for number in range(40):
        directory = top / f"d{number % 4}"
        directory.mkdir(exist_ok=True)
        (directory / f"f{number}").write_bytes(noise.randbytes(noise.choice([10, 700, 50_000, 3 * MIB + 7])))
    workspace.elsewhere()
    for number in range(40):
        path = top / f"d{number % 4}" / f"f{number}"
        if number % 8 == 0:
            path.unlink()
        elif number % 8 == 1:
            path.rename(top / f"d{(number + 1) % 4}" / f"moved{number}")
        elif number % 8 == 2:
            os.truncate(path, path.stat().st_size // 2)
        elif number % 8 == 3:
            os.truncate(path, path.stat().st_size * 2 + 3)
        elif number % 8 == 4:
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 3)
                file.write(b"in the middle")
        elif number % 8 == 5:
            with path.open("ab") as file:
                file.write(noise.randbytes(70_000))
        elif number % 8 == 6:
            os.truncate(path, path.stat().st_size // 3)
            os.truncate(path, 2 * MIB)  # what was cut off must not come back
    (top / "d3").rename(top / "renamed")
    before = tree.of(top)
    workspace.elsewhere()
    assert tree.of(top) == before


def test_many_commits_fold(workspace: Site, tree: type[Tree]) -> None:
    """After dozens of commits, with deletions in between, another host sees the last state of each file."""
    top = workspace.mountpoint
    for number in range(25):
        (top / f"file{number}").write_text(str(number))
        (top / "same").write_text(f"version {number}")
        if number % 3 == 2:
            (top / f"file{number - 1}").unlink()
        workspace.wsfs("sync", top)
    before = tree.of(top)
    workspace.elsewhere()
    assert tree.of(top) == before
    assert (top / "same").read_text() == "version 24"
