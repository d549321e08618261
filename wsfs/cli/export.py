"""`wsfs export`: rescue what was never saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsfs.cli import daemon
from wsfs.cli.output import files, json_option, print_json, size
from wsfs.cli.store import opened, store_options
from wsfs.errors import CacheError, UsageError

if TYPE_CHECKING:
    from wsfs.export import Exported

SHOWN = 20


@click.command(short_help="Rescue what was never saved.")
@click.argument("mountpoint", type=click.Path(), required=False)
@click.option("--unsaved", "target", metavar="DIR", required=True, help="Where to: a directory that is new or empty.")
@click.option("--cache-dir", metavar="DIR", type=click.Path(), help="Export from a cache directory that is not in use.")
@click.option("--url", metavar="URL", help="The workspace, for files of which a part is only in the store.")
@store_options
@json_option
def export(
    mountpoint: str | None, target: str, cache_dir: str | None, url: str | None, as_json: bool, **where: Any
) -> None:
    """Copy files that were never saved to another directory, with their paths, modes and times.

    From MOUNTPOINT, such as a mount that another host has cut off, or with --cache-dir from a cache directory
    without a mount, or from one of its unsaved-... directories. With several of those each gets a directory of
    its own. Files are copied whole; what was deleted is not told.

    A file of which a part cannot be had is called NAME.incomplete. With --cache-dir, parts that are only in the
    store are fetched from the workspace at --url, as long as it still has them.

    \b
    Examples:
      wsfs export --unsaved /tmp/rescued /workspace
      wsfs export --unsaved /tmp/rescued --cache-dir /var/cache/wsfs/0123456789abcdef
      wsfs export --unsaved /tmp/rescued --cache-dir DIR --url s3://bucket/ada

    \b
    Exit codes: 42 nothing is mounted there, 30 the cache directory is in use, 60 a file is not whole.
    """
    if (mountpoint is None) == (cache_dir is None):
        raise UsageError("name a mount point, or a cache directory with --cache-dir")
    if mountpoint is not None:
        done = from_mount(mountpoint, Path(target))
    else:
        done = from_cache(Path(str(cache_dir)), Path(target), url, where)
    incomplete = [os.fsdecode(path) for path in done.incomplete]
    skipped = [os.fsdecode(path) for path in done.skipped]
    if as_json:
        print_json({"files": done.files, "bytes": done.size, "incomplete": incomplete, "skipped": skipped})
    else:
        click.echo(f"Exported: {files(done.files)}, {size(done.size)} to {target}.")
        for path in skipped[:SHOWN]:
            click.echo(f"Not exported, for only root may make it: {path}")
    if incomplete:
        names = "\n  ".join(incomplete[:SHOWN])
        remedy = "" if url else ", of which a part is only in the store: name the workspace with --url"
        raise CacheError(f"{files(len(incomplete))} could not be exported whole{remedy}:\n  {names}")


def from_mount(mountpoint: str, target: Path) -> Exported:
    from wsfs.export import Target, from_mount

    paths = [os.fsencode(path) for path in daemon.unsaved(mountpoint)]
    into = Target(target)
    from_mount(Path(mountpoint), paths, into)
    into.close()
    return into.done


def from_cache(cache: Path, target: Path, url: str | None, where: dict[str, Any]) -> Exported:
    from wsfs.export import from_cache
    from wsfs.store.retry import RetryingStore

    if url is None:
        return from_cache(cache.absolute(), target, None)
    with opened(url, where) as store:
        return from_cache(cache.absolute(), target, RetryingStore(store, deadline=20.0))
