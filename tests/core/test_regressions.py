"""Bugs that were found once: each test failed before its fix."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from harness import SMALL_BLOCK as BLOCK
from harness import Crash, World, delayed_swap, saved_tree, tree, unreachable, until

import wsfs.data.overlay
import wsfs.data.overlayfile
import wsfs.data.removals
import wsfs.sync.start
from wsfs.config import MountSettings
from wsfs.daemon import Daemon
from wsfs.data.ballast import Ballast
from wsfs.data.overlay import Overlay
from wsfs.data.overlayfile import give_back
from wsfs.errors import (
    CacheError,
    CacheFullError,
    FormatError,
    LeaseHeldError,
    PreconditionFailedError,
    StoreError,
    TransientStoreError,
)
from wsfs.model import HELD_MAX, ROOT_INO, Local
from wsfs.repo.head import State
from wsfs.sync.lease import Lease


def fail_at(world: World, step: str) -> None:
    def reached(now: str) -> None:
        if now == step:
            raise StoreError("failed here")

    world.reached = reached


def uncertain_commit(world: World) -> None:
    """A commit that succeeds without this mount getting to know it."""

    def lost(_method: str, key: str) -> None:
        if key == "HEAD":
            world.store.fault = unreachable
            raise TransientStoreError("no answer")

    world.store.lost = lost
    with pytest.raises(TransientStoreError):
        world.commit()
    world.store.heal()


@pytest.mark.parametrize("crash", [False, True])
def test_a_write_after_an_uncertain_commit_is_committed(world: World, crash: bool, tmp_path: Any) -> None:
    """A commit seemed to fail and had succeeded: what was written to its blocks since is new, and is not forgotten."""
    ino = world.create(b"f", b"old" * 1000)
    uncertain_commit(world)
    world.write(ino, 0, b"new" * 1000)
    if crash:
        world.restart()
    world.commit()
    assert saved_tree(world, tmp_path / "elsewhere")[b"/f"][1] == b"new" * 1000


def test_what_is_replayed_is_newer_than_the_pending_commit(world: World, tmp_path: Any) -> None:
    """A commit of recovered rows freezes an empty memtable: what the journal holds after it is not part of it."""
    ino = world.create(b"f", b"old" * 1000)
    world.restart()

    def reached(step: str) -> None:
        if step == "frozen":
            world.write(ino, 0, b"new" * 1000)
            world.create(b"g")
        if step == "head":
            world.crash()
            raise Crash

    world.reached = reached
    with pytest.raises(Crash):
        world.commit()
    world.reached = lambda _step: None
    world.start()
    assert world.commit() is not None
    assert saved_tree(world, tmp_path / "elsewhere") == tree(world)
    assert world.content(b"f") == b"new" * 1000


def test_a_commit_that_fails_at_once_keeps_blocks_frozen_for_the_next(small: World, tmp_path: Any) -> None:
    """The next commit is one point in time too: it knows which blocks to preserve."""
    ino = small.create(b"f", b"old" * 1000)
    fail_at(small, "frozen")
    with pytest.raises(StoreError):
        small.commit()

    def reached(step: str) -> None:
        if step == "frozen":
            small.write(ino, 0, b"new" * 1000)

    small.reached = reached
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == b"old" * 1000


def test_a_commit_for_which_the_disk_was_full_can_be_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush after the freeze fails: the overlay must not stay frozen for ever."""
    world.create(b"f", b"x")
    flush, calls = world.index.flush, []

    def full() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise CacheFullError("full")
        flush()

    monkeypatch.setattr(world.index, "flush", full)
    with pytest.raises(CacheFullError):
        world.commit()
    assert world.commit() is not None
    assert not world.index.is_dirty


@pytest.mark.parametrize("point", ["begin", "write", "apply"])
def test_a_write_that_found_the_disk_full_can_be_repeated(world: World, point: str) -> None:
    """A block counts as dirty only once its row says so."""
    ino = world.create(b"f")
    target: Any = world.index if point == "apply" else world.overlay
    original = getattr(target, point)

    def full(*_args: Any) -> None:
        raise CacheFullError("full")

    setattr(target, point, full)
    with pytest.raises(CacheFullError):
        world.write(ino, 0, b"first" * HELD_MAX)
    setattr(target, point, original)
    world.write(ino, 0, b"again" * HELD_MAX)
    assert world.read(ino) == b"again" * HELD_MAX
    assert world.index.block(ino, 0) == Local()


def test_bytes_of_a_failed_write_do_not_come_to_light(world: World) -> None:
    """A file that grows by truncation shows zeros, not what a failed write left beyond its end."""
    ino = world.create(b"f", b"kept")
    original = world.overlay.write

    def half(ino: int, offset: int, data: bytes) -> None:
        original(ino, offset, data[: len(data) // 2])
        raise CacheFullError("full")

    world.overlay.write = half  # type: ignore[method-assign]
    with pytest.raises(CacheFullError):
        world.write(ino, 4, b"secret" * 10)
    world.overlay.write = original  # type: ignore[method-assign]
    world.truncate(ino, 100)
    assert world.read(ino) == b"kept" + bytes(96)


def test_the_last_block_of_the_largest_file_can_be_cut(world: World) -> None:
    """4 PiB is 2^32 blocks: there is no block after the last one to look for."""
    ino = world.create(b"f")
    world.truncate(ino, 1 << 52)
    world.truncate(ino, (1 << 52) - 1)
    assert world.names.inode(ino).size == (1 << 52) - 1
    assert world.errno(world.truncate, ino, (1 << 52) + 1) == errno.EFBIG


def test_bytes_that_go_bad_in_the_cache_are_fetched_again(world: World) -> None:
    """Even when they were fetched by this very mount: only what the store itself sends is the store's fault."""
    data = os.urandom(5000)
    world.create(b"f", data)
    world.stop()
    world.start()
    world.restart_cold()
    assert world.content(b"f") == data
    for path in (world.cache_path / "packs").iterdir():
        path.write_bytes(b"rot" * 3000)
    world.workspace.packs._opened.clear()
    assert world.content(b"f") == data
    for path in (world.cache_path / "packs").iterdir():
        path.unlink()
    world.workspace.packs._opened.clear()
    assert world.content(b"f") == data


def test_a_rotation_right_after_a_flush_keeps_its_journal(world: World) -> None:
    """The owner may rotate while another thread still tidies up after its flush: each removes its own journal only."""
    world.create(b"a")
    world.index.rotate()
    index = world.index
    old = index._old_journal
    close = old.close

    def close_late() -> None:
        world.create(b"b")
        assert index.rotate()
        close()

    old.close = close_late  # type: ignore[method-assign]
    index.flush()
    assert not old.path.exists()
    assert index._old_journal.path.exists()
    world.restart()
    assert world.listing()[1:] == [b"a", b"b"]


def test_no_mark_overtakes_data_that_another_fsync_still_writes(world: World) -> None:
    """Two fsyncs at once: the second must not vouch for rows whose data the first has not brought to disk yet."""
    one = world.create(b"one", b"a" * 100)
    other = world.create(b"other", b"b" * 100)
    world.commit()
    world.write(one, 0, b"c" * 100)
    started, go_on = threading.Event(), threading.Event()
    synced: list[set[int]] = []
    inner = world.index._barrier.write

    def slow(inodes: set[int]) -> None:
        if threading.current_thread() is first:
            started.set()
            go_on.wait(60)
        inner(inodes)
        synced.append(set(inodes))

    world.index._barrier.write = slow
    world.index.guard_data(one)
    first = threading.Thread(target=world.index.sync_point())
    first.start()
    started.wait(60)
    world.fsync(other)
    go_on.set()
    first.join()
    assert one in synced[0]


def test_a_truncation_during_an_upload_does_not_trip_over_it(small: World) -> None:
    """The commit's threads take blocks off the frozen set while the owner walks it."""
    ino = small.create(b"f", os.urandom(64 * 4096))
    overlay = small.overlay
    overlay.freeze()
    errors: list[BaseException] = []
    stop = threading.Event()

    def capture() -> None:
        while not stop.is_set():
            for number in range(64):
                overlay.capture(ino, number, 4096)
                overlay._frozen.setdefault(ino, set()).add(number + 1000)

    thread = threading.Thread(target=capture)
    thread.start()
    try:
        for _ in range(300):
            overlay.preserve_from(ino, 64_000)
    except RuntimeError as exc:
        errors.append(exc)
    stop.set()
    thread.join()
    overlay.thaw(committed=False)
    assert errors == []


@pytest.mark.parametrize("begins", ["before the next commit", "while that is under way"])
def test_a_thread_of_a_commit_that_was_given_up_disturbs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: str
) -> None:
    """At a deadline nobody waits for it. What it reads then is not what the next commit has read."""
    overlay = Overlay(tmp_path)
    overlay.write(20, 0, b"old")
    overlay.mark(20, 0)
    read = wsfs.data.overlay.read_block
    started, go_on = threading.Event(), threading.Event()

    def wait(*args: Any) -> bytes | None:
        data = read(*args)
        started.set()
        go_on.wait(60)
        return data

    def capture() -> None:
        if begins == "while that is under way":
            wait(overlay._path(20), 0, 3)
        with pytest.raises(CacheError, match="given up"):
            overlay.capture(20, 0, 3)

    overlay.freeze()
    with monkeypatch.context() as patch:
        if begins == "before the next commit":
            patch.setattr(wsfs.data.overlay, "read_block", wait)
        thread = threading.Thread(target=capture)
        thread.start()
        started.wait(60)
    overlay.thaw(committed=False)
    overlay.freeze()
    go_on.set()
    thread.join()
    overlay.mark(20, 0)
    overlay.write(20, 0, b"new")
    assert overlay.capture(20, 0, 3) == b"old"
    overlay.thaw(committed=True)
    overlay.close()


def test_a_store_with_other_bytes_is_reported(world: World) -> None:
    """A pack that was changed in the bucket is a FormatError, and is asked for again the next time."""
    data = os.urandom(5000)
    world.create(b"f", data)
    world.stop()
    world.start()
    world.restart_cold()
    (key,) = [key for key in world.bucket.objects if key.startswith("packs/")]
    good = world.bucket.objects[key]
    world.store.put(key, bytes(len(good.data)))
    for _ in range(2):
        with pytest.raises(FormatError, match=key):
            world.content(b"f")
    world.bucket.objects[key] = good
    assert world.content(b"f") == data


def hold_back_head(world: World) -> Callable[[], object]:
    """A commit whose swap of HEAD is given up, but still on its way: the result lets it arrive."""
    arrive = delayed_swap(world)
    with pytest.raises(TransientStoreError):
        world.commit()
    return arrive


def test_a_swap_that_arrives_late_is_not_taken_for_a_stranger(world: World, tmp_path: Any) -> None:
    """A request that was given up and is applied all the same is ours: no reason to stop writing."""
    world.create(b"a")
    arrive = hold_back_head(world)
    world.create(b"b")

    def between(method: str, key: str) -> None:
        if (method, key) == ("put", "HEAD"):
            world.store.heal()
            arrive()

    world.store.fault = between
    with pytest.raises(TransientStoreError, match="arrived late"):
        world.commit()
    world.commit()
    assert saved_tree(world, tmp_path / "elsewhere") == tree(world)


def test_a_swap_that_was_given_up_cannot_be_applied_later(world: World, tmp_path: Any) -> None:
    """Before a commit is tried again HEAD gets another version, so that the cache always knows what it stands on."""
    world.create(b"a")
    arrive = hold_back_head(world)
    world.create(b"b")

    def reached(step: str) -> None:
        if step == "pending":
            with pytest.raises(PreconditionFailedError):
                arrive()

    world.reached = reached
    world.commit()
    world.restart()
    assert world.listing()[1:] == [b"a", b"b"]
    assert saved_tree(world, tmp_path / "elsewhere") == tree(world)


def power_loss(world: World, patch: pytest.MonkeyPatch) -> None:
    """The machine starts anew: what was journalled and never synced is gone."""
    world.crash()
    patch.setattr(wsfs.sync.start, "boot_id", lambda: "00000000-0000-0000-0000-000000000001")
    world.start()


@pytest.mark.parametrize("remove", ["unlink", "rename"])
def test_a_power_loss_that_undoes_a_removal_brings_the_bytes_back_too(
    world: World, monkeypatch: pytest.MonkeyPatch, remove: str
) -> None:
    """Bytes that an fsync has promised go only once their removal is durable."""
    ino = world.create(b"f", b"promised" * 1000)
    world.create(b"new", b"n" * 1000)
    world.fsync(ino)
    if remove == "unlink":
        world.unlink(b"f")
    else:
        world.do(world.names.rename, ROOT_INO, b"new", ROOT_INO, b"f")
        world.names.forgotten(ino)
    power_loss(world, monkeypatch)
    assert world.content(b"f") == b"promised" * 1000


def test_a_power_loss_that_undoes_an_eviction_does_not_leave_holes(
    small: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Rows that say that the overlay has a block, and an overlay file that somebody has begun anew, must not meet."""
    content = os.urandom(2 * 4096)
    ino = small.create(b"f", content)
    small.commit()
    small.flush()
    assert small.evictor.evict(ino)
    power_loss(small, monkeypatch)
    small.write(ino, 2 * 4096, b"more")
    assert small.read(ino) == content + b"more"
    small.write(ino, 0, b"x")
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == b"x" + content[1:] + b"more"


@pytest.mark.parametrize("many", [False, True])
def test_what_a_recovery_makes_durable_has_its_data_on_disk(
    world: World, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """A block that the store has is overwritten, and the daemon killed: the row that says so must not become durable
    before the bytes, or a power loss after the recovery would leave neither the old nor the new ones."""
    ino = world.create(b"f", b"old" * 1000)
    world.commit()
    world.write(ino, 0, b"new")
    world.crash()
    if many:
        monkeypatch.setattr(wsfs.data.overlay, "_SYNC_EACH_MAX", 0)
    path = Path(world.overlay._path(ino))
    found: list[str] = []
    sync, syncfs = os.fsync, wsfs.data.overlayfile.libc.syncfs

    def seen(fd: int, real: Callable[[int], Any]) -> Any:
        found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return real(fd)

    monkeypatch.setattr(os, "fsync", lambda fd: seen(fd, sync))
    monkeypatch.setattr(wsfs.data.overlayfile.libc, "syncfs", lambda fd: seen(fd, syncfs))
    world.start()
    assert str(path.parent.parent if many else path) in found
    assert world.content(b"f") == b"new" + b"old" * 999


def test_an_overlay_file_that_a_power_loss_took_leaves_no_holes(
    small: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Its blocks are in their packs. A write to one of them begins a new file, in which the others are not."""
    content = os.urandom(3 * 4096)
    ino = small.create(b"f", content)
    small.commit()
    small.crash()
    os.unlink(small.overlay._path(ino))
    power_loss(small, monkeypatch)
    small.write(ino, 4096, b"new")
    content = content[:4096] + b"new" + content[4099:]
    assert small.content(b"f") == content
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == content


@pytest.mark.parametrize(("size", "at"), [(BLOCK, BLOCK + 1), (BLOCK - 5, 2 * BLOCK + 7), (BLOCK, BLOCK - 1)])
def test_a_lost_copy_of_one_block_leaves_no_zeros(
    small: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, size: int, at: int
) -> None:
    """The only block of a file is in its pack. A write behind it begins a new overlay file, in which it is not."""
    content = os.urandom(size)
    ino = small.create(b"f", content)
    small.commit()
    small.crash()
    Path(small.overlay._path(ino)).unlink(missing_ok=True)
    power_loss(small, monkeypatch)
    small.write(ino, at, b"new")
    content = content[:at].ljust(at, b"\0") + b"new"
    assert small.read(ino) == content
    small.write(ino, 0, b"x")
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == b"x" + content[1:]


def full(*_args: Any) -> None:
    raise CacheFullError("full")


def lose_copy(world: World, ino: int) -> None:
    """Somebody has removed an overlay file, and nobody has it open."""
    world.overlay._close(ino)
    os.unlink(world.overlay._path(ino))


def test_a_failed_write_to_a_file_whose_copy_is_lost_hides_nothing(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full once the new overlay file has begun: the rows must not trust that one."""
    content = os.urandom(BLOCK - 100)
    ino = small.create(b"f", content)
    small.commit()
    lose_copy(small, ino)
    with monkeypatch.context() as patch:
        patch.setattr(small.overlay, "write", full)
        with pytest.raises(CacheFullError):
            small.write(ino, 0, b"n" * (BLOCK - 100))
    assert small.read(ino) == content


def test_a_failed_rename_to_an_ignored_path_hides_nothing(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Likewise where a file is brought here to stay: a piece of it has begun, and the rows are as they were."""
    content = os.urandom(2 * BLOCK + 600)
    ino = small.create(b"f", content)
    small.create(b".wsfsignore", b"*.tmp\n")
    small.commit()
    lose_copy(small, ino)
    apply = small.index.apply

    def full_at_last(batch: Any) -> None:
        full() if batch.ways else apply(batch)

    with monkeypatch.context() as patch:
        patch.setattr(small.index, "apply", full_at_last)
        with pytest.raises(CacheFullError):
            small.do(small.names.rename, ROOT_INO, b"f", ROOT_INO, b"f.tmp")
    assert small.read(ino) == content


def test_unsaved_bytes_that_are_lost_are_not_saved_as_zeros(small: World, tmp_path: Path) -> None:
    """Their overlay file is gone: reading, saving and writing around them fail until the file is deleted."""
    small.create(b"other", b"saved later" * 1000)
    ino = small.create(b"f", os.urandom(2 * BLOCK))
    small.fsync(ino)
    lose_copy(small, ino)
    for attempt in (
        lambda: small.read(ino),
        lambda: small.write(ino, 5, b"x"),
        lambda: small.write(ino, 9 * BLOCK, b"x" * BLOCK),
    ):
        with pytest.raises(CacheError, match=f"inode {ino}"):
            attempt()
    with pytest.raises(CacheError, match=f"inode {ino}") as caught:
        small.commit()
    assert "delete" in caught.value.remedy
    small.restart()
    with pytest.raises(CacheError, match=f"inode {ino}"):
        small.commit()
    small.unlink(b"f")
    small.commit()
    assert sorted(saved_tree(small, tmp_path / "elsewhere")) == [b"", b"/.workspace.initialized", b"/other"]


def test_unsaved_bytes_that_are_lost_during_a_save_are_no_zeros_either(small: World) -> None:
    """A file is cut off and written anew before the save has come to it: that is not what it had to save."""
    ino = small.create(b"f", os.urandom(2 * BLOCK))

    def reached(step: str) -> None:
        if step == "frozen":
            lose_copy(small, ino)
            small.truncate(ino, 0)
            small.write(ino, 0, b"n" * 2 * BLOCK)

    small.reached = reached
    with pytest.raises(CacheError, match=f"inode {ino}"):
        small.commit()
    small.reached = lambda _step: None
    assert small.commit() is not None
    assert small.read(ino) == b"n" * 2 * BLOCK


@pytest.mark.parametrize("how", ["truncate", "write", "stop", "kill"])
def test_what_the_disk_refuses_to_cut_off_stays_away(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    """The truncation is journalled, so it has happened: the file does not grow before the disk has followed."""
    ino = world.create(b"f", b"S" * 100_000)
    refused: list[int] = []

    def refuse(fd: int, _size: int) -> None:
        refused.append(fd)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        world.truncate(ino, 10)
        assert world.read(ino) == b"S" * 10
        with pytest.raises(CacheFullError):
            world.truncate(ino, 100)
        with pytest.raises(CacheFullError):
            world.write(ino, 90, b"x")
        if how == "stop":
            world.committer.commit(State.STOPPING)
            world.index.close()
            with pytest.raises(CacheFullError):
                world.overlay.close()
            world.dead = True
            world.cache.close(clean=False)
    assert refused
    if how in ("stop", "kill"):
        world.crash()
        world.start()
    if how == "write":
        world.write(ino, 90, b"x" * 10)
    else:
        world.truncate(ino, 100)
    expected = b"S" * 10 + (bytes(80) + b"x" * 10 if how == "write" else bytes(90))
    assert world.read(ino) == expected
    world.commit()
    assert saved_tree(world, tmp_path / "elsewhere")[b"/f"][1] == expected


def test_removed_bytes_are_freed_once_that_is_durable(world: World) -> None:
    """By the next flush or fsync; and a file that is written to again before that keeps its new bytes."""
    size = HELD_MAX + 1
    gone, kept = world.create(b"gone", b"x" * size), world.create(b"kept", b"y" * size)
    world.commit()
    world.unlink(b"gone")
    assert world.evictor.evict(kept)
    assert sorted(world.overlay.inodes()) == [gone, kept]
    world.write(kept, 0, b"z" * size)
    world.flush()
    assert list(world.overlay.inodes()) == [kept]
    assert world.read(kept) == b"z" * size
    world.unlink(b"kept")
    world.fsync(kept)
    assert list(world.overlay.inodes()) == []


@pytest.mark.parametrize("saved", [False, True])
def test_a_large_file_is_cut_to_nothing_beside(
    small: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, *, saved: bool
) -> None:
    """What it takes the disk to give the room back is not for whoever answers requests; all else is as ever."""
    ino = small.create(b"f", os.urandom(3 * BLOCK))
    if saved:
        small.commit()
    monkeypatch.setattr(os, "ftruncate", None)
    small.truncate(ino, 0)
    assert ino in small.overlay.inodes()
    until(lambda: not list((small.cache_path / "local" / "frozen").iterdir()))
    assert small.read(ino) == b""
    small.write(ino, BLOCK, b"new")
    expected = bytes(BLOCK) + b"new"
    assert small.read(ino) == expected
    small.restart()
    assert small.read(ino) == expected
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == expected


def test_a_large_file_that_is_removed_keeps_nobody_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """To give its room back takes the disk a while, and every change to another file needs the lock."""
    removing, go_on = threading.Event(), threading.Event()

    def slowly(held: list[int | None]) -> None:
        removing.set()
        go_on.wait(60)
        give_back(held)

    monkeypatch.setattr(wsfs.data.removals, "give_back", slowly)
    size = HELD_MAX + 1
    gone = world.create(b"gone", b"x" * size)
    world.create(b"other", b"y" * size)
    world.commit()
    world.unlink(b"gone")
    world.index.rotate()
    flushing = threading.Thread(target=world.index.flush)
    flushing.start()
    assert removing.wait(60)
    began = time.monotonic()
    world.unlink(b"other")
    world.create(b"third", b"z" * size)
    assert time.monotonic() - began < 30
    go_on.set()
    flushing.join()
    assert gone not in world.overlay.inodes()


def test_a_start_that_fails_does_not_hide_a_reboot(
    small: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """After a power loss the store may be out of reach at first: the next start still knows what not to trust."""
    content = os.urandom(3 * 4096)
    ino = small.create(b"f", content)
    small.commit()
    small.crash()
    (copy,) = [path for path in small.cache_path.rglob("overlay/*/*") if path.name == f"{ino:x}"]
    copy.write_bytes(bytes(len(content)))
    monkeypatch.setattr(wsfs.sync.start, "boot_id", lambda: "00000000-0000-0000-0000-000000000001")
    with monkeypatch.context() as down:
        down.setattr(wsfs.sync.start, "read_head", lambda _store: unreachable("get", "HEAD"))
        with pytest.raises(TransientStoreError):
            small.start()
    small.start()
    assert small.content(b"f") == content


def test_a_refused_mount_forgets_nothing(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A swap from before the crash arrives just before the lease is taken: the mount is refused, the next one completes
    the commit, and what came after it is still there."""
    world.create(b"a")
    arrive = hold_back_head(world)
    world.create(b"b")
    world.crash()
    take = Lease.take

    def late(*args: Any, **kwargs: Any) -> Lease:
        arrive()
        return take(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Lease, "take", late)
        with pytest.raises(LeaseHeldError):
            world.start()
    world.start()
    assert world.listing()[1:] == [b"a", b"b"]
    world.commit()
    assert saved_tree(world, tmp_path / "elsewhere") == tree(world)
    assert list(world.cache_path.glob("unsaved-*")) == []


def test_the_reserve_that_a_delete_has_used_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a delete gives it up, and nobody had it restored: the last save of a stop would find none."""

    class Full:
        async def shrink(self, _limit: int) -> int:
            raise CacheFullError

    daemon = Daemon.__new__(Daemon)
    daemon._cache_size = 0
    daemon._settings = MountSettings("memory://", tmp_path, cache_dir=tmp_path)
    daemon._evictor = Full()  # type: ignore[assignment]
    daemon._saver = SimpleNamespace(ballast=Ballast(tmp_path))  # type: ignore[assignment]
    assert Ballast(tmp_path).release()
    monkeypatch.setattr("wsfs.daemon.CACHE_SECONDS", 0.01)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon._keep_cache_small)
            await trio.to_thread.run_sync(until, (tmp_path / "ballast").exists)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_an_fsync_does_not_succeed_because_the_disk_has_told_of_its_failure_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux tells once, here in the background, and takes the pages for clean. Only a commit makes up for it."""
    ino, other = world.create(b"file"), world.create(b"other")
    world.write(ino, 0, b"a" * 200_000)
    world.commit()
    world.write(ino, 0, b"b" * 200_000)
    real, failing = os.fsync, [errno.EIO]

    def fsync(fd: int) -> None:
        if failing and "/overlay/" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(failing.pop(), "I/O error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CacheError, match="disk failed"):
        world.flush()
    world.write(other, 0, b"c" * 200_000)
    world.fsync(other)
    for _ in range(2):
        world.flush()
        with pytest.raises(CacheError, match="survive a power loss"):
            world.fsync(ino)
    world.commit()
    world.fsync(ino)
    world.write(ino, 0, b"d" * 200_000)
    world.fsync(ino)
