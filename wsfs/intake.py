"""A whole tree into an empty workspace, at the speed of the store: without a mount, and as one commit.

    lay out   read all names and attributes of the source, and give them numbers
    lease     from here on nobody else can commit
    packs     the bytes, compressed, in several packs at a time, in the order of directories and names
    commit    all rows as base partitions, the manifest, HEAD

Until HEAD is swapped the workspace is as it was.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Final, NamedTuple

from wsfs.errors import FormatError, UsageError, WorkspaceExistsError
from wsfs.model import BLOCK_SIZE, MARKER_INO, MARKER_NAME, NAME_MAX, ROOT_INO, Dirent, Ino, Inode, blocks_of
from wsfs.repo import codec
from wsfs.repo.head import read_head
from wsfs.repo.manifest import Manifest
from wsfs.repo.pack import PackWriter
from wsfs.repo.segment import Row
from wsfs.repo.workspace import read_format
from wsfs.sources import Item, Source
from wsfs.store.base import Store
from wsfs.sync.bulk import commit_tree, holding
from wsfs.sync.commit import Saved
from wsfs.sync.lease import Lease, this_process
from wsfs.sync.load import read_manifest
from wsfs.sync.progress import Progress
from wsfs.sync.upload import Packs, Uploaded, Work
from wsfs.sync.verify import Reading
from wsfs.text import printable

EMPTY: Final = 2
"""How many files a workspace has in which there is only the marker: that, and the top directory."""

_TARGET_MAX: Final = 4095
_UPLOADS: Final = 8
_DIRECTORY: Final = stat.S_IFDIR >> 12


class _Entry(NamedTuple):
    ino: Ino
    kind: int
    cookie: int


class Layout:
    """A tree that is about to be made. Numbers begin at `first_free`; `owner` is that of all, or None: as it was."""

    def __init__(self, root: Inode, first_free: int, owner: tuple[int, int] | None, now: int) -> None:
        self._root = root
        self._owner = owner
        self._now = now
        self._numbers = count(first_free)
        self.inodes: dict[Ino, Inode] = {ROOT_INO: self._owned(root)}
        self.entries: dict[Ino, dict[bytes, _Entry]] = {ROOT_INO: {}}
        self.directories: dict[bytes, Ino] = {b"": ROOT_INO}
        self.items: dict[Ino, Item] = {}

    @property
    def next_id(self) -> int:
        """The first number that nothing has."""
        return next(self._numbers)

    def add(self, item: Item) -> None:
        """Take one name of the source. Raises UsageError for what cannot be in a workspace."""
        if item.path.partition(b"/")[0] == MARKER_NAME:
            return  # each workspace has its own
        if not item.path:
            self._change(ROOT_INO, item)
            return
        above, _, name = item.path.rpartition(b"/")
        parent = self._directory(above)
        if len(name) > NAME_MAX or len(item.target) > _TARGET_MAX:
            raise UsageError(f"{printable(item.path)} cannot be in a workspace: its name or link target is too long")
        found = self.entries[parent].get(name)
        if found is not None and found.kind == _DIRECTORY:
            if not item.about.is_dir:
                raise UsageError(f"{printable(item.path)} is a directory, and something else as well")
            self._change(found.ino, item)
            return
        if item.same_as is None:
            ino = Ino(next(self._numbers))
            self._make(ino, parent, item)
            self.entries[parent][name] = _Entry(ino, item.about.mode >> 12, ino)
        else:
            first = self._find(item.same_as)
            if first is None or first.kind == _DIRECTORY:
                raise UsageError(f"{printable(item.path)} is a hard link to what is no file before it")
            self.entries[parent][name] = _Entry(first.ino, first.kind, next(self._numbers))

    def complete(self) -> None:
        """All names are there: count links and entries. What lost its only name to a later one goes."""
        links: dict[Ino, int] = {}
        below: dict[Ino, int] = {}
        for parent, names in self.entries.items():
            for entry in names.values():
                links[entry.ino] = links.get(entry.ino, 0) + 1
                if entry.kind == _DIRECTORY:
                    below[parent] = below.get(parent, 0) + 1
        self.entries[ROOT_INO][MARKER_NAME] = _Entry(MARKER_INO, stat.S_IFREG >> 12, MARKER_INO)
        for ino, inode in list(self.inodes.items()):
            if inode.is_dir:
                size, nlink = len(self.entries[ino]), 2 + below.get(ino, 0)
                self.inodes[ino] = inode._replace(size=size, nlink=nlink, ctime_ns=self._now)
            elif ino in links:
                self.inodes[ino] = inode._replace(nlink=links[ino], ctime_ns=self._now)
            else:
                del self.inodes[ino], self.items[ino]

    def _make(self, ino: Ino, parent: Ino, item: Item) -> None:
        self.inodes[ino] = self._owned(item.about._replace(ino=ino, parent=parent))
        self.items[ino] = item
        if item.about.is_dir:
            self.entries[ino] = {}
            self.directories[item.path] = ino

    def _change(self, ino: Ino, item: Item) -> None:
        if not item.about.is_dir:
            raise UsageError("what is imported must be a directory, or an archive of one")
        self.inodes[ino] = self._owned(item.about._replace(ino=ino, parent=self.inodes[ino].parent))
        self.items[ino] = item

    def _owned(self, inode: Inode) -> Inode:
        return inode if self._owner is None else inode._replace(uid=self._owner[0], gid=self._owner[1])

    def _directory(self, path: bytes) -> Ino:
        """The directory at a path. An archive need not have told it."""
        if path not in self.directories:
            if self._find(path) is not None:
                raise UsageError(f"{printable(path)} is no directory, and something is in it")
            about = self._root._replace(mode=stat.S_IFDIR | 0o755, atime_ns=self._now, mtime_ns=self._now)
            self.add(Item(path, about))
        return self.directories[path]

    def _find(self, path: bytes) -> _Entry | None:
        above, _, name = path.rpartition(b"/")
        parent = self.directories.get(above)
        return None if parent is None else self.entries[parent].get(name)

    # --- what goes into the bucket --------------------------------------------------------------------------------

    def works(self) -> list[Work]:
        """The blocks to upload, so that files of one directory end up side by side."""
        found: list[Work] = []
        names: dict[Ino, tuple[int, bytes]] = {}
        for parent, entries in self.entries.items():
            for name, entry in entries.items():
                names.setdefault(entry.ino, (parent, name))
        for ino, inode in self.inodes.items():
            if inode.is_file:
                for index in self._indexes(ino):
                    length = min(BLOCK_SIZE, inode.size - index * BLOCK_SIZE)
                    found.append(Work(names[ino], ino, index, length, inode.size))
        found.sort(key=lambda work: (work.name, work.ino, work.index))
        return found

    def _indexes(self, ino: Ino) -> Iterator[int]:
        """The blocks of a file that may hold anything but zeros."""
        extents = self.items[ino].extents
        if extents is None:
            yield from range(blocks_of(self.inodes[ino].size))
            return
        told = -1
        for start, length in sorted(extents):
            end = min(start + length, self.inodes[ino].size)
            for index in range(max(start // BLOCK_SIZE, told + 1), blocks_of(end)):
                yield index
                told = index

    def rows(self, marker: list[Row], resolved: dict[bytes, bytes | None]) -> Iterator[Row]:
        """All rows in the order of their keys; `marker` has the marker's."""
        for ino, inode in self.inodes.items():
            yield codec.attr_key(ino), codec.encode_inode(inode)
            item = self.items.get(ino)
            if inode.is_file:
                for index in self._indexes(ino):
                    row = resolved.get(codec.block_key(ino, index))
                    if row is not None:
                        yield codec.block_key(ino, index), row
            elif inode.is_dir:
                for name, entry in sorted(self.entries[ino].items()):
                    yield codec.dirent_key(ino, name), codec.encode_dirent(Dirent(*entry))
            elif stat.S_ISLNK(inode.mode) and item is not None:
                yield codec.symlink_key(ino), item.target
            for name, value in sorted(item.xattrs) if item is not None else ():
                yield codec.xattr_key(ino, name), b"=" + value
            if ino == ROOT_INO:
                yield from marker


class TakenIn(NamedTuple):
    """What an import did: the workspace's id, the time of its save point, and the rest."""

    workspace: str
    saved_at: str
    saved: Saved


class _Bytes:
    """What `Packs` asks for the bytes of blocks."""

    def __init__(self, layout: Layout, source: Source) -> None:
        self._items = layout.items
        self._source = source

    def capture(self, ino: int, index: int, length: int) -> bytes:
        return self._source.read(self._items[Ino(ino)].handle, index * BLOCK_SIZE, length)


def check_empty(store: Store, manifest: Manifest) -> None:
    """Raise WorkspaceExistsError if there is anything but the marker."""
    if manifest.files != EMPTY:
        raise WorkspaceExistsError(
            f"the workspace at {store.url} has files already: import into a new one, or mount it and copy"
        )


def take_in(
    store: Store,
    source: Source,
    *,
    owner: tuple[int, int] | None,
    progress: Progress,
    clock: Callable[[], float] = time.time,
) -> TakenIn:
    """Make all of `source` the next commit of an empty workspace.

    Raises WorkspaceExistsError, LeaseHeldError, UsageError, OSError, StoreError, FencedError.
    """
    began = time.monotonic()
    fmt = read_format(store)
    version = read_head(store)
    before = read_manifest(store, version.head)
    check_empty(store, before)
    reading = Reading(store, before)
    given = dict(reading.rows())
    if reading.bad_segments:
        raise FormatError(reading.bad_segments[0][1])
    marker: list[Row] = [(key, row) for key, row in sorted(given.items()) if codec.ino_of(key) == MARKER_INO]
    root = codec.decode_inode(ROOT_INO, given[codec.attr_key(ROOT_INO)])
    layout = Layout(root, before.next_id, owner, int(clock() * 1_000_000_000))
    for item in source.items():
        layout.add(item)
    layout.complete()
    # HEAD is swapped only if it is still the one that was found empty.
    lease = Lease.take(store, version, this_process(clock), takeover=False)
    with holding(lease, version.head):
        saved = _send(store, lease, before, layout, source, marker, progress, clock)
    return TakenIn(fmt.workspace_id, lease.head.saved_at, replace(saved, seconds=time.monotonic() - began))


def _send(
    store: Store,
    lease: Lease,
    before: Manifest,
    layout: Layout,
    source: Source,
    marker: list[Row],
    progress: Progress,
    clock: Callable[[], float],
) -> Saved:
    works = layout.works()
    names = len(layout.inodes) - 1  # the top directory was there
    rest = names - len({work.ino for work in works})
    progress.plan(names, sum(work.length for work in works))
    progress.prepared(rest)
    progress.done(rest, 0, 0)
    numbers = count(1)
    packs = Packs(
        store,
        _Bytes(layout, source),
        None,
        None,
        lambda: PackWriter(lease.epoch, next(numbers)),
        Uploaded(),
        uploads=_UPLOADS,
        compressors=2,
        progress=progress,
    )
    try:
        resolved = packs.upload(works, lambda _work: True)
    finally:
        packs.close()
    lease.grew(packs.sent)
    size = sum(inode.size for inode in layout.inodes.values() if not inode.is_dir) + _size_of(marker)
    manifest, sent, puts = commit_tree(
        store,
        lease,
        before,
        layout.rows(marker, resolved),
        next_id=layout.next_id,
        files=names + EMPTY,
        size=size,
        clock=clock,
    )
    return Saved(manifest.seq, names + EMPTY, size, packs.sent + sent, packs.puts + puts, 0.0)


def _size_of(marker: list[Row]) -> int:
    attributes = dict(marker)[codec.attr_key(MARKER_INO)]
    assert attributes is not None
    return codec.decode_inode(MARKER_INO, attributes).size
