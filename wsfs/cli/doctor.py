"""`wsfs doctor`: looks at this machine, a store and a mount, and says what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from wsfs.cli import mounts, status
from wsfs.cli.checks import Finding, cache, failed, left, machine, mounted, set_aside
from wsfs.cli.output import json_option, print_json
from wsfs.cli.store import opened, store_options
from wsfs.config import load_settings
from wsfs.errors import UsageError, WsfsError
from wsfs.text import printable

COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command(short_help="Find out what is wrong here, and what to do.")
@click.argument("where", metavar="[URL] [MOUNTPOINT]", nargs=-1)
@store_options
@json_option
def doctor(where: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Look at this machine, at the store behind URL, and at the mount at MOUNTPOINT.

    The machine: FUSE, the helpers of mount(8), the kernel, configuration files. With URL: where credentials were
    found, the clock, whether conditional writes are enforced, latency and bandwidth (8 MiB each way), and the
    cache disk. With MOUNTPOINT: its state, its URL, and whether a stop has the time that it needs. Without
    either: the machine, and all mounts on it. Each finding has a remedy.

    The exit code is 1 if there is an error; warnings alone do not change it.

    \b
    Examples:
      wsfs doctor
      wsfs doctor s3://bucket/ada
      wsfs doctor /workspace --json
    """
    urls = [one for one in where if "://" in one]
    places = [one for one in where if "://" not in one]
    if len(urls) > 1 or len(places) > 1:
        raise UsageError("one URL and one mount point at most: wsfs doctor s3://bucket/ada /workspace")
    findings = []
    for finding in _all(urls, places, options):
        findings.append(finding)
        if not as_json:
            click.echo(describe(finding))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    return int(any(finding.level == "error" for finding in findings))


def _all(urls: list[str], places: list[str], options: Mapping[str, Any]) -> Iterator[Finding]:
    yield from machine()
    if not urls and not places:
        places = [mount.mountpoint for mount in mounts.all_mounts() if mount.is_wsfs]
    for place in places:
        yield from mounted(place)
        mount = mounts.find_wsfs(place)
        if mount is not None and not urls:
            urls = [mount.source]
    try:
        load_settings("file:///", "/")
    except WsfsError as exc:
        yield failed("settings", exc, "'wsfs config' shows where each setting comes from")
        return
    yield Finding("settings", "ok", "environment and configuration files can be read")
    for url in urls:
        try:
            settings = load_settings(url, places[0] if places else "/", flags=options)
            yield from cache(settings)
            if not places:
                yield from set_aside(settings.cache_dir, url)
            with opened(url, options) as (bare, _):
                from wsfs.cli.checks_store import store

                exists = False
                for finding in store(bare):
                    exists |= finding.check == "workspace" and finding.level == "ok"
                    yield finding
            if exists and not places:  # of a mount that has been said
                yield left(status.from_store(url, options))
        except WsfsError as exc:
            yield failed("store", exc, "'wsfs config URL' shows the settings that are used")


def describe(finding: Finding) -> str:
    """A finding for people: one line, and one for the remedy."""
    level = click.style(f"{finding.level:<8}", fg=COLOURS[finding.level])
    line = f"{level} {finding.check}: {printable(finding.text)}"
    return f"{line}\n         -> {printable(finding.remedy)}" if finding.remedy else line
