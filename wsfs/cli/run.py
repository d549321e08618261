"""`wsfs run`: a notebook's whole turn around one command, as the first process of a container without systemd."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import click

from wsfs.cli import daemon, mounts, notebook
from wsfs.cli.output import kept, saved
from wsfs.cli.progress import Display
from wsfs.cli.store import store_options
from wsfs.config import MountSettings, load_settings
from wsfs.control import daemon_pid, error_with_code
from wsfs.errors import (
    DeadlineError,
    FencedError,
    MountBusyError,
    NotMountedError,
    SyncFailedError,
    UsageError,
    WsfsError,
)
from wsfs.values import parse_duration

if TYPE_CHECKING:
    import trio

    from wsfs.cli.supervise import Supervisor, User

GRACE: Final = "30s"
MARGIN_SECONDS: Final = 0.5
"""Between the end of a save and that of the grace time."""
LEFTOVERS_SECONDS: Final = 5.0
"""For what the command has left running, at most."""
DETACH_SECONDS: Final = 2.0


@click.command(short_help="Mount, run a command, save: the entry point of a container.")
@click.argument("url")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--workspace", metavar="DIR", default=notebook.WORKSPACE, show_default=True, help="Where it is mounted.")
@click.option(
    "--data", "scratch", metavar="DIR", default=notebook.DATA, show_default=True, help="Where the tmpfs goes."
)
@click.option("--no-data", is_flag=True, help="Without a tmpfs.")
@click.option("--data-size", default="50%", show_default=True, help="Its limit: a share of memory, or as in 8G.")
@click.option("--grace", metavar="TIME", default=GRACE, show_default=True, help="From a signal to SIGKILL.")
@click.option("--user", metavar="USER", help="Run the command as this user, with the user's HOME.")
@click.option("-o", "options", metavar="OPT[,OPT...]", multiple=True, help="Mount options of the workspace.")
@store_options
def run(
    url: str,
    command: Sequence[str],
    workspace: str,
    scratch: str,
    no_data: bool,
    data_size: str,
    grace: str,
    user: str | None,
    options: Sequence[str],
    **where: Any,
) -> int:
    """Mount a tmpfs on /data and the workspace at URL, run COMMAND in it, and save everything at its end.

    This is for containers, which have no systemd: it may be the first process. It forwards signals, reaps what
    others leave, and logs to stderr. Write -- before COMMAND.

    SIGTERM or SIGINT begins the stop: COMMAND gets the signal and up to half of the grace time, then SIGKILL. The
    rest is for the save. Give the same time as the container's own (docker stop --time, Kubernetes
    terminationGracePeriodSeconds), or a little less. When COMMAND ends by itself the save takes as long as it
    needs, until such a signal comes. When the mount is lost, COMMAND is ended as well.

    The exit code is that of COMMAND when everything is saved: 128 and the number of a signal that killed it.

    \b
    Examples:
      wsfs run s3://bucket/ada -- jupyter lab --ip=0.0.0.0
      wsfs run s3://bucket/ada --user jovyan --grace 2m -- jupyter lab --ip=0.0.0.0
      wsfs run file:///srv/ada --workspace /home/ada --no-data -- python job.py

    \b
    Exit codes: 3 the grace time was up, 50 not everything could be saved (both keep it in the
    cache directory, and the next start with this cache saves it), 127 and 126 COMMAND is not
    there or cannot be run, 130 ended by a signal before COMMAND was started, and those of
    'wsfs mount'.
    """
    import trio

    from wsfs.cli.supervise import User

    seconds = parse_duration(grace)
    settings = load_settings(url, workspace, options=options, flags=where)
    someone = User.named(user) if user else None
    if someone is not None and someone.uid != os.geteuid():
        if os.geteuid() != 0:
            raise UsageError("--user needs root: leave it out, and the command runs as you")
        operator = someone.uid if settings.operator is None else settings.operator
        settings = replace(settings, allow_other=True, operator=operator)
    os.chdir("/")  # not to keep the directory busy on which the workspace is mounted
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the command is there, as Ctrl-C
    made = notebook.begin(settings, None if no_data else scratch, data_size, sys.stderr.fileno())
    try:
        return trio.run(_Turn(settings, command, someone, seconds).whole)
    finally:
        if made and (busy := notebook.take_away(scratch)):
            _say(str(busy))


def _say(message: str) -> None:
    click.echo(f"wsfs: {message}", err=True)


@dataclass(slots=True)
class _Turn:
    """From the mount that answers to the last save."""

    settings: MountSettings
    command: Sequence[str]
    user: User | None
    grace: float
    end: float | None = None
    """When the grace time is up, as trio counts; None before a signal."""

    async def whole(self) -> int:
        """Run the command and save; returns the command's exit code. Raises WsfsError if not all is saved."""
        import trio

        from wsfs.cli.supervise import Supervisor

        pid = daemon_pid(daemon.socket_of(self.settings.mountpoint))
        if pid is None:
            raise SyncFailedError(f"the daemon died before the command was started; {self._kept}")
        supervisor = Supervisor(pid)
        failed: WsfsError | None = None  # not raised in the nursery, which would wrap it
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.serve)
            nursery.start_soon(self._watch_clock, supervisor.stop_asked)
            supervisor.start(self.command, self.settings.mountpoint, self.user)
            await self._attend(supervisor)
            try:
                if supervisor.daemon_ended.is_set():
                    self._take_away(supervisor.daemon_code)
                else:
                    await self._save(supervisor)
            except WsfsError as exc:
                failed = exc
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return supervisor.code

    @property
    def _kept(self) -> str:
        return daemon.kept(self.settings.cache_dir)

    async def _watch_clock(self, stop_asked: trio.Event) -> None:
        import trio

        await stop_asked.wait()
        self.end = trio.current_time() + self.grace

    async def _attend(self, supervisor: Supervisor) -> None:
        """Return when no program runs any more but the daemon: the command has ended, or had to."""
        import trio

        await _first(supervisor.command_ended, supervisor.stop_asked, supervisor.daemon_ended)
        if not supervisor.command_ended.is_set():
            if supervisor.stop_asked.is_set():
                _say(f"stopping: the command has {self.grace / 2:g} s to end")
            else:
                where = self.settings.mountpoint
                _say(f"the workspace on {where} is gone, its daemon ended with {supervisor.daemon_code}: stopping")
                supervisor.tell(signal.SIGTERM)
            with trio.move_on_after(self.grace / 2):
                await supervisor.command_ended.wait()
        if supervisor.command_ended.is_set():
            await supervisor.end_all(min(LEFTOVERS_SECONDS, self.grace / 6))
        else:
            _say("the command has not ended in time: killed")
            await supervisor.end_all(0)
            with trio.move_on_after(1):
                await supervisor.command_ended.wait()

    def _take_away(self, code: int) -> None:
        """The daemon has ended first. Raises WsfsError unless that was somebody's unmount, with everything saved."""
        where = self.settings.mountpoint
        if mounts.find_wsfs(where) is not None and mounts.is_dead(where):
            mounts.unmount(where, "-l")
        if code == 0:
            return
        known = (DeadlineError.exit_code, FencedError.exit_code)
        raise error_with_code(
            code if code in known else SyncFailedError.exit_code,
            f"the daemon of {where} ended by itself (exit code {code}), and not everything is known to be saved;"
            f" {self._kept}",
        )

    async def _save(self, supervisor: Supervisor) -> None:
        """Save and unmount: by the end of the grace time once there is one, else for as long as it takes."""
        import trio

        try:
            if self.end is None:
                with trio.CancelScope() as patient:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_cancel_on, supervisor.stop_asked, patient)
                        outcome = await self._outcome(None)
                        nursery.cancel_scope.cancel()
                if not patient.cancelled_caught:
                    self._judge(outcome)
                    return
            assert self.end is not None
            left = max(self.end - trio.current_time() - MARGIN_SECONDS, 1.0)
            with trio.move_on_after(left + MARGIN_SECONDS):
                self._judge(await self._outcome(left))
                return
            # A daemon that hangs, or that was asked before to take its time. A kill loses nothing of what it has.
            supervisor.kill_daemon()
            raise DeadlineError(f"time is up, and not everything is known to be saved; {self._kept}")
        except NotMountedError:  # it has ended meanwhile
            await supervisor.daemon_ended.wait()
            self._take_away(supervisor.daemon_code)
        except SyncFailedError:
            where = self.settings.mountpoint
            if mounts.find_wsfs(where) is not None and not supervisor.daemon_ended.is_set():
                with trio.move_on_after(2 * DETACH_SECONDS):
                    await self._outcome(DETACH_SECONDS)  # else the daemon stays behind, and tries for ever
            raise

    async def _outcome(self, deadline: float | None) -> dict[str, Any] | WsfsError:
        """What a stop says, or how it fails; in a thread, because it blocks."""
        import trio

        def stop() -> dict[str, Any] | WsfsError:
            try:
                return daemon.stop(self.settings.mountpoint, deadline, Display("saving"))
            except WsfsError as exc:
                return exc

        return await trio.to_thread.run_sync(stop, abandon_on_cancel=True)

    def _judge(self, outcome: dict[str, Any] | WsfsError) -> None:
        """Say what is saved. Raises WsfsError if that is not everything."""
        where = self.settings.mountpoint
        if isinstance(outcome, dict):
            click.echo(saved(outcome), err=True)
            if kept(outcome):
                _say(f"{kept(outcome)}, in {self.settings.cache_dir}: gone if the container's disk is")
        elif isinstance(outcome, MountBusyError) and daemon.status(where).get("unsaved_files") == 0:
            _say(f"everything is saved, but {where} is in use by a program of another container")
        elif isinstance(outcome, MountBusyError):
            raise SyncFailedError(
                f"{where} is in use by a program of another container, and not all is saved: {outcome}"
            )
        else:
            raise outcome


async def _first(*events: trio.Event) -> None:
    """Wait until one of them is set."""
    import trio

    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(_cancel_on, event, nursery.cancel_scope)


async def _cancel_on(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
