"""What stays on this machine: inodes whose rows no commit ever holds, and their names in directories that it does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from wsfs.index.batch import Batch
from wsfs.index.journal import DELETE, DROP, HIDE, KEEP, PUT, PUT_CLEAN, Op
from wsfs.index.tables import Reader
from wsfs.repo import codec
from wsfs.repo.codec import ino_of


class Fewer(NamedTuple):
    """What a directory has less in the bucket than here: entries, and directories among them."""

    entries: int
    directories: int


def note_of(key: bytes, row: bytes) -> bytes:
    """What the table `kept` says of a row, so that a start need not read them all: how many bytes it stands for, or
    whether a name is that of a directory."""
    table = key[8:9]
    if table == codec.ATTR:
        return codec.content_size(row).to_bytes(8, "big")
    return b"d" if table == codec.DIRENT and codec.decode_dirent(row).is_dir else b""


class Kept:
    """Belongs to the owner. Empty, and without any cost, where nothing is ignored.

    An inode stays here with all of its names, or with none: `Namespace` sees to that. All entries of a directory that
    stays here do so, too; `names` has only those in other directories.
    """

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        """By inode its size; of a directory 0."""
        self.names: dict[int, dict[bytes, bool]] = {}
        """By directory the names in it, and whether they are directories."""
        self.bytes = 0

    def scan(self, reader: Reader) -> None:
        """Begin with what LMDB says. The attributes of an inode come before its names."""
        self.sizes, self.names, self.bytes = {}, {}, 0
        for key, note in reader.scan(b"kept", b""):
            self._put(key, note)

    @property
    def files(self) -> int:
        return len(self.sizes)

    def __contains__(self, ino: int) -> bool:
        return ino in self.sizes

    def __bool__(self) -> bool:
        return bool(self.sizes)

    def has_name(self, directory: int, name: bytes) -> bool:
        """Whether an entry of a directory stays here."""
        return directory in self.sizes or name in self.names.get(directory, ())

    def fewer(self) -> dict[int, Fewer]:
        """By directory, what the bucket has less. For the moment of a freeze."""
        return {ino: Fewer(len(names), sum(names.values())) for ino, names in self.names.items()}

    def route(self, batch: Batch) -> list[Op]:
        """The changes of a batch, those to what stays here marked as such."""
        ways = batch.ways or {}
        ops: list[Op] = []
        for flag, key, value in batch.ops:
            ino = ino_of(key)
            way = ways.get(ino, KEEP if ino in self.sizes else None)
            if way is None:
                kept = flag == DELETE and key[8:9] == codec.DIRENT and key[9:] in self.names.get(ino, ())
                ops.append((DROP, key, value) if kept else (flag, key, value))
            elif flag in (PUT, PUT_CLEAN):
                ops.append((way, key, value))
            else:
                ops.append((DROP if flag == DELETE and way == KEEP else flag, key, value))
        return ops

    def note(self, ops: Iterable[Op], opened: dict[int, dict[bytes, bool]]) -> None:
        """These changes were made; `opened` as in the batch."""
        for flag, key, value in ops:
            if flag in (KEEP, HIDE):
                self._put(key, note_of(key, value))
            elif flag != PUT_CLEAN and key[8:9] == codec.ATTR:
                self.bytes -= self.sizes.pop(ino_of(key), 0)
            elif key[8:9] == codec.DIRENT:
                self._forget_name(ino_of(key), key[9:])
        for ino, names in opened.items():
            if names:
                self.names[ino] = dict(names)

    def _put(self, key: bytes, note: bytes) -> None:
        ino, table = ino_of(key), key[8:9]
        if table == codec.ATTR:
            size = int.from_bytes(note, "big")
            self.bytes += size - self.sizes.get(ino, 0)
            self.sizes[ino] = size
            self.names.pop(ino, None)
        elif table == codec.DIRENT and ino not in self.sizes:
            self.names.setdefault(ino, {})[key[9:]] = bool(note)

    def _forget_name(self, directory: int, name: bytes) -> None:
        names = self.names.get(directory)
        if names is not None and names.pop(name, None) is not None and not names:
            del self.names[directory]
