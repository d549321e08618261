"""`wsfs unsaved`: the files that are not in the store yet."""

from __future__ import annotations

import click

from wsfs.cli import daemon
from wsfs.cli.output import duration, files, json_option, kept, print_json, size
from wsfs.cli.paths import MOUNTPOINT
from wsfs.text import printable


@click.command(short_help="List the files that are not saved yet.")
@click.argument("mountpoint", type=MOUNTPOINT, required=False)
@click.option("--limit", metavar="N", type=click.IntRange(1), default=50, show_default=True, help="List at most N.")
@json_option
def unsaved(mountpoint: str | None, limit: int, as_json: bool) -> None:
    """List the files at MOUNTPOINT that are not in the store yet, the one that waits longest first.

    Without MOUNTPOINT it is the workspace that the current directory is in, or else the only one that is mounted
    here. Of each: why it is not saved, how long ago it changed, its size and its path from the top.

    \b
    changing   it changed a moment ago
    waiting    for the next save
    saving     a save is under way
    failing    the last save failed; the reason is shown

    What .wsfsignore keeps on this machine is not in the list. One line says how much that is.

    \b
    Examples:
      wsfs unsaved
      wsfs unsaved /workspace --limit 10
      wsfs unsaved /workspace --json
    """
    answer = daemon.unsaved_files(mountpoint or daemon.only_mount())
    found = answer["unsaved"]
    shown = found[:limit]
    if as_json:
        failed = sum(one["state"] == "failing" for one in found)
        counts = {"total": len(found), "failed": failed}
        stay = {"kept_files": answer["kept_files"], "kept_bytes": answer["kept_bytes"]}
        print_json({"state": answer["state"], **counts, **stay, "files": shown})
        return
    if not found:
        click.echo("Everything is saved.")
    for one in shown:
        cells = (f"{one['state']:<8}", f"{duration(one['age']):>7}", f"{size(one['size']):>8}")
        click.echo("  ".join((*cells, printable(one["path"]) or ".")))
    if len(found) > limit:
        click.echo(f"and {files(len(found) - limit)} more: --limit {len(found)} lists all")
    for reason in sorted({one["reason"] for one in shown if one["state"] == "failing"}):
        click.echo(f"The last save failed: {reason}")
    if kept(answer):
        click.echo(f"Not saved, and not to be: {kept(answer)}.")
