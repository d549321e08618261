"""`wsfs refresh`: a read-only mount shows the newest state."""

from __future__ import annotations

import click

from wsfs.cli import daemon
from wsfs.cli.output import files, json_option, print_json
from wsfs.cli.paths import MOUNTPOINT


@click.command(short_help="Have a read-only mount show the newest state.")
@click.argument("mountpoint", type=MOUNTPOINT)
@json_option
def refresh(mountpoint: str, as_json: bool) -> None:
    """Move the read-only mount at MOUNTPOINT to the newest save point of its workspace.

    A mount with -o follow=30s does so by itself, that often. A file that somebody has open shows its new
    content; one that was deleted gives ESTALE.

    \b
    Examples:
      wsfs mount s3://bucket/ada /mnt/ada --read-only
      wsfs refresh /mnt/ada
      wsfs mount s3://bucket/ada /mnt/ada -o ro,follow=30s
    """
    answer = daemon.refresh(mountpoint)
    if as_json:
        print_json(answer)
    else:
        moved = f"{files(answer['total'])} changed" if answer["total"] else "Nothing has changed"
        click.echo(f"{moved}. Save point {answer['saved_at']} #{answer['seq']}.")
