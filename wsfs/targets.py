"""Where exported files go: a directory, or a tar archive."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from wsfs.errors import FormatError, UsageError, WsfsError
from wsfs.model import Inode

INCOMPLETE: Final = b".incomplete"
_NO_XATTRS: Final[Mapping[bytes, bytes]] = {}
_SECOND: Final = 1_000_000_000
_NAME_MAX: Final = 255
_RECORD: Final = 512
_TAR_BLOCK: Final = 20 * _RECORD
_ZEROS: Final = bytes(1 << 20)


@dataclass(slots=True)
class Exported:
    """What was exported: `files`, directories and links among them. `incomplete`: the paths of files of which a part
    could not be had; `skipped`: of what could not be made; `bare`: of what did not get all of its extended attributes.
    """

    files: int = 0
    size: int = 0
    incomplete: list[bytes] = field(default_factory=list)
    skipped: list[bytes] = field(default_factory=list)
    bare: list[bytes] = field(default_factory=list)

    def add(self, other: Exported) -> None:
        self.files += other.files
        self.size += other.size
        self.incomplete += other.incomplete
        self.skipped += other.skipped
        self.bare += other.bare


class Content(NamedTuple):
    """A file's bytes: pieces in ascending order, an error where one cannot be had. The rest is zeros.

    `extents` are the ranges in which the pieces lie, for a target that must know them before.
    """

    size: int
    pieces: Iterable[tuple[int, bytes | WsfsError]]
    extents: Sequence[tuple[int, int]] = ()


About = os.stat_result | Inode


class Target(Protocol):
    """Gets a tree: directories before what is in them. Paths are from the top. Raises OSError, FormatError."""

    done: Exported

    def directory(self, path: bytes, about: About, xattrs: Mapping[bytes, bytes] = ...) -> None:
        """A directory; the empty path is the top itself."""

    def link(self, path: bytes, to: bytes, about: About, xattrs: Mapping[bytes, bytes] = ...) -> None:
        """A symbolic link."""

    def special(self, path: bytes, about: About, xattrs: Mapping[bytes, bytes] = ...) -> None:
        """A FIFO, a socket or a device, if this target can have one."""

    def file(self, path: bytes, content: Content, about: About, xattrs: Mapping[bytes, bytes] = ...) -> None:
        """A file. With a piece that cannot be had it is noted as incomplete."""

    def again(self, path: bytes, first: bytes) -> None:
        """Another name of something that has one already."""

    def close(self) -> None:
        """Complete what could not be done before."""


class DirectoryTarget:
    """A directory that is new or empty. With `durable` each file is on the disk before the next one comes."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        """Raises UsageError, OSError."""
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise UsageError(f"{path} is not empty: name a directory that is, so that nothing there is overwritten")
        self._top = os.fsencode(path.resolve())
        self._durable = durable
        self._made: set[bytes] = set()
        self._directories: list[tuple[bytes, bytes, About, Mapping[bytes, bytes]]] = []
        self._broken: dict[bytes, bytes] = {}
        self.done = Exported()

    def _place(self, path: bytes) -> bytes:
        """Where a path goes; its directories are made."""
        directory, _, name = path.strip(b"/").rpartition(b"/")
        if name in (b"", b".", b"..") or b"\0" in name:
            raise FormatError(f"the path {path!r} is none that could be in a workspace")
        if not directory:
            return self._top + b"/" + name
        if directory not in self._made:
            with suppress(FileExistsError):
                os.mkdir(self._place(directory), 0o700)
            self._made.add(directory)
        return self._top + b"/" + directory + b"/" + name

    def directory(self, path: bytes, about: About, xattrs: Mapping[bytes, bytes] = _NO_XATTRS) -> None:
        """See `Target.directory`."""
        place = self._place(path) if path else self._top
        if path not in self._made:
            with suppress(FileExistsError):
                os.mkdir(place, 0o700)
            self._made.add(path)
        self._directories.append((path, place, about, xattrs))
        self.done.files += 1

    def link(self, path: bytes, to: bytes, about: About, xattrs: Mapping[bytes, bytes] = _NO_XATTRS) -> None:
        """See `Target.link`."""
        place = self._place(path)
        os.symlink(to, place)
        self._dress(path, place, about, xattrs)
        self.done.files += 1

    def special(self, path: bytes, about: About, xattrs: Mapping[bytes, bytes] = _NO_XATTRS) -> None:
        """See `Target.special`."""
        place = self._place(path)
        mode, number = _mode_of(about), about.rdev if isinstance(about, Inode) else about.st_rdev
        try:
            os.mknod(place, mode, number)
        except PermissionError:
            self.done.skipped.append(path)
            return
        self._dress(path, place, about, xattrs)
        self.done.files += 1

    def file(self, path: bytes, content: Content, about: About, xattrs: Mapping[bytes, bytes] = _NO_XATTRS) -> None:
        """See `Target.file`. One that is incomplete gets another name at the end."""
        place = self._place(path)
        whole = True
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            end = 0
            for offset, piece in content.pieces:
                if isinstance(piece, WsfsError):
                    whole = False
                else:
                    _write(descriptor, piece, offset)
                    end = offset + len(piece)
            if end != content.size:
                os.ftruncate(descriptor, content.size)
            if self._durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not whole:
            self._broken[path] = place
            self.done.incomplete.append(path)
            return
        self._dress(path, place, about, xattrs)
        self.done.files += 1
        self.done.size += content.size

    def again(self, path: bytes, first: bytes) -> None:
        """See `Target.again`."""
        place = self._place(path)
        try:
            os.link(self._place(first), place, follow_symlinks=False)
        except FileNotFoundError:  # this user may not make what it is
            self.done.skipped.append(path)
        if first in self._broken:
            self._broken[path] = place
            self.done.incomplete.append(path)

    def close(self) -> None:
        """See `Target.close`. Directories come last, for whatever is made in one changes its times."""
        for place in self._broken.values():
            _set_aside(place)
        for path, place, about, xattrs in reversed(self._directories):
            self._dress(path, place, about, xattrs)

    def _dress(self, path: bytes, place: bytes, about: About, xattrs: Mapping[bytes, bytes]) -> None:
        """Owner and extended attributes (where we may), mode and times."""
        if isinstance(about, Inode):
            owner, times = (about.uid, about.gid), (about.atime_ns, about.mtime_ns)
        else:
            owner, times = (about.st_uid, about.st_gid), (about.st_atime_ns, about.st_mtime_ns)
        mode = stat.S_IMODE(_mode_of(about))
        try:
            os.chown(place, *owner, follow_symlinks=False)
        except PermissionError:
            mode &= ~(stat.S_ISUID | stat.S_ISGID)  # it would be run as somebody else than it was meant to be
        for name, value in xattrs.items():
            try:
                os.setxattr(place, name, value, follow_symlinks=False)
            except OSError as exc:
                if exc.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSPC, errno.E2BIG):
                    raise
                self.done.bare.append(path)
                break
        if not stat.S_ISLNK(_mode_of(about)):
            os.chmod(place, mode)
        with suppress(OverflowError):  # a time that no native file system has
            os.utime(place, ns=times, follow_symlinks=False)


def _mode_of(about: About) -> int:
    return about.mode if isinstance(about, Inode) else about.st_mode


def _write(descriptor: int, piece: bytes, offset: int) -> None:
    view, written = memoryview(piece), 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], offset + written)


def _set_aside(place: bytes) -> None:
    """Give a file a name that says that it is not whole, and that nothing else has."""
    directory, _, name = place.rpartition(b"/")
    for number in range(1_000_000):
        suffix = INCOMPLETE + (b".%d" % number if number else b"")
        other = directory + b"/" + name[: _NAME_MAX - len(suffix)] + suffix
        if not os.path.lexists(other):
            os.rename(place, other)
            return


# --- tar --------------------------------------------------------------------------------------------------------------


class TarTarget:
    """A tar archive in the pax format. Files with holes are stored as GNU tar does, without these.

    An archive that is read while it is written cannot rename what turns out to be damaged: it has zeros where bytes are
    lost, and an empty file `NAME.incomplete` follows it. Directories come before what is in them, and once more at the
    end: who unpacks has changed their times by then.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._written = 0
        self._broken: dict[bytes, About] = {}
        self._directories: list[bytes] = []
        self.done = Exported()

    def directory(self, path: bytes, about: About, xattrs: Mapping[bytes, bytes] = _NO_XATTRS) -> None:
        """See `Target.directory`."""
        self._directories.append(_encoded(_member(path or b".", about, tarfile.DIRTYPE), xattrs))
        self._put(self._directories[-1])
        self.done.files += 1

    def link(self, path: bytes, to: bytes, about: About, xattrs: Mapping[bytes, bytes] = _NO_XATTRS) -> None:
        """See `Target.link`."""
        member = _member(path, about, tarfile.SYMTYPE)
        member.linkname = os.fsdecode(to)
        self._header(member, xattrs)
        self.done.files += 1

    def special(self, path: bytes, about: About, xattrs: Mapping[bytes, bytes] = _NO_XATTRS) -> None:
        """See `Target.special`. An archive cannot hold a socket."""
        kinds = {stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFBLK: tarfile.BLKTYPE}
        kind = kinds.get(stat.S_IFMT(_mode_of(about)))
        if kind is None:
            self.done.skipped.append(path)
            return
        member = _member(path, about, kind)
        number = about.rdev if isinstance(about, Inode) else about.st_rdev
        member.devmajor, member.devminor = os.major(number), os.minor(number)
        self._header(member, xattrs)
        self.done.files += 1

    def file(self, path: bytes, content: Content, about: About, xattrs: Mapping[bytes, bytes] = _NO_XATTRS) -> None:
        """See `Target.file`."""
        member = _member(path, about, tarfile.REGTYPE)
        stored = sum(length for _, length in content.extents)
        if stored == content.size:
            member.size = content.size
            self._header(member, xattrs)
        else:
            table = _sparse_map(content)
            member.pax_headers = {
                **member.pax_headers,
                "GNU.sparse.major": "1",
                "GNU.sparse.minor": "0",
                "GNU.sparse.name": member.name,
                "GNU.sparse.realsize": str(content.size),
            }
            directory, _, name = path.rpartition(b"/")
            member.name = os.fsdecode(b"/".join((*filter(None, [directory]), b"GNUSparseFile.0", name)))
            member.size = len(table) + stored
            self._header(member, xattrs)
            self._put(table)
        whole = True
        for (_, length), (_, piece) in zip(content.extents, content.pieces, strict=True):
            if isinstance(piece, WsfsError):
                whole, piece = False, b""
            self._put(piece)
            self._put(_ZEROS[: length - len(piece)])
        self._pad(_RECORD)
        if whole:
            self.done.files += 1
            self.done.size += content.size
        else:
            self._tell_broken(path, about)

    def again(self, path: bytes, first: bytes) -> None:
        """See `Target.again`."""
        member = tarfile.TarInfo(os.fsdecode(path))
        member.type, member.linkname = tarfile.LNKTYPE, os.fsdecode(first)
        self._header(member, {})
        if first in self._broken:
            self._tell_broken(path, self._broken[first])

    def close(self) -> None:
        """See `Target.close`."""
        for header in self._directories:
            self._put(header)
        self._put(bytes(2 * _RECORD))
        self._pad(_TAR_BLOCK)
        self._out.flush()

    def _tell_broken(self, path: bytes, about: About) -> None:
        self._broken[path] = about
        self.done.incomplete.append(path)
        self._header(_member(path + INCOMPLETE, about, tarfile.REGTYPE), {})

    def _header(self, member: tarfile.TarInfo, xattrs: Mapping[bytes, bytes]) -> None:
        self._put(_encoded(member, xattrs))

    def _put(self, data: bytes) -> None:
        self._out.write(data)
        self._written += len(data)

    def _pad(self, to: int) -> None:
        self._put(bytes(-self._written % to))


def _member(path: bytes, about: About, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(os.fsdecode(path))
    member.type, member.mode = kind, stat.S_IMODE(_mode_of(about))
    if isinstance(about, Inode):
        owner, times = (about.uid, about.gid), (about.atime_ns, about.mtime_ns)
    else:
        owner, times = (about.st_uid, about.st_gid), (about.st_atime_ns, about.st_mtime_ns)
    member.uid, member.gid = owner
    member.mtime = times[1] // _SECOND
    member.pax_headers = {"atime": _seconds(times[0]), "mtime": _seconds(times[1])}
    return member


def _encoded(member: tarfile.TarInfo, xattrs: Mapping[bytes, bytes]) -> bytes:
    told = {f"SCHILY.xattr.{os.fsdecode(name)}": os.fsdecode(value) for name, value in xattrs.items()}
    member.pax_headers = {**member.pax_headers, **told}
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _seconds(ns: int) -> str:
    """A time as pax has it: a decimal number of seconds."""
    whole, part = divmod(abs(ns), _SECOND)
    return f"{'-' if ns < 0 else ''}{whole}.{part:09d}"


def _sparse_map(content: Content) -> bytes:
    """Where the stored ranges of a file with holes belong, as version 1.0 of GNU's sparse format has it."""
    extents = list(content.extents)
    if not extents or sum(extents[-1]) < content.size:
        extents.append((content.size, 0))
    numbers = [len(extents), *(number for extent in extents for number in extent)]
    table = b"".join(b"%d\n" % number for number in numbers)
    return table + bytes(-len(table) % _RECORD)
