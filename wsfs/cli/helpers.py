"""The helpers that mount(8) and umount(8) call: mount.wsfs, mount.fuse.wsfs, umount.wsfs, umount.fuse.wsfs.

mount.wsfs URL DIR [-sfnv] [-N namespace] [-o options] [-t type]
umount.wsfs DIR [-flnrv] [-N namespace] [-t type]

Both print our sentence and end with an exit code of mount(8), which scripts and systemd expect from them.
"""

from __future__ import annotations

import getopt
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import click

from wsfs.cli import background, daemon, mounts
from wsfs.cli.output import files, saved, size
from wsfs.cli.process import INTERRUPTED, guarded, leave
from wsfs.cli.progress import Display
from wsfs.config import load_settings
from wsfs.errors import UsageError, WsfsError

# mount(8), "EXIT STATUS"
EX_USAGE, EX_USER, EX_FAIL = 1, 8, 32


@dataclass(frozen=True, slots=True)
class Arguments:
    """What mount(8) or umount(8) says on the helper's command line; `flags` are the letters of those without
    value.
    """

    words: tuple[str, ...]
    flags: frozenset[str]
    options: str = ""


def parse(arguments: Sequence[str], letters: str, count: int) -> Arguments:
    """Read a helper's command line: `count` words, flags among `letters`, -o, -t and -N. Raises UsageError."""
    try:
        found, words = getopt.gnu_getopt(list(arguments), f"{letters}o:t:N:")
    except getopt.GetoptError as exc:
        raise UsageError(f"{exc.msg}; wsfs understands -{' -'.join(letters)} -o -t -N here") from None
    if len(words) != count:
        raise UsageError(
            f"{'URL DIRECTORY' if count == 2 else 'DIRECTORY'} expected, not {' '.join(words) or 'nothing'}"
        )
    values: dict[str, list[str]] = {}
    for name, value in found:
        values.setdefault(name[1], []).append(value)
    if "N" in values:
        raise UsageError("wsfs cannot work in another mount namespace by -N: enter it first, with nsenter --mount=FILE")
    return Arguments(tuple(words), frozenset(values) & frozenset(letters), ",".join(values.get("o", [])))


def mount(arguments: Sequence[str]) -> None:
    """mount.wsfs: returns when the mount answers; -f only checks the arguments."""
    parsed = parse(arguments, "sfnvw", 2)
    url, where = parsed.words
    settings = load_settings(url, where, options=parsed.options, sloppy="s" in parsed.flags)
    mounts.check(settings.mountpoint, allow_other=settings.allow_other)
    if "f" in parsed.flags:
        click.echo(f"wsfs: would mount {settings.url} on {settings.mountpoint}, cache in {settings.cache_dir}")
        return
    background.start(settings)
    if "v" in parsed.flags:
        click.echo(f"wsfs: {settings.url} mounted on {settings.mountpoint}.")


def umount(arguments: Sequence[str]) -> None:
    """umount.wsfs: returns when all is durable and the daemon is gone; with -f or -l at once, saying what is
    not.
    """
    parsed = parse(arguments, "flnrvic", 1)
    (where,) = parsed.words
    forced = sorted(parsed.flags & {"f", "l"})
    if forced:
        click.echo(f"wsfs: {unsaved(where)}", err=True)
        mounts.unmount(where, *(f"-{flag}" for flag in forced))
    else:
        click.echo(saved(daemon.stop(where, display=Display("saving"))))


def unsaved(where: str) -> str:
    """What a forced unmount leaves behind."""
    try:
        state = daemon.status(where)
    except WsfsError as exc:
        return f"what is not saved yet is unknown: {exc}; {daemon.kept(None)}"
    if state.get("unsaved_files") is None:
        return f"what is not saved yet is unknown; {daemon.kept(state.get('cache_dir'))}"
    if not state["unsaved_files"] and not state.get("unsaved_bytes"):
        return "everything that reached the daemon is saved already"
    amount = f"{files(state['unsaved_files'])}, {size(state.get('unsaved_bytes') or 0)} not saved yet"
    return f"{amount}: the daemon goes on with them once the mount is gone; {daemon.kept(state.get('cache_dir'))}"


def main(arguments: Sequence[str]) -> int:
    """Run the helper that the first argument names; returns an exit code of mount(8)."""
    body = {"mount": mount, "umount": umount}[arguments[0]]
    code = guarded(lambda: body(arguments[1:]))
    return {0: 0, UsageError.exit_code: EX_USAGE, INTERRUPTED: EX_USER}.get(code, EX_FAIL)


def run() -> NoReturn:
    """The entry point of the scripts that install-helpers writes."""
    leave(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
