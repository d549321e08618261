"""`wsfs restore` and `wsfs undo`: going back to a save point, on a mount."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from wsfs import control
from wsfs.cli import daemon, mounts
from wsfs.cli.history import the_mount
from wsfs.cli.output import duration, json_option, print_json
from wsfs.errors import NotMountedError, UsageError
from wsfs.values import parse_save_point


@click.command(short_help="Bring files back from a save point.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("--at", "wanted", metavar="ID|TIME", required=True, help="The save point: 482, a name, a time, or 2h.")
@json_option
def restore(paths: Sequence[str], wanted: str, as_json: bool) -> None:
    """Make each PATH of a mounted workspace as it was at a save point: a file, a directory, or, with the mount point,
    everything.

    A directory becomes exactly what it was: what came into it later is removed. Only names and attributes are
    changed, so it is quick, and bytes are fetched when they are read. Programs that have a file open go on with what
    they have. The present state becomes a save point first: 'wsfs undo' goes back to it.

    What .wsfsignore keeps on this machine is left alone. So is that file itself, if there is one, with the mount point:
    name it alone to restore it.

    \b
    Examples:
      wsfs restore --at 482 /workspace/thesis.ipynb
      wsfs restore --at 2h /workspace/data /workspace/src
      wsfs restore --at 2026-11-23T10:41 /workspace
    """
    places = [_place(path) for path in paths]
    found = [_mount_with(place) for place in places]
    for path, mount in zip(paths, found, strict=True):
        if mount is None:
            raise NotMountedError(f"{path} is in no workspace that is mounted: 'wsfs status' lists those that are")
    mount = found[0]
    assert mount is not None
    if any(other != mount for other in found):
        raise UsageError("these paths are in several workspaces: restore in one after the other")
    inside = [os.path.relpath(place, mount.mountpoint) for place in places]
    paths_inside = ["" if place == "." else place for place in inside]
    answer = daemon.told(mount.mountpoint, {"op": "restore", "at": parse_save_point(wanted), "paths": paths_inside})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"Restored from save point #{answer['id']}: {_account(answer)} 'wsfs undo' takes this back.")
        _tell_what_is_left(answer)


@click.command(short_help="Take back the last restore or mass delete.")
@click.argument("mountpoint", required=False)
@json_option
def undo(mountpoint: str | None, as_json: bool) -> None:
    """Go back to before the last 'wsfs restore', or bring back what a mass delete has removed.

    A mass delete is more than 1,000 files and a fifth of all within a minute; 'wsfs status' says when there was one.
    What is missing comes back then, and everything else stays as it is now. An undo can be undone as well.

    Without MOUNTPOINT it is about the workspace that the current directory is in, or else the only one.

    \b
    Examples:
      wsfs undo
      wsfs undo /workspace
    """
    answer = daemon.told(the_mount(mountpoint).mountpoint, {"op": "undo"})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"As it was at save point #{answer['id']}, {answer['undone']}: {_account(answer)}")
        _tell_what_is_left(answer)


def _place(path: str) -> str:
    """A path without symbolic links above it. In a workspace its last part is meant itself: what is a link now may have
    been a file. From elsewhere a link leads to what is meant, such as the mount point."""
    above, name = os.path.split(os.path.abspath(path))
    place = os.path.join(os.path.realpath(above), name)
    return control.real_path(path) if _mount_with(place) is None else place


def _mount_with(place: str) -> mounts.Mount | None:
    mount = mounts.containing(place)
    return mount if mount is not None and mount.is_wsfs else None


def _tell_what_is_left(answer: Mapping[str, Any]) -> None:
    if answer.get("ignore_left"):
        click.echo(".wsfsignore was different, and stays as it is now, with all that it keeps on this machine.")


def _account(answer: Mapping[str, Any]) -> str:
    counts = f"{answer['made']:,} made, {answer['removed']:,} removed, {answer['changed']:,} with other attributes"
    return f"{counts}, in {duration(answer['seconds'])}. Save point #{answer['seq']}."
