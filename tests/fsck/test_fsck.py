"""Every kind of damage is found, told with the files that it hits, and repaired without making anything worse."""

from __future__ import annotations

import os
import random
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from garbage import HOUR, GcWorld
from harness import Crash, tree

from wsfs.errors import (
    CacheError,
    FencedError,
    FormatError,
    LeaseHeldError,
    NoWorkspaceError,
    TransientStoreError,
    WsfsError,
)
from wsfs.fsck import Checked, check
from wsfs.fsck_cache import check_cache
from wsfs.index.tables import Tables
from wsfs.model import HELD_MAX, MARKER_INO, MARKER_NAME, ROOT_INO, Dirent, FrameLoc, Inline, Ino, Packed, pack_key
from wsfs.repair import Repaired, repair
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.head import Holder, State, encode_head, read_head
from wsfs.repo.manifest import SegmentRef, decode_manifest, encode_manifest
from wsfs.repo.segment import Row, encode_segment
from wsfs.store.memory import _Object
from wsfs.sync import bulk
from wsfs.sync.lease import Lease, Waiting, this_process
from wsfs.sync.verify import Census, Reading, take_census

ME = Holder("repairer", 4711, "its boot", "")
FILE = stat.S_IFREG >> 12
Rows = dict[bytes, bytes | None]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[GcWorld]:
    """Two directories, files with a few blocks, a link, a hard link; saved and stopped."""
    world = GcWorld(tmp_path)
    world.start()
    rng = random.Random(2)
    sub = world.mkdir(b"sub")
    world.create(b"a", rng.randbytes(3000), sub)
    world.create(b"b", rng.randbytes(3 << 20), sub)
    world.create(b"small", b"inline")
    hard = world.create(b"hard", rng.randbytes(5000))
    world.do(world.names.link, hard, sub, b"harder")
    deep = world.mkdir(b"deep", sub)
    world.create(b"c", rng.randbytes(2000), deep)
    from harness import CALLER

    world.do(world.names.make, ROOT_INO, b"link", stat.S_IFLNK | 0o777, CALLER, target=b"small")
    world.stop()
    yield world
    world.crash()


def alter(world: GcWorld, rows: Rows) -> None:
    """A commit in which these rows are laid over the others, whatever they say."""
    store = world.observer()
    head = read_head(store).head
    manifest = decode_manifest(store.get(head.commit).data)
    data = encode_segment(sorted(rows.items()))
    key = f"meta/{head.epoch:08x}/altered-{len(manifest.deltas)}"
    store.put(key, data)
    ref = SegmentRef(key, len(data), len(rows), digest(data))
    point_at(world, replace(manifest, deltas=(*manifest.deltas, ref), seq=manifest.seq + 1, parent=manifest.key))


def point_at(world: GcWorld, manifest: object) -> None:
    store = world.observer()
    head = read_head(store).head
    encoded = encode_manifest(manifest)  # type: ignore[arg-type]
    key: str = manifest.key  # type: ignore[attr-defined]
    store.put(key, encoded)
    seq: int = manifest.seq  # type: ignore[attr-defined]
    store.put("HEAD", encode_head(replace(head, commit=key, commit_digest=digest(encoded), seq=seq)))


def row(world: GcWorld, path: str) -> tuple[int, int, bytes]:
    """Inode, directory and name of a path."""
    parent, ino, name = int(ROOT_INO), int(ROOT_INO), b""
    census = census_of(world)
    for part in path.strip("/").split("/"):
        parent, name = ino, part.encode()
        ino = next(i for i, names in census.names.items() if any((n.parent, n.name) == (parent, name) for n in names))
    return ino, parent, name


def census_of(world: GcWorld) -> Census:
    store = world.observer()
    manifest = decode_manifest(store.get(read_head(store).head.commit).data)
    return take_census(store, manifest, world.sizes(store), frames=True)


def loc(world: GcWorld, path: str, index: int = 0) -> FrameLoc:
    ino = row(world, path)[0]
    return next(use.loc for use in census_of(world).frames if (use.ino, use.block) == (ino, index))


def checked(world: GcWorld, **how: bool) -> Checked:
    return check(world.observer(), **how)


def kinds(world: GcWorld, **how: bool) -> set[str]:
    return {finding.kind for finding in checked(world, **how).findings}


def paths(found: Checked) -> set[str]:
    return {path for finding in found.findings for path in finding.paths}


def mend(world: GcWorld, **how: bool) -> Repaired:
    """Repair; afterwards all is well, and it mounts, on a new machine."""
    before = set(world.bucket.objects)
    done = repair(world.observer(), checked(world, **how), ME)
    assert before <= set(world.bucket.objects), "nothing is deleted"
    assert not checked(world, data=True).findings
    assert done.done
    return done


def contents(world: GcWorld) -> dict[str, bytes]:
    """Every file, by path, as a mount on a new machine shows it; `where` says what is a directory."""
    other = GcWorld(world.cache_path.parent / f"other{len(list(world.cache_path.parent.iterdir()))}", beside=world)
    other.cache_path.parent.mkdir()
    other.start(read_only=True)
    try:
        return {path.decode(): found[1] for path, found in tree(other).items() if not found[0].is_dir}
    finally:
        other.crash()


# --- all is well ------------------------------------------------------------------------------------------------------


def test_a_whole_workspace_is_clean(world: GcWorld) -> None:
    found = checked(world, data=True, every_commit=True)
    assert not found.findings
    assert found.frames == 6
    assert found.older == 1


def test_a_workspace_with_much_history_is_clean(world: GcWorld) -> None:
    world.start()
    rng = random.Random(1)
    for number in range(40):
        world.create(b"%d" % number, rng.randbytes(rng.randrange(2000)))
        if number > 5:
            world.unlink(b"%d" % (number - 5))
        world.commit()
    assert not checked(world, data=True, every_commit=True).findings


def test_a_mounted_workspace_can_be_checked_but_not_repaired(world: GcWorld) -> None:
    world.start()
    world.create(b"new", b"x" * 1000)
    assert not checked(world).findings
    world.commit()
    assert not checked(world, data=True).findings
    alter(world, {codec.dirent_key(ROOT_INO, b"ghost"): codec.encode_dirent(Dirent(Ino(9999), FILE, 9998))})
    with pytest.raises(LeaseHeldError, match="cannot be repaired"):
        repair(world.observer(), checked(world), ME)


def test_an_empty_prefix_is_no_workspace(world: GcWorld) -> None:
    world.bucket.objects.clear()
    with pytest.raises(NoWorkspaceError):
        checked(world)


# --- names, counts and attributes -------------------------------------------------------------------------------------


def change_inode(path: str, **how: object) -> Callable[[GcWorld], Rows]:
    def rows(world: GcWorld) -> Rows:
        ino = row(world, path)[0] if path != "/" else int(ROOT_INO)
        inode = census_of(world).inodes[ino]
        return {codec.attr_key(ino): codec.encode_inode(inode._replace(**how))}

    return rows


def drop_attributes(path: str) -> Callable[[GcWorld], Rows]:
    return lambda world: {codec.attr_key(row(world, path)[0] if path != "/" else ROOT_INO): None}


def drop_name(path: str) -> Callable[[GcWorld], Rows]:
    return lambda world: {codec.dirent_key(row(world, path)[1], row(world, path)[2]): None}


def name(parent: str, name: bytes, to: str | int, kind: int = FILE, cookie: int = 900) -> Callable[[GcWorld], Rows]:
    def rows(world: GcWorld) -> Rows:
        at = row(world, parent)[0] if parent != "/" else int(ROOT_INO)
        ino = to if isinstance(to, int) else row(world, to)[0]
        return {codec.dirent_key(at, name): codec.encode_dirent(Dirent(Ino(ino), kind, cookie))}

    return rows


def loop(world: GcWorld) -> Rows:
    """/sub lies in /sub/deep, and nowhere else."""
    sub, _, _ = row(world, "/sub")
    deep, _, _ = row(world, "/sub/deep")
    return {
        codec.dirent_key(ROOT_INO, b"sub"): None,
        codec.dirent_key(deep, b"sub"): codec.encode_dirent(Dirent(Ino(sub), stat.S_IFDIR >> 12, 901)),
    }


def resident(world: GcWorld) -> Rows:
    ino, place = row(world, "/sub/a")[0], loc(world, "/sub/a")
    return {codec.block_key(ino, 0): codec.encode_block(Packed(place, resident=True))}


DAMAGES: dict[str, tuple[Callable[[GcWorld], Rows], str, str]] = {
    "a name without a file": (name("/sub", b"ghost", 9999), "dangling", "/sub/ghost"),
    "a wrong link count": (change_inode("/hard", nlink=7), "nlink", "/hard"),
    "a wrong link count of a directory": (change_inode("/sub", nlink=9), "nlink", "/sub"),
    "a wrong number of entries": (change_inode("/sub", size=1), "entries", "/sub"),
    "a wrong parent": (change_inode("/sub/deep", parent=ROOT_INO), "parent", "/sub/deep"),
    "a file without attributes": (drop_attributes("/sub/b"), "attributes", "/sub/b"),
    "a directory without attributes": (drop_attributes("/sub"), "attributes", "/sub"),
    "a link without attributes": (drop_attributes("/link"), "attributes", "/link"),
    "no top directory": (drop_attributes("/"), "root", "/"),
    "a file without a name": (drop_name("/sub/a"), "unreachable", "(unreachable)"),
    "a directory without a name": (drop_name("/sub"), "unreachable", "(unreachable)"),
    "a directory with two names": (name("/", b"again", "/sub", stat.S_IFDIR >> 12), "directory-names", "/"),
    "directories in each other": (loop, "unreachable", "(unreachable)"),
    "a name of the wrong type": (name("/sub", b"a", "/sub/a", stat.S_IFIFO >> 12), "kind", "/sub/a"),
    "two names in one place": (
        lambda w: name("/sub", b"a", "/sub/a", cookie=902)(w) | name("/sub", b"b", "/sub/b", cookie=902)(w),
        "cookie",
        "/sub",
    ),
    "a link without a target": (lambda w: {codec.symlink_key(row(w, "/link")[0]): None}, "target", "/link"),
    "a link of the wrong length": (change_inode("/link", size=2), "target", "/link"),
    "a row that nobody can read": (lambda w: {codec.attr_key(row(w, "/sub/a")[0]): b"?"}, "row", "/sub/a"),
    "a name that nobody can read": (lambda w: {codec.dirent_key(ROOT_INO, b"odd"): b"??"}, "row", "/"),
    "a block beyond the end": (
        lambda w: {codec.block_key(row(w, "/sub/a")[0], 5): codec.encode_block(Inline(b"?"))},
        "row",
        "/sub/a",
    ),
    "a block that was never uploaded": (
        lambda w: {codec.block_key(row(w, "/sub/a")[0], 0): b"\0"},
        "data",
        "/sub/a",
    ),
    "a row that speaks of a cache": (resident, "row", "/sub/a"),
    "a file that has entries": (name("/small", b"in", "/sub/a"), "entries", "/small"),
    "the marker's name is gone": (lambda _w: {codec.dirent_key(ROOT_INO, MARKER_NAME): None}, "marker", ""),
    "the marker is gone": (lambda _w: {codec.attr_key(MARKER_INO): None}, "marker", ""),
    "the marker has other bytes": (
        lambda _w: {codec.block_key(MARKER_INO, 0): codec.encode_block(Inline(b"other"))},
        "marker",
        "",
    ),
    "the marker's name leads elsewhere": (name("/", MARKER_NAME, "/small"), "marker", ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_repaired(world: GcWorld, damage: str) -> None:
    rows, kind, path = DAMAGES[damage]
    before = contents(world)
    alter(world, rows(world))
    found = checked(world)
    assert kind in {finding.kind for finding in found.findings}
    assert any(one.startswith(path) for one in paths(found)), paths(found)
    for finding in found.findings:
        assert finding.remedy
    mend(world)
    after = contents(world)
    marker = "/" + MARKER_NAME.decode()
    assert after[marker] == before[marker]
    # Whatever was there is there still, maybe elsewhere.
    kept = sorted(data.rstrip(b"\0") for data in after.values())
    for name_before, data in before.items():
        if damage == "a block that was never uploaded" and name_before == "/sub/a":
            assert after["/sub/a.damaged"] == bytes(len(data))
        elif "a link without a target" not in damage:
            assert data.rstrip(b"\0") in kept, name_before
    world.start()
    world.create(b"afterwards", b"x" * 1000)
    world.commit()
    assert not checked(world, data=True).findings


def test_a_file_that_has_lost_its_newest_name_is_not_damaged(world: GcWorld) -> None:
    """Its inode then leads to a directory where it has no name: for a file that is a hint."""
    world.start()
    sub = world.do(world.names.lookup, ROOT_INO, b"sub").ino
    world.do(world.names.unlink, sub, b"harder")
    world.commit()
    world.stop()
    assert not checked(world, data=True).findings


def test_wrong_counters(world: GcWorld) -> None:
    store = world.observer()
    manifest = decode_manifest(store.get(read_head(store).head.commit).data)
    point_at(world, replace(manifest, files=99, next_id=5, nonce="0" * 16))
    assert kinds(world) == {"counters"}
    mend(world)
    assert decode_manifest(store.get(read_head(store).head.commit).data).next_id >= manifest.next_id


def test_head_counts_wrong(world: GcWorld) -> None:
    world.observer().put("HEAD", encode_head(replace(world.head(), files=99)))
    assert kinds(world) == {"counters"}
    mend(world)


def test_a_head_of_an_epoch_before_its_commit(world: GcWorld) -> None:
    world.observer().put("HEAD", encode_head(replace(world.head(), epoch=0)))
    assert kinds(world) == {"epoch", "head"}
    mend(world)


def test_a_head_of_another_workspace(world: GcWorld) -> None:
    """Which of both is right nobody can know."""
    world.observer().put("HEAD", encode_head(replace(world.head(), workspace="f" * 32)))
    assert "foreign" in kinds(world)
    before = dict(world.bucket.objects)
    with pytest.raises(FormatError, match="different workspaces"):
        repair(world.observer(), checked(world), ME)
    assert world.bucket.objects == before


def test_many_damages_at_once(world: GcWorld) -> None:
    rows: Rows = {}
    for damage in ("a directory without a name", "a wrong link count", "the marker is gone", "a name without a file"):
        rows |= DAMAGES[damage][0](world)
    alter(world, rows)
    mend(world)


@pytest.mark.parametrize("seed", range(int(os.environ.get("WSFS_TEST_FSCK_SEEDS", "25"))))
def test_random_damage_never_ends_in_a_worse_state(world: GcWorld, seed: int) -> None:
    """Rows are dropped, swapped and bent at random."""
    rng = random.Random(seed)
    census = census_of(world)
    keys = [codec.attr_key(ino) for ino in census.inodes]
    keys += [codec.dirent_key(n.parent, n.name) for names in census.names.values() for n in names]
    keys += [codec.block_key(use.ino, use.block) for use in census.frames]
    inos = list(census.inodes)
    rows: Rows = {}
    for key in rng.sample(keys, rng.randrange(1, 8)):
        table = codec.table_of(key)
        choice = rng.random()
        if choice < 0.4:
            rows[key] = None
        elif choice < 0.5:
            rows[key] = rng.randbytes(rng.randrange(60))
        elif table == codec.DIRENT:
            rows[key] = codec.encode_dirent(Dirent(Ino(rng.choice(inos)), rng.randrange(16), rng.randrange(40)))
        elif table == codec.ATTR:
            inode = census.inodes[codec.ino_of(key)]
            mode = rng.choice((inode.mode, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, 0))
            size, parent = rng.choice((0, inode.size, 1 << 40)), Ino(rng.choice(inos))
            rows[key] = codec.encode_inode(inode._replace(mode=mode, size=size, parent=parent, nlink=rng.randrange(4)))
        else:
            place = rng.choice(census.frames).loc
            bent = place._replace(offset=rng.randrange(1 << 25), length=rng.randrange(1 << 21))
            rows[key] = codec.encode_block(Packed(bent))
    alter(world, rows)
    found = checked(world, data=True)
    if found.findings:
        mend(world, data=True)
    contents(world)


# --- data -------------------------------------------------------------------------------------------------------------


def test_a_lost_pack_names_every_file_that_it_hits(world: GcWorld) -> None:
    place = loc(world, "/sub/a")
    before = contents(world)
    key = pack_key(place.epoch, place.pack)
    in_it = {"/sub/a", "/sub/b", "/hard", "/sub/deep/c"}
    del world.bucket.objects[key]
    found = checked(world)
    (finding,) = found.findings
    assert finding.kind == "data"
    assert key in finding.what
    # One of the two names of the file with two.
    assert {path.replace("/sub/harder", "/hard") for path in finding.paths} == in_it
    done = mend(world)
    after = contents(world)
    for path in ("/sub/a", "/sub/b", "/hard", "/sub/harder", "/sub/deep/c"):
        assert path not in after
        assert after[path + ".damaged"] == bytes(len(before[path]))
        assert any(path in one for one in done.done)
    assert after["/small"] == before["/small"]


def test_one_damaged_frame_is_found_by_reading_the_data_and_only_its_file_is_renamed(world: GcWorld) -> None:
    before = contents(world)
    place = loc(world, "/sub/b", 1)
    spoil(world, place)
    assert not kinds(world)
    found = checked(world, data=True)
    assert paths(found) == {"/sub/b"}
    mend(world, data=True)
    after = contents(world)
    lost = before["/sub/b"]
    assert after["/sub/b.damaged"] == lost[: 1 << 20] + bytes(1 << 20) + lost[2 << 20 :]
    assert {path: data for path, data in before.items() if path != "/sub/b"} == {
        path: data for path, data in after.items() if path != "/sub/b.damaged"
    }


def spoil(world: GcWorld, place: FrameLoc) -> None:
    key = pack_key(place.epoch, place.pack)
    found = world.bucket.objects[key]
    data = bytearray(found.data)
    data[place.offset + place.stored_length // 2] ^= 0x10
    world.bucket.objects[key] = _Object(bytes(data), "other", found.written)


def test_a_short_pack(world: GcWorld) -> None:
    place = loc(world, "/sub/b", 2)
    key = pack_key(place.epoch, place.pack)
    found = world.bucket.objects[key]
    world.bucket.objects[key] = _Object(found.data[: place.offset + 100], "other", found.written)
    assert "/sub/b" in paths(checked(world))
    mend(world)


def test_a_sample_finds_what_it_reads(world: GcWorld) -> None:
    spoil(world, loc(world, "/sub/a"))
    assert check(world.observer(), sample=1.0).findings
    some = [bool(check(world.observer(), sample=0.3).findings) for _ in range(30)]
    assert any(some)
    assert not all(some)


def test_the_new_name_does_not_collide(world: GcWorld) -> None:
    world.start()
    world.create(b"hard.damaged", b"x")
    world.stop()
    spoil(world, loc(world, "/hard"))
    mend(world, data=True)
    after = contents(world)
    assert after["/hard.damaged"] == b"x"
    assert "/hard.damaged.2" in after
    assert "/sub/harder.damaged" in after


def test_a_long_inline_block_is_no_damage(world: GcWorld) -> None:
    """Writers put at most 512 bytes into a row, and readers take any."""
    ino = row(world, "/sub/a")[0]
    alter(world, {codec.block_key(ino, 0): codec.encode_block(Inline(b"i" * 3000))})
    assert not checked(world, data=True).findings
    assert contents(world)["/sub/a"] == b"i" * 3000


def test_a_damaged_table_of_contents_is_noted_and_hits_no_file(world: GcWorld) -> None:
    place = loc(world, "/sub/b")
    key = pack_key(place.epoch, place.pack)
    assert not checked(world, data=True).notes
    for spoiled in (-1, -30, -45, 0):
        data = bytearray((before := world.bucket.objects[key]).data)
        data[spoiled] ^= 1
        world.bucket.objects[key] = _Object(bytes(data), "other", before.written)
        found = checked(world, data=True)
        assert not found.findings
        (note,) = found.notes
        assert key in note
        world.bucket.objects[key] = before


def test_an_old_head_that_has_come_back(world: GcWorld) -> None:
    """A mount on it would use the names of objects again that are there. The repair loses neither of both commits."""
    before, then = contents(world), world.bucket.objects["HEAD"]
    world.start()
    world.create(b"newer", b"n" * 5000)
    world.stop()
    newer = world.head()
    world.bucket.objects["HEAD"] = then
    assert kinds(world) == {"epoch"}
    done = mend(world)
    assert any(f"kept commit #{newer.seq}" in one for one in done.done)
    assert world.head().epoch > newer.epoch
    assert contents(world) == before
    assert newer.commit in world.bucket.objects
    assert newer.commit.replace("commits/", "kept/") in world.bucket.objects


# --- metadata objects -------------------------------------------------------------------------------------------------


def test_a_lost_delta_goes_back_to_the_commit_before(world: GcWorld) -> None:
    world.start()
    world.create(b"kept", b"k" * 1000)
    world.commit()
    before = contents(world)
    world.create(b"newest", b"n" * 1000)
    world.stop()
    store = world.observer()
    manifest = decode_manifest(store.get(read_head(store).head.commit).data)
    del world.bucket.objects[manifest.deltas[-1].key]
    assert "segment" in kinds(world)
    done = mend(world)
    assert "went back to commit" in done.done[0]
    assert done.kept == "kept/" + manifest.key.removeprefix("commits/")
    assert contents(world) == before


def test_a_lost_partition_that_every_commit_needs_leaves_what_can_be_reached(world: GcWorld) -> None:
    store = world.observer()
    manifest = decode_manifest(store.get(read_head(store).head.commit).data)
    del world.bucket.objects[manifest.base[0].key]
    assert "segment" in kinds(world)
    before = {b"inline"}
    mend(world)
    after = contents(world)
    assert before <= set(after.values())
    assert "/" + MARKER_NAME.decode() in after


def test_a_damaged_segment_counts_as_lost(world: GcWorld) -> None:
    store = world.observer()
    manifest = decode_manifest(store.get(read_head(store).head.commit).data)
    found = world.bucket.objects[manifest.deltas[-1].key]
    world.bucket.objects[manifest.deltas[-1].key] = _Object(found.data[:-1] + b"?", "other", found.written)
    assert "segment" in kinds(world)
    mend(world)


SEGMENTS: dict[str, Callable[[list[Row]], list[tuple[list[Row], bytes, int]]]] = {
    "of another number of rows": lambda rows: [(rows, b"", len(rows) + 1)],
    "with a deletion": lambda rows: [([*rows[:-1], (rows[-1][0], None)], b"", len(rows))],
    "with rows of the next one": lambda rows: [(rows, b"", len(rows)), ([], rows[1][0], 0)],
    "with rows of the one before": lambda rows: [(rows[:1], b"", 1), (rows[1:], rows[2][0], len(rows) - 1)],
}


@pytest.mark.parametrize("damage", SEGMENTS)
def test_a_base_partition_that_cannot_be(world: GcWorld, damage: str) -> None:
    before = contents(world)
    store = world.observer()
    manifest = decode_manifest(store.get(world.head().commit).data)
    rows: list[Row] = list(Reading(store, manifest).rows())
    refs = []
    for number, (content, start, count) in enumerate(SEGMENTS[damage](rows)):
        data = encode_segment(content)
        key = f"meta/{manifest.epoch:08x}/base-{number}"
        store.put(key, data)
        refs.append(SegmentRef(key, len(data), count, digest(data), start))
    seq = manifest.seq + 1
    point_at(world, replace(manifest, base=tuple(refs), deltas=(), seq=seq, parent=manifest.key))
    assert "segment" in kinds(world)
    mend(world)
    assert contents(world) == before


def test_a_lost_manifest_goes_back_to_the_commit_before(world: GcWorld) -> None:
    world.start()
    world.create(b"kept", b"k" * 1000)
    world.commit()
    before = contents(world)
    world.create(b"newest", b"n" * 1000)
    world.stop()
    del world.bucket.objects[world.head().commit]
    assert kinds(world) == {"manifest"}
    mend(world)
    assert contents(world) == before


@pytest.mark.parametrize("how", ["lost", "damaged"])
def test_a_lost_head_is_made_anew(world: GcWorld, how: str) -> None:
    before = contents(world)
    epoch = world.head().epoch
    if how == "lost":
        del world.bucket.objects["HEAD"]
    else:
        world.observer().put("HEAD", b"{")
    assert kinds(world) == {"head"}
    mend(world)
    assert world.head().epoch > epoch + 1000, "no name may be used again"
    assert contents(world) == before


def test_without_format_nothing_is_repaired(world: GcWorld) -> None:
    del world.bucket.objects["FORMAT"]
    assert "format" in kinds(world)
    before = dict(world.bucket.objects)
    with pytest.raises(FormatError, match="FORMAT"):
        repair(world.observer(), checked(world), ME)
    assert world.bucket.objects == before


def test_a_pinned_damaged_commit_does_not_stop_the_collection(world: GcWorld) -> None:
    test_a_lost_delta_goes_back_to_the_commit_before(world)
    world.start()
    world.settle()
    assert [key for key in world.bucket.objects if key.startswith("kept/")]
    assert not checked(world, data=True).findings
    world.pass_time(31 * 24 * HOUR)
    world.settle()
    assert not [key for key in world.bucket.objects if key.startswith("kept/")]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ({"state": State.SYNC_FAILED, "reason": "time is up; what is missing is on a", "holder": None}, "time is up; "),
        (
            {"holder": Holder("a", 7, "its boot", "noon", "cache"), "reason": "not told"},
            "did not end in order: .* on a ",
        ),
    ],
)
def test_a_repair_promises_nothing_of_what_a_cache_has_kept(world: GcWorld, before: dict[str, Any], told: str) -> None:
    alter(world, DAMAGES["a wrong link count"][0](world))
    store = world.observer()
    store.put("HEAD", encode_head(replace(world.head(), **before)))
    world.pass_time(HOUR)
    for _ in range(2):
        assert repair(store, check(store), ME).done
        assert not kinds(world)
        assert world.head().state is State.SYNC_FAILED
        assert world.head().reason.count("changed since") == 1
        alter(world, DAMAGES["a wrong link count"][0](world))
    assert re.search(f"{told}.*; the workspace was changed since, .*'wsfs export --unsaved'", world.head().reason)


def test_the_commit_before_a_repair_keeps_its_data(world: GcWorld) -> None:
    """Somebody who finds a copy of the lost pack later can still have everything."""
    place = loc(world, "/sub/a")
    other = world.bucket.objects.pop(key := pack_key(place.epoch, place.pack))
    mend(world)
    world.bucket.objects[key] = other
    world.start()
    world.settle()
    assert key in world.bucket.objects


# --- a repair that does not come to its end ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["before", "after", "applied, but answered with an error"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("head", ["there", "lost"])
def test_a_repair_that_dies_can_be_repeated(world: GcWorld, head: str, nth: int, how: str) -> None:
    alter(world, DAMAGES["a directory without a name"][0](world) | DAMAGES["a wrong link count"][0](world))
    if head == "lost":
        del world.bucket.objects["HEAD"]
    before = {key: found for key, found in world.bucket.objects.items() if key != "HEAD"}
    store = world.observer()
    count = 0

    def fail(method: str, _key: str) -> None:
        nonlocal count
        count += method == "put"
        if method == "put" and count == nth:
            raise TransientStoreError("lost") if how.startswith("applied") else Crash

    if how == "before":
        store.fault = fail
    else:
        store.lost = fail
    found = check(store)
    with suppress(Crash, WsfsError):
        repair(store, found, ME)
    assert before.items() <= world.bucket.objects.items(), "what was there is there"
    again = checked(world)
    if again.findings:
        repair(world.observer(), again, ME)
    assert not checked(world, data=True).findings
    contents(world)


def test_a_takeover_during_a_repair_wins(world: GcWorld) -> None:
    alter(world, DAMAGES["a wrong link count"][0](world))
    store = world.observer()
    done = False

    def take_over(method: str, key: str) -> None:
        nonlocal done
        if method == "put" and key.startswith("commits/") and not done:
            done = True
            other = world.observer()
            Lease.take(other, read_head(other), this_process(), takeover=True)

    store.fault = take_over
    with pytest.raises(FencedError, match="another mount took the workspace over before this was done"):
        repair(store, check(store), ME)
    world.start()
    world.create(b"theirs", b"x" * 1000)
    world.commit()
    assert kinds(world) == {"nlink"}


def test_a_long_repair_keeps_the_workspace(world: GcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads everything: a mount that comes after more than two minutes of that waits, as for a save."""
    alter(world, DAMAGES["a wrong link count"][0](world))
    monkeypatch.setattr(bulk, "RENEW_SECONDS", 0.01)
    store = world.observer()
    waiting: list[Waiting | None] = []

    def slow(method: str, key: str) -> None:
        if method == "put" and key.startswith("meta/"):
            world.pass_time(200)
            waiting.append(world.wait_for_renewal())

    store.fault = slow
    assert repair(store, check(store), ME).done
    assert [one is not None and one.worth for one in waiting] == [True]
    assert world.head().state is State.STOPPED
    assert not kinds(world)


# --- the cache --------------------------------------------------------------------------------------------------------


def cache_of(world: GcWorld) -> Checked:
    """What is found in the cache, without what is found in the store."""
    found = checked(world)
    found.findings.clear()
    check_cache(world.cache_path, found, world.observer())
    return found


def test_a_cache_tells_what_it_holds(world: GcWorld) -> None:
    assert cache_of(world).notes == [f"The cache in {world.cache_path} holds nothing that is not in the store."]
    world.start()
    ino = world.create(b"unsaved", b"x" * (HELD_MAX + 1))
    with pytest.raises(LeaseHeldError):
        cache_of(world)
    world.flush()
    world.crash()
    found = cache_of(world)
    (note,) = found.notes
    assert "not in the store" in note
    assert not found.findings
    (world.cache_path / "local" / "overlay" / f"{ino & 0xFF:02x}" / f"{ino:x}").unlink()
    (finding,) = cache_of(world).findings
    assert finding.kind == "cache"


def test_damage_in_a_cache_is_found(world: GcWorld) -> None:
    """The rows of a cache are judged as those of a commit are; both the rows that are there and those that are not."""
    # These are damage in a bucket only.
    local = {"a block that was never uploaded", "a row that speaks of a cache"}

    def put(rows: Rows) -> Rows:
        """Write rows into the cache; what was there."""
        tables = Tables(world.cache_path / "local" / "index")
        with tables.writer() as txn:
            before = {key: txn.get(key) for key in rows}
            for key, value in rows.items():
                txn.put(b"rows", key, value or b"")
        tables.close()
        return before

    for damage in DAMAGES.keys() - local:
        before = put(DAMAGES[damage][0](world))
        found = cache_of(world)
        assert {finding.kind for finding in found.findings} == {"cache"}, damage
        for finding in found.findings:
            assert str(world.cache_path) in finding.what
            assert "wsfs export" in finding.remedy
        put(before)
    assert not cache_of(world).findings
    assert not kinds(world), "the store was whole all the time"


def test_a_pack_that_a_cache_leads_to_and_the_store_has_lost(world: GcWorld) -> None:
    place = loc(world, "/sub/a")
    del world.bucket.objects[pack_key(place.epoch, place.pack)]
    found = cache_of(world)
    assert {finding.kind for finding in found.findings} == {"cache"}
    assert "/sub/a" in paths(found)


def test_a_cache_that_cannot_be_opened(world: GcWorld) -> None:
    (world.cache_path / "local" / "index" / "data.mdb").write_bytes(b"?" * 8192)
    with pytest.raises(CacheError, match="cannot be opened"):
        cache_of(world)
