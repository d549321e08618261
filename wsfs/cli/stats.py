"""`wsfs stats`: what a mount is doing: saves, requests to the store, the cache, and how long programs wait."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from wsfs import control
from wsfs.cli import daemon, mounts
from wsfs.cli.output import duration, files, json_option, print_json, size
from wsfs.cli.paths import MOUNTPOINT
from wsfs.errors import NotMountedError
from wsfs.metrics import quantile
from wsfs.text import printable
from wsfs.values import parse_duration

Counters = Mapping[str, Any]
MIN_INTERVAL = 0.1


@click.command(short_help="Show the counters of a mount, once or live.")
@click.argument("mountpoint", type=MOUNTPOINT, required=False)
@click.option("--watch", "-w", is_flag=True, help="Show them again and again, with rates; Ctrl-C ends it.")
@click.option("--interval", metavar="TIME", default="1s", show_default=True, help="With --watch: how often.")
@json_option
def stats(mountpoint: str | None, watch: bool, interval: str, as_json: bool) -> None:
    """Show what the mount at MOUNTPOINT has done since it started: saves, requests and bytes to the store, reads
    that the cache could answer, and how long requests of programs took.

    Without MOUNTPOINT it is the workspace that the current directory is in, or else the only one that is mounted
    here. Programs' requests are measured from the first 'wsfs stats' on, or from the start with -o metrics=, which
    gives all of this to Prometheus.

    \b
    Examples:
      wsfs stats
      wsfs stats /workspace --watch
      wsfs stats --json --watch --interval 10s    one object a line
    """
    where = mountpoint or daemon.only_mount()
    if not watch:
        found = ask(where)
        if as_json:
            print_json(found)
        else:
            click.echo(describe(found))
        return
    with contextlib.suppress(KeyboardInterrupt):
        _show(_repeated(where, max(parse_duration(interval), MIN_INTERVAL)), as_json=as_json)


def ask(mountpoint: str) -> dict[str, Any]:
    """The counters of a mount, as docs/JSON.md describes them. Raises NotMountedError."""
    if mounts.find_wsfs(mountpoint) is None:
        raise NotMountedError(f"no workspace is mounted at {mountpoint}: 'wsfs status' lists those that are")
    answer = control.request(daemon.socket_of(mountpoint), {"op": "stats"}, timeout=daemon.STATUS_TIMEOUT)
    return {name: value for name, value in answer.items() if name != "ok"}


def _repeated(where: str, interval: float) -> Iterator[dict[str, Any]]:
    """The counters, as often as that, until the mount is gone."""
    yield ask(where)
    while True:
        time.sleep(interval)
        try:
            yield ask(where)
        except NotMountedError:
            return


def _show(all_counters: Iterator[dict[str, Any]], *, as_json: bool) -> None:
    before: Counters | None = None
    if as_json or not sys.stdout.isatty():
        for found in all_counters:
            click.echo(json.dumps(found, default=str) if as_json else line(found, before))
            before = found
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        for found in all_counters:
            live.update(Text(describe(found, before)), refresh=True)
            before = found


def describe(found: Counters, before: Counters | None = None) -> str:
    """The counters for people; with earlier ones also what came in between, a second."""
    store, cache = found["store"], found["cache"]
    kinds = ", ".join(f"{store[kind]:,} {kind}" for kind in ("get", "put", "list", "delete"))
    trouble = f"{store['retries']:,} sent again, {store['failures']:,} given up"
    rates = _rates(found, before)
    moved = f"{size(store['bytes_in'])} in, {size(store['bytes_out'])} out"
    moved += f" ({size(rates['in'])}/s in, {size(rates['out'])}/s out)" if before else ""
    latency = "" if store["latency"] is None else f"; an answer takes {duration_ms(store['latency'])}"
    reads = cache["hits"] + cache["misses"]
    share = f"{100 * cache['hits'] / reads:.1f} % of {reads:,} reads needed no request; " if reads else ""
    rows = [
        ("unsaved", unsaved(found)),
        ("stop", f"would take about {duration(found['stop_seconds'])}"),
        ("saves", f"{found['saves']:,}, and {found['save_failures']:,} that failed"),
        ("store", f"{kinds}; {trouble}{latency}"),
        ("moved", moved),
        ("cache", f"{share}{size(cache['bytes'])} of fetched data"),
    ]
    lines = [f"{printable(found['mountpoint'])}  {found['state']}  for {duration(found['uptime'])}"]
    lines += [f"  {name:<8} {text}" for name, text in rows]
    used = sorted(found["requests"].items(), key=lambda item: -item[1]["count"])
    if used:
        lines.append(
            f"  {'request':<12} {'count':>11} {'a second' if before else '':>9} {'mean':>9} {'99 % below':>11}"
        )
    for name, one in used:
        rate = f"{rates['ops'][name]:,.0f}" if before else ""
        mean, most = duration_ms(one["seconds"] / one["count"]), duration_ms(quantile(one["buckets"], 0.99))
        lines.append(f"  {name:<12} {one['count']:>11,} {rate:>9} {mean:>9} {most:>11}")
    return "\n".join(lines)


def line(found: Counters, before: Counters | None = None) -> str:
    """The counters on one line, for a log."""
    rates = _rates(found, before)
    words = {
        "state": found["state"],
        "unsaved_bytes": found["unsaved_bytes"],
        "unsaved_files": found["unsaved_files"],
        "unsaved_age": f"{found['unsaved_age']:.0f}",
        "saves": found["saves"],
        "save_failures": found["save_failures"],
        "in_per_s": f"{rates['in']:.0f}",
        "out_per_s": f"{rates['out']:.0f}",
        "requests_per_s": f"{sum(rates['ops'].values()):.0f}",
    }
    return " ".join(f"{name}={value}" for name, value in words.items())


def unsaved(found: Counters) -> str:
    if not found["unsaved_files"] and not found["unsaved_bytes"]:
        return "nothing"
    age = f", the oldest change {duration(found['unsaved_age'])} old"
    return f"{files(found['unsaved_files'])}, {size(found['unsaved_bytes'])}{age}"


def duration_ms(seconds: float) -> str:
    """A short time for people: 45 us, 1.2 ms, 3.4 s."""
    if seconds == float("inf"):
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else duration(seconds)


def _rates(found: Counters, before: Counters | None) -> dict[str, Any]:
    """What came a second since `before`; the mount may be another one than then."""
    if before is None or found["uptime"] <= before["uptime"]:
        return {"in": 0.0, "out": 0.0, "ops": dict.fromkeys(found["requests"], 0.0)}
    span = found["uptime"] - before["uptime"]
    earlier = before["requests"]
    return {
        "in": (found["store"]["bytes_in"] - before["store"]["bytes_in"]) / span,
        "out": (found["store"]["bytes_out"] - before["store"]["bytes_out"]) / span,
        "ops": {
            name: (one["count"] - earlier.get(name, {"count": 0})["count"]) / span
            for name, one in found["requests"].items()
        },
    }
