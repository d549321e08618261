"""DirectoryStore: objects as files under a directory, with the same conditional semantics as S3.

    <root>/<key>        one file an object, only ever replaced whole by rename(2) or created by link(2)
    <root>/.tmp/*       files being written; what a crash leaves here is invisible, and swept a day later
    <root>/.lock        flock(2)ed: exclusive while a compare-and-swap looks and renames, shared by plain
                        writes and deletes

Several processes may use one directory at once, as long as its file system has working flock and rename.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import math
import os
import secrets
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from wsfs.disk import is_full, sync_directory
from wsfs.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    StoreFullError,
    TransientStoreError,
)
from wsfs.store.base import Blob, ObjectInfo
from wsfs.store.keys import check_key, check_prefix, check_range, is_key

STALE_TEMP_SECONDS = 86_400.0
CLOCK_SECONDS = 60.0
"""So long the difference to the clock that stamps files is taken to be what it was."""

_READ_SIZE = 1 << 20
_ETAG_CACHE_ENTRIES = 4096
_ETAG_CACHE_MIN_SIZE = 64 << 10  # smaller objects are hashed at each read: HEAD must never be answered from a cache
_ETAG_CACHE_MIN_AGE_NS = 2_000_000_000
_NO_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

_FileIdentity = tuple[int, int, int, int, int]


class DirectoryStore:
    """A store in a local directory. Safe from any thread and any process; calls block on the disk.

    The directory is created by the first write. Ages are by the clock that stamps files, which on a network file
    system is another machine's; `clock` is ours, and need not agree with it.
    """

    def __init__(self, root: str, *, url: str | None = None, clock: Callable[[], float] = time.time) -> None:
        if not os.path.isabs(root):
            raise StoreError(f"{root!r} is not an absolute path: a directory store needs one")
        self._root = os.path.normpath(root)
        self.url = f"file://{self._root}" if url is None else url
        self._tmp = os.path.join(self._root, ".tmp")
        self._lock_file = os.path.join(self._root, ".lock")
        self._clock = clock
        self._measured = (-math.inf, 0.0)  # when, and how far the clock that stamps files was ahead of ours
        self._closed = False
        self._mutex = threading.Lock()  # guards the two tables below
        self._durable: set[str] = set()
        self._etags: OrderedDict[_FileIdentity, str] = OrderedDict()
        self._sweep()

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """See `base.Store.get`. Reads one version of the object even while others replace it."""
        path = self._path(key)
        window = check_range(start, length)
        with self._mapped("get", key):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except (FileNotFoundError, NotADirectoryError) as exc:
                raise NotFoundError(f"{self.url}: there is no object {key}") from exc
            try:
                info = os.fstat(fd)
                if not stat.S_ISREG(info.st_mode):
                    raise NotFoundError(f"{self.url}: there is no object {key}, it is not a regular file")
                age = self._age(info)
                if window is None:
                    data = _pread(fd, 0, info.st_size)
                    return Blob(data, _etag(data), age)
                first, count = window
                rest = max(0, info.st_size - first)
                data = _pread(fd, first, rest if count is None else min(count, rest))
                return Blob(data, self._etag_of(fd, info), age)
            finally:
                os.close(fd)

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        """See `base.Store.put`. On the disk, with its name, before it returns."""
        path = self._path(key)
        etag = _etag(data)
        with self._mapped("put", key):
            self._make_directories(os.path.dirname(path))
            temp = self._write_temp(data)
            try:
                if if_match is not None:
                    self._replace_if(key, path, temp, if_match, refuse_existing=if_none_match)
                elif if_none_match:
                    self._create(key, path, temp)
                else:
                    with self._locked(fcntl.LOCK_SH):
                        os.rename(temp, path)
                sync_directory(os.path.dirname(path))
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(temp)
        return etag

    def delete(self, key: str) -> None:
        """See `base.Store.delete`. Not synced: a power cut may bring the object back, to be deleted again."""
        path = self._path(key)
        with self._mapped("delete", key), suppress(FileNotFoundError, NotADirectoryError):
            if os.path.isdir(path):
                return
            with self._locked(fcntl.LOCK_SH):
                os.unlink(path)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `base.Store.list`. Objects that come or go meanwhile may or may not be in it."""
        self._check_open()
        check_prefix(prefix)
        return self._walk(prefix.rpartition("/")[0], prefix)

    def close(self) -> None:
        """See `base.Store.close`."""
        self._closed = True

    # --- writing --------------------------------------------------------------------------------------------

    def _open_temp(self) -> tuple[str, int]:
        """The path of a new file, and a descriptor to write it."""
        temp = os.path.join(self._tmp, f"{os.getpid()}-{secrets.token_hex(12)}")
        return temp, os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _write_temp(self, data: bytes) -> str:
        """The path of a new file that holds `data`, synced."""
        temp, fd = self._open_temp()
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        except BaseException:
            with suppress(OSError):
                os.unlink(temp)
            raise
        finally:
            os.close(fd)
        return temp

    def _create(self, key: str, path: str, temp: str) -> None:
        """Give `temp` the name `path` unless that exists: link(2) decides it atomically, without the lock."""
        try:
            os.link(temp, path)
        except FileExistsError as exc:
            raise PreconditionFailedError(f"{self.url}: cannot create {key}: it exists already") from exc
        except OSError as exc:
            if exc.errno not in _NO_HARD_LINKS:
                raise
            with self._locked(fcntl.LOCK_EX):
                if os.path.lexists(path):
                    raise PreconditionFailedError(f"{self.url}: cannot create {key}: it exists already") from exc
                os.rename(temp, path)

    def _replace_if(self, key: str, path: str, temp: str, if_match: str, *, refuse_existing: bool) -> None:
        """Rename `temp` to `path` if that has the etag `if_match` now."""
        with self._locked(fcntl.LOCK_EX):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError as exc:
                raise PreconditionFailedError(f"{self.url}: cannot replace {key}: there is no such object") from exc
            try:
                current = _etag_of_file(fd)
            finally:
                os.close(fd)
            if current != if_match or refuse_existing:
                raise PreconditionFailedError(f"{self.url}: cannot replace {key}: it is not version {if_match}")
            os.rename(temp, path)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """Hold the store's lock file, exclusive or shared.

        It is opened anew each time, so that threads exclude each other as processes do.
        """
        try:
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            yield  # no store yet: there is nothing to exclude, and a delete need not create it
            return
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)

    def _make_directories(self, directory: str) -> None:
        """Create `directory` and the temporary one, and make sure that their names survive a power cut.

        A directory that exists may have been made by another process that has not synced its name yet, so
        existence is not enough: each is synced once by this store.
        """
        for wanted in (self._tmp, directory):
            with self._mutex:
                if wanted in self._durable:
                    continue
            top = os.path.dirname(self._root)
            while not os.path.isdir(top):
                top = os.path.dirname(top)
            os.makedirs(wanted, mode=0o700, exist_ok=True)
            step = wanted
            while step != top:
                step = os.path.dirname(step)
                with suppress(PermissionError):  # above the root, where we may be allowed to search only
                    sync_directory(step)
            with self._mutex:
                self._durable.add(wanted)

    def _sweep(self) -> None:
        """Remove what a crash left, once it is too old to be somebody's write in progress. Best effort."""
        try:
            entries = list(os.scandir(self._tmp))
        except OSError:
            return
        for entry in entries:
            with suppress(OSError):
                if self._age(entry.stat(follow_symlinks=False)) > STALE_TEMP_SECONDS:
                    os.unlink(entry.path)

    # --- reading --------------------------------------------------------------------------------------------

    def _walk(self, directory: str, prefix: str) -> Iterator[ObjectInfo]:
        with self._mapped("list", prefix):
            try:
                entries = list(os.scandir(os.path.join(self._root, directory)))
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            key = f"{directory}/{entry.name}" if directory else entry.name
            if not is_key(key):
                continue  # ours (.tmp, .lock), or somebody else's file
            with self._mapped("list", prefix), suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    if key.startswith(prefix) or prefix.startswith(f"{key}/"):
                        yield from self._walk(key, prefix)
                elif entry.is_file(follow_symlinks=False) and key.startswith(prefix):
                    info = entry.stat(follow_symlinks=False)
                    yield ObjectInfo(key, info.st_size, self._age(info), info.st_mtime)

    def _age(self, info: os.stat_result) -> float:
        """How long ago a file was written, by the clock that stamped it."""
        now = self._clock()
        when, ahead = self._measured
        if not 0 <= now - when < CLOCK_SECONDS:
            ahead = self._measure()
            self._measured = now, ahead
        return max(0.0, now + ahead - info.st_mtime)

    def _measure(self) -> float:
        """How far the clock that stamps files is ahead of ours. 0 for who may not write here, so cannot know."""
        temp = None
        try:
            try:
                # One without a name: whoever only looks leaves no trace.
                fd = os.open(self._tmp, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError:  # not every file system has those, NFS for one
                temp, fd = self._open_temp()
            try:
                before = self._clock()
                os.write(fd, b"\0")
                return os.fstat(fd).st_mtime - (before + self._clock()) / 2
            finally:
                os.close(fd)
        except OSError:
            return 0.0
        finally:
            if temp is not None:
                with suppress(OSError):
                    os.unlink(temp)

    def _etag_of(self, fd: int, info: os.stat_result) -> str:
        """The etag of an open object of which only a range is read: packs are hashed once, not once a range.

        A file's identity tells versions apart only once it is older than the resolution of timestamps, so
        young ones are not remembered; nor are small ones, which is where compare-and-swap happens.
        """
        identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
        with self._mutex:
            known = self._etags.get(identity)
            if known is not None:
                self._etags.move_to_end(identity)
                return known
        etag = _etag_of_file(fd)
        if info.st_size >= _ETAG_CACHE_MIN_SIZE and time.time_ns() - info.st_ctime_ns > _ETAG_CACHE_MIN_AGE_NS:
            with self._mutex:
                self._etags[identity] = etag
                if len(self._etags) > _ETAG_CACHE_ENTRIES:
                    self._etags.popitem(last=False)
        return etag

    # --- checks ---------------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        self._check_open()
        check_key(key)
        return os.path.join(self._root, key)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.url}: the store is closed")

    @contextmanager
    def _mapped(self, operation: str, key: str) -> Iterator[None]:
        """Turn every OSError into one of ours."""
        try:
            yield
        except OSError as exc:
            what = f"{self.url}: cannot {operation} {key}".rstrip()
            why = os.strerror(exc.errno) if exc.errno else str(exc)
            if is_full(exc):
                raise StoreFullError(f"{what}: {why}; free space on that disk or raise the quota") from exc
            if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise AccessDeniedError(f"{what}: {why}; give this user write access to the directory") from exc
            if exc.errno in (
                errno.ENOTDIR,
                errno.EISDIR,
                errno.ENOTEMPTY,
                errno.EEXIST,
                errno.ELOOP,
                errno.ENAMETOOLONG,
            ):
                raise StoreError(f"{what}: {why}; something that is not an object lies in its way") from exc
            raise TransientStoreError(f"{what}: {why}; check that disk, then try again") from exc


def _pread(fd: int, offset: int, count: int) -> bytes:
    """Up to `count` bytes from `offset`, fewer only at the end of the file."""
    pieces = []
    while count > 0:
        piece = os.pread(fd, count, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        count -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _etag(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _etag_of_file(fd: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    offset = 0
    while piece := os.pread(fd, _READ_SIZE, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()
