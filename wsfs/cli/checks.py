"""What `wsfs doctor` looks at on this machine: FUSE, helpers, kernel, configuration, cache disk, and a mount."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from wsfs.aside import aside_in, command
from wsfs.cli import daemon, install, mounts
from wsfs.cli.output import duration, size
from wsfs.config import MountSettings
from wsfs.control import sentence
from wsfs.errors import WsfsError
from wsfs.text import one_line

Level = Literal["ok", "warning", "error"]

OLDEST_KERNEL: Final = (5, 10)
"""Nobody has run wsfs on an older one."""

NOSWAP_KERNEL: Final = (6, 4)
LITTLE_SPACE: Final = 1 << 30
POD_SECONDS: Final = 30.0
"""Kubernetes' own terminationGracePeriodSeconds."""

SHORT_STOP_SECONDS: Final = 30.0

_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_NETWORK: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "lustre"})
_SPAN: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where it is well."""

    check: str
    level: Level
    text: str
    remedy: str = ""


def failed(check: str, exc: WsfsError, remedy: str) -> Finding:
    """A finding of an error, whose sentence says most of what to do."""
    return Finding(check, "error", sentence(exc), remedy)


# --- the machine ----------------------------------------------------------------------------------------------


def machine() -> Iterator[Finding]:
    """What every mount needs."""
    yield _device()
    yield _programs()
    yield _binding()
    yield kernel(os.uname().release)
    yield helpers(Path("/"))
    if os.geteuid() != 0 and not mounts.others_allowed():
        yield Finding(
            "allow_other",
            "warning",
            "this user cannot let others into a mount",
            "if that is wanted: add a line 'user_allow_other' to /etc/fuse.conf",
        )


def _device() -> Finding:
    if not os.path.exists("/dev/fuse"):
        return Finding(
            "fuse", "error", "there is no /dev/fuse", "load the module fuse, or give the container the device /dev/fuse"
        )
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return Finding(
            "fuse",
            "error",
            f"/dev/fuse cannot be opened: {exc.strerror}",
            "chmod 666 it, as most systems have it; a container must be allowed the device, and SYS_ADMIN to mount",
        )
    return Finding("fuse", "ok", "/dev/fuse can be opened")


def _programs() -> Finding:
    needed = ["mount", "umount"] if os.geteuid() == 0 else ["fusermount3"]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        return Finding(
            "programs",
            "error",
            f"{' and '.join(missing)} cannot be found",
            "install the packages fuse3 and util-linux, and have /usr/bin in PATH",
        )
    return Finding("programs", "ok", f"{' and '.join(needed)} can be found")


def _binding() -> Finding:
    """In a process of its own: a library that does not fit may crash it."""
    command = [sys.executable, "-P", "-c", "import pyfuse3; print(pyfuse3.__version__)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(
            "libfuse", "error", f"pyfuse3 cannot be loaded: {why}", "install the package libfuse3-3, then pyfuse3 again"
        )
    return Finding("libfuse", "ok", f"pyfuse3 {done.stdout.strip()} can be loaded")


def kernel(release: str) -> Finding:
    """A kernel, by what `uname -r` says."""
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        return Finding(
            "kernel", "warning", f"wsfs was never tried on a kernel before {oldest}: {release}", "use a newer kernel"
        )
    if version < NOSWAP_KERNEL:
        return Finding(
            "kernel", "warning", f"{release}: /data may be swapped to disk", "use 6.4 or later if that matters"
        )
    return Finding("kernel", "ok", release)


def helpers(prefix: Path) -> Finding:
    """The scripts through which mount(8) and umount(8) find wsfs."""
    directory = install.sbin(prefix)
    remedy = "run 'wsfs install-helpers' as root"
    missing = [name for name in install.HELPERS if not install.is_ours(directory / name)]
    if missing:
        text = f"{directory} has no {', '.join(missing)}: plain umount does not wait for the last save"
        return Finding("helpers", "warning", text, remedy)
    for name in install.HELPERS:
        found = re.search(r"^exec '?([^' ]+)", (directory / name).read_text(errors="replace"), re.MULTILINE)
        if found is None or not os.access(found[1], os.X_OK):
            text = f"{directory / name} calls a Python that is not there any more"
            return Finding("helpers", "error", text, f"{remedy} again")
    return Finding("helpers", "ok", f"{directory} has them, plain umount waits for the last save")


# --- the cache ------------------------------------------------------------------------------------------------


def cache(settings: MountSettings) -> Iterator[Finding]:
    """The disk on which unsaved data waits."""
    where = settings.cache_dir
    there = next(path for path in (where, *where.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding("cache", "error", f"{there} cannot be written to", "choose another with cache_dir=, or chown it")
        return
    mount = mounts.containing(os.path.realpath(there))
    yield cache_kind(where, "unknown" if mount is None else mount.fstype)
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    if free < LITTLE_SPACE:
        text = f"{size(free)} are free in {where}: programs have to wait while that is saved"
        yield Finding("space", "warning", text, "free some, or choose a larger disk with cache_dir=")
    else:
        yield Finding("space", "ok", f"{size(free)} are free in {where}")


def set_aside(cache_dir: Path, url: str) -> Iterator[Finding]:
    """What was set aside in a cache directory, as long as it is there."""
    for path in aside_in(cache_dir):
        remedy = f"'{command(path, url)}' copies the files out of it; remove it when nothing in it is needed"
        yield Finding("set aside", "warning", f"what was never saved was set aside in {path}", remedy)


def cache_kind(where: Path, kind: str) -> Finding:
    """A cache directory, by the type of its file system."""
    remedy = "choose a directory on a local disk with cache_dir="
    if kind in _MEMORY:
        text = f"{where} is in memory ({kind}): what is not saved is lost with the machine, and it takes memory"
        return Finding("cache", "warning", text, remedy)
    if kind == "overlay":
        text = f"{where} is in the container's own layer: what is not saved is lost when the container is removed"
        return Finding("cache", "warning", text, "mount a volume there")
    if kind in _NETWORK or kind.startswith("fuse"):
        return Finding("cache", "warning", f"{where} is not on a local disk ({kind}): all gets slow", remedy)
    return Finding("cache", "ok", f"{where} is on {kind}")


# --- a mount --------------------------------------------------------------------------------------------------


def mounted(mountpoint: str) -> Iterator[Finding]:
    """A mount: how it is, and whether a stop has the time that it needs."""
    try:
        state = daemon.status(mountpoint)
    except WsfsError as exc:
        yield failed("mount", exc, "mount it: wsfs mount URL MOUNTPOINT")
        return
    name = f"{mountpoint} is {state['state']}"
    if state["state"] in ("ERROR", "SYNC_FAILED"):
        reason = one_line(str(state.get("reason") or "for an unknown reason"))
        remedy = "the log in the cache directory says more"
        if "unsaved_files" in state:  # the daemon itself has answered
            remedy = f"'wsfs unsaved {mountpoint}' lists what is not saved; {remedy}"
        elif reason.startswith(daemon.DIED) or mounts.find_wsfs(mountpoint) is None:
            where = f" --cache-dir {state['cache_dir']}" if state.get("cache_dir") else ""
            remedy = f"mount it again: wsfs mount {state.get('url') or 'URL'} {mountpoint}{where}; {remedy}"
        yield Finding("mount", "error", f"{name}: {reason}", remedy)
    else:
        yield Finding("mount", "ok", name)
    if state.get("cache_dir"):
        yield from set_aside(Path(state["cache_dir"]), str(state.get("url") or "URL"))
    if state.get("stop_seconds") is not None:
        yield grace(state, _unit_timeout(state.get("pid")), pod="KUBERNETES_SERVICE_HOST" in os.environ)


def left(state: dict[str, Any]) -> Finding:
    """How a workspace was left, as its store has it."""
    name = f"{state['url']} is {state['state']}"
    if state["state"] not in ("ERROR", "SYNC_FAILED"):
        return Finding("state", "ok", name)
    remedy = "mount it where that cache directory is: this saves what is missing"
    return Finding("state", "warning", f"{name}: {state['reason']}", remedy)


def grace(state: dict[str, Any], limit: float | None, *, pod: bool) -> Finding:
    """The time that a stop needs, beside what it is given: by systemd, in seconds, or by a pod."""
    needed = state["stop_seconds"]
    text = f"a stop takes about {duration(needed)} now, for {size(state.get('unsaved_bytes') or 0)}"
    if limit is not None and limit < SHORT_STOP_SECONDS:
        return Finding(
            "grace",
            "warning",
            f"{text}; systemd ends it after {duration(limit)} without progress",
            "set TimeoutStopSec=5min in the unit, as systemd/wsfs@.service has it",
        )
    if pod and needed > POD_SECONDS * 0.8:
        wanted = 30 * (1 + int(needed * 2 // 30))
        return Finding(
            "grace",
            "warning",
            f"{text}; a pod has {POD_SECONDS:.0f} s unless it is told otherwise, which cannot be seen in it",
            f"set terminationGracePeriodSeconds to {wanted} or more, or save more often with save_interval=",
        )
    return Finding("grace", "ok", text)


def _unit_timeout(pid: object) -> float | None:
    """Seconds that systemd waits for the end of the unit of a process; None if it is in none, or has no limit."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        unit = re.search(r"/([^/\n]+\.service)$", groups, re.MULTILINE)
        if unit is None or "wsfs" not in unit[1]:
            return None
        command = ["systemctl", "show", "--property=TimeoutStopUSec", "--value", "--", unit[1]]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return systemd_span(done.stdout)


def systemd_span(text: str) -> float | None:
    """Seconds of "1min 30s" as systemctl prints it; None for "infinity", and what is no time."""
    parts = [re.fullmatch(r"(\d+)([a-z]+)", word) for word in text.split()]
    if not parts or not all(part is not None and part[2] in _SPAN for part in parts):
        return None
    return sum(int(part[1]) * _SPAN[part[2]] for part in parts if part is not None)
