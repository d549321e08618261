"""`wsfs mount`: start the daemon of a workspace, in the background or in this process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from wsfs import control
from wsfs.cli import background, daemon, mounts
from wsfs.cli.store import store_options
from wsfs.config import MountSettings, load_settings, parse_duration
from wsfs.errors import DeadlineError, MountError, SyncFailedError
from wsfs.notify import Notifier

log = logging.getLogger(__name__)


@click.command(short_help="Mount a workspace on a directory.")
@click.argument("url")
@click.argument("mountpoint", type=click.Path())
@click.option("-o", "options", metavar="OPT[,OPT...]", multiple=True, help="Mount options, as for mount(8).")
@click.option("--cache-dir", metavar="DIR", type=click.Path(), help="Where the local copy lives.")
@click.option("--save-interval", metavar="TIME", help="Seconds between background saves; 0: only sync and stop.")
@click.option("--read-only", is_flag=True, help="The same as -o ro.")
@click.option("--allow-other", is_flag=True, help="Let other users in; permissions decide what they may do.")
@click.option("--takeover", is_flag=True, help="Mount although another host seems to have it: that one is shut out.")
@click.option("--foreground", "-f", is_flag=True, help="Stay in this process, for systemd and debugging.")
@click.option("--ready-fd", type=int, hidden=True)
@store_options
def mount(
    url: str,
    mountpoint: str,
    options: Sequence[str],
    foreground: bool,
    ready_fd: int | None,
    cache_dir: str | None,
    save_interval: str | None,
    **flags: Any,
) -> None:
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
      endpoint_url=URL       the S3 server, if it is not AWS
      addressing_style=path  the bucket's name in the path; virtual: in the host name
      xattr                  extended attributes, at the price of slower small writes
      takeover               shut out the host that has the workspace mounted

    Each of these but takeover may be set in the environment: WSFS_CACHE_DIR, WSFS_CACHE_SIZE, ... Flags win over -o,
    and -o wins over the environment.

    \b
    Examples:
      wsfs mount s3://bucket/ada /workspace
      wsfs mount file:///srv/ada /workspace -o allow_other,cache_size=20G
      wsfs mount s3://bucket/ada /workspace --foreground
      mount -t wsfs s3://bucket/ada /workspace -o ro    once 'wsfs install-helpers' has run
    """
    given = {name: value or None for name, value in flags.items()}  # a flag that is absent says nothing
    given["cache_dir"] = Path(cache_dir).absolute() if cache_dir else None
    given["save_interval"] = parse_duration(save_interval) if save_interval else None
    given["foreground"] = foreground or None
    settings = load_settings(url, mountpoint, options=options, flags=given)
    if foreground:
        run_foreground(settings, background.Reporter(ready_fd))
    else:
        check_mountpoint(settings)
        background.start(settings)


def check_mountpoint(settings: MountSettings) -> None:
    """Raise MountError unless something can be mounted there. A dead mount is no obstacle."""
    where = settings.mountpoint
    mounted = mounts.find_wsfs(where)
    if mounted is not None:
        if not mounts.is_dead(where):
            raise MountError(f"{where} is mounted already, from {mounted.source}: 'wsfs umount {where}' first")
        return
    if not where.is_dir():
        missing = "does not exist: make it with mkdir" if not where.exists() else "is not a directory"
        raise MountError(f"the mount point {where} {missing}")
    if not os.path.exists("/dev/fuse"):
        raise MountError("this machine has no /dev/fuse: load the fuse module, or give the container the device")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError("this user may not open /dev/fuse: chmod 666 it, as most systems have it, or mount as root")


def run_foreground(settings: MountSettings, reporter: background.Reporter) -> None:
    """Be the daemon. Returns after a stop that saved everything; tells systemd, the parent and the record how
    it went.
    """
    set_up_logging()
    notifier = Notifier.from_environment()
    where = settings.mountpoint
    about = {"url": settings.url, "cache_dir": str(settings.cache_dir), "pid": os.getpid()}

    def progress(message: str) -> None:
        log.info("%s mountpoint=%s", message, where)
        reporter.status(message)
        notifier.extend_timeout(3600, message)  # its end depends on a store, which has its own deadlines

    def ready() -> None:  # called from a thread that does not serve the mount: it may wait for it
        mounts.register(settings.url, where)
        control.write_record(where, about | {"state": "RUNNING"})
        reporter.ready()
        notifier.ready(f"{settings.url} is mounted on {where}")

    ours = False  # a living mount that is there already has its own record
    try:
        check_mountpoint(settings)
        ours = True
        if mounts.find_wsfs(where) is not None:
            mounts.unmount(where, "-l")
            log.info("took away the mount of a daemon that had died mountpoint=%s", where)
        daemon.wait_for_predecessor(where, progress)
        from wsfs.mount import run

        run(settings, ready, progress)
    except BaseException as exc:
        # Nothing here may touch the mount: if it is still there, this process would have to answer.
        error = control.as_wsfs_error(exc)
        reason = control.sentence(error) if error is not None else f"internal error: {type(exc).__name__}: {exc}"
        code = error.exit_code if error is not None else 1
        if error is None and not isinstance(exc, KeyboardInterrupt):
            log.error("internal error", exc_info=exc)
        state = "SYNC_FAILED" if isinstance(error, SyncFailedError) else "ERROR"
        if ours:
            control.write_record(where, about | {"state": state, "reason": reason, "exit_code": code})
        reporter.error(reason, code)
        notifier.status(reason)
        if isinstance(error, DeadlineError):
            # Threads may wait for the store still, and Python would wait for them. Nothing here needs to be tidied up.
            log.error("%s", reason)
            logging.shutdown()
            os._exit(code)
        raise
    control.write_record(where, about | {"state": "STOPPED"})


def set_up_logging() -> None:
    """Log to stderr: a terminal, the journal (which has its own clock), or the log file of a background
    mount.
    """
    debug = os.environ.get("WSFS_DEBUG") == "1"
    stamp = "" if os.environ.get("JOURNAL_STREAM") else "%(asctime)s "
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.INFO,
        format=f"{stamp}level=%(levelname)s logger=%(name)s %(message)s",
    )
    if debug:  # the SDK logs whole requests, with their signatures
        for name in ("boto3", "botocore", "s3transfer", "urllib3"):
            logging.getLogger(name).setLevel(logging.INFO)
