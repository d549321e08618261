"""The changes of one operation."""

from __future__ import annotations

from collections.abc import Iterable

from wsfs.index.journal import DELETE, HIDE, KEEP, PUT, PUT_CLEAN, Op
from wsfs.model import Dirent, Ino, Inode, Packed
from wsfs.repo import codec


class Batch:
    """The changes of one operation: all of them happen, or none. `files` and `bytes` are differences.

    `ways` says with which flag the rows of some inodes are put, if not as the others of the inode are: those of new
    inodes that stay on this machine, and of inodes that begin or cease to stay here. A directory that ceases to is in
    `opened`, with its entries and whether each is a directory.
    """

    __slots__ = ("bytes", "detached", "files", "inodes", "opened", "ops", "ways")

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.inodes: list[Inode] = []
        self.files = 0
        self.bytes = 0
        self.detached: list[tuple[Ino, dict[bytes, bytes]]] = []
        self.ways: dict[int, int] | None = None
        self.opened: dict[int, dict[bytes, bool]] = {}

    def put(self, key: bytes, value: bytes) -> None:
        self.ops.append((PUT, key, value))

    def delete(self, key: bytes) -> None:
        self.ops.append((DELETE, key, b""))

    def put_clean(self, key: bytes, value: bytes) -> None:
        """A change that only concerns this machine."""
        self.ops.append((PUT_CLEAN, key, value))

    def demote(self, rows: Iterable[tuple[bytes, bytes]]) -> list[int]:
        """Of these blocks: what is here and in a pack is read from the pack from now on. Returns their numbers."""
        blocks = []
        for key, row in rows:
            block = codec.decode_block(row)
            if isinstance(block, Packed) and block.resident:
                self.put_clean(key, codec.encode_block(Packed(block.loc)))
                blocks.append(codec.block_index(key))
        return blocks

    def put_inode(self, inode: Inode, *, clean: bool = False) -> None:
        """`clean`: what has changed in a directory stays on this machine, so there is nothing to push."""
        flag = PUT_CLEAN if clean else PUT
        self.ops.append((flag, codec.attr_key(inode.ino), codec.encode_inode(inode)))
        self.inodes.append(inode)

    def put_dirent(self, parent: Ino, name: bytes, dirent: Dirent, flag: int = PUT) -> None:
        """`flag`: KEEP for a name that stays on this machine, HIDE if it takes the place of one that does not."""
        self.ops.append((flag, codec.dirent_key(parent, name), codec.encode_dirent(dirent)))

    def keep(self, ino: int) -> None:
        """All rows of a new inode stay on this machine."""
        self._set(ino, KEEP)

    def hide(self, ino: int) -> None:
        """From now on all rows of an inode stay on this machine. Each of them must be put in this batch, first the
        attributes."""
        self._set(ino, HIDE)

    def show(self, ino: int) -> None:
        """From now on they do not. Likewise."""
        self._set(ino, PUT)

    def _set(self, ino: int, flag: int) -> None:
        if self.ways is None:
            self.ways = {}
        self.ways[ino] = flag
