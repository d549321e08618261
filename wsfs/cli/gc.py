"""`wsfs gc`: take away what nobody needs any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from wsfs.cli import daemon
from wsfs.cli.history import the_mount, where_argument
from wsfs.cli.output import json_option, print_json, size
from wsfs.cli.store import opened_workspace, store_options
from wsfs.config import load_settings
from wsfs.errors import UsageError
from wsfs.text import printable


@click.command(short_help="Take away what no save point needs any more.")
@where_argument
@click.option("--dry-run", "-n", is_flag=True, help="Only tell what is there.")
@click.option("--retain", metavar="TIMES", help="How long save points are kept, as for 'wsfs mount'. With a URL only.")
@store_options
@json_option
def gc(where: str | None, dry_run: bool, retain: str | None, as_json: bool, **options: Any) -> None:
    """Delete what no save point of the workspace at URL, or of the one that is mounted at MOUNTPOINT, needs any more.

    A writable mount does this by itself, every ten minutes. With a URL the workspace must be stopped; it is held
    meanwhile. An empty save point is made where one has to come before a deletion. The caches of other machines do not
    stand on the newest one then: what is unsaved there after a crash, and what .wsfsignore keeps there, is set aside at
    the next mount, and not merged.

    What is younger than an hour stays, and so does what save points and pins keep: 'wsfs log' lists them. --retain sets
    other times than 1h/1d/30d. --dry-run changes nothing, and may run beside any mount.

    \b
    Examples:
      wsfs gc
      wsfs gc /workspace --dry-run
      wsfs gc s3://bucket/ada --retain 1h/0/0
    """
    if where is not None and "://" in where:
        found = _of_store(where, retain, options, dry_run=dry_run)
    elif retain is not None:
        raise UsageError("--retain goes with a URL: a mount keeps what its own -o retain= says")
    else:
        found = daemon.told(the_mount(where).mountpoint, {"op": "gc", "dry_run": dry_run})
    if as_json:
        print_json(found)
    else:
        _tell(found)


def _of_store(url: str, retain: str | None, options: Mapping[str, Any], *, dry_run: bool) -> dict[str, Any]:
    import tempfile
    from pathlib import Path

    from wsfs.garbage import collect_unmounted, report
    from wsfs.sync.retain import keep_for

    settings = load_settings(url, "/", options=[f"retain={retain}"] if retain is not None else [])
    policy = keep_for(settings.retain)
    with opened_workspace(url, options) as store:
        if dry_run:
            return report(store, policy)
        with tempfile.TemporaryDirectory(prefix="wsfs-gc-") as directory:
            return collect_unmounted(store, policy, Path(directory), lambda notice: click.echo(notice, err=True))


def _tell(found: Mapping[str, Any]) -> None:
    click.echo(f"{printable(found['url'])}, save point #{found['seq']}:")
    for name, text in (
        ("live", "what it needs"),
        ("kept", "older save points, pins, forks, and what readers may have needed in the last hour"),
        ("garbage", "nobody needs: it goes when it is an hour old, or when its pack is written anew"),
    ):
        click.echo(f"  {size(found[name]):>9}  {text}")
    if found["applied"]:
        kinds = [(found["commits"], "save points"), (found["segments"], "metadata objects"), (found["packs"], "packs")]
        gone = ", ".join(f"{count:,} {kind}" for count, kind in kinds)
        click.echo(f"Freed: {size(found['freed'])} ({gone}). Moved out of sparse packs: {size(found['moved'])}.")
