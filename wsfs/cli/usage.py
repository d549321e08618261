"""`wsfs usage`: what a workspace takes in the store, what for, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from wsfs.cli import daemon
from wsfs.cli.history import the_mount, where_argument
from wsfs.cli.output import duration, files, json_option, print_json, size
from wsfs.cli.store import opened_workspace, store_options
from wsfs.config import OPTIONS, MountSettings, load_settings
from wsfs.errors import UsageError
from wsfs.text import printable

GB = 10**9
MONTH_HOURS = 730


@click.command(short_help="What a workspace takes in the store, and what it costs.")
@where_argument
@click.option("--price", metavar="N", help="What a GB costs a month; 0.01 by default.")
@click.option("--free-size", metavar="SIZE", help="How much is free at first; 10 GB by default.")
@click.option("--free-time", metavar="TIME", help="For how long, from the first stop on; 30d by default.")
@click.option("--all", "everything", is_flag=True, help="Every directory and save point, not only the largest.")
@store_options
@json_option
def usage(
    where: str | None,
    price: str | None,
    free_size: str | None,
    free_time: str | None,
    everything: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what the workspace at URL, or the one that is mounted at MOUNTPOINT, takes in the store.

    By directory it is the bytes of the files, and what these take in the store: compressed, and what is there
    several times counted once. A save point takes what only it and older ones still need. What is not saved yet
    is in none of this.

    GB-hours are counted from the first stop on; a GB has 10^9 bytes. A month has 730 hours. The price is in
    your currency. -o options of a mount, WSFS_PRICE, WSFS_FREE_SIZE and WSFS_FREE_TIME set other defaults.

    \b
    Examples:
      wsfs usage
      wsfs usage s3://bucket/ada --price 0.02
      wsfs usage /workspace --json
    """
    given = {"price": price, "free_size": free_size, "free_time": free_time}
    rates = load_settings("file:///", "/", flags={name: _value(name, text) for name, text in given.items()})
    if where is not None and "://" in where:
        from wsfs.usage import usage as measure

        with opened_workspace(where, options) as store:
            found = measure(store)
    else:
        found = daemon.told(the_mount(where).mountpoint, {"op": "usage"})
    found["cost"] = cost(found["stored"]["total"], found.pop("ledger"), rates)
    if as_json:
        print_json(found)
    else:
        _tell(found, None if everything else 10)


def _value(name: str, text: str | None) -> object:
    if text is None:
        return None
    try:
        return OPTIONS[name].parse(text)
    except UsageError as exc:
        raise UsageError(f"--{name.replace('_', '-')}: {exc}") from None


def cost(stored: int, ledger: Mapping[str, Any] | None, rates: MountSettings) -> dict[str, Any]:
    """The money, and what it is worked out from. The ledger ends now, with `stored` bytes in the bucket."""
    import time

    from wsfs.repo.ledger import Ledger
    from wsfs.repo.workspace import timestamp
    from wsfs.sync.retain import seconds_of

    now = time.time()
    counted = Ledger(**(ledger or {})).until(timestamp(now))
    left = max(seconds_of(counted.since) + rates.free_time - now, 0.0) if counted.since else rates.free_time
    free = rates.free_size if left else 0
    return {
        "price": rates.price,
        "since": counted.since or None,
        "gb_hours": counted.byte_hours / GB,
        "free_seconds_left": left,
        "free_bytes_left": max(free - stored, 0),
        "month": round(stored / GB * rates.price, 6),
        "month_now": round(max(stored - free, 0) / GB * rates.price, 6),
        "until_now_at_most": round(counted.byte_hours / GB / MONTH_HOURS * rates.price, 6),
    }


def _tell(found: Mapping[str, Any], most: int | None) -> None:
    stored, money = found["stored"], found["cost"]
    click.echo(f"Stored: {size(stored['total'])} at {printable(found['url'])}, save point #{found['seq']}")
    for name, text in (
        ("data", "data of the files as they are"),
        ("metadata", "names and attributes"),
        ("save_points", "only for older save points"),
        ("other", "not in use any more, or room in packs: garbage collection takes it in the next hours"),
    ):
        click.echo(f"  {size(stored[name]):>9}  {text}")
    click.echo(f"Contents: {files(found['files'])}, {size(found['bytes'])}")
    click.echo(f"  {size(found['deduplication']):>9}  saved by deduplication")
    click.echo(f"  {size(found['compression']):>9}  saved by compression")
    click.echo("By directory: size, in the store, files")
    for one in found["directories"][:most]:
        click.echo(f"  {size(one['bytes']):>9}  {size(one['stored']):>9}  {one['files']:>9,}  {printable(one['path'])}")
    _more(found["directories"], most)
    points = sorted((one for one in found["save_points"] if one["bytes"]), key=lambda one: -int(one["bytes"]))
    if points:
        click.echo("By save point:")
        for one in points[:most]:
            click.echo(f"  {size(one['bytes']):>9}  #{one['id']}  {one['created']}")
        _more(points, most)
    since = f" since the first stop, {money['since']}" if money["since"] else ": counted from the first stop on"
    click.echo(f"Used: {money['gb_hours']:,.3f} GB-hours{since}")
    if money["free_seconds_left"]:
        free = f"{duration(money['free_seconds_left'])} and {size(money['free_bytes_left'])} left"
    else:
        free = "nothing left"
    click.echo(f"Free: {free}")
    click.echo(f"Cost: {money['month_now']:.4f} a month now, {money['month']:.4f} after the free time")


def _more(rows: list[Any], most: int | None) -> None:
    if most is not None and len(rows) > most:
        click.echo(f"  and {len(rows) - most:,} more: --all")
