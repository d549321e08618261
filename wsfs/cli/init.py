"""`wsfs init`: make a workspace."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from wsfs.cli.output import json_option, print_json
from wsfs.cli.store import mount_command, opened, store_options
from wsfs.errors import UsageError


@click.command(short_help="Make a workspace in a store.")
@click.argument("url")
@click.option("--framework", metavar="NAME", help="Note what the workspace is for, such as jupyter.")
@click.option("--label", "labels", metavar="K=V", multiple=True, help="Note something else; may be repeated.")
@click.option("--encrypt", is_flag=True, help="Encrypt everything, with the key that --key-file or --kms-key names.")
@click.option("--owner", metavar="UID:GID", help="Who owns the top directory. Default: you.")
@store_options
@json_option
def init(
    url: str,
    framework: str | None,
    labels: Sequence[str],
    owner: str | None,
    encrypt: bool,
    as_json: bool,
    **where: Any,
) -> None:
    """Make a workspace at URL, empty but for its marker .workspace.initialized.

    Refuses a URL that holds a workspace already, and a store that does not enforce conditional writes.

    With --encrypt nothing of the user's is in the store in clear, names included. --key-file makes the file if it is
    missing. Keep a copy of it elsewhere: without it nobody can read the workspace again.

    \b
    Examples:
      wsfs init file:///srv/workspaces/ada
      wsfs init s3://bucket/ada --framework jupyter --label team=physics
      wsfs init s3://bucket/ada --encrypt --key-file ~/ada.key
      wsfs init s3://bucket/ada --endpoint-url https://s3.example.org --owner 1000:100
    """
    pairs = parse_labels(labels)
    user = parse_owner(owner)
    with opened(url, where) as (store, wrapper):
        from wsfs.repo.workspace import initialise

        if encrypt and wrapper is None:
            raise UsageError("--encrypt needs a key: name a file with --key-file, which is made if it is missing")
        if wrapper is not None and not encrypt:
            raise UsageError("a key is given, and --encrypt is not: add it, or leave the key away (WSFS_KEY_FILE too)")
        made = initialise(store, framework=framework, labels=pairs, owner=user, wrapper=wrapper)
    if as_json:
        print_json({"url": url, "workspace_id": made.workspace_id, "created": made.created})
    else:
        click.echo(f"Made workspace {made.workspace_id} at {url}. Mount it: {mount_command(url, where)}")


def parse_labels(words: Sequence[str]) -> dict[str, str]:
    """{"a": "b"} from ["a=b"]. Raises UsageError."""
    labels: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise UsageError(f"{word!r} is not a label: write it as --label KEY=VALUE")
        if key in labels:
            raise UsageError(f"the label {key!r} is given twice")
        labels[key] = value
    return labels


def parse_owner(text: str | None) -> tuple[int, int]:
    """(uid, gid) from "1000:100"; ours by default. Raises UsageError."""
    if text is None:
        return os.getuid(), os.getgid()
    uid, colon, gid = text.partition(":")
    if not (uid.isdecimal() and colon and gid.isdecimal()):
        raise UsageError(f"{text!r} is not an owner: write it in numbers, as in --owner 1000:100")
    return int(uid), int(gid)
