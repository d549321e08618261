"""A whole workspace out of its bucket, as it is in one commit: without a mount, and without a cache.

All rows are read first, and then the files in the order in which they lie in packs, so that nearly every request is for
many of them. What is damaged is told, and does not keep anything else back.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from wsfs.beside import Ended, beside
from wsfs.errors import FormatError, WsfsError
from wsfs.log import get_log
from wsfs.model import BLOCK_SIZE, ROOT_INO, Block, FrameLoc, Inline, Inode, Packed
from wsfs.repo import codec
from wsfs.repo.manifest import Manifest
from wsfs.store.base import Store
from wsfs.sync.frames import FrameUse, Opened, in_order
from wsfs.sync.pins import READER_SECONDS, Kind, pin_longer
from wsfs.sync.progress import Progress
from wsfs.sync.retain import READERS
from wsfs.sync.verify import Reading
from wsfs.targets import Content, Target

log = get_log(__name__)

KEPT_MAX: Final = 64 << 20
"""So many bytes of frames that several blocks lead to are kept in memory, so that they are fetched once."""

Problems = list[str]

_Numbered = tuple[int, int, Block | FormatError]


@dataclass(slots=True)
class Tree:
    """What the rows of a commit say. `problems`: what is wrong with them, one sentence each."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    entries: dict[int, list[tuple[bytes, int]]] = field(default_factory=dict)
    links: dict[int, bytes] = field(default_factory=dict)
    xattrs: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    blocks: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    problems: Problems = field(default_factory=list)


def read_tree(store: Store, manifest: Manifest) -> Tree:
    """All rows of a commit. Raises StoreError."""
    tree = Tree()
    reading = Reading(store, manifest)
    for key, row in reading.rows():
        ino, table = codec.ino_of(key), codec.table_of(key)
        try:
            if table == codec.ATTR:
                tree.inodes[ino] = codec.decode_inode(ino, row)
            elif table == codec.DIRENT:
                tree.entries.setdefault(ino, []).append((key[9:], codec.decode_dirent(row).ino))
            elif table == codec.BLOCK:
                tree.blocks.setdefault(ino, []).append((codec.block_index(key), row))
            elif table == codec.SYMLINK:
                tree.links[ino] = row
            else:
                tree.xattrs.setdefault(ino, {})[key[9:]] = row[1:]
        except FormatError as exc:
            tree.problems.append(str(exc))
    tree.problems += [why for _, why in reading.bad_segments]
    return tree


@contextmanager
def held(store: Store, commit: str, *, newest: bool) -> Iterator[None]:
    """Keep a commit while it is exported, by a pin as readers have it. HEAD's is kept for an hour in any case."""

    def keep(ended: Ended) -> None:
        wait = READERS / 2 if newest else 0.0
        while not ended(wait):
            try:
                pin_longer(store, commit, "exported", Kind.READER, READER_SECONDS)
            except WsfsError as exc:
                log.warning("this save point is not pinned, and may be deleted while it is exported", error=exc)
            wait = READER_SECONDS / 2

    with beside("wsfs-hold", keep):
        yield


def extract(store: Store, manifest: Manifest, target: Target, progress: Progress) -> Problems:
    """Give a whole commit to a target, which is closed then. Returns what is wrong with its names and attributes.

    Raises StoreError, OSError.
    """
    tree = read_tree(store, manifest)
    _Extract(store, tree, target, progress).run()
    return tree.problems


class _Extract:
    def __init__(self, store: Store, tree: Tree, target: Target, progress: Progress) -> None:
        self._store = store
        self._tree = tree
        self._target = target
        self._progress = progress
        self._paths: dict[int, bytes] = {}
        self._again: list[tuple[bytes, int]] = []
        self._kept: dict[FrameLoc, bytes | FormatError | None] = {}

    def run(self) -> None:
        self._place(ROOT_INO, b"")
        self._place_lost()
        inodes = self._tree.inodes
        files = [ino for ino in self._paths if inodes[ino].is_file]
        total = sum(inodes[ino].size for ino in files)
        self._progress.plan(len(self._paths), total)
        for ino, path in self._paths.items():
            if not inodes[ino].is_file:
                self._make(path, inodes[ino])
                self._progress.done(1, 0, 0)
        files.sort(key=self._position)
        self._choose_kept(files)
        opened = in_order(self._store, self._fetched(files))
        try:
            for ino in files:
                self._file(inodes[ino], opened)
        finally:
            opened.close()
        for path, ino in self._again:
            self._target.again(path, self._paths[ino])
        self._target.close()

    # --- names ----------------------------------------------------------------------------------------------------

    def _place(self, top: int, path: bytes) -> None:
        """Give an inode, and what lies below it, their paths: directories before what is in them."""
        tree = self._tree
        if top not in tree.inodes:
            tree.problems.append(f"the attributes of {'the top directory' if not path else repr(path)} are missing")
            return
        self._paths[top] = path
        pending = [top]
        while pending:
            parent = pending.pop()
            prefix = self._paths[parent] + b"/" if self._paths[parent] else b""
            for name, ino in tree.entries.get(parent, ()):
                inode = tree.inodes.get(ino)
                if inode is None:
                    tree.problems.append(f"the attributes of {prefix + name!r} are missing")
                elif ino in self._paths:
                    if inode.is_dir:
                        tree.problems.append(f"the directory {prefix + name!r} has another name")
                    else:
                        self._again.append((prefix + name, ino))
                else:
                    self._paths[ino] = prefix + name
                    if inode.is_dir:
                        pending.append(ino)

    def _place_lost(self) -> None:
        """What a damaged commit has no path for."""
        if len(self._paths) == len(self._tree.inodes):
            return
        taken = {name for name, _ in self._tree.entries.get(ROOT_INO, ())}
        directory, number = b"lost+found", 0
        while directory in taken:
            number += 1
            directory = b"lost+found.%d" % number
        for ino in list(self._tree.inodes):
            if ino not in self._paths:
                self._tree.problems.append(f"inode {ino} has no name: it is in {directory.decode()!r}")
                self._place(ino, b"%s/%d" % (directory, ino))

    def _make(self, path: bytes, inode: Inode) -> None:
        """Anything but a file."""
        xattrs = self._tree.xattrs.get(inode.ino, {})
        if inode.is_dir:
            self._target.directory(path, inode, xattrs)
        elif not stat.S_ISLNK(inode.mode):
            self._target.special(path, inode, xattrs)
        elif inode.ino in self._tree.links:
            self._target.link(path, self._tree.links[inode.ino], inode, xattrs)
        else:
            self._target.done.incomplete.append(path)

    # --- bytes ----------------------------------------------------------------------------------------------------

    def _position(self, ino: int) -> tuple[int, int, int, int]:
        """Where a file's bytes begin in the store."""
        for _, row in self._tree.blocks.get(ino, ()):
            place = codec.place_of(row)
            if place is not None:
                return (*place[:3], ino)
        return 0, 0, 0, ino

    def _blocks(self, ino: int) -> Iterator[_Numbered]:
        """Number and length of each block of a file, and what its row says."""
        size = self._tree.inodes[ino].size
        for index, row in self._tree.blocks.get(ino, ()):
            length = min(BLOCK_SIZE, size - index * BLOCK_SIZE)
            if length <= 0:
                continue
            try:
                yield index, length, codec.decode_block(row)
            except FormatError as exc:
                yield index, length, exc

    def _frames(self, files: list[int]) -> Iterator[FrameUse]:
        for ino in files:
            for index, _, block in self._blocks(ino):
                if isinstance(block, Packed):
                    yield FrameUse(ino, index, block.loc)

    def _choose_kept(self, files: list[int]) -> None:
        """Which frames to keep once they have been read, for blocks that come later."""
        seen: set[FrameLoc] = set()
        room = KEPT_MAX
        for use in self._frames(files):
            place = _whole(use)
            if place in seen and place not in self._kept and use.loc.raw_length <= room:
                room -= use.loc.raw_length
                self._kept[place] = None
            seen.add(place)

    def _fetched(self, files: list[int]) -> Iterator[FrameUse]:
        """The frames to read: those that are kept once."""
        asked: set[FrameLoc] = set()
        for use in self._frames(files):
            place = _whole(use)
            if place in asked:
                continue
            if place in self._kept:
                asked.add(place)
            yield use

    def _file(self, inode: Inode, opened: Iterator[Opened]) -> None:
        path = self._paths[inode.ino]
        blocks = list(self._blocks(inode.ino))
        extents = [(index * BLOCK_SIZE, length) for index, length, _ in blocks]
        counted = 0

        def pieces() -> Iterator[tuple[int, bytes | WsfsError]]:
            nonlocal counted
            for offset, piece in self._pieces(inode.ino, blocks, opened):
                yield offset, piece
                length = 0 if isinstance(piece, WsfsError) else len(piece)
                counted += length
                self._progress.done(0, length, 0)

        self._target.file(path, Content(inode.size, pieces(), extents), inode, self._tree.xattrs.get(inode.ino, {}))
        self._progress.done(1, inode.size - counted, 0)

    def _pieces(
        self, ino: int, blocks: list[_Numbered], opened: Iterator[Opened]
    ) -> Iterator[tuple[int, bytes | WsfsError]]:
        for index, length, block in blocks:
            if isinstance(block, Packed):
                piece = self._piece(FrameUse(ino, index, block.loc), length, opened)
            elif isinstance(block, Inline):
                piece = block.data[:length]
            else:
                piece = block if isinstance(block, FormatError) else FormatError("a block was never uploaded")
            yield index * BLOCK_SIZE, piece

    def _piece(self, use: FrameUse, length: int, opened: Iterator[Opened]) -> bytes | FormatError:
        place = _whole(use)
        data = self._kept.get(place)
        if data is None:
            found, data = next(opened)
            assert found == use
            if place in self._kept:
                self._kept[place] = data
        return data if isinstance(data, FormatError) else data[: min(use.loc.length, length)]


def _whole(use: FrameUse) -> FrameLoc:
    return use.loc._replace(length=use.loc.raw_length)
