"""A workspace over a store in memory and a cache directory, without FUSE, that can be crashed and restarted."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

import wsfs.parallel
import wsfs.store.probe
import wsfs.sync.start
from wsfs.data.files import Files
from wsfs.data.overlay import Overlay
from wsfs.errors import TransientStoreError
from wsfs.index.index import Index
from wsfs.model import ROOT_INO, Ino, Inode
from wsfs.remote import fetch_all
from wsfs.repo.head import Head, Holder, State, decode_head
from wsfs.repo.workspace import initialise
from wsfs.store.base import Blob
from wsfs.store.memory import MemoryBucket, MemoryStore
from wsfs.sync.commit import Committer, Saved
from wsfs.sync.evict import Evictor
from wsfs.sync.lease import this_process
from wsfs.sync.start import CacheDirectory, Workspace, open_workspace
from wsfs.tree.namespace import Caller, Changes, Namespace

T = TypeVar("T")

CALLER = Caller(1000, 1000)
SMALL_BLOCK = 4096
SMALL = {
    "BLOCK_SIZE": SMALL_BLOCK,
    "HELD_MAX": 2048,
    "TARGET_SIZE": 3 * SMALL_BLOCK,
    "PARTITION_SIZE": 600,
    "MAX_DELTAS": 3,
    "_FOLD_FLOOR": 500,
    "WINDOW": 2 * SMALL_BLOCK,
    "LARGE_FILE": 2 * SMALL_BLOCK,
    "_PREALLOCATE": 1 << 16,  # a directory in memory gives it as pages
}


def new_directory() -> Path:
    """A temporary directory, in memory where that is possible."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="wsfs-test-", dir=memory if os.access(memory, os.W_OK) else None))


class _AtOnce(Executor):
    """Does what it is told when it is told. To start a thread takes many times as long as a store in memory does."""

    def __init__(self, threads: int, name: str = "") -> None:
        pass

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as exc:  # as in a thread
            future.set_exception(exc)
        return future


def without_threads(patch: pytest.MonkeyPatch) -> None:
    """Requests go out one after the other where a mount would send several. Not for a commit, which needs its threads;
    and the tests with real mounts have them all."""
    for module in (wsfs.parallel, wsfs.sync.start, wsfs.store.probe):
        patch.setattr(module, "ThreadPoolExecutor", _AtOnce)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Small blocks everywhere alike, and small packs, partitions and windows, so that borders are cheap to reach."""
    without_threads(patch)
    for name, module in list(sys.modules.items()):
        for constant, value in SMALL.items():
            if name.startswith("wsfs.") and hasattr(module, constant):
                patch.setattr(module, constant, value)


class Crash(BaseException):
    """The daemon was killed here. Not an Exception: nothing may handle it."""


class Store(MemoryStore):
    """A store that can fail: `fault(method, key)` may raise before a call, `lost(method, key)` after it."""

    def __init__(self, bucket: MemoryBucket) -> None:
        super().__init__(bucket=bucket)
        self.fault: Callable[[str, str], None] = lambda _method, _key: None
        self.lost: Callable[[str, str], None] = lambda _method, _key: None
        self.log: list[tuple[str, str]] = []

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        self.log.append(("get", key))
        self.fault("get", key)
        return super().get(key, start, length)

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        self.log.append(("put", key))
        self.fault("put", key)
        etag = super().put(key, data, if_match=if_match, if_none_match=if_none_match)
        self.lost("put", key)
        return etag

    def heal(self) -> None:
        """No more faults."""
        del self.fault, self.lost
        self.fault = self.lost = lambda _method, _key: None

    def puts(self, prefix: str = "") -> list[str]:
        """The keys that were put since the log was cleared."""
        return [key for method, key in self.log if method == "put" and key.startswith(prefix)]


def until(condition: Callable[[], object]) -> None:
    """Wait for what a thread does."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def unreachable(_method: str, _key: str) -> None:
    """For `Store.fault`: the network is down."""
    raise TransientStoreError("the network is down")


class World:
    """A workspace, its bucket, its cache directory and its clock."""

    def __init__(self, root: Path, *, bucket: MemoryBucket | None = None) -> None:
        self.cache_path = root / "cache"
        self.bucket = MemoryBucket() if bucket is None else bucket
        self.now = 1_700_000_000_000_000_000
        self.told: list[str] = []
        self.reached: Callable[[str], None] = lambda _step: None
        self.starting: Callable[[str], None] = lambda _step: None
        self.watch: Callable[[Store], None] = lambda _store: None
        self.dead = True
        self.workspace: Workspace
        self.committer: Committer
        self.store = Store(self.bucket)
        if bucket is None:
            initialise(self.store, owner=(1000, 1000), clock=lambda: 1_700_000_000)

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self, *, me: Holder | None = None, takeover: bool = False, read_only: bool = False) -> None:
        """Mount."""
        assert self.dead
        self.store = self.observer()
        self.watch(self.store)
        self.cache = CacheDirectory(self.cache_path, self.told.append, sleep=lambda _seconds: None)
        try:
            self.workspace = open_workspace(
                self.store,
                self.cache,
                me or this_process(),
                takeover=takeover,
                read_only=read_only,
                cache_size=1 << 40,
                tell=self.told.append,
                reached=lambda step: self.starting(step),
            )
        except BaseException:
            self.cache.close(clean=False)
            raise
        self.dead = False
        w = self.workspace
        w.names._clock._read = lambda: self.now
        self.evictor = Evictor(w.index, w.overlay, w.packs)
        if w.lease is not None:
            self.committer = Committer(
                self.store,
                w.index,
                w.overlay,
                w.packs,
                w.lease,
                self._on_owner,
                clock=lambda: self.now / 1e9,
                judge=w.names.judge,
                reached=lambda step: self.reached(step),
                uploads=1,
                compressors=1,
            )

    def _on_owner(self, function: Callable[[], T], /) -> T:
        if self.dead:
            raise Crash
        return function()

    def crash(self) -> None:
        """Kill -9: nothing is flushed or tidied up; descriptors are closed, as the kernel does it."""
        if self.dead:
            return
        self.dead = True
        index = self.index
        index._reader.close()
        index.tables.close()
        index._journal.close()
        if index._imm is not None:
            index._old_journal.close()
        self.overlay._cuts.clear()  # what the disk has refused stays so
        self.overlay.close()
        self.cache.close(clean=False)

    def stop(self) -> None:
        """An orderly unmount: everything saved, everything closed."""
        self.committer.commit(State.STOPPING)
        assert self.workspace.lease is not None
        self.workspace.lease.release(State.STOPPED)
        self.close()

    def close(self) -> None:
        """Close in order without saving."""
        self.dead = True
        self.workspace.close()
        self.cache.close(clean=True)

    def restart(self) -> None:
        """Crash, and mount again with the same cache."""
        self.crash()
        self.start()

    def restart_cold(self) -> None:
        """Crash, and mount again with an empty cache."""
        self.crash()
        shutil.rmtree(self.cache_path)
        self.start()

    def observer(self) -> Store:
        """The bucket as somebody else sees it."""
        return Store(self.bucket)

    # --- parts ----------------------------------------------------------------------------------------------------

    @property
    def index(self) -> Index:
        return self.workspace.index

    @property
    def overlay(self) -> Overlay:
        return self.workspace.overlay

    @property
    def files(self) -> Files:
        return self.workspace.files

    @property
    def names(self) -> Namespace:
        return self.workspace.names

    def head(self) -> Head:
        """HEAD as it is in the bucket."""
        return decode_head(self.bucket.objects["HEAD"].data)

    def do(self, operation: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run an operation as a mount does, fetching what it needs; each moves the clock on."""
        self.now += 1
        return fetch_all(lambda: operation(*args, **kwargs))

    def commit(self, state: State = State.RUNNING, *, may_fold: bool = True) -> Saved | None:
        return self.committer.commit(state, may_fold=may_fold)

    # --- shorthands -----------------------------------------------------------------------------------------------

    def create(self, name: bytes, data: bytes = b"", parent: Ino = ROOT_INO) -> Ino:
        """A new file with content."""
        ino = self.do(self.names.make, parent, name, stat.S_IFREG | 0o644, CALLER).ino
        if data:
            self.write(ino, 0, data)
        return ino

    def mkdir(self, name: bytes, parent: Ino = ROOT_INO) -> Ino:
        return self.do(self.names.make, parent, name, stat.S_IFDIR | 0o755, CALLER).ino

    def write(self, ino: Ino, offset: int, data: bytes) -> None:
        assert self.do(self.files.write, ino, offset, data) == len(data)

    def truncate(self, ino: Ino, size: int) -> None:
        self.do(self.names.setattr, ino, Changes(size=size), CALLER)

    def unlink(self, name: bytes, parent: Ino = ROOT_INO) -> Ino:
        """Remove a name, of a file that nobody has open."""
        ino = self.do(self.names.unlink, parent, name)
        self.names.forgotten(ino)
        return ino

    def read(self, ino: Ino, offset: int = 0, size: int = 1 << 30) -> bytes:
        return self.do(self.files.read, ino, offset, size)

    def content(self, name: bytes, parent: Ino = ROOT_INO) -> bytes:
        return self.read(self.do(self.names.lookup, parent, name).ino)

    def entries(self, ino: Ino = ROOT_INO, after: int = 0) -> list[tuple[bytes, int, Inode]]:
        """A directory as readdir sees it; a later part of it may have to be asked for separately."""
        return self.do(lambda: list(self.names.entries(ino, after)))

    def listing(self, ino: Ino = ROOT_INO) -> list[bytes]:
        return [name for name, _, _ in self.entries(ino)]

    def flush(self) -> None:
        """What the mount does every few seconds."""
        self.index.rotate()
        self.index.flush()

    def fsync(self, ino: Ino) -> None:
        """As the fsync handler does it."""
        self.index.guard_data(ino)
        self.index.sync_point(ino)()

    def errno(self, operation: Callable[..., object], *args: Any, **kwargs: Any) -> int | None:
        """The errno with which an operation fails, None if it does not."""
        try:
            self.do(operation, *args, **kwargs)
        except OSError as exc:
            return exc.errno
        return None


def tree(world: World) -> dict[bytes, tuple[Inode, bytes, dict[bytes, bytes]]]:
    """Everything that a program can see: by path the attributes, the content or link target, and the xattrs."""
    found: dict[bytes, tuple[Inode, bytes, dict[bytes, bytes]]] = {}

    def visit(path: bytes, inode: Inode) -> None:
        content = b""
        if inode.is_file:
            content = world.read(inode.ino)
        elif stat.S_ISLNK(inode.mode):
            content = world.do(world.names.readlink, inode.ino)
        names = world.do(world.names.xattrs.names, inode.ino)
        attributes = {name: world.do(world.names.xattrs.get, inode.ino, name) for name in names}
        found[path] = (inode, content, attributes)
        if inode.is_dir:
            cookies = []
            for name, cookie, child in world.entries(inode.ino):
                assert world.do(world.names.lookup, inode.ino, name) == child
                cookies.append(cookie)
                visit(path + b"/" + name, child)
            assert cookies == sorted(set(cookies))

    visit(b"", world.do(world.names.inode, ROOT_INO))
    return found


def saved_tree(world: World, directory: Path) -> dict[bytes, tuple[Inode, bytes, dict[bytes, bytes]]]:
    """What somebody else finds in the bucket now: a read-only mount with a cache of its own."""
    other = World(directory, bucket=world.bucket)
    other.start(read_only=True)
    try:
        found = tree(other)
        check_counters(other, found)
    finally:
        other.crash()
        with suppress(FileNotFoundError):
            shutil.rmtree(other.cache_path)
    return found


def check_counters(world: World, found: dict[bytes, tuple[Inode, bytes, dict[bytes, bytes]]]) -> None:
    """The counters that statfs shows are those of the tree."""
    inodes = {inode.ino: inode for inode, _, _ in found.values()}
    assert world.index.files == len(inodes)
    assert world.index.bytes == sum(inode.size for inode in inodes.values() if not inode.is_dir)


@contextmanager
def started() -> Iterator[World]:
    """One in a directory of its own, as long as it is needed."""
    root = new_directory()
    world = World(root)
    world.start()
    yield world
    world.crash()
    shutil.rmtree(root)


def delayed_swap(world: World) -> Callable[[], object]:
    """The next swap of HEAD gets no answer, although it is on its way: the result lets it arrive."""
    late: list[Callable[[], object]] = []
    put = world.store.put

    def given_up(key: str, data: bytes, **condition: Any) -> str:
        if key == "HEAD" and not late:
            late.append(lambda: put(key, data, **condition))
            raise TransientStoreError("given up")
        return put(key, data, **condition)

    world.store.put = given_up  # type: ignore[method-assign]
    return lambda: late[0]()
