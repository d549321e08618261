"""The index: journal, memtables, LMDB, partitions, directories in order."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from harness import CALLER, World, check_counters, saved_tree, tree
from hypothesis import given
from hypothesis import strategies as st

import wsfs.index.tables
from wsfs.errors import CacheError, CacheFullError, FormatError
from wsfs.index.index import Batch, Index
from wsfs.index.journal import PUT, Counters, Journal, read_segment
from wsfs.index.tables import Writer
from wsfs.model import FIRST_FREE_ID, ROOT_INO, Dirent, Inode
from wsfs.remote import NeedRemote
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.manifest import Manifest, SegmentRef
from wsfs.repo.segment import decode_segment, encode_segment
from wsfs.sync.load import Loader
from wsfs.tree.namespace import Changes

BOOT = b"b" * 16
OTHER_BOOT = b"c" * 16


def put(index: Index, key: bytes, value: bytes | None, files: int = 0) -> None:
    batch = Batch()
    batch.files = files
    if value is None:
        batch.delete(key)
    else:
        batch.put(key, value)
    index.apply(batch)


def key(number: int) -> bytes:
    return codec.xattr_key(number, b"k")


def kill(index: Index) -> None:
    """Close what a process closes when it dies."""
    index._reader.close()
    index.tables.close()
    index._journal.close()
    if index._imm is not None:
        index._old_journal.close()


# --- the journal ------------------------------------------------------------------------------------------------------


KEYS = codec.attr_key(5), codec.attr_key(6)


def test_a_journal_says_what_was_appended(tmp_path: Path) -> None:
    """Batches with serial numbers and counters, marks, and the boot."""
    journal = Journal(tmp_path / "j", BOOT, 7)
    journal.append(Counters(1, 2, 3), [(PUT, KEYS[0], b"v")])
    journal.append(Counters(4, 5, 6), [(PUT, KEYS[1], b""), (2, KEYS[0], b"")])
    journal.mark(8)
    journal.close()
    boot, records, vouched = read_segment(tmp_path / "j")
    assert (boot, vouched) == (BOOT, 8)
    assert [tuple(r) for r in records] == [
        (7, (1, 2, 3), [(PUT, KEYS[0], b"v")]),
        (8, (4, 5, 6), [(PUT, KEYS[1], b""), (2, KEYS[0], b"")]),
    ]


@given(cut=st.integers(0, 400), flip=st.integers(0, 400))
def test_a_torn_journal_ends_at_its_first_bad_record(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    """Whatever a crash leaves at the end, the records before it count, in order, and no others."""
    path = tmp_path_factory.mktemp("j") / "j"
    journal = Journal(path, BOOT, 1)
    written = [[(PUT, codec.attr_key(n), bytes([n]) * n)] for n in range(1, 8)]
    for ops in written:
        journal.append(Counters(1, 2, 3), ops)
    end = journal.size
    journal.close()
    data = bytearray(path.read_bytes()[:end])
    for torn in (data[: max(0, end - cut)], data[:flip] + bytes([data[flip % end] ^ 1]) + data[flip + 1 :]):
        path.write_bytes(torn)
        found = [record.ops for record in read_segment(path)[1]]
        assert found == written[: len(found)]


def test_a_journal_on_a_full_disk_takes_a_record_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short write is an error, and the next record overwrites it."""
    journal = Journal(tmp_path / "j", BOOT, 1)
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[: len(data) // 2], at))
    with pytest.raises(CacheFullError):
        journal.append(Counters(1, 2, 3), [(PUT, KEYS[0], b"")])
    monkeypatch.undo()
    journal.append(Counters(1, 2, 3), [(PUT, KEYS[1], b"")])
    journal.close()
    assert [record.ops for record in read_segment(tmp_path / "j")[1]] == [[(PUT, KEYS[1], b"")]]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_journal_begins_where_nothing_can_be_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Its first records may still find room: those of deletes, above all."""

    def refuse(_fd: int, _offset: int, _length: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    journal = Journal(tmp_path / "j", BOOT, 1)
    journal.append(Counters(1, 2, 3), [(PUT, KEYS[0], b"")])
    journal.close()
    assert len(read_segment(tmp_path / "j")[1]) == 1


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("flushed", [False, True])
def test_what_was_applied_survives_a_kill(tmp_path: Path, rotated: bool, flushed: bool) -> None:
    """From the journal, from two of them, or from LMDB; counters and numbers too; and again after another kill."""
    index = Index(tmp_path, BOOT)
    put(index, key(20), b"1", files=1)
    put(index, key(21), b"1", files=1)
    if rotated:
        assert index.rotate()
    if flushed:
        index.flush()
    put(index, key(21), None, files=-1)
    number = index.new_id()
    put(index, key(22), b"3", files=1)
    kill(index)
    for _ in range(2):
        index = Index(tmp_path, BOOT)
        assert [index.get(key(n)) for n in (20, 21, 22)] == [b"1", None, b"3"]
        # Of what came and went before the tables had it there is no trace.
        assert (index.files, index.dirty_inodes) == (2, {20, 22} | ({21} if rotated and flushed else set()))
        assert index.new_id() > number
        kill(index)


def test_a_power_loss_forgets_what_no_mark_vouches_for(tmp_path: Path) -> None:
    """What was synced is there; what came after it is not, even if its record happens to be on disk."""
    index = Index(tmp_path, BOOT)
    put(index, key(20), b"1")
    index.sync_point()()
    put(index, key(20), b"2")
    put(index, key(21), b"2")
    kill(index)
    index = Index(tmp_path, OTHER_BOOT)
    assert [index.get(key(n)) for n in (20, 21)] == [b"1", None]
    kill(index)


@pytest.mark.parametrize("torn", [False, True])
def test_a_segment_that_a_power_loss_brings_back_is_no_loss(tmp_path: Path, torn: bool) -> None:
    """Its records are in LMDB, and only its removal was not durable. A torn index has no number for what it holds: they
    may be nowhere else."""
    index = Index(tmp_path, BOOT)
    put(index, key(20), b"1")
    path = index._journal.path
    segment = path.read_bytes()
    index.rotate()
    index.flush()
    put(index, key(21), b"2")
    if torn:
        index.rewrite(lambda txn: txn.delete(b"meta", b"serial"))
    kill(index)
    path.write_bytes(segment)
    index = Index(tmp_path, OTHER_BOOT)
    assert index.get(key(20)) == b"1"
    assert index.dropped == ({key(20): b"1"} if torn else {}) | {key(21): b"2"}
    assert index.recovered == 0
    kill(index)


def test_data_goes_to_disk_before_the_rows_that_need_it(tmp_path: Path) -> None:
    """Guarded inodes are synced before a mark, and before a flush; once."""
    synced: list[set[int]] = []
    index = Index(tmp_path, BOOT, synced.append)
    put(index, key(20), b"1")
    index.guard_data(20)
    index.sync_point()()
    index.guard_data(21)
    put(index, key(21), b"1")
    index.rotate()
    index.guard_data(22)
    index.flush()
    index.sync_point()()
    assert [s for s in synced if s] == [{20}, {21}, {22}]
    kill(index)


def test_a_journal_is_gone_once_its_rows_are_in_lmdb(tmp_path: Path) -> None:
    """One segment is open at a time, and a close leaves no records."""
    index = Index(tmp_path, BOOT)
    for number in range(20, 25):
        put(index, key(number), b"1")
        index.rotate()
        assert not index.rotate()
        index.flush()
        assert len(list(tmp_path.glob("journal-*"))) == 1
    index.close()
    assert [read_segment(path)[1] for path in tmp_path.glob("journal-*")] == [[]]
    index = Index(tmp_path, BOOT)
    assert index.recovered == 0
    assert index.get(key(24)) == b"1"
    index.close()


def test_the_tables_do_not_grow_with_changes_of_the_same_rows(world: World) -> None:
    """Although every look-up is answered from memory: the owner's view does not keep pages from being used again."""
    inodes = [world.create(b"%d" % number) for number in range(2000)]
    (data,) = world.cache_path.rglob("data.mdb")

    def change(rounds: int) -> int:
        for number in range(rounds):
            for ino in inodes[number % 50 :: 50]:
                world.do(world.names.setattr, ino, Changes(mode=0o600 + number % 64), CALLER)
            world.flush()
        return data.stat().st_size

    before = change(20)
    assert change(100) - before < 1 << 20


def test_reads_see_the_newest_layer(tmp_path: Path) -> None:
    """Memtable over rotated memtable over LMDB, deletions included, for look-ups and scans alike."""
    index = Index(tmp_path, BOOT)
    names = [b"a", b"b", b"c"]
    for name in names:
        put(index, codec.xattr_key(20, name), b"lmdb")
    index.rotate()
    index.flush()
    put(index, codec.xattr_key(20, b"b"), b"rotated")
    put(index, codec.xattr_key(20, b"c"), None)
    index.rotate()
    put(index, codec.xattr_key(20, b"a"), None)
    put(index, codec.xattr_key(20, b"c"), b"mem")
    expected = [(b"b", b"rotated"), (b"c", b"mem")]
    for _ in range(3):
        assert [(k[9:], v) for k, v in index.scan(20, codec.XATTR)] == expected
        assert [index.get(codec.xattr_key(20, name)) for name in names] == [None, b"rotated", b"mem"]
        assert [(k[9:], v) for k, v in index.scan(20, codec.XATTR, b"c")] == expected[1:]
        index.flush()
        index.rotate()
    kill(index)


# --- directories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flush", [False, True])
def test_a_listing_goes_on_where_it_stopped(world: World, flush: bool) -> None:
    """Entries that come and go between its parts disturb nothing: all others are seen exactly once, in order."""
    for number in range(300):
        world.create(b"%03d" % number)
    if flush:
        world.flush()
    seen: list[bytes] = []
    after = 0
    step = 0
    while part := world.entries(ROOT_INO, after)[:37]:
        seen += [name for name, _, _ in part]
        after = part[-1][1]
        if step == 8:
            continue
        world.unlink(b"%03d" % step)
        world.unlink(b"%03d" % (299 - step))
        world.do(world.names.rename, ROOT_INO, b"%03d" % (150 + step), ROOT_INO, b"moved%d" % step)
        world.create(b"late%d" % step)
        if flush:
            world.flush()
        step += 1
    stable = [b"%03d" % n for n in range(step, 300 - step) if not 150 <= n < 150 + step]
    assert [name for name in seen if name in stable] == stable
    assert len(seen) == len(set(seen))


def test_a_name_that_comes_back_moves_to_the_end(world: World) -> None:
    """A new entry has a new cookie, also under an old name, and the old cookie leads nowhere."""
    for name in (b"a", b"b"):
        world.create(name)
    world.flush()
    world.unlink(b"a")
    world.create(b"a")
    for _ in range(2):
        assert world.listing()[1:] == [b"b", b"a"]
        world.flush()


# --- partitions -------------------------------------------------------------------------------------------------------


def partitioned(path: Path) -> tuple[Index, dict[str, bytes], list[str]]:
    """An index on a commit with three partitions that are not loaded, and what was loaded since."""
    objects: dict[str, bytes] = {}
    base = []
    for number, first in enumerate([0, 30, 40]):
        rows = [(key(n), b"base") for n in range(first, first + 10) if n]
        data = encode_segment(rows)
        name = f"meta/00000001/{number:08x}"
        objects[name] = data
        base.append(SegmentRef(name, len(data), len(rows), digest(data), key(first) if first else b""))
    index = Index(path, BOOT)
    manifest = Manifest("w", 1, 1, "n", "", "", 100, 3, 0, tuple(base), ())

    class Objects:
        url = "memory://"

        def get(self, name: str) -> object:
            loaded.append(name)
            return type("Blob", (), {"data": objects[name]})()

    loaded: list[str] = []
    loader = Loader(Objects(), index)  # type: ignore[arg-type]
    loader.start_from(manifest)
    return index, objects, loaded


def test_an_index_is_not_closed_below_a_partition_that_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fetches it may be a thread that nobody waits for any more. It comes too late, and is told so."""
    index, _, _ = partitioned(tmp_path)
    ref = index.unloaded()[0]
    begun, closed = threading.Event(), threading.Event()
    told: list[CacheError] = []

    def rows() -> Iterator[tuple[bytes, bytes]]:
        begun.set()
        closed.wait(60)
        yield key(31), b"base"

    def load() -> None:
        try:
            index.load(ref, rows())
        except CacheError as exc:
            told.append(exc)

    loading = threading.Thread(target=load)

    def rotate() -> bool:  # between the flush and the end
        loading.start()
        assert not begun.wait(0.3)
        return False

    monkeypatch.setattr(index, "rotate", rotate)
    index.close()
    closed.set()
    loading.join(10)
    assert told


def test_a_partition_is_loaded_when_it_is_touched(tmp_path: Path) -> None:
    """A look-up names just its own partition; a scan names all it crosses; both come again and find everything."""
    index, _, loaded = partitioned(tmp_path)
    assert loaded == ["meta/00000001/00000000"]
    assert index.get(key(5)) == b"base"
    with pytest.raises(NeedRemote) as need:
        index.get(key(31))
    need.value.fetch()
    assert loaded[1:] == ["meta/00000001/00000001"]
    assert [index.get(key(n)) for n in (31, 39, 29)] == [b"base", b"base", None]
    assert [ref.key for ref in index.unloaded()] == ["meta/00000001/00000002"]
    with pytest.raises(NeedRemote):
        index.scan(45, codec.XATTR)
    index.load(index.unloaded()[0], [])
    assert index.unloaded() == []
    assert index.get(key(45)) is None
    index.close()


def test_a_last_partition_that_arrives_during_a_look_up_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is not in the owner's view of the tables may have come in with the partition that made the index
    whole a moment ago. To say that there is none would have the kernel remember that, and a program make the file."""
    index, objects, _ = partitioned(tmp_path)
    with pytest.raises(NeedRemote):
        index.get(key(31))
    view = index._reader
    look = view.get

    def get(name: bytes) -> bytes | None:
        found = look(name)
        for ref in index.unloaded():
            index.load(ref, decode_segment(objects[ref.key]))
        return found

    monkeypatch.setattr(view, "get", get)
    assert index.get(key(31)) == b"base"
    assert index.unloaded() == []
    index.close()


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("reopen", [False, True])
def test_what_is_newer_than_a_partition_stays(tmp_path: Path, flush: bool, reopen: bool) -> None:
    """A row changed or deleted before its partition arrived is not brought back by it."""
    index, objects, _ = partitioned(tmp_path)
    put(index, key(31), b"new")
    put(index, key(32), None)
    if flush:
        index.rotate()
        index.flush()
    if reopen:
        kill(index)
        index = Index(tmp_path, BOOT)
    assert (index.get(key(31)), index.get(key(32))) == (b"new", None)
    for ref in index.unloaded():
        index.load(ref, decode_segment(objects[ref.key]))
    assert [index.get(key(n)) for n in (31, 32, 33)] == [b"new", None, b"base"]
    assert [k for k, _ in index.scan(32, codec.XATTR)] == []
    index.rotate()
    index.flush()
    assert [index.get(key(n)) for n in (31, 32, 33)] == [b"new", None, b"base"]
    assert index.dirty_inodes == {31, 32}
    index.close()


def test_what_comes_and_goes_is_deleted_while_partitions_are_missing(tmp_path: Path) -> None:
    """It may be in one of them: only when all are here it is known that it was in none."""
    index, objects, _ = partitioned(tmp_path)

    def dirty() -> set[bytes]:
        index.rotate()
        index.flush()
        reader = index.tables.reader()
        found = {name for name, _ in reader.scan(b"dirty", b"")}
        reader.close()
        return found

    for number in (31, 131):
        put(index, key(number), b"new")
        put(index, key(number), None)
    assert dirty() == {key(31), key(131)}
    for ref in index.unloaded():
        index.load(ref, decode_segment(objects[ref.key]))
    assert index.get(key(31)) is None
    for number in (31, 32, 132):
        put(index, key(number), b"new")
        put(index, key(number), None)
    assert dirty() == {key(31), key(131), key(32)}
    assert [index.get(key(number)) for number in (31, 32, 132)] == [None, None, None]
    index.close()


def test_a_deletion_in_a_partition_is_damage(tmp_path: Path) -> None:
    """Only deltas delete."""
    index, _, _ = partitioned(tmp_path)
    with pytest.raises(FormatError, match="holds a deletion"):
        index.load(index.unloaded()[0], [(key(31), None)])
    assert len(index.unloaded()) == 2
    index.close()


def test_a_cold_mount_changes_what_it_has_not_seen(small: World, tmp_path: Path) -> None:
    """Removing, renaming over and listing in a tree whose partitions are not here gives what it gives with them."""
    for number in range(40):
        directory = small.mkdir(b"d%02d" % number)
        for name in (b"a", b"b"):
            small.create(name, b"x" * number, parent=directory)
    small.commit()
    small.restart_cold()
    assert len(small.index.unloaded()) > 5
    for number in (3, 20, 39):
        directory = small.do(small.names.lookup, ROOT_INO, b"d%02d" % number).ino
        small.unlink(b"a", directory)
        small.do(small.names.rename, directory, b"b", directory, b"a")
        assert small.listing(directory) == [b"a"]
    assert small.index.unloaded()
    saved = small.commit()
    assert saved is not None
    here = tree(small)
    check_counters(small, here)
    assert saved_tree(small, tmp_path / "elsewhere") == here


def test_numbers_begin_where_the_commit_ends(world: World) -> None:
    """No inode number or cookie is ever used twice, also not across machines."""
    used = {world.create(b"f%d" % n) for n in range(5)}
    assert min(used) >= FIRST_FREE_ID
    world.unlink(b"f4")
    world.commit()
    world.restart_cold()
    assert world.create(b"new") > max(used)


def test_a_row_of_the_wrong_kind_is_reported(world: World) -> None:
    """A damaged row is a FormatError, never a wrong answer."""
    put(world.index, codec.dirent_key(ROOT_INO, b"bad"), codec.encode_dirent(Dirent(world.create(b"f"), 8, 99)))
    batch = Batch()
    batch.put(codec.attr_key(77), b"nonsense")
    world.index.apply(batch)
    with pytest.raises(FormatError):
        world.names.inode(77)  # type: ignore[arg-type]
    assert isinstance(world.do(world.names.make, ROOT_INO, b"g", 0o100644, CALLER), Inode)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_for_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """LMDB tells of a quota only in words. A save has to know it for what it is, to make room."""
    index = Index(tmp_path, BOOT)
    put(index, key(20), b"1")
    index.rotate()

    def failing(text: str) -> Callable[[Writer], None]:
        def commit(txn: Writer) -> None:
            txn.close()
            raise lmdb.Error(f"mdb_txn_commit: {text}")

        return commit

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "commit", failing(os.strerror(number)))
        with pytest.raises(CacheFullError):
            index.flush()
        patch.setattr(Writer, "commit", failing(os.strerror(errno.EIO)))
        with pytest.raises(CacheError) as other:
            index.flush()
        assert not isinstance(other.value, CacheFullError)
        # The last write that finds some room is cut short, and that is all that LMDB says of it.
        patch.setattr(wsfs.index.tables, "free_space", lambda _directory: 4096)
        with pytest.raises(CacheFullError):
            index.flush()
    index.flush()
    assert index.get(key(20)) == b"1"
    index.close()


def test_a_map_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is like a full disk: the journal keeps everything, and all goes on where there is more address space."""
    with monkeypatch.context() as patch:
        patch.setattr(wsfs.index.tables, "_MAP_SIZE", 1 << 20)
        index = Index(tmp_path, BOOT)
        for number in range(20, 1020):
            put(index, key(number), b"x" * 2000)
        index.rotate()
        for _ in range(2):
            with pytest.raises(CacheFullError):
                index.flush()
        assert index.get(key(1019)) == b"x" * 2000
        kill(index)
    index = Index(tmp_path, BOOT)
    assert index.recovered == 1000
    assert index.get(key(1019)) == b"x" * 2000
    index.close()
