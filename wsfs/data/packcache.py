"""Pieces of packs that were fetched: one sparse file a pack, with the pack's own bytes at the pack's own offsets.

Nothing is recorded about what is there. A frame is read and checked against the digest in its block row: zeros, torn
bytes after a power loss and bit rot all fail that check, and are fetched again. So the cache needs no index, no order
of writes and no recovery.

Packs are fetched in windows: a package's small files lie side by side, so one request warms all of them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from wsfs.disk import free_space, is_full
from wsfs.errors import CacheError, CacheFullError, FormatError
from wsfs.log import get_log
from wsfs.model import FrameLoc, pack_key
from wsfs.remote import NeedRemote
from wsfs.repo.pack import open_frame
from wsfs.store.base import Store
from wsfs.store.sealed import read_range

log = get_log(__name__)

WINDOW: Final = 2 << 20
_OPENED_BYTES: Final = 16 << 20
_HELD_WINDOWS: Final = 16
"""How many fetched windows are held in memory when the disk has no room for them."""

Pieces = list[tuple[int, bytes | memoryview]]
"""Parts of a pack, by their offsets."""

Place = tuple[int, int, int]
"""A window of a pack: the pack's epoch and number, and the window's."""


class PackCache:
    """Pieces on disk, and 16 MiB of opened blocks in memory.

    The evictor decides what goes, of packs and of all else. It looks now and then, and not everywhere is one: so
    oldest packs also go at once where they alone are more than `limit` bytes. `clock` is that of the times of files.

    `read` belongs to the owner thread; `fetch` may run on any.
    """

    def __init__(self, directory: Path, store: Store, limit: int, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory / "packs"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._store = store
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}
        self._sizes: dict[str, int] = {}
        """What each file takes on the disk, as it was after the last write to it."""
        self._size = 0
        for path in self._directory.iterdir():
            stat = path.stat()
            self._used[path.name] = max(stat.st_atime, stat.st_mtime)
            self._count(path.name, stat)
        self._fetched: dict[str, dict[int, int]] = {}
        """The windows, by pack, that this process has fetched: the number of the fetch, or 0 once something was read
        well."""
        self._fetches = 0
        self._held: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        """Windows that the disk had no room for: on a full disk reads go on."""
        self._opened: OrderedDict[bytes, bytes] = OrderedDict()
        self._opened_bytes = 0
        self._touched: set[Place] = set()
        self._failed = False
        self.served = self.missed = 0
        """How many blocks were read here, and how many of them had to be fetched first."""
        self.on_touch: Callable[[int, int, int, bool], None] = _ignore
        """Called with epoch, pack and window at the first read of each, and whether it has to be fetched."""
        self.ahead: Callable[[Place, bytes], bytes | None] | None = None
        """Asked for a frame, by the window that it begins in and its digest: it may have been opened already."""

    @property
    def size(self) -> int:
        """Bytes on disk, about."""
        return self._size

    def read(self, loc: FrameLoc) -> bytes:
        """The whole frame's bytes, verified. Raises NeedRemote when they are not here, FormatError when the store
        itself has other bytes than were written."""
        data = self._opened.get(loc.digest)
        if data is not None:
            self.served += 1
            self._opened.move_to_end(loc.digest)
            return data
        first = loc.offset // WINDOW
        windows = range(first, (loc.offset + loc.stored_length - 1) // WINDOW + 1)
        name = _name(loc)
        if self.ahead is not None:
            data = self.ahead((loc.epoch, loc.pack, first), loc.digest)
            if data is not None and len(data) == loc.raw_length:
                self._touch(loc, windows, missing=False)
                with self._lock:
                    if name in self._used:
                        self._used[name] = self._clock()
                return self._served(loc, data)
        before = self._fetched_as(name, windows)
        stored = self._read_stored(name, loc)
        if stored is not None:
            try:
                data = open_frame(stored, loc)
            except FormatError:
                data = None
        self._touch(loc, windows, missing=data is None)
        if data is None:
            self.missed += 1
            raise NeedRemote(
                {
                    window_key(loc.epoch, loc.pack, w): self._fetcher(loc, w)
                    for w in self._missing(name, windows, before, loc)
                }
            )
        with self._lock:
            # Bytes that go bad here later are this disk's fault, not the store's.
            self._fetched.setdefault(name, {}).update((w, 0) for w in windows)
            if name in self._used:
                self._used[name] = self._clock()
        return self._served(loc, data)

    def _touch(self, loc: FrameLoc, windows: range, *, missing: bool) -> None:
        for w in windows:
            place = loc.epoch, loc.pack, w
            if place not in self._touched:
                self._touched.add(place)
                self.on_touch(*place, missing)

    def _served(self, loc: FrameLoc, data: bytes) -> bytes:
        self.served += 1
        self._keep_opened(loc.digest, data)
        return data

    def _fetched_as(self, name: str, windows: range) -> list[int | None]:
        with self._lock:
            fetched = self._fetched.get(name, {})
            return [fetched.get(w) for w in windows]

    def _missing(self, name: str, windows: range, before: list[int | None], loc: FrameLoc) -> list[int]:
        """The windows to fetch for a frame that could not be read. `before` is what `_fetched_as` said before that.
        Raises FormatError when fetching cannot help."""
        with self._lock:
            fetched = self._fetched.get(name, {})
            missing = [w for w in windows if w not in fetched]
            if missing:
                return missing
            if before != [fetched[w] for w in windows]:
                # What was read is not what was fetched last: it was evicted and has come back since.
                return list(windows)
            fresh = [fetched.pop(w) for w in windows]
        if all(fresh):
            # Just fetched, and still wrong: the store is at fault. A later try asks again.
            raise FormatError(f"the pack '{pack_key(loc.epoch, loc.pack)}' does not hold the bytes that were written")
        return list(windows)

    def path(self, epoch: int, pack: int) -> str:
        """Any thread: the file with the pieces of a pack, if there are any."""
        return f"{self._directory}/{epoch:08x}-{pack:08x}"

    def has_room(self, size: int) -> bool:
        """Any thread: whether so many bytes more can be kept without dropping anything, and the disk has more room."""
        return self._size + size <= self._limit and free_space(self._directory) >= 4 * size

    def holds(self, epoch: int, pack: int, window: int) -> bool:
        """Any thread: whether a window is here already, as far as the file tells."""
        start, end = window * WINDOW, (window + 1) * WINDOW
        try:
            fd = os.open(self._directory / f"{epoch:08x}-{pack:08x}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.lseek(fd, start, os.SEEK_DATA) == start and os.lseek(fd, start, os.SEEK_HOLE) >= end
        except OSError:  # beyond the end of the file
            return False
        finally:
            os.close(fd)

    def fetch(self, epoch: int, pack: int, window: int, count: int = 1) -> None:
        """Any thread: bring a window of a pack here, or several by one request. Raises StoreError, NotFoundError,
        CacheError; CacheFullError when it is here, but in memory only and so not for long."""
        data = memoryview(read_range(self._store, pack_key(epoch, pack), window * WINDOW, count * WINDOW))
        name = f"{epoch:08x}-{pack:08x}"
        kept = True
        # One by one: whoever reads meanwhile waits for the lock.
        for number in range(count):
            piece = data[number * WINDOW : (number + 1) * WINDOW]
            if piece or not number:
                kept &= self._keep_window(name, window + number, piece)
        if not kept:
            raise CacheFullError("what was fetched cannot be kept: the cache disk is full")

    def _keep_window(self, name: str, window: int, data: memoryview) -> bool:
        """False: only in memory."""
        with self._lock:  # else another fetch could evict the file in between
            self._used[name] = self._clock()
            written = self._write_window(name, window, data)
            while written < len(data) and self._drop_oldest(keep=name):
                written = self._write_window(name, window, data)
            self._fetches += 1
            self._fetched.setdefault(name, {})[window] = self._fetches
            self._held.pop((name, window), None)
            if written < len(data):
                self._held[name, window] = bytes(data)
                while len(self._held) > _HELD_WINDOWS:
                    (pack, gone), _ = self._held.popitem(last=False)
                    self._fetched.get(pack, {}).pop(gone, None)
                return False
            self._evict(keep=name)
            return True

    def _write_window(self, name: str, window: int, data: memoryview) -> int:
        """How many bytes of a window the disk had room for."""
        try:
            return self._write(name, [(window * WINDOW, data)])
        except OSError as exc:
            if is_full(exc):
                return 0
            raise CacheError(f"what was fetched cannot be kept in the cache directory: {exc.strerror}") from exc

    def _write(self, name: str, pieces: Pieces) -> int:
        """Write parts of a pack, with the lock held. Returns bytes written; raises OSError."""
        fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return sum(os.pwrite(fd, data, offset) for offset, data in pieces)
        finally:
            # Some of it may have been here: only the file system knows by how much it has grown.
            self._count(name, os.fstat(fd))
            os.close(fd)

    def _count(self, name: str, stat: os.stat_result) -> None:
        size = stat.st_blocks * 512
        self._size += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def keep(self, epoch: int, pack: int, pieces: Pieces) -> None:
        """Any thread: frames of a pack that was made here. If the disk has no room for them, they are fetched later."""
        if not pieces:
            return
        name = f"{epoch:08x}-{pack:08x}"
        with self._lock:
            try:
                self._write(name, pieces)
            except OSError as exc:
                log.warning(
                    "pack not kept, it is fetched again when it is read",
                    pack=name,
                    error=exc,
                    remedy="look at the cache disk",
                )
            self._used[name] = self._clock()
            self._evict(keep=name)

    def usage(self) -> list[tuple[float, int, str]]:
        """Any thread: last use, bytes on disk and name of every pack."""
        found = []
        for name in list(self._used):
            with self._lock:
                used = self._used.get(name)
                if used is not None:
                    with suppress(OSError):  # a look, for some file systems know it only a while after the write
                        self._count(name, (self._directory / name).stat())
                    found.append((used, self._sizes.get(name, 0), name))
        return found

    def drop(self, name: str, used: float) -> int:
        """Any thread: drop a pack, unless it was used since. Returns bytes freed."""
        with self._lock:
            return self._drop(name) if self._used.get(name) == used else 0

    def shrink(self, limit: int) -> int:
        """Any thread: drop the oldest packs until all fit in `limit` bytes. Returns bytes freed."""
        freed = 0
        with self._lock:
            names = sorted(self._used, key=self._used.__getitem__)
        for name in names:
            with self._lock:  # one by one: whoever reads meanwhile waits for the lock
                if self._size <= limit:
                    break
                if name in self._used:
                    freed += self._drop(name)
        return freed

    def _drop(self, name: str) -> int:
        """Remove a pack's pieces, with the lock held. Returns bytes freed. What cannot be removed does not count any
        more: to try it again and again would free nothing."""
        freed = self._sizes.pop(name, 0)
        self._size -= freed
        del self._used[name]
        try:
            (self._directory / name).unlink(missing_ok=True)
        except OSError as exc:
            log.warning("pack not removed", pack=name, error=exc, remedy="look at the cache disk")
            freed = 0
        fetched = self._fetched.pop(name, {})
        if self._held and (held := {w: fresh for w, fresh in fetched.items() if (name, w) in self._held}):
            self._fetched[name] = held
        return freed

    def _fetcher(self, loc: FrameLoc, window: int) -> Callable[[], None]:
        return lambda: self.fetch(loc.epoch, loc.pack, window)

    def _read_stored(self, name: str, loc: FrameLoc) -> bytes | None:
        stored = self._read_from_disk(name, loc)
        if self._held:
            with self._lock:
                stored = self._with_held(name, loc, stored)
        return stored

    def _read_from_disk(self, name: str, loc: FrameLoc) -> bytes | None:
        try:
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.pread(fd, loc.stored_length, loc.offset)
            finally:
                os.close(fd)
        except FileNotFoundError:
            return None
        except OSError as exc:
            self._give_up(name, exc)
            return None

    def _give_up(self, name: str, exc: OSError) -> None:
        """A pack's file cannot be read. It goes, or what is fetched again would come to lie in the same bad place."""
        if not self._failed:
            self._failed = True  # a disk that fails does so often
            log.warning(
                "a pack cannot be read here, it is fetched again", pack=name, error=exc, remedy="look at the cache disk"
            )
        with self._lock:
            if name in self._used:
                self._drop(name)

    def _with_held(self, name: str, loc: FrameLoc, stored: bytes | None) -> bytes | None:
        """What was read of a frame, and in its place what memory has of it."""
        end = loc.offset + loc.stored_length
        for w in range(loc.offset // WINDOW, (end - 1) // WINDOW + 1):
            held = self._held.get((name, w))
            if held is not None:
                begin = max(loc.offset, w * WINDOW)
                piece = held[begin - w * WINDOW : end - w * WINDOW]
                stored = (stored or b"").ljust(loc.stored_length, b"\0")
                stored = stored[: begin - loc.offset] + piece + stored[begin - loc.offset + len(piece) :]
        return stored

    def _keep_opened(self, key: bytes, data: bytes) -> None:
        self._opened[key] = data
        self._opened_bytes += len(data)
        while self._opened_bytes > _OPENED_BYTES:
            _, old = self._opened.popitem(last=False)
            self._opened_bytes -= len(old)

    def _evict(self, keep: str) -> None:
        while self._size > self._limit and self._drop_oldest(keep=keep):
            pass

    def _drop_oldest(self, *, keep: str) -> bool:
        """False when there is no other pack than `keep`."""
        name = min((n for n in self._used if n != keep), key=self._used.__getitem__, default=None)
        if name is not None:
            self._drop(name)
        return name is not None


def window_key(epoch: int, pack: int, window: int) -> object:
    """What a fetch of this window is known by: it is under way once at a time."""
    return "pack", epoch, pack, window


def _ignore(_epoch: int, _pack: int, _window: int, _missing: bool) -> None:
    """Nobody wants to know what is read."""


def _name(loc: FrameLoc) -> str:
    return f"{loc.epoch:08x}-{loc.pack:08x}"
