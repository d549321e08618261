"""Workspaces that no wsfs would write: each object has right lengths and digests, and what the rows say is absurd."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from wsfs.model import (
    BLOCK_SIZE,
    ID_MAX,
    MARKER_INO,
    MARKER_NAME,
    ROOT_INO,
    Dirent,
    FrameLoc,
    Inline,
    Ino,
    Inode,
    Packed,
)
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.head import HEAD_KEY, encode_head, read_head
from wsfs.repo.manifest import SegmentRef, decode_manifest, encode_manifest
from wsfs.repo.segment import decode_segment, encode_segment
from wsfs.store.base import Store

NOW = 1_700_000_000_000_000_000
FILE, DIRECTORY, LINK, FIFO = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO
A, B, C, F, G = 16, 17, 18, 19, 20


@dataclass
class Rows:
    """The rows of a commit, and what of its manifest is not as usual."""

    rows: dict[bytes, bytes] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    cookie: int = 1000

    def inode(self, ino: int, kind: int = FILE, size: int = 0, nlink: int = 0, parent: int = ROOT_INO) -> None:
        nlink = nlink or (2 if kind == DIRECTORY else 1)
        found = Inode(Ino(ino), kind | 0o755, 0, 0, nlink, 0, size, NOW, NOW, NOW, Ino(parent))
        self.rows[codec.attr_key(ino)] = codec.encode_inode(found)

    def name(self, parent: int, name: bytes, ino: int, kind: int = FILE, cookie: int | None = None) -> None:
        self.cookie += 1
        dirent = Dirent(Ino(ino), kind >> 12, self.cookie if cookie is None else cookie)
        self.rows[codec.dirent_key(parent, name)] = codec.encode_dirent(dirent)

    def directory(self, parent: int, name: bytes, ino: int, size: int = 1) -> None:
        self.inode(ino, DIRECTORY, size, parent=parent)
        self.name(parent, name, ino, DIRECTORY)

    def file(self, parent: int, name: bytes, ino: int, size: int = 0) -> None:
        self.inode(ino, FILE, size, parent=parent)
        self.name(parent, name, ino)

    def packed(self, ino: int, index: int = 0, **changes: Any) -> None:
        loc = FrameLoc(0, 1, 8, 100, 4096, 4096, 1, bytes(20))._replace(**changes)
        self.rows[codec.block_key(ino, index)] = codec.encode_block(Packed(loc))


def _cycle(w: Rows) -> None:
    w.directory(ROOT_INO, b"a", A)
    w.directory(A, b"b", B)
    w.name(B, b"a", A, DIRECTORY)
    w.inode(A, DIRECTORY, 1, parent=B)
    w.file(B, b"file", F)


def _two_parents(w: Rows) -> None:
    w.directory(ROOT_INO, b"a", A)
    w.directory(ROOT_INO, b"b", B)
    w.directory(A, b"shared", C)
    w.name(B, b"shared", C, DIRECTORY)
    w.file(C, b"file", F)


def _root_in_itself(w: Rows) -> None:
    w.name(ROOT_INO, b"root", ROOT_INO, DIRECTORY)
    w.directory(ROOT_INO, b"a", A)
    w.name(A, b"root", ROOT_INO, DIRECTORY)


def _own_child(w: Rows) -> None:
    w.directory(ROOT_INO, b"a", A)
    w.name(A, b"self", A, DIRECTORY)
    w.inode(A, DIRECTORY, 1, parent=A)


def _dangling(w: Rows) -> None:
    w.file(ROOT_INO, b"before", F)
    w.name(ROOT_INO, b"nothing", 999)
    w.file(ROOT_INO, b"after", G)


def _wrong_types(w: Rows) -> None:
    w.inode(F)
    w.name(ROOT_INO, b"says-directory", F, DIRECTORY)
    w.inode(A, DIRECTORY)
    w.name(ROOT_INO, b"says-file", A, FILE)
    w.inode(G, FILE, 10)
    w.name(ROOT_INO, b"file-with-names", G)
    w.name(G, b"inside", F)
    w.directory(ROOT_INO, b"directory-with-data", C)
    w.rows[codec.block_key(C, 0)] = codec.encode_block(Inline(b"x"))


def _sizes(w: Rows) -> None:
    w.file(ROOT_INO, b"huge", F, 1 << 52)
    w.file(ROOT_INO, b"short", G, 10)
    w.rows[codec.block_key(G, 0)] = codec.encode_block(Inline(b"x" * 3 * BLOCK_SIZE))
    w.rows[codec.block_key(G, 2**32 - 1)] = codec.encode_block(Inline(b"beyond"))
    w.directory(ROOT_INO, b"empty-says-many", A, 1 << 52)
    w.directory(ROOT_INO, b"many-says-empty", B, 0)
    w.file(B, b"one", C)


def _impossible_inodes(w: Rows) -> None:
    for number, change in enumerate(({"size": 2**63}, {"mode": 0}, {"parent": 0}, {"mode": 0xFFFFFFFF})):
        ino = 30 + number
        found = Inode(Ino(ino), FILE | 0o644, 0, 0, 1, 0, 0, NOW, NOW, NOW, ROOT_INO)._replace(**change)
        w.rows[codec.attr_key(ino)] = codec.encode_inode(found)
        w.name(ROOT_INO, b"impossible-%d" % number, ino)
    w.rows[codec.attr_key(F)] = b"short"
    w.name(ROOT_INO, b"short-row", F)


def _links(w: Rows) -> None:
    for number, target in enumerate((None, b"", b"a\0b", b"x" * 100_000, b"../../../../etc/passwd", b"\n\x1b[2J")):
        ino = 40 + number
        w.inode(ino, LINK, len(target or b""))
        w.name(ROOT_INO, b"link-%d" % number, ino, LINK)
        if target is not None:
            w.rows[codec.symlink_key(ino)] = target


def _counts(w: Rows) -> None:
    w.inode(F, nlink=2**32 - 1)
    w.name(ROOT_INO, b"many-links", F)
    found = Inode(Ino(G), FILE | 0o644, 0, 0, 0, 0, 0, NOW, NOW, NOW, ROOT_INO)
    w.rows[codec.attr_key(G)] = codec.encode_inode(found)
    w.name(ROOT_INO, b"no-links", G)
    w.inode(ROOT_INO, DIRECTORY, 0)
    w.manifest |= {"files": 0, "bytes": 0}


def _cookies(w: Rows) -> None:
    for number, cookie in enumerate((7, 7, 0, ID_MAX, ID_MAX)):
        w.file(ROOT_INO, b"cookie-%d" % number, 50 + number)
        w.name(ROOT_INO, b"cookie-%d" % number, 50 + number, cookie=cookie)


def _used_numbers(w: Rows) -> None:
    for number in range(10):
        w.file(ROOT_INO, b"file-%d" % number, 16 + number)
    w.manifest |= {"next_id": 17}


def _last_number(w: Rows) -> None:
    w.file(ROOT_INO, b"last", ID_MAX)
    w.manifest |= {"next_id": 1 << 62}


def _blocks(w: Rows) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"stored_length": 0, "raw_length": 0, "length": 0},
        {"stored_length": 0},
        {"offset": 2**32 - 1, "stored_length": 2 * BLOCK_SIZE},
        {"codec": 9},
        {"epoch": 2**32 - 1, "pack": 2**32 - 1},
    ]
    for number, change in enumerate(changes):
        w.file(ROOT_INO, b"block-%d" % number, 60 + number, 4096)
        w.packed(60 + number, **change)


def _block_rows(row: bytes) -> Callable[[Rows], None]:
    def change(w: Rows) -> None:
        w.file(ROOT_INO, b"file", F, 4096)
        w.rows[codec.block_key(F, 0)] = row

    return change


def _names(w: Rows) -> None:
    for number, name in enumerate((b"\n", b"a\nb", b"\xff\xfe", b"\x1b]0;title\x07", b"-rf", b"...", b"x" * 255, b" ")):
        w.file(ROOT_INO, name, 70 + number)


def _deep(w: Rows) -> None:
    parent: int = ROOT_INO
    for ino in range(100, 600 if os.environ.get("WSFS_TEST_ALL") else 300):
        w.directory(parent, b"d", ino)
        parent = ino
    w.file(parent, b"file", F)


def _marker_is(kind: int) -> Callable[[Rows], None]:
    def change(w: Rows) -> None:
        w.inode(MARKER_INO, kind)

    return change


def _marker_twice(w: Rows) -> None:
    w.name(ROOT_INO, b"marker", MARKER_INO)
    w.inode(A, DIRECTORY)
    w.name(ROOT_INO, MARKER_NAME, A, DIRECTORY)


def _marker_in_pack(w: Rows) -> None:
    w.packed(MARKER_INO, stored_length=0, raw_length=0, length=0)


def _own_parent(w: Rows) -> None:
    w.file(ROOT_INO, b"file", F)
    w.manifest |= {"parent": "itself"}


def _no_root(w: Rows) -> None:
    w.rows.pop(codec.attr_key(ROOT_INO))


def _root_is_a_file(w: Rows) -> None:
    w.inode(ROOT_INO)


HOSTILE: dict[str, Callable[[Rows], None]] = {
    "a cycle of directories": _cycle,
    "a directory in two": _two_parents,
    "the root in itself": _root_in_itself,
    "a directory in itself": _own_child,
    "a name of nothing": _dangling,
    "wrong types": _wrong_types,
    "sizes": _sizes,
    "impossible inodes": _impossible_inodes,
    "link targets": _links,
    "counts": _counts,
    "cookies": _cookies,
    "numbers in use": _used_numbers,
    "the last number": _last_number,
    "blocks": _blocks,
    "a block of no machine": _block_rows(b"\0"),
    "a resident block": _block_rows(b"\3" + bytes(45)),
    "a block of no kind": _block_rows(b"\7"),
    "an empty block row": _block_rows(b""),
    "names": _names,
    "very deep": _deep,
    "a marker that is a directory": _marker_is(DIRECTORY),
    "a marker that is a link": _marker_is(LINK),
    "a marker twice": _marker_twice,
    "a marker in no pack": _marker_in_pack,
    "a commit that is its own parent": _own_parent,
    "no root": _no_root,
    "a root that is a file": _root_is_a_file,
}


def random_rows(seed: int) -> Callable[[Rows], None]:
    """Rows that mean something each, put together by chance."""

    def change(w: Rows) -> None:
        rng = random.Random(seed)
        inos = [ROOT_INO, *range(16, 30), 999]
        for ino in inos[1:-1]:
            if rng.random() < 0.9:
                size = rng.choice([0, 1, 5000, 1 << 40, 1 << 52])
                kind = rng.choice([FILE, FILE, DIRECTORY, DIRECTORY, LINK, FIFO])
                w.inode(ino, kind, size, rng.choice([0, 1, 2, 9]), rng.choice(inos))
        for number in range(rng.randrange(40)):
            kind = rng.choice([FILE, DIRECTORY, LINK])
            cookie = rng.choice([None, None, rng.randrange(5)])
            w.name(rng.choice(inos), b"n%d" % rng.randrange(number + 1), rng.choice(inos), kind, cookie)
        for _ in range(rng.randrange(10)):
            ino, index = rng.choice(inos), rng.choice([0, 0, 1, 2**32 - 1])
            if rng.random() < 0.5:
                w.rows[codec.block_key(ino, index)] = codec.encode_block(Inline(rng.randbytes(rng.randrange(2000))))
            else:
                w.packed(ino, index, offset=rng.choice([0, 8, 2**32 - 1]), stored_length=rng.choice([0, 1, 100]))
        for _ in range(rng.randrange(3)):
            w.rows[codec.symlink_key(rng.choice(inos))] = rng.randbytes(rng.randrange(50))

    return change


def make_hostile(store: Store, change: Callable[[Rows], None]) -> None:
    """Replace the newest commit of a workspace by one with other rows, and everything that vouches for it."""
    version = read_head(store)
    manifest = decode_manifest(store.get(version.head.commit).data)
    rows = dict(decode_segment(store.get(manifest.base[0].key).data))
    world = Rows({key: value for key, value in rows.items() if value is not None})
    change(world)
    segment = encode_segment(sorted(world.rows.items()))
    ref = SegmentRef(f"{manifest.base[0].key}-hostile", len(segment), len(world.rows), digest(segment))
    store.put(ref.key, segment)
    usual = {"next_id": 1 << 20, "files": len(world.rows), "bytes": 1 << 40, "nonce": "f" * 16}
    changed = replace(manifest, base=(ref,), **(usual | world.manifest))
    if changed.parent == "itself":
        changed = replace(changed, parent=changed.key)
    encoded = encode_manifest(changed)
    store.put(changed.key, encoded)
    head = replace(version.head, commit=changed.key, commit_digest=digest(encoded), nonce="e" * 16)
    store.put(HEAD_KEY, encode_head(head), if_match=version.etag)
