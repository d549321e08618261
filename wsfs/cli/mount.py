"""`wsfs mount`: start the daemon of a workspace, in the background or in this process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from wsfs.cli import background, daemon, mounts
from wsfs.cli.output import json_option, print_json
from wsfs.cli.paths import MOUNTPOINT
from wsfs.cli.serve import Reporter, serve
from wsfs.cli.store import store_options
from wsfs.config import load_settings
from wsfs.errors import UsageError
from wsfs.values import parse_duration, parse_save_point


@click.command(short_help="Mount a workspace on a directory.")
@click.argument("url")
@click.argument("mountpoint", type=MOUNTPOINT)
@click.option("-o", "options", metavar="OPT[,OPT...]", multiple=True, help="Mount options, as for mount(8).")
@click.option("--cache-dir", metavar="DIR", type=click.Path(), help="Where the local copy lives.")
@click.option("--save-interval", metavar="TIME", help="Seconds between background saves; 0: only sync and stop.")
@click.option("--read-only", is_flag=True, help="The same as -o ro.")
@click.option("--at", metavar="ID|TIME", help="Show this save point, read-only.")
@click.option("--allow-other", is_flag=True, help="Let other users in; permissions decide what they may do.")
@click.option("--takeover", is_flag=True, help="Mount although another host seems to have it: that one is shut out.")
@click.option("--foreground", "-f", is_flag=True, help="Stay in this process, for systemd and debugging.")
@click.option("--ready-fd", type=int, hidden=True)
@store_options
@json_option
def mount(
    url: str,
    mountpoint: str,
    options: Sequence[str],
    foreground: bool,
    ready_fd: int | None,
    cache_dir: str | None,
    save_interval: str | None,
    as_json: bool,
    **flags: Any,
) -> int:
    """Mount the workspace at URL on the directory MOUNTPOINT.

    Returns 0 only when the mount answers. A workspace that is missing, damaged, of another kind or held by
    another host is refused, with an exit code for each; 'wsfs status MOUNTPOINT' then shows ERROR and the
    reason.

    Options for -o, beside the generic ones such as ro, nosuid, nodev, noexec, noatime, allow_other, uid=, gid=,
    umask= and what only mount(8) and systemd read:

    \b
      cache_dir=DIR          where the local copy lives
      cache_size=10G         its limit
      save_interval=30       seconds between background saves; 0: only at sync and stop
      stop_deadline=TIME     give up a stop after so long; the rest stays in the cache
      store_timeout=60       how long a request to the store is repeated before it has failed
      at=482                 read-only, as it was at this save point: a number, a name or a time
      retain=1h/1d/30d       how long all save points are kept, those of each hour, of each day
      follow=30s             read-only: how often to look for a newer save point
      key_file=FILE          the key of an encrypted workspace
      kms_key=ID             likewise, in AWS's key management service
      endpoint_url=URL       the S3 server, if it is not AWS
      addressing_style=path  the bucket's name in the path; virtual: in the host name
      log_format=json        the log for programs: one object a line
      metrics=127.0.0.1:9464 for Prometheus; a path: into that file, every 15 s
      xattr                  extended attributes, at the price of slower small writes
      operator=USER          may ask for the state and a save, as the status item in JupyterLab does
      quota=50G              how many bytes it may hold; quota_files=N: how many files
      price=0.02             of a GB a month, for 'wsfs usage'; free_size=, free_time=: what is free
      takeover               shut out the host that has the workspace mounted

    Each of these but at, follow, operator and takeover may be set in the environment: WSFS_CACHE_DIR, ... Flags win
    over -o, -o wins over the environment, and that over configuration files: 'wsfs config --help'.

    \b
    Examples:
      wsfs mount s3://bucket/ada /workspace
      wsfs mount file:///srv/ada /workspace -o allow_other,cache_size=20G
      wsfs mount s3://bucket/ada /workspace --foreground
      mount -t wsfs s3://bucket/ada /workspace -o ro    once 'wsfs install-helpers' has run
    """
    if "://" in mountpoint and "://" not in url:
        raise UsageError(f"the URL comes first, then the directory: wsfs mount {mountpoint} {url}")
    given = {name: value or None for name, value in flags.items()}  # a flag that is absent says nothing
    given["cache_dir"] = Path(cache_dir).absolute() if cache_dir else None
    given["save_interval"] = parse_duration(save_interval) if save_interval else None
    given["at"] = parse_save_point(flags["at"]) if flags.get("at") else None
    given["foreground"] = foreground or None
    settings = load_settings(url, mountpoint, options=options, flags=given)
    if foreground:
        return serve(settings, Reporter(ready_fd))
    mounts.check(settings.mountpoint, allow_other=settings.allow_other)
    background.start(settings)
    if as_json:
        print_json(daemon.status(settings.mountpoint))
    return 0
