"""What was set aside in a cache directory, for it does not fit the newest commit: where it is, and what reads it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

KINDS: Final = ("unsaved", "damaged")
"""How the names begin: changes that were never saved, and an index that a crash has torn, with what belongs to it."""

_NAMED: Final = 5


def aside_in(cache: Path) -> list[Path]:
    """The directories that were set aside in a cache directory, by kind and then the oldest first."""
    return [path for kind in KINDS for path in sorted(cache.glob(f"{kind}-*"))]


def command(aside: Path, url: str) -> str:
    """What copies the files out of it, also while the cache directory is in use."""
    return f"wsfs export --unsaved DIR --cache-dir {shlex.quote(str(aside))} --url {url}"


def about(found: list[Path], url: str) -> str:
    """A sentence for the user; "" if there is nothing."""
    if not found:
        return ""
    names = ", ".join(map(str, found[:_NAMED])) + (f" and {len(found) - _NAMED} more" if len(found) > _NAMED else "")
    which = "it" if len(found) == 1 else "the first one"
    return (
        f"what was never saved was set aside in {names}: '{command(found[0], url)}' copies the files out of {which};"
        " remove what is not needed any more"
    )
