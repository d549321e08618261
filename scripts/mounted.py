"""A workspace on a real mount, for the scripts beside this file, and what a tree looks like."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType


def command() -> str:
    """The wsfs command beside this Python or on PATH. Exits if there is none."""
    found = shutil.which("wsfs", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        sys.exit("there is no wsfs command: run scripts/setup first, and use .venv/bin/python")
    return found


class Mount:
    """A fresh workspace in a temporary directory `work`, mounted at `path`. A context: it leaves nothing behind."""

    def __init__(self, name: str, url: str | None = None, options: str = "") -> None:
        """`url` is an empty place in a store; by default a directory store. `options` are those of `mount -o`."""
        self.work = Path(tempfile.mkdtemp(prefix=f"wsfs-{name}."))
        self.work.chmod(0o755)
        self.url = url or f"file://{self.work}/store"
        self.path, self.cache = self.work / "mount", self.work / "cache"
        self._wsfs, self._options = command(), options
        self._environ = {**os.environ, "WSFS_RUNTIME_DIR": str(self.work / "run")}
        self.path.mkdir()

    def __enter__(self) -> Mount:
        self.run("init", self.url)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        subprocess.run(["umount", "-i", "-l", str(self.path)], check=False, capture_output=True)
        shutil.rmtree(self.work, ignore_errors=True)

    def run(self, *arguments: str) -> None:
        """A wsfs command that must succeed; if it does not, what it said is shown. Raises CalledProcessError."""
        words = [self._wsfs, *arguments]
        # Not through pipes: a daemon that is started would keep them open.
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            done = subprocess.run(words, check=False, stdout=said, stderr=said, timeout=600, env=self._environ)
            if done.returncode != 0:
                said.seek(0)
                print(said.read(), file=sys.stderr)
                raise subprocess.CalledProcessError(done.returncode, words)

    def start(self) -> None:
        options = ["-o", self._options] if self._options else []
        self.run("mount", self.url, str(self.path), "--cache-dir", str(self.cache), *options)

    def stop(self) -> None:
        self.run("umount", str(self.path))

    def sync(self) -> None:
        """Push everything to the store."""
        self.run("sync", str(self.path))

    def check(self) -> None:
        """Check the store, every byte of it. Raises CalledProcessError."""
        self.run("fsck", self.url, "--data")

    def warm(self) -> None:
        """Stop and start with the same cache."""
        self.stop()
        self.start()

    def cold(self) -> None:
        """Stop and start with an empty cache: what another host would see."""
        self.stop()
        shutil.rmtree(self.cache)
        self.start()


def listing(top: Path) -> dict[str, tuple[object, ...]]:
    """Path -> type, mode, owner, links, inode, mtime, and size and content of everything below `top`."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(os.fsencode(top)):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            facts: tuple[object, ...] = (
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_nlink,
                status.st_ino,
                status.st_mtime_ns,
            )
            if stat.S_ISLNK(status.st_mode):
                facts += (os.readlink(path),)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    facts += (status.st_size, hashlib.file_digest(file, "blake2b").hexdigest()[:16])
            found[os.fsdecode(path[len(os.fsencode(top)) + 1 :])] = facts
    return found


def differences(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> list[str]:
    """A line for each path that is not the same in both, at most twenty."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [f"{name}: {before.get(name)} became {after.get(name)}" for name in names[:20]]
