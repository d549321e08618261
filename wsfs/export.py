"""Rescues what was never saved, and what was never to be (.wsfsignore): from a mount that was cut off, or from a cache
directory that nobody uses.

Each file is written whole or, when a part of it is only in the store and that cannot be reached, not under its own
name. Nothing in the cache or in the store is changed but what opening the cache after a crash changes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar
from uuid import UUID

from wsfs.aside import aside_in
from wsfs.data.overlay import Overlay
from wsfs.data.packcache import PackCache
from wsfs.errors import CacheError, FormatError, LeaseHeldError, StoreError, UsageError, WsfsError
from wsfs.index.index import Index
from wsfs.model import BLOCK_SIZE, MARKER_INO, ROOT_INO, Block, Inline, Inode, Local
from wsfs.remote import Have, NeedRemote, fetch_all
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.store.base import Store
from wsfs.sync.lease import boot_id
from wsfs.sync.load import Loader
from wsfs.targets import Content, DirectoryTarget, Exported, Target
from wsfs.tree.paths import Paths

T = TypeVar("T")

ORPHANS: Final = b"lost+found"
"""For files whose directory is not known here."""

_CACHE_SIZE: Final = 1 << 50


# --- from a mount ---------------------------------------------------------------------------------------------------


def from_mount(mountpoint: Path, paths: Iterable[bytes], target: Target) -> None:
    """Copy these paths of a living mount. What has gone meanwhile is left out. Raises OSError."""
    top = os.fsencode(mountpoint)
    for path in sorted(paths):
        source = top + b"/" + path.strip(b"/")
        try:
            about = os.lstat(source)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(about.st_mode):
            target.directory(path, about)
        elif stat.S_ISLNK(about.st_mode):
            target.link(path, os.readlink(source), about)
        elif stat.S_ISREG(about.st_mode):
            target.file(path, Content(about.st_size, _pieces_of(source)), about)
        else:
            target.special(path, about)


def _pieces_of(path: bytes) -> Iterator[tuple[int, bytes | WsfsError]]:
    offset = 0
    with open(path, "rb", buffering=0) as file:
        while True:
            try:
                piece = file.read(BLOCK_SIZE)
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                yield offset, StoreError("a part of it is only in the store, which cannot be reached")
                return
            if not piece:
                return
            if piece.strip(b"\0"):
                yield offset, piece
            offset += len(piece)


# --- from a cache directory -----------------------------------------------------------------------------------------


def sources(cache: Path) -> list[Path]:
    """The directories with an index in a cache directory, or the one that it is itself. Raises UsageError."""
    found = [cache] if (cache / "index").is_dir() else []
    found += [path for path in (cache / "local", *aside_in(cache)) if (path / "index").is_dir()]
    if not found:
        raise UsageError(f"{cache} is no cache directory of wsfs, nor one of its unsaved-... directories")
    return found


@contextmanager
def locked(cache: Path) -> Iterator[bool]:
    """Nobody else uses the cache directory meanwhile. Gives False where a mount does, which leaves alone what was set
    aside in it. Raises LeaseHeldError, CacheError."""
    directory = cache if (cache / "lock").exists() else cache.parent
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise CacheError(f"the cache directory {directory} cannot be used: {exc.strerror}") from exc
    try:
        free = _lock(descriptor)
        if not free and cache not in aside_in(directory):
            raise LeaseHeldError(
                f"the cache directory {directory} is in use: name its mount point instead, or one of its unsaved-..."
                " directories"
            )
        yield free
    finally:
        os.close(descriptor)


@contextmanager
def _exporting(source: Path) -> Iterator[None]:
    """No other export opens the same index meanwhile. Raises LeaseHeldError."""
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _lock(descriptor):
            raise LeaseHeldError(f"another export reads {source}: try again when it has ended")
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _without_store(look: Callable[[], T]) -> T:
    """A `Have` that fetches nothing. Raises StoreError."""
    try:
        return look()
    except NeedRemote:
        raise StoreError("a part of it is only in the store") from None


class CacheExport:
    """What is unsaved in one directory with an index. `store` is None where it cannot be asked."""

    def __init__(self, source: Path, packs: Path, store: Store | None) -> None:
        self._overlay = Overlay(source)
        self._index = Index(source, UUID(boot_id()).bytes, self._overlay.sync)
        self._store = store
        if store is not None:
            self._packs = PackCache(packs, store, _CACHE_SIZE)
            Loader(store, self._index)
        self._have: Have = _without_store if store is None else fetch_all
        self._paths = Paths(self._index, self._have)

    @property
    def is_empty(self) -> bool:
        return not (self._index.is_dirty or self._index.kept)

    def close(self) -> None:
        self._index.close()
        self._overlay.close()

    def to(self, target: Target) -> None:
        """Export it. Raises OSError."""
        inodes = self._index.dirty_inodes.union(self._index.kept.sizes) - {ROOT_INO, MARKER_INO}
        found = [(self._path(ino), ino) for ino in inodes]
        for path, ino in sorted(found):
            try:
                self._export(path, ino, target)
            except (StoreError, FormatError):
                target.done.incomplete.append(path)

    def _export(self, path: bytes, ino: int, target: Target) -> None:
        inode = self._have(lambda: self._index.inode(ino))
        if inode is None:
            return  # it was deleted
        if inode.is_dir:
            target.directory(path, inode)
        elif inode.is_file:
            target.file(path, Content(inode.size, self._pieces(inode)), inode)
        elif stat.S_ISLNK(inode.mode):
            target.link(path, self._have(lambda: self._index.get(codec.symlink_key(ino))) or b"?", inode)
        else:
            target.special(path, inode)

    def _path(self, ino: int) -> bytes:
        """The path of an inode, or a place of its own for one whose path cannot be known."""
        try:
            found = self._paths.of(ino)
        except (StoreError, FormatError):
            found = None
        return found or b"%s/%d" % (ORPHANS, ino)

    def _pieces(self, inode: Inode) -> Iterator[tuple[int, bytes | WsfsError]]:
        """Up to the first one that cannot be had: a store that cannot be reached is asked once for each file."""
        start = 0
        try:
            rows = self._have(lambda: self._index.scan(inode.ino, codec.BLOCK))
            for key, row in rows:
                index = codec.block_index(key)
                start = index * BLOCK_SIZE
                length = min(BLOCK_SIZE, inode.size - start)
                if length > 0:
                    yield start, self._block(inode.ino, index, codec.decode_block(row), length)
        except (StoreError, FormatError, CacheError) as exc:
            yield start, exc

    def _block(self, ino: int, index: int, block: Block, length: int) -> bytes:
        if isinstance(block, Local):
            return self._overlay.read(ino, index, 0, length)
        if isinstance(block, Inline):
            return block.data[:length]
        loc = block.loc
        if block.resident and self._overlay.has(ino):
            # After a power loss the copy here may be torn: only its digest can tell.
            data = self._overlay.read(ino, index, 0, loc.raw_length)
            if digest(data) == loc.digest:
                return data[: min(loc.length, length)]
        if self._store is None:
            raise StoreError("a part of it is only in the store")
        return self._have(lambda: self._packs.read(loc))[: min(loc.length, length)]


def from_cache(cache: Path, directory: Path, store: Store | None) -> Exported:
    """Export what a cache directory holds unsaved; each of several sets into a directory of its own.

    Raises UsageError, LeaseHeldError, CacheError, OSError.
    """
    done = Exported()
    with ExitStack() as stack:
        free = stack.enter_context(locked(cache))
        opened = []
        for source in sources(cache):
            stack.enter_context(_exporting(source))
            # What was fetched before is beside it; but a mount may be at work there.
            packs = source.parent if free else Path(stack.enter_context(TemporaryDirectory(dir=source)))
            export = CacheExport(source, packs, store)
            stack.callback(export.close)
            if not export.is_empty:
                opened.append((source.name, export))
        target = DirectoryTarget(directory, durable=True)
        for name, export in opened:
            part = target if len(opened) == 1 else DirectoryTarget(directory / name, durable=True)
            export.to(part)
            part.close()
            done.add(part.done)
    return done
