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
from pathlib import Path
from typing import Final

from wsfs.errors import CacheError, CacheFullError, FormatError, NeedRemote
from wsfs.model import FrameLoc, pack_key
from wsfs.repo.pack import open_frame
from wsfs.store.base import Store

WINDOW: Final = 2 << 20
_OPENED_BYTES: Final = 16 << 20


class PackCache:
    """At most `limit` bytes on disk (oldest packs go first), and 16 MiB of opened blocks in memory.

    `read` belongs to the owner thread; `fetch` may run on any.
    """

    def __init__(self, directory: Path, store: Store, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory / "packs"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._store = store
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._used: dict[str, float] = {}
        self._size = 0
        for path in self._directory.iterdir():
            stat = path.stat()
            self._used[path.name] = stat.st_atime - time.time()
            self._size += stat.st_blocks * 512
        self._fetched: dict[tuple[str, int], bool] = {}
        """The windows that this process has fetched; True until something in them was read well."""
        self._opened: OrderedDict[bytes, bytes] = OrderedDict()
        self._opened_bytes = 0

    @property
    def size(self) -> int:
        """Bytes on disk, about."""
        return self._size

    def read(self, loc: FrameLoc) -> bytes:
        """The whole frame's bytes, verified. Raises NeedRemote when they are not here, FormatError when the store
        itself has other bytes than were written."""
        data = self._opened.get(loc.digest)
        if data is not None:
            self._opened.move_to_end(loc.digest)
            return data
        name = _name(loc)
        windows = range(loc.offset // WINDOW, (loc.offset + loc.stored_length - 1) // WINDOW + 1)
        stored = self._read_stored(name, loc)
        if stored is not None:
            try:
                data = open_frame(stored, loc)
            except FormatError:
                data = None
        if data is None:
            raise NeedRemote({("pack", name, w): self._fetcher(loc, w) for w in self._missing(name, windows, loc)})
        with self._lock:
            # Bytes that go bad here later are this disk's fault, not the store's.
            self._fetched.update(((name, w), False) for w in windows)
            if name in self._used:
                self._used[name] = self._clock()
        self._keep_opened(loc.digest, data)
        return data

    def _missing(self, name: str, windows: range, loc: FrameLoc) -> list[int]:
        """The windows to fetch for a frame that could not be read. Raises FormatError when fetching cannot help."""
        with self._lock:
            missing = [w for w in windows if (name, w) not in self._fetched]
            if missing:
                return missing
            fresh = [self._fetched.pop((name, w)) for w in windows]
        if all(fresh):
            # Just fetched, and still wrong: the store is at fault. A later try asks again.
            raise FormatError(f"the pack '{pack_key(loc.epoch, loc.pack)}' does not hold the bytes that were written")
        return list(windows)

    def fetch(self, epoch: int, pack: int, window: int) -> None:
        """Any thread: bring one window of a pack here. Raises StoreError, NotFoundError, CacheError."""
        blob = self._store.get(pack_key(epoch, pack), window * WINDOW, WINDOW)
        name = f"{epoch:08x}-{pack:08x}"
        try:
            with self._lock:  # else another fetch could evict the file in between
                fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    written = os.pwrite(fd, blob.data, window * WINDOW)
                finally:
                    os.close(fd)
                if written != len(blob.data):
                    raise CacheFullError("what was fetched cannot be kept: the cache disk is full")
                if (name, window) not in self._fetched:
                    self._size += len(blob.data)
                self._fetched[name, window] = True
                self._used[name] = self._clock()
                self._evict(keep=name)
        except OSError as exc:
            raise CacheError(f"what was fetched cannot be kept in the cache directory: {exc.strerror}") from exc

    def shrink(self, limit: int) -> int:
        """Any thread: drop the oldest packs until all fit in `limit` bytes. Returns bytes freed."""
        freed = 0
        with self._lock:
            for name in sorted(self._used, key=self._used.__getitem__):
                if self._size <= limit:
                    break
                freed += self._drop(name)
        return freed

    def _drop(self, name: str) -> int:
        """Remove a pack's pieces, with the lock held. Returns bytes freed."""
        path = self._directory / name
        try:
            freed = path.stat().st_blocks * 512
            path.unlink()
        except FileNotFoundError:
            freed = 0
        self._size -= freed
        del self._used[name]
        self._fetched = {(n, w): fresh for (n, w), fresh in self._fetched.items() if n != name}
        return freed

    def _fetcher(self, loc: FrameLoc, window: int) -> Callable[[], None]:
        return lambda: self.fetch(loc.epoch, loc.pack, window)

    def _read_stored(self, name: str, loc: FrameLoc) -> bytes | None:
        try:
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return os.pread(fd, loc.stored_length, loc.offset)
        finally:
            os.close(fd)

    def _keep_opened(self, key: bytes, data: bytes) -> None:
        self._opened[key] = data
        self._opened_bytes += len(data)
        while self._opened_bytes > _OPENED_BYTES:
            _, old = self._opened.popitem(last=False)
            self._opened_bytes -= len(old)

    def _evict(self, keep: str) -> None:
        while self._size > self._limit and len(self._used) > 1:
            name = min((n for n in self._used if n != keep), key=self._used.__getitem__)
            self._drop(name)


def _name(loc: FrameLoc) -> str:
    return f"{loc.epoch:08x}-{loc.pack:08x}"
