"""Save points that can be looked into: `.wsfs/at/ID` in a mount, and read-only mounts of their own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
from harness import World, started

from wsfs.errands import Errands
from wsfs.kernel import past
from wsfs.kernel.fetcher import Fetcher
from wsfs.kernel.operations import View
from wsfs.kernel.past import Shelf, WithPast
from wsfs.model import PAST, ROOT_INO, Inode
from wsfs.remote import NeedRemote
from wsfs.sync.history import save_points


def save(site: Any) -> int:
    site.wsfs("sync", site.mountpoint)
    return int(site.status()["seq"])


@pytest.fixture
def worked(workspace: Any) -> Any:
    """A mount whose save point #2 has a tree, of which nothing is left in #3, but for one file that is another one."""
    top = workspace.mountpoint
    (top / "dir/sub").mkdir(parents=True)
    for number in range(300):
        (top / f"dir/sub/{number}").write_text(f"{number}\n" * number)
    (top / "big").write_bytes(b"then" * 700_000)
    os.link(top / "big", top / "dir/link")
    os.symlink("../big", top / "dir/symlink")
    (top / "dir").chmod(0o750)
    os.utime(top / "dir", ns=(10**18, 10**18 + 3))
    assert save(workspace) == 2
    shutil.rmtree(top / "dir")
    (top / "big").write_bytes(b"now")
    assert save(workspace) == 3
    return workspace


def test_a_save_point_is_a_directory_for_whoever_names_it(worked: Any, tree: Any) -> None:
    top = worked.mountpoint
    then = top / ".wsfs/at/2"
    assert (then / "big").read_bytes() == b"then" * 700_000
    assert (top / ".wsfs/at/3/big").read_bytes() == b"now" == (top / "big").read_bytes()
    assert sorted(os.listdir(then / "dir/sub"), key=int) == [str(number) for number in range(300)]
    assert os.path.samefile(then / "big", then / "dir/link")
    assert os.readlink(then / "dir/symlink") == "../big"
    status = (then / "dir").stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o750, 10**18 + 3)
    assert (then / "dir").resolve() == then / "dir"
    assert sorted(os.listdir(top / ".wsfs/at"), key=int) == ["1", "2", "3"]
    # What a restore makes of it is what is shown.
    was = dict(tree.of(then, inodes=False))
    worked.wsfs("restore", "--at", 2, top)
    now = dict(tree.of(top, inodes=False))
    assert now == was


def test_no_number_of_a_save_point_is_that_of_another_file(worked: Any) -> None:
    top = worked.mountpoint
    numbers: dict[int, list[str]] = {}
    for start in (top, top / ".wsfs", top / ".wsfs/at", *((top / ".wsfs/at") / str(n) for n in (1, 2, 3))):
        for directory, _, files in os.walk(start):
            for name in ("", *files):
                path = os.path.join(directory, name)
                status = os.lstat(path)
                assert status.st_dev == top.stat().st_dev
                numbers.setdefault(status.st_ino, []).append(path)
    for paths in numbers.values():
        assert len({os.path.relpath(path, top).startswith(".wsfs/at/2") for path in paths}) == 1, paths
        assert len({os.lstat(path).st_nlink for path in paths}) == 1
    past = [paths for number, paths in numbers.items() if number >> 63]
    assert past
    assert all(".wsfs" in path for paths in past for path in paths)
    assert not any(".wsfs" in path for number, paths in numbers.items() if not number >> 63 for path in paths)


def test_nothing_finds_it_that_only_looks(worked: Any) -> None:
    top = worked.mountpoint
    (top / ".wsfs/at/2/big").stat()
    assert ".wsfs" not in os.listdir(top)
    found = subprocess.run(["find", top], capture_output=True, text=True, check=True).stdout.splitlines()
    assert not [path for path in found if ".wsfs" in path]
    assert len(found) == 3
    subprocess.run(f"rm -rf {top}/* {top}/.[!.]*", shell=True, check=False, capture_output=True)
    assert (top / ".wsfs/at/2/big").read_bytes() == b"then" * 700_000


def refused(operation: Callable[[], object]) -> int | None:
    try:
        operation()
    except OSError as exc:
        return exc.errno
    return None


def test_everything_in_it_is_read_only(worked: Any) -> None:
    top = worked.mountpoint
    then = top / ".wsfs/at/2"
    (then / "big").stat()
    for place in (then, then / "dir", top / ".wsfs", top / ".wsfs/at"):
        changes: list[Callable[[], object]] = [
            lambda place=place: (place / "new").touch(),
            lambda place=place: (place / "new").mkdir(),
            lambda place=place: (place / "new").symlink_to("x"),
            lambda place=place: os.mkfifo(place / "new"),
            lambda place=place: os.link(top / "big", place / "new"),
            lambda place=place: os.rename(top / "big", place / "new"),
            lambda place=place: place.chmod(0o777),
            lambda place=place: os.utime(place),
        ]
        assert {refused(change) for change in changes} == {errno.EROFS}, place
    file = then / "big"
    changes = [
        lambda: file.open("ab"),
        lambda: file.open("wb"),
        lambda: os.truncate(file, 0),
        file.unlink,
        lambda: os.chown(file, 1, 1),
        lambda: os.rename(file, then / "other"),
        lambda: os.rename(file, top / "other"),
        lambda: os.link(file, top / "other"),
        lambda: os.rename(top / "big", file),
        lambda: os.rmdir(top / ".wsfs"),
        lambda: os.rename(top / ".wsfs", top / "mine"),
        lambda: shutil.rmtree(then / "dir" / "sub"),
    ]
    assert [refused(change) for change in changes] == [errno.EROFS] * len(changes)
    assert refused((top / ".wsfs").mkdir) == errno.EEXIST
    assert (top / "big").read_bytes() == b"now"
    assert file.read_bytes() == b"then" * 700_000


@pytest.mark.parametrize("name", ["99", "x", "2x", "2001-01-01", ".."])
def test_what_is_no_save_point_is_not_there(worked: Any, name: str) -> None:
    if name == "..":
        assert os.path.samefile(worked.mountpoint / ".wsfs/at/..", worked.mountpoint / ".wsfs")
    else:
        assert not (worked.mountpoint / ".wsfs/at" / name).exists()
    assert not (worked.mountpoint / ".wsfs/other").exists()


def test_a_save_point_that_was_made_just_now_and_one_with_a_name(worked: Any) -> None:
    top = worked.mountpoint
    os.listdir(top / ".wsfs/at")
    (top / "newer").write_text("x")
    seq = save(worked)
    assert (top / f".wsfs/at/{seq}/newer").read_text() == "x"
    worked.wsfs("pin", top, 2, "--name", "good")
    deadline = time.monotonic() + 60
    while not (top / ".wsfs/at/good/dir").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.long
def test_many_save_points_and_a_remount(worked: Any) -> None:
    top = worked.mountpoint
    for number in range(12):
        (top / "count").write_text(str(number))
        save(worked)
    held = (top / ".wsfs/at/2/big").open("rb")
    with held:
        found = [(top / f".wsfs/at/{4 + number}/count").read_text() for number in range(12)]
        assert found == [str(number) for number in range(12)]
        assert len(list((worked.cache / "at").iterdir())) <= 8
        assert held.read() == b"then" * 700_000  # it was closed in between, and is opened again
    worked.umount()
    assert not (worked.cache / "at").exists()
    worked.wipe()
    worked.mount()
    assert (top / ".wsfs/at/2/dir/sub/7").read_text() == "7\n" * 7


def test_a_mount_of_a_save_point(worked: Any, tmp_path: Path, tree: Any) -> None:
    where = tmp_path / "then"
    where.mkdir()
    was = dict(tree.of(worked.mountpoint / ".wsfs/at/2", inodes=False))
    worked.mount("--at", "2", where=where)
    try:
        assert dict(tree.of(where, inodes=False)) == was
        with pytest.raises(OSError, match="Read-only"):
            (where / "x").touch()
        (worked.mountpoint / "later").touch()
        save(worked)
        assert not (where / "later").exists()
        assert "shows one save point" in worked.wsfs("refresh", where, code=2).stderr
        points = json.loads(worked.wsfs("log", worked.url, "--json").stdout)["save_points"]
        assert [point["id"] for point in points if point["kind"] == "reader"] == [2]
    finally:
        worked.wsfs("umount", where)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--at", "99"], 27, "there is no save point #99"),
        (["-o", "at=nothing"], 27, "there is no save point with the name 'nothing'"),
        (["-o", "at=2,follow=3s"], 2, "leave one of them out"),
        (["-o", "at="], 2, "empty name"),
    ],
)
def test_what_cannot_be_mounted(site: Any, options: list[str], code: int, words: str) -> None:
    assert words in site.mount(*options, code=code).stderr


# --- without a mount: what a listing reads, and in how many steps -----------------------------------------------------

TOP = PAST | 1 << 48 | ROOT_INO
"""The top directory of the first save point that was looked at."""


class Listing:
    """The kernel's side of a listing: portions of a few entries, and what was asked of the tree for them."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, portion: int) -> None:
        self.names: list[bytes] = []
        self.read = self.portions = 0
        self.missing: set[bytes] = set()
        """Entries whose attributes are not here when they are read for the first time."""
        self._portion = portion
        self._entries = world.names.entries
        self._after = self._left = 0
        self.operations = WithPast(
            world.names, world.files, world.index, Fetcher(10), view=View(), xattr=False, free_space=lambda: (0, 0)
        )
        self.operations.shelf = self  # type: ignore[assignment]
        monkeypatch.setattr(world.names, "entries", self._counted)
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._take)
        self._point = SimpleNamespace(names=world.names)

    async def snapshot(self, _slot: int) -> Any:
        return self._point

    def _counted(self, ino: Any, after: int) -> Iterator[tuple[bytes, int, Inode]]:
        for entry in self._entries(ino, after):
            self.read += 1
            if entry[0] in self.missing:
                raise NeedRemote({entry[0]: lambda name=entry[0]: self.missing.remove(name)})
            yield entry

    def _take(self, _token: object, name: bytes, _entry: object, cookie: int) -> bool:
        if not self._left:
            return False
        self._left -= 1
        self._after = cookie
        self.names.append(name)
        return True

    def run(self) -> list[bytes]:
        async def portions() -> None:
            seen = -1
            while len(self.names) > seen:
                seen = len(self.names)
                self._left = self._portion
                self.portions += 1
                await self.operations.readdir(TOP, self._after, None)

        trio.run(portions)
        return self.names


@pytest.fixture
def world() -> Iterator[World]:
    with started() as found:
        yield found


def test_a_portion_of_a_listing_reads_no_more_than_it_tells(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a listing of a large directory takes the square of it, and nothing else is served meanwhile."""
    expected = [b".workspace.initialized"] + [b"%d" % number for number in range(400)]
    for name in expected[1:]:
        world.create(name)
    listing = Listing(world, monkeypatch, portion=20)
    assert listing.run() == expected
    assert listing.read <= len(expected) + listing.portions


def test_what_a_listing_waits_for_is_told_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is the first of a portion, or one in the middle."""
    expected = [b".workspace.initialized"] + [b"%d" % number for number in range(50)]
    for name in expected[1:]:
        world.create(name)
    listing = Listing(world, monkeypatch, portion=10)
    listing.missing = {expected[0], b"4", b"9", b"10", b"49"}
    assert listing.run() == expected
    assert not listing.missing


AT = PAST | 2


def test_a_name_that_no_save_point_has_does_not_ask_the_store_each_time(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it fill the log, for it is no error; and what is saved meanwhile is found a moment later."""
    now = 1000.0
    lists = 0

    def counted(store: Any) -> Any:
        nonlocal lists
        lists += 1
        return save_points(store)

    def nothing(_key: str) -> None: ...

    monkeypatch.setattr(past, "save_points", counted)
    packs = world.workspace.packs
    operations = WithPast(
        world.names, world.files, world.index, Fetcher(10), view=View(), xattr=False, free_space=lambda: (0, 0)
    )
    shelf = operations.shelf = Shelf(
        world.store, packs, world.cache_path / "at", nothing, nothing, Errands(), lambda: now
    )

    def look(name: bytes) -> tuple[int, float]:
        found = trio.run(operations.lookup, AT, name, None)
        return found.st_ino, found.entry_timeout

    for _ in range(5):
        assert look(b"now") == look(b"2") == look(b"2001-01-01") == look(b"\xff") == (0, 1.0)
        now += 1
    assert lists == 1
    world.create(b"new")
    world.commit()
    for name in (b"2", b"1", b"#1"):
        assert (look(name)[0] != 0) == (name != b"2")
    assert lists == 1
    now += 6
    assert look(b"2") == (PAST | 2 << 48 | ROOT_INO, 5.0)
    assert lists == 2
    world.create(b"newer")
    now += 6
    world.commit()
    # The list is not old, but nobody has asked in vain for so long.
    assert look(b"3")[0]
    assert lists == 3
    assert not [record for record in caplog.records if record.name.startswith("wsfs.kernel")]
    shelf.close()
