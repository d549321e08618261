"""Random operations, commits, failures, crashes and restarts against a plain model in memory."""

from __future__ import annotations

import copy
import errno
import os
import shutil
import stat
from dataclasses import dataclass, field
from typing import Any

import pytest
from harness import (
    CALLER,
    SMALL_BLOCK,
    Crash,
    World,
    check_counters,
    new_directory,
    saved_tree,
    shrink,
    tree,
    unreachable,
)
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

import wsfs.sync.recover
import wsfs.sync.start
from wsfs.errors import CacheFullError, StoreError, WsfsError
from wsfs.fsck import check
from wsfs.index.check import copy as copy_index
from wsfs.index.kept import Kept
from wsfs.model import MARKER_INO, MARKER_NAME, ROOT_INO, Inode, Local
from wsfs.repo import codec
from wsfs.sync.commit import STEPS
from wsfs.tree.ignore import IGNORE_NAME, Rules
from wsfs.tree.namespace import Changes

EXAMPLES = int(os.environ.get("WSFS_TEST_EXAMPLES", "25"))
STEP_COUNT = int(os.environ.get("WSFS_TEST_STEPS", "40"))
SHRINK = os.environ.get("WSFS_TEST_SHRINK") == "1"
"""Shrinking a failure takes minutes, and a failure is clear enough without it."""
Tree = dict[bytes, tuple[Inode, bytes, dict[bytes, bytes]]]
NAMES = (b"a", b"b", b"c", b"\xff\xfe", MARKER_NAME)


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass
class File:
    """What the model knows of an inode."""

    inode: Inode
    data: bytearray = field(default_factory=bytearray)
    target: bytes = b""
    entries: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def set(self, **changes: Any) -> None:
        self.inode = self.inode._replace(**changes)


class Model:
    """Files by inode number; `opened` lost their last name while somebody had them open."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self.opened: dict[int, File] = {}

    def tree(self) -> dict[bytes, tuple[Inode, bytes, dict[bytes, bytes]]]:
        found = {}

        def visit(path: bytes, file: File) -> None:
            found[path] = (file.inode, bytes(file.data) or file.target, dict(sorted(file.xattrs.items())))
            for name, ino in file.entries.items():
                visit(path + b"/" + name, self.files[ino])

        visit(b"", self.files[ROOT_INO])
        return found

    def any(self, ino: int) -> File:
        return self.files.get(ino) or self.opened[ino]

    def is_below(self, ino: int, ancestor: int) -> bool:
        """Whether directory `ino` is `ancestor` or lies below it."""
        below = {ino}
        while ino != ROOT_INO:
            ino = next(n for n, f in self.files.items() if ino in f.entries.values())
            below.add(ino)
        return ancestor in below

    def without(self, kept: Kept) -> Model:
        """What a commit has of it: all but what stays on this machine."""
        model = Model()
        model.files = {ino: copy.deepcopy(file) for ino, file in self.files.items() if ino not in kept}
        for file in model.files.values():
            entries = {name: ino for name, ino in file.entries.items() if ino not in kept}
            gone = [self.files[ino].inode for ino in file.entries.values() if ino in kept]
            file.entries = entries
            file.set(size=file.inode.size - len(gone), nlink=file.inode.nlink - sum(one.is_dir for one in gone))
        return model

    @classmethod
    def from_tree(cls, found: dict[bytes, tuple[Inode, bytes, dict[bytes, bytes]]]) -> Model:
        model = cls()
        for path, (inode, content, xattrs) in found.items():
            file = model.files.setdefault(inode.ino, File(inode, xattrs=dict(xattrs)))
            if inode.is_file:
                file.data = bytearray(content)
            else:
                file.target = content
            if path:
                parent, _, name = path.rpartition(b"/")
                model.files[found[parent][0].ino].entries[name] = inode.ino
        return model


def without_times(found: Tree) -> Tree:
    """A tree without the times of directories."""
    return {
        path: (inode._replace(mtime_ns=0, ctime_ns=0) if inode.is_dir else inode, content, xattrs)
        for path, (inode, content, xattrs) in found.items()
    }


# --- operations as data -----------------------------------------------------------------------------------------------

Steps = dict[str, list[tuple[Any, ...]]]
"""What programs do after each step of a commit."""

pick = st.integers(0, 30)
name = st.sampled_from(NAMES[:4]) | st.sampled_from(NAMES)
offset = st.one_of(
    st.integers(0, 3 * SMALL_BLOCK),
    st.builds(lambda n, d: max(0, n * SMALL_BLOCK + d), st.integers(0, 4), st.integers(-3, 3)),
)
length = st.one_of(st.integers(1, 20), st.integers(1, 2 * SMALL_BLOCK), st.sampled_from([SMALL_BLOCK, 512, 513]))
filling = st.sampled_from([b"x", b"\0", b"y\0z", b"0123456789"]) | st.binary(min_size=1, max_size=4)
moment = st.none() | st.sampled_from([-(10**18), -1, 0, 1, 1_700_000_000_000_000_001, 15_000_000_000 * 10**9])
mode = st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o1777, 0])

operation = st.one_of(
    st.tuples(st.just("create"), pick, name, mode),
    st.tuples(st.just("write"), pick, offset, length, filling),
    st.tuples(st.just("write"), pick, offset, length, filling),
    st.tuples(st.just("truncate"), pick, offset | st.just(0)),
    st.tuples(st.just("mkdir"), pick, name, mode),
    st.tuples(st.just("symlink"), pick, name, st.lists(st.integers(1, 255), min_size=1, max_size=40).map(bytes)),
    st.tuples(st.just("link"), pick, pick, name),
    st.tuples(st.just("unlink"), pick, name, st.booleans()),
    st.tuples(st.just("rmdir"), pick, name, st.booleans()),
    st.tuples(st.just("rename"), pick, name, pick, name, st.sampled_from([0, 0, 1, 2])),
    st.tuples(st.just("chmod"), pick, mode),
    st.tuples(st.just("chown"), pick, st.none() | st.integers(0, 3), st.none() | st.integers(0, 3)),
    st.tuples(st.just("utime"), pick, moment, moment),
    st.tuples(st.just("setxattr"), pick, st.sampled_from([b"user.a", b"user.b"]), st.binary(max_size=30)),
    st.tuples(st.just("removexattr"), pick, st.sampled_from([b"user.a", b"user.b"])),
    st.tuples(st.just("forget"), pick),
)
operations = st.lists(operation, max_size=4)


class Machine(RuleBasedStateMachine):
    """The rules. `committed` is the model as it was when the commit that HEAD names froze it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        shrink(self.patch)
        self.patch.setattr(wsfs.sync.recover, "is_whole", lambda index: copy_index(index, None))  # without a process
        self.root = new_directory()
        self.world = World(self.root)
        self.world.start()
        self.model = Model.from_tree(tree(self.world))
        self.committed = copy.deepcopy(self.model)
        self.commit_name = self.world.head().commit
        self.boots = 0
        self.durable = copy.deepcopy(self.model)
        self.touched: set[int] = set()
        self.ignoring = False

    def teardown(self) -> None:
        try:
            if not self.world.dead:
                self.compare()
                self.check_bucket()
                self.world.commit()
                self.committed = self.to_commit()
                self.check_bucket()
                assert not check(self.world.observer(), data=True).findings
        finally:
            self.world.crash()
            self.patch.undo()
            shutil.rmtree(self.root)

    # --- checks -------------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """The mount shows what the model holds, down to the last attribute and counter."""
        found = tree(self.world)
        assert found == self.model.tree()
        check_counters(self.world, found)
        for ino, file in self.model.opened.items():
            assert self.world.names.inode(ino) == file.inode
            if file.inode.is_file:
                assert self.world.read(ino) == bytes(file.data)
        self.check_blocks()
        self.check_kept()

    def check_kept(self) -> None:
        """Inodes and names that stay on this machine lead to each other, and to nothing else."""
        kept, files = self.world.index.kept, self.model.files
        for ino, file in files.items():
            for name, child in file.entries.items():
                assert kept.has_name(ino, name) == (child in kept), (ino, name)
        sizes = {ino: 0 if file.inode.is_dir else file.inode.size for ino, file in files.items() if ino in kept}
        assert (kept.sizes, kept.bytes) == (sizes, sum(sizes.values()))
        for ino in sizes:
            assert all(codec.place_of(row) is None for _, row in self.world.do(self.world.index.scan, ino, codec.BLOCK))
        assert all(name in files[ino].entries for ino, names in kept.names.items() for name in names)

    def check_ignored(self) -> None:
        """After a commit: what stays here is ignored, or has another name that is."""
        kept = self.world.index.kept
        found = self.model.tree()
        file = found.get(b"/" + IGNORE_NAME)
        rules = Rules(file[1] if file is not None and file[0].is_file else b"")
        for path, (inode, _, _) in found.items():
            if inode.ino in kept and (inode.is_dir or inode.nlink == 1):
                decided = rules.decide(path[1:], is_dir=inode.is_dir)
                assert decided is not None, path
                assert decided[1].ignores, path

    def to_commit(self) -> Model:
        """The model as a commit that is frozen now has it."""
        return self.model.without(self.world.index.kept)

    def check_blocks(self) -> None:
        """A block that counts as dirty is LOCAL, and every LOCAL block is known to the next commit."""
        index, overlay = self.world.index, self.world.overlay
        unsaved = overlay.unsaved()
        for ino, blocks in overlay.dirty.items():
            for number in blocks:
                assert isinstance(self.world.do(index.block, ino, number), Local), (ino, number)
        for ino in self.model.files:
            for key, row in self.world.do(index.scan, ino, codec.BLOCK):
                if codec.is_local(row) and ino not in index.kept:
                    assert codec.block_index(key) in unsaved.get(ino, ()), (ino, key)

    def check_bucket(self) -> None:
        """Whoever mounts the bucket elsewhere finds the last commit, whole."""
        self.check_committed(saved_tree(self.world, self.root / "elsewhere"))

    def check_committed(self, found: Tree) -> None:
        expected = self.committed.tree()
        if self.ignoring:  # a directory that only got names which stay here has its old times elsewhere
            found, expected = without_times(found), without_times(expected)
        assert found == expected

    # --- operations ---------------------------------------------------------------------------------------------------

    def pick_dir(self, number: int) -> int:
        dirs = [ino for ino, f in sorted({**self.model.files, **self.model.opened}.items()) if f.inode.is_dir]
        return dirs[number % len(dirs)]

    def pick_file(self, number: int) -> int | None:
        found = [
            ino
            for ino, f in sorted({**self.model.files, **self.model.opened}.items())
            if f.inode.is_file and ino != MARKER_INO
        ]
        return found[number % len(found)] if found else None

    def pick_any(self, number: int) -> int:
        found = sorted({**self.model.files, **self.model.opened})
        return found[number % len(found)]

    def run(self, op: tuple[Any, ...]) -> None:
        """One operation on the mount and on the model; both must agree on the errno."""
        prepared = getattr(self, "op_" + op[0])(*op[1:])
        if prepared is None:
            return
        call, expected, apply = prepared
        self.world.now += 1
        got = None
        try:
            result = self.world.do(call)
        except OSError as exc:
            got = exc.errno
        if got == errno.EXDEV and self.ignoring:
            return  # a way that leads across; `compare` sees that nothing has happened
        assert got == expected, (op, got, expected)
        if got is None:
            apply(result)

    @property
    def now(self) -> int:
        return self.world.now

    def touch_dir(self, ino: int, entries: int = 0, subdirs: int = 0) -> None:
        file = self.model.any(ino)
        i = file.inode
        file.set(mtime_ns=self.now, ctime_ns=self.now, size=i.size + entries, nlink=i.nlink + subdirs)

    def new_name_error(self, parent: int, name: bytes) -> int | None:
        if parent == ROOT_INO and name == MARKER_NAME:
            return errno.EPERM
        if parent in self.model.opened:
            return errno.ENOENT
        return errno.EEXIST if name in self.model.files[parent].entries else None

    def make(self, parent: int, name: bytes, mode: int, target: bytes | None = None) -> Any:
        parent = self.pick_dir(parent)

        def apply(made: Inode) -> None:
            directory = self.model.any(parent)
            is_dir = stat.S_ISDIR(mode)
            gid, bits = CALLER.gid, mode
            if directory.inode.mode & stat.S_ISGID:
                gid = directory.inode.gid
                bits |= stat.S_ISGID if is_dir else 0
            assert made.ino not in self.model.files
            n = self.now
            expected = Inode(
                made.ino, bits, CALLER.uid, gid, 2 if is_dir else 1, 0, len(target or b""), n, n, n, parent
            )
            assert made == expected
            self.model.files[made.ino] = File(made, target=target or b"")
            directory.entries[name] = made.ino
            self.touch_dir(parent, 1, 1 if is_dir else 0)

        call = lambda: self.world.names.make(parent, name, mode, CALLER, target=target)  # noqa: E731
        return call, self.new_name_error(parent, name), apply

    def op_create(self, parent: int, name: bytes, mode: int) -> Any:
        return self.make(parent, name, stat.S_IFREG | mode)

    def op_mkdir(self, parent: int, name: bytes, mode: int) -> Any:
        return self.make(parent, name, stat.S_IFDIR | mode)

    def op_symlink(self, parent: int, name: bytes, target: bytes) -> Any:
        return self.make(parent, name, stat.S_IFLNK | 0o777, target)

    def op_link(self, ino: int, parent: int, name: bytes) -> Any:
        ino, parent = self.pick_any(ino), self.pick_dir(parent)
        file = self.model.any(ino)
        expected = errno.EPERM if ino == MARKER_INO else self.new_name_error(parent, name)
        if expected is None:
            expected = errno.EPERM if file.inode.is_dir else errno.ENOENT if ino in self.model.opened else None

        def apply(_result: object) -> None:
            file.set(nlink=file.inode.nlink + 1, ctime_ns=self.now, parent=parent)
            self.model.files[parent].entries[name] = ino
            self.touch_dir(parent, 1)

        return lambda: self.world.names.link(ino, parent, name), expected, apply

    def drop_link(self, ino: int, keep: bool) -> None:
        """The mount has taken a name away; `keep` says that somebody still has the inode open."""
        file = self.model.files[ino]
        nlink = 0 if file.inode.is_dir else file.inode.nlink - 1
        file.set(nlink=nlink, ctime_ns=self.now)
        if nlink:
            return
        del self.model.files[ino]
        if keep:
            self.model.opened[ino] = file
        else:
            self.world.names.forgotten(ino)

    def remove(self, parent: int, name: bytes, keep: bool, *, directory: bool) -> Any:
        parent = self.pick_dir(parent)
        ino = self.model.any(parent).entries.get(name)
        expected = None
        if parent == ROOT_INO and name == MARKER_NAME:
            expected = errno.EPERM
        elif ino is None:
            expected = errno.ENOENT
        elif directory:
            victim = self.model.files[ino]
            expected = errno.ENOTDIR if not victim.inode.is_dir else errno.ENOTEMPTY if victim.entries else None
        elif self.model.files[ino].inode.is_dir:
            expected = errno.EISDIR

        def apply(_result: object) -> None:
            assert ino is not None
            del self.model.files[parent].entries[name]
            self.touch_dir(parent, -1, -1 if directory else 0)
            self.drop_link(ino, keep)

        call = self.world.names.rmdir if directory else self.world.names.unlink
        return lambda: call(parent, name), expected, apply

    def op_unlink(self, parent: int, name: bytes, keep: bool) -> Any:
        return self.remove(parent, name, keep, directory=False)

    def op_rmdir(self, parent: int, name: bytes, keep: bool) -> Any:
        return self.remove(parent, name, keep, directory=True)

    def op_rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Any:
        parent, new_parent = self.pick_dir(parent), self.pick_dir(new_parent)
        if new_parent in self.model.opened or parent in self.model.opened:
            return None  # the kernel answers that
        model = self.model
        ino = model.files[parent].entries.get(name)
        old = model.files[new_parent].entries.get(new_name)
        for moved, to in ((ino, new_parent), (old if flags == 2 else None, parent)):
            if moved is not None and model.files[moved].inode.is_dir and model.is_below(to, moved):
                return None  # a directory into itself: the kernel answers that
        expected = None
        if (parent, name) == (ROOT_INO, MARKER_NAME) or (new_parent, new_name) == (ROOT_INO, MARKER_NAME):
            expected = errno.EPERM
        elif ino is None:
            expected = errno.ENOENT
        elif flags == 1 and old is not None:
            expected = errno.EEXIST
        elif flags == 2 and old is None:
            expected = errno.ENOENT
        elif flags == 0 and old is not None and old != ino:
            a, b = model.files[ino].inode, model.files[old]
            if b.inode.is_dir:
                expected = errno.EISDIR if not a.is_dir else errno.ENOTEMPTY if b.entries else None
            elif a.is_dir:
                expected = errno.ENOTDIR

        def apply(_result: object) -> None:
            assert ino is not None
            if ino == old:
                return
            source, target = model.files[ino], model.files[old] if old is not None else None
            dirs = (model.files[parent].entries, model.files[new_parent].entries)
            if flags == 2:
                assert target is not None
                assert old is not None
                dirs[0][name], dirs[1][new_name] = old, ino
                target.set(parent=parent, ctime_ns=self.now)
                source.set(parent=new_parent, ctime_ns=self.now)
                gain = source.inode.is_dir - target.inode.is_dir
                self.touch_dir(parent, 0, -gain if parent != new_parent else 0)
                self.touch_dir(new_parent, 0, gain if parent != new_parent else 0)
                return
            del dirs[0][name]
            dirs[1][new_name] = ino
            self.touch_dir(parent, -1, -int(source.inode.is_dir))
            self.touch_dir(new_parent, 1, int(source.inode.is_dir))
            if target is not None:
                assert old is not None
                self.touch_dir(new_parent, -1, -int(target.inode.is_dir))
                self.drop_link(old, keep=False)
            source.set(parent=new_parent, ctime_ns=self.now)

        return lambda: self.world.names.rename(parent, name, new_parent, new_name, flags), expected, apply

    def op_write(self, ino: int, offset: int, length: int, filling: bytes) -> Any:
        picked = self.pick_file(ino)
        if picked is None:
            return None
        file = self.model.any(picked)
        data = (filling * length)[:length]

        def apply(_result: object) -> None:
            end = offset + len(data)
            if len(file.data) < end:
                file.data.extend(bytes(end - len(file.data)))
            file.data[offset:end] = data
            bits = file.inode.mode & ~stat.S_ISUID
            bits = bits & ~stat.S_ISGID if bits & stat.S_IXGRP else bits
            file.set(size=len(file.data), mode=bits)
            self.touched.add(picked)

        return lambda: self.world.files.write(picked, offset, data), None, apply

    def setattr(self, ino: int, changes: Changes, apply: Any) -> Any:
        expected = errno.EPERM if ino == MARKER_INO else None
        return lambda: self.world.names.setattr(ino, changes, CALLER), expected, apply

    def op_truncate(self, ino: int, size: int) -> Any:
        picked = self.pick_file(ino)
        if picked is None:
            return None
        file = self.model.any(picked)

        def apply(_result: object) -> None:
            changed = size != len(file.data)
            del file.data[size:]
            file.data.extend(bytes(size - len(file.data)))
            bits = file.inode.mode & ~stat.S_ISUID
            bits = bits & ~stat.S_ISGID if bits & stat.S_IXGRP else bits
            file.set(size=size, mode=bits)
            if changed:
                file.set(mtime_ns=self.now, ctime_ns=self.now)
            self.touched.add(picked)

        return self.setattr(picked, Changes(size=size), apply)

    def op_chmod(self, ino: int, bits: int) -> Any:
        ino = self.pick_any(ino)
        file = self.model.any(ino)

        def apply(_result: object) -> None:
            file.set(mode=stat.S_IFMT(file.inode.mode) | bits, ctime_ns=self.now)

        return self.setattr(ino, Changes(mode=bits), apply)

    def op_chown(self, ino: int, uid: int | None, gid: int | None) -> Any:
        ino = self.pick_any(ino)
        file = self.model.any(ino)

        def apply(_result: object) -> None:
            bits = file.inode.mode
            if (uid is not None or gid is not None) and not file.inode.is_dir:
                bits &= ~stat.S_ISUID
                bits = bits & ~stat.S_ISGID if bits & stat.S_IXGRP else bits
            owner = (file.inode.uid if uid is None else uid, file.inode.gid if gid is None else gid)
            file.set(uid=owner[0], gid=owner[1], mode=bits, ctime_ns=self.now)

        return self.setattr(ino, Changes(uid=uid, gid=gid), apply)

    def op_utime(self, ino: int, atime: int | None, mtime: int | None) -> Any:
        ino = self.pick_any(ino)
        file = self.model.any(ino)

        def apply(_result: object) -> None:
            i = file.inode
            file.set(
                atime_ns=i.atime_ns if atime is None else atime,
                mtime_ns=i.mtime_ns if mtime is None else mtime,
                ctime_ns=self.now,
            )

        return self.setattr(ino, Changes(atime_ns=atime, mtime_ns=mtime), apply)

    def op_setxattr(self, ino: int, name: bytes, value: bytes) -> Any:
        ino = self.pick_any(ino)
        file = self.model.any(ino)

        def apply(_result: object) -> None:
            file.xattrs[name] = value
            file.set(ctime_ns=self.now)

        expected = errno.EPERM if ino == MARKER_INO else None
        return lambda: self.world.names.xattrs.set(ino, name, value), expected, apply

    def op_removexattr(self, ino: int, name: bytes) -> Any:
        ino = self.pick_any(ino)
        file = self.model.any(ino)

        def apply(_result: object) -> None:
            del file.xattrs[name]
            file.set(ctime_ns=self.now)

        expected = errno.EPERM if ino == MARKER_INO else None if name in file.xattrs else errno.ENODATA
        return lambda: self.world.names.xattrs.remove(ino, name), expected, apply

    def op_forget(self, number: int) -> Any:
        if not self.model.opened:
            return None
        ino = sorted(self.model.opened)[number % len(self.model.opened)]

        def apply(_result: object) -> None:
            del self.model.opened[ino]

        return lambda: self.world.names.forgotten(ino), None, apply

    # --- rules: programs ----------------------------------------------------------------------------------------------

    @rule(op=operation)
    def one(self, op: tuple[Any, ...]) -> None:
        self.run(op)

    @rule(ops=st.lists(operation, min_size=2, max_size=10))
    def several(self, ops: list[tuple[Any, ...]]) -> None:
        for op in ops:
            self.run(op)

    @rule()
    def look(self) -> None:
        self.compare()

    @rule(number=pick, offset=offset, length=length)
    def read(self, number: int, offset: int, length: int) -> None:
        ino = self.pick_file(number)
        if ino is not None:
            assert self.world.read(ino, offset, length) == bytes(self.model.any(ino).data[offset : offset + length])

    # --- rules: what stays on this machine ----------------------------------------------------------------------------

    @rule(patterns=st.lists(st.sampled_from(["a", "b/", "*", "!c", "/a/b", "c", "\\xff"]), max_size=3))
    def ignore(self, patterns: list[str]) -> None:
        """Patterns come and go."""
        self.ignoring = True
        text = "".join(f"{pattern}\n" for pattern in patterns).encode()
        root = self.model.files[ROOT_INO]
        ino = root.entries.get(IGNORE_NAME)
        if ino is None:
            self.run(("create", 0, IGNORE_NAME, 0o644))
            ino = root.entries[IGNORE_NAME]
        file = self.model.files[ino]
        if file.inode.is_file:
            number = sorted(n for n, f in self.all_files() if f.inode.is_file and n != MARKER_INO).index(ino)
            self.run(("truncate", number, 0))
            if text:
                self.run(("write", number, 0, len(text), text))
            self.run(("utime", sorted(n for n, _ in self.all_files()).index(ino), 1, self.now))

    def all_files(self) -> list[tuple[int, File]]:
        return list({**self.model.files, **self.model.opened}.items())

    # --- rules: the daemon --------------------------------------------------------------------------------------------

    @rule()
    def flush(self) -> None:
        self.world.flush()
        self.now_durable()

    @rule()
    def rotate(self) -> None:
        self.world.index.rotate()

    @rule()
    def fsync(self) -> None:
        self.world.index.sync_point()()
        self.now_durable()

    def now_durable(self) -> None:
        self.durable, self.touched = copy.deepcopy(self.model), set()

    @rule(number=pick)
    def evict(self, number: int) -> None:
        inodes = sorted(self.world.overlay.inodes())
        if inodes:
            self.world.evictor.evict(inodes[number % len(inodes)])

    @rule(number=pick)
    def lose_a_copy(self, number: int) -> None:
        """Somebody cleans up in the cache: a file goes of which the store has everything."""
        index, overlay = self.world.index, self.world.overlay
        inodes = sorted(overlay.inodes())
        if not inodes:
            return
        ino = inodes[number % len(inodes)]
        if not any(codec.is_local(row) for _, row in self.world.do(index.scan, ino, codec.BLOCK)):
            overlay._close(ino)
            os.unlink(overlay._path(ino))

    def attempt(self, steps: Steps, fold: bool, fail_at: str = "", crash: bool = False) -> None:
        """A commit during which programs go on. It may fail at a step."""
        frozen: list[Model] = []

        def reached(step: str) -> None:
            if step == "frozen":
                frozen.append(self.to_commit())
                self.now_durable()
            if step == fail_at:
                if crash:
                    self.world.dead = False
                    self.world.crash()
                    raise Crash
                raise StoreError("failed here")
            for op in steps.get(step, ()):
                self.run(op)

        self.world.reached = reached
        try:
            self.world.commit(may_fold=fold)
        except (StoreError, Crash):
            pass
        finally:
            self.world.reached = lambda _step: None
            self.world.store.heal()
            name = self.world.head().commit
            if name != self.commit_name:
                self.commit_name, self.committed = name, frozen[0] if frozen else self.uncertain

        if frozen:
            self.uncertain = frozen[0]

    steps_strategy = st.dictionaries(st.sampled_from(STEPS), operations, max_size=4)

    @rule(steps=steps_strategy, fold=st.booleans())
    def commit(self, steps: Steps, fold: bool) -> None:
        self.attempt(steps, fold)
        if not any(steps.values()):
            self.check_committed(self.to_commit().tree())
            assert not self.world.index.is_dirty
            self.check_ignored()

    @rule(steps=steps_strategy, fold=st.booleans(), at=st.sampled_from(STEPS))
    def commit_fails(self, steps: Steps, fold: bool, at: str) -> None:
        self.attempt(steps, fold, at)

    @rule(steps=steps_strategy, fold=st.booleans(), after=st.integers(0, 5), applied=st.booleans(), blind=st.booleans())
    def store_fails(self, steps: Steps, fold: bool, after: int, applied: bool, blind: bool) -> None:
        """The store fails from some put on: before it is applied, or only its answer is lost; reads may fail too."""
        left = after

        def break_down(method: str, key: str) -> None:
            nonlocal left
            if method == "put":
                left -= 1
                if left < 0:
                    if blind:
                        self.world.store.fault = unreachable
                    unreachable(method, key)

        if applied:
            self.world.store.lost = break_down
        else:
            self.world.store.fault = break_down
        self.attempt(steps, fold)

    # --- rules: crashes -----------------------------------------------------------------------------------------------

    def after_crash(self) -> None:
        self.model.opened.clear()
        self.compare()
        self.now_durable()

    @rule()
    def crash(self) -> None:
        self.world.restart()
        self.after_crash()

    @rule(steps=steps_strategy, fold=st.booleans(), at=st.sampled_from(STEPS))
    def crash_in_commit(self, steps: Steps, fold: bool, at: str) -> None:
        self.attempt(steps, fold, at, crash=True)
        self.world.crash()
        self.world.start()
        self.after_crash()

    @rule()
    def machine_is_gone(self) -> None:
        self.world.restart_cold()
        found = tree(self.world)
        self.check_committed(found)
        self.model = Model.from_tree(found)
        self.committed = copy.deepcopy(self.model)
        self.after_crash()

    @rule()
    def stop_and_start(self) -> None:
        self.world.stop()
        self.commit_name, self.committed = self.world.head().commit, self.to_commit()
        self.world.start()
        self.after_crash()

    @rule()
    def close_without_saving(self) -> None:
        self.world.close()
        self.world.start()
        self.after_crash()

    @rule()
    def power_loss(self) -> None:
        """What was durable is there, in names and attributes; and the content of what was not touched since."""
        self.world.crash()
        self.boots += 1
        boot = f"00000000-0000-0000-0000-{self.boots:012x}"
        self.patch.setattr(wsfs.sync.start, "boot_id", lambda: boot)
        self.world.start()
        found = tree(self.world)
        expected = self.durable.tree()
        assert {path: (i, x) for path, (i, _, x) in found.items()} == {p: (i, x) for p, (i, _, x) in expected.items()}
        for path, (inode, content, _) in found.items():
            assert inode.ino in self.touched or content == expected[path][1]
        self.model = Model.from_tree(found)
        self.after_crash()

    @rule()
    def elsewhere(self) -> None:
        self.check_bucket()

    # --- rules: an operation that ends half-way -----------------------------------------------------------------------

    @rule(op=operation, point=st.integers(0, 6), crash=st.booleans(), part=st.sampled_from(["before", "half", "after"]))
    def interrupted(self, op: tuple[Any, ...], point: int, crash: bool, part: str) -> None:
        """The disk is full, or the daemon killed, in the middle of an operation: it happened or not, and no more."""
        if op[0] == "forget":
            return
        prepared = getattr(self, "op_" + op[0])(*op[1:])
        if prepared is None or prepared[1] is not None:
            return
        call, _, apply = prepared
        before = copy.deepcopy(self.model)
        world = self.world
        left = [point]
        patch = pytest.MonkeyPatch()

        def refuse(_fd: int, _size: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def stumble() -> None:
            if crash:
                world.crash()
                raise Crash
            raise CacheFullError("full")

        def trip(target: Any, name: str, *, halves: bool = False) -> None:
            original = getattr(target, name)

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                if name == "preserve" and args[1] not in world.overlay._frozen.get(args[0], ()):
                    return None  # there is nothing to do that could fail
                left[0] -= 1
                if left[0] != -1:
                    return original(*args, **kwargs)
                if part == "half" and halves:
                    ino, at, data = args
                    original(ino, at, data[: len(data) // 2])
                elif part == "after" and crash:
                    original(*args, **kwargs)
                return stumble()

            patch.setattr(target, name, wrapper)

        trip(world.index, "apply")
        trip(world.overlay, "begin")
        trip(world.overlay, "write", halves=True)
        trip(world.overlay, "preserve")
        if not crash and part == "before":
            patch.setattr(os, "ftruncate", refuse)
        if crash:
            trip(world.overlay, "cut")
        try:
            result = world.do(call)
        except (Crash, WsfsError):
            result = None
        except OSError as exc:
            if exc.errno != errno.EXDEV or not self.ignoring:
                raise
            return
        finally:
            patch.undo()
        if left[0] >= 0:
            apply(result)
            return
        after = copy.deepcopy(self.model)
        if crash:
            world.start()
            self.model.opened.clear()
        found = tree(world)
        if op[0] in ("write", "truncate"):
            ino = self.pick_file(op[1])
            if ino in self.model.files:
                self.check_partial(before, found, op, ino)
        else:
            self.check_either(before, after, op, found, apply, result)
        opened = self.model.opened
        self.model = Model.from_tree(found)
        self.model.opened = opened
        for ino, file in opened.items():
            file.inode = world.names.inode(ino)
            file.data = bytearray(world.read(ino)) if file.inode.is_file else bytearray()
            file.xattrs = {n: world.names.xattrs.get(ino, n) for n in world.names.xattrs.names(ino)}
        if crash:
            self.now_durable()
        self.touched.update(ino for ino in self.model.files)
        self.compare()

    def check_partial(self, before: Model, found: Any, op: tuple[Any, ...], ino: int) -> None:
        """A write that was not acknowledged may have changed its own range, and nothing else."""
        old = before.files[ino].data
        inode, content = next((i, c) for i, c, _ in found.values() if i.ino == ino)
        if op[0] == "truncate":
            cut = bytes(old[: op[2]]) + bytes(max(op[2] - len(old), 0))
            assert (inode.size, content) in ((len(old), bytes(old)), (op[2], cut))
            return
        _, _, offset, length, filling = op
        assert inode.size in (len(old), max(len(old), offset + length))
        padded = bytes(old) + bytes(max(inode.size - len(old), 0))
        data = (filling * length)[:length]
        assert content[:offset] == padded[:offset]
        assert content[offset + length :] == padded[offset + length :]
        inside = zip(content[offset : offset + length], padded[offset : offset + length], data, strict=False)
        assert all(now in (was, new) for now, was, new in inside)
        others = {p: v for p, v in found.items() if v[0].ino != ino}
        assert others == {p: v for p, v in before.tree().items() if v[0].ino != ino}

    def check_either(self, before: Model, after: Model, op: Any, found: Any, apply: Any, result: Any) -> None:
        """All of the operation happened or nothing of it; what a crash forgets aside."""
        if found == before.tree():
            return
        paths, was = set(found), set(before.tree())
        counts = {"create": 1, "mkdir": 1, "symlink": 1, "link": 1, "unlink": -1, "rmdir": -1}
        if op[0] in counts:
            assert abs(len(paths) - len(was)) == 1
            assert len(paths) == len(was) + counts[op[0]]
        inodes = {i.ino: i for i, _, _ in found.values()}
        assert self.world.index.files == len(inodes)
        assert self.world.index.bytes == sum(i.size for i in inodes.values() if not i.is_dir)
        for path, (inode, _, _) in found.items():
            if inode.is_dir:
                names = [p for p in found if p.startswith(path + b"/") and b"/" not in p[len(path) + 1 :]]
                subdirs = [p for p in names if found[p][0].is_dir]
                assert (inode.size, inode.nlink) == (len(names), 2 + len(subdirs))
            else:
                assert inode.nlink == sum(1 for i, _, _ in found.values() if i.ino == inode.ino)


def test_machine() -> None:
    """Whatever happens in whatever order, the mount and the bucket hold what was acknowledged and committed."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEP_COUNT,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate] + ([Phase.shrink] if SHRINK else []),
            report_multiple_bugs=False,
        ),
    )
