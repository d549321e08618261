"""`wsfs install-helpers`: the small scripts through which mount(8) and umount(8) find wsfs."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from wsfs.cli.background import source_root
from wsfs.errors import UsageError, WsfsError

# mount(8) looks for mount.TYPE by the type it is given; umount(8) by the type in the kernel's list:
# fuse.wsfs.
HELPERS = {
    "mount.wsfs": "mount",
    "mount.fuse.wsfs": "mount",
    "umount.wsfs": "umount",
    "umount.fuse.wsfs": "umount",
}
SIGNATURE = "# Made by 'wsfs install-helpers'; 'wsfs install-helpers --remove' takes it away."


@click.command("install-helpers", short_help="Let mount(8) and umount(8) find wsfs.")
@click.option("--prefix", metavar="DIR", default="/", type=click.Path(file_okay=False), help="Root of an image.")
@click.option("--python", metavar="PATH", help="The interpreter as it is called in that image. Default: this one.")
@click.option("--remove", is_flag=True, help="Take the helpers away again.")
def install_helpers(prefix: str, python: str | None, remove: bool) -> None:
    """Install mount.wsfs, mount.fuse.wsfs, umount.wsfs and umount.fuse.wsfs into /sbin.

    With them 'mount -t wsfs', lines in /etc/fstab and plain 'umount' work, and umount returns only when
    everything is saved. Run it again after moving the Python environment. Needs root, unless --prefix is
    yours.

    \b
    Examples:
      sudo wsfs install-helpers
      wsfs install-helpers --prefix ./image --python /opt/wsfs/bin/python
      sudo wsfs install-helpers --remove

    \b
    Then, in /etc/fstab:
      s3://bucket/ada /workspace wsfs allow_other,nosuid,nodev,_netdev 0 0
    """
    directory = sbin(Path(prefix))
    there = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise WsfsError(f"this user may not write to {there}: it needs root, try sudo")
    if remove:
        for path in sorted(directory.joinpath(name) for name in HELPERS):
            if is_ours(path):
                path.unlink()
                click.echo(f"Removed {path}")
        return
    foreign = [
        str(directory / name) for name in HELPERS if (directory / name).exists() and not is_ours(directory / name)
    ]
    if foreign:
        raise UsageError(f"{', '.join(foreign)} is not made by wsfs: move it away first")
    directory.mkdir(parents=True, exist_ok=True)
    for name, verb in HELPERS.items():
        path = directory / name
        fresh = path.with_name(f".{name}.{os.getpid()}")
        fresh.write_text(script(verb, python))
        fresh.chmod(0o755)
        fresh.replace(path)
        click.echo(f"Installed {path}")


def script(verb: str, python: str | None) -> str:
    """The text of a helper. It names the interpreter in full: mount(8) may run with any PATH."""
    interpreter = python or os.path.abspath(sys.executable)
    root = None if python else source_root()
    lines = ["#!/bin/sh", SIGNATURE]
    if root is not None:
        lines.append(f"export PYTHONPATH={shlex.quote(root)}${{PYTHONPATH:+:$PYTHONPATH}}")
    # -P: root runs this in any directory, and must not import what lies there
    lines.append(f'exec {shlex.quote(interpreter)} -P -m wsfs.cli.helpers {verb} "$@"')
    return "\n".join(lines) + "\n"


def sbin(prefix: Path) -> Path:
    """/sbin of the image at `prefix`: never outside of it, even where it is a link to /usr/sbin."""
    directory = prefix.absolute() / "sbin"
    if directory.is_symlink():
        target = os.readlink(directory)
        return prefix.absolute() / target.lstrip("/")
    return directory


def is_ours(path: Path) -> bool:
    """Was this file made by install_helpers?"""
    try:
        return SIGNATURE in path.read_text(errors="replace")
    except (FileNotFoundError, IsADirectoryError):
        return False
