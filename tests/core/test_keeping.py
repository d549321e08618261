"""What `.wsfsignore` keeps on this machine: it is used like everything else, and no commit ever has it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import trio
from harness import CALLER, Crash, World, check_counters, saved_tree, tree

import wsfs.sync.start
import wsfs.tree.ignore
import wsfs.tree.keeping
from wsfs.data.files import HELD_MAX
from wsfs.errors import StoreError
from wsfs.fsck import check
from wsfs.index.quota import Quota
from wsfs.model import ROOT_INO, Ino
from wsfs.repo import codec
from wsfs.sync.commit import STEPS
from wsfs.tree.namespace import RENAME_EXCHANGE, Changes

BIG = os.urandom(3 << 20)
SMALL = os.urandom(5000)


def ignoring(world: World, *patterns: str) -> None:
    """Write `.wsfsignore`."""
    text = "".join(f"{pattern}\n" for pattern in patterns).encode()
    names = [name for name, _, _ in world.entries()]
    ino = world.do(world.names.lookup, ROOT_INO, b".wsfsignore").ino if b".wsfsignore" in names else None
    if ino is None:
        ino = world.create(b".wsfsignore")
    world.truncate(ino, 0)
    world.write(ino, 0, text)
    world.do(world.names.setattr, ino, Changes(mtime_ns=world.now), CALLER)


def rename(world: World, old: bytes, new: bytes, parent: Ino = ROOT_INO, to: Ino = ROOT_INO, flags: int = 0) -> None:
    gone = world.do(world.names.rename, parent, old, to, new, flags)
    if gone is not None:
        world.names.forgotten(gone)


def crosses(world: World, old: bytes, new: bytes, parent: Ino = ROOT_INO, to: Ino = ROOT_INO, flags: int = 0) -> bool:
    """Whether a rename gets EXDEV, and has changed nothing then."""
    before = tree(world)
    got = world.errno(world.names.rename, parent, old, to, new, flags)
    assert got in (None, errno.EXDEV)
    assert got is None or tree(world) == before
    return got == errno.EXDEV


def saved(world: World, tmp_path: Path) -> set[bytes]:
    """Commit; what another machine finds then, but for what is always there. It must be whole, and nothing in this
    cache may count as unsaved."""
    world.commit()
    assert not world.index.is_dirty
    return in_bucket(world, tmp_path)


def in_bucket(world: World, tmp_path: Path) -> set[bytes]:
    found = check(world.observer(), data=True, every_commit=True)
    assert not found.findings
    kept = world.index.kept
    here = tree(world)
    check_counters(world, here)
    names = {path for path in here if here[path][0].ino not in kept}
    there = saved_tree(world, tmp_path / "elsewhere")
    if not world.index.is_dirty:
        assert names == set(there)
        for path, (inode, content, xattrs) in there.items():
            mine = here[path]
            if inode.is_dir:
                entries = kept.names.get(inode.ino, {})
                assert (inode.size, inode.nlink) == (
                    mine[0].size - len(entries),
                    mine[0].nlink - sum(entries.values()),
                )
            else:
                assert (inode, content, xattrs) == mine
    return {path.lstrip(b"/") for path in there} - {b"", b".workspace.initialized", b".wsfsignore"}


def as_after_a_scan(world: World) -> None:
    """What is remembered is what the tables say."""
    world.flush()
    kept = world.index.kept
    before = (dict(kept.sizes), {ino: dict(names) for ino, names in kept.names.items()}, kept.bytes)
    reader = world.index.tables.reader()
    kept.scan(reader)
    reader.close()
    assert before == (kept.sizes, kept.names, kept.bytes)
    assert kept.bytes == sum(kept.sizes.values())
    leads_to_no_pack(world)


def leads_to_no_pack(world: World) -> None:
    """What stays here has all of its data here: a pack may be deleted when no commit leads to it."""
    for ino in world.index.kept.sizes:
        for _, row in world.do(world.index.scan, ino, codec.BLOCK):
            assert codec.place_of(row) is None


# --- what is made at an ignored path ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [False, True])
def test_what_is_made_at_an_ignored_path_is_used_like_all_and_never_saved(
    world: World, tmp_path: Path, fold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fold:
        monkeypatch.setattr(wsfs.sync.commit, "MAX_DELTAS", 0)
    ignoring(world, "node_modules/", "*.log")
    modules = world.mkdir(b"node_modules")
    package = world.mkdir(b"package", modules)
    world.create(b"index.js", SMALL, package)
    world.create(b"big.bin", BIG, package)
    sources = world.mkdir(b"src")
    world.create(b"main.py", SMALL, sources)
    world.create(b"debug.log", b"x" * 100, sources)
    link = world.do(world.names.make, sources, b"x.log", stat.S_IFLNK | 0o777, CALLER, target=b"there").ino
    assert world.index.kept.files == 6
    assert world.index.kept.bytes == len(SMALL) + len(BIG) + 100 + 5
    assert saved(world, tmp_path) == {b"src", b"src/main.py"}
    as_after_a_scan(world)
    assert world.content(b"big.bin", package) == BIG
    assert world.do(world.names.readlink, link) == b"there"
    manifest_files = world.head().files
    assert manifest_files == world.index.shared_files == len(tree(world)) - 6


def test_a_change_of_what_stays_here_needs_no_commit(world: World, tmp_path: Path) -> None:
    ignoring(world, "/cache/", "*.tmp")
    world.mkdir(b"other")
    world.commit()
    seq = world.head().seq
    cache = world.mkdir(b"cache")
    ino = world.create(b"a", BIG, cache)
    world.create(b"b.tmp", SMALL)
    world.do(world.names.xattrs.set, ino, b"user.a", b"1")
    world.do(world.names.setattr, ino, Changes(mode=0o600), CALLER)
    world.write(ino, 100, b"changed")
    world.truncate(ino, 2 << 20)
    world.do(world.names.link, ino, cache, b"second")
    rename(world, b"second", b"third", cache, cache)
    rename(world, b"b.tmp", b"c.tmp")
    rename(world, b"c.tmp", b"inside", ROOT_INO, cache)
    rename(world, b"inside", b"d.tmp", cache)
    world.unlink(b"d.tmp")
    assert not world.index.is_dirty
    assert not world.index.dirty_inodes
    assert world.files.unsaved_bytes() == 0
    assert world.commit() is None
    assert world.head().seq == seq
    world.flush()
    assert not world.index.is_dirty
    assert world.commit() is None
    as_after_a_scan(world)
    assert in_bucket(world, tmp_path) == {b"other"}


def test_what_is_thrown_away_leaves_nothing(world: World, tmp_path: Path) -> None:
    ignoring(world, "cache")
    world.commit()
    cache = world.mkdir(b"cache")
    world.create(b"a", BIG, cache)
    world.flush()
    world.unlink(b"a", cache)
    world.do(world.names.rmdir, ROOT_INO, b"cache")
    assert not world.index.kept.files
    assert not world.index.kept.names
    assert not world.index.is_dirty
    as_after_a_scan(world)
    world.restart()
    assert not world.index.kept.files
    assert saved(world, tmp_path) == set()


def test_an_open_file_without_a_name(world: World) -> None:
    ignoring(world, "cache/")
    cache = world.mkdir(b"cache")
    ino = world.create(b"a", SMALL, cache)
    world.do(world.names.unlink, cache, b"a")
    world.write(ino, 0, b"still there")
    world.do(world.names.setattr, ino, Changes(mode=0o600), CALLER)
    assert world.read(ino)[:11] == b"still there"
    assert world.index.kept.files == 1
    world.names.forgotten(ino)


@pytest.mark.parametrize("flush", [False, True])
def test_it_survives_a_kill_and_a_stop(world: World, tmp_path: Path, flush: bool) -> None:
    ignoring(world, "cache/", "*.log")
    world.commit()
    cache = world.mkdir(b"cache")
    world.create(b"a", BIG, cache)
    world.create(b"b", SMALL, cache)
    world.create(b"c.log", SMALL)
    before = tree(world)
    kept = dict(world.index.kept.sizes)
    if flush:
        world.flush()
    world.restart()
    assert tree(world) == before
    assert world.index.kept.sizes == kept
    assert not world.index.is_dirty
    world.stop()
    world.start()
    assert tree(world) == before
    assert world.index.kept.sizes == kept
    world.restart_cold()
    assert {b"", b"/.wsfsignore", b"/.workspace.initialized"} == set(tree(world))


def test_a_power_loss_keeps_what_was_synced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ignoring(world, "cache/")
    world.commit()
    cache = world.mkdir(b"cache")
    ino = world.create(b"a", BIG, cache)
    world.fsync(ino)
    before = tree(world)
    world.crash()
    monkeypatch.setattr(wsfs.sync.start, "boot_id", lambda: "00000000-0000-0000-0000-000000000001")
    world.start()
    assert tree(world) == before


@pytest.mark.parametrize("flush", [False, True])
def test_what_begins_to_stay_here_and_goes_at_once(world: World, tmp_path: Path, flush: bool) -> None:
    """The bucket loses what it had of it, and never hears of what it had not, whatever the index knew meanwhile."""
    ignoring(world, "*.tmp")
    world.create(b"saved", SMALL)
    world.create(b"kept.tmp", SMALL)
    world.commit()
    world.create(b"new", SMALL)
    for name in (b"saved", b"new", b"kept.tmp"):
        rename(world, name, b"other.tmp")
        if flush:
            world.flush()
        rename(world, b"other.tmp", b"back")
        rename(world, b"back", b"again.tmp")
        world.unlink(b"again.tmp")
    assert saved(world, tmp_path) == set()


def test_the_cache_limit_never_evicts_it(world: World) -> None:
    ignoring(world, "cache/")
    cache = world.mkdir(b"cache")
    ino = world.create(b"a", BIG, cache)
    clean = world.create(b"clean", BIG)
    world.commit()
    assert world.evictor.used is None, "nobody has looked yet"
    assert trio.run(world.evictor.shrink, 0) > 0
    assert not world.overlay.has(clean)
    assert (world.evictor.used or 0) >= len(BIG)
    assert world.read(ino) == BIG


def test_a_commit_does_not_look_at_it_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ignoring(world, "cache/")
    cache = world.mkdir(b"cache")
    for number in range(500):
        world.create(b"%d" % number, b"x", cache)
    world.commit()
    looked: list[object] = []
    keeping = world.names._keeping
    original = keeping._reconsider
    monkeypatch.setattr(keeping, "_reconsider", lambda *where: (looked.append(where), original(*where)))
    for number in range(5):
        world.create(b"file%d" % number)
        saved = world.commit()
        assert saved is not None
        assert saved.files == 2
    assert not looked


# --- what was saved before --------------------------------------------------------------------------------------------


def test_what_was_saved_before_goes_on_being_saved(world: World, tmp_path: Path) -> None:
    data = world.mkdir(b"data")
    ino = world.create(b"old", SMALL, data)
    world.commit()
    ignoring(world, "data/")
    world.write(ino, 0, b"changed")
    new = world.create(b"new", SMALL, data)
    assert new in world.index.kept
    assert saved(world, tmp_path) == {b"data", b"data/old"}
    # A program that writes a new file and renames it over the old one changes that one.
    rename(world, b"new", b"old", data, data)
    assert new not in world.index.kept
    assert saved(world, tmp_path) == {b"data", b"data/old"}
    # Deleted and made anew it is a new file.
    world.unlink(b"old", data)
    again = world.create(b"old", SMALL, data)
    assert again in world.index.kept
    assert saved(world, tmp_path) == {b"data"}
    as_after_a_scan(world)
    world.restart()
    assert world.content(b"old", data) == SMALL


def test_a_pattern_that_goes_lets_go_of_what_it_kept(world: World, tmp_path: Path) -> None:
    ignoring(world, "build/", "*.o")
    build = world.mkdir(b"build")
    lib = world.mkdir(b"lib", build)
    big = world.create(b"big", BIG, lib)
    world.create(b"x.o", SMALL, lib)
    world.do(world.names.xattrs.set, big, b"user.a", b"1")
    world.do(world.names.make, lib, b"link", stat.S_IFLNK | 0o777, CALLER, target=b"big")
    assert saved(world, tmp_path) == set()
    ignoring(world, "*.o")
    before = tree(world)
    world.commit()
    assert {path: one[0].ino for path, one in tree(world).items()} == {path: one[0].ino for path, one in before.items()}
    assert saved(world, tmp_path) == {b"build", b"build/lib", b"build/lib/big", b"build/lib/link"}
    world.unlink(b".wsfsignore")
    assert saved(world, tmp_path) == {b"build", b"build/lib", b"build/lib/big", b"build/lib/link", b"build/lib/x.o"}
    assert not world.index.kept
    as_after_a_scan(world)


def test_a_pattern_that_went_while_nothing_was_saved_is_noticed_by_the_next_mount(world: World, tmp_path: Path) -> None:
    ignoring(world, "build/")
    build = world.mkdir(b"build")
    world.create(b"a", SMALL, build)
    world.commit()
    ignoring(world, "nothing")
    world.restart()
    assert saved(world, tmp_path) == {b"build", b"build/a"}


def test_a_file_with_several_names_stays_while_one_is_ignored(world: World, tmp_path: Path) -> None:
    ignoring(world, "*.a", "*.b")
    ino = world.create(b"x.a", SMALL)
    world.do(world.names.link, ino, ROOT_INO, b"x.b")
    world.commit()
    ignoring(world, "*.b")
    assert saved(world, tmp_path) == set()
    world.unlink(b"x.b")
    world.create(b"other")
    assert saved(world, tmp_path) == {b"other", b"x.a"}
    ignoring(world, "*.a", "*.b")
    second = world.create(b"y.a", SMALL)
    world.do(world.names.link, second, ROOT_INO, b"y.b")
    world.commit()
    ignoring(world)
    assert saved(world, tmp_path) == {b"other", b"x.a", b"y.a", b"y.b"}


# --- across -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_renamed_to_where_nothing_is_ignored_is_saved(world: World, tmp_path: Path) -> None:
    ignoring(world, "*.tmp", "cache/")
    for number, content in enumerate((b"", SMALL, BIG)):
        world.create(b"x.tmp", content)
        rename(world, b"x.tmp", b"file%d" % number)
        cache = world.do(world.names.lookup, ROOT_INO, b"cache").ino if number else world.mkdir(b"cache")
        world.create(b"y", content, cache)
        rename(world, b"y", b"out%d" % number, cache)
    names = {b"%s%d" % (kind, number) for kind in (b"file", b"out") for number in range(3)}
    assert saved(world, tmp_path) == names
    # Over a saved file.
    world.create(b"x.tmp", b"newer")
    rename(world, b"x.tmp", b"file1")
    assert saved(world, tmp_path) == names
    world.restart_cold()
    assert world.content(b"file1") == b"newer"
    assert world.content(b"file2") == BIG


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("content", [b"", SMALL, BIG], ids=["empty", "small", "big"])
def test_a_file_that_is_renamed_to_an_ignored_name_leaves_the_bucket(
    world: World, tmp_path: Path, committed: bool, content: bytes
) -> None:
    ignoring(world, "*.bak")
    ino = world.create(b"file", content)
    if committed:
        world.commit()
    rename(world, b"file", b"file.bak")
    world.create(b"file", b"new")
    assert saved(world, tmp_path) == {b"file"}
    as_after_a_scan(world)
    assert world.read(ino) == content
    # The packs that it was in may be deleted now: nothing here leads to them.
    world.restart()
    for path in [key for key in world.bucket.objects if key.startswith("packs/")]:
        del world.bucket.objects[path]
    for path in (world.cache_path / "packs").rglob("*"):
        if path.is_file():
            path.unlink()
    assert world.content(b"file.bak") == content


def test_what_is_only_in_the_store_is_fetched_or_copied(world: World, tmp_path: Path) -> None:
    ignoring(world, "*.bak")
    world.create(b"small", SMALL)
    world.create(b"middle", os.urandom(HELD_MAX + 1000))
    big = os.urandom((8 << 20) + 1000)
    world.create(b"large", big)
    world.commit()
    world.restart_cold()
    middle = world.content(b"middle")
    rename(world, b"small", b"small.bak")
    rename(world, b"middle", b"middle.bak")
    assert crosses(world, b"large", b"large.bak")
    assert saved(world, tmp_path) == {b"large"}
    world.restart()
    assert world.content(b"small.bak") == SMALL
    assert world.content(b"middle.bak") == middle
    assert world.content(b"large") == big


def test_a_directory_is_renamed_across(world: World, tmp_path: Path) -> None:
    ignoring(world, "checkpoint-*")
    made = world.mkdir(b"tmp-checkpoint")
    deep = world.mkdir(b"deep", made)
    world.create(b"model", BIG, deep)
    world.create(b"state", SMALL, made)
    world.commit()
    world.create(b"fresh", SMALL, made)
    rename(world, b"tmp-checkpoint", b"checkpoint-1")
    assert saved(world, tmp_path) == set()
    as_after_a_scan(world)
    before = tree(world)
    world.restart()
    assert tree(world) == before
    rename(world, b"checkpoint-1", b"best")
    assert world.index.is_dirty
    names = {b"best", b"best/deep", b"best/deep/model", b"best/fresh", b"best/state"}
    assert saved(world, tmp_path) == names
    as_after_a_scan(world)
    assert not world.index.kept


def test_a_large_directory_is_not_renamed_to_where_it_would_stay(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsfs.tree.keeping, "MOVED_MAX", 4)
    ignoring(world, "cache/")
    big = world.mkdir(b"big")
    for number in range(3):
        world.create(b"%d" % number, SMALL, big)
    cache = world.mkdir(b"cache")
    rename(world, b"big", b"small", ROOT_INO, cache)
    rename(world, b"small", b"big", cache)
    world.commit()
    world.create(b"one more", b"", big)
    assert crosses(world, b"big", b"big", ROOT_INO, cache)
    assert saved(world, tmp_path) == {b"big", b"big/0", b"big/1", b"big/2", b"big/one more"}


def test_a_renamed_directory_is_judged_anew(world: World, tmp_path: Path) -> None:
    ignoring(world, "/one/build/")
    one = world.mkdir(b"one")
    build = world.mkdir(b"build", one)
    world.create(b"a", SMALL, build)
    assert saved(world, tmp_path) == {b"one"}
    rename(world, b"one", b"two")
    assert saved(world, tmp_path) == {b"two", b"two/build", b"two/build/a"}
    assert world.create(b"b", SMALL, build) not in world.index.kept


def test_a_directory_is_judged_by_the_name_that_it_has(world: World, tmp_path: Path) -> None:
    ignoring(world, "/cache/")
    cache = world.mkdir(b"cache")
    inner = world.mkdir(b"one", cache)
    world.create(b"a", SMALL, inner)
    rename(world, b"one", b"two", cache, cache)
    ignoring(world, "/cache/one/")
    names = {b"cache", b"cache/two", b"cache/two/a"}
    assert saved(world, tmp_path) == names
    ignoring(world, "/cache/two/")
    assert world.create(b"b", SMALL, inner) in world.index.kept
    assert saved(world, tmp_path) == names


def test_a_directory_that_was_away_is_judged_by_the_place_where_it_is_now(world: World, tmp_path: Path) -> None:
    """Saved, then where it stays here, then saved again at another place: the first one is forgotten."""
    ignoring(world, "/scratch/", "/one/*.tmp", "/two/*.log")
    one = world.mkdir(b"one")
    world.create(b"a", SMALL, one)
    rename(world, b"one", b"one", ROOT_INO, world.mkdir(b"scratch"))
    for name in (b"x.tmp", b"x.log"):
        world.create(name, SMALL, one)
    rename(world, b"one", b"two", world.do(world.names.lookup, ROOT_INO, b"scratch").ino, ROOT_INO)
    assert saved(world, tmp_path) == {b"two", b"two/a", b"two/x.tmp"}


def test_places_are_found_in_trees_with_more_directories_than_are_remembered(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wsfs.tree.ignore, "_REMEMBERED", 2)
    inner = [world.mkdir(name, at) for at in (world.mkdir(b"a"), world.mkdir(b"b")) for name in (b"c", b"d", b"e")]
    ignoring(world, "/a/*/x", "!/a/d/x", "/b/e/x")
    for directory in inner:
        world.create(b"x", SMALL, directory)
    assert {name for name in saved(world, tmp_path) if name.endswith(b"/x")} == {b"a/d/x", b"b/c/x", b"b/d/x"}


def test_a_hard_link_does_not_lead_across(world: World, tmp_path: Path) -> None:
    ignoring(world, "cache/", "*.bak")
    cache = world.mkdir(b"cache")
    inside, outside = world.create(b"a", SMALL, cache), world.create(b"b", SMALL)
    link = world.names.link
    assert world.errno(link, inside, ROOT_INO, b"c") == errno.EXDEV
    assert world.errno(link, outside, cache, b"c") == errno.EXDEV
    assert world.errno(link, outside, ROOT_INO, b"b.bak") == errno.EXDEV
    world.do(link, inside, ROOT_INO, b"a.bak")
    world.do(link, outside, ROOT_INO, b"d")
    assert crosses(world, b"d", b"d", ROOT_INO, cache)
    assert saved(world, tmp_path) == {b"b", b"d"}
    # A file with two names that stay: one of them goes out, and it stays here because of the other.
    rename(world, b"a", b"e", cache)
    assert saved(world, tmp_path) == {b"b", b"d"}
    world.unlink(b"a.bak")
    world.create(b"f")
    assert saved(world, tmp_path) == {b"b", b"d", b"e", b"f"}


def test_an_exchange_does_not_lead_across(world: World, tmp_path: Path) -> None:
    ignoring(world, "*.bak")
    world.create(b"a", b"a")
    world.create(b"a.bak", b"old")
    world.create(b"b.bak", b"older")
    assert crosses(world, b"a", b"a.bak", flags=RENAME_EXCHANGE)
    rename(world, b"a.bak", b"b.bak", flags=RENAME_EXCHANGE)
    assert world.content(b"a.bak") == b"older"
    assert saved(world, tmp_path) == {b"a"}
    as_after_a_scan(world)


# --- crashes and failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("how", ["crash", "fail"])
def test_a_commit_that_ends_at_any_step(world: World, tmp_path: Path, step: str, how: str) -> None:
    ignoring(world, "cache/", "*.bak")
    cache = world.mkdir(b"cache")
    world.create(b"in", BIG, cache)
    world.create(b"gone", SMALL)
    world.create(b"out.bak", BIG)
    world.commit()
    rename(world, b"gone", b"gone.bak")
    rename(world, b"out.bak", b"out")
    world.create(b"new", SMALL)

    def reached(at: str) -> None:
        if at == "frozen":
            # Meanwhile both go the other way.
            rename(world, b"new", b"new.bak")
            rename(world, b"gone.bak", b"back")
        if at == step:
            if how == "crash":
                world.crash()
                raise Crash
            raise StoreError("failed here")

    world.reached = reached
    with pytest.raises((Crash, StoreError)):
        world.commit()
    world.reached = lambda _step: None
    if how == "crash":
        world.start()
    there = in_bucket(world, tmp_path)
    assert there in ({b"gone"}, {b"out", b"new"})
    assert saved(world, tmp_path) == {b"out", b"back"}
    as_after_a_scan(world)
    assert world.content(b"in", cache) == BIG
    assert world.content(b"back") == world.content(b"new.bak") == SMALL
    world.restart_cold()
    assert world.content(b"out") == BIG


def test_a_cache_that_is_not_at_head_is_set_aside_with_it(world: World, tmp_path: Path) -> None:
    ignoring(world, "cache/")
    cache = world.mkdir(b"cache")
    world.create(b"a", SMALL, cache)
    world.stop()
    other = World(tmp_path / "other", bucket=world.bucket)
    other.start()
    other.create(b"elsewhere")
    other.stop()
    world.start()
    assert b"cache" not in world.listing()
    (aside,) = world.cache_path.glob("unsaved-*")
    assert "stay on this machine" in "".join(world.told)
    from wsfs.export import from_cache

    world.crash()
    done = from_cache(world.cache_path, tmp_path / "rescued", None)
    assert done.files == 2
    assert (tmp_path / "rescued" / "cache" / "a").read_bytes() == SMALL
    assert aside.is_dir()


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_a_file_of_patterns_that_is_damaged_stops_nothing(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    patterns = [os.urandom(8).hex() for _ in range(1000)]  # more than a row holds
    ignoring(world, "cache/", *patterns)
    cache = world.mkdir(b"cache")
    world.create(b"a", SMALL, cache)
    world.commit()
    world.close()
    (pack,) = [key for key in world.bucket.objects if key.startswith("packs/")]
    whole = world.bucket.objects.pop(pack)
    if how == "changed":
        world.store.put(pack, bytes(len(whole.data)))
    for path in (world.cache_path / "packs").rglob("*"):
        if path.is_file():
            path.unlink()
    world.start()
    world.create(b"new")
    assert world.commit() is not None
    assert "patterns cannot be read" in caplog.text
    assert world.index.kept.files == 2
    world.bucket.objects[pack] = whole
    world.truncate(world.do(world.names.lookup, ROOT_INO, b".wsfsignore").ino, 0)
    assert saved(world, tmp_path) == {b"new", b"cache", b"cache/a"}


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_quota_does_not_count_it(world: World) -> None:
    ignoring(world, "cache/")
    cache = world.mkdir(b"cache")
    world.index.quota = Quota(world.index.shared_bytes + 1000, world.index.shared_files)
    ino = world.create(b"a", BIG, cache)
    world.write(ino, len(BIG), BIG)
    world.truncate(ino, 9 << 20)
    assert world.errno(world.names.make, ROOT_INO, b"new", stat.S_IFREG | 0o644, CALLER) == errno.ENOSPC


def test_a_listing_shows_each_name_once_while_it_is_judged(world: World) -> None:
    ignoring(world, "*.o")
    for number in range(10):
        world.create(b"%d.o" % number)
        world.create(b"%d" % number)
    names = world.listing()
    first = world.entries()[:7]
    ignoring(world)
    world.commit()
    rest = world.entries(after=first[-1][1])
    assert [name for name, _, _ in (*first, *rest)] == names == world.listing()
