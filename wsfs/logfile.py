"""Where the log goes: to stderr, as systemd and containers want it, or, of a background mount, to a file in its cache
directory, with a few older ones beside it, so large and no larger."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any, Final

from wsfs.disk import is_full
from wsfs.errors import CacheError, CacheFullError
from wsfs.log import Json, Prioritised, Text

LIMIT: Final = 1 << 20
OLDER: Final = 3
"""How many files beside the newest one: daemon.log.1 is the one before it."""


def set_up(shape: str, about: Mapping[str, str], *, file: Path | None = None) -> None:
    """Log to stderr, or to a file that makes way for a new one when it has grown large. `shape` is text or
    json; `about` are the fields that say which mount this is. Raises CacheError."""
    debug = os.environ.get("WSFS_DEBUG") == "1"
    journal = file is None and _is_journal(sys.stderr.fileno())
    formatter: logging.Formatter = Json(about) if shape == "json" else Text(stamped=not journal)
    if file is None:
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        handler = LogFile(file)
    handler.setFormatter(Prioritised(formatter) if journal else formatter)
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if debug else logging.INFO)
    logging.raiseExceptions = False  # a full disk is no reason to fill it with complaints
    if debug:  # the SDK logs whole requests, with their signatures
        for name in ("botocore", "urllib3"):
            logging.getLogger(name).setLevel(logging.INFO)


def _is_journal(descriptor: int) -> bool:
    """Whether it leads to the journal: a daemon may have inherited the variable, and write elsewhere."""
    status = os.fstat(descriptor)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def log_of(cache_dir: Path) -> Path:
    """Where a background mount logs."""
    return cache_dir / "daemon.log"


def no_room(cache_dir: Path) -> str:
    """What to tell when nothing can be mounted because the cache disk is full."""
    return (
        f"the cache disk is full, so nothing was mounted: free some space for {cache_dir}, or choose another directory"
        " with --cache-dir"
    )


def open_log(path: Path) -> IO[str]:
    """The log, for appending; private. Raises CacheError."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        if is_full(exc):
            raise CacheFullError(no_room(path.parent)) from exc
        raise CacheError(
            f"the cache directory {path.parent} cannot be used: {exc.strerror}; choose another with --cache-dir"
        ) from exc
    return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")


class LogFile(RotatingFileHandler):
    """Takes stdout and stderr along: libraries write there, and Python does when all else fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=LIMIT, backupCount=OLDER, encoding="utf-8")

    def _open(self) -> Any:
        stream = open_log(Path(self.baseFilename))
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
        return stream
