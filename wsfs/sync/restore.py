"""Brings files back from a save point into a running workspace: their rows, which lead to the same frames.

A file that is at its place unchanged is left alone. Any other one is made anew, with an inode number of its own:
programs that have the present one open go on with that. A directory that is there stays the same one. Nothing is read
from packs, and nothing is written to any.

It runs on a thread that is not the owner's. Each step runs on the owner's, makes a part of the tree as it was, and may
be repeated. The caller sees to it that no commit is made meanwhile, and that the save point stays.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from wsfs.errors import NoSavePointError, UsageError
from wsfs.index.batch import Batch
from wsfs.index.index import Index
from wsfs.model import MARKER_NAME, ROOT_INO, Ino, Inode
from wsfs.remote import fetch_all
from wsfs.repo import codec
from wsfs.sync.commit import OnOwner
from wsfs.sync.compare import same_content
from wsfs.sync.past import Past
from wsfs.text import printable
from wsfs.tree.ignore import IGNORE_NAME
from wsfs.tree.namespace import Namespace

T = TypeVar("T")
Body = list[tuple[bytes, bytes]]

_AT_ONCE: Final = 100
"""So many entries of a directory are looked at before other requests get their turn."""


@dataclass(slots=True)
class Restored:
    """What was done: files, links and directories made, removed, and given other attributes.

    `ignore_left`: `.wsfsignore` was another one then, and stays. `names` and `inodes` are what the kernel must forget.
    """

    made: int = 0
    removed: int = 0
    changed: int = 0
    ignore_left: bool = False
    names: list[tuple[int, bytes]] = field(default_factory=list)
    inodes: set[int] = field(default_factory=set)


class Restorer:
    """One restore from the commit `past`. `gone` is called on the owner thread with inodes that have lost a name.

    With `missing_only` what is there stays as it is, and nothing is removed. `told` is called now and then with what
    the kernel must forget.
    """

    def __init__(
        self,
        past: Past,
        index: Index,
        names: Namespace,
        on_owner: OnOwner,
        gone: Callable[[Ino], None],
        told: Callable[[Restored], None],
        *,
        missing_only: bool = False,
    ) -> None:
        self._past = past
        self._index = index
        self._names = names
        self._on_owner = on_owner
        self._gone = gone
        self._told = told
        self._missing_only = missing_only
        self._made: dict[int, Ino] = {}
        self.done = Restored()

    def check(self, paths: Sequence[bytes]) -> None:
        """Raises NoSavePointError when a path was not there then. Changes nothing."""
        for path in paths:
            if self._past.lookup(path) is None:
                when = f"#{self._past.manifest.seq} of {self._past.manifest.created}"
                raise NoSavePointError(f"there was no {printable(path)} at save point {when}")

    def restore(self, path: bytes) -> None:
        """Make what is at a path as it was; b"" is everything. What was not there then is removed.

        With everything `.wsfsignore` stays as it is, if there is one. Else what it keeps here would be saved from then
        on, and the way back would remove it: no save point from before that has it.

        Raises StoreError, FormatError, CacheError, and UsageError when a file is in the way of a directory above.
        """
        parts = [part for part in path.split(b"/") if part]
        if any(part in (b".", b"..") for part in parts):
            raise UsageError(f"the path {printable(path)} is none from the top of the workspace")
        if parts == [MARKER_NAME]:
            return
        then = self._past.lookup(path)
        if not parts:
            assert then is not None
            self._directories([(Ino(ROOT_INO), then)])
        elif then is None:
            self._leave_out(parts)
        else:
            at = self._above(parts[:-1])
            self._run(lambda: self._refuse_kept(at, parts[-1]))
            self._directories(self._entries(at, [(parts[-1], then)]))
        self._told(self.done)

    # --- directories ----------------------------------------------------------------------------------------------

    def _above(self, parts: Sequence[bytes]) -> Ino:
        """The directory that a path is in; what is missing of it is made."""
        at = Ino(ROOT_INO)
        for number, name in enumerate(parts):
            then = self._past.lookup(b"/".join(parts[: number + 1]))
            assert then is not None
            body = self._past.body(then.ino)

            def step(at: Ino = at, name: bytes = name, then: Inode = then, body: Body = body) -> Ino:
                if self._is_lost(at):
                    raise UsageError(f"the directory of {printable(name)} was removed just now: try again")
                found = self._index.dirent(at, name)
                if found is None:
                    return self._make(at, name, then, body)
                if not self._names.inode(found.ino).is_dir:
                    raise UsageError(f"{printable(name)} is no directory any more: move it away, and try again")
                self._refuse_kept(at, name)
                return found.ino

            at = self._run(step)
        return at

    def _refuse_kept(self, parent: Ino, name: bytes) -> None:
        """Raises UsageError if what is at this name now stays on this machine."""
        if self._index.kept.has_name(parent, name):
            raise UsageError(
                f"{printable(name)} stays on this machine (.wsfsignore), so nothing is restored there: move it away,"
                " and try again"
            )

    def _shared(self, directory: Ino) -> list[bytes]:
        """The names in a directory, but for those that stay on this machine: no save point is about them."""
        kept = self._index.kept
        return [name for name, _ in self._index.names(directory, 0) if not kept.has_name(directory, name)]

    def _leave_out(self, parts: Sequence[bytes]) -> None:
        """Remove what was not there then, and directories above that were made for it, if nothing else is in them. But
        not what stays on this machine, for no save point has it."""

        def find() -> list[Ino]:
            way = [Ino(ROOT_INO)]
            for name in parts:
                found = self._index.dirent(way[-1], name)
                if found is None or self._index.kept.has_name(way[-1], name):
                    return []
                way.append(found.ino)
            return way

        def remove_empty(parent: Ino, name: bytes) -> None:
            found = self._index.dirent(parent, name)
            if found is not None and self._names.inode(found.ino).is_dir:
                self._remove_one(parent, name)

        way = self._run(find)
        if not way:
            return
        self._remove(way[-2], parts[-1])
        for number in range(len(parts) - 1, 0, -1):
            if self._past.lookup(b"/".join(parts[:number])) is not None:
                break
            self._run(partial(remove_empty, way[number - 1], parts[number - 1]))

    def _directories(self, pending: list[tuple[Ino, Inode]]) -> None:
        """Make directories as they were, and all below them, however deep that is."""
        while pending:
            pending += self._directory(*pending.pop())

    def _directory(self, here: Ino, then: Inode) -> list[tuple[Ino, Inode]]:
        """Make a directory as it was, but for what is in those in it, which are returned."""
        inside: list[tuple[Ino, Inode]] = []
        entries = [(name, dirent.ino) for name, dirent in self._past.entries(then.ino)]
        left = {MARKER_NAME} if here == ROOT_INO else set()
        if not self._missing_only:
            ignoring = self._past.lookup(IGNORE_NAME) if here == ROOT_INO else None
            if here == ROOT_INO and self._run(lambda: self._leaves_ignore(ignoring)):
                left.add(IGNORE_NAME)
            wanted = {name for name, _ in entries}
            listed = self._run(lambda: self._shared(here))
            for name in listed:
                if name not in wanted and name not in left:
                    self._remove(here, name)
        for at in range(0, len(entries), _AT_ONCE):
            chunk = []
            for name, ino in entries[at : at + _AT_ONCE]:
                inode = self._past.inode(ino)
                if inode is not None and name not in left:
                    chunk.append((name, inode))
            inside += self._entries(here, chunk)
        body = self._past.body(then.ino)
        if not self._missing_only or (self._made.get(then.ino) == here and here != then.ino):
            self._run(lambda: self._dress(here, then, body))
        return inside

    def _leaves_ignore(self, then: Inode | None) -> bool:
        """Whether there is a `.wsfsignore` now; `then` is what there was."""
        found = self._index.dirent(Ino(ROOT_INO), IGNORE_NAME)
        if found is None:
            return False
        now = self._names.inode(found.ino)
        same = then is not None and (now.size, now.mtime_ns) == (then.size, then.mtime_ns)
        self.done.ignore_left |= not same
        return True

    def _entries(self, parent: Ino, entries: Sequence[tuple[bytes, Inode]]) -> list[tuple[Ino, Inode]]:
        """Make some names of a directory lead to what they led to. Returns directories that are to be made as they
        were."""
        bodies: dict[int, Body] = {}

        def step() -> list[tuple[Ino, Inode]]:
            directories: list[tuple[Ino, Inode]] = []
            if self._is_lost(parent):
                return directories
            for name, then in entries:
                if self._index.kept.has_name(parent, name):
                    continue  # it came later, and only here: it stays
                found = self._index.dirent(parent, name)
                now = None if found is None else self._names.inode(found.ino)
                if now is not None and now.is_dir and then.is_dir:
                    directories.append((now.ino, then))
                elif now is not None and self._is_done(now, then):
                    pass
                elif then.ino not in bodies:
                    raise _NeedBodyError(then.ino)
                elif now is None:
                    ino = self._place(parent, name, then, bodies[then.ino])
                    if then.is_dir:
                        directories.append((ino, then))
                elif now.is_dir:
                    raise _NeedRemovalError(name)
                elif not self._mend(now, then, bodies[then.ino]):
                    self._gone(self._names.unlink(parent, name))
                    ino = self._place(parent, name, then, bodies[then.ino])
                    if then.is_dir:
                        directories.append((ino, then))
            return directories

        while True:
            try:
                directories = self._run(step)
                break
            except _NeedBodyError:
                for _, then in entries:
                    bodies[then.ino] = self._past.body(then.ino)
            except _NeedRemovalError as need:
                self._remove(parent, need.name)
                self._run(lambda name=need.name: self._refuse_full(parent, name))  # type: ignore[misc]
        if len(self.done.names) >= _AT_ONCE:
            self._told(self.done)
        return directories

    def _refuse_full(self, parent: Ino, name: bytes) -> None:
        """Raises UsageError if a directory could not be removed, because something came into it or stays in it."""
        found = self._index.dirent(parent, name)
        if self._is_lost(parent) or found is None or not self._names.inode(found.ino).is_dir:
            return
        if found.ino in self._index.kept.names:
            what = "there is what stays on this machine (.wsfsignore)"
        else:
            what = "a program has made something just now"
        raise UsageError(f"in {printable(name)}, where a file was, {what}: move it away, and try again")

    def _is_lost(self, ino: Ino) -> bool:
        """Whether programs, which go on meanwhile, have removed this, or moved it to where it stays on this machine.

        It takes along what was restored in it, as if that had been done afterwards; and nothing more comes there.
        """
        found = self._index.inode(ino)
        return found is None or found.nlink == 0 or ino in self._index.kept

    def _remove(self, parent: Ino, name: bytes) -> None:
        """Remove a name, and all below it; a directory stays if something in it stays on this machine, or was made by a
        program meanwhile."""

        pending = [(parent, name, False)]
        while pending:
            at, one, emptied = pending.pop()
            found = self._run(partial(self._remove_one, at, one))
            if found is not None and not emptied:
                pending.append((at, one, True))
                pending += [(found[0], below, False) for below in found[1]]

    # --- on the owner thread --------------------------------------------------------------------------------------

    def _remove_one(self, parent: Ino, name: bytes) -> tuple[Ino, list[bytes]] | None:
        """Remove a name; of a directory that is not empty, return the inode and what would have to go before."""
        found = self._index.dirent(parent, name)
        if found is None or self._index.kept.has_name(parent, name):
            return None
        inode = self._names.inode(found.ino)
        if inode.is_dir and inode.size:
            return inode.ino, self._shared(inode.ino)
        self._gone((self._names.rmdir if inode.is_dir else self._names.unlink)(parent, name))
        self._changed(parent, name)
        self.done.inodes.add(inode.ino)
        self.done.removed += 1
        return None

    def _place(self, parent: Ino, name: bytes, then: Inode, body: Body) -> Ino:
        """A name that is not there now, for what it led to: another name of a file that is there, or a new inode."""
        other = self._made.get(then.ino)
        if other is not None and self._is_lost(other):
            other = None
        if other is None and then.nlink > 1 and not then.is_dir and self._is_same(then, body):
            other = then.ino
        if other is None or then.is_dir:
            return self._make(parent, name, then, body)
        self._names.link(other, parent, name, saved=True)
        self._dress(other, then, body)
        self._changed(parent, name)
        self.done.inodes.add(other)
        self._made[then.ino] = other
        return other

    def _make(self, parent: Ino, name: bytes, then: Inode, body: Body) -> Ino:
        made = self._names.adopt(parent, name, then, body)
        self._changed(parent, name)
        self._made[then.ino] = made.ino
        self.done.made += 1
        return made.ino

    def _is_done(self, now: Inode, then: Inode) -> bool:
        """Whether a name leads where it should; also when the step is made again."""
        if now == then:
            self._made.setdefault(then.ino, now.ino)
        return self._missing_only or now == then or self._made.get(then.ino) == now.ino

    def _is_same(self, then: Inode, body: Body) -> bool:
        """Whether the inode that a file had is there still, with the same content and times."""
        now = self._index.inode(then.ino)
        if now is None or now.nlink == 0 or now.ino in self._index.kept:
            return False
        return self._matches(now, then, body)

    def _matches(self, now: Inode, then: Inode, body: Body) -> bool:
        if (now.ino, now.size, now.mtime_ns, stat.S_IFMT(now.mode), now.rdev) != (
            then.ino,
            then.size,
            then.mtime_ns,
            stat.S_IFMT(then.mode),
            then.rdev,
        ):
            return False
        rows = dict(self._index.scan(now.ino, codec.BLOCK))
        target = self._index.get(codec.symlink_key(now.ino))
        if target is not None:
            rows[codec.symlink_key(now.ino)] = target
        wanted = {key: row for key, row in body if codec.table_of(key) != codec.XATTR}
        if rows.keys() != wanted.keys():
            return False
        return all(same_content(row) == same_content(wanted[key]) for key, row in rows.items())

    def _mend(self, now: Inode, then: Inode, body: Body) -> bool:
        """Give a file that only has other attributes its old ones. False when it is another file."""
        if not self._matches(now, then, body):
            return False
        self._made.setdefault(then.ino, now.ino)
        self._dress(now.ino, then, body)
        return True

    def _dress(self, ino: Ino, then: Inode, body: Body) -> None:
        """Attributes and extended attributes as they were; of a directory its times, too."""
        if self._is_lost(ino):
            return
        now = self._names.inode(ino)
        dressed = now._replace(mode=then.mode, uid=then.uid, gid=then.gid)
        if now.is_dir:
            dressed = dressed._replace(atime_ns=then.atime_ns, mtime_ns=then.mtime_ns)
        batch = Batch()
        wanted = {key[9:]: row for key, row in body if codec.table_of(key) == codec.XATTR}
        present = {key[9:]: row for key, row in self._index.scan(ino, codec.XATTR)}
        for name in present.keys() - wanted.keys():
            batch.delete(codec.xattr_key(ino, name))
        for name, row in wanted.items():
            if present.get(name) != row:
                batch.put(codec.xattr_key(ino, name), row)
        if batch.ops or dressed != now:
            batch.put_inode(dressed._replace(ctime_ns=self._names.now()))
            self._index.apply(batch)
            self.done.inodes.add(ino)
            self.done.changed += 1

    def _changed(self, parent: Ino, name: bytes) -> None:
        self.done.names.append((parent, name))
        self.done.inodes.add(parent)

    def _run(self, step: Callable[[], T]) -> T:
        """A step on the owner thread; what it needs is fetched on ours."""
        return fetch_all(lambda: self._on_owner(step))


class _NeedBodyError(Exception):
    """The rows of some files have to be read before the step can be made."""


class _NeedRemovalError(Exception):
    """A directory is in the place of a file."""

    def __init__(self, name: bytes) -> None:
        super().__init__()
        self.name = name
