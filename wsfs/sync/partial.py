"""What a commit leaves out when time is short, so that what it holds is still whole.

Names, attributes and directories are never left out, except those of the files concerned. A file is left out whole:

    new       the file and its name; its directory has one entry less then
    changed   its attributes and blocks: the last commit's count
    replaced  the new file and its name, and that the old file is gone: under that name the last commit's file stays

Where none of these is certain (a file with several names, one that was renamed and changed) the file cannot be left
out, and is sent first. What was left out stays dirty, for the next commit.

What `.wsfsignore` keeps on this machine is left out of every commit. It is not dirty, so nothing of it has to be looked
at: only the directories that have such entries are published with fewer.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from wsfs.index.kept import Fewer, Kept
from wsfs.index.order import in_order
from wsfs.index.tables import Reader, Writer
from wsfs.model import ROOT_INO, Ino, Inode
from wsfs.repo import codec
from wsfs.sync.upload import Work

SMALL: Final = 1 << 20
"""Files of users up to this size go first."""

CACHES: Final = frozenset({b"__pycache__", b".cache", b"node_modules", b"site-packages", b".ipynb_checkpoints"})
"""What lies in directories of these names can be made again: it goes last."""

MUST, SMALL_FILES, LARGE_FILES, CACHED = range(4)

_U64 = struct.Struct(">Q")
_NONE = Fewer(0, 0)

Rows = dict[bytes, bytes | None]


@dataclass(frozen=True, slots=True)
class Choice:
    """A file that may be left out: the keys that then do not count, the inodes that stay dirty, and how many
    files and bytes the commit has less."""

    keys: tuple[bytes, ...]
    inodes: tuple[int, ...]
    parent: int | None
    files: int
    size: int


@dataclass(slots=True)
class Left:
    """What a commit leaves out. `parents`: how many entries fewer a directory has; `before`: the bucket's own rows;
    `kept`: what directories have fewer because it never leaves this machine."""

    inodes: set[int] = field(default_factory=set)
    keys: set[bytes] = field(default_factory=set)
    dirty: set[int] = field(default_factory=set)
    parents: dict[int, int] = field(default_factory=dict)
    files: int = 0
    size: int = 0
    before: Rows = field(default_factory=dict)
    kept: Mapping[int, Fewer] = field(default_factory=dict)

    def stays_here(self, kept: Kept) -> None:
        """At the freeze: what stays on this machine is left out."""
        self.kept = kept.fewer()
        self.files += kept.files
        self.size += kept.bytes

    def add(self, ino: int, choice: Choice) -> None:
        self.inodes.add(ino)
        self.keys.update(choice.keys)
        self.dirty.update(choice.inodes)
        if choice.parent is not None:
            self.parents[choice.parent] = self.parents.get(choice.parent, 0) + 1
            self.dirty.add(choice.parent)
        self.files += choice.files
        self.size += choice.size

    def publish(self, key: bytes, row: bytes) -> bytes:
        """A row as the commit holds it."""
        if key[8:9] != codec.ATTR or not (self.parents or self.kept):
            return row
        ino = codec.ino_of(key)
        entries, directories = self.kept.get(ino, _NONE)
        entries += self.parents.get(ino, 0)
        if not entries:
            return row
        inode = codec.decode_inode(ino, row)
        return codec.encode_inode(inode._replace(size=inode.size - entries, nlink=inode.nlink - directories))

    def keep_dirty(self, txn: Writer, generation: int) -> None:
        """In the transaction that notes the commit: what is left out counts as changed after it."""
        stamp = _U64.pack(generation + 1)
        for key in (*self.keys, *map(codec.attr_key, self.parents)):
            if txn.lookup(b"dirty", key) is not None:
                txn.put(b"dirty", key, stamp)


class Plan:
    """Which files of a frozen generation may be left out, and in which order all are sent.

    `bucket(keys)` gives the rows that the bucket has at these keys; it may read from the store, and raise StoreError.
    """

    def __init__(
        self, reader: Reader, dirty: Iterable[tuple[bytes, bytes | None]], bucket: Callable[[set[bytes]], Rows]
    ) -> None:
        self._reader = reader
        self._keys: dict[int, list[bytes]] = {}
        self._names: dict[int, list[bytes]] = {}
        self._places: dict[int, tuple[int, bytes]] = {}
        self._cached: dict[int, bool] = {ROOT_INO: False}
        self.before: Rows = {}
        self.choices: dict[int, Choice] = {}
        for key, row in dirty:
            if codec.table_of(key) != codec.DIRENT:
                self._keys.setdefault(codec.ino_of(key), []).append(key)
            elif row:
                child = codec.decode_dirent(row).ino
                self._names.setdefault(child, []).append(key)
                self._places[child] = codec.ino_of(key), key[9:]
        self._bucket = bucket

    # --- what may be left out -------------------------------------------------------------------------------------

    def choose(self, inodes: set[int]) -> None:
        """Find out which of these files may be left out. Raises StoreError."""
        asked = {codec.attr_key(ino) for ino in inodes}
        asked.update(names[0] for ino in inodes if len(names := self._names.get(ino, [])) == 1)
        self.before.update(self._bucket(asked))
        replaced = {
            codec.attr_key(codec.decode_dirent(row).ino)
            for key, row in self.before.items()
            if row and codec.table_of(key) == codec.DIRENT
        }
        self.before.update(self._bucket(replaced - self.before.keys()))
        for ino in inodes:
            choice = self._choice(ino)
            if choice is not None:
                self.choices[ino] = choice

    def _choice(self, ino: int) -> Choice | None:
        inode = self._inode(ino)
        if inode is None or not _plain(inode):
            return None
        own = self._keys.get(ino, [])
        names = self._names.get(ino, [])
        was = self._before(ino)
        if was is not None:
            if names or not _plain(was):
                return None
            return Choice(tuple(own), (ino,), None, 0, inode.size - was.size)
        if len(names) != 1:
            return None
        replaced = self.before.get(names[0])
        parent = int(codec.ino_of(names[0]))
        if not replaced:
            return Choice((*own, names[0]), (ino,), parent, 1, inode.size)
        other = codec.decode_dirent(replaced).ino
        old = self._before(other)
        if old is None or not _plain(old) or self._inode(other) is not None:
            return None
        keys = (*own, names[0], *self._keys.get(other, []))
        # The directory has as many entries with the old file as with the new one.
        return Choice(keys, (ino, other, parent), None, 0, inode.size - old.size)

    def _inode(self, ino: int) -> Inode | None:
        row = self._reader.get(codec.attr_key(ino))
        return codec.decode_inode(Ino(ino), row) if row else None

    def _before(self, ino: int) -> Inode | None:
        row = self.before.get(codec.attr_key(ino))
        return codec.decode_inode(Ino(ino), row) if row else None

    # --- the order ------------------------------------------------------------------------------------------------

    def order(self, blocks: list[Work]) -> list[Work]:
        """By value: what must be sent, small files of users, larger ones by size, and what can be made again."""

        def place(work: Work) -> tuple[int, int, tuple[int, bytes], int, int]:
            rank = self.rank(work)
            return rank, work.size if rank == LARGE_FILES else 0, work.name, work.ino, work.index

        return list(in_order(blocks, place))

    def rank(self, work: Work) -> int:
        if work.ino not in self.choices:
            return MUST
        if self._is_cached(work.name[0]):
            return CACHED
        return SMALL_FILES if work.size <= SMALL else LARGE_FILES

    def _is_cached(self, directory: int) -> bool:
        """Whether a directory is one of CACHES, or lies below one."""
        path: dict[int, None] = {}
        while (known := self._cached.get(directory)) is None:
            if directory in path:  # a damaged workspace: directories that lie in each other
                known = False
                break
            path[directory] = None
            parent, name = self._place(directory)
            if name in CACHES:
                known = True
                break
            directory = parent
        for ino in path:
            self._cached[ino] = known
        return known

    def _place(self, ino: int) -> tuple[int, bytes]:
        """A directory's parent and name. The root and nothing, if that is not known here."""
        found = self._places.get(ino)
        if found is None:
            inode = self._inode(ino)
            if inode is not None:
                for key, row in self._reader.scan(b"rows", *codec.table_range(inode.parent, codec.DIRENT)):
                    if row:
                        self._places.setdefault(codec.decode_dirent(row).ino, (inode.parent, key[9:]))
            found = self._places.setdefault(ino, (ROOT_INO, b""))
        return found


def _plain(inode: Inode) -> bool:
    return inode.is_file and inode.nlink == 1
