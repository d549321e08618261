"""Going back: without FUSE after random work, and through the real command line on a mount."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import CALLER, Crash, World, shrink, started, tree

from wsfs import control
from wsfs.errors import NoSavePointError, UsageError
from wsfs.fsck import check
from wsfs.model import ROOT_INO, Ino
from wsfs.repo.manifest import decode_manifest
from wsfs.sync.massdelete import MassDelete, Sample
from wsfs.sync.past import Past
from wsfs.sync.restore import Restorer
from wsfs.tree.namespace import Changes

BLOCK = 4096
FACTS = ("mode", "uid", "gid", "nlink", "rdev", "size", "atime_ns", "mtime_ns")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    shrink(monkeypatch)
    with started() as found:
        yield found


def restorer(world: World, commit: str, *, missing_only: bool = False) -> Restorer:
    past = Past(world.observer(), decode_manifest(world.bucket.objects[commit].data))
    names = world.names
    return Restorer(
        past, world.index, names, world._on_owner, names.forgotten, lambda _done: None, missing_only=missing_only
    )


def seen(world: World) -> dict[bytes, Any]:
    """What a program sees, but for what a restore may change: inode numbers and ctime. Hard links are told by the names
    that lead to one inode."""
    found = tree(world)
    groups: dict[int, list[bytes]] = {}
    for path, (inode, _, _) in found.items():
        groups.setdefault(inode.ino, []).append(path)
    for path, (inode, _, _) in found.items():
        assert inode.is_dir or inode.nlink == len(groups[inode.ino]), path
    return {
        path: ({name: getattr(inode, name) for name in FACTS}, content, xattrs, sorted(groups[inode.ino]))
        for path, (inode, content, xattrs) in found.items()
    }


def test_what_stays_on_this_machine_is_left_alone(world: World) -> None:
    def ignore(*patterns: bytes) -> None:
        if b".wsfsignore" in world.listing():
            world.unlink(b".wsfsignore")
        world.create(b".wsfsignore", b"\n".join(patterns))

    source = world.mkdir(b"src")
    world.create(b"a.o", b"saved before it was ignored", source)
    twice = world.create(b"b.o", b"with two names", source)
    world.do(world.names.link, twice, source, b"c.o")
    world.create(b"main", b"first", source)
    world.create(b"build", b"a file", source)
    world.commit()
    then = world.head().commit
    ignore(b"*.o", b"build/", b"cache")
    for name in (b"a.o", b"b.o", b"c.o", b"main", b"build"):
        world.unlink(name, source)
    world.create(b"a.o", b"only here", source)
    world.create(b"main", b"second", source)
    build = world.mkdir(b"build", source)
    world.create(b"deep", b"only here", build)
    later = world.mkdir(b"later", source)
    world.create(b"x", b"goes", later)
    cache = world.mkdir(b"cache", later)
    world.create(b"y", b"stays", cache)
    world.commit()
    restorer(world, then).restore(b"src")
    assert sorted(world.listing(source)) == [b"a.o", b"b.o", b"build", b"c.o", b"later", b"main"]
    assert world.content(b"main", source) == b"first"
    assert world.content(b"a.o", source) == b"only here"
    assert world.content(b"c.o", source) == b"with two names"
    assert world.content(b"deep", build) == b"only here"
    assert world.listing(later) == [b"cache"]
    world.commit()
    assert not check(world.observer(), data=True).findings
    for path in (b"src/a.o", b"src/build"):
        with pytest.raises(UsageError, match="stays on this machine"):
            restorer(world, then).restore(path)
    # A directory with something in it that stays is where a file was.
    world.unlink(b"main", source)
    main = world.mkdir(b"main", source)
    world.create(b"z.o", b"", main)
    with pytest.raises(UsageError, match="there is what stays"):
        restorer(world, then).restore(b"src/main")
    world.restart_cold()
    assert sorted(world.listing(source)) == [b"b.o", b"c.o", b"later", b"main"]


def test_everything_goes_back_but_for_what_stays_here_and_why(world: World) -> None:
    """To before there were patterns, and forth again: at no time is anything of it saved, or removed."""
    world.create(b"a", b"first")
    world.create(b"old.ckpt", b"saved before it was ignored")
    world.commit()
    then = world.head().commit
    patterns = world.create(b".wsfsignore", b"*.ckpt\n")
    world.create(b"new.ckpt", b"precious")
    world.unlink(b"a")
    world.unlink(b"old.ckpt")
    world.commit()
    later = world.head().commit
    world.write(patterns, 0, b"*.ckpt\n*.o\n")
    for number, commit in enumerate((then, later) * 2):
        one = restorer(world, commit)
        one.restore(b"")
        assert one.done.ignore_left
        world.commit()
        assert world.content(b".wsfsignore") == b"*.ckpt\n*.o\n"
        assert world.content(b"new.ckpt") == b"precious"
        assert world.index.kept.files == 1
        assert world.listing().count(b"old.ckpt") == (number + 1) % 2
    # Missing, it comes back, and it is one that can be named.
    world.unlink(b".wsfsignore")
    restorer(world, later).restore(b"")
    assert world.content(b".wsfsignore") == b"*.ckpt\n"
    one = restorer(world, then)
    one.restore(b".wsfsignore")
    assert b".wsfsignore" not in world.listing()
    assert not one.done.ignore_left
    world.create(b".wsfsignore", b"*.o")
    restorer(world, later).restore(b".wsfsignore")
    assert world.content(b".wsfsignore") == b"*.ckpt\n"


def test_what_was_made_anew_and_stays_here_is_not_removed_by_undo(world: World) -> None:
    """At a path that was restored, and was not there before: nothing else has what is there now."""
    inside = world.mkdir(b"in")
    world.create(b"a.o", b"saved before it was ignored")
    world.create(b"b", b"", inside)
    world.commit()
    then = world.head().commit
    world.unlink(b"a.o")
    world.unlink(b"b", inside)
    world.do(world.names.rmdir, ROOT_INO, b"in")
    world.create(b".wsfsignore", b"*.o\nin/\n")
    world.commit()
    before = world.head().commit
    for path in (b"a.o", b"in/b"):
        restorer(world, then).restore(path)
    world.commit()
    world.unlink(b"a.o")
    world.unlink(b"b", world.do(world.names.lookup, ROOT_INO, b"in").ino)
    world.do(world.names.rmdir, ROOT_INO, b"in")
    world.create(b"a.o", b"only here")
    world.create(b"b", b"only here", world.mkdir(b"in"))
    world.commit()
    for path in (b"a.o", b"in/b"):
        restorer(world, before).restore(path)
    assert world.content(b"a.o") == b"only here"
    assert world.content(b"b", world.do(world.names.lookup, ROOT_INO, b"in").ino) == b"only here"


def test_undo_removes_directories_that_were_made_for_what_it_removes(world: World) -> None:
    world.commit()
    empty = world.head().commit
    for name in (b"a", b"c"):
        world.create(b"file", b"", world.mkdir(b"b", world.mkdir(name)))
    world.commit()
    full = world.head().commit
    restorer(world, empty).restore(b"")
    world.commit()
    before = world.head().commit
    for path in (b"a/b/file", b"c/b/file"):
        restorer(world, full).restore(path)
    other = world.do(world.names.lookup, ROOT_INO, b"c").ino
    world.create(b"made later", b"", other)
    for path in (b"a/b/file", b"c/b/file"):
        restorer(world, before).restore(path)
    assert world.listing() == [b".workspace.initialized", b"c"]
    assert world.listing(other) == [b"made later"]


class Worker:
    """Random work on a tree."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)

    def directories(self) -> list[Ino]:
        return [inode.ino for inode, _, _ in tree(self.world).values() if inode.is_dir]

    def place(self) -> tuple[Ino, bytes] | None:
        """A name that is there."""
        directory = self.rng.choice(self.directories())
        names = [n for n in self.world.listing(directory) if not n.startswith(b".workspace")]
        return (directory, self.rng.choice(names)) if names else None

    def step(self) -> None:
        world, rng = self.world, self.rng
        directory, name = rng.choice(self.directories()), b"n%d\n\xff" % rng.randrange(6)
        action = rng.randrange(10)
        there = self.place()
        if name not in world.listing(directory) and action < 4:
            if action == 0:
                world.mkdir(name, directory)
            elif action == 1:
                world.do(
                    world.names.make, directory, name, stat.S_IFLNK | 0o777, CALLER, target=b"to/%d" % rng.random()
                )
            else:
                data = rng.randbytes(rng.choice([0, 100, 700, BLOCK, 3 * BLOCK + 5]))
                world.create(name, data, directory)
        elif there is not None:
            parent, old = there
            inode = world.do(world.names.lookup, parent, old)
            if action == 4 and not inode.is_dir:
                world.unlink(old, parent)
            elif action == 5 and name not in world.listing(directory) and not inode.is_dir:
                world.do(world.names.link, inode.ino, directory, name)
            elif action == 6:
                if inode.is_dir:
                    directory = ROOT_INO  # the kernel keeps a directory out of what is below it
                try:
                    gone = world.do(world.names.rename, parent, old, directory, name)
                except OSError:
                    return
                if gone is not None:
                    world.names.forgotten(gone)
            elif action == 7:
                how = Changes(
                    mode=rng.choice([0o600, 0o755]), uid=rng.choice([0, 1000]), mtime_ns=rng.randrange(10**18)
                )
                world.do(world.names.setattr, inode.ino, how, CALLER)
            elif action == 8 and inode.is_file:
                world.write(inode.ino, rng.randrange(2 * BLOCK), rng.randbytes(rng.choice([10, BLOCK])))
                mtime = rng.choice([world.now, inode.mtime_ns])  # programs may set it back
                world.do(world.names.setattr, inode.ino, Changes(mtime_ns=mtime, ctime_ns=world.now), CALLER)
            elif action == 9:
                world.do(world.names.xattrs.set, inode.ino, b"user.%d" % rng.randrange(3), rng.randbytes(5))

    def work(self, steps: int) -> None:
        for _ in range(steps):
            self.step()


@pytest.mark.parametrize("seed", range(50))
def test_everything_is_as_it_was_after_any_work(world: World, seed: int) -> None:
    worker = Worker(world, seed)
    worker.work(40)
    world.commit()
    then, was = world.head().commit, seen(world)
    worker.work(40)
    seen(world)
    if seed % 3 == 0:
        world.restart_cold() if not world.index.is_dirty else world.commit()
    if seed % 4 == 0:
        worker.work(10)  # not saved when the restore begins
    restorer(world, then).restore(b"")
    assert seen(world) == was
    world.commit()
    again = seen(world)
    world.restart_cold()
    assert seen(world) == again
    # What it is now is the same as it was, so a second time there is nothing to do.
    second = restorer(world, then)
    second.restore(b"")
    assert seen(world) == again


@pytest.mark.parametrize("seed", range(12))
def test_a_part_of_the_tree_and_nothing_else(world: World, seed: int) -> None:
    worker = Worker(world, seed)
    inside, outside = world.mkdir(b"in"), world.mkdir(b"out")
    for directory in (inside, outside):
        world.create(b"file", os.urandom(5000), directory)
        world.mkdir(b"dir", directory)
    worker.work(30)
    world.commit()
    then, was = world.head().commit, seen(world)
    if world.index.dirent(ROOT_INO, b"in") is None:
        pytest.skip("the work has moved it away")
    worker.work(30)
    now = seen(world)
    restorer(world, then).restore(b"in")
    found = seen(world)
    part = {path for path in was if path == b"/in" or path.startswith(b"/in/")}
    assert {path for path in found if path == b"/in" or path.startswith(b"/in/")} == part
    for path in part:
        assert found[path][1:3] == was[path][1:3], path
        assert found[path][0]["mode"] == was[path][0]["mode"]
    for path in now.keys() | found.keys():
        if path not in part and not path.startswith(b"/in/") and path not in (b"", b"/in"):
            if part.intersection(found[path][3]):
                continue  # another name of a file in there, which is the same file still
            assert found[path][1:3] == now[path][1:3], path
    world.commit()


def test_only_what_is_missing_comes_back_after_a_mass_delete(world: World) -> None:
    directory = world.mkdir(b"d")
    world.create(b"a", b"a" * 5000, directory)
    world.create(b"b", b"old", directory)
    world.commit()
    then = world.head().commit
    mtime = world.do(world.names.inode, directory).mtime_ns
    world.unlink(b"a", directory)
    world.write(world.do(world.names.lookup, directory, b"b").ino, 0, b"new")
    world.create(b"c", b"later", directory)
    restorer(world, then, missing_only=True).restore(b"")
    assert world.content(b"a", directory) == b"a" * 5000
    assert world.content(b"b", directory) == b"new"
    assert world.content(b"c", directory) == b"later"
    assert world.do(world.names.inode, directory).mtime_ns != mtime


@pytest.mark.parametrize("die", range(0, 40, 3))
def test_a_crash_in_the_middle_of_a_restore_can_be_undone(world: World, die: int) -> None:
    worker = Worker(world, die)
    worker.work(40)
    world.commit()
    then = world.head().commit
    worker.work(40)
    world.commit()
    before, was = world.head().commit, seen(world)
    steps = 0

    def on_owner(step: Callable[[], Any]) -> Any:
        nonlocal steps
        steps += 1
        if steps > die:
            raise Crash
        return world._on_owner(step)

    one = restorer(world, then)
    one._on_owner = on_owner
    with suppress(Crash):
        one.restore(b"")
    world.restart()
    world.commit()
    restorer(world, before).restore(b"")
    assert seen(world) == was


@pytest.mark.parametrize("what", ["removed", "filled", "moved to where it stays here"])
def test_programs_go_on_while_it_is_restored(world: World, what: str) -> None:
    """Whatever they do between two steps, it does not fail."""

    def at(path: bytes) -> Ino:
        ino = Ino(ROOT_INO)
        for name in path.split(b"/"):
            ino = world.do(world.names.lookup, ino, name).ino
        return ino

    def remove(parent: Ino, name: bytes) -> None:
        inode = world.do(world.names.lookup, parent, name)
        for one in world.listing(inode.ino) if inode.is_dir else ():
            remove(inode.ino, one)
        world.names.forgotten(world.do(world.names.rmdir if inode.is_dir else world.names.unlink, parent, name))

    top = world.mkdir(b"top")
    deep = world.mkdir(b"deep", top)
    first = world.create(b"first", b"x" * 3000, deep)
    world.do(world.names.link, first, deep, b"second")
    world.create(b"saved", b"", top)
    world.create(b"file", b"", top)
    world.create(b".wsfsignore", b"*.o")
    world.commit()
    then = world.head().commit
    for name in (b"first", b"second"):
        world.unlink(name, deep)
    world.unlink(b"file", top)
    world.mkdir(b"file", top)
    later = world.mkdir(b"later", top)
    world.create(b"name", b"", later)
    world.commit()
    now, survived = world.head().commit, 0
    for when in range(1, 30):
        steps = 0

        def program() -> None:
            if what == "filled":
                world.create(b"late", b"", at(b"top/later"))
            elif what == "removed":
                remove(ROOT_INO, b"top")
            else:
                world.do(world.names.rename, ROOT_INO, b"top", ROOT_INO, b"top.o")

        def on_owner(step: Callable[[], Any], when: int = when) -> Any:
            nonlocal steps
            steps += 1
            if steps == when:
                with suppress(OSError):
                    program()
            return world._on_owner(step)

        one = restorer(world, then)
        one._on_owner = on_owner
        one.restore(b"")
        survived += b"later" in world.listing(at(b"top")) if what == "filled" else 1
        world.commit()
        assert not check(world.observer(), data=True).findings
        if b"top.o" in world.listing():
            remove(ROOT_INO, b"top.o")
        restorer(world, now).restore(b"")
        world.commit()
    assert survived  # what was made after the directory had been looked at


def test_a_tree_that_is_deeper_than_python_calls(world: World) -> None:
    world.commit()
    empty, at = world.head().commit, Ino(ROOT_INO)
    for _ in range(1200):
        at = world.mkdir(b"d", at)
    world.create(b"file", b"deep down", at)
    world.commit()
    full = world.head().commit
    restorer(world, empty).restore(b"")
    assert world.listing() == [b".workspace.initialized"]
    world.commit()
    restorer(world, full).restore(b"")
    at = Ino(ROOT_INO)
    for _ in range(1200):
        at = world.do(world.names.lookup, at, b"d").ino
    assert world.content(b"file", at) == b"deep down"


def test_who_has_a_file_open_goes_on_with_it(world: World) -> None:
    ino = world.create(b"a", b"then")
    world.commit()
    then = world.head().commit
    world.write(ino, 0, b"now!")
    world.do(world.names.setattr, ino, Changes(mtime_ns=5), CALLER)
    one = restorer(world, then)
    one._gone = lambda _ino: None  # the kernel knows it still
    one.restore(b"a")
    assert world.read(ino) == b"now!"
    assert world.content(b"a") == b"then"
    assert world.do(world.names.lookup, ROOT_INO, b"a").ino > ino


def test_a_hole_is_no_content_even_if_size_and_time_are_the_same(world: World) -> None:
    data = os.urandom(2 * BLOCK)
    ino = world.create(b"a", data)
    world.do(world.names.setattr, ino, Changes(mtime_ns=7), CALLER)
    world.commit()
    then = world.head().commit
    world.truncate(ino, BLOCK)
    world.truncate(ino, 2 * BLOCK)
    world.do(world.names.setattr, ino, Changes(mtime_ns=7), CALLER)
    restorer(world, then).restore(b"a")
    assert world.content(b"a") == data


def test_the_marker_stays_and_a_path_that_was_not_there_is_refused(world: World) -> None:
    world.create(b"a", b"1")
    world.commit()
    one = restorer(world, world.head().commit)
    with pytest.raises(NoSavePointError, match="there was no b at save point #2"):
        one.check([b"a", b"b"])
    before = tree(world)[b"/.workspace.initialized"]
    one.restore(b".workspace.initialized")
    one.restore(b"")
    assert tree(world)[b"/.workspace.initialized"] == before


class TestMassDelete:
    """When it is one, and which commit is from before."""

    @staticmethod
    def run(*counts: tuple[float, int]) -> list[str]:
        watcher = MassDelete()
        found = []
        for when, files in counts:
            before = watcher.note(Sample(when, files, f"c{when:.0f}", files))
            if before is not None:
                found.append(before.commit)
        return found

    def test_within_a_minute(self) -> None:
        assert self.run((0, 5000), (5, 4500), (10, 3900), (15, 2000)) == ["c0"]

    def test_slower_it_is_none(self) -> None:
        assert self.run(*((10.0 * n, 10000 - 100 * n) for n in range(90))) == []

    def test_a_small_part_is_none(self) -> None:
        assert self.run((0, 100_000), (5, 82_000)) == []
        assert self.run((0, 1000), (5, 1)) == []

    def test_it_is_told_once_until_it_has_ended(self) -> None:
        going_on = [(5.0 * n, 50_000 - 2000 * n) for n in range(20)]
        assert len(self.run(*going_on)) == 1
        assert len(self.run(*going_on, (300, 12_000), (305, 3000))) == 2

    def test_what_was_never_saved_does_not_count(self) -> None:
        watcher = MassDelete()
        assert watcher.note(Sample(0, 20_000, "c1", 500)) is None
        assert watcher.note(Sample(5, 500, "c1", 500)) is None

    def test_right_after_a_save(self) -> None:
        """Of all samples the only one that knows the commit is from after the deletion."""
        watcher = MassDelete()
        assert watcher.note(Sample(0, 2000, "c1", 2)) is None
        before = watcher.note(Sample(1, 500, "c2", 2000, age=1))
        assert before is not None
        assert (before.files, before.commit) == (2000, "c2")

    def test_made_and_saved_and_deleted_between_two_samples(self) -> None:
        """No sample has seen them in the tree, but the commit has."""
        watcher = MassDelete()
        assert watcher.note(Sample(0, 900, "c1", 2)) is None
        assert watcher.note(Sample(1, 1200, "c2", 2000, age=1.5)) is None
        before = watcher.note(Sample(2, 2, "c2", 2000, age=2.5))
        assert before is not None
        assert (before.files, before.commit) == (2000, "c2")

    def test_a_save_that_takes_long_makes_it_no_quicker(self) -> None:
        watcher = MassDelete()
        for n in range(60):
            assert watcher.note(Sample(10.0 * n, 10_000 - 100 * n, "c1", 2)) is None
        assert watcher.note(Sample(600.0, 4000, "c2", 10_000, age=590)) is None


# --- on a mount -----------------------------------------------------------------------------------------------------


def answer(site: Any, *arguments: object) -> Any:
    return json.loads(site.wsfs(*arguments, "--json").stdout)


def facts(tree: Any, top: Path) -> dict[bytes, Any]:
    return dict(tree.of(top, inodes=False))


def test_the_whole_story(site: Any, tree: Any, tmp_path: Path) -> None:
    site.mount()
    top = site.mountpoint
    for number in range(1300):
        (top / f"package/{number // 100}").mkdir(parents=True, exist_ok=True)
        (top / f"package/{number // 100}/{number}.py").write_text(f"value = {number}\n" * (number % 50))
    os.link(top / "package/0/1.py", top / "package/0/linked.py")
    (top / "package/0/1.py").chmod(0o750)
    (top / "thesis").write_bytes(os.urandom(3_000_000))
    os.utime(top / "package", ns=(10**18, 10**18 + 7))
    site.wsfs("sync", top)
    was, point = facts(tree, top), int(site.status()["seq"])

    # A wrong rm, at once: noticed, and taken back.
    shutil.rmtree(top / "package")
    (top / "thesis").write_bytes(b"written after it")
    give_up = time.monotonic() + 60
    while "within a minute" not in site.log():
        assert time.monotonic() < give_up, "the mass delete was not noticed"
        time.sleep(0.2)
    assert "wsfs undo" in site.wsfs("status", top).stdout
    pinned = [one for one in answer(site, "log", top)["save_points"] if one["kind"] == "mass delete"]
    assert [one["id"] for one in pinned] == [point]
    assert 6 * 86400 < pinned[0]["seconds_left"] <= 7 * 86400
    done = answer(site, "undo", top)
    assert done["removed"] == 0
    assert (top / "thesis").read_bytes() == b"written after it"
    assert "wsfs undo" not in site.wsfs("status", top).stdout
    now = facts(tree, top)
    skip = (b"", b"thesis")
    assert {p: f for p, f in now.items() if p not in skip} == {p: f for p, f in was.items() if p not in skip}

    # One file, while another one is open.
    with (top / "thesis").open("rb") as held:
        restored = answer(site, "restore", "--at", point, top / "thesis")
        assert (restored["id"], restored["made"]) == (point, 1)
        assert held.read() == b"written after it"
    assert facts(tree, top)[b"thesis"] == was[b"thesis"]
    assert os.path.samefile(top / "package/0/1.py", top / "package/0/linked.py")

    # It can be undone, and that as well.
    assert answer(site, "undo", top)["id"] == restored["before"]
    assert (top / "thesis").read_bytes() == b"written after it"
    answer(site, "undo", top)

    # Everything, on another host.
    (top / "new").mkdir()
    (top / "new" / "file").touch()
    answer(site, "restore", "--at", point, top)
    assert not (top / "new").exists()
    site.elsewhere()
    found = facts(tree, top)
    assert {p: f for p, f in found.items() if p} == {p: f for p, f in was.items() if p}
    site.umount()
    assert site.wsfs("fsck", site.url, "--data", "--all").returncode == 0


def many(top: Path) -> int:
    """A directory with so many files that it is a mass delete if it goes. Returns the number of names."""
    (top / "m").mkdir()
    for number in range(1200):
        (top / f"m/{number}").touch()
    return 1201


def at_once(site: Any, operation: str, **request: Any) -> dict[str, Any]:
    """What the daemon answers, asked without the time that a command takes to begin."""
    name = control.socket_path(site.mountpoint).name
    return control.request(Path(site.environ["WSFS_RUNTIME_DIR"], name), {"op": operation, **request}, 90)


def test_undo_takes_back_the_mass_delete_of_just_now(workspace: Any) -> None:
    """It has not been seen by then, and there is a restore that could be taken back instead."""
    top = workspace.mountpoint
    count = many(top)
    (top / "word").write_text("b")
    workspace.wsfs("sync", top)
    (top / "word").write_text("B")
    answer(workspace, "restore", "--at", 2, top / "word")
    shutil.rmtree(top / "m")
    done = at_once(workspace, "undo")
    assert "files were deleted" in done["undone"]
    assert (done["made"], done["removed"]) == (count, 0)
    assert (top / "word").read_text() == "b"
    # Nor does it get lost when something else is restored first.
    shutil.rmtree(top / "m")
    at_once(workspace, "restore", at="3", paths=["word"])
    notice = workspace.status()["notice"]
    assert "wsfs undo" not in notice
    assert len(list(Path(notice.rpartition(" ")[2], "m").iterdir())) == count - 1
    assert [one["kind"] for one in answer(workspace, "log", top)["save_points"]].count("mass delete") == 2


def test_a_second_mass_delete_within_a_minute_is_another_one(workspace: Any) -> None:
    top = workspace.mountpoint
    count = many(top)
    workspace.wsfs("sync", top)
    for number in (1, 2, 3):
        shutil.rmtree(top / "m")
        if number < 3:
            time.sleep(1.5)
        done = answer(workspace, "undo", top)
        assert ("files were deleted" in done["undone"], done["made"]) == (True, count)
        assert workspace.log().count("mass delete") == number


def test_a_restore_that_removes_much_is_no_mass_delete(workspace: Any) -> None:
    """However quick it is: undo would bring back what is missing, and leave what had been removed."""
    top = workspace.mountpoint
    (top / "old").touch()
    workspace.wsfs("sync", top)
    (top / "old").unlink()
    count = many(top)
    workspace.wsfs("sync", top)
    time.sleep(1.5)
    assert answer(workspace, "restore", "--at", 2, top)["removed"] == count
    time.sleep(2.5)
    assert "mass delete" not in workspace.log()
    done = answer(workspace, "undo", top)
    assert (done["made"], done["removed"]) == (count, 1)


def test_the_save_point_that_is_told_has_what_was_restored(site: Any) -> None:
    """Also if a background save waits while it is restored, and takes all of it."""
    site.mount("-o", "save_interval=100ms")
    top = site.mountpoint
    (top / "m").mkdir()
    for number in range(500):
        (top / f"m/{number}").touch()
    for done in (answer(site, "restore", "--at", 1, top), answer(site, "undo", top), answer(site, "undo", top)):
        assert done["seq"] == done["before"] + 1
        counts = {one["id"]: one["files"] for one in answer(site, "log", top)["save_points"]}
        assert abs(counts[done["seq"]] - counts[done["before"]]) == 501
    # Nothing to do, and nothing done.
    done = answer(site, "restore", "--at", 1, top)
    assert (done["made"], done["removed"], done["seq"]) == (0, 0, done["before"])


def test_the_answer_says_that_the_patterns_stay(workspace: Any) -> None:
    top = workspace.mountpoint
    (top / "a").touch()
    workspace.wsfs("sync", top)
    (top / ".wsfsignore").write_text("*.ckpt\n")
    (top / "m.ckpt").write_text("precious")
    workspace.wsfs("sync", top)
    assert ".wsfsignore was different, and stays as it is" in workspace.wsfs("restore", "--at", 2, top).stdout
    assert (top / "m.ckpt").read_text() == "precious"
    assert answer(workspace, "undo", top)["ignore_left"] is False
    assert (top / "m.ckpt").read_text() == "precious"
    refused = workspace.wsfs("restore", "--at", 3, top / ".wsfsignore", top / "a", code=2)
    assert "name .wsfsignore alone" in refused.stderr
    (top / ".wsfsignore").write_text("*.ckpt\n*.o\n")
    assert answer(workspace, "restore", "--at", 3, top / ".wsfsignore")["ignore_left"] is False
    assert (top / ".wsfsignore").read_text() == "*.ckpt\n"
    assert not any(b"precious" in one.read_bytes() for one in workspace.store.rglob("*") if one.is_file())


def test_a_link_in_the_place_of_a_file_is_what_is_restored(workspace: Any, tmp_path: Path) -> None:
    """And not what it leads to, in the workspace or elsewhere."""
    top = workspace.mountpoint
    for name in ("inside", "outside", "other"):
        (top / name).write_text("then")
    workspace.wsfs("sync", top)
    for name, target in (("inside", "other"), ("outside", tmp_path)):
        (top / name).unlink()
        (top / name).symlink_to(target)
    (top / "other").write_text("now")
    for name in ("inside", "outside"):
        assert answer(workspace, "restore", "--at", 2, top / name)["made"] == 1
        assert not (top / name).is_symlink()
        assert (top / name).read_text() == "then"
    assert (top / "other").read_text() == "now"
    # From outside a link leads there.
    (tmp_path / "to the top").symlink_to(top)
    (tmp_path / "to a file").symlink_to(top / "other")
    answer(workspace, "restore", "--at", 2, tmp_path / "to a file")
    assert (top / "other").read_text() == "then"
    answer(workspace, "restore", "--at", 1, tmp_path / "to the top")
    assert not (top / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("restore", "--at", "99", "TOP/a"), 27, "there is no save point #99"),
        (("restore", "--at", "1", "TOP/a"), 27, "there was no a at save point #1"),
        (("restore", "--at", "1", "/tmp"), 42, "is in no workspace"),
        (("undo", "TOP"), 27, "there is nothing to undo"),
        (("undo", "/tmp"), 42, "no workspace is mounted at /tmp"),
    ],
)
def test_errors_say_what_to_do(workspace: Any, arguments: tuple[str, ...], code: int, words: str) -> None:
    top = workspace.mountpoint
    (top / "a").touch()
    result = workspace.wsfs(*(word.replace("TOP", str(top)) for word in arguments), code=code)
    assert words in result.stderr
    assert (top / "a").exists()


def test_a_read_only_mount_cannot_be_restored(site: Any) -> None:
    site.mount("-o", "ro")
    assert "is read-only" in site.wsfs("restore", "--at", 1, site.mountpoint, code=2).stderr


def test_an_encrypted_workspace_goes_back_too(tmp_path: Path, new_site: Any) -> None:
    site = new_site(tmp_path, "directory")
    site.environ["WSFS_KEY_FILE"] = str(tmp_path / "key")
    site.init("--encrypt")
    site.mount()
    try:
        top = site.mountpoint
        (top / "secret").write_text("then" * 1000)
        site.wsfs("sync", top)
        (top / "secret").write_text("now")
        assert answer(site, "restore", "--at", 2, top / "secret")["made"] == 1
        assert (top / "secret").read_text() == "then" * 1000
        assert (top / ".wsfs/at/3/secret").read_text() == "now"
        answer(site, "undo", top)
        site.elsewhere()
        assert (top / "secret").read_text() == "now"
        assert (top / ".wsfs/at/2/secret").read_text() == "then" * 1000
        assert {path.read_bytes().count(b"secret") for path in site.store.rglob("*") if path.is_file()} == {0}
    finally:
        site.finish()
