"""`wsfs clean`: caches that their programs make again."""

from __future__ import annotations

import os
from typing import Any

import click

from wsfs.cli.history import the_mount
from wsfs.cli.output import json_option, print_json, size
from wsfs.errors import UsageError
from wsfs.text import printable


@click.command(short_help="List caches that can be made again, and remove them.")
@click.argument("directory", metavar="[DIRECTORY]", required=False)
@click.option("--apply", is_flag=True, help="Remove them. Without it nothing is changed.")
@json_option
def clean(directory: str | None, apply: bool, as_json: bool) -> int:
    """List caches below DIRECTORY that their programs make again, and how much they take.

    These are the downloads of pip, uv, conda and npm, models and data sets of Hugging Face, __pycache__,
    .ipynb_checkpoints, and what is in the trash (.Trash-*). Settings and tokens beside them stay.

    Without DIRECTORY it looks through the workspace that the current directory is in, or else the one that is
    mounted on this machine. It follows no symbolic link, and goes into no other mount. A file that has another
    name outside is counted as nothing, for it stays. The exit code is 1 if something could not be removed.

    \b
    Examples:
      wsfs clean
      wsfs clean /workspace --apply
    """
    from wsfs.caches import find, remove

    top = os.path.realpath(directory or the_mount(None).mountpoint)
    if not os.path.isdir(top):
        raise UsageError(f"{top} is not a directory")
    found = sorted(find(top), key=lambda cache: -cache.size)
    failed: dict[str, str] = {}
    if apply:
        for cache in found:
            reason = remove(top, cache)
            if reason:
                failed[cache.path] = reason
    total = sum(cache.size for cache in found if cache.path not in failed)
    if as_json:
        caches: list[dict[str, Any]] = [
            {"path": cache.path, "kind": cache.kind, "files": cache.files, "bytes": cache.size}
            | {"removed": apply and cache.path not in failed, "error": failed.get(cache.path)}
            for cache in found
        ]
        print_json({"directory": top, "caches": caches, "bytes": total, "applied": apply})
        return 1 if failed else 0
    for cache in found:
        click.echo(f"{size(cache.size):>9}  {cache.kind:<12}  {printable(cache.path)}")
    for path, reason in failed.items():
        click.echo(f"wsfs: {printable(path)} could not be removed whole: {reason}", err=True)
    if not found:
        click.echo(f"No caches in {printable(top)}.")
    elif apply:
        click.echo(f"Removed {len(found) - len(failed)} caches, {size(total)}.")
    else:
        click.echo(f"{len(found)} caches, {size(total)}. Nothing was removed: add --apply to do that.")
    return 1 if failed else 0
