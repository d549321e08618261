"""What a mount is told: its settings, where each may come from, and how `-o` options are read.

One precedence for everything: a flag or an `-o` option (a flag wins over `-o`), then the environment variable
`WSFS_<NAME>`, then the configuration files (`wsfs.configfile`), then the default. `OPTIONS` is the single table of
wsfs's own options; `KERNEL_OPTIONS` and `IGNORED_OPTIONS` hold the generic ones of mount(8). Nothing here touches the
network or the mount.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsfs import configfile
from wsfs.errors import UsageError
from wsfs.text import printable
from wsfs.values import (
    Retention,
    parse_bool,
    parse_count,
    parse_duration,
    parse_endpoint,
    parse_gid,
    parse_log_format,
    parse_metrics,
    parse_path,
    parse_price,
    parse_quota,
    parse_retention,
    parse_save_point,
    parse_size,
    parse_style,
    parse_uid,
    parse_umask,
    plain,
    refuse_credentials,
)

DEFAULT_SAVE_INTERVAL = 30.0
STORE_TIMEOUT = 60.0
"""Seconds for which a request is repeated. A read waits twice as long, for it may have to wait for others as well."""
_AT = "-at"


DEFAULT_RETENTION = Retention()
DEFAULT_PRICE = 0.01
DEFAULT_FREE_SIZE = 10 * 10**9
DEFAULT_FREE_TIME = 30 * 86400.0


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
    operator: int | None = None  # a user who may ask for the state and a save, beside root and whoever mounts
    at: str | None = None  # show this save point instead of the newest one
    follow: float | None = None  # seconds between looks for a newer commit, on a read-only mount
    xattr: bool = False  # off: the kernel then asks for no capability before each write, 50 times faster
    takeover: bool = False  # mount even though another host seems to hold the workspace
    cache_size: int | None = None  # bytes; None = half of the cache disk, whatever is free on it
    retain: Retention = DEFAULT_RETENTION  # for how long save points are kept
    log_format: str = "text"  # or json, for programs
    metrics: str | None = None  # for Prometheus: a loopback address as host:port, or an absolute path
    stop_deadline: float | None = None  # seconds until a stop gives up and keeps the rest on the local disk
    key_file: Path | None = None  # of an encrypted workspace
    kms_key: str | None = None  # likewise: the key with which a key management service unwraps its data key
    store_timeout: float | None = None  # seconds for which a request is repeated before it has failed; None = 60
    kernel_options: tuple[str, ...] = ()  # handed to FUSE as they are: nosuid, noexec, noatime, ...
    foreground: bool = False
    quota: int | None = None  # bytes that all files together may have; None = no limit
    quota_files: int | None = None  # likewise, how many of them
    price: float = DEFAULT_PRICE  # of a GB (10^9 bytes) a month, in whatever currency; for `wsfs usage`
    free_size: int = DEFAULT_FREE_SIZE  # bytes that cost nothing at first
    free_time: float = DEFAULT_FREE_TIME  # for so many seconds after the first stop


# --- options ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Option:
    """One of wsfs's own mount options, named like its field of MountSettings."""

    parse: Callable[[str], object]
    flag: bool = False  # takes no value
    in_environment: bool = True  # may also come from WSFS_<NAME>


# The environment applies to every mount of an image: what must be decided for one mount is kept out of it.
OPTIONS: Mapping[str, Option] = {
    "endpoint_url": Option(parse_endpoint),
    "addressing_style": Option(parse_style),
    "save_interval": Option(parse_duration),
    "cache_dir": Option(parse_path),
    "cache_size": Option(parse_size),
    "retain": Option(parse_retention),
    "follow": Option(parse_duration, in_environment=False),
    "at": Option(parse_save_point, in_environment=False),
    "metrics": Option(parse_metrics),
    "stop_deadline": Option(parse_duration),
    "store_timeout": Option(parse_duration),
    "log_format": Option(parse_log_format),
    "key_file": Option(parse_path),
    "kms_key": Option(str),
    "xattr": Option(parse_bool, flag=True),
    "takeover": Option(parse_bool, flag=True, in_environment=False),
    "allow_other": Option(parse_bool, flag=True, in_environment=False),
    "uid": Option(parse_uid, in_environment=False),
    "gid": Option(parse_gid, in_environment=False),
    "umask": Option(parse_umask, in_environment=False),
    "operator": Option(parse_uid, in_environment=False),
    "quota": Option(parse_quota),
    "quota_files": Option(parse_count),
    "price": Option(parse_price),
    "free_size": Option(parse_size),
    "free_time": Option(parse_duration),
}

_ALIASES = {"files": "quota_files"}
"""So that -o quota=100G,files=2M reads as it should."""

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
    for word, value in split_options(text):
        name = _ALIASES.get(word, word)
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


def _similar(name: str, known: Iterable[str] = ("ro", "rw", *OPTIONS, *KERNEL_OPTIONS, *IGNORED_OPTIONS)) -> str:
    import difflib  # which no start should wait for

    matches = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    if matches:
        return f": did you mean {' or '.join(matches)}?"
    return f": wsfs's own are {', '.join(OPTIONS)}"


def as_option(name: str, value: object) -> str:
    """A value as `-o` and the environment have it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return plain(value)
    return f"{value:03o}" if name == "umask" else str(value)


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


# What belongs to one workspace, but says nothing about one mount: in a file only in the section of a URL.
_OF_A_WORKSPACE = frozenset({"allow_other", "uid", "gid", "umask"})


def from_files(url: str, environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    """The fields of MountSettings that configuration files set for the workspace at `url`, each with where it stands.

    Raises UsageError for what is wrong in them, naming file and key, whether it is about this workspace or not.
    """
    found: dict[str, tuple[Any, str]] = {}
    for entry in configfile.read(environ):
        where = f"{entry}{printable(entry.key)}"
        option = OPTIONS.get(entry.key)
        if option is None:
            raise UsageError(f"{entry}unknown key {entry.key!r}{_similar(entry.key, OPTIONS)}")
        if not option.in_environment and entry.key not in _OF_A_WORKSPACE:
            raise UsageError(f"{where} is for one mount only: give it to the mount, with -o")
        if not option.in_environment and not entry.section:
            raise UsageError(f'{where} is for one workspace: put it into a section such as ["s3://bucket/ada"]')
        try:
            value = option.parse(_text(entry.key, entry.value, flag=option.flag))
        except UsageError as exc:
            raise UsageError(f"{where}: {exc}") from None
        if entry.applies_to(url):
            found[entry.key] = value, f"{entry.file}" + (f' ["{entry.section}"]' if entry.section else "")
    return found


def _text(name: str, value: object, *, flag: bool) -> str:
    """A value of a configuration file as `-o` has it. Raises UsageError if it has the wrong type."""
    if flag:
        if isinstance(value, bool):
            return as_option(name, value)
        raise UsageError("it must be true or false")
    # 022 is no number in TOML, and 22 would be another one.
    if isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool) and name != "umask"):
        return str(value)
    raise UsageError('it must be in quotes, as in "10G"')


DEFAULT, ENVIRONMENT, OPTION, FLAG = "default", "environment", "-o", "flag"


def merged_settings(
    url: str,
    environ: Mapping[str, str],
    options: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, str]]:
    """The fields of MountSettings that something sets for the workspace at `url`, each with where it comes from.

    This is the precedence: `flags` that are not None > `options` > the environment > files. Raises UsageError.
    """
    merged = from_files(url, environ)
    for name, value in from_environment(environ).items():
        merged[name] = value, f"{ENVIRONMENT} WSFS_{name.upper()}"
    merged |= {name: (value, OPTION) for name, value in (options or {}).items()}
    return merged | {name: (value, FLAG) for name, value in (flags or {}).items() if value is not None}


def load_settings(
    url: str,
    mountpoint: str | os.PathLike[str],
    *,
    options: str | Iterable[str] = "",
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    sloppy: bool = False,
) -> MountSettings:
    """The settings of a mount: `flags` that are not None > `-o` options > the environment > files > defaults."""
    environ = os.environ if environ is None else environ
    if not url:
        raise UsageError("there is no workspace URL: give one such as s3://bucket/prefix or file:///dir")
    if not os.fspath(mountpoint):
        raise UsageError("there is no mount point: give the directory where the workspace shall appear")
    text = options if isinstance(options, str) else ",".join(options)
    found = merged_settings(url, environ, parse_mount_options(text, sloppy=sloppy), flags)
    merged = {name: value for name, (value, _) in found.items()}
    where = parse_path(os.fspath(mountpoint))
    if merged.get("at") is not None:
        if merged.get("follow") is not None:
            raise UsageError("at shows one save point, and follow the newest one: leave one of them out")
        merged["read_only"] = True
    if merged.get("follow") is not None and not merged.get("read_only"):
        raise UsageError("follow is for read-only mounts: add ro, or leave it out")
    if merged.get("cache_dir") is None:
        reader = where if merged.get("read_only") else None
        merged["cache_dir"] = default_cache_dir(url, merged.get("endpoint_url"), environ, reader=reader)
    if merged.get("at") is not None and not merged["cache_dir"].name.endswith(_AT):
        # Not the cache of a mount that shows another commit: it would be emptied.
        merged["cache_dir"] = merged["cache_dir"].with_name(merged["cache_dir"].name + _AT)
    return MountSettings(url=refuse_credentials(url), mountpoint=where, **merged)


def _one_spelling(url: str) -> str:
    """A URL without what makes no difference: slashes at the end, and in a path of this machine `//` and `/../`."""
    if url.startswith("file:///"):
        return "file:///" + os.path.normpath(url.removeprefix("file://")).lstrip("/")
    return url.rstrip("/")


def default_cache_dir(
    url: str,
    endpoint_url: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    root: bool | None = None,
    reader: Path | None = None,
) -> Path:
    """Where the cache of the workspace at `url` lies unless told otherwise: each workspace has its own, and each
    read-only mount, at the mount point `reader`, beside it."""
    environ = os.environ if environ is None else environ
    if root is None:
        root = os.geteuid() == 0
    if root:
        base = Path("/var/cache/wsfs")
    else:
        base = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache") / "wsfs"
    identity = os.fsencode(f"{_one_spelling(url)}\n{endpoint_url or ''}")
    name = hashlib.blake2b(identity, digest_size=8).hexdigest()
    if reader is not None:
        name += f"-ro-{hashlib.blake2b(os.fsencode(reader), digest_size=4).hexdigest()}"
    return base / name
