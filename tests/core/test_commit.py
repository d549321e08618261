"""Commits: what travels, when it counts, and what a failure at each step leaves."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness import CALLER, SMALL_BLOCK, Crash, World, check_counters, saved_tree, tree, unreachable

import wsfs.repo.segment
import wsfs.sync.commit
from wsfs.errors import FencedError, StoreError, TransientStoreError
from wsfs.index.names import listed
from wsfs.index.tables import Tables
from wsfs.model import ROOT_INO
from wsfs.repo import codec
from wsfs.repo.head import State
from wsfs.repo.manifest import Manifest, decode_manifest
from wsfs.repo.pack import read_toc
from wsfs.repo.segment import decode_segment
from wsfs.sync.commit import STEPS
from wsfs.sync.upload import Limit
from wsfs.tree.namespace import Changes


def manifest(world: World) -> Manifest:
    return decode_manifest(world.bucket.objects[world.head().commit].data)


def frames(world: World) -> list[tuple[int, int]]:
    """Inode and block of every frame that was sent since the log was cleared."""
    found = []
    for key in world.store.puts("packs/"):
        data = world.bucket.objects[key].data
        found += [(entry.ino, entry.block) for entry in read_toc(data, len(data))]
    return found


def test_nothing_changed_is_no_commit(world: World) -> None:
    """HEAD is left alone, and the store is not asked."""
    world.store.log.clear()
    assert world.commit() is None
    assert world.store.log == []


def test_a_commit_sends_what_changed_and_head_last(small: World) -> None:
    """Packs, a delta, the manifest, HEAD; the next one only what changed since."""
    small.create(b"a", os.urandom(3 * SMALL_BLOCK))
    small.store.log.clear()
    saved = small.commit()
    assert saved is not None
    order = [key.split("/")[0] for key in small.store.puts()]
    assert order == ["packs", "meta", "commits", "HEAD"]
    assert saved.puts == 4
    ino = small.do(small.names.lookup, ROOT_INO, b"a").ino
    small.write(ino, SMALL_BLOCK + 1, b"x")
    small.store.log.clear()
    small.commit()
    assert frames(small) == [(ino, 1)]
    (delta,) = small.store.puts("meta/")
    rows = [key for key, _ in decode_segment(small.bucket.objects[delta].data)]
    assert rows == [ino.to_bytes(8, "big") + b"b\0\0\0\1"]


def test_a_commit_that_does_not_fold_writes_nothing_that_readers_refuse(
    small: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop under a deadline after very many files: several deltas, and a note that the next start can read."""
    monkeypatch.setattr(wsfs.repo.segment, "RAW_MAX", 1 << 14)
    monkeypatch.setattr(wsfs.sync.commit, "DELTA_SIZE", 1 << 13)
    for number in range(100):
        small.create(b"f%03d" % number, os.urandom(400))
    before = manifest(small)

    def reached(step: str) -> None:
        if step == "head":
            small.crash()
            raise Crash

    small.reached = reached
    with pytest.raises(Crash):
        small.committer.commit(State.STOPPING, limit=Limit(time.monotonic() + 1000, 1))
    made = manifest(small)
    assert made.base == before.base
    assert len(made.deltas) > 4
    small.start()
    assert not small.index.is_dirty
    here = tree(small)
    assert saved_tree(small, tmp_path / "elsewhere") == here
    assert len(here) == 102


def test_what_never_lived_long_enough_leaves_no_trace(small: World) -> None:
    """A file that is gone before the commit is not sent, nor are its rows; zeros are sent as holes."""
    ino = small.create(b"temporary", os.urandom(SMALL_BLOCK))
    small.unlink(b"temporary")
    zeros = small.create(b"zeros", bytes(2 * SMALL_BLOCK))
    small.store.log.clear()
    small.commit()
    assert small.store.puts("packs/") == []
    (delta,) = small.store.puts("meta/")
    keys = [key for key, _ in decode_segment(small.bucket.objects[delta].data)]
    assert not any(key.startswith(ino.to_bytes(8, "big")) for key in keys)
    assert not any(key.startswith(zeros.to_bytes(8, "big") + b"b") for key in keys)
    small.restart_cold()
    assert small.content(b"zeros") == bytes(2 * SMALL_BLOCK)


def dirty_keys(world: World) -> set[bytes]:
    """What LMDB says that no commit holds."""
    reader = world.index.tables.reader()
    try:
        return {key for key, _ in reader.scan(b"dirty", b"")}
    finally:
        reader.close()


@pytest.mark.parametrize("when", ["flushed", "replayed", "under way"])
def test_names_that_come_and_go_leave_no_trace(small: World, tmp_path: Path, when: str) -> None:
    """Also in a directory that is saved already: neither in the index, which would grow with them while the store is
    away, nor in the list of unsaved names, nor in a delta, which each cold mount reads."""
    directory = small.mkdir(b"d")
    stays = small.create(b"stays", b"x", directory)
    small.commit()

    def churn(_step: str = "") -> None:
        for number in range(50):
            name = b"temporary %d" % number
            ino = small.create(name, b"data", directory)
            small.do(small.names.link, ino, directory, name + b" too")
            small.unlink(name, directory)
            small.unlink(name + b" too", directory)
        small.restart() if when == "replayed" else small.flush()

    if when == "under way":
        small.write(stays, 0, b"y")
        small.reached = lambda step: churn() if step == "packs" else None
        small.commit()
        small.reached = lambda _step: None
    else:
        churn()
    assert dirty_keys(small) == {codec.attr_key(directory)}
    assert not {entry.name for entry in listed(small.cache_path / "local")} - {b""}
    small.store.log.clear()
    small.commit()
    (delta,) = small.store.puts("meta/")
    assert [key for key, _ in decode_segment(small.bucket.objects[delta].data)] == [codec.attr_key(directory)]
    assert saved_tree(small, tmp_path / "elsewhere") == tree(small)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("end", ["success", "failure", "crash", "no answer"])
@pytest.mark.parametrize("flush", [False, True])
def test_a_deletion_that_a_commit_needs_is_not_taken_for_one_that_leaves_no_trace(
    small: World, tmp_path: Path, step: str, end: str, flush: bool
) -> None:
    """Names that a commit holds, or one that is under way, which come again and go again: in any generation, and
    however that commit ends."""

    def again(name: bytes) -> None:
        small.create(name, b"again")
        if flush:
            small.flush()
        small.unlink(name)

    for name in (b"old", b"gone", b"over"):
        small.create(name, b"1")
    small.commit()
    small.unlink(b"gone")
    small.create(b"new", b"2")
    again(b"brief")
    small.flush()

    def reached(now: str) -> None:
        if now != step:
            return
        again(b"gone")
        small.unlink(b"new")
        again(b"new")
        small.unlink(b"old")
        small.flush()
        again(b"old")
        again(b"brief")
        again(b"brief")
        small.create(b"over again", b"3")
        small.do(small.names.rename, ROOT_INO, b"over again", ROOT_INO, b"over")
        small.unlink(b"over")
        if end == "failure":
            raise StoreError("failed here")
        if end == "crash":
            small.crash()
            raise Crash

    small.reached = reached
    if end == "no answer":

        def cut(_method: str, key: str) -> None:
            if key == "HEAD":
                small.store.fault = unreachable
                unreachable("put", key)

        small.store.lost = cut
    with suppress(StoreError, Crash):
        small.commit()
    small.reached = lambda _step: None
    small.store.heal()
    if end == "crash":
        small.start()
    here = tree(small)
    small.commit()
    assert not dirty_keys(small)
    assert saved_tree(small, tmp_path / "elsewhere") == here


def test_files_of_one_directory_lie_side_by_side(small: World) -> None:
    """In a pack, blocks come by directory and name, whatever order they were written in."""
    one, two = small.mkdir(b"one"), small.mkdir(b"two")
    made = {}
    for name in (b"c", b"a", b"b"):
        for directory in (one, two):
            made[directory, name] = small.create(name, os.urandom(600), parent=directory)
    small.store.log.clear()
    small.commit()
    assert [ino for ino, _ in frames(small)] == [made[d, n] for d in (one, two) for n in (b"a", b"b", b"c")]


def test_the_deltas_are_folded(small: World, tmp_path: Path) -> None:
    """Into partitions that split where they grow; what did not change keeps its object; deleted rows are gone."""
    for number in range(30):
        directory = small.mkdir(b"d%02d" % number)
        small.create(b"f", b"x" * number, parent=directory)
    small.commit()
    first = manifest(small)
    assert len(first.base) > 4
    assert first.deltas == ()
    directory = small.do(small.names.lookup, ROOT_INO, b"d20").ino
    for number in range(4):
        small.unlink(b"f" if number == 0 else b"g%d" % (number - 1), directory)
        small.create(b"g%d" % number, parent=directory)
        small.commit()
    second = manifest(small)
    kept = {ref.key for ref in first.base} & {ref.key for ref in second.base}
    assert 0 < len(kept) < len(first.base)
    here = tree(small)
    assert saved_tree(small, tmp_path / "elsewhere") == here
    rows = sum(ref.rows for ref in second.base)
    for number in range(30):
        if number != 20:
            name = b"d%02d" % number
            small.unlink(b"f", small.do(small.names.lookup, ROOT_INO, name).ino)
            small.do(small.names.rmdir, ROOT_INO, name)
    small.commit()
    third = manifest(small)
    assert third.deltas == ()
    assert sum(ref.rows for ref in third.base) < rows // 4
    assert third.base[0].start == b""
    assert saved_tree(small, tmp_path / "elsewhere") == tree(small)


def test_megabytes_of_metadata_become_partitions(world: World, tmp_path: Path) -> None:
    """Tens of thousands of rows are split in partitions of about 1 MiB, and a cold mount finds each of them."""
    directory = world.mkdir(b"many")
    for number in range(12_000):
        world.do(world.names.make, directory, b"%0100d" % number, 0o100644, CALLER)
    world.commit()
    made = manifest(world)
    assert 2 <= len(made.base) <= 5
    assert made.deltas == ()
    world.restart_cold()
    assert len(world.index.unloaded()) == len(made.base) - 1
    assert world.do(world.names.lookup, directory, b"%0100d" % 11_999).nlink == 1
    assert len(world.listing(directory)) == 12_000


def test_a_stop_folds_only_what_is_long_overdue(small: World) -> None:
    """It waits for its last commit: more deltas are tolerated."""
    ino = small.create(b"f")
    for number in range(8):
        small.do(small.names.setattr, ino, Changes(mtime_ns=number), CALLER)
        small.commit(may_fold=False)
    assert len(manifest(small).deltas) > 3
    small.do(small.names.setattr, ino, Changes(mtime_ns=9), CALLER)
    small.commit()
    assert manifest(small).deltas == ()


def test_a_commit_is_one_point_in_time(small: World, tmp_path: Path) -> None:
    """Whatever programs do between its steps is not in it, and is in the next one."""
    content = os.urandom(3 * SMALL_BLOCK + 50)
    inodes = {name: small.create(name, content) for name in (b"written", b"cut", b"gone", b"moved", b"grown")}
    here = tree(small)

    def reached(step: str) -> None:
        number = STEPS.index(step)
        small.write(inodes[b"written"], number * 1000, b"new" * 500)
        small.truncate(inodes[b"cut"], 3 * SMALL_BLOCK - number * 2000)
        small.write(inodes[b"grown"], 4 * SMALL_BLOCK * (number + 1), b"x")
        small.create(b"born%d" % number, b"y" * 700)
        if step == "frozen":
            small.unlink(b"gone")
            small.do(small.names.rename, ROOT_INO, b"moved", ROOT_INO, b"cut")
            small.names.forgotten(inodes[b"cut"])
            inodes[b"cut"] = inodes[b"moved"]

    small.reached = reached
    small.commit()
    small.reached = lambda _step: None
    assert saved_tree(small, tmp_path / "elsewhere") == here
    assert list((small.cache_path).rglob("frozen/*")) == []
    now = tree(small)
    check_counters(small, now)
    small.commit()
    assert tree(small) == now
    assert saved_tree(small, tmp_path / "elsewhere") == now


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("end", ["failure", "crash", "machine gone"])
def test_a_commit_that_ends_at_a_step(small: World, tmp_path: Path, step: str, end: str) -> None:
    """Before HEAD the bucket holds the old commit, from then on the new one; here nothing is ever lost."""
    ino = small.create(b"f", b"old" * 2000)
    small.commit()
    before = tree(small)
    small.write(ino, 10, b"new" * 2000)
    small.create(b"g", b"g" * 600)
    after = tree(small)

    def reached(now: str) -> None:
        if now == step:
            if end == "failure":
                raise StoreError("failed here")
            small.crash()
            raise Crash

    small.reached = reached
    with pytest.raises((StoreError, Crash)):
        small.commit()
    small.reached = lambda _step: None
    committed = after if step in ("head", "advanced") else before
    assert saved_tree(small, tmp_path / "elsewhere") == committed
    if end == "machine gone":
        shutil.rmtree(small.cache_path)
    if end != "failure":
        small.start()
    assert tree(small) == (committed if end == "machine gone" else after)
    small.commit()
    small.write(ino, 0, b"more")
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere") == tree(small)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("applied", [False, True])
def test_a_store_that_fails_at_any_put(small: World, tmp_path: Path, number: int, applied: bool) -> None:
    """The commit can be repeated until it succeeds, and then holds everything."""
    small.create(b"f", os.urandom(4 * SMALL_BLOCK))
    left = number

    def fault(method: str, key: str) -> None:
        nonlocal left
        if method == "put":
            left -= 1
            if left < 0:
                unreachable(method, key)

    if applied:
        small.store.lost = fault
    else:
        small.store.fault = fault
    try:
        small.commit()
    except TransientStoreError:
        assert small.files.unsaved_bytes() == 4 * SMALL_BLOCK
        assert small.index.is_dirty
    small.store.heal()
    small.commit()
    assert not small.index.is_dirty
    assert small.files.unsaved_bytes() == 0
    assert saved_tree(small, tmp_path / "elsewhere") == tree(small)


def test_a_fenced_mount_keeps_what_it_has(world: World, tmp_path: Path) -> None:
    """Its commit is refused for ever, its changes stay readable, and the newer mount's commits are untouched."""
    world.create(b"mine", b"unsaved")
    other = World(tmp_path / "other", bucket=world.bucket)
    other.start(takeover=True)
    other.create(b"theirs", b"saved")
    other.commit()
    here = tree(other)
    for _ in range(2):
        with pytest.raises(FencedError):
            world.commit()
    assert world.content(b"mine") == b"unsaved"
    other.crash()
    assert saved_tree(world, tmp_path / "elsewhere") == here
    world.close()
    world.start(takeover=True)
    assert world.listing()[1:] == [b"theirs"]
    assert any("never saved" in line for line in world.told)
    assert len(list(world.cache_path.glob("unsaved-*"))) == 1


def test_a_stop_says_stopped(world: World) -> None:
    """HEAD names nobody any more, and the next mount loads nothing that it has."""
    world.create(b"f", b"x")
    world.stop()
    head = world.head()
    assert (head.state, head.holder) == (State.STOPPED, None)
    world.start()
    assert [key for method, key in world.store.log if method == "get" and key.startswith("meta/")] == []
    assert world.told == []
    assert world.head().epoch == head.epoch + 1


def test_counters_are_those_of_the_freeze(world: World) -> None:
    """The manifest counts what it holds, not what came after."""
    world.create(b"f", b"12345")

    def reached(step: str) -> None:
        if step == "frozen":
            world.create(b"g", b"x" * 100)

    world.reached = reached
    world.commit()
    made = manifest(world)
    assert (made.files, made.bytes) == (3, len(world.workspace.format.marker) + 5)


def test_what_is_set_aside_has_a_name_of_its_own(world: World, tmp_path: Path) -> None:
    """Also when this happens twice in a second."""
    other = World(tmp_path / "other", bucket=world.bucket)
    for number in range(3):
        world.create(b"mine", b"unsaved %d" % number)
        other.start(takeover=True)
        other.create(b"theirs%d" % number)
        other.commit()
        other.crash()
        world.crash()
        world.start(takeover=True)
    assert len(list(world.cache_path.glob("unsaved-*/index"))) == 3


def dies_at(world: World, step: str) -> None:
    """A commit that ends with a crash."""

    def reached(now: str) -> None:
        if now == "frozen":
            world.create(b"later", b"after the freeze")
        if now == step:
            raise Crash

    world.reached = reached
    with pytest.raises(Crash):
        world.commit()
    world.crash()
    world.reached = lambda _step: None


def set_aside(world: World) -> list[set[bytes]]:
    """The names that are new or changed, in each directory that was set aside."""
    found = []
    for path in sorted(world.cache_path.glob("unsaved-*/index")):
        tables = Tables(path)
        reader = tables.reader()
        found.append({key[9:] for key, _ in reader.scan(b"dirty", b"") if codec.table_of(key) == codec.DIRENT})
        reader.close()
        tables.close()
    return found


@pytest.mark.parametrize("commits", [1, 4])
@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_commit_that_others_have_built_on_is_saved(
    world: World, tmp_path: Path, commits: int, gone: bool, read_only: bool
) -> None:
    """Its swap of HEAD got through, we died before we knew, and another host went on: only what came after it was never
    saved. Also when it is no save point any more."""
    world.create(b"mine", b"A" * 9000)
    dies_at(world, "head")
    ours = world.head().commit
    other = World(tmp_path / "other", bucket=world.bucket)
    other.start(takeover=True)
    assert other.content(b"mine") == b"A" * 9000
    for number in range(commits):
        other.create(b"theirs%d" % number)
        other.commit()
    other.stop()
    if gone:
        del world.bucket.objects[ours]
    world.start(read_only=read_only)
    assert set_aside(world) == [{b"later"}]
    assert b"mine" in world.listing()
    assert b"theirs0" in world.listing()


def test_a_commit_whose_swap_failed_is_not_saved(world: World, tmp_path: Path) -> None:
    """Although its manifest is in the store."""
    world.create(b"mine", b"A" * 9000)
    dies_at(world, "pending")
    other = World(tmp_path / "other", bucket=world.bucket)
    other.start(takeover=True)
    other.create(b"theirs")
    other.commit()
    other.stop()
    world.start()
    assert set_aside(world) == [{b"mine", b"later"}]


def test_a_read_only_mount_does_not_settle_a_swap_that_is_on_its_way(world: World) -> None:
    """It may arrive after that, for nobody has changed HEAD: the next mount with the lease finds all of it saved."""
    world.create(b"mine", b"A" * 9000)
    plain, late = world.store.put, []

    def put(key: str, data: bytes, **how: Any) -> str:
        if key == "HEAD":
            late.append((data, how))
            raise Crash
        return plain(key, data, **how)

    world.store.put = put  # type: ignore[method-assign]
    with pytest.raises(Crash):
        world.commit()
    world.crash()
    for _ in range(2):
        world.start(read_only=True)
        assert world.content(b"mine") == b"A" * 9000
        world.crash()
    plain("HEAD", late[0][0], **late[0][1])
    world.start()
    assert set_aside(world) == []
    assert not world.index.is_dirty
    assert world.content(b"mine") == b"A" * 9000
