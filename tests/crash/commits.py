"""A commit as it was when it was HEAD, although the store has gone on: read without a mount."""

from __future__ import annotations

import os
import stat
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wsfs.errors import StoreError
from wsfs.model import ROOT_INO, Ino
from wsfs.remote import fetch_all
from wsfs.repo.head import HEAD_KEY, decode_head
from wsfs.store.base import Blob, Store
from wsfs.sync.lease import this_process
from wsfs.sync.start import CacheDirectory, Workspace, open_workspace


@dataclass(frozen=True, slots=True)
class Seen:
    """HEAD as it was read at a moment: the commit it names is not newer than that."""

    seq: int
    data: bytes
    when: float


class Observer:
    """Notes every commit that becomes HEAD while it is entered, as far as it looks often enough."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.seen: list[Seen] = []

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._look()

    def _look(self) -> None:
        try:
            data = self._store.get(HEAD_KEY).data
        except StoreError:
            return
        seq = decode_head(data).seq
        if not self.seen or self.seen[-1].seq != seq:
            self.seen.append(Seen(seq, data, time.monotonic_ns()))


class Pinned:
    """A store whose HEAD stays as it is."""

    def __init__(self, store: Store, head: bytes) -> None:
        self._store = store
        self._head = head
        self.url = store.url

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        return Blob(self._head, "pinned", 0.0) if key == HEAD_KEY else self._store.get(key, start, length)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def export(store: Store, head: bytes, cache: Path, destination: Path) -> None:
    """Write all that a commit holds into a directory, as somebody else finds it who has only the store."""
    directory = CacheDirectory(cache, lambda _line: None)
    workspace = open_workspace(
        Pinned(store, head),  # type: ignore[arg-type]
        directory,
        this_process(),
        read_only=True,
        cache_size=1 << 40,
        tell=lambda _line: None,
    )
    try:
        _copy(workspace, ROOT_INO, destination, {})
    finally:
        workspace.close()
        directory.close(clean=True)


def _copy(workspace: Workspace, ino: Ino, to: Path, known: dict[int, Path]) -> None:
    to.mkdir()
    for name, _cookie, inode in fetch_all(lambda: list(workspace.names.entries(ino, 0))):
        path = to / os.fsdecode(name)
        if inode.is_dir:
            _copy(workspace, inode.ino, path, known)
        elif inode.ino in known:
            os.link(known[inode.ino], path)
        elif stat.S_ISLNK(inode.mode):
            path.symlink_to(os.fsdecode(fetch_all(lambda inode=inode: workspace.names.readlink(inode.ino))))
        else:
            known[inode.ino] = path
            path.write_bytes(fetch_all(lambda inode=inode: workspace.files.read(inode.ino, 0, inode.size)))
