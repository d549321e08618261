"""Starts the daemon in the background, and waits until its mount answers or it says why not.

The two talk over a pipe, one JSON object a line: {"status": text}, then {"ready": true} or {"error": sentence,
"exit_code": n}.
"""

from __future__ import annotations

import json
import os
import signal
import site
from pathlib import Path
from typing import IO, Any

import click

import wsfs
from wsfs import control
from wsfs.cli import detach
from wsfs.cli.serve import Reporter, no_cache_without_workspace, refuse_overlap, serve
from wsfs.config import MountSettings
from wsfs.errors import MountError
from wsfs.logfile import log_of, open_log
from wsfs.text import printable


def start(settings: MountSettings, output: int | None = None) -> None:
    """Start the daemon; returns when the mount answers. Raises what the daemon gives as its reason, or
    MountError. `output` is a descriptor for its log, by default that of a file in the cache directory. No other
    thread may run.
    """
    refuse_overlap(settings)
    with no_cache_without_workspace(settings.cache_dir):
        if output is not None:
            _start(settings, output, None)
            return
        log_path = log_of(settings.cache_dir)
        with open_log(log_path) as log_file:
            _start(settings, log_file.fileno(), log_path)


def _start(settings: MountSettings, output: int, log_path: Path | None) -> None:
    receiving, sending = os.pipe()
    with open(receiving, encoding="utf-8") as reports:
        try:
            daemon = detach.fork(
                lambda descriptor: serve(settings, Reporter(descriptor), log_path),
                title(settings),
                output=output,
                kept=sending,
            )
        finally:
            os.close(sending)
        try:
            outcome = _outcome(reports)
        except BaseException:
            os.kill(daemon, signal.SIGTERM)
            os.waitpid(daemon, 0)
            raise
    if outcome.get("ready"):
        return  # it has asked its own mount, and lives on without us
    code = os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1])
    if outcome:
        raise control.error_with_code(int(outcome["exit_code"]), str(outcome["error"]))
    end = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
    words = "its last line says why" if log_path is None else _last_words(log_path)
    raise MountError(f"the daemon ended before the mount answered ({end}): {words}")


def title(settings: MountSettings) -> str:
    """What ps shows of the daemon."""
    return printable(f"wsfs mount --foreground {settings.url} {settings.mountpoint}")


def source_root() -> str | None:
    """The directory that holds the package, unless it is installed in the ordinary way."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(wsfs.__file__)))
    return None if root in site.getsitepackages() else root


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
