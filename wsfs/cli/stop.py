"""`wsfs umount` and `wsfs sync`: everything is in the store when they return 0."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import click

from wsfs import control
from wsfs.cli import daemon
from wsfs.cli.output import json_option, kept, print_json, saved
from wsfs.cli.paths import MOUNTPOINT
from wsfs.cli.progress import Display
from wsfs.control import sentence
from wsfs.errors import SyncFailedError, WsfsError


@click.command(short_help="Save everything, unmount, end the daemon.")
@click.argument("mountpoint", type=MOUNTPOINT)
@click.option("--deadline", metavar="TIME", help="Unmount after so long even if not everything could be saved.")
@json_option
def umount(mountpoint: str, deadline: str | None, as_json: bool) -> None:
    """Save everything, unmount MOUNTPOINT and end its daemon.

    Returns 0 only when all is durable in the store. Otherwise it says why, the mount stays and nothing is
    lost: make the store reachable or end the programs that use the mount, and try again.

    With --deadline small files of yours are saved first, caches and packages last, and what was saved counts.
    When time is up the mount goes all the same, with exit code 3 and a list of what is not saved. That stays in
    the cache directory, and the next mount with this cache saves it.

    \b
    Examples:
      wsfs umount /workspace
      wsfs umount /workspace --deadline 25s
      umount /workspace          as the first one, once 'wsfs install-helpers' has run

    \b
    Exit codes: 3 time was up, 31 another mount took the workspace over, 41 everything is saved but
    the mount is in use, 42 nothing is mounted there, 50 not everything could be saved and the mount
    is still there.
    """
    seconds: float | None = None
    if deadline is not None:
        from wsfs.values import parse_duration

        seconds = parse_duration(deadline)
    _tell(mountpoint, lambda display: daemon.stop(mountpoint, seconds, display), as_json=as_json)


@click.command(short_help="Save everything now.")
@click.argument("mountpoint", type=MOUNTPOINT, required=False)
@json_option
def sync(mountpoint: str | None, as_json: bool) -> None:
    """Save everything now and return when it is durable in the store; the mount goes on.

    Without MOUNTPOINT it is the workspace that the current directory is in, or else the only one that is mounted
    here. What programs write meanwhile is saved by the next sync, the next background save, or the stop.

    \b
    Examples:
      wsfs sync
      wsfs sync /workspace
      wsfs sync /workspace --json
    """
    where = mountpoint or daemon.only_mount()
    _tell(where, lambda display: daemon.sync(where, display), as_json=as_json)


def _tell(mountpoint: str, save: Callable[[Display | None], dict[str, Any]], *, as_json: bool) -> None:
    """Have it saved, and say how that went."""
    try:
        answer = save(None if as_json else Display("saving"))
    except WsfsError as exc:
        if as_json:
            print_json(account_of_failure(mountpoint, exc))
        raise
    if as_json:
        print_json(answer)
        return
    click.echo(saved(answer))
    if kept(answer):
        click.echo(f"{kept(answer)}.")


def account_of_failure(mountpoint: str, exc: WsfsError) -> dict[str, Any]:
    """What docs/JSON.md says about a save that failed. null: the daemon that would know is gone, or hangs."""
    left: int | None = None
    state = "SYNC_FAILED" if isinstance(exc, SyncFailedError) else "ERROR"
    if not isinstance(exc, control.SilentError | daemon.UnansweredError):  # it would be silent once more
        with contextlib.suppress(WsfsError):
            status = daemon.status(mountpoint)
            state, left = str(status["state"]), status.get("unsaved_files")
    counts = {"total": left, "processed": 0, "completed": 0, "skipped": 0, "failed": left, "transferredBytes": 0}
    return {"state": state, "direction": "upload", **counts, "error": sentence(exc), "exit_code": exc.exit_code}
