"""A read-only mount moves to a newer commit: its rows are then those of a fresh mount, and it knows what changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from harness import SMALL_BLOCK, Store, World, tree

from wsfs.errors import CacheError, FormatError
from wsfs.fsck import check
from wsfs.model import ROOT_INO, Ino
from wsfs.repair import repair
from wsfs.repo.head import State
from wsfs.repo.manifest import encode_manifest
from wsfs.repo.workspace import new_nonce
from wsfs.store.base import Blob
from wsfs.sync.follow import Moved, follow
from wsfs.sync.lease import this_process
from wsfs.sync.load import read_manifest
from wsfs.sync.progress import Progress

T = TypeVar("T")


def direct(function: Callable[[], T], /) -> T:
    return function()


def move(reader: World) -> Moved | None:
    return follow(reader.store, reader.index, direct, Progress())


@pytest.fixture
def reader(small: World, tmp_path: Path) -> Iterator[World]:
    """A second, read-only mount of the workspace, which holds some files already."""
    for number in range(40):
        small.create(b"old%d" % number, os.urandom(3000))
    small.commit()
    found = World(tmp_path / "reader", bucket=small.bucket)
    found.start(read_only=True)
    yield found
    found.crash()


def fresh_tree(world: World, path: Path) -> object:
    other = World(path, bucket=world.bucket)
    other.start(read_only=True)
    try:
        return tree(other)
    finally:
        other.crash()
        shutil.rmtree(path)


def test_nothing_new_is_no_move(reader: World) -> None:
    assert move(reader) is None


@pytest.mark.parametrize("loaded", [True, False])
def test_what_changed_is_there_and_named(small: World, reader: World, tmp_path: Path, *, loaded: bool) -> None:
    """New, changed, removed and renamed: the same tree as a fresh mount's, with partitions loaded or not."""
    if loaded:
        tree(reader)
    new = small.create(b"new", b"n" * 5000)
    changed = small.do(small.names.lookup, ROOT_INO, b"old1").ino
    small.write(changed, 10, b"changed")
    removed = small.unlink(b"old2")
    small.do(small.names.rename, ROOT_INO, b"old3", ROOT_INO, b"moved")
    small.commit(may_fold=False)
    moved = move(reader)
    assert moved is not None
    assert {new, changed, ROOT_INO} <= moved.inodes
    if loaded:  # what was never read here needs no forgetting
        assert removed in moved.inodes
        assert moved.names == {(1, b"new"), (1, b"old2"), (1, b"old3"), (1, b"moved")}
    assert tree(reader) == fresh_tree(small, tmp_path / "fresh") == tree(small)
    assert reader.index.files == small.index.files
    assert move(reader) is None


def test_many_commits_and_folds_later(small: World, reader: World, tmp_path: Path) -> None:
    """Whatever the writer did to deltas and partitions: the tree is that of a fresh mount, moved to or restarted on."""
    inodes: list[Ino] = []
    for round_ in range(12):
        inodes += [small.create(b"r%d-%d" % (round_, number), os.urandom(SMALL_BLOCK)) for number in range(5)]
        small.write(inodes[0], round_, b"again")
        if round_ % 3 == 2:
            small.unlink(b"r%d-1" % (round_ - 1))
        small.commit()
        if round_ % 4 == 1:
            move(reader)
            if round_ % 8 == 5:
                assert tree(reader) == tree(small)
    moved = move(reader)
    assert moved is not None
    assert tree(reader) == fresh_tree(small, tmp_path / "fresh")
    reader.crash()
    reader.start(read_only=True)
    assert tree(reader) == tree(small)


def test_a_mount_that_goes_on_writing_with_this_cache(small: World, reader: World, tmp_path: Path) -> None:
    """What a reader has left is as good as any cache: commits on it are whole, folds included."""
    ino = small.create(b"data", b"d" * 3000)
    small.commit()
    small.write(ino, 0, os.urandom(3000))
    small.commit()
    move(reader)
    small.stop()
    reader.close()
    reader.start()
    for number in range(8):
        reader.create(b"more%d" % number, b"d" * 3000)
        reader.commit()
    expected = tree(reader)
    reader.stop()
    assert fresh_tree(small, tmp_path / "fresh") == expected


def test_deltas_that_are_gone(small: World, reader: World, tmp_path: Path) -> None:
    """A newer commit with our partitions and without our deltas, as a repair may make it: what they had is gone."""
    before = small.head()
    seen = tree(reader)
    small.create(b"later", b"x" * 3000)
    small.unlink(b"old7")
    small.commit(may_fold=False)
    assert move(reader) is not None
    assert tree(reader) != seen
    lease = small.workspace.lease
    assert lease is not None
    old = read_manifest(small.observer(), before)
    manifest = replace(old, seq=lease.head.seq + 1, epoch=lease.epoch, nonce=new_nonce(), parent=lease.head.commit)
    small.store.put(manifest.key, encode_manifest(manifest))
    lease.publish(manifest, manifest.nonce, State.RUNNING)
    assert move(reader) is not None
    assert tree(reader) == seen == fresh_tree(small, tmp_path / "fresh")


def test_an_old_head_moves_nothing_back(small: World, reader: World) -> None:
    """As a store shows it that is not strictly consistent: what was seen once stays seen."""
    old = small.bucket.objects["HEAD"]
    small.create(b"later", b"x" * 3000)
    small.commit()
    assert move(reader) is not None
    seen = tree(reader)
    reader.store.get = lambda key, *window: (  # type: ignore[method-assign]
        Blob(old.data, old.etag, 1.0) if key == "HEAD" else Store.get(reader.store, key, *window)
    )
    assert move(reader) is None
    reader.index.reload()
    assert tree(reader) == seen


def test_a_repair_moves_forward_whatever_it_goes_back_to(small: World, reader: World, tmp_path: Path) -> None:
    """The newest commit is lost, and HEAD with it: what a repair makes of the one before has its number again, and is
    of a higher epoch."""
    small.create(b"later", b"x" * 3000)
    small.stop()
    assert move(reader) is not None
    shown = reader.index.standing
    assert shown is not None
    for key in (shown.commit, "HEAD"):
        del small.bucket.objects[key]
    repair(small.observer(), check(small.observer()), this_process())
    assert small.head().seq == shown.seq
    assert move(reader) is not None
    assert tree(reader) == fresh_tree(small, tmp_path / "fresh")
    assert b"later" not in reader.listing()


def test_a_damaged_commit_changes_nothing(small: World, reader: World) -> None:
    seen = tree(reader)
    small.create(b"later", b"x" * 3000)
    small.commit()
    standing = reader.index.standing
    assert standing is not None
    ours = {ref.key for ref in standing.deltas} | {part.ref.key for part in reader.index.parts}
    for key in list(reader.bucket.objects):
        if key.startswith("meta/") and key not in ours:
            del reader.bucket.objects[key]
    with pytest.raises(FormatError, match="missing"):
        move(reader)
    assert tree(reader) == seen


def test_unsaved_changes_are_not_hidden(small: World, tmp_path: Path) -> None:
    """A cache that holds changes that were never saved, mounted read-only: it stays where it is."""
    small.create(b"mine", b"x")
    small.crash()
    small.start(read_only=True)
    other = World(tmp_path / "other", bucket=small.bucket)
    other.start(takeover=True)
    other.create(b"theirs", b"y")
    other.commit()
    with pytest.raises(CacheError, match="never saved"):
        move(small)
    assert b"mine" in [name for name, _ in small.do(lambda: list(small.index.names(ROOT_INO, 0)))]
    other.crash()


def test_no_later_commit_leads_to_what_only_the_old_one_had(small: World, reader: World) -> None:
    """Such a pack may be collected from now on: content that comes again is sent again."""
    content = os.urandom(SMALL_BLOCK)
    small.create(b"once", content)
    small.commit()
    move(reader)
    tree(reader)
    old = small.head()
    small.unlink(b"once")
    small.commit()
    move(reader)
    small.stop()
    reader.close()
    reader.start()
    reader.create(b"again", content)
    reader.store.log.clear()
    reader.commit()
    assert reader.head().seq > old.seq
    assert reader.store.puts("packs/")
