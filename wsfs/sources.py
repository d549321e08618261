"""What is imported: a directory, or a tar archive."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections import deque
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from wsfs.errors import UsageError
from wsfs.model import ROOT_INO, Inode
from wsfs.text import printable

KEPT_XATTRS: Final = (b"user.", b"trusted.", b"security.")
"""As a mount has it: access control lists would be kept, and nobody would obey them."""

_SECOND: Final = 1_000_000_000
_XATTR_PREFIX: Final = "SCHILY.xattr."


class Item(NamedTuple):
    """A name to import. `about` has no numbers yet. `same_as`: it is another name of what came before at that path.

    `extents` are the ranges of a file that may hold anything but zeros, None for all of it. The source knows a file by
    its `handle`.
    """

    path: bytes
    about: Inode
    target: bytes = b""
    same_as: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    extents: tuple[tuple[int, int], ...] | None = None
    handle: Any = None


class Source(Protocol):
    """A tree that is about to be imported."""

    def items(self) -> Iterator[Item]:
        """Every name, with its path from the top, which is the empty path if it is told. Raises OSError, UsageError."""

    def read(self, handle: Any, offset: int, length: int) -> bytes:
        """Exactly so many bytes of a file; any thread may call it. Raises OSError, UsageError."""

    def close(self) -> None:
        """Nothing is read any more."""


class DirectorySource:
    """A directory and all below it, other file systems included."""

    def __init__(self, path: Path) -> None:
        self._top = os.fsencode(path)

    def items(self) -> Iterator[Item]:
        """See `Source.items`: one directory after the other, so that files of one are side by side."""
        firsts: dict[tuple[int, int], bytes] = {}
        yield self._item(b"", os.stat(self._top), firsts)
        pending = deque([b""])
        while pending:
            directory = pending.popleft()
            with os.scandir(self._at(directory)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                path = directory + b"/" + entry.name if directory else entry.name
                item = self._item(path, entry.stat(follow_symlinks=False), firsts)
                if item.about.is_dir:
                    pending.append(path)
                yield item

    def _at(self, path: bytes) -> bytes:
        return self._top + b"/" + path if path else self._top

    def _item(self, path: bytes, found: os.stat_result, firsts: dict[tuple[int, int], bytes]) -> Item:
        place, mode = self._at(path), found.st_mode
        if not stat.S_ISDIR(mode) and found.st_nlink > 1:
            first = firsts.setdefault((found.st_dev, found.st_ino), path)
            if first != path:
                return Item(path, _about(found, 0), same_as=first)
        target = os.readlink(place) if stat.S_ISLNK(mode) else b""
        size = found.st_size if stat.S_ISREG(mode) else len(target)
        extents = _data_in(place, size) if stat.S_ISREG(mode) and found.st_blocks * 512 < size else None
        handle = (place, size, found.st_mtime_ns)
        return Item(path, _about(found, size), target, None, _xattrs_of(place), extents, handle)

    def read(self, handle: Any, offset: int, length: int) -> bytes:
        """See `Source.read`. A file that has changed since its name was read is none of one moment."""
        place, size, mtime = handle
        descriptor = _open(place)
        try:
            now = os.fstat(descriptor)
            data = os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        if (now.st_size, now.st_mtime_ns) != (size, mtime) or len(data) != length:
            raise UsageError(f"{printable(place)} changed while it was imported: repeat that when nobody writes to it")
        return data

    def close(self) -> None:
        """See `Source.close`."""


def _open(place: bytes) -> int:
    """Without changing its atime, where we may."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(place, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(place, flags)


def _about(found: os.stat_result, size: int) -> Inode:
    return Inode(
        ROOT_INO,
        found.st_mode,
        found.st_uid,
        found.st_gid,
        1,
        found.st_rdev if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode) else 0,
        size,
        found.st_atime_ns,
        found.st_mtime_ns,
        found.st_ctime_ns,
        ROOT_INO,
    )


def _xattrs_of(place: bytes) -> tuple[tuple[bytes, bytes], ...]:
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError:  # this file system has none
        return ()
    kept = [name for name in map(os.fsencode, names) if name.startswith(KEPT_XATTRS)]
    return tuple((name, os.getxattr(place, name, follow_symlinks=False)) for name in sorted(kept))


def _data_in(place: bytes, size: int) -> tuple[tuple[int, int], ...]:
    """The ranges of a file that are no holes."""
    found: list[tuple[int, int]] = []
    descriptor = _open(place)
    try:
        at = 0
        while at < size:
            try:
                start = os.lseek(descriptor, at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:  # it cannot tell: then zeros are read
                    found.append((at, size - at))
                break
            at = os.lseek(descriptor, start, os.SEEK_HOLE)
            found.append((start, at - start))
    finally:
        os.close(descriptor)
    return tuple(found)


# --- tar --------------------------------------------------------------------------------------------------------------


class TarSource:
    """A tar archive that is not compressed, in any format that Python reads."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError, OSError."""
        self._path = path
        try:
            self._tar = tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape")  # noqa: SIM115
        except tarfile.TarError as exc:
            raise UsageError(f"{path} is no tar archive, or a compressed one: unpack it first ({exc})") from exc
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def items(self) -> Iterator[Item]:
        """See `Source.items`."""
        try:
            for member in self._tar:
                yield self._item(member)
        except tarfile.TarError as exc:
            raise UsageError(f"the archive {self._path} is damaged: {exc}") from exc

    def _item(self, member: tarfile.TarInfo) -> Item:
        path = self._normal(member.name)
        kinds = {
            tarfile.DIRTYPE: stat.S_IFDIR,
            tarfile.SYMTYPE: stat.S_IFLNK,
            tarfile.FIFOTYPE: stat.S_IFIFO,
            tarfile.CHRTYPE: stat.S_IFCHR,
            tarfile.BLKTYPE: stat.S_IFBLK,
        }
        kind = kinds.get(member.type, stat.S_IFREG)
        target = os.fsencode(member.linkname) if kind == stat.S_IFLNK else b""
        size = member.size if kind == stat.S_IFREG and not member.islnk() else len(target)
        device = os.makedev(member.devmajor, member.devminor) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        mtime = _ns(member, "mtime", round(member.mtime * _SECOND))
        mode = kind | stat.S_IMODE(member.mode) if kind != stat.S_IFLNK else kind | 0o777
        about = Inode(
            ROOT_INO,
            mode,
            member.uid,
            member.gid,
            1,
            device,
            size,
            _ns(member, "atime", mtime),
            mtime,
            mtime,
            ROOT_INO,
        )
        if member.islnk():
            return Item(path, about, same_as=self._normal(member.linkname))
        extents = None
        if member.issparse():
            ranges: Any = member.sparse  # the type that typeshed has for it is wrong
            extents = tuple((start, length) for start, length in ranges if length)
        handle = (path, member.offset_data, extents)
        return Item(path, about, target, None, _xattrs_in(member), extents, handle)

    def _normal(self, name: str) -> bytes:
        parts = [part for part in os.fsencode(name).split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise UsageError(f"the archive {self._path} has a name that leads out of it: {printable(name)}")
        return b"/".join(parts)

    def read(self, handle: Any, offset: int, length: int) -> bytes:
        """See `Source.read`."""
        path, start, extents = handle
        if extents is None:
            data = os.pread(self._descriptor, length, start + offset)
        else:
            data = self._read_sparse(start, extents, offset, length)
        if len(data) != length:
            raise UsageError(f"the archive {self._path} ends in the middle of {printable(path)}")
        return data

    def _read_sparse(self, start: int, extents: tuple[tuple[int, int], ...], offset: int, length: int) -> bytes:
        parts, at, end = [], offset, offset + length
        for first, size in extents:
            low, high = max(first, offset), min(first + size, end)
            if low < high:
                data = os.pread(self._descriptor, high - low, start + low - first)
                parts += [bytes(low - at), data]
                at = low + len(data)
                if at < high:
                    break  # the archive is cut off
            start += size
        else:
            parts.append(bytes(end - at))
        return b"".join(parts)

    def close(self) -> None:
        """See `Source.close`."""
        self._tar.close()
        os.close(self._descriptor)


def _ns(member: tarfile.TarInfo, name: str, fallback: int) -> int:
    """A time of an archive's member in nanoseconds: pax has it as a decimal number, which a float cannot hold."""
    try:
        return int(Decimal(member.pax_headers.get(name, "")).scaleb(9).to_integral_value())
    except (InvalidOperation, OverflowError, ValueError):
        return fallback


def _xattrs_in(member: tarfile.TarInfo) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for name, value in sorted(member.pax_headers.items()):
        key = os.fsencode(name.removeprefix(_XATTR_PREFIX))
        if name.startswith(_XATTR_PREFIX) and key.startswith(KEPT_XATTRS):
            found.append((key, os.fsencode(value)))
    return tuple(found)
