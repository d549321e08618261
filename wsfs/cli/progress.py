"""How far a save is, while a command waits for it: a bar on a terminal, else a line now and then. On stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import click

from wsfs.beside import Ended, beside
from wsfs.cli.output import duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wsfs.sync.progress import Progress as Transfer

BAR_SECONDS: Final = 0.25
LINE_SECONDS: Final = 5.0
WORTH_SECONDS: Final = 1.0
"""A forecast after less time than this is a guess."""


class Display:
    """Call it with each account of the daemon (docs/JSON.md). Nothing is shown before the first one, which comes after
    `pause` seconds: what is quick needs no bar."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self.pause = BAR_SECONDS if self._terminal else LINE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, account: Mapping[str, Any]) -> None:
        if self._terminal:
            self._draw(account)
        else:
            click.echo(f"wsfs: {self._what}: {line(account)}", err=True)

    def _draw(self, account: Mapping[str, Any]) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
            # It goes when all is done: what stays is the sentence.
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what.capitalize(), told="")
            self._bar.start()
        assert self._task is not None
        done, total = share(account)
        self._bar.update(self._task, completed=done, total=total or None, told=line(account))


@contextlib.contextmanager
def shown(what: str, progress: Transfer) -> Iterator[None]:
    """Show how far something in this process is, once it is known how much there is."""
    with Display(what) as display:

        def show(ended: Ended) -> None:
            while not ended(display.pause):
                if progress.files:
                    display(progress.account())

        with beside("wsfs-progress", show):
            yield


def share(account: Mapping[str, Any]) -> tuple[int, int]:
    """How much is done, and of how much: bytes, or files where these have none."""
    if account.get("totalBytes"):
        return account["completedBytes"], account["totalBytes"]
    return account.get("completed", 0), account.get("total", 0)


def line(account: Mapping[str, Any]) -> str:
    """Files, bytes, rate and the time that is left, in words."""
    if not account.get("total"):
        return "looking at what has changed"
    words = [
        f"{account['completed']:,} of {account['total']:,} files",
        f"{size(account['completedBytes'])} of {size(account['totalBytes'])}",
    ]
    done, total = share(account)
    seconds = account["seconds"]
    if done and seconds >= WORTH_SECONDS:
        if account["totalBytes"]:
            words.append(f"{size(done / seconds)}/s")
        words.append(f"about {duration((total - done) * seconds / done)} left")
    if account.get("skipped"):
        words.append(f"{account['skipped']:,} files left out for now")
    return ", ".join(words)
