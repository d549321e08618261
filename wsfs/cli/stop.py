"""`wsfs umount` and `wsfs sync`: everything is in the store when they return 0."""

from __future__ import annotations

import click

from wsfs.cli import daemon
from wsfs.cli.output import json_option, print_json, saved
from wsfs.config import parse_duration


@click.command(short_help="Save everything, unmount, end the daemon.")
@click.argument("mountpoint", type=click.Path())
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
    Exit codes: 3 time was up, 41 the mount is in use, 42 nothing is mounted there,
    50 not everything could be saved.
    """
    answer = daemon.stop(mountpoint, None if deadline is None else parse_duration(deadline))
    if as_json:
        print_json(answer)
    else:
        click.echo(saved(answer))


@click.command(short_help="Save everything now.")
@click.argument("mountpoint", type=click.Path())
@json_option
def sync(mountpoint: str, as_json: bool) -> None:
    """Save everything now and return when it is durable in the store; the mount goes on.

    What programs write meanwhile is saved by the next sync, the next background save, or the stop.

    \b
    Examples:
      wsfs sync /workspace
      wsfs sync /workspace --json
    """
    answer = daemon.sync(mountpoint)
    if as_json:
        print_json(answer)
    else:
        click.echo(saved(answer))
