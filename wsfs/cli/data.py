"""`wsfs data`: a plain tmpfs for what may be lost."""

from __future__ import annotations

import os
import re
import stat
import subprocess

import click

from wsfs.cli import mounts
from wsfs.cli.output import json_option, print_json
from wsfs.control import real_path
from wsfs.errors import MountError, UsageError

OPTIONS = "nosuid,nodev,mode=1777"
SOURCE = "wsfs-data"


@click.command(short_help="Mount a plain tmpfs for what may be lost.")
@click.argument("mountpoint", type=click.Path())
@json_option
@click.option("--size", default="50%", show_default=True, help="Its limit: a share of memory, or bytes as in 8G.")
def data(mountpoint: str, size: str, as_json: bool) -> None:
    """Mount a plain tmpfs on MOUNTPOINT: fast, open to everybody, and gone after a stop.

    It never touches object storage and, where the kernel can (6.4 and later), never the swap. Does nothing if
    MOUNTPOINT is such a tmpfs already. Needs root. Unmount it with umount.

    \b
    Examples:
      wsfs data /data
      wsfs data /data --size 8G
    """
    made = make(mountpoint, size)
    if as_json:
        print_json({"mountpoint": real_path(mountpoint), "made": made})
    elif made:
        click.echo(f"Mounted a tmpfs of {size} on {real_path(mountpoint)}. It is gone after a stop.")
    else:
        click.echo(f"{real_path(mountpoint)} is such a tmpfs already.")


def make(mountpoint: str, size: str) -> bool:
    """Mount the tmpfs; False if it is there already. Raises UsageError, MountError."""
    if not re.fullmatch(r"\d+([kmg]|%)?", size, re.IGNORECASE | re.ASCII):
        raise UsageError(f"{size!r} is not a size for a tmpfs: write it as 50% or 8G")
    where = real_path(mountpoint)
    mounted = mounts.find(where)
    if mounted is not None:
        check_same(where, mounted)
        return False
    if os.geteuid() != 0:
        raise UsageError(f"mounting a tmpfs needs root: sudo wsfs data {mountpoint}")
    prepare(where)
    result = _mount(where, f"{OPTIONS},size={size},noswap")
    if result.returncode != 0:  # a kernel before 6.4
        result = _mount(where, f"{OPTIONS},size={size}")
    if result.returncode != 0:
        raise MountError(f"no tmpfs could be mounted on {where}: {' '.join(result.stderr.split())}")
    return True


def check_same(where: str, mounted: mounts.Mount) -> None:
    """Raise MountError unless what is mounted there is what we would mount."""
    if mounted.fstype != "tmpfs":
        raise MountError(f"{where} is a mount of type {mounted.fstype} already: choose another directory")
    open_to_all = stat.S_IMODE(os.stat(where).st_mode) == 0o1777
    if not (open_to_all and {"nosuid", "nodev"} <= set(mounted.options)):
        raise MountError(f"{where} is a tmpfs with other options than {OPTIONS}: unmount it first")


def prepare(where: str) -> None:
    """Make the directory if it is missing. Raises MountError where a mount would hide something."""
    try:
        os.makedirs(where, exist_ok=True)
        hidden = os.listdir(where)
    except OSError as exc:
        raise MountError(f"{where} cannot be used as a mount point: {exc.strerror}") from exc
    if hidden:
        raise MountError(f"{where} is not empty, and a tmpfs would hide what is in it: choose an empty directory")


def _mount(where: str, options: str) -> subprocess.CompletedProcess[str]:
    command = ["mount", "-t", "tmpfs", "-o", options, SOURCE, where]
    return subprocess.run(command, capture_output=True, text=True, check=False)
