"""The bytes of files, block by block; and the overlay and the pack cache below."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from harness import SMALL_BLOCK as BLOCK
from harness import Crash, World, saved_tree, until

import wsfs.data.overlay
from wsfs.data.overlay import Overlay
from wsfs.data.packcache import WINDOW, PackCache
from wsfs.errors import CacheError, CacheFullError, StoreError
from wsfs.model import BLOCK_SIZE, HELD_MAX, FrameLoc, Inline, Ino, Local, Packed, pack_key
from wsfs.remote import NeedRemote, fetch_all
from wsfs.repo.frame import digest
from wsfs.repo.pack import PackWriter, make_frame
from wsfs.store.memory import MemoryStore


def test_holes_are_zeros_and_take_no_room(world: World) -> None:
    """A file of 5 GiB with one byte in it has one block, and is committed as one."""
    ino = world.create(b"f")
    world.write(ino, 5 << 30, b"x")
    assert world.read(ino, (5 << 30) - 4, 100) == b"\0\0\0\0x"
    assert world.read(ino, 1 << 30, 10) == bytes(10)
    assert world.index.block(ino, 0) is None
    saved = world.commit()
    assert saved is not None
    assert saved.sent < 10_000
    world.restart_cold()
    assert world.read(ino, (5 << 30) - 4, 100) == b"\0\0\0\0x"


def test_reads_end_with_the_file(world: World) -> None:
    """Fewer bytes at the end, none beyond it."""
    ino = world.create(b"f", b"0123456789")
    assert world.read(ino, 8, 10) == b"89"
    assert world.read(ino, 10, 10) == world.read(ino, 99, 10) == b""
    assert world.read(ino, 0, 0) == b""


@pytest.mark.parametrize("step", ["local", "committed", "evicted", "cold"])
@pytest.mark.parametrize("cut", [1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_what_was_cut_off_stays_away(small: World, step: str, cut: int) -> None:
    """Truncated and extended again, a file shows zeros: from the overlay, from a pack, and after a commit of that."""
    ino = small.create(b"f", b"s" * (3 * BLOCK))
    if step != "local":
        small.commit()
    if step == "evicted":
        assert small.evictor.evict(ino)
    if step == "cold":
        small.restart_cold()
    small.truncate(ino, cut)
    small.truncate(ino, 3 * BLOCK)
    expected = b"s" * cut + bytes(3 * BLOCK - cut)
    assert small.read(ino) == expected
    small.write(ino, 3 * BLOCK - 1, b"e")
    expected = expected[:-1] + b"e"
    assert small.read(ino) == expected
    small.commit()
    assert small.read(ino) == expected
    small.restart_cold()
    assert small.read(ino) == expected


@pytest.mark.parametrize("evict", [False, True])
def test_a_small_change_in_a_packed_block_keeps_the_rest(small: World, evict: bool) -> None:
    """Read, modify, write: across blocks, packs and fetch windows, without or with the bytes at hand."""
    content = bytearray(os.urandom(9 * BLOCK + 100))
    ino = small.create(b"f", bytes(content))
    small.commit()
    if evict:
        small.restart_cold()
    for offset, data in [(5, b"a"), (BLOCK - 2, b"bcde"), (3 * BLOCK + 1, b"f" * 2 * BLOCK), (9 * BLOCK + 99, b"gh")]:
        small.write(ino, offset, data)
        content[offset : offset + len(data)] = data
    assert small.read(ino) == content
    small.commit()
    small.restart_cold()
    assert small.read(ino) == content


def test_nothing_is_fetched_to_be_overwritten(small: World) -> None:
    """A write that covers a block, or all that the file has of it, needs no old bytes."""
    ino = small.create(b"f", os.urandom(2 * BLOCK + 600))
    small.commit()
    small.restart_cold()
    small.do(small.names.lookup, 1, b"f")
    small.store.log.clear()
    small.write(ino, BLOCK, b"n" * (BLOCK + 600))
    assert small.store.log == []
    small.write(ino, 1, b"x")
    assert [key[:5] for _, key in small.store.log] == ["packs"]


@pytest.mark.parametrize("size", [1, 512])
def test_tiny_contents_travel_in_their_row(world: World, size: int) -> None:
    """At most 512 bytes need no pack, also when they are changed and cut later."""
    ino = world.create(b"f", b"t" * size)
    saved = world.commit()
    assert saved is not None
    assert world.store.puts("packs/") == []
    assert world.index.block(ino, 0) == Inline(b"t" * size)
    assert world.read(ino) == b"t" * size
    world.restart_cold()
    world.write(ino, size, b"u")
    assert world.read(ino) == b"t" * size + b"u"
    world.truncate(ino, 1)
    world.commit()
    assert world.index.block(ino, 0) == Inline(b"t")
    world.truncate(ino, 5)
    assert world.read(ino) == b"t\0\0\0\0"


def test_a_row_says_where_a_block_is(small: World) -> None:
    """Local, then packed and resident, then packed only, and local again once it is written to."""
    ino = small.create(b"f", b"p" * BLOCK)
    assert small.index.block(ino, 0) == Local()
    assert not small.evictor.evict(ino)
    small.commit()
    block = small.index.block(ino, 0)
    assert isinstance(block, Packed)
    assert block.resident
    assert small.evictor.evict(ino)
    assert small.index.block(ino, 0) == block._replace(resident=False)
    assert not small.index.is_dirty
    small.write(ino, 0, b"x")
    assert small.index.block(ino, 0) == Local()


def test_unsaved_bytes_while_a_commit_is_under_way(small: World) -> None:
    """Who waits for it asks for the rest; whoever does not, as a stop whose time is up, misses all of it."""
    small.create(b"f", os.urandom(2 * BLOCK))
    found = {}

    def reached(step: str) -> None:
        found[step] = small.files.unsaved_bytes(), small.files.unsaved_bytes(committing=True)

    small.reached = reached
    small.commit()
    assert found["packs"] == found["manifest"] == (0, 2 * BLOCK)
    assert small.files.unsaved_bytes(committing=True) == 0


def test_unsaved_bytes_are_counted(small: World) -> None:
    """By blocks, up to the end of the file, and none after a commit."""
    ino = small.create(b"f", bytes(BLOCK + 10))
    assert small.files.unsaved_bytes() == BLOCK + 10
    small.truncate(ino, 4)
    assert small.files.unsaved_bytes() == 4
    small.commit()
    assert small.files.unsaved_bytes() == 0


# --- the overlay ------------------------------------------------------------------------------------------------------


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    return Overlay(tmp_path)


def test_a_frozen_block_is_captured_as_it_was(overlay: Overlay) -> None:
    """Changed, cut, dropped: a commit gets the bytes of the freeze, and later changes belong to the next one."""
    for ino in (1, 2, 3):
        overlay.mark(ino, 0)
        overlay.write(ino, 0, b"old")
    overlay.freeze()
    overlay.mark(1, 0)
    overlay.write(1, 0, b"new")
    overlay.preserve_from(2, 0)
    overlay.cut(2, 0)
    overlay.drop(3)
    assert [overlay.capture(ino, 0, 3) for ino in (1, 2, 3)] == [b"old"] * 3
    assert overlay.dirty == {1: {0}}
    assert [overlay.is_frozen(ino) for ino in (1, 2, 3, 4)] == [True, True, True, False]
    overlay.thaw(committed=True)
    assert overlay.unsaved() == {1: {0}}
    assert overlay.read(1, 0, 0, 3) == b"new"
    until(lambda: sorted(overlay.inodes()) == [1, 2])
    overlay.close()


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("changed", [False, True])
def test_a_file_that_is_cut_to_nothing_is_left_to_the_commit(
    overlay: Overlay, tmp_path: Path, captured: bool, changed: bool
) -> None:
    """Without a copy, however large it is; blocks that were copied before, and what comes after, are told apart."""
    old = [bytes([number]) * BLOCK_SIZE for number in range(1, 4)]
    for number, data in enumerate(old):
        overlay.mark(1, number)
        overlay.write(1, number * BLOCK_SIZE, data)
    file = os.stat(overlay._path(1)).st_ino
    overlay.freeze()
    if captured:
        assert overlay.capture(1, 0, BLOCK_SIZE) == old[0]
    if changed:
        overlay.mark(1, 1)
        overlay.write(1, BLOCK_SIZE, b"changed")
    overlay.unmark(1, 0)
    overlay.cut(1, 0)
    assert not overlay.has(1)
    assert file in {path.stat().st_ino for path in (tmp_path / "frozen").iterdir()}
    overlay.begin(1, 1)
    overlay.mark(1, 1)
    overlay.write(1, BLOCK_SIZE, b"anew")
    overlay.cut(1, 0)
    overlay.begin(1, 2)
    overlay.write(1, 2 * BLOCK_SIZE, b"again")
    for number in range(1 if captured else 0, 3):
        assert overlay.capture(1, number, BLOCK_SIZE) == old[number]
    assert overlay.read(1, 1, 0, 5) == bytes(5)
    assert overlay.read(1, 2, 0, 5) == b"again"
    overlay.thaw(committed=True)
    overlay._behind._thread.shutdown()
    assert list((tmp_path / "frozen").iterdir()) == []
    overlay.close()


def test_a_file_that_was_read_is_cut_in_place(overlay: Overlay, tmp_path: Path) -> None:
    """The commit needs nothing of it any more."""
    overlay.mark(1, 0)
    overlay.write(1, 0, b"old")
    overlay.freeze()
    overlay.capture(1, 0, 3)
    overlay.cut(1, 0)
    assert overlay.has(1)
    assert list((tmp_path / "frozen").iterdir()) == []
    overlay.thaw(committed=True)
    overlay.close()


def test_a_file_that_cannot_be_left_to_the_commit_stays_frozen(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not written to before it could be set aside, or the commit has read it."""
    overlay.mark(1, 0)
    overlay.write(1, 0, b"old")
    overlay.freeze()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refusing(errno.ENOSPC))
        overlay.cut(1, 0)
        with pytest.raises(CacheFullError):
            overlay.finish_cut(1)
    overlay.finish_cut(1)
    overlay.begin(1, 0, b"new")
    assert overlay.capture(1, 0, 3) == b"old"
    overlay.thaw(committed=True)
    assert overlay.read(1, 0, 0, 3) == b"new"
    overlay.close()


@pytest.mark.parametrize("end", ["saved", "failed", "killed"])
def test_a_file_that_is_begun_anew_while_it_is_saved(small: World, tmp_path: Path, end: str) -> None:
    """The save has the old content, or nothing; the mount has the new one, also after a crash."""
    old, new = os.urandom(5 * BLOCK), os.urandom(3 * BLOCK)
    ino = small.create(b"f", old)

    def reached(step: str) -> None:
        if step == "frozen":
            small.truncate(ino, 0)
            small.write(ino, 0, new)
        if step == "packs" and end != "saved":
            if end == "killed":
                small.crash()
                raise Crash
            raise StoreError("failed here")

    small.reached = reached
    if end == "saved":
        small.commit()
        assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == old
    else:
        with pytest.raises((StoreError, Crash)):
            small.commit()
    small.reached = lambda _step: None
    if end == "killed":
        small.start()
    small.overlay._behind._thread.submit(int).result()
    assert list((small.cache_path / "local" / "frozen").iterdir()) == []
    assert small.read(ino) == new
    small.commit()
    assert saved_tree(small, tmp_path / "elsewhere")[b"/f"][1] == new


def test_a_captured_block_needs_no_copy_any_more(overlay: Overlay, tmp_path: Path) -> None:
    """Once the commit has read it, programs write on without keeping anything."""
    overlay.mark(1, 0)
    overlay.write(1, 0, b"old")
    overlay.freeze()
    assert overlay.capture(1, 0, 3) == b"old"
    overlay.mark(1, 0)
    assert list((tmp_path / "frozen").iterdir()) == []
    overlay.thaw(committed=False)
    assert overlay.unsaved() == {1: {0}}
    overlay.close()


@pytest.mark.parametrize("when", ["before it is read", "after it was read"])
def test_a_block_that_changes_while_it_is_captured(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The owner does not wait for the read: the copy that it keeps is what counts then."""
    overlay.mark(1, 0)
    overlay.write(1, 0, b"old")
    overlay.freeze()
    read = wsfs.data.overlay.read_block

    def meanwhile(path: str, index: int, length: int) -> bytes | None:
        monkeypatch.undo()
        data = read(path, index, length) if when == "after it was read" else None
        overlay.mark(1, 0)
        overlay.write(1, 0, b"new")
        return data or read(path, index, length)

    monkeypatch.setattr(wsfs.data.overlay, "read_block", meanwhile)
    assert overlay.capture(1, 0, 3) == b"old"
    assert overlay.read(1, 0, 0, 3) == b"new"
    overlay.thaw(committed=True)
    overlay.close()


def test_a_block_begins_empty_whatever_lay_there(overlay: Overlay) -> None:
    """Stale bytes of an earlier life of the block are gone, those of its neighbours are not."""
    overlay.write(1, 0, b"s" * (3 * BLOCK_SIZE))
    overlay.begin(1, 1, b"new")
    assert overlay.read(1, 1, 0, BLOCK_SIZE) == b"new" + bytes(BLOCK_SIZE - 3)
    assert overlay.read(1, 0, 0, BLOCK_SIZE) == overlay.read(1, 2, 0, BLOCK_SIZE) == b"s" * BLOCK_SIZE
    overlay.close()


def test_copies_of_a_dead_commit_are_swept(overlay: Overlay, tmp_path: Path) -> None:
    """They serve a running commit only."""
    overlay.mark(1, 0)
    overlay.write(1, 0, b"old")
    overlay.freeze()
    overlay.mark(1, 0)
    assert list((tmp_path / "frozen").iterdir()) != []
    overlay.close()
    Overlay(tmp_path).close()
    assert list((tmp_path / "frozen").iterdir()) == []


@pytest.mark.parametrize("of", [stat.S_ISREG, stat.S_ISDIR])
def test_a_disk_that_cannot_sync_is_an_error_of_the_cache(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch, of: Callable[[int], bool]
) -> None:
    """Whatever it is about: what flushes the index takes that error, and keeps the journal."""
    overlay.write(5, 0, b"data")
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if of(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(CacheError):
        overlay.sync({5})


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_a_file_that_cannot_be_opened_to_be_synced_is_an_error_of_the_cache(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch, many: bool, number: int
) -> None:
    """What runs in the background expects no other one."""
    overlay.write(5, 0, b"data")
    if many:
        monkeypatch.setattr(wsfs.data.overlay, "_SYNC_EACH_MAX", 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing(number))
        with pytest.raises(CacheError):
            overlay.sync({5})
    overlay.sync({5})


def refusing(number: int) -> Callable[..., int]:
    def refuse(*_args: object, **_kwargs: object) -> int:
        raise OSError(number, os.strerror(number))

    return refuse


def test_what_cannot_be_removed_keeps_nothing_from_going_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropped file, a copy that a commit needed, a journal: the next time, or never, and only room is lost."""
    big = b"x" * (HELD_MAX + 1)
    gone, kept = world.create(b"gone", big), world.create(b"kept", big)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing(errno.EIO))
        patch.setattr(Path, "unlink", refusing(errno.EIO))
        world.unlink(b"gone")
        world.flush()
        world.fsync(kept)

        def reached(step: str) -> None:
            if step == "frozen":
                world.write(kept, 0, b"y")
            if step == "packs":
                raise StoreError("failed here")

        world.reached = reached
        with pytest.raises(StoreError):
            world.commit()
        assert world.overlay.unsaved() == {kept: {0}}
    world.reached = lambda _step: None
    assert gone in world.overlay.inodes()
    world.create(b"more")
    world.flush()
    assert list(world.overlay.inodes()) == [kept]
    world.restart()
    assert world.content(b"kept") == b"y" + big[1:]
    world.commit()
    assert world.overlay.unsaved() == {}


# --- the pack cache ---------------------------------------------------------------------------------------------------


def packs(store: MemoryStore, count: int) -> list[tuple[bytes, FrameLoc]]:
    """Some packs with one incompressible frame each."""
    found = []
    for number in range(1, count + 1):
        data = os.urandom(100_000)
        writer = PackWriter(1, number)
        loc = writer.add(make_frame(data, digest(data)), 5, 0)
        store.put(pack_key(1, number), writer.finish())
        found.append((data, loc))
    return found


def read(cache: PackCache, loc: FrameLoc) -> bytes:
    return fetch_all(lambda: cache.read(loc))


def test_the_pack_cache_stays_within_its_limit(tmp_path: Path) -> None:
    """The packs that were not used for longest go; what is asked for is always served."""
    store = MemoryStore()
    blocks = packs(store, 5)
    now = [0.0]
    cache = PackCache(tmp_path, store, 250_000, clock=lambda: now[0])
    cache._keep_opened = lambda _key, _data: None  # type: ignore[method-assign]
    for data, loc in blocks:
        now[0] += 1
        assert read(cache, loc) == data
        assert read(cache, blocks[0][1]) == blocks[0][0]
    names = {path.name for path in (tmp_path / "packs").iterdir()}
    assert f"{1:08x}-{1:08x}" in names
    assert len(names) <= 3
    assert cache.size <= 350_000


def test_the_pack_cache_outlives_a_restart(tmp_path: Path) -> None:
    """What was fetched once is not fetched again, and counts as used room."""
    store = MemoryStore()
    ((data, loc),) = packs(store, 1)
    read(PackCache(tmp_path, store, 1 << 30), loc)
    store.close()
    again = PackCache(tmp_path, store, 1 << 30)
    assert again.read(loc) == data
    assert again.size >= 100_000


def test_torn_bytes_in_the_cache_are_fetched_again(tmp_path: Path) -> None:
    """Zeros where a power loss took the bytes fail the digest."""
    store = MemoryStore()
    ((data, loc),) = packs(store, 1)
    read(PackCache(tmp_path, store, 1 << 30), loc)
    (path,) = (tmp_path / "packs").iterdir()
    torn = bytearray(path.read_bytes())
    torn[5000:9000] = bytes(4000)
    path.write_bytes(torn)
    assert read(PackCache(tmp_path, store, 1 << 30), loc) == data


@pytest.mark.parametrize("call", ["open", "pread"])
def test_a_pack_that_the_disk_cannot_read_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
) -> None:
    """Into a new file, for the old one lies in a bad place; no program sees an error, and the log says it once."""
    store = MemoryStore()
    blocks = packs(store, 3)
    cache = PackCache(tmp_path, store, 1 << 30)
    assert all(read(cache, loc) == data for data, loc in blocks)
    cache._opened.clear()
    files = list((tmp_path / "packs").iterdir())
    bad = {path.stat().st_ino for path in files}
    os_open, os_pread = os.open, os.pread

    def check(ino: int) -> None:
        if ino in bad:
            raise OSError(errno.EIO, "Input/output error")

    def failing_open(path: Path, flags: int, mode: int = 0o777) -> int:
        if path in files and path.exists():
            check(path.stat().st_ino)
        return os_open(path, flags, mode)

    def failing_pread(fd: int, size: int, offset: int) -> bytes:
        check(os.fstat(fd).st_ino)
        return os_pread(fd, size, offset)

    # Held, so that a new file has another number.
    held = [os.open(path, os.O_RDONLY) for path in files]
    monkeypatch.setattr(os, call, {"open": failing_open, "pread": failing_pread}[call])
    assert not cache.holds(1, 1, 0)
    assert all(read(cache, loc) == data for data, loc in blocks)
    assert not bad.intersection(path.stat().st_ino for path in files)
    assert caplog.text.count("cannot be read") == 1
    for fd in held:
        os.close(fd)


def test_the_pack_cache_knows_how_large_it_is(tmp_path: Path) -> None:
    """However the bytes came, and came again: kept by a commit, fetched over that, read before the rest is fetched. And
    nothing is left when all of it has gone."""
    store = MemoryStore()
    writer = PackWriter(1, 1)
    blocks = [os.urandom(100_000) for _ in range(50)]
    frames = [(data, writer.add(make_frame(data, digest(data)), 5, n)) for n, data in enumerate(blocks)]
    whole = writer.finish()
    store.put(pack_key(1, 1), whole)
    cache = PackCache(tmp_path, store, 1 << 30)

    def check() -> None:
        used = sum(path.stat().st_blocks * 512 for path in (tmp_path / "packs").iterdir())
        assert abs(cache.size - used) < 1 << 16  # a file system may note where blocks are when it writes them out

    cache.keep(1, 1, [(loc.offset, whole[loc.offset :][: loc.stored_length]) for _, loc in frames[::7]])
    check()
    assert read(cache, frames[7][1]) == frames[7][0]
    for window in (0, 1, 1):
        cache.fetch(1, 1, window)
        check()
    assert all(read(cache, loc) == data for data, loc in frames)
    check()
    assert cache.shrink(0) >= len(whole)
    assert cache.size == 0


def test_who_reads_gets_in_between_the_packs_that_are_dropped(tmp_path: Path) -> None:
    """A full disk drops them all, perhaps thousands, and each read needs the lock for a moment."""
    store = MemoryStore()
    cache = PackCache(tmp_path, store, 1 << 30)
    for data, loc in packs(store, 20):
        assert read(cache, loc) == data
    taken = 0

    class Counted:
        def __enter__(self) -> None:
            nonlocal taken
            taken += 1

        def __exit__(self, *_: object) -> None:
            pass

    cache._lock = Counted()  # type: ignore[assignment]
    cache.shrink(0)
    assert taken >= 20
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_pack_that_cannot_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It frees nothing, and is no reason to give up: the others go, and what is fetched comes."""
    store = MemoryStore()
    blocks = packs(store, 3)
    cache = PackCache(tmp_path, store, 1 << 30)
    for data, loc in blocks:
        assert read(cache, loc) == data
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith("2"):
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert 200_000 <= cache.shrink(0) < 300_000
    assert [path.name for path in (tmp_path / "packs").iterdir()] == [f"{1:08x}-{2:08x}"]
    cache._opened.clear()
    assert all(read(cache, loc) == data for data, loc in blocks)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int, _data: bytes, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refuse)


def test_a_full_disk_is_read_through_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fetches gets to know; what was fetched can be read all the same, also where it lies in two windows."""
    store = MemoryStore()
    writer = PackWriter(1, 1)
    blocks = [os.urandom(100_000) for _ in range(50)]
    frames = [(data, writer.add(make_frame(data, digest(data)), 5, n)) for n, data in enumerate(blocks)]
    store.put(pack_key(1, 1), writer.finish())
    assert any(loc.offset // WINDOW != (loc.offset + loc.stored_length) // WINDOW for _, loc in frames)
    full_disk(monkeypatch)
    cache = PackCache(tmp_path, store, 1 << 30)
    for window in range(3):
        with pytest.raises(CacheFullError):
            cache.fetch(1, 1, window)
    assert all(cache.read(loc) == data for data, loc in frames)
    assert cache.size == 0


def test_memory_holds_only_some_of_what_a_full_disk_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go, and are asked for again: the store is not blamed for it."""
    store = MemoryStore()
    blocks = packs(store, 40)
    full_disk(monkeypatch)
    cache = PackCache(tmp_path, store, 1 << 30)
    for _, loc in blocks:
        with pytest.raises(CacheFullError):
            cache.fetch(loc.epoch, loc.pack, 0)
    assert cache.read(blocks[-1][1]) == blocks[-1][0]
    with pytest.raises(NeedRemote):
        cache.read(blocks[0][1])
    with pytest.raises(CacheFullError):
        cache.fetch(1, 1, 0)
    assert cache.read(blocks[0][1]) == blocks[0][0]


def test_what_fills_the_disk_makes_room_for_what_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs that were fetched before go first."""
    store = MemoryStore()
    blocks = packs(store, 3)
    cache = PackCache(tmp_path, store, 1 << 30)
    for data, loc in blocks[:2]:
        assert read(cache, loc) == data
    write = os.pwrite

    def write_if_room(fd: int, data: bytes, offset: int) -> int:
        if sum(path.stat().st_size for path in (tmp_path / "packs").iterdir()) > 150_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write_if_room)
    data, loc = blocks[2]
    assert read(cache, loc) == data
    assert [path.name for path in sorted((tmp_path / "packs").iterdir())] == [f"{1:08x}-{n:08x}" for n in (2, 3)]


def test_a_window_that_arrives_while_a_frame_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was evicted, and another thread has fetched it again just after our look: nothing is wrong with the store."""
    store = MemoryStore()
    ((data, loc),) = packs(store, 1)
    cache = PackCache(tmp_path, store, 1 << 30)
    look = cache._read_stored

    def look_too_early(name: str, loc: FrameLoc) -> bytes | None:
        found = look(name, loc)
        monkeypatch.undo()
        cache.fetch(loc.epoch, loc.pack, 0)
        return found

    monkeypatch.setattr(cache, "_read_stored", look_too_early)
    assert read(cache, loc) == data


# --- the limit --------------------------------------------------------------------------------------------------------


def used(world: World, ino: Ino, when: float) -> None:
    """Let the overlay file of an inode have been used then."""
    os.utime(world.overlay._path(ino), (when, when))


def read_and_written(world: World) -> tuple[Ino, Ino]:
    """A file of which this machine has a pack, and one of which it has what was written."""
    fetched = world.create(b"fetched", os.urandom(900_000))
    world.commit()
    world.restart_cold()
    world.read(fetched)
    written = world.create(b"written", os.urandom(900_000))
    world.commit()
    return fetched, written


@pytest.mark.parametrize("oldest", ["fetched", "written"])
@pytest.mark.parametrize("restart", [False, True])
def test_what_was_not_used_for_longest_goes_first(world: World, oldest: str, restart: bool) -> None:
    """Be it a pack or a file that was written here: who has read a lot does not lose what is saved next."""
    _, written = read_and_written(world)
    packs = world.workspace.packs
    if restart:
        (path,) = packs._directory.iterdir()
        os.utime(path, (time.time() - 50, time.time() - 50))
        world.restart()
        packs = world.workspace.packs
    used(world, written, time.time() + (100 if oldest == "fetched" else -100))
    assert trio.run(world.evictor.shrink, 1_500_000) >= 900_000
    assert world.overlay.has(written) == (oldest == "fetched")
    assert (packs.size == 0) == (oldest == "fetched")


def test_a_pack_that_is_read_meanwhile_stays(world: World) -> None:
    """The list of what there is may be some seconds old when it is its turn."""
    fetched, _ = read_and_written(world)
    packs = world.workspace.packs
    packs._clock = lambda: 1e12
    ((when, size, name),) = packs.usage()
    packs._opened.clear()
    world.read(fetched)
    assert packs.drop(name, when) == 0
    assert packs.drop(name, 1e12) == size


def test_unsaved_data_does_not_push_out_all_that_is_read(world: World) -> None:
    """It cannot go, however much it is. A tenth of the limit is left to packs, so that what is read is not fetched each
    time."""
    _, written = read_and_written(world)
    packs = world.workspace.packs
    size = packs.size
    world.write(written, 0, os.urandom(12 * size))
    trio.run(world.evictor.shrink, 11 * size)
    assert packs.size == size
    trio.run(world.evictor.shrink, 9 * size)
    assert packs.size == 0
    assert world.overlay.has(written)


def test_equal_blocks_travel_once(small: World, tmp_path: Path) -> None:
    """Within a commit and across commits, also after a cold start that has loaded their rows."""
    data = os.urandom(2 * BLOCK)
    small.create(b"a", data + data)
    small.create(b"b", data)
    small.commit()
    assert sum(len(small.bucket.objects[key].data) for key in small.store.puts("packs/")) < 3 * BLOCK
    small.restart_cold()
    assert small.content(b"a") == data + data
    small.create(b"c", data)
    small.store.log.clear()
    small.commit()
    assert small.store.puts("packs/") == []
    assert saved_tree(small, tmp_path / "elsewhere")[b"/c"][1] == data
