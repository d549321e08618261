"""`wsfs check-ignore`: which pattern of `.wsfsignore` keeps a path on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from wsfs.cli import daemon, mounts
from wsfs.cli.output import json_option, print_json
from wsfs.cli.paths import MOUNTPOINT
from wsfs.errors import NotMountedError, UsageError, WsfsError
from wsfs.text import printable

IGNORE_FILE = ".wsfsignore"


@click.command("check-ignore", short_help="Say which pattern of .wsfsignore a path matches.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=MOUNTPOINT)
@json_option
def check_ignore(paths: Sequence[str], as_json: bool) -> int:
    """Say which pattern of .wsfsignore decides about each PATH in a workspace.

    The file lies at the top of the workspace and has the syntax of .gitignore. What is made at a path that
    matches stays on this machine: it is never saved. What was saved before goes on being saved, and that is said
    here. A path need not exist; with a slash at its end it is taken for a directory.

    A line for each PATH that a pattern matches, as of 'git check-ignore -v': the file, the number of the line,
    the pattern, and the path. The exit code is 0 if any is ignored, and 1 if none is.

    \b
    Examples:
      wsfs check-ignore node_modules/left-pad
      wsfs check-ignore /workspace/run.log /workspace/build/
      wsfs check-ignore --json /workspace/model.ckpt
    """
    found = [decide(path) for path in paths]
    if as_json:
        print_json(found)
    else:
        for one in found:
            if one["pattern"] is not None:
                place = f"{IGNORE_FILE}:{one['line']}:{printable(one['pattern'])}"
                click.echo(f"{place}\t{printable(one['path'])}{_remark(one)}")
    return 0 if any(one["ignored"] for one in found) else 1


def decide(path: str) -> dict[str, Any]:
    """What docs/JSON.md says about a path. Raises NotMountedError, UsageError."""
    from wsfs.tree.ignore import SIZE_MAX, Rules

    above, name = os.path.split(os.path.abspath(path))
    place = os.path.join(os.path.realpath(above), name)  # a symbolic link is judged itself
    mount = mounts.containing(place)
    if mount is None or not mount.is_wsfs:
        raise NotMountedError(f"{path} is in no workspace that is mounted here: 'wsfs status' lists those that are")
    inside = os.path.relpath(place, mount.mountpoint)
    if inside == ".":
        raise UsageError(f"{path} is the top of the workspace, which is always saved: name something in it")
    file = Path(mount.mountpoint, IGNORE_FILE)
    text = b""
    if file.is_file() and not file.is_symlink():
        with file.open("rb") as patterns:
            text = patterns.read(SIZE_MAX)
    rules = Rules(text)
    is_dir = path.endswith("/") or (os.path.isdir(place) and not os.path.islink(place))
    decided = rules.decide(os.fsencode(inside), is_dir=is_dir)
    pattern = None if decided is None else decided[1]
    try:
        stays = daemon.stays(mount.mountpoint, inside)
    except WsfsError:
        stays = None  # only whoever has mounted it may ask
    return {
        "path": path,
        "ignored": pattern is not None and pattern.ignores,
        "line": None if pattern is None else pattern.line,
        "pattern": None if pattern is None else pattern.text,
        "matched": None if decided is None else os.fsdecode(decided[0]),
        "stays": stays,
    }


def _remark(one: dict[str, Any]) -> str:
    if one["ignored"] and one["stays"] is False:
        return "  (was saved before, and goes on being saved)"
    if not one["ignored"] and one["stays"]:
        return "  (stays on this machine until the next save)"
    return ""
