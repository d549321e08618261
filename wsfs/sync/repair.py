"""Rows that make a damaged commit whole again: as little as possible is changed, and nothing is thrown away unsaid.

The fixes are laid over the commit as one more delta. They are found in rounds: one kind of damage at a time, the most
basic first, and then the commit is read again with the fixes so far.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from typing import Final

from wsfs.errors import FormatError
from wsfs.model import (
    BLOCK_SIZE,
    MARKER_INO,
    MARKER_NAME,
    NAME_MAX,
    ROOT_INO,
    Dirent,
    Inline,
    Ino,
    Inode,
    Packed,
)
from wsfs.repo import codec
from wsfs.repo.workspace import Format
from wsfs.sync.verify import Census, Name, Problem, judge
from wsfs.text import printable

LOST_AND_FOUND: Final = b"lost+found"
_ROUNDS: Final = 100

_ORDER: Final = (
    "root",
    "attributes",
    "dangling",
    "directory-names",
    "entries-of-no-directory",
    "unreachable",
    "cookie",
    "marker",
    "target",
    "kind",
    "entries",
    "nlink",
    "parent",
)
"""Kinds of problems, in the order in which they are fixed: the later ones follow from the earlier ones."""

Fixes = dict[bytes, bytes | None]


class Repairer:
    """Finds fixes. `census_with` reads the commit with fixes laid over it; `next_id` is the first free number.

    `damaged` are blocks whose frames were read and found bad, by inode; `done` says afterwards what was changed.
    """

    def __init__(
        self,
        census_with: Callable[[Fixes], Census],
        fmt: Format,
        next_id: int,
        now_ns: int,
        damaged: dict[int, set[int]],
    ) -> None:
        self._census_with = census_with
        self._format = fmt
        self.next_id = next_id
        self._now = now_ns
        self._damaged = damaged
        self.fixes: Fixes = {}
        self.done: list[str] = []
        self._census = Census()

    def run(self) -> Census:
        """Fix until nothing is wrong any more, and return the census of that. Raises FormatError if that fails."""
        for _ in range(_ROUNDS):
            census = self._census = self._census_with(self.fixes)
            self.next_id = max(self.next_id, census.highest + 1)
            if not self._round(census):
                return census
        raise FormatError("this damage is too intricate to be repaired: nothing was changed")

    def _round(self, census: Census) -> bool:
        """Fix one kind of damage. False if there is none."""
        if census.bad_rows:
            for key, why in census.bad_rows:
                self.fixes[key] = None
                self._say(f"removed a row of {self._path(codec.ino_of(key))}: {why}")
            return True
        if census.resident:
            for ino, index, loc in census.resident:
                self.fixes[codec.block_key(ino, index)] = codec.encode_block(Packed(loc))
                self._say(f"corrected a row of {self._path(ino)} that spoke of a cache")
            return True
        problems: dict[str, list[Problem]] = {}
        for problem in judge(census):
            kind = problem.kind
            if kind == "entries" and not census.inodes[problem.ino].is_dir:
                kind = "entries-of-no-directory"
            problems.setdefault(kind, []).append(problem)
        self._check_marker(census, problems)
        for kind in _ORDER:
            if kind in problems:
                fix = getattr(self, "_fix_" + kind.replace("-", "_"))
                fix(census, [problem.ino for problem in problems[kind]])
                return True
        return self._fix_lost(census)

    # --- what is there, and where ---------------------------------------------------------------------------------

    def _fix_root(self, census: Census, _inos: list[int]) -> None:
        owner = census.inodes.get(MARKER_INO)
        uid, gid = (owner.uid, owner.gid) if owner else (0, 0)
        self._put(self._inode(ROOT_INO, stat.S_IFDIR | 0o755, uid, gid, Ino(ROOT_INO)))
        self._say("made the top directory anew")

    def _fix_attributes(self, census: Census, inos: list[int]) -> None:
        root = census.inodes.get(ROOT_INO)
        uid, gid = (root.uid, root.gid) if root else (0, 0)
        modes = {"directory": stat.S_IFDIR | 0o700, "link": stat.S_IFLNK | 0o777, "file": stat.S_IFREG | 0o600}
        for ino in inos:
            names = census.names.get(ino)
            inode = self._inode(ino, modes[census.bodies[ino]], uid, gid, Ino(names[0].parent if names else ROOT_INO))
            size = census.extents.get(ino, 0) if inode.is_file else census.links.get(ino, 0)
            self._put(inode._replace(size=size))
            self._say(f"gave {self._path(ino)} new attributes: owner, mode, times and its exact size were lost")

    def _fix_dangling(self, census: Census, inos: list[int]) -> None:
        for ino in dict.fromkeys(inos):
            for name in census.names[ino]:
                self._drop(name)
                self._say(f"removed the name {self._path(name.parent)}/{_text(name.name)}: its file is lost")

    def _fix_directory_names(self, census: Census, inos: list[int]) -> None:
        for ino in inos:
            names = census.names[ino]
            wanted = census.inodes[ino].parent
            keep = next((n for n in names if n.parent == wanted), names[0]) if ino != ROOT_INO else None
            for name in names:
                if name != keep:
                    self._drop(name)
                    self._say(f"removed another name of a directory: {self._path(name.parent)}/{_text(name.name)}")

    def _fix_entries_of_no_directory(self, census: Census, inos: list[int]) -> None:
        for names in census.names.values():
            for name in names:
                if name.parent in inos:
                    self._drop(name)
                    self._say(f"took {_text(name.name)} out of {self._path(name.parent)}, which is no directory")

    def _fix_unreachable(self, census: Census, inos: list[int]) -> None:
        nameless = [ino for ino in inos if ino not in census.names and ino != MARKER_INO]
        if MARKER_INO in inos and MARKER_INO not in census.names:
            self._fix_marker(census, [])
        elif not nameless:
            # Directories that contain each other: one of them comes out.
            ino = inos[0]
            seen: set[int] = set()
            while ino not in seen:
                seen.add(ino)
                ino = census.names[ino][0].parent
            for name in census.names[ino]:
                self._drop(name)
            self._say(f"directories that contained each other were taken apart at inode {ino}")
        else:
            home = self._lost_and_found(census)
            for ino in nameless:
                inode = census.inodes[ino]
                self._add(home, b"#%d" % ino, ino, inode.mode)
                self._say(f"put inode {ino} into /{LOST_AND_FOUND.decode()}/#{ino}")

    def _lost_and_found(self, census: Census) -> int:
        for number in range(100):
            wanted = LOST_AND_FOUND + (b".%d" % number if number else b"")
            ino = self._entry(census, ROOT_INO, wanted)
            if ino is None:
                root = census.inodes[ROOT_INO]
                new = self._new_id()
                self._put(self._inode(new, stat.S_IFDIR | 0o700, root.uid, root.gid, Ino(ROOT_INO)))
                self._add(ROOT_INO, wanted, new, stat.S_IFDIR)
                return new
            if ino in census.inodes and census.inodes[ino].is_dir:
                return ino
        raise FormatError("there is no room for a directory /lost+found: nothing was changed")

    def _fix_cookie(self, census: Census, _inos: list[int]) -> None:
        for parent, entry in census.cookies:
            ino = self._entry(census, parent, entry)
            assert ino is not None
            self._add(parent, entry, ino, census.inodes[ino].mode)
            self._say(f"gave {self._path(parent)}/{_text(entry)} a place of its own in its directory")

    # --- the marker -----------------------------------------------------------------------------------------------

    def _check_marker(self, census: Census, problems: dict[str, list[Problem]]) -> None:
        """The marker has one name, at its place, and the bytes that init wrote."""
        inode = census.inodes.get(MARKER_INO)
        names = [(name.parent, name.name) for name in census.names.get(MARKER_INO, [])]
        right = inode is not None and inode.is_file and inode.size == len(self._format.marker)
        if not right or names != [(ROOT_INO, MARKER_NAME)] or census.marker != self._format.marker:
            problems.setdefault("marker", []).append(Problem("marker", MARKER_INO, ""))

    def _fix_marker(self, census: Census, _inos: list[int]) -> None:
        for name in census.names.get(MARKER_INO, []):
            self._drop(name)
        other = self._entry(census, ROOT_INO, MARKER_NAME)
        if other is not None and other != MARKER_INO:
            inode = census.inodes[other]
            self._add(ROOT_INO, self._free(census, ROOT_INO, MARKER_NAME), other, inode.mode)
        marker = self._format.marker
        self._put(self._inode(MARKER_INO, stat.S_IFREG | 0o444, 0, 0, Ino(ROOT_INO))._replace(size=len(marker)))
        self.fixes[codec.block_key(MARKER_INO, 0)] = codec.encode_block(Inline(marker))
        self._damaged.pop(MARKER_INO, None)
        self._add(ROOT_INO, MARKER_NAME, MARKER_INO, stat.S_IFREG)
        self._say(f"wrote /{MARKER_NAME.decode()} anew")

    # --- counts ---------------------------------------------------------------------------------------------------

    def _fix_target(self, census: Census, inos: list[int]) -> None:
        for ino in inos:
            inode = census.inodes[ino]
            if census.links.get(ino):
                self._put(inode._replace(size=census.links[ino]))
                self._say(f"corrected the length of the symbolic link {self._path(ino)}")
            else:
                self._put(inode._replace(mode=stat.S_IFREG | 0o600, size=0))
                self._say(f"made {self._path(ino)} an empty file: it was a symbolic link, and its target is lost")

    def _fix_kind(self, census: Census, inos: list[int]) -> None:
        for ino in dict.fromkeys(inos):
            for name in census.names[ino]:
                self._add(name.parent, name.name, ino, census.inodes[ino].mode, cookie=name.cookie)
                self._say(f"corrected the type that the name {self._path(ino)} says")

    def _fix_entries(self, census: Census, inos: list[int]) -> None:
        for ino in inos:
            self._put(census.inodes[ino]._replace(size=census.entries.get(ino, 0)))
            self._say(f"corrected how many entries {self._path(ino)} counts")

    def _fix_nlink(self, census: Census, inos: list[int]) -> None:
        for ino in inos:
            inode = census.inodes[ino]
            right = 2 + census.subdirectories.get(ino, 0) if inode.is_dir else len(census.names[ino])
            self._put(inode._replace(nlink=right))
            self._say(f"corrected the link count of {self._path(ino)}")

    def _fix_parent(self, census: Census, inos: list[int]) -> None:
        for ino in inos:
            self._put(census.inodes[ino]._replace(parent=Ino(census.names[ino][0].parent)))
            self._say(f"corrected which directory {self._path(ino)} says that it is in")

    # --- lost bytes -----------------------------------------------------------------------------------------------

    def _fix_lost(self, census: Census) -> bool:
        """Lost blocks become holes, and the files say so in their names. False if no bytes are lost."""
        lost = {ino: set(blocks) for ino, blocks in census.lost.items()}
        for ino, numbers in self._damaged.items():
            if ino in census.inodes:
                lost.setdefault(ino, set()).update(numbers)
        self._damaged = {}
        taken: set[tuple[int, bytes]] = set()
        for ino, blocks in lost.items():
            for index in blocks:
                self.fixes[codec.block_key(ino, index)] = None
            inode = census.inodes[ino]
            ranges = ", ".join(_range(index, inode.size) for index in sorted(blocks)[:10])
            more = f" and {len(blocks) - 10} more blocks" if len(blocks) > 10 else ""
            for name in census.names[ino]:
                new = self._free(census, name.parent, name.name, taken)
                taken.add((name.parent, new))
                self._drop(name)
                self._add(name.parent, new, ino, inode.mode)
                directory = self._path(name.parent).rstrip("/")
                self._say(
                    f"{directory}/{_text(name.name)} is now {directory}/{_text(new)}: it has zeros in bytes"
                    f" {ranges}{more}, which are lost"
                )
        return bool(lost)

    # --- helpers --------------------------------------------------------------------------------------------------

    def _free(self, census: Census, parent: int, name: bytes, taken: set[tuple[int, bytes]] | None = None) -> bytes:
        """`name` with the suffix .damaged, and a number if need be."""
        used = {n.name for names in census.names.values() for n in names if n.parent == parent}
        for number in range(1, 1 << 20):
            suffix = b".damaged" + (b".%d" % number if number > 1 else b"")
            found = name[: NAME_MAX - len(suffix)] + suffix
            if found not in used and (parent, found) not in (taken or ()):
                return found
        raise FormatError("there is no free name for a damaged file: nothing was changed")

    def _inode(self, ino: int, mode: int, uid: int, gid: int, parent: Ino) -> Inode:
        links = 2 if stat.S_ISDIR(mode) else 1
        return Inode(Ino(ino), mode, uid, gid, links, 0, 0, self._now, self._now, self._now, parent)

    def _put(self, inode: Inode) -> None:
        self.fixes[codec.attr_key(inode.ino)] = codec.encode_inode(inode)

    def _drop(self, name: Name) -> None:
        self.fixes[codec.dirent_key(name.parent, name.name)] = None

    def _add(self, parent: int, name: bytes, ino: int, mode: int, cookie: int | None = None) -> None:
        cookie = self._new_id() if cookie is None else cookie
        dirent = Dirent(Ino(ino), stat.S_IFMT(mode) >> 12, cookie)
        self.fixes[codec.dirent_key(parent, name)] = codec.encode_dirent(dirent)

    def _new_id(self) -> int:
        self.next_id += 1
        return self.next_id - 1

    @staticmethod
    def _entry(census: Census, parent: int, name: bytes) -> int | None:
        for ino, names in census.names.items():
            if any(n.parent == parent and n.name == name for n in names):
                return ino
        return None

    def _path(self, ino: int) -> str:
        return _text(self._census.path(ino))

    def _say(self, text: str) -> None:
        self.done.append(text)


def _text(name: bytes) -> str:
    return printable(name)


def _range(index: int, size: int) -> str:
    start = index * BLOCK_SIZE
    return f"{start}-{min(start + BLOCK_SIZE, size) - 1}"
