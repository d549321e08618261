"""File data that was written here: one sparse file an inode, each block at its own offset.

The block rows say which blocks count; an overlay file may hold stale bytes elsewhere. While a commit is under way, the
blocks that it has not read yet are frozen: whoever is about to change one keeps a copy of its old bytes first.

Threads: the owner (the FUSE thread) calls everything but what says "any thread".
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Container, Iterable
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Final

from wsfs.data.behind import WriteBehind
from wsfs.data.overlayfile import (
    disk_error,
    hold,
    missing,
    punch,
    read_block,
    release,
    remove,
    sync_file_system,
    write_all,
)
from wsfs.data.removals import LARGE_FILE, Removals
from wsfs.disk import sync_directory
from wsfs.errors import CacheError, CacheFullError
from wsfs.log import get_log
from wsfs.model import BLOCK_SIZE

log = get_log(__name__)

_OPEN_FILES: Final = 512
_SYNC_EACH_MAX: Final = 256
_REAPED_AT_ONCE: Final = 64


class Overlay:
    """Raises CacheFullError when the disk is full, CacheError when it fails; file contents stay as they were then."""

    def __init__(self, directory: Path) -> None:
        self._files = directory / "overlay"
        self._copies = directory / "frozen"
        # Copies serve a running commit only. One that a crash has ended is begun again from the overlay itself.
        shutil.rmtree(self._copies, ignore_errors=True)
        for path in (self._files, self._copies):
            path.mkdir(mode=0o700, exist_ok=True)
        self._shards = [f"{self._files}/{shard:02x}" for shard in range(256)]
        for shard in self._shards:
            os.makedirs(shard, mode=0o700, exist_ok=True)
        self._fds: OrderedDict[int, int] = OrderedDict()
        self._behind = WriteBehind()
        self.removals = Removals(self._behind)
        self._lock = threading.Lock()
        self.dirty: dict[int, set[int]] = {}
        """The blocks, by inode, whose rows this generation has made LOCAL: writing to them again changes no row."""
        self._left: dict[int, set[int]] = {}
        """The blocks of a commit that failed. It may turn out to have succeeded, so a write to them is a new change."""
        self._begun: dict[int, set[int]] = {}
        self._frozen: dict[int, set[int]] = {}
        self._copied: dict[int, dict[int, str]] = {}
        """Where a commit finds the old bytes of blocks that have changed since, by inode and block."""
        self._older: set[threading.Thread] = set()
        """Threads from before the freeze: if one of them captures, it belongs to a commit that was given up."""
        self._numbers = count()
        self._dropped: dict[int, int] = {}
        self._doomed: dict[int, int] = {}
        self._cuts: dict[int, int] = {}
        """Files that the disk has refused to cut, and where: it is done before anything could show what is beyond."""
        self.reserved = 0
        """Above 0 no data is written: the little room that there is is for something else."""
        self._durable = 0
        self.serial: Callable[[], int] = lambda: 0
        """The newest journal record: what says that a dropped file's bytes are not needed is in it, or before it."""
        self._committing = False

    # --- reading and writing --------------------------------------------------------------------------------------

    def read(self, ino: int, index: int, start: int, length: int) -> bytes:
        """`length` bytes of a block from `start`; what was never written of it is zeros."""
        fd = self._fd(ino)
        if fd is None:
            raise self.missing(ino)
        try:
            data = os.pread(fd, length, index * BLOCK_SIZE + start)
        except OSError as exc:
            raise disk_error(exc) from exc
        return data if len(data) == length else data + bytes(length - len(data))

    def write(self, ino: int, offset: int, data: bytes | memoryview) -> None:
        """Write at a file offset. The blocks must have been marked and, where it matters, begun before."""
        if self.reserved:
            raise CacheFullError
        fd = self._fd(ino, create=True)
        assert fd is not None
        try:
            write_all(fd, data, offset)
        except OSError as exc:
            raise disk_error(exc) from exc
        self._behind.wrote(fd, offset, len(data))

    def begin(self, ino: int, index: int, content: bytes = b"") -> None:
        """Let a block that was not in the overlay begin with `content` and zeros, whatever lay there before."""
        if self.reserved:
            raise CacheFullError
        fd = self._fd(ino, create=True)
        assert fd is not None
        start = index * BLOCK_SIZE
        try:
            if os.fstat(fd).st_size > start:
                punch(fd, start, BLOCK_SIZE)
            write_all(fd, content, start)
        except OSError as exc:
            raise disk_error(exc) from exc

    def release(self, ino: int, blocks: Collection[int]) -> int:
        """Give the room of blocks back that no row speaks of any more, not even after a power loss. Returns bytes."""
        fd = self._fd(ino)
        return 0 if fd is None else release(fd, blocks)

    def cut(self, ino: int, size: int) -> None:
        """Make every byte from `size` on read as zero. The blocks concerned must have been preserved before; for a cut
        to nothing they need not.

        Does not fail, for the rows say so already: what the disk refuses now is done by `finish_cut`.
        """
        self._cuts[ino] = min(size, self._cuts.get(ino, size))
        try:
            self.finish_cut(ino)
        except CacheError as exc:
            log.warning("a file in the cache is not cut yet", path=self._path(ino), error=exc)

    def finish_cut(self, ino: int) -> None:
        """Before a file grows: what was cut off must not come to light. Raises CacheFullError, CacheError."""
        size = self._cuts.get(ino)
        if size is None:
            return
        try:
            if size or not self._set_aside(ino):
                fd = self._fd(ino)
                length = 0 if fd is None else os.fstat(fd).st_size
                if length >= LARGE_FILE and not size:
                    self._begin_anew(ino)
                elif fd is not None and length > size:
                    os.ftruncate(fd, size)
        except OSError as exc:
            raise disk_error(exc) from exc
        del self._cuts[ino]

    def _begin_anew(self, ino: int) -> None:
        """Cut a large file to nothing, while nobody waits until the disk has given its room back. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):  # somebody has removed it: nothing of it is needed any more
            self.removals.later(self._move_aside(ino))
        self._close(ino)
        self._fd(ino, create=True)  # else it would be missing, should a power loss bring back the rows of before

    def _move_aside(self, ino: int) -> str:
        """Where an overlay file is from now on. Raises OSError."""
        aside = f"{self._copies}/{ino:x}.{next(self._numbers)}"
        os.rename(self._path(ino), aside)
        return aside

    def _set_aside(self, ino: int) -> bool:
        """A file of which nothing is needed here any more goes to the commit that has not read all of it yet: a copy
        would take time and room. Whether there was something to read. Raises OSError."""
        if not self._frozen.get(ino):
            return False
        with self._lock:
            blocks = self._frozen[ino]
            if not blocks:
                return False
            try:
                path = self._move_aside(ino)
            except FileNotFoundError:
                path = ""  # the commit finds nothing either, and fails
            self._copied.setdefault(ino, {}).update(dict.fromkeys(blocks, path))
            self._frozen[ino] = set()
        self._close(ino)
        return True

    def has(self, ino: int) -> bool:
        """Whether there is an overlay file at all."""
        return self._fd(ino) is not None

    def missing(self, ino: int) -> CacheError:
        """What to raise when there is none, and a row says that it has what nobody else has: no zeros in its place."""
        return missing(self._path(ino), ino)

    def begin_empty(self, ino: int) -> None:
        """An overlay file that is lost, and everybody knows it: what its rows say that it has is zeros."""
        self._fd(ino, create=True)

    def is_whole(self, ino: int, start: int, end: int) -> bool:
        """Whether its overlay file has bytes from `start` to `end`, without a hole; as far as its file system tells."""
        fd = self._fd(ino)
        if fd is None:
            return False
        try:
            return os.fstat(fd).st_size >= end and os.lseek(fd, start, os.SEEK_HOLE) >= end
        except OSError as exc:
            raise disk_error(exc) from exc

    def drop(self, ino: int) -> None:
        """An inode's data here is not needed any more: `reap` removes it, once a power loss cannot bring back rows that
        speak of it, and the commit that may still need it has ended."""
        self.dirty.pop(ino, None)
        self._left.pop(ino, None)
        self._cuts.pop(ino, None)
        if self._committing:
            self._dropped[ino] = self.serial()
        elif self._doom(ino, self.serial()):
            self._reap_soon()

    def _doom(self, ino: int, serial: int) -> bool:
        """Whether it can go at once."""
        self._close(ino)
        with self._lock:
            self._doomed[ino] = serial
            return serial <= self._durable

    def _reap_soon(self) -> None:
        """The next flush would do it as well, but without a change there is none."""
        self._behind.later(partial(self.reap, self._durable))

    def reap(self, durable: int) -> None:
        """Any thread: the journal is durable up to this record."""
        with self._lock:
            self._durable = max(self._durable, durable)
            due = iter([ino for ino, serial in self._doomed.items() if serial <= self._durable])
        # Whoever writes meanwhile waits for none of it: a large file takes a second to remove, as do many small ones.
        while some := list(islice(due, _REAPED_AT_ONCE)):
            with self._lock:
                held = [self._remove(ino) for ino in some if self._doomed.get(ino, self._durable + 1) <= self._durable]
            self.removals.close(held)

    def _remove(self, ino: int) -> int | None:
        """Remove the name of a doomed file, with the lock held. What is in it goes with the descriptor, if there is
        one."""
        fd = hold(self._path(ino))
        if remove(self._path(ino)):
            del self._doomed[ino]
        return fd

    # --- commits --------------------------------------------------------------------------------------------------

    def mark(self, ino: int, index: int) -> bool:
        """Note that a block is about to be changed, and keep what a commit needs of it. True if it was clean before."""
        blocks = self.dirty.get(ino)
        if blocks is not None and index in blocks:
            return False
        self.preserve(ino, index)
        if blocks is None:
            self.dirty[ino] = {index}
        else:
            blocks.add(index)
        return True

    def unmark(self, ino: int, first: int) -> None:
        """Blocks from `first` on are gone."""
        for table in (self.dirty, self._left):
            blocks = table.get(ino)
            if blocks is not None:
                kept = {index for index in blocks if index < first}
                if kept:
                    table[ino] = kept
                else:
                    del table[ino]

    def unsaved(self, *, committing: bool = False) -> dict[int, set[int]]:
        """The blocks, by inode, that no commit is known to hold. Those of a commit that is under way only with
        `committing`."""
        return _merged(self.dirty, self._left, self._begun if committing else {})

    def is_unsaved(self, ino: int) -> bool:
        """Whether `unsaved` has blocks of this inode."""
        return ino in self.dirty or ino in self._left

    def preserve(self, ino: int, index: int) -> None:
        """Keep a copy of a frozen block's bytes, if the commit has not read them yet."""
        if not self._frozen or index not in self._frozen.get(ino, ()):
            return
        with self._lock:
            if index not in self._frozen.get(ino, ()):
                return
            data = read_block(self._path(ino), index, BLOCK_SIZE)
            path = self._copy_path(ino) if data is not None else ""  # then the commit finds nothing either, and fails
            if data is not None:
                try:
                    copy = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    try:
                        write_all(copy, data, index * BLOCK_SIZE)
                    finally:
                        os.close(copy)
                except OSError as exc:
                    raise disk_error(exc) from exc
            self._frozen[ino].discard(index)
            self._copied.setdefault(ino, {})[index] = path

    def preserve_from(self, ino: int, first: int) -> None:
        """`preserve` every frozen block from `first` on."""
        with self._lock:
            frozen = sorted(self._frozen.get(ino, ()))
        for index in frozen:
            if index >= first:
                self.preserve(ino, index)

    def freeze(self, kept: Container[int] = ()) -> None:
        """A commit begins: what is dirty now belongs to it, but for the inodes that it never holds."""
        assert not self._committing
        self._committing = True
        self._begun = {ino: blocks for ino, blocks in self.unsaved().items() if ino not in kept}
        frozen = _merged(self._begun)
        with self._lock:  # of a commit that was given up a thread may still be at work
            self._older = set(threading.enumerate()) - {threading.current_thread()}
            self._frozen = frozen
        self.dirty, self._left = {}, {}

    def capture(self, ino: int, index: int, length: int) -> bytes:
        """Any thread: the bytes of a block as they were at `freeze`. Raises CacheError."""
        frozen = self._frozen
        copied = self._copy_of(ino, index)
        data = None if copied is not None else read_block(self._path(ino), index, length)
        with self._lock:
            if frozen is not self._frozen or threading.current_thread() in self._older:
                # What the next commit has frozen must stay so until that has read it.
                raise CacheError("the commit that wanted this was given up")
            # Whoever was about to change it while it was read has kept a copy first, under this lock.
            copied = self._copy_of(ino, index)
            if copied is None and data is not None:
                # From now on it may change without a copy: this commit has what it needs.
                self._frozen.get(ino, set()).discard(index)
        if copied is not None:
            data = read_block(copied, index, length)
        if data is None:
            raise self.missing(ino)
        return data if len(data) == length else data + bytes(length - len(data))

    def _copy_of(self, ino: int, index: int) -> str | None:
        blocks = self._copied.get(ino)
        return None if blocks is None else blocks.get(index)

    def thaw(self, *, committed: bool, left: Collection[int] = ()) -> None:
        """The commit has ended, if one was begun. What a failed one held remains to be pushed, and the inodes that a
        successful one left out."""
        if not self._committing:
            return
        self._committing = False
        self._frozen = {}
        copied, self._copied = self._copied, {}
        for ino, blocks in copied.items():
            for path in set(blocks.values()) - {""}:
                if path == self._copy_path(ino):
                    remove(path)
                else:
                    self.removals.later(path)  # it may be large
        begun, self._begun = self._begun, {}
        self._left = begun if not committed else {ino: begun[ino] for ino in left if ino in begun}
        dropped, self._dropped = self._dropped, {}
        due = False
        for ino, serial in dropped.items():
            self._left.pop(ino, None)
            if ino not in self.dirty:
                due |= self._doom(ino, serial)
        if due:
            self._reap_soon()

    def settled(self, left: Collection[int] = ()) -> None:
        """The commit that seemed to have failed has succeeded after all, but for the inodes that it left out."""
        self._left = {ino: blocks for ino, blocks in self._left.items() if ino in left}

    # --- durability -----------------------------------------------------------------------------------------------

    def sync(self, inodes: Iterable[int]) -> None:
        """Any thread: the data of these inodes is on disk when this returns. Raises CacheError."""
        inodes = list(inodes)
        if len(inodes) > _SYNC_EACH_MAX:
            self._sync_all()
            return
        shards = set()
        for ino in inodes:
            path = self._path(ino)
            shards.add(os.path.dirname(path))  # also for a file that was removed: its old bytes must not come back
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except FileNotFoundError:
                continue
            except OSError as exc:
                raise disk_error(exc) from exc
        for shard in shards:
            try:
                sync_directory(shard)
            except OSError as exc:
                raise disk_error(exc) from exc

    def _sync_all(self) -> None:
        """All that is on the disk of the overlay: quicker than one after the other, if there are many."""
        try:
            fd = os.open(self._files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sync_file_system(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise disk_error(exc) from exc

    def inodes(self) -> Iterable[int]:
        """Every inode that has an overlay file."""
        for shard in self._files.iterdir():
            for path in shard.iterdir():
                with contextlib.suppress(ValueError):  # not ours: NFS has names for what was removed and is open
                    yield int(path.name, 16)

    def usage(self) -> list[tuple[float, int, int]]:
        """Any thread: last use, bytes on disk and inode of every overlay file. Raises CacheError."""
        found = []
        try:
            for shard in os.scandir(self._files):
                for entry in os.scandir(shard.path):
                    with contextlib.suppress(FileNotFoundError, ValueError):  # gone, or not ours
                        status = entry.stat(follow_symlinks=False)
                        used = max(status.st_atime, status.st_mtime)
                        found.append((used, status.st_blocks * 512, int(entry.name, 16)))
        except OSError as exc:
            raise disk_error(exc) from exc
        return found

    def is_frozen(self, ino: int) -> bool:
        """Whether a running commit may still need this inode's data."""
        return self._committing and (ino in self._frozen or ino in self._dropped)

    def close(self) -> None:
        """Raises CacheError when something is not in order: the next start then has to look."""
        try:
            for ino in list(self._cuts):
                self.finish_cut(ino)
        finally:
            self._behind.close()
            self.reap(self._durable)  # else it would stay until a start that has to look at everything
            self.removals.finish()
            for ino in list(self._fds):
                self._close(ino)

    def _path(self, ino: int) -> str:
        # No Path: to make one takes longer than to open the file.
        return f"{self._shards[ino & 0xFF]}/{ino:x}"

    def _copy_path(self, ino: int) -> str:
        return f"{self._copies}/{ino:x}"

    def _fd(self, ino: int, *, create: bool = False) -> int | None:
        if ino in self._doomed:
            if not create:
                return None
            # It is begun anew: each block that counts from now on is begun, so what is left in it does not matter.
            with self._lock:
                self._doomed.pop(ino, None)
        fd = self._fds.get(ino)
        if fd is not None:
            self._fds.move_to_end(ino)
            return fd
        try:
            fd = os.open(self._path(ino), os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            if create:
                raise self.missing(ino) from None
            return None
        except OSError as exc:
            raise disk_error(exc) from exc
        self._fds[ino] = fd
        if len(self._fds) > _OPEN_FILES:
            self._close(next(iter(self._fds)))
        return fd

    def _close(self, ino: int) -> None:
        fd = self._fds.pop(ino, None)
        if fd is not None:
            self._behind.closed(fd)
            os.close(fd)


def _merged(*tables: dict[int, set[int]]) -> dict[int, set[int]]:
    """A copy of the tables, laid together."""
    merged: dict[int, set[int]] = {}
    for table in tables:
        for ino, blocks in table.items():
            merged.setdefault(ino, set()).update(blocks)
    return merged
