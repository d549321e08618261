"""What options are set to, as people write it: sizes, times, users, places. Each function raises UsageError."""

from __future__ import annotations

import contextlib
import grp
import ipaddress
import os
import pwd
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from wsfs.errors import UsageError
from wsfs.text import split_url

ADDRESSING_STYLES = ("auto", "path", "virtual")
LOG_FORMATS = ("text", "json")
_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TIME_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE_MAX = 2**63 - 1
_DURATION_MAX = 10 * 365 * 86400.0
_ID_MAX = 2**32 - 2


class Retention(NamedTuple):
    """For how many seconds save points are kept: all of them, the newest of each hour, and of each day."""

    every: float = 3600.0
    hourly: float = 86400.0
    daily: float = 30 * 86400.0

    def __str__(self) -> str:
        return "/".join(map(span, self))


def span(seconds: float) -> str:
    """A time as `-o` reads it and people write it: in the largest unit that it is a whole number of."""
    for unit in ("d", "h", "m"):
        count = seconds / _TIME_UNITS[unit]
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{plain(seconds)}s"


def plain(number: float) -> str:
    """A number as `-o` reads it: without an exponent."""
    return f"{number:.9f}".rstrip("0").rstrip(".")


def _cut(text: str) -> str:
    """What the user wrote, for a message."""
    return repr(text) if len(text) <= 40 else repr(text[:40]) + "..."


def parse_size(text: str) -> int:
    """Bytes from "512", "64K", "10G" or "1.5GiB"; units are powers of 1024. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise UsageError(f"{text!r} is not a size: write it as 10G, 512M or a number of bytes")
    found = float(match[1]) * _SIZE_UNITS[match[2].upper()]
    if found > _SIZE_MAX:
        raise UsageError(f"{_cut(text)} is more than any disk has")
    return int(found)


def parse_duration(text: str) -> float:
    """Seconds from "30", "30s", "2m", "1h", "7d" or "500ms". Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"{text!r} is not a duration: write it as 30, 30s, 2m or 1h")
    found = float(match[1]) * _TIME_UNITS[match[2]]
    if found > _DURATION_MAX:
        raise UsageError(f"{_cut(text)} is too long a time: it may be ten years at most")
    return found


def parse_retention(text: str) -> Retention:
    """For how long all save points are kept, those of each hour, and those of each day: "1h/1d/30d".

    Raises UsageError.
    """
    parts = text.split("/")
    if len(parts) != len(Retention._fields):
        raise UsageError(
            f"{_cut(text)} is no retention: write for how long all save points are kept, the newest of each hour, and"
            " the newest of each day, as in 1h/1d/30d"
        )
    found = Retention(*map(parse_duration, parts))
    if found.every < Retention().every:
        raise UsageError(f"{_cut(text)} keeps all save points for too short a time: readers need an hour")
    return found


def parse_save_point(text: str) -> str:
    """A save point as the user names it: its number or name as it is, a time as ISO 8601 in UTC.

    A time without an offset is this machine's; "2h" is two hours ago. Raises UsageError.
    """
    if text.removeprefix("#").isdecimal():
        return text
    with contextlib.suppress(UsageError):
        return datetime.fromtimestamp(time.time() - parse_duration(text), UTC).isoformat()
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    if not text:
        raise UsageError("there is no save point with an empty name: 'wsfs log' lists all")
    return text


def parse_bool(text: str) -> bool:
    """True from "", "1", "true", "yes" or "on"; False from "0", "false", "no" or "off". Raises UsageError."""
    lowered = text.strip().lower()
    if lowered in ("", "1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise UsageError(f"{text!r} is neither yes nor no")


def parse_count(text: str) -> int:
    match = re.fullmatch(r"(\d{1,12})([kKM]?)", text.strip(), re.ASCII)
    if match is None or not int(match[1]):
        raise UsageError(f"{_cut(text)} is not a number of files: write it as 500000, 500k or 2M")
    return int(match[1]) * {"": 1, "K": 1000, "M": 1_000_000}[match[2].upper()]


def parse_quota(text: str) -> int:
    found = parse_size(text)
    if not found:
        raise UsageError("0 is not a quota: leave it out for none")
    return found


def parse_price(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", text.strip(), re.ASCII):
        raise UsageError(f"{_cut(text)} is not a price: write it as 0.01")
    return float(text)


def host_and_port(text: str) -> tuple[str, int]:
    """The parts of "127.0.0.1:9464" or "[::1]:9464". Raises UsageError unless it is a loopback address."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not colon or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or not 0 < int(port) < 1 << 16 or not local:
        raise UsageError(
            f"{_cut(text)} is neither a path nor a port of this machine alone: write /var/lib/metrics/wsfs.prom or"
            " 127.0.0.1:9464"
        )
    return host, int(port)


def parse_metrics(text: str) -> str:
    if not text.startswith("/"):
        host_and_port(text)
    return text


def parse_path(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(text)))  # not resolve(): links stay as the user wrote them


def parse_style(text: str) -> str:
    if text not in ADDRESSING_STYLES:
        raise UsageError(f"{text!r} is not an addressing style: use one of {', '.join(ADDRESSING_STYLES)}")
    return text


def parse_log_format(text: str) -> str:
    if text not in LOG_FORMATS:
        raise UsageError(f"{text!r} is not a format of the log: use one of {', '.join(LOG_FORMATS)}")
    return text


def parse_endpoint(text: str) -> str:
    parts = split_url(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{text!r} is not an endpoint: it must start with http:// or https://")
    return refuse_credentials(text).rstrip("/")


def parse_umask(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise UsageError(f"{text!r} is not a umask: write it in octal, as in 022")
    return int(text, 8) & 0o777


def parse_uid(text: str) -> int:
    if text.isascii() and text.isdigit():
        return _number(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError):
        raise UsageError(f"there is no user {text!r} on this machine") from None


def parse_gid(text: str) -> int:
    if text.isascii() and text.isdigit():
        return _number(text)
    try:
        return grp.getgrnam(text).gr_gid
    except (KeyError, ValueError):
        raise UsageError(f"there is no group {text!r} on this machine") from None


def _number(text: str) -> int:
    if len(text) > 10 or int(text) > _ID_MAX:
        raise UsageError(f"{_cut(text)} is not the number of a user or group: these are below {_ID_MAX + 1}")
    return int(text)


def refuse_credentials(url: str) -> str:
    """`url` itself, unless it carries a user or password: ps and logs would show them. Raises UsageError."""
    if "@" in split_url(url).netloc:
        raise UsageError(
            "credentials do not belong in a URL: everybody could read them in the process list; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use ~/.aws/credentials"
        )
    return url
