"""Real workspaces, through the real commands: init, mount, stop, wipe the cache, mount again."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from wsfs.mountinfo import all_mounts

REPOSITORY = Path(__file__).parents[2]
MARKER = b".workspace.initialized"
BUCKET = "wsfs-tests"
DIRECTORY, MOTO, REAL = "directory", "moto", "real"
Done = subprocess.CompletedProcess[str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these tests make real mounts."""
    possible = os.geteuid() == 0 and os.path.exists("/dev/fuse")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.mount)
            if not possible:
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


def is_gone(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except FileNotFoundError:
        return True


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `condition` returns, once that is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.02)
    return value


def is_mounted(where: Path) -> bool:
    """Whether anything is mounted right at `where`; never asks the mount."""
    return any(mount.mountpoint == str(where) for mount in all_mounts())


def run(
    *command: object, code: int | None = 0, env: dict[str, str] | None = None, cwd: object = None, timeout: float = 90
) -> Done:
    """Run a program to its end; its exit code must be `code` unless that is None. Output goes through files, not pipes:
    a daemon that is started on the way would keep a pipe open."""
    words = [word if isinstance(word, bytes) else str(word) for word in command]
    directory = Path(os.environ.get("TMPDIR", "/tmp"))
    number = f"{os.getpid()}-{next(_outputs)}"
    names = directory / f"wsfs-test-out-{number}", directory / f"wsfs-test-err-{number}"
    with names[0].open("w+", errors="replace") as out, names[1].open("w+", errors="replace") as err:
        for name in names:
            name.unlink()
        finished = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd, timeout=timeout, check=False
        )
        out.seek(0)
        err.seek(0)
        result = subprocess.CompletedProcess([str(w) for w in words], finished.returncode, out.read(), err.read())
    if code is not None:
        assert result.returncode == code, result
    return result


_outputs = itertools.count()


class Tree:
    """What a directory tree looks like, in all that a remount must bring back."""

    @staticmethod
    def of(top: Path, *, content: bool = True, inodes: bool = True, skip: Sequence[bytes] = ()) -> dict[bytes, Any]:
        """Path -> attributes of everything below `top` (itself: b""). `inodes`: also numbers and ctime."""
        found = {}
        base = os.fsencode(top)
        pending = [b""]
        while pending:
            name = pending.pop()
            path = os.path.join(base, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            facts: dict[str, Any] = {
                "mode": oct(status.st_mode),
                "owner": (status.st_uid, status.st_gid),
                "nlink": status.st_nlink,
                "mtime": status.st_mtime_ns,
            }
            if kind != stat.S_IFDIR:
                facts |= {"size": status.st_size, "rdev": status.st_rdev, "atime": status.st_atime_ns}
            if inodes:
                facts |= {"ino": status.st_ino, "ctime": status.st_ctime_ns}
            if kind == stat.S_IFLNK:
                facts["target"] = os.readlink(path)
                facts.pop("atime")  # a native file system changes it when the link is read
            elif kind == stat.S_IFREG and content:
                facts["content"] = Tree.digest(path)
            elif kind == stat.S_IFDIR:
                pending += [os.path.join(name, entry) for entry in os.listdir(path) if entry not in skip]
            found[name] = facts
        return found

    @staticmethod
    def digest(path: bytes | Path) -> str:
        """Of a file's content. Read without changing its atime."""
        flags = os.O_RDONLY | os.O_NOATIME
        with open(os.open(path, flags), "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


class Site:
    """One workspace in one store, and this machine's side of it: a mount point, a cache directory, the commands."""

    def __init__(self, base: Path, url: str, environ: dict[str, str]) -> None:
        self.base = base
        self.url = url
        self.mountpoint = base / "workspace"
        self.cache = base / "cache"
        self.store = base / "store"
        self.environ = environ | {"WSFS_RUNTIME_DIR": str(base / "run"), "HOME": str(base / "home")}
        self.pids: set[int] = set()
        self.server: Any = None
        for directory in (self.mountpoint, base / "home"):
            directory.mkdir(parents=True)

    # --- commands

    def command(self, *arguments: object, cache: Path | None = None) -> tuple[list[str], dict[str, str]]:
        """The command line and environment of `wsfs ARGUMENTS`."""
        words = [sys.executable, "-P", "-m", "wsfs.cli.main", *map(str, arguments)]
        return words, self.environ | {"WSFS_CACHE_DIR": str(cache or self.cache)}

    def wsfs(self, *arguments: object, code: int | None = 0, cache: Path | None = None, timeout: float = 90) -> Done:
        """Run a command; whatever happens, it never shows a traceback."""
        words, environ = self.command(*arguments, cache=cache)
        result = run(*words, code=code, env=environ, timeout=timeout)
        assert "Traceback" not in result.stderr
        return result

    def run(self, *command: object, code: int | None = 0, cwd: object = None, timeout: float = 90) -> Done:
        """Run any program in this workspace's environment, by default at the top of the mount."""
        environ = self.environ | {"WSFS_CACHE_DIR": str(self.cache)}
        return run(*command, code=code, env=environ, cwd=cwd or self.mountpoint, timeout=timeout)

    def init(self, *arguments: object) -> Site:
        self.wsfs("init", self.url, *arguments)
        return self

    def mount(
        self, *options: object, code: int | None = 0, cache: Path | None = None, where: Path | None = None
    ) -> Done:
        """`wsfs mount`, with a save only at sync and stop unless told otherwise."""
        where = where or self.mountpoint
        words = ["mount", self.url, where]
        if not any("save_interval" in str(option) for option in options):
            words += ["--save-interval", "0"]
        result = self.wsfs(*words, *options, code=code, cache=cache)
        if result.returncode == 0:
            self.pid(where)
        return result

    def umount(self, *arguments: object, code: int = 0) -> Done:
        result = self.wsfs("umount", self.mountpoint, *arguments, code=code)
        if code == 0:
            assert not is_mounted(self.mountpoint)
        return result

    def status(self, where: object = None, cache: Path | None = None) -> dict[str, Any]:
        return dict(json.loads(self.wsfs("status", where or self.mountpoint, "--json", cache=cache).stdout))

    # --- what tests do to a workspace

    def pid(self, where: Path | None = None) -> int:
        """The daemon's process."""
        place = os.fsencode(where or self.mountpoint)
        (pid,) = [pid for pid, shown in self._daemons() if shown.endswith(b" " + place)]
        self.pids.add(pid)
        return pid

    def wipe(self) -> None:
        """Forget all that this machine knows of the workspace: the next mount is another host's, as it were."""
        shutil.rmtree(self.cache)

    def elsewhere(self, *options: object) -> None:
        """Stop, and mount with an empty cache."""
        self.umount()
        self.wipe()
        self.mount(*options)

    def kill(self) -> None:
        """The daemon crashes; its dead mount is taken away."""
        pid = self.pid()
        os.kill(pid, signal.SIGKILL)
        until(lambda: is_gone(pid))
        run("umount", "-i", "-l", self.mountpoint)

    def log(self, cache: Path | None = None) -> str:
        """All that daemons with this cache have logged."""
        return (cache or self.cache).joinpath("daemon.log").read_text(errors="replace")

    def stored_bytes(self) -> int:
        """The size of all objects; for the directory store."""
        return sum(path.stat().st_size for path in self.store.rglob("*") if path.is_file())

    def objects(self, prefix: str) -> list[Path]:
        """The files of the directory store that hold objects of this kind, in the order of their names."""
        return sorted(path for path in self.store.joinpath(prefix).rglob("*") if path.is_file())

    # --- the end

    def abort(self) -> None:
        """End every daemon, so that nothing can wait for one any more; dead mounts go away."""
        for pid in self.pids | {pid for pid, _ in self._daemons()}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for where in self.mounts():
            subprocess.run(["umount", "-i", "-l", where], check=False, timeout=20, capture_output=True)

    def _daemons(self) -> list[tuple[int, bytes]]:
        """Our living daemons, and their command lines."""
        found = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                shown = (
                    (entry / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ") if entry.name.isdigit() else b""
                )
                if b" --foreground " in shown and b"%s/" % os.fsencode(self.base) in shown:
                    parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
                    found[int(entry.name)] = parent, shown
        # A process that a daemon is about to start looks like the daemon until it is another program.
        return [(pid, shown) for pid, (parent, shown) in found.items() if parent not in found]

    def mounts(self) -> list[str]:
        """What is mounted below our directory, newest first."""
        places = [mount.mountpoint for mount in reversed(all_mounts())]
        return [place for place in places if place.startswith(f"{self.base}/")]

    def finish(self) -> None:
        """Unmount what is mounted, and see that nothing is left behind."""
        try:
            if is_mounted(self.mountpoint):
                self.umount()
            assert not self.mounts()
            for pid in self.pids:
                until(lambda pid=pid: is_gone(pid))
        finally:
            self.abort()


class Server:
    """An S3 server in a process of its own; counts what it is asked, and can be slow."""

    def __init__(self, base: Path) -> None:
        self._log = base / "requests"
        self._delay = base / "delay"
        self._log.touch()
        script = Path(__file__).with_name("s3server.py")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", script, self._log, self._delay, BUCKET],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            text=True,
        )
        assert self._process.stdout is not None
        self.endpoint = self._process.stdout.readline().strip()
        assert self.endpoint.startswith("http")
        self._seen = 0

    def requests(self) -> list[tuple[str, str, str]]:
        """Method, key and range of the requests since the last call."""
        text = self._log.read_text()
        fresh, self._seen = text[self._seen :], len(text)
        return [(*line.split("\t"), "", "")[:3] for line in fresh.splitlines()]

    def held(self, method: str, part: str) -> contextlib.AbstractContextManager[None]:
        """Requests of this method for keys with `part` in them are answered once this is left."""
        return self.slow(method, part, math.inf)

    @contextlib.contextmanager
    def slow(self, method: str, part: str, seconds: float) -> Iterator[None]:
        """Requests of this method for keys with `part` in them take longer."""
        self._delay.write_text(f"{method}\t{part}\t{seconds}")
        try:
            yield
        finally:
            self._delay.unlink()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("s3"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def new_site(request: pytest.FixtureRequest) -> Callable[[Path, str], Site]:
    """Makes a Site below a directory, with a store of the kind that is named."""

    def make(base: Path, kind: str) -> Site:
        environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WSFS_", "XDG_", "PYTEST_")) and (kind == REAL or not name.startswith("AWS_"))
        } | {"PYTHONPATH": str(REPOSITORY), "LC_ALL": "C.UTF-8", "AWS_EC2_METADATA_DISABLED": "true"}
        if kind == DIRECTORY:
            return Site(base, f"file://{base}/store", environ)
        prefix = f"run-{os.getpid()}/{uuid.uuid4()}"
        if kind == MOTO:
            server = request.getfixturevalue("server")
            keys = {"AWS_ACCESS_KEY_ID": "testing-key-id", "AWS_SECRET_ACCESS_KEY": "testing-secret"}
            environ |= keys | {"WSFS_ENDPOINT_URL": server.endpoint, "NO_PROXY": "127.0.0.1"}
            site = Site(base, f"s3://{BUCKET}/{prefix}", environ | {"AWS_DEFAULT_REGION": "us-east-1"})
            site.server = server
            return site
        return Site(
            base, f"s3://{BUCKET}/{prefix}", environ | {"WSFS_ENDPOINT_URL": request.getfixturevalue("real_s3")}
        )

    return make


@pytest.fixture(scope="session")
def real_s3() -> Iterator[str]:
    """The endpoint of a real S3 server, with our bucket on it; our objects are removed at the end."""
    endpoint = os.environ.get("WSFS_TEST_S3_ENDPOINT")
    if not endpoint:
        pytest.skip("WSFS_TEST_S3_ENDPOINT names no S3 server")
    import boto3

    client = boto3.session.Session().client("s3", endpoint_url=endpoint)
    if BUCKET not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=BUCKET)
    yield endpoint
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"run-{os.getpid()}/"):
        for item in page.get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.close()


@contextlib.contextmanager
def _watched(site: Site, seconds: float) -> Iterator[None]:
    """End the daemons of a test that hangs: whoever waits for one then gets an error."""
    timer = threading.Timer(seconds, site.abort)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory, new_site: Callable[[Path, str], Site]) -> Path:
    """A directory store with a new workspace in it, to be copied."""
    return new_site(tmp_path_factory.mktemp("fresh"), DIRECTORY).init().store


@pytest.fixture
def site(
    request: pytest.FixtureRequest, tmp_path: Path, new_site: Callable[[Path, str], Site], fresh_store: Path
) -> Iterator[Site]:
    """A workspace that exists and is not mounted. In a directory store, unless the test is parametrised."""
    kind = getattr(request, "param", DIRECTORY)
    found = new_site(tmp_path, kind)
    with _watched(found, 200):
        if kind == DIRECTORY:
            shutil.copytree(fresh_store, found.store)
        else:
            found.init()
        try:
            yield found
        finally:
            found.finish()


@pytest.fixture
def workspace(site: Site) -> Site:
    """A mounted workspace."""
    site.mount()
    return site


@pytest.fixture(scope="module")
def reachable() -> Iterator[Path]:
    """A directory that other users can reach: those of pytest are its user's own."""
    path = Path(tempfile.mkdtemp(prefix="wsfs-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def shared_site(reachable: Path, new_site: Callable[[Path, str], Site]) -> Iterator[Site]:
    """One mount for the tests of a module, open to other users."""
    found = new_site(reachable / "shared", DIRECTORY).init()
    found.mount("-o", "allow_other")
    try:
        yield found
    finally:
        with _watched(found, 60):
            found.finish()


@pytest.fixture
def here(shared_site: Site, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own on the module's mount."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[:60]
    path = shared_site.mountpoint / name
    with _watched(shared_site, 100):
        path.mkdir()
        yield path


@pytest.fixture(scope="session")
def tree() -> type[Tree]:
    return Tree


@pytest.fixture(scope="session")
def renameat2() -> Callable[[Path, Path, int], None]:
    """rename with flags; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def rename(old: Path, new: Path, flags: int) -> None:
        if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    return rename


class Helpers:
    """The functions above, for tests."""

    run = staticmethod(run)
    until = staticmethod(until)
    is_gone = staticmethod(is_gone)
    is_mounted = staticmethod(is_mounted)


@pytest.fixture(scope="session")
def tools() -> type[Helpers]:
    return Helpers


@pytest.fixture
def mount_helpers() -> Iterator[None]:
    """mount(8) and umount(8) know wsfs, as long as the test runs."""
    words = [sys.executable, "-P", "-m", "wsfs.cli.main", "install-helpers"]
    environ = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with (Path(tempfile.gettempdir()) / "wsfs-test-helpers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run at the same time, and the machine has only one /sbin
        were_there = Path("/sbin/mount.wsfs").exists()
        run(*words, env=environ)
        yield
        if not were_there:
            run(*words, "--remove", env=environ)
