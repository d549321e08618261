"""What the bench runs its work on: a native directory, wsfs, peers, and any other command that mounts a bucket.

Each has a place of its own under the bucket, a mount point and a cache directory, and can be made fresh, stopped and
started again, cold or warm. Nothing else differs between them: the work sees only `path`.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from bench.store import BUCKET, S3, Unable

_RCLONE: Final = "127.0.0.1:5577"
PATIENCE: Final = 900.0
"""How many seconds a mount or a stop may take."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a system's daemons: bytes written to disk, peak and present memory in bytes, processor seconds."""

    written: int
    peak: int
    resident: int
    processor: float


class System:
    """A place to work in. `path` is the directory for the work, on a mount or not."""

    name: ClassVar[str]
    remote = True
    """Whether there is a store behind it."""
    copy_flag = "-a"
    unmount_waits = False
    """Whether all is saved when its unmount returns; else it is when the daemons have ended."""

    def __init__(self, work: Path, s3: S3) -> None:
        self.s3 = s3
        self.base = work / self.name
        self.path = self.base / "mount"
        self.cache = self.base / "cache"
        self._number = 0
        self.prefix = ""
        self.background = True
        self.path.mkdir(parents=True)

    # --- what the work calls --------------------------------------------------------------------------------------

    def fresh(self, *, background: bool = True, prefix: str | None = None) -> None:
        """Mount an empty workspace with an empty cache. `background` = False: save only when told to.
        With a prefix: mount what lies there instead."""
        self.discard()
        self._number += 1
        self.prefix = prefix or f"{self.name}-{os.getpid()}-{self._number}"
        self.background = background
        if prefix is None:
            self._make()
        self.start()

    def start(self, *, cold: bool = True) -> float:
        """Seconds until the mount answers. Cold: with nothing on this machine."""
        if cold:
            shutil.rmtree(self.cache, ignore_errors=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        self._mount()
        os.stat(self.path)
        return time.monotonic() - began

    def stop(self) -> float:
        """Seconds until everything is in the store and nothing is mounted."""
        began = time.monotonic()
        daemons = self.daemons()
        self._unmount()
        unmounted = time.monotonic()
        self._wait_for_end(daemons)
        return (unmounted if self.unmount_waits else time.monotonic()) - began

    def _wait_for_end(self, daemons: Sequence[int]) -> None:
        wait_for(lambda: not any(map(alive, daemons)), f"{self.name} (processes {daemons}) does not end")

    def save(self) -> float:
        """Seconds until everything is in the store, without a stop."""
        raise Unable("has no command that saves")

    def discard(self) -> None:
        """Take the mount away, and everything with it, without saving."""
        daemons = self.daemons()
        for pid in daemons:
            os.kill(pid, signal.SIGKILL)
        self._wait_for_end(daemons)
        if os.path.ismount(self.path) or not accessible(self.path):
            subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)
        shutil.rmtree(self.cache, ignore_errors=True)
        if self.prefix.startswith(f"{self.name}-"):
            self.s3.remove(self.prefix)
            self.prefix = ""

    def daemons(self) -> list[int]:
        """The processes that serve the mount: their command line names it."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                words = (directory / "cmdline").read_bytes().replace(b"\0", b" ").split(b" ")
            except OSError:
                continue
            if os.fsencode(self.path) in words and int(directory.name) != os.getpid():
                found.append(int(directory.name))
        return found

    def usage(self) -> Usage:
        written = peak = resident = 0
        processor = 0.0
        for pid in self.daemons():
            io = fields(Path(f"/proc/{pid}/io"))
            status = fields(Path(f"/proc/{pid}/status"))
            written += io["write_bytes"] - io["cancelled_write_bytes"]
            peak += status["VmHWM"] * 1024
            resident += status["VmRSS"] * 1024
            times = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            processor += (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        return Usage(written, peak, resident, processor)

    # --- what differs ---------------------------------------------------------------------------------------------

    def _make(self) -> None:
        """Prepare the place in the bucket."""

    def _mount(self) -> None:
        raise NotImplementedError

    def _unmount(self) -> None:
        self._run("umount", str(self.path))

    @staticmethod
    def _run(*command: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE, env=env)
        if done.returncode:
            raise Unable(f"{command[0]}: {(done.stderr or done.stdout).strip()[-500:]}")
        return done.stdout


class Native(System):
    """A directory on the same disk as all caches."""

    name = "native"
    remote = False

    def fresh(self, *, background: bool = True, prefix: str | None = None) -> None:
        self.discard()
        self.path.mkdir()

    def start(self, *, cold: bool = True) -> float:
        if cold:
            drop_caches()
        return 0.0

    def stop(self) -> float:
        return self.save()

    def save(self) -> float:
        began = time.monotonic()
        self._run("sync", "-f", str(self.path))
        return time.monotonic() - began

    def discard(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def daemons(self) -> list[int]:
        return []


class Wsfs(System):
    name = "wsfs"
    unmount_waits = True

    def _call(self, *arguments: str) -> None:
        command = shutil.which("wsfs", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if command is None:
            raise Unable("there is no wsfs command: run scripts/setup")
        self._run(command, *arguments, env={**os.environ, "WSFS_RUNTIME_DIR": str(self.base / "run")})

    @property
    def url(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    def _make(self) -> None:
        self._call("init", self.url, "--endpoint-url", self.s3.endpoint)

    def _mount(self) -> None:
        options = [] if self.background else ["--save-interval", "0"]
        where = ["--cache-dir", str(self.cache), "--endpoint-url", self.s3.endpoint]
        self._call("mount", self.url, str(self.path), *where, *options)

    def _unmount(self) -> None:
        self._call("umount", str(self.path))

    def save(self) -> float:
        began = time.monotonic()
        self._call("sync", str(self.path))
        return time.monotonic() - began


class S3fs(System):
    name = "s3fs"

    def _mount(self) -> None:
        options = f"url={self.s3.endpoint},use_path_request_style,use_cache={self.cache},ensure_diskfree=1024"
        keys = {
            "AWSACCESSKEYID": os.environ["AWS_ACCESS_KEY_ID"],
            "AWSSECRETACCESSKEY": os.environ["AWS_SECRET_ACCESS_KEY"],
        }
        # The root of the mount must exist as an object.
        self.s3.client().put_object(Bucket=BUCKET, Key=f"{self.prefix}/")
        self._run("s3fs", f"{BUCKET}:/{self.prefix}", str(self.path), "-o", options, env={**os.environ, **keys})


class Rclone(System):
    name = "rclone"
    copy_flag = "-r"  # owners cannot be kept: cp -a fails

    def _mount(self) -> None:
        remote = f":s3,provider=Ceph,env_auth=true,endpoint='{self.s3.endpoint}':{BUCKET}/{self.prefix}"
        # Not --daemon: that has two processes, of which the first takes the port of the remote control.
        command = [
            "rclone", "mount", remote, str(self.path), "--vfs-cache-mode", "full",
            "--cache-dir", str(self.cache), "--vfs-cache-max-size", "off", "--transfers", "16",
            "--config", "/dev/null", "--rc", "--rc-no-auth", "--rc-addr", _RCLONE,
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}  # an error to it
        with (self.base / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_for(lambda: os.path.ismount(self.path) or process.poll() is not None, "rclone does not mount")
        if process.poll() is not None:
            raise Unable((self.base / "log").read_text()[-500:])

    def _settled(self) -> bool:
        found = json.loads(self._run("rclone", "rc", "vfs/stats", "--url", f"http://{_RCLONE}/"))
        cache = found["diskCache"]
        return not cache["uploadsInProgress"] and not cache["uploadsQueued"]

    def _unmount(self) -> None:
        self._flush()
        super()._unmount()

    def _flush(self) -> None:
        # rclone ends without its uploads, and goes on with them after the next start: so wait.
        wait_for(self._settled, "rclone does not finish its uploads")

    def save(self) -> float:
        began = time.monotonic()
        self._flush()
        return time.monotonic() - began


class S3ql(System):
    """Its commands must be on PATH."""

    name = "s3ql"

    @property
    def _where(self) -> list[str]:
        authentication = self.base / "authentication"
        server = self.s3.endpoint.removeprefix("http://")
        login = f"backend-login: {os.environ['AWS_ACCESS_KEY_ID']}"
        password = f"backend-password: {os.environ['AWS_SECRET_ACCESS_KEY']}"
        authentication.write_text(f"[bench]\nstorage-url: s3c4://{server}\n{login}\n{password}\n")
        authentication.chmod(0o600)
        self.cache.mkdir(parents=True, exist_ok=True)
        url = f"s3c4://{server}/{BUCKET}/{self.prefix}/"
        return ["--authfile", str(authentication), "--backend-options", "no-ssl", "--cachedir", str(self.cache), url]

    def _make(self) -> None:
        self._run("mkfs.s3ql", "--plain", *self._where)

    def _mount(self) -> None:
        self._run("mount.s3ql", *self._where, str(self.path))

    def _unmount(self) -> None:
        self._run("umount.s3ql", str(self.path))

    def save(self) -> float:
        began = time.monotonic()
        self._run("s3qlctrl", "flushcache", str(self.path))
        self._run("s3qlctrl", "upload-meta", str(self.path))
        return time.monotonic() - began


class Command(System):
    """Any command: NAME=COMMAND, with {endpoint}, {bucket}, {prefix}, {mount} and {cache} in it. It must return when
    the mount is there; umount ends it."""

    def __init__(self, work: Path, s3: S3, name: str, command: str) -> None:
        self.name = name  # type: ignore[misc]
        self._command = command
        super().__init__(work, s3)

    def _mount(self) -> None:
        places = {
            "endpoint": self.s3.endpoint,
            "bucket": BUCKET,
            "prefix": self.prefix,
            "mount": str(self.path),
            "cache": str(self.cache),
        }
        self._run(*(word.format(**places) for word in shlex.split(self._command)))


KNOWN: dict[str, type[System]] = {cls.name: cls for cls in (Native, Wsfs, S3fs, Rclone, S3ql)}


def build(names: Sequence[str], work: Path, s3: S3) -> list[System]:
    """The systems of these names; NAME=COMMAND makes a new one. A native directory is always the first."""
    systems: list[System] = [Native(work, s3)]
    for name in names:
        label, _, command = name.partition("=")
        if command:
            systems.append(Command(work, s3, label, command))
        elif label in KNOWN:
            if label != "native":
                systems.append(KNOWN[label](work, s3))
        else:
            raise Unable(f"there is no system {label!r}: choose of {', '.join(KNOWN)}, or give NAME=COMMAND")
    return systems


def fields(path: Path) -> dict[str, int]:
    """The numbers in a file of lines `name: number`."""
    pairs = (line.split(":", 1) for line in path.read_text().splitlines())
    numbers = {name: value.split()[0] for name, value in pairs if value.split()}
    return {name: int(value) for name, value in numbers.items() if value.isdigit()}


def drop_caches() -> None:
    """Forget pages, names and inodes of all file systems that are on disk already."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def wait_for(condition: Callable[[], bool], complaint: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Unable(complaint)
        time.sleep(0.005)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def accessible(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True
