"""`wsfs keep`: a copy in the workspace of what would be lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from dataclasses import dataclass, field
from typing import Final

import click

from wsfs.cli import daemon, mounts
from wsfs.cli.output import files, json_option, print_json, size
from wsfs.control import real_path
from wsfs.errors import UsageError, WsfsError
from wsfs.text import printable

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_COPY_SIZE: Final = 1 << 20


@click.command(short_help="Copy something from /data into the workspace.")
@click.argument("source", type=click.Path())
@click.argument("target", type=click.Path(), required=False)
@click.option("--force", is_flag=True, help="Replace what is at TARGET.")
@json_option
def keep(source: str, target: str | None, force: bool, as_json: bool) -> None:
    """Copy the file or directory SOURCE to TARGET in a workspace, with modes, times and, for root, owners.

    Without TARGET it goes to the top of the workspace that the current directory is in, or else of the only one that
    is mounted here, under its own name. A TARGET with a slash at its end is the directory to put it into. Directories
    that are missing on the way are made. It appears there whole, or not at all. What is there already is not replaced
    without --force.

    \b
    Examples:
      wsfs keep /data/model.pt
      wsfs keep /data/run7 /workspace/results/run7
      wsfs keep /data/model.pt /workspace/models/ --force
    """
    source = os.path.abspath(source)
    into = place(source, target)
    copied = Copy(os.fsencode(source))
    copied.to(os.fsencode(into), force=force)
    if as_json:
        fields = {"source": source, "target": into, "files": copied.files, "bytes": copied.size}
        print_json(fields | {"skipped": copied.skipped, "changed": copied.changed})
        return
    click.echo(f"Kept: {files(copied.files)}, {size(copied.size)} at {printable(into)}. 'wsfs sync' saves it now.")
    for kind, names in (("Not copied, for it is no file", copied.skipped), ("Changed meanwhile", copied.changed)):
        for name in names:
            click.echo(f"{kind}: {printable(name)}", err=True)


def place(source: str, target: str | None) -> str:
    """Where the copy goes. Raises UsageError unless that is in a workspace that can be written to."""
    if not os.path.lexists(source):
        raise UsageError(f"there is no {source}: name a file or directory")
    name = os.path.basename(source)
    if target is None:
        into = os.path.join(daemon.only_mount(), name)
    else:
        into = os.path.join(os.path.abspath(target), name) if target.endswith("/") else os.path.abspath(target)
    there = os.path.dirname(into)
    while not os.path.lexists(there):
        there = os.path.dirname(there)
    mount = mounts.containing(os.path.realpath(there))
    if mount is None or not mount.is_wsfs:
        raise UsageError(f"{into} is not in a workspace, so it would not be kept: name a path below its mount point")
    if not os.path.isdir(there):
        raise UsageError(f"{there} is not a directory: name another place")
    if os.path.commonpath([real_path(source), real_path(into)]) == real_path(source):
        raise UsageError(f"{into} lies in {source} itself: name another place")
    return into


@dataclass(slots=True)
class Copy:
    """A copy of `source`, and what became of it. Hard links become files of their own."""

    source: bytes
    files: int = 0
    size: int = 0
    skipped: list[str] = field(default_factory=list)
    """What is no file, directory or link."""
    changed: list[str] = field(default_factory=list)
    """What changed while it was copied."""

    def to(self, target: bytes, *, force: bool) -> None:
        """Make it at `target`, at once and whole. Raises WsfsError, and then nothing has changed there."""
        if os.path.lexists(target) and not force:
            raise UsageError(f"{os.fsdecode(target)} is there already: name another place, or replace it with --force")
        parent, name = os.path.split(target)
        fresh = os.path.join(parent, b".%s.keep-%d" % (name[:200], os.getpid()))
        made: list[bytes] = []
        try:
            _make_directories(parent, made)
            self._copy(self.source, fresh)
            try:
                _rename(fresh, target, RENAME_NOREPLACE)
            except FileExistsError:
                if not force:
                    raise
                _rename(fresh, target, RENAME_EXCHANGE)
            made.clear()
        except OSError as exc:
            what = os.fsdecode(exc.filename or self.source)
            raise WsfsError(
                f"{os.fsdecode(self.source)} could not be kept: {what}: {exc.strerror}; {os.fsdecode(target)} is as it"
                " was: free space or correct this, and try again"
            ) from exc
        finally:
            _remove(fresh)  # half a copy, or what was replaced
            for directory in reversed(made):
                with contextlib.suppress(OSError):  # somebody else uses it meanwhile
                    os.rmdir(directory)

    def _copy(self, source: bytes, target: bytes) -> None:
        status = os.lstat(source)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(target, 0o700)
            for name in sorted(os.listdir(source)):
                self._copy(os.path.join(source, name), os.path.join(target, name))
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source), target)
        elif stat.S_ISREG(status.st_mode):
            with (
                open(source, "rb") as old,
                open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new,
            ):
                try:
                    shutil.copyfileobj(old, new, _COPY_SIZE)
                    new.flush()
                except OSError as exc:
                    exc.filename = source
                    raise
                now = os.fstat(old.fileno())
                self.size += new.tell()
            if (now.st_size, now.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                self.changed.append(os.fsdecode(source))
            self.files += 1
        else:
            self.skipped.append(os.fsdecode(source))
            return
        if os.geteuid() == 0:
            os.lchown(target, status.st_uid, status.st_gid)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _make_directories(path: bytes, made: list[bytes]) -> None:
    """As 'mkdir -p'; `made` gets those that were missing."""
    if not os.path.isdir(path):
        _make_directories(os.path.dirname(path), made)
        os.mkdir(path)
        made.append(path)


def _remove(path: bytes) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)


def _rename(old: bytes, new: bytes, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, flags) != 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number), new)
