"""`wsfs start` and `wsfs stop`: a notebook's whole turn, /data and the workspace."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from wsfs.cli import daemon, data, mounts
from wsfs.cli.output import duration, files, json_option, kept, print_json, saved, size
from wsfs.cli.paths import MOUNTPOINT
from wsfs.cli.progress import Display
from wsfs.cli.stop import account_of_failure
from wsfs.cli.store import store_options
from wsfs.config import MountSettings, load_settings
from wsfs.errors import DeadlineError, MountBusyError, UsageError, WsfsError
from wsfs.text import printable
from wsfs.values import parse_duration

WORKSPACE: Final = "/workspace"
DATA: Final = "/data"
NAMED: Final = 3
"""How many of the newest files, and of the largest, a warning names."""


@dataclass(frozen=True, slots=True)
class Scratch:
    """What is in a tmpfs that is about to go: files and bytes in all, and the newest and largest files as (bytes,
    seconds since the last change, path)."""

    files: int
    size: int
    named: tuple[tuple[int, float, str], ...]


@click.command(short_help="Begin a notebook's turn: mount /data and the workspace.")
@click.argument("url")
@click.argument("mountpoint", type=MOUNTPOINT, default=WORKSPACE)
@click.option("--data", "scratch", metavar="DIR", default=DATA, show_default=True, help="Where the tmpfs goes.")
@click.option("--no-data", is_flag=True, help="Without a tmpfs.")
@click.option("--data-size", default="50%", show_default=True, help="Its limit: a share of memory, or as in 8G.")
@click.option("-o", "options", metavar="OPT[,OPT...]", multiple=True, help="Mount options of the workspace.")
@store_options
@json_option
def start(
    url: str,
    mountpoint: str,
    scratch: str,
    no_data: bool,
    data_size: str,
    options: Sequence[str],
    as_json: bool,
    **where: Any,
) -> None:
    """Mount a tmpfs on /data and the workspace at URL on MOUNTPOINT (/workspace), which are made if they are missing.

    As 'wsfs data' and 'wsfs mount' do it: when the workspace is refused, the tmpfs is taken away again. How it
    is can be seen from any host: 'wsfs status URL' says STARTING, RUNNING, STOPPING, STOPPED, SYNC_FAILED or
    ERROR. The tmpfs needs root.

    \b
    Examples:
      wsfs start s3://bucket/ada
      wsfs start s3://bucket/ada /home/ada/work --no-data
      wsfs start file:///srv/ada --data-size 8G -o allow_other
    """
    settings = load_settings(url, mountpoint, options=options, flags=where)
    begin(settings, None if no_data else scratch, data_size)
    found = daemon.status(settings.mountpoint)
    if as_json:
        print_json(found | {"data": None if no_data else scratch})
        return
    holds = f"{files(found.get('files') or 0)}, {size(found.get('bytes') or 0)}"
    beside = "" if no_data else f" {scratch} is a tmpfs, and gone after the stop."
    click.echo(f"Started: {url} on {settings.mountpoint} ({holds}).{beside}")


def begin(settings: MountSettings, scratch: str | None, data_size: str, output: int | None = None) -> bool:
    """Mount a tmpfs on `scratch`, if that is given, and the workspace; both or none. `output`: a descriptor for the
    daemon's log. Returns whether the tmpfs is a new one. Raises WsfsError.
    """
    from wsfs.cli import background

    os.makedirs(settings.mountpoint, exist_ok=True)
    mounts.check(settings.mountpoint, allow_other=settings.allow_other)
    made = False
    if scratch is not None:
        if os.geteuid() != 0 and mounts.find(scratch) is None:
            raise UsageError(f"a tmpfs on {scratch} needs root: use sudo, or leave it out with --no-data")
        made = data.make(scratch, data_size)
    try:
        background.start(settings, output)
    except BaseException:
        if made and scratch is not None:
            mounts.unmount(scratch)
        raise
    return made


@click.command(short_help="End a notebook's turn: save all, unmount both.")
@click.argument("mountpoint", type=MOUNTPOINT, required=False)
@click.option("--data", "scratch", metavar="DIR", default=DATA, show_default=True, help="Where the tmpfs is.")
@click.option("--keep-data", is_flag=True, help="Leave the tmpfs as it is.")
@click.option("--deadline", metavar="TIME", help="Unmount after so long even if not everything could be saved.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask whether what is in the tmpfs may go.")
@json_option
def stop(
    mountpoint: str | None, scratch: str, keep_data: bool, deadline: str | None, yes: bool, as_json: bool
) -> int | None:
    """Save everything in the workspace at MOUNTPOINT, unmount it, and take the tmpfs on /data away.

    Without MOUNTPOINT it is the workspace that the current directory is in, or else the only one that is mounted
    here. What is in the tmpfs is lost: it is named first, and on a terminal you are asked. 'wsfs keep' copies a file
    from there into the workspace. If the workspace cannot be saved, both stay as they are. What .wsfsignore keeps on
    this machine stays in the cache directory: one line says how much that is.

    \b
    Examples:
      wsfs stop
      wsfs stop /workspace --deadline 25s --yes
      wsfs stop --keep-data

    \b
    Exit codes: as 'wsfs umount', and 1 if you said no.
    """
    where = mountpoint or daemon.only_mount()
    tmpfs = mounts.find(scratch)
    ours = tmpfs is not None and tmpfs.source == data.SOURCE and not keep_data
    left = look(scratch) if ours else None
    if left is not None and left.files:
        click.echo(warning(scratch, left), err=True)
        asking = not yes and not as_json and sys.stdin.isatty()
        if asking and not click.confirm("Stop, and lose this?", err=True):
            click.echo("Nothing was stopped.")
            return 1
    with contextlib.suppress(WsfsError):  # the stop will say what is wrong
        if stays := kept(daemon.status(where)):
            click.echo(f"wsfs: {stays}: no other machine has that, and it is gone if the cache directory is.", err=True)
    late: DeadlineError | None = None
    answer: dict[str, Any] = {}
    try:
        answer = daemon.stop(
            where, parse_duration(deadline) if deadline else None, None if as_json else Display("saving")
        )
    except WsfsError as exc:
        # When time is up the mount is gone, and so is the turn; but not with a daemon that hangs.
        if not isinstance(exc, DeadlineError) or isinstance(exc, daemon.UnansweredError):
            if as_json:
                print_json(account_of_failure(where, exc))
            raise
        late = exc
    busy = take_away(scratch) if ours else None
    if as_json:
        told = account_of_failure(where, late) if late else answer
        lost = None if left is None else {"mountpoint": scratch, "files": left.files, "bytes": left.size}
        print_json(told | {"data": lost})
    elif not late:
        click.echo(saved(answer))
    if late or busy:
        raise late or busy  # type: ignore[misc]
    return None


def take_away(scratch: str) -> MountBusyError | None:
    """Unmount the tmpfs; the error if programs use it."""
    try:
        mounts.unmount(scratch)
    except MountBusyError:
        return MountBusyError(
            f"the workspace is stopped, but {scratch} is in use, so it is still mounted: find the programs with"
            f" 'fuser -vm {scratch}', end them, and 'umount {scratch}'"
        )
    return None


def look(scratch: str) -> Scratch:
    """What is in the tmpfs."""
    now = time.time()
    found = [(status.st_size, max(now - status.st_mtime, 0.0), path) for path, status in _files(scratch)]
    largest = sorted(found, key=lambda one: -one[0])[:NAMED]
    newest = sorted(found, key=lambda one: one[1])[:NAMED]
    return Scratch(len(found), sum(one[0] for one in found), tuple(dict.fromkeys((*largest, *newest))))


def _files(top: str) -> Iterator[tuple[str, os.stat_result]]:
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield path, status


def warning(scratch: str, left: Scratch) -> str:
    """What is about to be lost, and what to do about it."""
    lines = [f"wsfs: {scratch} holds {files(left.files)}, {size(left.size)}, which a stop loses. Largest and newest:"]
    lines += [f"  {size(count):>8}  {duration(age) + ' ago':<12} {printable(path)}" for count, age, path in left.named]
    lines.append(f"To keep one of them: wsfs keep {printable(left.named[0][2])}")
    return "\n".join(lines)
