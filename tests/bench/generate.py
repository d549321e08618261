"""Workspaces of any size, written straight into the bucket as one commit.

Every file holds the same block of 200 kB, to which all block rows lead, as after deduplication. So a million files are
200 GB to programs, and a few dozen megabytes of metadata and one pack in the bucket.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

from wsfs.model import FIRST_FREE_ID, MARKER_NAME, ROOT_INO, Dirent, Ino, Inode, Packed, pack_key
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.head import State, read_head
from wsfs.repo.pack import PackWriter, make_frame
from wsfs.repo.segment import Row, decode_segment
from wsfs.repo.workspace import initialise
from wsfs.store.base import Store
from wsfs.sync.bulk import commit_tree
from wsfs.sync.lease import Lease, this_process
from wsfs.sync.load import read_manifest

FILE_SIZE: Final = 200_000
_NOW: Final = time.time_ns()


@dataclass
class Tree:
    """Makes rows in the order of their keys. All directories of a level have as many entries; files are at the
    bottom."""

    widths: tuple[int, ...]
    block: bytes
    next_id: int = FIRST_FREE_ID
    files: int = 0

    def subtree(self, level: int) -> int:
        """How many inodes a directory of this level has below it."""
        if level == len(self.widths):
            return 0
        return self.widths[level] * (1 + self.subtree(level + 1))

    def rows(self, ino: Ino, parent: Ino, level: int, extra: list[Row]) -> Iterator[Row]:
        """A directory and all below it. `extra`: rows of further entries, whose names come first."""
        width = self.widths[level]
        leaf = level + 1 == len(self.widths)
        step = 1 + self.subtree(level + 1)
        first = self.next_id
        yield codec.attr_key(ino), directory(ino, parent, width + len(extra), 0 if leaf else width)
        yield from extra
        kind = stat.S_IFREG if leaf else stat.S_IFDIR
        children = [Ino(child) for child in range(first, first + width * step, step)]
        for number, child in enumerate(children):
            yield codec.dirent_key(ino, name(number, leaf=leaf)), codec.encode_dirent(Dirent(child, kind >> 12, child))
        for child in children:
            self.next_id = child + 1
            if leaf:
                self.files += 1
                yield codec.attr_key(child), regular(child, ino)
                yield codec.block_key(child, 0), self.block
            else:
                yield from self.rows(child, ino, level + 1, [])


def name(number: int, *, leaf: bool) -> bytes:
    return b"%s%06d" % (b"module_" if leaf else b"package_", number)


def directory(ino: Ino, parent: Ino, entries: int, children: int) -> bytes:
    inode = Inode(ino, stat.S_IFDIR | 0o755, 0, 0, 2 + children, 0, entries, _NOW, _NOW, _NOW, parent)
    return codec.encode_inode(inode)


def regular(ino: Ino, parent: Ino) -> bytes:
    inode = Inode(ino, stat.S_IFREG | 0o644, 0, 0, 1, 0, FILE_SIZE, _NOW, _NOW, _NOW, parent)
    return codec.encode_inode(inode)


def path(widths: tuple[int, ...], number: int) -> str:
    """The path of the file of this number, in the top directory's order."""
    parts: list[str] = []
    for level in reversed(range(len(widths))):
        number, here = divmod(number, widths[level])
        parts.append(name(here, leaf=level + 1 == len(widths)).decode())
    return "/".join(reversed(parts))


def layout(files: int, *, wide: bool = False) -> tuple[int, ...]:
    """How many entries the directories of each level have: a hundred at most, or all files in one directory."""
    if wide:
        return (1, files)
    bottom = 100 if files >= 1000 else 10
    middle = min(100, files // bottom)
    return (files // bottom // middle, middle, bottom)


def make(store: Store, widths: tuple[int, ...]) -> int:
    """Initialise a workspace at an empty place, and commit a tree of this layout. Returns the number of its files."""
    initialise(store)
    head = read_head(store)
    first = read_manifest(store, head.head)
    given = {key: value for key, value in decode_segment(store.get(first.base[0].key).data) if value is not None}
    frame = os.urandom(FILE_SIZE)
    lease = Lease.take(store, head, this_process(), takeover=False)
    pack = PackWriter(lease.epoch, 1)
    location = pack.add(make_frame(frame, digest(frame)), FIRST_FREE_ID, 0)
    store.put(pack_key(lease.epoch, 1), pack.finish())
    tree = Tree(widths, codec.encode_block(Packed(location)))
    marker = codec.dirent_key(ROOT_INO, MARKER_NAME)
    own = [row for row in sorted(given.items()) if codec.ino_of(row[0]) != ROOT_INO]

    def rows() -> Iterator[Row]:
        # The marker's rows follow the root's and come before all others.
        top = tree.rows(ROOT_INO, ROOT_INO, 0, [(marker, given[marker])])
        for row in top:
            if codec.ino_of(row[0]) != ROOT_INO and own:
                yield from own
                own.clear()
            yield row

    inodes = tree.subtree(0)
    commit_tree(
        store,
        lease,
        first,
        rows(),
        next_id=FIRST_FREE_ID + inodes,
        files=first.files + inodes,
        size=first.bytes + prod(widths) * FILE_SIZE,
    )
    lease.release(State.STOPPED)
    return tree.files
