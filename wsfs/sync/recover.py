"""What a crash has left in a cache directory: an index that is whole, and the names of what could not be restored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Final
from uuid import UUID

from wsfs import aside as asides
from wsfs.data.overlay import Overlay
from wsfs.errors import CacheError, WsfsError
from wsfs.index.check import is_whole, salvage
from wsfs.index.index import Index
from wsfs.index.journal import PUT_CLEAN, read_segment
from wsfs.index.names import Entry, entries_of, listed
from wsfs.model import BLOCK_SIZE
from wsfs.remote import fetch_all
from wsfs.repo.head import Head, Holder, State
from wsfs.store.base import Store
from wsfs.sync.lease import boot_id
from wsfs.sync.load import Loader
from wsfs.text import printable
from wsfs.tree.paths import Paths

_NAMED: Final = 5
"""How many names the line has; the file has all."""

_APART: Final = "; the workspace was changed since, so only 'wsfs export --unsaved' gets it from there"


@dataclass(slots=True)
class Recovery:
    """What a start has found and done. `lost`: paths of what may lack changes; `aside`: where a damaged index went."""

    power_lost: bool = False
    operations: int = 0
    unsaved: int = 0
    lost: list[bytes] = field(default_factory=list)
    aside: Path | None = None

    def line(self, cache: Path, url: str) -> str:
        """For the user, on one line; "" if there is nothing to say. The names go to a file in the cache directory."""
        if not (self.operations or self.lost or self.aside):
            return ""
        event = "power loss" if self.power_lost else "crash"
        told = (
            f"recovered after a {event}: {self.operations} operations replayed, {self.unsaved} unsaved files are kept"
        )
        if self.aside is not None:
            told += (
                f"; the index in the cache was damaged, so the mount starts from the newest commit, and what was not"
                f" saved is in {self.aside}: '{asides.command(self.aside, url)}' copies what can be read"
            )
        if self.lost:
            what = "not restored" if self.aside is not None else "may lack what was not synced"
            names = [printable(path) for path in sorted(self.lost)]
            told += f"; {_files(len(names))} {what}: {', '.join(names[:_NAMED])}"
            if len(names) > _NAMED:
                told += f" and {len(names) - _NAMED} more, see {_list(cache, names)}"
        return told


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _list(cache: Path, names: Iterable[str]) -> Path:
    """A file with all names. It is good to have, and nothing depends on it."""
    path = cache / f"lost-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.txt"
    with suppress(OSError):
        path.write_text("".join(f"{name}\n" for name in names))
        path.chmod(0o600)
    return path


def left_elsewhere(before: Head, me: Holder, *, crashed: bool, unsaved: bool) -> str:
    """What the mount before this one may have had that is in no commit, nor in this cache: for the user, on one line;
    "" if there is nothing to say.

    `before` is HEAD as it left that. `crashed`: the last mount with this cache did not end in order; `unsaved`: it has
    changes that build on HEAD.
    """
    holder = before.holder
    if holder is None:
        if before.state != State.SYNC_FAILED or unsaved:
            return ""
        return (
            f"files are missing here, for the last stop could not save everything: {before.reason}. To have them, stop"
            " this mount before it has saved anything, and mount with that cache"
        )
    if not holder.cache:  # it had none: an import, a repair, a garbage collection
        return ""
    if holder.boot_id.partition("/")[0] == me.boot_id.partition("/")[0]:
        ours = holder.cache == me.cache
    else:  # the number of a lock says nothing after a reboot; that a cache has seen a crash says enough
        ours = crashed or unsaved
    if ours:
        return ""
    reason = f" ({before.reason})" if before.reason else ""
    return f"files may be missing here, for the mount before did not end in order{reason}: {kept_by(holder)}"


def changed_since(before: Head) -> tuple[State, str]:
    """What HEAD says once something that has no cache has changed the workspace. `before` is HEAD as it was.

    STOPPED is the promise that everything is in the bucket. That does not hold for what a mount before has kept, whose
    cache does not stand on HEAD any more.
    """
    reason = _kept(before)
    return (State.SYNC_FAILED, reason.removesuffix(_APART) + _APART) if reason else (State.STOPPED, "")


def unchanged_since(before: Head) -> tuple[State, str]:
    """What HEAD says once something that has no cache had the workspace, and has not changed it."""
    reason = _kept(before)
    return (State.SYNC_FAILED, reason) if reason else (before.state, before.reason)


def _kept(before: Head) -> str:
    """What a mount before may have kept, and where; "" if nothing."""
    if before.holder is not None and before.holder.cache:
        return f"the mount before did not end in order: {kept_by(before.holder)}"
    return before.reason if before.state == State.SYNC_FAILED else ""


def kept_by(holder: Holder) -> str:
    """Where to look for what a mount that did not end in order has not saved."""
    return (
        f"what it had not saved is in its cache directory on {holder.host} (process {holder.pid}, mounted since"
        f" {holder.since})"
    )


def set_damaged_aside(local: Path, set_aside: Callable[[str], Path]) -> Path | None:
    """After a power loss: make sure that the index can be trusted. One that cannot is set aside with all that belongs
    to it, and beside it an index of what can be read of it; returns where. Raises CacheError.
    """
    try:
        if not (local / "index").is_dir() or is_whole(local / "index"):
            return None
        salvaged = local / "salvaged"
        rmtree(salvaged, ignore_errors=True)  # of a start that has died here
        salvaged.mkdir(mode=0o700)
        salvage(local / "index", salvaged)
        aside = set_aside("damaged")
        (aside / "index").rename(aside / "index.torn")
        (aside / "salvaged").rename(aside / "index")
    except OSError as exc:
        raise CacheError(f"the index in {local} is damaged, and cannot be set aside: {exc.strerror}") from exc
    return aside


def unsaved_in(aside: Path, store: Store, newest: Index) -> list[bytes]:
    """The names of all that was unsaved in a damaged index: those that were noted beside it, and what else can be read.
    Numbers for what has no new name, and whose old one can be read neither there nor in the newest commit."""
    entries = list(listed(aside))
    for path in sorted(aside.glob("journal-*")):
        for record in read_segment(path)[1]:
            entries += entries_of((key, value) for flag, key, value in record.ops if flag != PUT_CLEAN)
    try:
        overlay = Overlay(aside)
        index = Index(aside, UUID(boot_id()).bytes)
    except (WsfsError, OSError, ValueError, KeyError):
        return [*_names(entries, set(), newest), b"and perhaps more"]
    try:
        Loader(store, index)
        reader = index.tables.reader()
        tables = (b"dirty", b"kept")
        changed = {key: reader.get(key) or b"" for table in tables for key, _ in reader.scan(table, b"")}
        reader.close()
        unread = {ino for ino in overlay.inodes() if _has_no_row(index, ino)}
        entries += entries_of(changed.items())
        return _names(entries, unread, index, newest)
    finally:
        with suppress(CacheError):
            index.close()
        overlay.close()


def _has_no_row(index: Index, ino: int) -> bool:
    try:
        return fetch_all(lambda: index.inode(ino)) is None
    except WsfsError:
        return True


def lost_in(index: Index, overlay: Overlay) -> list[bytes]:
    """After a power loss: the names of files that may lack changes. Their last operations were dropped, because
    nothing vouches for them, or the overlay has less than their rows say: it ends too early, or has a hole. A hole may
    be a program's own. What it has not at all is zeros from now on, in an empty file: then it is known. A file that is
    lost later is an error."""
    short = set()
    for ino, block in (*index.local_blocks(), *index.kept_blocks()):
        inode = index.inode(ino)  # it has changed here, so its row is here
        if inode is None or ino in short:
            continue
        if not overlay.has(ino):
            overlay.begin_empty(ino)
        start, end = block * BLOCK_SIZE, min(inode.size, (block + 1) * BLOCK_SIZE)
        if start < end and not overlay.is_whole(ino, start, end):
            short.add(ino)
    return _names(entries_of(index.dropped.items()), short, index)


def _names(entries: list[Entry], others: set[int], *indexes: Index) -> list[bytes]:
    """The paths of all that some entries are about, and of other inodes: in the entries, or in one of the indexes."""
    named = [entry for entry in entries if entry.name]
    new = {entry.ino: entry for entry in named if entry.ino}
    known = [Paths(index, fetch_all) for index in indexes]

    def path_of(ino: int, below: frozenset[int] = frozenset()) -> bytes:
        for paths in known:
            with suppress(WsfsError, KeyError, ValueError):
                if (path := paths.of(ino)) is not None:
                    return path
        return join(new[ino], below | {ino}) if ino in new and ino not in below else b"inode %d" % ino

    def join(entry: Entry, below: frozenset[int] = frozenset()) -> bytes:
        directory = path_of(entry.parent, below)
        return directory + b"/" + entry.name if directory else entry.name

    parents = {entry.parent for entry in named}
    inodes = {entry.ino for entry in entries if not entry.name} - parents - new.keys()
    return sorted({*map(join, named), *map(path_of, inodes | others - new.keys())} - {b""})
