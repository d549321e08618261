"""Which inodes have changes that no commit holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from wsfs.index.journal import DROP, HIDE, KEEP, PUT_CLEAN, Op
from wsfs.index.tables import Reader
from wsfs.repo import codec
from wsfs.repo.codec import ino_of, table_of

_NOTHING_TO_PUSH = (PUT_CLEAN, KEEP, DROP)
_BLOCK: Final = codec.BLOCK[0]


class Unsaved:
    """Inodes with changes, and how many bytes of data each has in its rows. Belongs to the owner."""

    def __init__(self) -> None:
        self._dirty: dict[int, int] = {}
        self._frozen: dict[int, int] = {}

    def scan(self, reader: Reader) -> None:
        """Begin with what LMDB says is dirty."""
        self._dirty = {}
        for key, _ in reader.scan(b"dirty", b""):
            held = _held(reader.get(key) or b"") if table_of(key) == codec.BLOCK else 0
            if held and reader.lookup(b"kept", key) is not None:
                held = 0
            self._dirty[ino_of(key)] = held or self._dirty.get(ino_of(key), 0)

    def note(self, ops: Iterable[Op]) -> None:
        """These changes were made."""
        dirty = self._dirty
        for flag, key, value in ops:
            if flag not in _NOTHING_TO_PUSH:
                ino = int.from_bytes(key[:8], "big")  # of each change: a call would cost as much again
                if key[8] == _BLOCK:
                    dirty[ino] = _held(value) if flag != HIDE else 0
                elif ino not in dirty:
                    dirty[ino] = 0

    def forget(self, ino: int) -> None:
        """No commit will see this inode, unless one is under way."""
        self._dirty.pop(ino, None)

    def freeze(self) -> None:
        """A commit begins: what is dirty now belongs to it."""
        # With many changes to copy them would take long, and all requests wait.
        self._frozen, self._dirty = (self._frozen | self._dirty if self._frozen else self._dirty), {}

    def thaw(self, *, committed: bool, left: Collection[int]) -> None:
        """It has ended; with success, it left out changes of the inodes in `left`."""
        frozen, self._frozen = self._frozen, {}
        if committed:
            frozen = {ino: frozen[ino] for ino in left if ino in frozen}
        self._dirty = frozen | self._dirty if frozen else self._dirty

    @property
    def inodes(self) -> set[int]:
        """All inodes with changes, those that a commit is under way for included."""
        return self._dirty.keys() | self._frozen.keys()

    @property
    def frozen(self) -> Collection[int]:
        """Those that a commit is under way for."""
        return self._frozen.keys()

    @property
    def bytes(self) -> int:
        """About how many bytes of data are in rows and not in the bucket."""
        return sum(self._dirty.values()) + sum(self._frozen.values())

    def __bool__(self) -> bool:
        return bool(self._dirty or self._frozen)


def _held(row: bytes) -> int:
    """How many bytes of data are in a block row."""
    return len(row) - 1 if codec.is_inline(row) else 0
