"""What the first process of a container does for its programs: start one, forward signals, reap, end what is left."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from wsfs.errors import UsageError

STOPPING: Final = frozenset({signal.SIGTERM, signal.SIGINT})
"""Signals that mean: everything is to end."""
_OF_THE_TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGWINCH})
FORWARDED: Final = (*sorted(STOPPING | _OF_THE_TERMINAL), signal.SIGUSR1, signal.SIGUSR2)
NOT_FOUND: Final = 127
NOT_RUNNABLE: Final = 126
_PR_SET_CHILD_SUBREAPER: Final = 36
_POLL_SECONDS: Final = 0.05
_KILLED_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class User:
    """Who a program runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    environment: dict[str, str]

    @classmethod
    def named(cls, name: str) -> User:
        """By name or number. Raises UsageError."""
        try:
            entry = pwd.getpwuid(int(name)) if name.isascii() and name.isdigit() else pwd.getpwnam(name)
        except KeyError:
            raise UsageError(f"this machine has no user {name!r}: add one with useradd, or name another") from None
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        home = {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
        return cls(entry.pw_uid, entry.pw_gid, groups, home)


class Supervisor:
    """The processes below this one: the command, what it has started, and the daemon that must outlive all of them."""

    def __init__(self, daemon: int) -> None:
        self._daemon = daemon
        self._command = 0
        self.stop_asked = trio.Event()
        self.command_ended = trio.Event()
        self.daemon_ended = trio.Event()
        self.code: int = 0
        """Of the command, as a shell has it: 128 and the signal's number for one that was killed."""
        self.daemon_code: int = 0

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Forward signals and reap, until cancelled."""
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # for when we are not the first process
        with trio.open_signal_receiver(signal.SIGCHLD, *FORWARDED) as signals:
            task_status.started()
            self._reap()
            async for number in signals:
                if number == signal.SIGCHLD:
                    self._reap()
                else:
                    self._forward(number)

    def start(self, command: Sequence[str], directory: Path, user: User | None) -> None:
        """Start the command. One that cannot be started has ended, with a line on stderr and a shell's exit code."""
        try:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=os.environ | (user.environment if user else {}),
                user=user.uid if user else None,
                group=user.gid if user else None,
                extra_groups=user.groups if user else None,
            )
        except OSError as exc:
            print(f"wsfs: {command[0]} could not be started: {exc.strerror}", file=sys.stderr, flush=True)
            self.code = NOT_FOUND if isinstance(exc, FileNotFoundError) else NOT_RUNNABLE
            self.command_ended.set()
            return
        process.returncode = 0  # we reap it with all others; Popen would complain about that
        self._command = process.pid

    def tell(self, number: int) -> None:
        """Send a signal to the command."""
        if self._command and not self.command_ended.is_set():
            try:
                os.kill(self._command, number)
            except PermissionError:
                text = "wsfs: the command cannot be signalled: the container needs the capability KILL"
                print(text, file=sys.stderr, flush=True)

    def kill_daemon(self) -> None:
        """With SIGKILL; its mount is dead then."""
        if not self.daemon_ended.is_set():
            os.kill(self._daemon, signal.SIGKILL)

    async def end_all(self, patience: float) -> None:
        """End every process but the daemon: SIGTERM, and after `patience` seconds SIGKILL."""
        await self._signal_until_gone(signal.SIGTERM, patience)
        await self._signal_until_gone(signal.SIGKILL, _KILLED_SECONDS)
        self._reap()

    async def _signal_until_gone(self, number: int, seconds: float) -> None:
        told: set[int] = set()
        with trio.move_on_after(seconds):
            while left := set(self._others()):
                for pid in left - told:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
                told |= left
                await trio.sleep(_POLL_SECONDS)

    def _forward(self, number: int) -> None:
        if number in _OF_THE_TERMINAL and sys.stdin is not None and sys.stdin.isatty():
            return  # the terminal has told the command already
        if number in STOPPING:
            self.stop_asked.set()
        self.tell(number)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code
            if pid == self._command:
                self.code = code
                self.command_ended.set()
            elif pid == self._daemon:
                self.daemon_code = code
                self.daemon_ended.set()

    def _others(self) -> Iterator[int]:
        """All processes that are to end: everything in our container, or else what descends from us."""
        parents = dict(_processes())
        own = os.getpid()
        for pid in parents:
            line = [pid]
            while line[-1] in parents and parents[line[-1]] not in line:
                line.append(parents[line[-1]])
            if pid != own and self._daemon not in line and (own == 1 or own in line):
                yield pid


def _processes() -> Iterator[tuple[int, int]]:
    """Each living process that can be seen here, and its parent."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            state, parent = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state not in "ZX":
            yield int(entry), int(parent)
