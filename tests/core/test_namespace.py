"""What each system call means, errno by errno."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

import pytest
from harness import CALLER, World, check_counters, tree, until

from wsfs.model import MARKER_INO, MARKER_NAME, ROOT_INO, Dirent, Ino
from wsfs.tree.namespace import LINK_MAX, RENAME_EXCHANGE, RENAME_NOREPLACE, Caller, Changes
from wsfs.tree.paths import SEARCHED, Paths
from wsfs.tree.xattrs import SIZE_MAX as XATTR_SIZE_MAX

LONG = b"x" * 256
REG = stat.S_IFREG | 0o644
ROOT = ROOT_INO
NOWHERE = Ino(9999)


def populate(world: World) -> None:
    """file, other, dir/inside, empty/, link -> file"""
    world.create(b"file", b"content")
    world.create(b"other")
    world.create(b"inside", parent=world.mkdir(b"dir"))
    world.mkdir(b"empty")
    world.do(world.names.make, ROOT, b"link", stat.S_IFLNK | 0o777, CALLER, target=b"file")


def find(world: World, path: bytes) -> Ino:
    ino = ROOT
    for name in path.split(b"/"):
        ino = world.do(world.names.lookup, ino, name).ino
    return ino


Call = Callable[[World], object]


@pytest.mark.parametrize(
    ("call", "number"),
    [
        (lambda w: w.names.lookup(ROOT, b"missing"), errno.ENOENT),
        (lambda w: w.names.lookup(ROOT, LONG), errno.ENAMETOOLONG),
        (lambda w: w.names.inode(NOWHERE), errno.ENOENT),
        (lambda w: w.names.readlink(find(w, b"file")), errno.EINVAL),
        (lambda w: w.names.make(ROOT, b"file", REG, CALLER), errno.EEXIST),
        (lambda w: w.names.make(ROOT, LONG, REG, CALLER), errno.ENAMETOOLONG),
        (lambda w: w.names.make(NOWHERE, b"new", REG, CALLER), errno.ENOENT),
        (lambda w: w.names.make(ROOT, b"l", stat.S_IFLNK, CALLER, target=b""), errno.ENOENT),
        (lambda w: w.names.make(ROOT, b"l", stat.S_IFLNK, CALLER, target=b"x" * 4096), errno.ENAMETOOLONG),
        (lambda w: w.names.link(find(w, b"file"), ROOT, b"other"), errno.EEXIST),
        (lambda w: w.names.link(find(w, b"dir"), ROOT, b"new"), errno.EPERM),
        (lambda w: w.names.link(NOWHERE, ROOT, b"new"), errno.ENOENT),
        (lambda w: w.names.link(find(w, b"file"), ROOT, LONG), errno.ENAMETOOLONG),
        (lambda w: w.names.unlink(ROOT, b"missing"), errno.ENOENT),
        (lambda w: w.names.unlink(ROOT, b"dir"), errno.EISDIR),
        (lambda w: w.names.rmdir(ROOT, b"missing"), errno.ENOENT),
        (lambda w: w.names.rmdir(ROOT, b"file"), errno.ENOTDIR),
        (lambda w: w.names.rmdir(ROOT, b"dir"), errno.ENOTEMPTY),
        (lambda w: w.names.rename(ROOT, b"missing", ROOT, b"new"), errno.ENOENT),
        (lambda w: w.names.rename(ROOT, b"file", ROOT, LONG), errno.ENAMETOOLONG),
        (lambda w: w.names.rename(ROOT, b"file", NOWHERE, b"new"), errno.ENOENT),
        (lambda w: w.names.rename(ROOT, b"file", ROOT, b"empty"), errno.EISDIR),
        (lambda w: w.names.rename(ROOT, b"empty", ROOT, b"file"), errno.ENOTDIR),
        (lambda w: w.names.rename(ROOT, b"empty", ROOT, b"dir"), errno.ENOTEMPTY),
        (lambda w: w.names.rename(ROOT, b"file", ROOT, b"other", RENAME_NOREPLACE), errno.EEXIST),
        (lambda w: w.names.rename(ROOT, b"file", ROOT, b"missing", RENAME_EXCHANGE), errno.ENOENT),
        (lambda w: w.names.rename(ROOT, b"file", ROOT, b"new", 3), errno.EINVAL),
        (lambda w: w.names.rename(ROOT, b"file", ROOT, b"new", 4), errno.EINVAL),
        (lambda w: w.names.setattr(find(w, b"dir"), Changes(size=0), CALLER), errno.EISDIR),
        (lambda w: w.names.setattr(find(w, b"link"), Changes(size=0), CALLER), errno.EINVAL),
        (lambda w: w.names.setattr(NOWHERE, Changes(mode=0), CALLER), errno.ENOENT),
        (lambda w: w.names.xattrs.get(find(w, b"file"), b"user.a"), errno.ENODATA),
        (lambda w: w.names.xattrs.remove(find(w, b"file"), b"user.a"), errno.ENODATA),
        (lambda w: w.names.xattrs.set(find(w, b"file"), LONG, b""), errno.ERANGE),
        (lambda w: w.names.xattrs.set(find(w, b"file"), b"user.a", bytes(XATTR_SIZE_MAX + 1)), errno.E2BIG),
        (lambda w: w.names.xattrs.check(find(w, b"file"), b"user.a", supported=False), errno.ENOTSUP),
        (lambda w: w.files.read(NOWHERE, 0, 1), errno.ENOENT),
        (lambda w: w.files.write(NOWHERE, 0, b"x"), errno.ENOENT),
        (lambda w: w.files.write(find(w, b"file"), 1 << 52, b"x"), errno.EFBIG),
    ],
)
def test_errors(world: World, call: Call, number: int) -> None:
    """Each refusal has its errno, and leaves everything as it was."""
    populate(world)
    before = tree(world)
    assert world.errno(call, world) == number
    assert tree(world) == before
    check_counters(world, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda w: w.names.make(ROOT, MARKER_NAME, REG, CALLER),
        lambda w: w.names.make(ROOT, MARKER_NAME, stat.S_IFDIR, CALLER),
        lambda w: w.names.link(MARKER_INO, ROOT, b"new"),
        lambda w: w.names.link(find(w, b"file"), ROOT, MARKER_NAME),
        lambda w: w.names.unlink(ROOT, MARKER_NAME),
        lambda w: w.names.rmdir(ROOT, MARKER_NAME),
        lambda w: w.names.rename(ROOT, MARKER_NAME, ROOT, b"new"),
        lambda w: w.names.rename(ROOT, MARKER_NAME, find(w, b"dir"), MARKER_NAME),
        lambda w: w.names.rename(ROOT, b"file", ROOT, MARKER_NAME),
        lambda w: w.names.rename(ROOT, b"file", ROOT, MARKER_NAME, RENAME_NOREPLACE),
        lambda w: w.names.rename(ROOT, b"file", ROOT, MARKER_NAME, RENAME_EXCHANGE),
        lambda w: w.names.rename(ROOT, MARKER_NAME, ROOT, b"file", RENAME_EXCHANGE),
        lambda w: w.names.setattr(MARKER_INO, Changes(mode=0o777), Caller(0, 0)),
        lambda w: w.names.setattr(MARKER_INO, Changes(uid=5), Caller(0, 0)),
        lambda w: w.names.setattr(MARKER_INO, Changes(size=0), Caller(0, 0)),
        lambda w: w.names.setattr(MARKER_INO, Changes(mtime_ns=0), Caller(0, 0)),
        lambda w: w.names.xattrs.set(MARKER_INO, b"user.a", b""),
        lambda w: w.names.xattrs.remove(MARKER_INO, b"user.a"),
        lambda w: w.names.xattrs.check(MARKER_INO, b"user.a", supported=False),
        lambda w: w.names.check_open(MARKER_INO, os.O_WRONLY),
        lambda w: w.names.check_open(MARKER_INO, os.O_RDWR),
        lambda w: w.names.check_open(MARKER_INO, os.O_RDONLY | os.O_TRUNC),
    ],
)
def test_nothing_happens_to_the_marker(world: World, call: Call) -> None:
    """Whatever is tried, by whomever: EPERM, and nothing has changed."""
    populate(world)
    before = tree(world)
    assert world.errno(call, world) == errno.EPERM
    assert tree(world) == before


def test_the_name_of_the_marker_is_free_elsewhere(world: World) -> None:
    """Only the root's own marker is protected; it can be read by all."""
    directory = world.mkdir(b"dir")
    world.create(MARKER_NAME, b"mine", parent=directory)
    assert world.content(MARKER_NAME, directory) == b"mine"
    world.unlink(MARKER_NAME, directory)
    assert world.names.check_open(MARKER_INO, os.O_RDONLY).ino == MARKER_INO
    assert world.content(MARKER_NAME) == world.workspace.format.marker


def test_what_a_new_inode_looks_like(world: World) -> None:
    """Owner and group of the caller; in a set-group-ID directory its group, which new directories inherit on."""
    directory = world.mkdir(b"dir")
    world.do(world.names.setattr, directory, Changes(mode=0o2775, gid=77), CALLER)
    file = world.do(world.names.make, directory, b"f", REG, Caller(5, 6))
    child = world.do(world.names.make, directory, b"d", stat.S_IFDIR | 0o755, Caller(5, 6))
    device = world.do(world.names.make, ROOT, b"null", stat.S_IFCHR | 0o666, Caller(0, 0), rdev=os.makedev(1, 3))
    assert (file.uid, file.gid, file.mode, file.nlink, file.size) == (5, 77, REG, 1, 0)
    assert (child.gid, child.mode, child.nlink) == (77, stat.S_IFDIR | 0o2755, 2)
    assert (device.rdev, device.mode) == (os.makedev(1, 3), stat.S_IFCHR | 0o666)
    assert file.atime_ns == file.mtime_ns == file.ctime_ns == world.now - 2
    parent = world.names.inode(directory)
    assert (parent.nlink, parent.size, parent.mtime_ns) == (3, 2, world.now - 1)


def test_links_count(world: World) -> None:
    """Names and subdirectories are counted through make, link, unlink, rename over a name, and rmdir."""
    ino = world.create(b"a", b"12345")
    world.do(world.names.link, ino, ROOT, b"b")
    assert world.names.inode(ino).nlink == 2
    check_counters(world, tree(world))
    world.unlink(b"a")
    assert world.names.inode(ino).nlink == 1
    other = world.create(b"c", b"1")
    assert world.do(world.names.rename, ROOT, b"c", ROOT, b"b") == ino
    world.names.forgotten(ino)
    assert world.errno(world.names.inode, ino) == errno.ENOENT
    assert find(world, b"b") == other
    world.mkdir(b"sub")
    assert world.names.inode(ROOT).nlink == 3
    world.do(world.names.rmdir, ROOT, b"sub")
    assert world.names.inode(ROOT).nlink == 2
    check_counters(world, tree(world))


def test_too_many_links(world: World) -> None:
    """EMLINK at the limit that the format and programs can take."""
    ino = world.create(b"a")
    inode = world.names.inode(ino)
    world.index._inodes[ino] = inode._replace(nlink=LINK_MAX)
    assert world.errno(world.names.link, ino, ROOT, b"b") == errno.EMLINK


def test_a_directory_replaces_an_empty_one(world: World) -> None:
    """The replaced one is gone, and the counts of both parents fit."""
    source, target = world.mkdir(b"source"), world.mkdir(b"target")
    world.mkdir(b"child", parent=source)
    parent = world.mkdir(b"parent")
    victim = world.mkdir(b"x", parent=parent)
    assert world.do(world.names.rename, ROOT, b"source", ROOT, b"target") == target
    assert world.do(world.names.rename, ROOT, b"target", parent, b"x") == victim
    world.names.forgotten(target)
    world.names.forgotten(victim)
    assert world.names.inode(ROOT).nlink == 3
    assert world.names.inode(parent).nlink == 3
    assert world.names.inode(source).parent == parent
    check_counters(world, tree(world))


def test_names_are_exchanged(world: World) -> None:
    """A file and a directory swap places, across directories, with everything in them."""
    directory = world.mkdir(b"dir")
    inner = world.mkdir(b"inner", parent=directory)
    world.create(b"deep", b"x", parent=inner)
    file = world.create(b"file", b"y")
    world.do(world.names.rename, ROOT, b"file", directory, b"inner", RENAME_EXCHANGE)
    assert (find(world, b"file"), find(world, b"dir/inner")) == (inner, file)
    assert find(world, b"file/deep")
    assert (world.names.inode(ROOT).nlink, world.names.inode(directory).nlink) == (4, 2)
    assert (world.names.inode(inner).parent, world.names.inode(file).parent) == (ROOT, directory)
    check_counters(world, tree(world))


def test_renaming_a_name_to_another_of_the_same_file_does_nothing(world: World) -> None:
    """As rename(2) says: both names stay."""
    ino = world.create(b"a")
    world.do(world.names.link, ino, ROOT, b"b")
    before = tree(world)
    assert world.do(world.names.rename, ROOT, b"a", ROOT, b"b") is None
    world.do(world.names.rename, ROOT, b"a", ROOT, b"b", RENAME_EXCHANGE)
    assert tree(world) == before


def test_a_path_is_found_by_every_name(world: World) -> None:
    """A file with several names has a path as long as one of them is left, wherever that is."""
    deep = world.mkdir(b"deep", world.mkdir(b"dir"))
    ino = world.create(b"first", parent=deep)
    world.do(world.names.link, ino, ROOT, b"second")
    assert Paths(world.index).of(ino) == b"second"
    world.do(world.names.unlink, ROOT, b"second")
    other = world.create(b"other")
    world.do(world.names.link, other, deep, b"again")
    world.do(world.names.unlink, deep, b"again")
    paths = Paths(world.index)
    assert [paths.of(number) for number in (ino, other, deep)] == [b"dir/deep/first", b"other", b"dir/deep"]
    world.do(world.names.unlink, ROOT, b"other")
    assert Paths(world.index).of(other) is None


def test_an_open_file_lives_on_without_a_name(world: World) -> None:
    """It can be read, written, cut and asked about until it is forgotten; then it is gone, and its data too."""
    ino = world.create(b"f", b"content")
    world.do(world.names.xattrs.set, ino, b"user.a", b"v")
    world.do(world.names.unlink, ROOT, b"f")
    files, total = world.index.files, world.index.bytes
    assert world.names.inode(ino).nlink == 0
    world.write(ino, 7, b" and more")
    world.truncate(ino, 11)
    assert world.read(ino) == b"content and"
    assert world.names.xattrs.get(ino, b"user.a") == b"v"
    assert world.errno(world.names.link, ino, ROOT, b"again") == errno.ENOENT
    assert (world.index.files, world.index.bytes) == (files, total)
    world.commit()
    world.write(ino, 0, b"C")
    assert world.read(ino) == b"Content and"
    world.names.forgotten(ino)
    assert world.errno(world.names.inode, ino) == errno.ENOENT
    until(lambda: ino not in set(world.overlay.inodes()))  # without a flush


def test_nothing_can_be_made_in_a_directory_without_a_name(world: World) -> None:
    """A removed working directory refuses new names, and is empty."""
    directory = world.mkdir(b"dir")
    world.do(world.names.rmdir, ROOT, b"dir")
    assert world.errno(world.names.make, directory, b"f", REG, CALLER) == errno.ENOENT
    assert world.listing(directory) == []


@pytest.mark.parametrize(
    ("before", "changes", "caller", "after"),
    [
        (0o6755, Changes(uid=5), CALLER, 0o755),
        (0o2644, Changes(gid=5), CALLER, 0o2644),
        (0o6755, Changes(uid=5, mode=0o6711), CALLER, 0o6711),
        (0o6755, Changes(size=3), CALLER, 0o755),
        (0o6755, Changes(size=3), Caller(0, 0), 0o6755),
        (0o6755, Changes(mtime_ns=3), CALLER, 0o6755),
    ],
)
def test_set_id_bits_do_not_survive_a_change(
    world: World, before: int, changes: Changes, caller: Caller, after: int
) -> None:
    """chown and truncate clear set-user-ID, and set-group-ID where the group may execute."""
    ino = world.create(b"f", b"1234")
    world.do(world.names.setattr, ino, Changes(mode=before), CALLER)
    assert stat.S_IMODE(world.do(world.names.setattr, ino, changes, caller).mode) == after


def test_a_write_clears_set_id_bits(world: World) -> None:
    """A changed program must not run as its owner."""
    ino = world.create(b"f", b"1234")
    world.do(world.names.setattr, ino, Changes(mode=0o6755), CALLER)
    world.write(ino, 0, b"x")
    assert stat.S_IMODE(world.names.inode(ino).mode) == 0o755


def test_times(world: World) -> None:
    """What is given is kept to the nanosecond; the change time is now unless the kernel says otherwise."""
    ino = world.create(b"f")
    inode = world.do(world.names.setattr, ino, Changes(atime_ns=-1, mtime_ns=15 * 10**18 + 7), CALLER)
    assert (inode.atime_ns, inode.mtime_ns, inode.ctime_ns) == (-1, 15 * 10**18 + 7, world.now)
    assert world.do(world.names.setattr, ino, Changes(ctime_ns=5), CALLER).ctime_ns == 5
    cut = world.do(world.names.setattr, ino, Changes(size=7), CALLER)
    assert cut.mtime_ns == cut.ctime_ns == world.now
    assert world.do(world.names.setattr, ino, Changes(size=7), CALLER) == cut


def test_extended_attributes(world: World) -> None:
    """Empty values are values; names come back in order; each change moves the change time."""
    ino = world.create(b"f")
    world.do(world.names.xattrs.set, ino, b"user.b", b"")
    world.do(world.names.xattrs.set, ino, b"user.a", b"1")
    assert world.names.xattrs.names(ino) == [b"user.a", b"user.b"]
    assert (world.names.xattrs.get(ino, b"user.a"), world.names.xattrs.get(ino, b"user.b")) == (b"1", b"")
    world.do(world.names.xattrs.remove, ino, b"user.a")
    assert world.names.xattrs.names(ino) == [b"user.b"]
    assert world.names.inode(ino).ctime_ns == world.now


def test_paths_for_people(world: World) -> None:
    """An inode's path, and a question mark where there is none."""
    directory = world.mkdir(b"dir")
    ino = world.create(b"f", parent=directory)
    assert world.names.path(ino) == b"/dir/f"
    assert world.names.path(ROOT) == b"/"
    assert world.names.path(NOWHERE) == b"/?"
    assert world.names.path(MARKER_INO) == b"/" + MARKER_NAME
    other = world.create(b"other", parent=directory)
    world.do(world.names.rename, directory, b"f", ROOT, b"g")
    world.do(world.names.link, other, directory, b"again")
    assert world.names.path(ino) == b"/g"
    assert world.names.path(other) == b"/dir/other"
    world.do(world.names.unlink, directory, b"other")
    assert world.names.path(other) == b"/dir/again"


@pytest.mark.parametrize("flushed", [False, True])
def test_a_path_for_people_is_found_in_few_steps_or_not_at_all(
    world: World, monkeypatch: pytest.MonkeyPatch, flushed: bool
) -> None:
    """A log line must not keep everybody waiting while a directory of very many files is searched for one."""
    directory = world.mkdir(b"dir")
    inodes = [world.create(b"%d" % number, parent=directory) for number in range(SEARCHED + 500)]
    world.do(world.names.rename, directory, b"7", directory, b"moved")
    if flushed:
        world.flush()
    looked = 0
    names = world.index.names

    def counted(parent: int, after: int) -> Iterator[tuple[bytes, Dirent]]:
        nonlocal looked
        for found in names(parent, after):
            looked += 1
            yield found

    monkeypatch.setattr(world.index, "names", counted)
    for number in (0, SEARCHED // 2, len(inodes) - 1):
        assert world.names.path(inodes[number]) == b"/dir/%d" % number
    assert looked < 20
    assert world.names.path(inodes[7]) == b"/dir/?"
    assert looked < SEARCHED + 20
