"""A commit that leaves out what could not be sent in time is whole all the same, and nothing is left out for good."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import SMALL_BLOCK, Crash, World, saved_tree, shrink, tree

import wsfs.sync.commit
from wsfs.errors import DeadlineError, TransientStoreError
from wsfs.model import ROOT_INO, Ino
from wsfs.repo.head import State
from wsfs.sync.upload import Limit, Packs


class Lossy(Packs):
    """Packs of which some do not get through in time."""

    random = random.Random(0)
    chance = 0.5

    def _send(self) -> None:
        if self._limit is not None and self.random.random() < self.chance:
            self._missing.add((self._pack.epoch, self._pack.number))
            self._pack, self._places = self._new_pack(), []
        else:
            super()._send()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    shrink(monkeypatch)
    monkeypatch.setattr(wsfs.sync.upload, "TARGET_SIZE", 1)
    monkeypatch.setattr(wsfs.sync.commit, "_WORTH_LEAVING", 0)
    monkeypatch.setattr(wsfs.sync.commit, "Packs", Lossy)
    monkeypatch.setattr(Lossy, "chance", 0.5)
    world = World(tmp_path)
    world.start()
    yield world
    world.crash()


def soon() -> Limit:
    return Limit(time.monotonic() + 60, 1)


def push(world: World, chance: float) -> Any:
    """A commit under a limit, of which packs are lost."""
    Lossy.chance = chance
    try:
        return world.committer.commit(State.STOPPING, may_fold=False, limit=soon())
    finally:
        Lossy.chance = 0.5


def look(world: World, directory: Path) -> dict[bytes, Any]:
    """What the bucket has; the counters and the sizes of directories are checked on the way."""
    found = saved_tree(world, directory)
    entries: dict[bytes, int] = {}
    for path in found:
        if path:
            parent = path.rpartition(b"/")[0]
            entries[parent] = entries.get(parent, 0) + 1
    for path, (inode, _content, _attributes) in found.items():
        if inode.is_dir:
            assert inode.size == entries.get(path, 0), path
    return found


def data(seed: int, blocks: float = 2.5) -> bytes:
    return random.Random(seed).randbytes(int(blocks * SMALL_BLOCK))


def test_what_stays_on_this_machine_is_no_reason_to_come_back(world: World, tmp_path: Path) -> None:
    """A directory then lacks both: what could not be sent, and what never is."""
    world.create(b".wsfsignore", b"cache/\n*.log\n")
    directory = world.mkdir(b"d")
    cache = world.mkdir(b"cache", directory)
    world.create(b"big", data(9), cache)
    world.create(b"x.log", data(8), directory)
    for number in range(3):
        world.create(b"file%d" % number, data(number), directory)
    assert push(world, 1.0).left == 3
    always = [b"", b"/.workspace.initialized", b"/.wsfsignore", b"/d"]
    assert sorted(look(world, tmp_path / "a")) == always
    assert push(world, 0.0).left == 0
    assert not world.index.is_dirty
    assert sorted(look(world, tmp_path / "b")) == [*always, *(b"/d/file%d" % number for number in range(3))]
    assert world.content(b"big", cache) == data(9)


def test_new_files_are_absent(world: World, tmp_path: Path) -> None:
    """They have no name then, and their directory is as large as it looks."""
    directory = world.mkdir(b"d")
    for number in range(4):
        world.create(b"file%d" % number, data(number), directory)
    world.create(b"inline", b"short", directory)
    saved = push(world, 1.0)
    assert saved.left == 4
    assert sorted(look(world, tmp_path / "a")) == [b"", b"/.workspace.initialized", b"/d", b"/d/inline"]
    assert push(world, 0.0).left == 0
    assert look(world, tmp_path / "b") == tree(world)


def test_changed_files_are_old(world: World, tmp_path: Path) -> None:
    ino = world.create(b"file", data(1))
    world.commit()
    before = look(world, tmp_path / "a")
    world.write(ino, 10, data(2, 3.5))
    world.create(b"other", b"x")
    assert push(world, 1.0).left == 1
    found = look(world, tmp_path / "b")
    assert found[b"/file"] == before[b"/file"]
    assert b"/other" in found
    assert push(world, 0.0).left == 0
    assert look(world, tmp_path / "c") == tree(world)


def test_replaced_files_are_the_old_ones(world: World, tmp_path: Path) -> None:
    """What an editor does: a new file is renamed over the old one. One of both is always there."""
    world.create(b"notebook", data(1))
    world.commit()
    before = look(world, tmp_path / "a")
    world.create(b"temporary", data(2))
    world.names.forgotten(world.do(world.names.rename, ROOT_INO, b"temporary", ROOT_INO, b"notebook"))
    world.create(b"other", b"x")
    assert push(world, 1.0).left == 1
    found = look(world, tmp_path / "b")
    assert found[b"/notebook"] == before[b"/notebook"]
    assert push(world, 0.0).left == 0
    assert look(world, tmp_path / "c") == tree(world)


def test_what_cannot_be_left_out_is_waited_for(world: World) -> None:
    """A file that was renamed and changed: half of that would be neither before nor after."""
    ino = world.create(b"file", data(1))
    world.commit()
    world.write(ino, 0, data(2))
    world.do(world.names.rename, ROOT_INO, b"file", ROOT_INO, b"moved")
    with pytest.raises(DeadlineError):
        push(world, 1.0)
    assert push(world, 0.0).left == 0


def test_no_progress_is_no_commit(world: World) -> None:
    world.create(b"file", data(1))
    assert push(world, 1.0).left == 1
    with pytest.raises(DeadlineError):
        push(world, 1.0)
    assert world.index.is_dirty


@pytest.mark.parametrize("step", ["frozen", "packs", "segments", "manifest", "pending", "head", "advanced"])
def test_a_crash_during_a_partial_commit(world: World, tmp_path: Path, step: str) -> None:
    """What was left out is still unsaved at the next start, and is saved then."""
    ino = world.create(b"old", data(1))
    world.commit()
    world.write(ino, 0, data(2))
    world.create(b"new", data(3))
    world.create(b"inline", b"x")
    before = tree(world)

    def reached(name: str) -> None:
        if name == step:
            raise Crash

    world.committer._reached = reached
    with pytest.raises(Crash):
        push(world, 1.0)
    world.restart()
    assert tree(world) == before
    world.commit()
    assert look(world, tmp_path / "a") == before


@pytest.mark.parametrize("applied", [False, True])
def test_a_partial_commit_whose_answer_is_lost(world: World, tmp_path: Path, *, applied: bool) -> None:
    world.create(b"new", data(3))
    world.create(b"inline", b"x")

    def fail(method: str, key: str) -> None:
        if (method, key) == ("put", "HEAD"):
            world.store.fault = world.store.lost = lambda _method, _key: None
            world.store.fault = down
            raise TransientStoreError("lost")

    def down(_method: str, _key: str) -> None:
        raise TransientStoreError("down")

    setattr(world.store, "lost" if applied else "fault", fail)
    with pytest.raises(TransientStoreError):
        push(world, 1.0)
    world.store.heal()
    assert world.index.is_dirty
    assert world.overlay.unsaved()
    world.commit()
    assert look(world, tmp_path / "a") == tree(world)


@pytest.mark.parametrize("seed", range(40 if os.environ.get("WSFS_TEST_ALL") else 10))
def test_any_partial_commit_is_whole(world: World, tmp_path: Path, seed: int) -> None:
    """Random changes, commits that leave out random files, crashes: each file in the bucket is as it is now, as it was
    in the last commit, or not there because it is new; and in the end everything is there."""
    chance = Lossy.random = random.Random(seed)
    fresh = itertools.count()
    directories: list[Ino] = [ROOT_INO]
    files: dict[tuple[Ino, bytes], Ino] = {}
    before = look(world, tmp_path / "start")
    for round_number in range(4):
        for _ in range(chance.randrange(4, 25)):
            change(world, chance, fresh, directories, files)
        now = tree(world)
        try:
            saved = push(world, chance.choice([0.2, 0.5, 0.9]))
        except DeadlineError:
            saved = None
        found = look(world, tmp_path / f"look{round_number}")
        if saved is None:
            assert found == before
        elif not saved.left:
            assert found == now
        else:
            check(found, now, before)
        if chance.random() < 0.3:
            world.restart()
        assert tree(world) == now
        before = found
    world.commit()
    assert look(world, tmp_path / "end") == tree(world)


Seen = dict[bytes, Any]


def check(found: Seen, now: Seen, before: Seen) -> None:
    for path, entry in found.items():
        if entry[0].is_dir:
            assert path in now
        else:
            assert entry in (now.get(path), before.get(path)), path
    for path in now.keys() - found.keys():
        assert now[path][0].is_file
        assert path not in before


def change(
    world: World,
    chance: random.Random,
    fresh: Iterator[int],
    directories: list[Ino],
    files: dict[tuple[Ino, bytes], Ino],
) -> None:
    """One random operation."""
    number = next(fresh)
    directory = chance.choice(directories)
    known = chance.choice(list(files)) if files else None
    match chance.randrange(8):
        case 0:
            directories.append(world.mkdir(b"d%d" % number, directory))
        case 1 | 2:
            name = directory, b"f%d" % number
            files[name] = world.create(name[1], data(number, chance.choice([0.01, 0.8, 3.2])), directory)
        case 3 | 4 if known:
            world.write(files[known], chance.randrange(3 * SMALL_BLOCK), data(number, chance.choice([0.1, 2.2])))
        case 5 if known:
            world.truncate(files[known], chance.randrange(2 * SMALL_BLOCK))
        case 6 if known:
            world.unlink(known[1], known[0])
            del files[known]
        case 7 if known:
            target = chance.choice(list(files)) if chance.random() < 0.7 else (directory, b"m%d" % number)
            if target != known:
                lost = world.do(world.names.rename, *known, *target)
                if lost is not None:
                    world.names.forgotten(lost)
                files[target] = files.pop(known)
