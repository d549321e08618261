"""`wsfs export`: a workspace without a mount, or what was never saved."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsfs.cli import daemon
from wsfs.cli.fsck import url_of
from wsfs.cli.output import duration, files, json_option, print_json, size
from wsfs.cli.progress import shown
from wsfs.cli.store import opened_workspace, store_options
from wsfs.errors import CacheError, DamagedError, StoreError, UsageError
from wsfs.text import printable
from wsfs.values import parse_save_point

if TYPE_CHECKING:
    from wsfs.repo.manifest import Manifest
    from wsfs.store.base import Store
    from wsfs.targets import Exported, Target

SHOWN = 20
STDOUT = "-"
COMPRESSED = {
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.xz": "xz",
    ".txz": "xz",
    ".tar.zst": "zstd",
    ".tar.bz2": "bzip2",
    ".tbz2": "bzip2",
}
"""Ends of names that nobody wants for a directory, and what makes such a file."""


@click.command(short_help="Copy a workspace out of its store, or the unsaved.")
@click.argument("source", metavar="[URL|MOUNTPOINT]", required=False)
@click.argument("target", metavar="[DIR|FILE.tar|-]", type=click.Path(allow_dash=True), required=False)
@click.option("--at", "wanted", metavar="ID", help="The save point: a number, name or time. Default: the newest.")
@click.option("--unsaved", "rescued", metavar="DIR", help="Only what was never saved, to a new or empty directory.")
@click.option(
    "--cache-dir",
    metavar="DIR",
    type=click.Path(),
    help="Export from a cache directory that is not in use, or one set aside in it.",
)
@click.option("--url", metavar="URL", help="The workspace, for files of which a part is only in the store.")
@store_options
@json_option
def export(
    source: str | None,
    target: str | None,
    wanted: str | None,
    rescued: str | None,
    cache_dir: str | None,
    url: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Copy the workspace at URL, or the one that is mounted at MOUNTPOINT, as its newest save point has it, to a new or
    empty directory or into a tar archive.

    It needs no mount and no cache, may run beside a mount, and verifies every byte. Modes, times, hard links, holes
    and extended attributes are kept, and owners where the user may set them. A file of which a part is damaged is
    called NAME.incomplete; in an archive it has zeros there, and an empty NAME.incomplete comes after it. All others
    are exported. With - the archive goes to the standard output.

    With --unsaved copy only files that were never saved, from MOUNTPOINT, such as a mount that another host has cut
    off, or with --cache-dir from a cache directory without a mount, or from one of its unsaved-... directories.
    With several of those each gets a directory of its own. What was deleted is not told. With --cache-dir, parts that
    are only in the store are fetched from the workspace at --url, as long as it still has them.

    \b
    Examples:
      wsfs export s3://bucket/ada /srv/ada
      wsfs export s3://bucket/ada ada.tar --at 482
      wsfs export s3://bucket/ada - | zstd > ada.tar.zst
      wsfs export --unsaved /tmp/rescued /workspace
      wsfs export --unsaved /tmp/rescued --cache-dir /var/cache/wsfs/ID --url s3://bucket/ada

    \b
    Exit codes: 25 a file is damaged, 27 there is no such save point; with --unsaved: 42 nothing is
    mounted there, 30 the cache directory is in use, 60 a file is not whole.
    """
    if rescued is not None:
        if target is not None or wanted is not None:
            raise UsageError("--unsaved needs a mount point or a cache directory, and nothing else")
        rescue(source, rescued, cache_dir, url, where, as_json=as_json)
        return
    if source is None or target is None:
        raise UsageError("name a workspace and where it goes to, or say --unsaved for what was never saved")
    if cache_dir is not None or url is not None:
        raise UsageError("--cache-dir and --url go with --unsaved")
    program = next((program for end, program in COMPRESSED.items() if target.lower().endswith(end)), None)
    if program is not None:
        raise UsageError(
            f"wsfs does not compress: give a program the archive, 'wsfs export {source} - | {program} > {target}'"
        )
    whole(url_of(source), target, wanted, where, as_json=as_json)


# --- a whole workspace ------------------------------------------------------------------------------------------------


def whole(url: str, place: str, wanted: str | None, where: dict[str, Any], *, as_json: bool) -> None:
    from wsfs.extract import extract, held
    from wsfs.sync.progress import DOWNLOAD, Progress

    with opened_workspace(url, where) as store:
        manifest = _commit(store, wanted)
        progress = Progress(DOWNLOAD)
        with (
            held(store, manifest.key, newest=wanted is None),
            _opened_target(place) as target,
            shown("exporting", progress),
        ):
            problems = extract(store, manifest, target, progress)
    done, seconds = target.done, progress.seconds
    if as_json:
        told = {"url": url, "id": manifest.seq, "saved_at": manifest.created, **_told(done)}
        print_json({**told, "problems": problems, "seconds": round(seconds, 3)}, err=place == STDOUT)
    else:
        to = "the standard output" if place == STDOUT else place
        text = f"Exported: {files(done.files)}, {size(done.size)} in {duration(seconds)} to {to}."
        click.echo(f"{text} Save point {manifest.created} #{manifest.seq}.", err=place == STDOUT)
        _tell_skipped(done)
    if done.incomplete or problems:
        wrong = [*map(printable, done.incomplete), *map(printable, problems)]
        raise DamagedError(
            f"the rest was exported, but {len(wrong)} {'thing is' if len(wrong) == 1 else 'things are'} damaged; 'wsfs"
            f" fsck {url} --data' says what helps:\n  " + "\n  ".join(wrong[:SHOWN])
        )


def _commit(store: Store, wanted: str | None) -> Manifest:
    """The save point to export. HEAD's needs no list of all."""
    from wsfs.repo.head import read_head
    from wsfs.repo.workspace import read_format
    from wsfs.sync.history import find, save_points
    from wsfs.sync.load import read_manifest

    read_format(store)  # says so if the key is missing
    if wanted is None:
        return read_manifest(store, read_head(store).head)
    return find(save_points(store), parse_save_point(wanted)).manifest


@contextlib.contextmanager
def _opened_target(place: str) -> Iterator[Target]:
    """Where it goes to. An archive that could not be completed is removed."""
    from wsfs.targets import DirectoryTarget, TarTarget

    if place == STDOUT:
        yield TarTarget(sys.stdout.buffer)
    elif place.endswith(".tar"):
        try:
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError as exc:
            raise UsageError(f"{place} exists already: name a file that does not, so that nothing is lost") from exc
        try:
            with open(descriptor, "wb") as file:
                yield TarTarget(file)
        except BaseException:
            os.unlink(place)
            raise
    else:
        yield DirectoryTarget(Path(place))


# --- what was never saved ---------------------------------------------------------------------------------------------


def rescue(
    mountpoint: str | None,
    target: str,
    cache_dir: str | None,
    url: str | None,
    where: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    if (mountpoint is None) == (cache_dir is None):
        raise UsageError("name a mount point, or a cache directory with --cache-dir")
    if mountpoint is not None:
        done = from_mount(mountpoint, Path(target))
    else:
        done = from_cache(Path(str(cache_dir)), Path(target), url, where)
    if as_json:
        print_json(_told(done))
    else:
        click.echo(f"Exported: {files(done.files)}, {size(done.size)} to {target}.")
        _tell_skipped(done)
    if done.incomplete:
        names = "\n  ".join(map(printable, done.incomplete[:SHOWN]))
        remedy = "" if url else ", of which a part is only in the store: name the workspace with --url"
        raise CacheError(f"{files(len(done.incomplete))} could not be exported whole{remedy}:\n  {names}")


def from_mount(mountpoint: str, target: Path) -> Exported:
    from wsfs.export import from_mount
    from wsfs.targets import DirectoryTarget

    paths = [os.fsencode(path) for path in daemon.unsaved(mountpoint)]
    into = DirectoryTarget(target, durable=True)
    from_mount(Path(mountpoint), paths, into)
    into.close()
    return into.done


def from_cache(cache: Path, target: Path, url: str | None, where: dict[str, Any]) -> Exported:
    from wsfs.export import from_cache
    from wsfs.repo.workspace import read_format

    if url is None:
        return from_cache(cache.absolute(), target, None)
    with opened_workspace(url, where, deadline=20.0) as store:
        with contextlib.suppress(StoreError):
            read_format(store)  # without its key an encrypted workspace is of no use
        return from_cache(cache.absolute(), target, store)


# --- both -------------------------------------------------------------------------------------------------------------


def _told(done: Exported) -> dict[str, Any]:
    lists = {"incomplete": done.incomplete, "skipped": done.skipped, "bare": done.bare}
    told = {name: [os.fsdecode(path) for path in paths] for name, paths in lists.items()}
    return {"files": done.files, "bytes": done.size, **told}


def _tell_skipped(done: Exported) -> None:
    for path in done.skipped[:SHOWN]:
        click.echo(f"Not exported, for it cannot be made here: {printable(path)}", err=True)
    for path in done.bare[:SHOWN]:
        click.echo(f"Exported without some extended attributes: {printable(path)}", err=True)
