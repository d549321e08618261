"""Reads a whole commit and tells everything that is wrong with it.

Rows are read in the order of their keys, so that all rows of an inode come together, and only what concerns several
inodes is kept in memory: attributes and names.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from wsfs.errors import FormatError, NotFoundError
from wsfs.model import (
    BLOCK_SIZE,
    MARKER_INO,
    MARKER_NAME,
    ROOT_INO,
    FrameLoc,
    Inline,
    Inode,
    Packed,
    pack_key,
)
from wsfs.parallel import map_ordered
from wsfs.repo import codec
from wsfs.repo.manifest import Manifest, SegmentRef
from wsfs.repo.pack import FOOTER_SIZE, read_toc, toc_size
from wsfs.repo.pack import MAGIC as PACK_MAGIC
from wsfs.repo.segment import Row, decode_segment
from wsfs.store.base import Store
from wsfs.sync.frames import FrameUse, open_run, runs
from wsfs.sync.survey import pack_id

_READERS: Final = 8
_TAIL: Final = 64 << 10


class Name(NamedTuple):
    """A directory entry that leads to an inode."""

    parent: int
    name: bytes
    kind: int
    cookie: int


class Problem(NamedTuple):
    """Something that is wrong with one inode: what, in a few words, and the kind of it for programs."""

    kind: str
    ino: int
    text: str


@dataclass(slots=True)
class Census:
    """What the rows of a commit say, and what is wrong with them. `lost` has the blocks whose bytes are not there."""

    inodes: dict[int, Inode] = field(default_factory=dict)
    names: dict[int, list[Name]] = field(default_factory=dict)
    entries: dict[int, int] = field(default_factory=dict)
    subdirectories: dict[int, int] = field(default_factory=dict)
    bodies: dict[int, str] = field(default_factory=dict)
    """Inodes that have rows, but no attributes, and what they seem to be: 'file', 'directory', 'link'."""
    extents: dict[int, int] = field(default_factory=dict)
    """Where the last block of such an inode ends."""
    bad_rows: list[tuple[bytes, str]] = field(default_factory=list)
    """Rows that cannot be read, or that cannot be true, and why: they are worth nothing."""
    bad_segments: list[tuple[SegmentRef, str]] = field(default_factory=list)
    cookies: list[tuple[int, bytes]] = field(default_factory=list)
    """Entries with the cookie of another entry: parent and name."""
    lost: dict[int, dict[int, str]] = field(default_factory=dict)
    lost_packs: dict[str, set[int]] = field(default_factory=dict)
    resident: list[tuple[int, int, FrameLoc]] = field(default_factory=list)
    """Blocks whose rows speak of a cache, which nothing in a bucket may: inode, block, and the frame all the same."""
    links: dict[int, int] = field(default_factory=dict)
    """Length of the target of each symbolic link."""
    frames: list[FrameUse] = field(default_factory=list)
    marker: bytes | None = None
    highest: int = 0

    def lose(self, ino: int, index: int, why: str) -> None:
        """Note that a block's bytes are not there."""
        self.lost.setdefault(ino, {})[index] = why

    def path(self, ino: int) -> bytes:
        """A path of an inode; one that cannot be reached begins with '(unreachable)'."""
        parts: list[bytes] = []
        seen = set()
        while ino != ROOT_INO:
            if ino in seen or ino not in self.names:
                return b"/".join([b"(unreachable)", b"inode %d" % ino, *reversed(parts)])
            seen.add(ino)
            name = self.names[ino][0]
            parts.append(name.name)
            ino = name.parent
        return b"/" + b"/".join(reversed(parts))


class Reading:
    """The rows of a commit, with `fixes` laid over them. What cannot be read is told in `bad_segments`."""

    def __init__(self, store: Store, manifest: Manifest, fixes: Mapping[bytes, bytes | None] | None = None) -> None:
        self._store = store
        self._manifest = manifest
        self._fixes = fixes or {}
        self.bad_segments: list[tuple[SegmentRef, str]] = []

    def rows(self) -> Iterator[tuple[bytes, bytes]]:
        """Every row, in the order of the keys. Raises StoreError."""
        manifest = self._manifest
        refs = (*manifest.deltas, *manifest.base)
        fetched = map_ordered(self._fetch, refs, threads=_READERS, name="wsfs-verify")
        over: dict[bytes, bytes | None] = {}
        for ref in manifest.deltas:
            over.update(self._decode(ref, next(fetched)))
        over.update(self._fixes)
        keys = sorted(over)
        at = 0
        for number, ref in enumerate(manifest.base):
            end = manifest.base[number + 1].start if number + 1 < len(manifest.base) else None
            for key, value in self._decode(ref, next(fetched), start=ref.start, end=end):
                while at < len(keys) and keys[at] < key:
                    found = over[keys[at]]
                    if found is not None:
                        yield keys[at], found
                    at += 1
                if at < len(keys) and keys[at] == key:
                    continue
                assert value is not None
                yield key, value
        for key in keys[at:]:
            found = over[key]
            if found is not None:
                yield key, found

    def _fetch(self, ref: SegmentRef) -> bytes | FormatError:
        try:
            return ref.check(self._store.get(ref.key).data)
        except NotFoundError:
            return FormatError(f"the metadata object '{ref.key}' is missing")
        except FormatError as exc:
            return exc

    def _decode(
        self, ref: SegmentRef, data: bytes | FormatError, *, start: bytes | None = None, end: bytes | None = None
    ) -> list[Row]:
        """The rows of a segment, all or none. `start` is set for a base partition: it has no deletions then."""
        try:
            if isinstance(data, FormatError):
                raise data
            rows = list(decode_segment(data))
            if len(rows) != ref.rows:
                raise FormatError(f"the metadata object '{ref.key}' has {len(rows)} rows instead of {ref.rows}")
            if start is not None and rows:
                if any(value is None for _, value in rows):
                    raise FormatError(f"the base partition '{ref.key}' holds a deletion")
                if rows[0][0] < start or (end is not None and rows[-1][0] >= end):
                    raise FormatError(f"the base partition '{ref.key}' holds rows of another one")
        except FormatError as exc:
            self.bad_segments.append((ref, str(exc)))
            return []
        return rows


def take_census(
    store: Store,
    manifest: Manifest,
    packs: Mapping[int, int],
    *,
    frames: bool = False,
    fixes: Mapping[bytes, bytes | None] | None = None,
    local: bool = False,
) -> Census:
    """Read every row of a commit. `packs` has the size of each pack that is there; `frames` notes every frame in use.

    With `local`, `fixes` are the rows of a cache, which may speak of blocks that only it has. Raises StoreError.
    """
    census = Census()
    reading = Reading(store, manifest, fixes)
    cookies: dict[int, int] = {}
    parent = -1
    for key, row in reading.rows():
        ino, table = codec.ino_of(key), codec.table_of(key)
        census.highest = max(census.highest, ino)
        try:
            if table == codec.ATTR:
                census.inodes[ino] = codec.decode_inode(ino, row)
                continue
            if ino not in census.inodes:
                _note_body(census, ino, table, key)
            if table == codec.BLOCK:
                _take_block(census, packs, key, row, frames=frames, local=local)
            elif table == codec.SYMLINK:
                census.links[ino] = len(row)
            elif table == codec.DIRENT:
                if parent != ino:
                    parent, cookies = ino, {}
                _take_dirent(census, cookies, key, row)
        except FormatError as exc:
            census.bad_rows.append((key, str(exc)))
    census.bad_segments = reading.bad_segments
    return census


def _note_body(census: Census, ino: int, table: bytes, key: bytes) -> None:
    kinds = {codec.BLOCK: "file", codec.DIRENT: "directory", codec.SYMLINK: "link"}
    if table in kinds:
        census.bodies.setdefault(ino, kinds[table])
    elif ino not in census.bodies:
        census.bad_rows.append((key, f"inode {ino} has an extended attribute, and nothing else"))


def _take_block(census: Census, packs: Mapping[int, int], key: bytes, row: bytes, *, frames: bool, local: bool) -> None:
    ino, index = codec.ino_of(key), codec.block_index(key)
    inode = census.inodes.get(ino)
    if inode is not None and (not inode.is_file or index * BLOCK_SIZE >= inode.size):
        census.bad_rows.append((key, f"block {index} lies beyond the end of the file"))
        return
    try:
        block = codec.decode_block(row)
    except FormatError as exc:
        census.lose(ino, index, str(exc))
        return
    length = 0
    if isinstance(block, Inline):
        length = len(block.data)
        if ino == MARKER_INO and index == 0:
            census.marker = block.data
        if length > BLOCK_SIZE:
            census.lose(ino, index, f"its row holds {length} bytes, more than a block has")
    elif isinstance(block, Packed):
        length = block.loc.length
        if block.resident and not local:
            census.resident.append((ino, index, block.loc))
        _take_frame(census, packs, FrameUse(ino, index, block.loc))
        if frames:
            census.frames.append(FrameUse(ino, index, block.loc))
    elif not local:
        census.lose(ino, index, "it was never uploaded")
    if inode is None:
        census.extents[ino] = max(census.extents.get(ino, 0), index * BLOCK_SIZE + length)


def _take_frame(census: Census, packs: Mapping[int, int], use: FrameUse) -> None:
    loc = use.loc
    key = pack_key(loc.epoch, loc.pack)
    size = packs.get(pack_id(loc.epoch, loc.pack))
    if size is None:
        census.lose(use.ino, use.block, f"the pack '{key}' is missing")
        census.lost_packs.setdefault(key, set()).add(use.ino)
    elif loc.offset < len(PACK_MAGIC) or loc.offset + loc.stored_length > size - FOOTER_SIZE:
        census.lose(use.ino, use.block, f"the pack '{key}' is too short")
        census.lost_packs.setdefault(key, set()).add(use.ino)
    elif loc.raw_length > BLOCK_SIZE or loc.length > loc.raw_length:
        census.lose(use.ino, use.block, "its row announces more bytes than a block has")


def _take_dirent(census: Census, cookies: dict[int, int], key: bytes, row: bytes) -> None:
    parent, name = codec.ino_of(key), key[9:]
    dirent = codec.decode_dirent(row)
    census.names.setdefault(dirent.ino, []).append(Name(parent, name, dirent.kind, dirent.cookie))
    census.entries[parent] = census.entries.get(parent, 0) + 1
    census.highest = max(census.highest, dirent.ino, dirent.cookie)
    if dirent.kind == stat.S_IFDIR >> 12:
        census.subdirectories[parent] = census.subdirectories.get(parent, 0) + 1
    if dirent.cookie in cookies or not dirent.cookie:
        census.cookies.append((parent, name))
    cookies[dirent.cookie] = 1


def judge(census: Census) -> list[Problem]:
    """What is wrong with names, counts and attributes; lost bytes are in the census itself."""
    found: list[Problem] = []

    def add(kind: str, ino: int, text: str) -> None:
        found.append(Problem(kind, ino, text))

    root = census.inodes.get(ROOT_INO)
    if root is None or not root.is_dir:
        add("root", ROOT_INO, "the top directory is missing")
    for ino, kind in census.bodies.items():
        add("attributes", ino, f"the attributes of a {kind} are missing")
    for ino, names in census.names.items():
        inode = census.inodes.get(ino)
        if inode is None and ino not in census.bodies:
            for name in names:
                add("dangling", ino, f"the name {shown(census, name)} leads to nothing")
            continue
        for name in names:
            if inode is not None and name.kind != stat.S_IFMT(inode.mode) >> 12:
                add("kind", ino, f"the name {shown(census, name)} says another type than its inode")
        if inode is not None and inode.is_dir and (len(names) > 1 or ino == ROOT_INO):
            add("directory-names", ino, "a directory has more than one name")
    for parent, entry in census.cookies:
        add("cookie", parent, f"the name {shown(census, Name(parent, entry, 0, 0))} has the place of another name")
    reached = reachable(census)
    for ino, inode in census.inodes.items():
        _judge_inode(census, inode, add_to=found, reached=ino in reached)
    marker = [n for n in census.names.get(MARKER_INO, []) if (n.parent, n.name) == (ROOT_INO, MARKER_NAME)]
    if not marker or MARKER_INO not in census.inodes:
        add("marker", MARKER_INO, f"{MARKER_NAME.decode()} is missing")
    return found


def _judge_inode(census: Census, inode: Inode, *, add_to: list[Problem], reached: bool) -> None:
    ino = inode.ino
    if not reached:
        add_to.append(Problem("unreachable", ino, "it cannot be reached from the top directory"))
    names = census.names.get(ino, [])
    if inode.is_dir:
        entries, below = census.entries.get(ino, 0), census.subdirectories.get(ino, 0)
        if inode.size != entries:
            add_to.append(Problem("entries", ino, f"it counts {inode.size} entries and has {entries}"))
        if inode.nlink != 2 + below:
            add_to.append(Problem("nlink", ino, f"its link count is {inode.nlink} instead of {2 + below}"))
    else:
        if ino in census.entries:
            add_to.append(Problem("entries", ino, "it has entries, but is no directory"))
        if names and inode.nlink != len(names):
            add_to.append(Problem("nlink", ino, f"its link count is {inode.nlink} instead of {len(names)}"))
    # A file may have lost the name that was made last: for it the parent is a hint.
    if inode.is_dir and ino != ROOT_INO and names and inode.parent not in {name.parent for name in names}:
        add_to.append(Problem("parent", ino, f"it names inode {inode.parent} as its directory, which it is not in"))
    if stat.S_ISLNK(inode.mode) and census.links.get(ino) != inode.size:
        add_to.append(Problem("target", ino, "the target of the symbolic link is missing or of another length"))


def reachable(census: Census) -> set[int]:
    """The inodes that the top directory leads to."""
    children: dict[int, list[int]] = {}
    for ino, names in census.names.items():
        for name in names:
            children.setdefault(name.parent, []).append(ino)
    found = {int(ROOT_INO)}
    queue = [int(ROOT_INO)]
    while queue:
        for ino in children.get(queue.pop(), ()):
            if ino not in found:
                found.add(ino)
                queue.append(ino)
    return found


def shown(census: Census, name: Name) -> str:
    """A name with its directory, for people."""
    directory = census.path(name.parent)
    path = (b"" if directory == b"/" else directory) + b"/" + name.name
    return repr(path.decode("utf-8", "backslashreplace"))


def read_frames(store: Store, uses: list[FrameUse]) -> Iterator[tuple[FrameUse, str | None]]:
    """Fetch and check frames, neighbours with one request. Yields each use and what is wrong with it.

    Raises StoreError.
    """
    ordered = sorted(uses, key=lambda use: (use.loc.epoch, use.loc.pack, use.loc.offset))
    # Nothing ahead of the threads: a portion may be large.
    for results in map_ordered(partial(_check_run, store), runs(ordered), threads=4, name="wsfs-verify", ahead=0):
        yield from results


def _check_run(store: Store, run: list[FrameUse]) -> list[tuple[FrameUse, str | None]]:
    return [(use, str(found) if isinstance(found, FormatError) else None) for use, found in open_run(store, run)]


def table_damage(store: Store, key: str, size: int) -> str | None:
    """What is wrong with the beginning or the table of contents of a pack, None if nothing is. Raises StoreError."""
    tail = min(size, _TAIL)
    try:
        if store.get(key, 0, len(PACK_MAGIC)).data != PACK_MAGIC:
            return "a pack does not begin as one"
        data = store.get(key, size - tail, tail).data
        # Most tables fit into that.
        needed = toc_size(data)
        if needed > tail:
            data = store.get(key, max(size - needed, 0), needed).data
        read_toc(data, size)
    except NotFoundError:
        return None  # that is told by the files that it hits
    except FormatError as exc:
        return str(exc)
    return None


def totals(census: Census) -> tuple[int, int]:
    """How many files there are, and how many bytes they have, as the counters should say."""
    return len(census.inodes), sum(inode.size for inode in census.inodes.values() if not inode.is_dir)
