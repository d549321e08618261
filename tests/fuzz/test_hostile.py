"""Workspaces with right checksums and absurd content: every look at them ends, and nothing but errors of ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import World, new_directory
from hostile import HOSTILE, Rows, make_hostile, random_rows

from wsfs.errors import FormatError, WsfsError
from wsfs.export import from_cache
from wsfs.fsck import check
from wsfs.model import ROOT_INO, Inode
from wsfs.repair import repair
from wsfs.store.memory import MemoryStore
from wsfs.sync.lease import this_process
from wsfs.tree.namespace import Changes
from wsfs.tree.paths import Paths

HARMLESS = {"names", "very deep"}
INTRICATE = {"cookies"}
RANDOM = 15
VISITS = 4000
EXPECTED = (OSError, WsfsError)


@pytest.fixture
def world() -> Iterator[World]:
    directory = new_directory()
    found = World(directory)
    yield found
    found.crash()
    shutil.rmtree(directory)


def scenarios() -> dict[str, Callable[[Rows], None]]:
    return HOSTILE | {f"random {seed}": random_rows(seed) for seed in range(RANDOM)}


def look(world: World, ino: int, inode: Inode) -> None:
    """Everything that programs read of an inode."""
    for reading in (
        lambda: world.names.readlink(inode.ino),
        lambda: world.names.xattrs.names(inode.ino),
        lambda: world.files.read(inode.ino, 0, 10_000),
        lambda: world.files.read(inode.ino, max(inode.size - 5, 0), 10),
        lambda: world.names.path(inode.ino),
        lambda: Paths(world.index).of(ino),
    ):
        with suppress(*EXPECTED):
            world.do(reading)


def walk(world: World, visit: Callable[[int, bytes, Inode], None]) -> None:
    """Every name, as far as one gets: never the same directory twice, for neither does the kernel."""
    pending, seen, visits = [int(ROOT_INO)], {int(ROOT_INO)}, 0
    while pending and visits < VISITS:
        parent = pending.pop()
        names: list[tuple[bytes, Inode]] = []
        with suppress(*EXPECTED):
            names += [(name, inode) for name, _cookie, inode in world.entries(parent)]
        for name, inode in names:
            visits += 1
            with suppress(*EXPECTED):
                assert world.do(world.names.lookup, parent, name).ino == inode.ino
            visit(parent, name, inode)
            if inode.is_dir and inode.ino not in seen:
                seen.add(inode.ino)
                pending.append(inode.ino)


def touch(world: World, parent: int, name: bytes, inode: Inode) -> None:
    """What programs change: content, size, attributes, names."""
    caller = type("C", (), {"uid": 0, "gid": 0})()
    changes: list[Callable[[], Any]] = [
        lambda: world.files.write(inode.ino, 3, b"written"),
        lambda: world.names.setattr(inode.ino, Changes(size=1), caller),
        lambda: world.names.setattr(inode.ino, Changes(mode=0o600), caller),
        lambda: world.names.make(inode.ino, b"made", 0o100644, caller),
        lambda: world.names.link(inode.ino, ROOT_INO, b"linked"),
        lambda: world.names.rename(parent, name, ROOT_INO, b"renamed"),
        lambda: world.names.rename(ROOT_INO, b"renamed", parent, name),
    ]
    for change in changes:
        if inode.is_file or change is not changes[0]:
            with suppress(*EXPECTED):
                world.do(change)


def remove(world: World, parent: int, name: bytes, inode: Inode) -> None:
    with suppress(*EXPECTED):
        world.names.forgotten(world.do(world.names.rmdir if inode.is_dir else world.names.unlink, parent, name))


@pytest.mark.parametrize("name", scenarios())
def test_nothing_but_errors_of_ours(world: World, tmp_path: Path, name: str) -> None:
    """Mounted without FUSE, walked, read, changed, saved, removed, saved, collected, exported."""
    make_hostile(MemoryStore(bucket=world.bucket), scenarios()[name])
    try:
        world.start()
    except WsfsError:
        return
    walk(world, lambda _parent, _name, inode: look(world, inode.ino, inode))
    walk(world, lambda parent, entry, inode: touch(world, parent, entry, inode))
    for ino in world.index.dirty_inodes:
        with suppress(*EXPECTED):
            world.do(lambda ino=ino: Paths(world.index).of(ino))
    with suppress(*EXPECTED):
        world.commit()
    walk(world, lambda parent, entry, inode: remove(world, parent, entry, inode))
    for _ in range(2):
        with suppress(*EXPECTED):
            world.commit()
    world.crash()
    from_cache(world.cache_path, tmp_path / "exported", MemoryStore(bucket=world.bucket))
    assert {entry.name for entry in tmp_path.iterdir()} == {"exported"}


@pytest.mark.parametrize("name", scenarios())
def test_fsck_names_it_and_repairs_it(name: str) -> None:
    """fsck finds something in what is hostile, and after a repair nothing; or the repair is refused."""
    directory = new_directory()
    try:
        bucket = World(directory).bucket
        store = MemoryStore(bucket=bucket)
        make_hostile(store, scenarios()[name])
        checked = check(store)
        for finding in checked.findings:
            assert str(finding).replace("\n  ", "").isprintable()
        if name in INTRICATE:
            objects = dict(bucket.objects)
            with pytest.raises(FormatError, match="too intricate"):
                repair(store, checked, this_process())
            assert bucket.objects.keys() == objects.keys()
        elif checked.findings:
            repair(store, checked, this_process())
            assert [str(finding) for finding in check(store).findings] == []
        elif name not in HARMLESS:
            pytest.fail("fsck finds nothing wrong")
    finally:
        shutil.rmtree(directory)
