"""A machine that loses power, simulated: what the daemon wrote to its cache directory and did not sync may be lost.

    python -m powerloss UNDO CACHE BOOT_ID mount ...    the wsfs command, which notes in the directory UNDO how to undo

Before each change of a file or directory entry in the cache directory an undo record goes to UNDO; after each fsync a
record says what is safe. The daemon is killed with SIGKILL, and then `lose_power` undoes a random part of what was not
safe: of each page any version since the last fsync, of each file any size, of each directory any entries. This is as
much as POSIX allows, and more than most file systems do. LMDB's own file is left alone: wsfs only ever writes it in
transactions that LMDB makes durable. The undo records survive a kill, and the next daemon goes on with them.

The boot id is one that the caller names, so that the next start believes in a reboot.
"""

from __future__ import annotations

import itertools
import os
import pickle
import random
import shutil
import struct
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096
_LENGTH = struct.Struct("<I")
_SKIPPED = {"index", "packs", "frozen", "lock"}


# --- in the daemon --------------------------------------------------------------------------------------------------


class Recorder:
    """Stands in front of the system calls that change the cache directory."""

    def __init__(self, undo: Path, cache: Path) -> None:
        self._undo = undo
        self._cache = str(cache) + "/"
        self._paths: dict[int, str] = {}
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        undo.mkdir(exist_ok=True)
        self._real = {
            name: getattr(os, name)
            for name in ("open", "close", "pwrite", "ftruncate", "fsync", "fdatasync", "unlink", "rename", "write")
        }
        self._log = os.open(undo / "records", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        # The last daemon may have been killed in the middle of a record. What that is about was not done.
        os.ftruncate(self._log, _whole(undo))

    def install(self) -> None:
        import wsfs.data.overlayfile

        for name in ("open", "close", "pwrite", "ftruncate", "fsync", "fdatasync", "unlink", "rename"):
            setattr(os, name, getattr(self, name))
        wsfs.data.overlayfile.libc = self  # its fallocate and syncfs

    def _note(self, *record: Any) -> None:
        data = pickle.dumps(record)
        self._real["write"](self._log, _LENGTH.pack(len(data)) + data)

    def _concerns(self, path: object) -> str | None:
        if not isinstance(path, str | os.PathLike):
            return None
        name = os.path.abspath(os.fspath(path))  # type: ignore[type-var]
        if isinstance(name, bytes) or not (name + "/").startswith(self._cache):
            return None
        # LMDB's is safe, packs are checked against their digests, and the rest is there for one run only.
        return None if _SKIPPED & set(name.split("/")) else name

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        name = self._concerns(path) if dir_fd is None else None
        if name is None:
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))
        with self._lock:
            if flags & os.O_CREAT and not os.path.exists(name):
                self._note("create", name)
            fd = int(self._real["open"](path, flags, mode))
            self._paths[fd] = name
            return fd

    def close(self, fd: int) -> None:
        with self._lock:
            self._paths.pop(fd, None)
            self._real["close"](fd)

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        name = self._paths.get(fd)
        if name is None:
            return int(self._real["pwrite"](fd, data, offset))
        with self._lock:
            size = os.fstat(fd).st_size
            first, last = offset // PAGE, max(offset + len(data) - 1, offset) // PAGE
            self._note("write", name, size, first, self._old(name, first, last))
            return int(self._real["pwrite"](fd, data, offset))

    def ftruncate(self, fd: int, size: int) -> None:
        name = self._paths.get(fd)
        if name is None:
            self._real["ftruncate"](fd, size)
            return
        with self._lock:
            old = os.fstat(fd).st_size
            self._note("cut", name, old, size // PAGE, self._old(name, size // PAGE, max(old - 1, 0) // PAGE))
            self._real["ftruncate"](fd, size)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> int:
        """fallocate(2), for punching holes only; 0 on success."""
        import ctypes

        name = self._paths.get(fd)
        with self._lock:
            if name is not None:
                size = os.fstat(fd).st_size
                first, last = offset // PAGE, (min(offset + length, size) - 1) // PAGE
                self._note("cut", name, size, first, self._old(name, first, last))
            libc = ctypes.CDLL(None, use_errno=True)
            libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
            return int(libc.fallocate(fd, mode, offset, length))

    def fsync(self, fd: int) -> None:
        self._sync(fd, "fsync")

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, "fdatasync")

    def _sync(self, fd: int, call: str) -> None:
        name = self._paths.get(fd)
        if name is None:
            self._real[call](fd)
            return
        with self._lock:
            token = f"{os.getpid()}-{next(self._numbers)}"
            self._note("syncing", name, token)
        self._real[call](fd)
        with self._lock:
            self._note("synced", name, token)

    def syncfs(self, fd: int) -> int:
        """syncfs(2): all that was written is safe; 0 on success."""
        import ctypes

        with self._lock:
            token = f"{os.getpid()}-{next(self._numbers)}"
            self._note("syncing", "", token)
        failed = int(ctypes.CDLL(None, use_errno=True).syncfs(fd))
        with self._lock:
            self._note("synced", "", token)
        return failed

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        name = self._concerns(path) if dir_fd is None else None
        if name is None:
            self._real["unlink"](path, dir_fd=dir_fd)
            return
        with self._lock:
            os.lstat(name)  # its error is ours
            kept = self._kept()
            self._note("unlink", name, kept)
            self._real["rename"](name, kept)

    def rename(self, source: Any, target: Any) -> None:
        name = self._concerns(source)
        if name is None or "frozen" not in str(target).split("/"):
            self._real["rename"](source, target)
            return
        with self._lock:  # what is in there is gone at the next start, so to go there is to be removed
            kept = self._kept()
            os.link(name, kept)
            self._note("unlink", name, kept)
            self._real["rename"](source, target)

    def _kept(self) -> str:
        return str(self._undo / f"removed-{os.getpid()}-{next(self._numbers)}")

    def _old(self, name: str, first: int, last: int) -> list[bytes]:
        """Pages as they are now, each with zeros after the end."""
        if last < first:
            return []
        fd = self._real["open"](name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(fd, (last - first + 1) * PAGE, first * PAGE)
        finally:
            self._real["close"](fd)
        return [data[at : at + PAGE].ljust(PAGE, b"\0") for at in range(0, (last - first + 1) * PAGE, PAGE)]


def main() -> None:
    undo, cache, boot_id, *command = sys.argv[1:]
    import wsfs.sync.lease
    import wsfs.sync.start
    from wsfs.cli.main import run

    wsfs.sync.lease.boot_id = wsfs.sync.start.boot_id = lambda: boot_id
    Recorder(Path(undo), Path(cache)).install()
    sys.argv[1:] = command
    run()


# --- after the kill -------------------------------------------------------------------------------------------------


@dataclass
class _Trail:
    """What was done to a file or a directory and is not safe yet, oldest first."""

    path: str
    records: list[Any] = field(default_factory=list)
    safe: int = 0

    def synced(self, end: int) -> None:
        """Everything before number `end`, counted from the first ever, is safe."""
        del self.records[: max(end - self.safe, 0)]
        self.safe = max(end, self.safe)


@dataclass
class _Entry:
    """What happened to a name: made (None), or removed (where it was kept)."""

    path: str
    kept: str | None


def _bodies(undo: Path) -> Iterator[tuple[int, bytes]]:
    """The records that are whole, each with where it ends."""
    try:
        data = (undo / "records").read_bytes()
    except FileNotFoundError:
        return
    at = 0
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        body = data[at + _LENGTH.size : at + _LENGTH.size + length]
        at += _LENGTH.size + length
        if len(body) == length:
            yield at, body


def _records(undo: Path) -> list[tuple[Any, ...]]:
    return [pickle.loads(body) for _, body in _bodies(undo)]


def _whole(undo: Path) -> int:
    """The size of the records that are whole, in bytes."""
    return max((end for end, _ in _bodies(undo)), default=0)


def lose_power(undo: Path, rng: random.Random) -> dict[str, int]:
    """Undo a random part of what was not synced, and forget the records. Returns how much was undone, by kind.

    The daemon must be dead.
    """
    files: dict[str, _Trail] = {}
    directories: dict[str, _Trail] = {}
    removed: list[tuple[_Trail, str]] = []
    syncing: dict[str, list[tuple[_Trail, int]]] = {}
    for kind, path, *rest in _records(undo):
        if kind in ("write", "cut"):
            files.setdefault(path, _Trail(path)).records.append((kind, *rest))
        elif kind == "syncing":
            if path:
                concerned = [trail for trail in (directories.get(path), files.get(path)) if trail is not None]
            else:
                concerned = [*directories.values(), *files.values(), *(trail for trail, _ in removed)]
            syncing[rest[0]] = [(trail, trail.safe + len(trail.records)) for trail in concerned]
        elif kind == "synced":
            for trail, end in syncing.pop(rest[0]):
                trail.synced(end)
        else:
            parent = os.path.dirname(path)
            kept = rest[0] if kind == "unlink" else None
            directories.setdefault(parent, _Trail(parent)).records.append(_Entry(path, kept))
            if kept is not None and path in files:
                removed.append((files.pop(path), kept))
    undone = {"pages": 0, "sizes": 0, "names": 0}
    style = rng.random()
    for file, at in [*((f, f.path) for f in files.values()), *removed]:
        if os.path.exists(at):
            _undo_data(file, at, rng, style, undone)
    for trail in directories.values():
        _undo_names(trail.records, rng, undone)
    shutil.rmtree(undo, ignore_errors=True)
    return undone


def _undo_data(file: _Trail, at: str, rng: random.Random, style: float, undone: dict[str, int]) -> None:
    """Give each page a version, and the file a size, that the disk may have had."""
    records = file.records
    if not records or style > 0.95:
        return
    # Cuts are changes of metadata, done in order: those from `kept` on did not reach the disk.
    cuts = [number for number, (kind, *_) in enumerate(records) if kind == "cut"]
    kept = rng.choice([*cuts, len(records)]) if cuts else len(records)
    pages: dict[int, list[tuple[int, str, bytes]]] = defaultdict(list)
    for number, (kind, _size, first, old) in enumerate(records):
        for index, data in enumerate(old):
            pages[first + index].append((number, kind, data))
    nothing = style < 0.3 and rng.random() < 0.7
    with open(at, "r+b", buffering=0) as disk:
        size = os.fstat(disk.fileno()).st_size
        wanted = records[kept][1] if kept < len(records) else size
        base = max((n for n, (kind, *_) in enumerate(records[:kept]) if kind == "cut"), default=-1)
        grown = [s for n, (kind, s, *_) in enumerate(records[:kept]) if kind == "write" and n > base]
        if grown:
            # Sizes grow with the data; any of them may be the one on the disk.
            wanted = min(wanted, grown[0]) if nothing else rng.choice([*grown, wanted, wanted])
        for page, versions in pages.items():
            low = max((i + 1 for i, (n, kind, _) in enumerate(versions) if kind == "cut" and n < kept), default=0)
            undone_cuts = (i for i, (n, kind, _) in enumerate(versions) if kind == "cut" and n >= kept)
            high = min(undone_cuts, default=len(versions))
            chosen = low if nothing else rng.randint(low, high) if rng.random() < 0.7 else high
            if chosen < len(versions):
                os.pwrite(disk.fileno(), versions[chosen][2], page * PAGE)
                undone["pages"] += 1
        disk.truncate(wanted)
        undone["sizes"] += wanted != size


def _undo_names(entries: list[_Entry], rng: random.Random, undone: dict[str, int]) -> None:
    """Of what happened to the names of a directory, keep a random part; of each name the first of its changes."""
    by_name: dict[str, list[_Entry]] = defaultdict(list)
    for entry in entries:
        by_name[entry.path].append(entry)
    for path, changes in by_name.items():
        kept = rng.choice([0, len(changes), rng.randint(0, len(changes))])
        for entry in reversed(changes[kept:]):
            if entry.kept is None:
                if os.path.exists(path):
                    os.unlink(path)
                    undone["names"] += 1
            elif os.path.exists(entry.kept):
                os.rename(entry.kept, path)
                undone["names"] += 1


if __name__ == "__main__":
    main()
