"""What the daemon has to say: events with named fields, as text for people or as JSON, each on one line.

    log = get_log(__name__)
    log.warning("cache not shrunk", path=directory, error=exc)

The event is a sentence that does not change, so that it can be searched for and counted. `error` may be an exception:
what it says, its errno, and what its class knows as a remedy become fields. No field ever holds what is in a file, nor
a credential. docs/LOG.md lists the fields.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from wsfs.errors import WsfsError
from wsfs.text import one_line, printable

REPORT: Final = "report this with the lines around it: it is a mistake in wsfs"
"""The remedy for what should not happen."""

_OF_LOGGING: Final = frozenset({"exc_info", "stack_info", "stacklevel"})
_PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.NOTSET, 7))
"""What syslog and the journal call the levels: sd-daemon(3)."""


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose methods take fields as keywords."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """See logging.LoggerAdapter."""
        fields = {name: value for name, value in kwargs.items() if name not in _OF_LOGGING}
        rest = {name: value for name, value in kwargs.items() if name in _OF_LOGGING}
        return msg, rest | {"extra": {"fields": _explained(fields)}}


def get_log(name: str) -> Log:
    """The log of a module."""
    return Log(logging.getLogger(name), {})


def _explained(fields: dict[str, Any]) -> dict[str, Any]:
    """With what an exception among the fields knows: in words, its errno, and a remedy."""
    error = fields.get("error")
    if not isinstance(error, BaseException):
        return fields
    found = fields | {"error": one_line(str(error)) or type(error).__name__}
    if isinstance(error, OSError) and error.errno:
        found["error"] = os.strerror(error.errno)
        found.setdefault("errno", errno.errorcode.get(error.errno, error.errno))
    if isinstance(error, WsfsError) and error.remedy:
        found.setdefault("remedy", error.remedy)
    return found


# --- records as lines -----------------------------------------------------------------------------------------------


def stamp(created: float) -> str:
    """A time in UTC, to the millisecond."""
    whole, milliseconds = divmod(int(created * 1000), 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{milliseconds:03d}Z"


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What `Log` has noted; nothing for a record of a library."""
    return getattr(record, "fields", {})


class Text(logging.Formatter):
    """`level=WARNING event="cache not shrunk" path=/var/cache/ada`, after a time unless whoever reads it has that.

    A traceback follows on lines of its own.
    """

    def __init__(self, *, stamped: bool) -> None:
        super().__init__()
        self._stamped = stamped

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        named = {"level": record.levelname, "event": record.getMessage(), **fields_of(record), "logger": record.name}
        words = [f"{name}={_quoted(value)}" for name, value in named.items() if value is not None]
        line = " ".join([stamp(record.created), *words] if self._stamped else words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Json(logging.Formatter):
    """One object a line, a traceback included. `about` are fields that every record has."""

    def __init__(self, about: Mapping[str, str]) -> None:
        super().__init__()
        self._about = about

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        named = {
            "ts": stamp(record.created),
            "level": record.levelname,
            "event": record.getMessage(),
            **self._about,
            **fields_of(record),
            "logger": record.name,
        }
        if record.exc_info:
            named["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in named.items() if value is not None}, default=str)


class Prioritised(logging.Formatter):
    """For the journal: each line begins with its priority, which the journal takes away again."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).split("\n"))


def _quoted(value: object) -> str:
    text = printable(str(value))
    if text and not any(char in ' "=\\' for char in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
