"""`wsfs config`: what each setting of a workspace is, and where that comes from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any

import click

from wsfs import configfile
from wsfs.cli.output import json_option, print_json
from wsfs.config import (
    DEFAULT,
    OPTIONS,
    STORE_TIMEOUT,
    MountSettings,
    as_option,
    load_settings,
    merged_settings,
    parse_mount_options,
)
from wsfs.text import printable


@click.command(short_help="Show each setting, and where it comes from.")
@click.argument("url", required=False)
@click.option("-o", "options", metavar="OPT[,OPT...]", multiple=True, help="Mount options, as for wsfs mount.")
@json_option
def config(url: str | None, options: Sequence[str], as_json: bool) -> None:
    """Show the settings of the workspace at URL, or of all, and where each comes from.

    They come from, in this order: flags, -o options, WSFS_* environment variables, ~/.config/wsfs/config.toml,
    /etc/wsfs/config.toml, defaults. A file has settings for all workspaces, then sections for a URL and what is
    below it. WSFS_CONFIG names another file in place of these two.

    \b
      save_interval = "1m"
      cache_size = "20G"

    \b
      ["s3://bucket/team"]
      endpoint_url = "https://s3.example.org"
      allow_other = true

    \b
    Examples:
      wsfs config
      wsfs config s3://bucket/ada
      wsfs config s3://bucket/ada -o save_interval=10 --json
    """
    given = parse_mount_options(",".join(options))
    found = merged_settings(url or "", os.environ, given)
    if url:  # says what is wrong with all of it together
        found.setdefault("cache_dir", (load_settings(url, "/", options=",".join(options)).cache_dir, DEFAULT))
    defaults = {field.name: field.default for field in fields(MountSettings) if field.default is not MISSING}
    defaults |= {"store_timeout": STORE_TIMEOUT, "umask": 0}
    shown: dict[str, tuple[Any, str]] = {
        name: found.get(name, (defaults.get(name), DEFAULT)) for name in OPTIONS if name in found or name in defaults
    }
    if as_json:
        rows = {name: {"value": _json(name, value), "source": source} for name, (value, source) in shown.items()}
        print_json({"url": url, "files": _files(), "settings": rows})
        return
    width = max(map(len, shown))
    for name, (value, source) in shown.items():
        click.echo(printable(f"{name:<{width}}  {_words(name, value):<24}  {source}".rstrip()))
    for file in _files():
        click.echo(printable(f"read: {file}"))


def _files() -> list[str]:
    return [str(path) for path in configfile.paths(os.environ) if path.exists()]


def _json(name: str, value: object) -> object:
    as_it_is = value is None or (isinstance(value, bool | int | float) and name != "umask")
    return value if as_it_is else as_option(name, value)


def _words(name: str, value: object) -> str:
    if value is None:
        return "half of the cache disk" if name == "cache_size" else "-"
    return as_option(name, value)
