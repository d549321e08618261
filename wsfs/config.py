"""What a mount is told: its settings, where each may come from, and how `-o` options are read.

One precedence for everything: a flag or an `-o` option (a flag wins over `-o`), then the environment variable
`WSFS_<NAME>`, then the default. `OPTIONS` is the single table of wsfs's own options; `KERNEL_OPTIONS` and
`IGNORED_OPTIONS` hold the generic ones of mount(8). Nothing here touches the network or the mount.
"""

from __future__ import annotations

import difflib
import grp
import hashlib
import os
import pwd
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wsfs.errors import UsageError

DEFAULT_SAVE_INTERVAL = 30.0
ADDRESSING_STYLES = ("auto", "path", "virtual")


@dataclass(frozen=True, slots=True)
class MountSettings:
    """Everything that one mount needs to know. Paths are absolute."""

    url: str
    mountpoint: Path
    cache_dir: Path
    endpoint_url: str | None = None
    addressing_style: str = "auto"
    save_interval: float = DEFAULT_SAVE_INTERVAL  # seconds; 0 = save only at sync and stop
    read_only: bool = False
    allow_other: bool = False
    uid: int | None = None  # show every file as this owner's
    gid: int | None = None
    umask: int | None = None  # permission bits to hide
    xattr: bool = False  # off: the kernel then asks for no capability before each write, 50 times faster
    takeover: bool = False  # mount even though another host seems to hold the workspace
    cache_size: int | None = None  # bytes; None = as the cache disk allows
    stop_deadline: float | None = None  # seconds until a stop gives up and keeps the rest on the local disk
    store_timeout: float | None = None  # seconds for which a request is repeated before it has failed; None = 60
    kernel_options: tuple[str, ...] = ()  # handed to FUSE as they are: nosuid, noexec, noatime, ...
    foreground: bool = False


# --- values -------------------------------------------------------------------------------------------------

_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_TIME_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_size(text: str) -> int:
    """Bytes from "512", "64K", "10G" or "1.5GiB"; units are powers of 1024. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE | re.ASCII)
    if match is None:
        raise UsageError(f"{text!r} is not a size: write it as 10G, 512M or a number of bytes")
    return int(float(match[1]) * _SIZE_UNITS[match[2].upper()])


def parse_duration(text: str) -> float:
    """Seconds from "30", "30s", "2m", "1h" or "500ms". Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|)", text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"{text!r} is not a duration: write it as 30, 30s, 2m or 1h")
    return float(match[1]) * _TIME_UNITS[match[2]]


def parse_bool(text: str) -> bool:
    """True from "", "1", "true", "yes" or "on"; False from "0", "false", "no" or "off". Raises UsageError."""
    lowered = text.strip().lower()
    if lowered in ("", "1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off"):
        return False
    raise UsageError(f"{text!r} is neither yes nor no")


def _absolute(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(text)))  # not resolve(): links stay as the user wrote them


def _style(text: str) -> str:
    if text not in ADDRESSING_STYLES:
        raise UsageError(f"{text!r} is not an addressing style: use one of {', '.join(ADDRESSING_STYLES)}")
    return text


def _endpoint(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"{text!r} is not an endpoint: it must start with http:// or https://")
    return refuse_credentials(text).rstrip("/")


def _umask(text: str) -> int:
    if not re.fullmatch(r"[0-7]{1,4}", text):
        raise UsageError(f"{text!r} is not a umask: write it in octal, as in 022")
    return int(text, 8) & 0o777


def _uid(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise UsageError(f"there is no user {text!r} on this machine") from None


def _gid(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise UsageError(f"there is no group {text!r} on this machine") from None


def refuse_credentials(url: str) -> str:
    """`url` itself, unless it carries a user or password: ps and logs would show them. Raises UsageError."""
    if "@" in urlsplit(url).netloc:
        raise UsageError(
            "credentials do not belong in a URL: everybody could read them in the process list; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use ~/.aws/credentials"
        )
    return url


# --- options ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One of wsfs's own mount options, named like its field of MountSettings."""

    parse: Callable[[str], object]
    flag: bool = False  # takes no value
    in_environment: bool = True  # may also come from WSFS_<NAME>


# The environment applies to every mount of an image: what must be decided for one mount is kept out of it.
OPTIONS: Mapping[str, Option] = {
    "endpoint_url": Option(_endpoint),
    "addressing_style": Option(_style),
    "save_interval": Option(parse_duration),
    "cache_dir": Option(_absolute),
    "cache_size": Option(parse_size),
    "stop_deadline": Option(parse_duration),
    "store_timeout": Option(parse_duration),
    "xattr": Option(parse_bool, flag=True),
    "takeover": Option(parse_bool, flag=True, in_environment=False),
    "allow_other": Option(parse_bool, flag=True, in_environment=False),
    "uid": Option(_uid, in_environment=False),
    "gid": Option(_gid, in_environment=False),
    "umask": Option(_umask, in_environment=False),
}

# What libfuse hands to the kernel. A later one undoes an earlier opposite one, as mount(8) has it.
_OPPOSITES = (("suid", "nosuid"), ("dev", "nodev"), ("exec", "noexec"), ("sync", "async"))
KERNEL_OPTIONS = frozenset({name for pair in _OPPOSITES for name in pair} | {"dirsync", "noatime"})

# Meant for mount(8), fstab or systemd, or so already: relatime is what the kernel does by itself, wsfs
# keeps no access times that strictatime could make stricter, and default_permissions is always on.
_FOR_MOUNT = "defaults auto noauto user nouser users owner group nofail _netdev silent loud"
_SO_ALREADY = "relatime norelatime strictatime nostrictatime atime diratime nodiratime default_permissions"
IGNORED_OPTIONS = frozenset(_FOR_MOUNT.split() + _SO_ALREADY.split())
_IGNORED_WITH_VALUE = ("comment", "user", "uhelper", "helper", "fsname", "subtype")


def split_options(text: str) -> list[tuple[str, str | None]]:
    """The (name, value) pairs of an `-o` list; a comma in a value is written `\\,` or in double quotes."""
    items: list[tuple[str, str | None]] = []
    word, quoted, escaped = "", False, False
    for char in text + ",":
        if escaped:
            word, escaped = word + char, False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            name, equals, value = word.partition("=")
            if name.strip():
                items.append((name.strip(), value if equals else None))
            word = ""
        else:
            word += char
    if quoted or escaped:
        raise UsageError(f"the mount options {text!r} end inside a quotation")
    return items


def parse_mount_options(text: str, *, sloppy: bool = False) -> dict[str, Any]:
    """The fields of MountSettings that an `-o` list sets.

    Raises UsageError for an unknown option, naming it and those like it; `sloppy` (mount -s) skips it.
    """
    found: dict[str, Any] = {}
    kernel: list[str] = []
    for name, value in split_options(text):
        if name in ("ro", "rw"):
            found["read_only"] = name == "ro"
        elif name in KERNEL_OPTIONS:
            kernel = [other for other in kernel if not _opposed(name, other) and other != name] + [name]
        elif name in OPTIONS:
            found[name] = _value(name, value)
        elif name == "remount":
            raise UsageError("wsfs cannot change a mount in place: unmount it and mount it again with the new options")
        elif not (name in IGNORED_OPTIONS or _ignored_with_value(name) or sloppy):
            raise UsageError(f"unknown mount option {name!r}{_similar(name)}")
    if kernel:
        found["kernel_options"] = tuple(kernel)
    return found


def _value(name: str, value: str | None) -> object:
    option = OPTIONS[name]
    if value is None and not option.flag:
        raise UsageError(f"the mount option {name} needs a value: {name}=...")
    try:
        return option.parse(value or "")
    except UsageError as exc:
        raise UsageError(f"{name}: {exc}") from None


def _opposed(name: str, other: str) -> bool:
    return any({name, other} == set(pair) for pair in _OPPOSITES)


def _ignored_with_value(name: str) -> bool:
    return name in _IGNORED_WITH_VALUE or name.startswith(("x-", "X-"))


def _similar(name: str) -> str:
    known = sorted({"ro", "rw", *OPTIONS, *KERNEL_OPTIONS, *IGNORED_OPTIONS})
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if matches:
        return f": did you mean {' or '.join(matches)}?"
    return f": wsfs's own are {', '.join(OPTIONS)}"


def format_mount_options(settings: MountSettings) -> str:
    """The `-o` list where parse_mount_options reads these settings again, but for URL and mount point."""
    words = ["ro" if settings.read_only else "rw", *settings.kernel_options]
    defaults = {field.name: field.default for field in fields(MountSettings)}
    for name, option in OPTIONS.items():
        value = getattr(settings, name)
        if option.flag:
            words.append(f"{name}={'yes' if value else 'no'}")
        elif value is not None and value != defaults[name]:
            text = f"{value:o}" if name == "umask" else str(value)
            escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace(",", "\\,")
            words.append(f"{name}={escaped}")
    return ",".join(words)


# --- settings -----------------------------------------------------------------------------------------------


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields of MountSettings that WSFS_* variables set; an empty variable is one that is not set."""
    found: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        variable = f"WSFS_{name.upper()}"
        if option.in_environment and environ.get(variable):
            try:
                found[name] = option.parse(environ[variable])
            except UsageError as exc:
                raise UsageError(f"{variable}: {exc}") from None
    return found


def load_settings(
    url: str,
    mountpoint: str | os.PathLike[str],
    *,
    options: str | Iterable[str] = "",
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    sloppy: bool = False,
) -> MountSettings:
    """The settings of a mount: `flags` that are not None > `-o` options > the environment > defaults."""
    environ = os.environ if environ is None else environ
    if not url:
        raise UsageError("there is no workspace URL: give one such as s3://bucket/prefix or file:///dir")
    if not os.fspath(mountpoint):
        raise UsageError("there is no mount point: give the directory where the workspace shall appear")
    text = options if isinstance(options, str) else ",".join(options)
    merged = from_environment(environ) | parse_mount_options(text, sloppy=sloppy)
    merged |= {name: value for name, value in (flags or {}).items() if value is not None}
    if merged.get("cache_dir") is None:
        merged["cache_dir"] = default_cache_dir(url, merged.get("endpoint_url"), environ)
    return MountSettings(url=refuse_credentials(url), mountpoint=_absolute(os.fspath(mountpoint)), **merged)


def default_cache_dir(
    url: str,
    endpoint_url: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    root: bool | None = None,
) -> Path:
    """Where the cache of the workspace at `url` lies unless told otherwise: each workspace has its own."""
    environ = os.environ if environ is None else environ
    if root is None:
        root = os.geteuid() == 0
    if root:
        base = Path("/var/cache/wsfs")
    else:
        base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache") / "wsfs"
    identity = f"{url.rstrip('/')}\n{endpoint_url or ''}".encode()
    return base / hashlib.blake2b(identity, digest_size=8).hexdigest()
