"""Paths on a command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    import os


class _Unseen(click.Path):
    """click.Path, which completes paths in a shell, without its look at them: the daemon of a mount may hang, and then
    stat(2) does so, too, before any command could say what is wrong."""

    def convert(self, value: str | os.PathLike[str], _param: click.Parameter | None, _ctx: click.Context | None) -> Any:
        return self.coerce_path_result(value)


MOUNTPOINT: Final = _Unseen()
"""The type of an argument that may be, or be in, a mount."""
