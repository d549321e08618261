"""`wsfs log`, `wsfs diff` and `wsfs pin`: the save points of a workspace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from wsfs.cli import daemon, mounts
from wsfs.cli.output import duration, files, json_option, print_json, size
from wsfs.cli.store import opened_workspace, store_options
from wsfs.errors import NotMountedError, UsageError
from wsfs.text import printable
from wsfs.values import parse_duration, parse_save_point

if TYPE_CHECKING:
    from wsfs.store.base import Store

where_argument = click.argument("where", metavar="[URL|MOUNTPOINT]", required=False)


@click.command(short_help="List the save points of a workspace.")
@where_argument
@click.option("--limit", "-n", type=click.IntRange(min=1), help="Only so many, the newest.")
@store_options
@json_option
def log(where: str | None, limit: int | None, as_json: bool, **options: Any) -> None:
    """List the save points of the workspace at URL, or the one that is mounted at MOUNTPOINT, newest first.

    Each save is one. All of the last hour are kept, then the newest of each hour for a day, then the newest of each
    day for 30 days, and pinned ones for as long as they are pinned; 'wsfs mount -o retain=' sets these times. Counts
    and sizes are those of the whole workspace, with the change since the save point before.

    Without an argument it is about the workspace that the current directory is in, or else the one that is mounted
    on this machine.

    \b
    Examples:
      wsfs log
      wsfs log /workspace -n 20
      wsfs log s3://bucket/ada --json
    """
    found = ask(where, options, {"op": "log"})
    points = found["save_points"][:limit]
    if as_json:
        print_json({"save_points": points})
        return
    for point in points:
        click.echo(_line(point))


@click.command(short_help="Show what changed between two save points.")
@click.argument("words", metavar="[URL|MOUNTPOINT] A [B]", nargs=-1, required=True)
@click.option("--stat", is_flag=True, help="Only how many paths, and how many bytes.")
@store_options
@json_option
def diff(words: Sequence[str], stat: bool, as_json: bool, **options: Any) -> None:
    """Show what changed from save point A to save point B, or to the newest one.

    A and B are numbers from 'wsfs log', names, or times such as 2026-11-23T10:41 or 2h, for two hours ago; a time
    stands for the newest save point that is not newer. What is not saved yet is in none: 'wsfs sync' saves it.

    \b
    +  added        -  removed
    M  changed      R  renamed, known by its inode number
    m  only attributes changed: mode, owner, time

    \b
    Examples:
      wsfs diff 481
      wsfs diff /workspace 481 482 --stat
      wsfs diff s3://bucket/ada 2h --json
    """
    where, rest = split_where(words)
    if not 1 <= len(rest) <= 2:
        raise UsageError("name one save point, or two: 'wsfs log' lists them")
    first, second = (*map(parse_save_point, rest), None)[:2]
    found = ask(where, options, {"op": "diff", "first": first, "second": second})
    if as_json:
        print_json({name: value for name, value in found.items() if not stat or name != "changes"})
        return
    if not stat:
        for change in found["changes"]:
            click.echo(_change(change))
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found["total"].items())
    click.echo(f"#{found['from']} to #{found['to']}: {counts}, {_signed(found['bytes'])}.")


@click.command(short_help="Keep a save point, for ever or for a time.")
@click.argument("words", metavar="[URL|MOUNTPOINT] ID", nargs=-1, required=True)
@click.option("--name", metavar="NAME", help="A name to find it by, which begins with a letter.")
@click.option("--for", "span", metavar="TIME", help="Keep it for so long, such as 90d, instead of for ever.")
@click.option("--remove", is_flag=True, help="Do not keep it any longer than others of its age.")
@store_options
@json_option
def pin(words: Sequence[str], name: str | None, span: str | None, remove: bool, as_json: bool, **options: Any) -> None:
    """Keep a save point whatever its age, and all that it holds.

    ID is a number from 'wsfs log', a name, or a time. A pinned save point takes room in the store for what only it
    still has.

    \b
    Examples:
      wsfs pin 482 --name before-the-upgrade
      wsfs pin s3://bucket/ada 482 --for 90d
      wsfs pin before-the-upgrade --remove
    """
    where, rest = split_where(words)
    if len(rest) != 1:
        raise UsageError("name one save point: 'wsfs log' lists them")
    if remove and (name is not None or span is not None):
        raise UsageError("--remove goes with neither --name nor --for")
    request: dict[str, Any] = {"op": "unpin" if remove else "pin", "id": parse_save_point(rest[0])}
    if not remove:
        request |= {"name": name, "keep": parse_duration(span) if span else None}
    done = ask(where, options, request)
    if as_json:
        print_json(done)
    elif remove:
        click.echo(f"Save point #{done['id']} is not pinned any more.")
    else:
        click.echo(f"Save point #{done['id']} is kept {f'for {span}' if span else 'for ever'}.")


# --- where, and which -----------------------------------------------------------------------------------------------


def split_where(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The URL or mount point, if the first word is one, and the other words. Save points have no slash."""
    if words and ("/" in words[0] or words[0] in (".", "..") or mounts.find_wsfs(words[0]) is not None):
        return words[0], list(words[1:])
    return None, list(words)


def the_mount(where: str | None) -> mounts.Mount:
    """The mount at a directory, else the one that we are in, else the only one that we may control.

    Raises NotMountedError, UsageError.
    """
    if where is not None:
        found = mounts.find_wsfs(where)
        if found is None:
            raise NotMountedError(f"no workspace is mounted at {where}: 'wsfs status' lists those that are")
        return found
    return daemon.unnamed(lambda _mount: True, "name the URL of one")


def ask(where: str | None, options: Mapping[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The answer of the mount's daemon, or, for a URL, what its store has. Raises WsfsError."""
    if where is not None and "://" in where:
        with opened_workspace(where, options) as store:
            return from_store(store, request)
    return daemon.told(the_mount(where).mountpoint, request)


def from_store(store: Store, request: Mapping[str, Any]) -> dict[str, Any]:
    """What the daemon of a mount would answer."""
    from wsfs import savepoints

    operation = request["op"]
    if operation == "log":
        return savepoints.log(store)
    if operation == "diff":
        return savepoints.diff(store, request["first"], request["second"])
    if operation == "pin":
        return savepoints.set_pin(store, request["id"], request["name"], request["keep"])
    return savepoints.unset_pin(store, request["id"])


# --- for people -----------------------------------------------------------------------------------------------------


def _line(point: Mapping[str, Any]) -> str:
    parts = [f"#{point['id']}", point["created"], files(point["files"]), size(point["bytes"])]
    if point["files_change"] or point["bytes_change"]:
        count = point["files_change"]
        parts.append(f"({f'{count:+,} files, ' if count else ''}{_signed(point['bytes_change'])})")
    if point["host"]:
        parts.append(f"by {printable(point['host'])}")
    if point.get("left_out"):
        parts.append(f"without {files(point['left_out'])} that could not be saved in time")
    if point["pinned"]:
        left = point["seconds_left"]
        span = "" if left is None else f" for {duration(left)}"
        name = f" {printable(point['name'])!r}" if point["name"] else ""
        reason = f" ({printable(point['reason'])})" if point["kind"] != "user" else ""
        parts.append(f"pinned{name}{span}{reason}")
    if not point["in_history"]:
        parts.append("not in this history")
    return "  ".join(parts)


def _signed(count: float) -> str:
    return f"{'-' if count < 0 else '+'}{size(abs(count))}"


def _change(change: Mapping[str, Any]) -> str:
    sign = {"added": "+", "removed": "-", "renamed": "R"}.get(change["change"])
    if sign is None:
        sign = "M" if change["content"] else "m"
    slash = "/" if change["type"] == "directory" else ""
    text = f"{sign} {printable(change['path'])}{slash}"
    if "to" in change:
        text += f" -> {printable(change['to'])}{slash}"
    if change["type"] == "file" and change["change"] != "renamed":
        text += f"  {size(change.get('size', change.get('size_before', 0)))}"
    return text
