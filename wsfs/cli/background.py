"""Starts the daemon as a process of its own, and waits until its mount answers or it says why not.
 The two talk over a pipe, one JSON object a line: {"status": text}, then {"ready": true} or {"error":
sentence, "exit_code": n}. The daemon is a fresh process rather than a fork: it holds nothing of its parent's
but that pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import site
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import click

import wsfs
from wsfs import control
from wsfs.cli import mounts
from wsfs.config import MountSettings, format_mount_options
from wsfs.errors import CacheError, MountError

LOG_LIMIT = 1 << 20
MODULE = "wsfs.cli.main"


class Reporter:
    """The daemon's end of the pipe; does nothing without one. A parent that is gone does not matter."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        if descriptor is not None:
            os.set_inheritable(descriptor, False)

    def status(self, message: str) -> None:
        """What the start is waiting for."""
        self._send({"status": message})

    def ready(self) -> None:
        """The mount answers; nothing is reported after this."""
        self._send({"ready": True}, last=True)

    def error(self, message: str, exit_code: int) -> None:
        """The start has failed; nothing is reported after this."""
        self._send({"error": message, "exit_code": exit_code}, last=True)

    def _send(self, message: dict[str, Any], *, last: bool = False) -> None:
        if self._descriptor is None:
            return
        with contextlib.suppress(OSError):
            os.write(self._descriptor, json.dumps(message).encode() + b"\n")
        if last:
            os.close(self._descriptor)
            self._descriptor = None


def start(settings: MountSettings) -> None:
    """Start the daemon; returns when the mount answers. Raises what the daemon gives as its reason, or
    MountError.
    """
    log_path = log_of(settings.cache_dir)
    with open_log(log_path) as log_file:
        receiving, sending = os.pipe()
        with open(receiving, encoding="utf-8") as reports:
            try:
                child = subprocess.Popen(
                    command(settings, sending),
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    pass_fds=(sending,),
                    start_new_session=True,
                    cwd="/",  # a daemon must not keep somebody's directory busy
                    env=environment(),
                )
            finally:
                os.close(sending)
            try:
                outcome = _outcome(reports)
            except KeyboardInterrupt:
                child.terminate()
                child.wait()
                raise
    if "error" in outcome:
        child.wait()
        raise control.error_with_code(int(outcome["exit_code"]), str(outcome["error"]))
    if not outcome:
        code = child.wait()
        raise MountError(f"the daemon ended before the mount answered (exit code {code}): {_last_words(log_path)}")
    if not mounts.answers(settings.mountpoint):
        raise MountError(f"the daemon is up, but {settings.mountpoint} does not answer: see {log_path}")
    child.returncode = 0  # it lives on without us; Popen would complain about that


def command(settings: MountSettings, ready_fd: int) -> list[str]:
    """The daemon's command line. Credentials are not in it: they travel in the environment or in files."""
    module = [sys.executable, "-P", "-m", MODULE]  # -P: code in / or in our directory must not be imported
    options = ["--foreground", "--ready-fd", str(ready_fd), "-o", format_mount_options(settings)]
    return [*module, "mount", *options, "--", settings.url, str(settings.mountpoint)]


def environment() -> dict[str, str]:
    """Ours, with the place of this very package in the path where Python would not find it by itself."""
    environ = dict(os.environ)
    root = source_root()
    if root is not None:
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environ.get("PYTHONPATH")]))
    return environ


def source_root() -> str | None:
    """The directory that holds the package, unless it is installed in the ordinary way."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(wsfs.__file__)))
    return None if root in site.getsitepackages() else root


def log_of(cache_dir: Path) -> Path:
    return cache_dir / "daemon.log"


def open_log(path: Path) -> IO[bytes]:
    """The log, for appending; private. One that has grown large makes way for a new one. Raises CacheError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size > LOG_LIMIT:
                path.replace(path.with_suffix(".log.1"))
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise CacheError(
            f"the cache directory {path.parent} cannot be used: {exc.strerror}; choose another with --cache-dir"
        ) from exc
    return open(descriptor, "ab")


def _outcome(reports: IO[str]) -> dict[str, Any]:
    """The daemon's last report, {} if it ended without one; the others are shown as they come."""
    for line in reports:
        report = json.loads(line)
        if "status" not in report:
            return dict(report)
        click.echo(f"wsfs: {report['status']}", err=True)
    return {}


def _last_words(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").split("\n")
    except OSError:
        lines = []
    words = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
    return f"{words} (log: {path})"
