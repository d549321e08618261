"""After a power loss: what is damaged is found, what can be kept is, and what cannot is told by name, on one line."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from harness import SMALL_BLOCK, World, tree

import wsfs.sync.lease
import wsfs.sync.start
from wsfs.errors import MarkerError
from wsfs.export import from_cache
from wsfs.index.check import is_whole
from wsfs.model import ROOT_INO
from wsfs.repo.head import Holder, State, encode_head
from wsfs.sync.recover import left_elsewhere

PAGE = 4096
ANOTHER = "00000000-0000-0000-0000-000000000001"


def lose_power(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.crash()
    monkeypatch.setattr(wsfs.sync.start, "boot_id", lambda: ANOTHER)


def unsaved(world: World) -> tuple[dict[bytes, Any], dict[bytes, Any]]:
    """A commit, changes in LMDB that are in none, and one in the journal that nothing vouches for. The tree before and
    after those in LMDB."""
    for number in range(60):
        world.create(b"old%03d" % number, b"%d" % number * 40)
    world.create(b"changed", os.urandom(2 * SMALL_BLOCK))
    world.commit()
    before = tree(world)
    world.write(world.do(world.names.lookup, ROOT_INO, b"changed").ino, 0, os.urandom(3 * SMALL_BLOCK))
    world.create(b"new", os.urandom(700), parent=world.mkdir(b"d"))
    for number in range(30):
        world.create(b"held%02d" % number, b"small" * 100)
        if not number % 10:
            world.flush()
    world.do(world.names.rename, ROOT_INO, b"old007", ROOT_INO, b"renamed", 0)
    world.unlink(b"old008")
    world.flush()
    after = tree(world)
    world.create(b"journalled", b"too" * 200)
    return before, after


UNSAVED = ["changed", "d", "d/new", "journalled", "old008", "renamed", *(f"held{number:02}" for number in range(30))]


@pytest.mark.parametrize("damage", ["cut in half", "no page left", *(f"page {number}" for number in range(6))])
def test_a_torn_index(small: World, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Whatever was torn, it mounts: with everything, or with the newest commit, and a line names what is missing."""
    before, after = unsaved(small)
    lose_power(small, monkeypatch)
    file = small.cache_path / "local" / "index" / "data.mdb"
    data = bytearray(file.read_bytes())
    pages = len(data) // PAGE
    if damage == "cut in half":
        del data[pages // 2 * PAGE :]
    else:
        rng = random.Random(damage)
        for page in range(2, pages) if damage == "no page left" else [rng.randrange(2, pages)]:
            data[page * PAGE + 16 : (page + 1) * PAGE] = rng.randbytes(PAGE - 16)
    file.write_bytes(data)
    small.start()
    (line,) = [told for told in small.told if told.startswith("recovered")] or [""]
    assert "\n" not in line
    if "damaged" not in line:
        assert tree(small) == after
        assert line.endswith("1 file may lack what was not synced: journalled")
        return
    assert tree(small) == before
    (aside,) = small.cache_path.glob("damaged-*")
    assert str(aside) in line
    assert small.workspace.recovered == line
    names = line.partition(" not restored: ")[2]
    listed = names + "".join(path.read_text() for path in small.cache_path.glob("lost-*"))
    for name in UNSAVED:
        assert re.search(rf"(^|[ ,]){name}($|[,\n])", listed, re.MULTILINE), f"{name} is not named"
    small.close()
    from_cache(aside, small.cache_path.parent / "rescued", small.store)


def test_a_whole_index_is_whole(small: World, tmp_path: Path) -> None:
    unsaved(small)
    small.close()
    assert is_whole(small.cache_path / "local" / "index")


def test_bytes_that_the_disk_has_lost(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose overlay is shorter than its rows say, or has a hole there, is named, others are not."""
    directory = small.mkdir(b"d")
    short = small.create(b"sh\nort", os.urandom(3 * SMALL_BLOCK), parent=directory)
    gone = small.create(b"gone", os.urandom(SMALL_BLOCK))
    holed = small.create(b"holed", os.urandom(3 * SMALL_BLOCK))
    small.create(b"whole", os.urandom(3 * SMALL_BLOCK))
    # Holes of the file itself are none of the overlay's: there are no rows for them.
    small.truncate(small.create(b"sparse", os.urandom(SMALL_BLOCK)), 9 * SMALL_BLOCK)
    small.flush()
    os.truncate(small.overlay._path(short), SMALL_BLOCK)
    os.unlink(small.overlay._path(gone))
    small.overlay.begin(holed, 1)
    lose_power(small, monkeypatch)
    small.start()
    (line,) = [told for told in small.told if told.startswith("recovered")]
    assert line.endswith("; 3 files may lack what was not synced: d/sh\\nort, gone, holed")
    assert small.content(b"whole")
    assert small.content(b"gone") == bytes(SMALL_BLOCK)
    assert small.commit() is not None
    small.close()
    small.told.clear()
    small.start()
    assert small.told == []


def test_operations_that_were_never_synced(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are gone after a power loss, and named; more than a few of them in a file."""
    kept = small.create(b"kept", b"x")
    directory = small.mkdir(b"d")
    small.fsync(kept)
    for number in range(4):
        small.create(b"new%d" % number, parent=directory)
    small.create(b"deep", parent=small.mkdir(b"sub", parent=directory))
    small.write(kept, 0, b"y")
    lose_power(small, monkeypatch)
    small.start()
    (line,) = [told for told in small.told if told.startswith("recovered")]
    (file,) = small.cache_path.glob("lost-*.txt")
    assert f"7 files may lack what was not synced: d/new0, d/new1, d/new2, d/new3, d/sub and 2 more, see {file}" in line
    assert file.read_text().split() == ["d/new0", "d/new1", "d/new2", "d/new3", "d/sub", "d/sub/deep", "kept"]
    assert small.listing() == [b".workspace.initialized", b"kept", b"d"]


def test_what_is_lost_is_not_exported_as_zeros(small: World, tmp_path: Path) -> None:
    """From a cache directory that nobody has mounted since."""
    content = os.urandom(SMALL_BLOCK)
    gone = small.create(b"gone", os.urandom(SMALL_BLOCK))
    small.create(b"whole", content)
    small.flush()
    small.crash()
    os.unlink(small.overlay._path(gone))
    done = from_cache(small.cache_path, tmp_path / "rescued", None)
    assert done.incomplete == [b"gone"]
    assert (tmp_path / "rescued" / "whole").read_bytes() == content


def test_a_copy_of_a_cache_is_taken_for_one(small: World) -> None:
    """It may have been copied while it was in use: nothing in it is believed that was not synced."""
    small.create(b"f", b"x")
    small.crash()
    copied = small.cache_path.with_name("copied")
    shutil.copytree(small.cache_path, copied)
    small.cache_path = copied
    small.start()
    assert small.cache.rebooted
    assert small.content(b"f") == b"x"


def test_a_full_disk_does_not_keep_a_cache_from_being_closed(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be noted then makes the next start look more closely, and nothing else."""

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    small.create(b"f", b"x")
    small.flush()
    lose_power(small, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        patch.setattr(Path, "touch", full)
        small.start()
        small.close()
    small.start()
    assert small.cache.crashed
    assert small.cache.rebooted
    assert small.content(b"f") == b"x"


HERE = Holder("here", 7, "boot/1", "2026-11-30T12:00:00Z", "1:2")


@pytest.mark.parametrize(
    ("state", "holder", "crashed", "unsaved", "told"),
    [
        (State.STOPPED, None, True, False, ""),
        (State.ERROR, None, False, False, ""),
        (State.SYNC_FAILED, None, False, False, "files are missing here"),
        (State.SYNC_FAILED, None, False, True, ""),
        # The same boot: the number of the lock tells, whatever else this cache has.
        (State.RUNNING, Holder("here", 8, "boot/2", "2026", "1:2"), True, False, ""),
        (State.RUNNING, Holder("here", 8, "boot/1", "2026", "1:3"), True, True, "files may be missing here"),
        # Another boot, or another machine.
        (State.RUNNING, Holder("here", 8, "before/1", "2026", "1:3"), True, False, ""),
        (State.STOPPING, Holder("there", 8, "other/1", "2026", "1:2"), False, False, "files may be missing here"),
        (State.SYNC_FAILED, Holder("there", 8, "other/1", "2026", "1:2"), False, False, "end in order (why): what it"),
        # An import or a repair has no cache in which anything could be.
        (State.RUNNING, Holder("there", 8, "other/1", "2026"), False, False, ""),
    ],
)
def test_what_another_cache_may_have(
    world: World, state: State, holder: Holder | None, crashed: bool, unsaved: bool, told: str
) -> None:
    before = replace(world.head(), state=state, holder=holder, reason="why" if state == State.SYNC_FAILED else "")
    found = left_elsewhere(before, HERE, crashed=crashed, unsaved=unsaved)
    assert told in found
    assert bool(told) == bool(found)


def test_a_start_that_is_refused_leaves_in_head_who_has_died(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere, and what that had not saved is still there."""
    head = replace(world.head(), state=State.RUNNING, holder=Holder("there", 8, "other/1", "2026", "1:2"))
    world.close()
    world.observer().put("HEAD", encode_head(head))
    monkeypatch.setattr(wsfs.sync.lease, "SILENT_SECONDS", -1)
    with monkeypatch.context() as patch:
        patch.setattr(wsfs.sync.start, "verify_marker", fail_with(MarkerError("the marker is missing")))
        with pytest.raises(MarkerError):
            world.start()
    world.start()
    assert "cache directory on there (process 8" in world.workspace.missing


def fail_with(exc: Exception) -> Callable[[object], None]:
    def fail(_workspace: object) -> None:
        raise exc

    return fail


def test_a_start_that_is_refused_leaves_the_warning_in_head(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been saved by it, so what is missing is missing still."""
    lease = world.workspace.lease
    assert lease is not None
    lease.release(State.SYNC_FAILED, "it is in /cache on there")
    world.close()
    shutil.rmtree(world.cache_path)

    damaged = fail_with(MarkerError("the marker is missing"))
    with monkeypatch.context() as patch:
        patch.setattr(wsfs.sync.start, "verify_marker", damaged)
        with pytest.raises(MarkerError):
            world.start()
    assert (world.head().state, world.head().reason) == (State.SYNC_FAILED, "it is in /cache on there")
    world.start()
    assert "it is in /cache on there" in world.workspace.missing
    assert world.workspace.lease is not None
    world.workspace.lease.release(State.STOPPED)
    world.close()
    # What this cache has itself is as much of a warning.
    world.start()
    world.create(b"file", b"x")
    world.crash()
    with monkeypatch.context() as patch:
        patch.setattr(wsfs.sync.start, "verify_marker", damaged)
        with pytest.raises(MarkerError):
            world.start()
    assert world.head().state == State.SYNC_FAILED
    assert world.head().reason.startswith(f"the marker is missing; what was not saved stays in {world.cache_path} on ")
    world.start()
    assert world.workspace.missing == ""
    assert world.content(b"file") == b"x"
