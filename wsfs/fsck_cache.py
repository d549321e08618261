"""Checks a cache directory that no daemon uses: what is in it that the bucket does not have, and is that whole?"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from wsfs.errors import CacheError, LeaseHeldError
from wsfs.fsck import Checked
from wsfs.index.base import read_standing
from wsfs.index.journal import read_segment
from wsfs.index.tables import Tables
from wsfs.repo import codec


def check_cache(path: Path, checked: Checked) -> list[str]:
    """Add findings to `checked`, and return what is good to know. Changes nothing.

    Raises LeaseHeldError while a daemon uses it, CacheError when there is no cache.
    """
    if not (path / "lock").exists():
        raise CacheError(f"{path} is not a cache directory: 'wsfs status' names that of a mount")
    lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise LeaseHeldError(f"the cache directory {path} is in use: unmount that workspace first") from exc
        return _check(path, checked)
    finally:
        os.close(lock)


def _check(path: Path, checked: Checked) -> list[str]:
    local = path / "local" if (path / "local").is_dir() else path
    if not (local / "index").is_dir():
        return [f"The cache in {path} is empty."]
    tables = Tables(local / "index")
    reader = tables.reader()
    try:
        standing = read_standing(reader)
        dirty = {codec.ino_of(key) for key, _ in reader.scan(b"dirty", b"")}
        lost: dict[int, int] = {}
        for key, _ in reader.scan(b"dirty", b""):
            if codec.table_of(key) == codec.BLOCK and codec.is_local(reader.get(key) or b""):
                ino = codec.ino_of(key)
                if not (local / "overlay" / f"{ino & 0xFF:02x}" / f"{ino:x}").exists():
                    lost[ino] = lost.get(ino, 0) + 1
    finally:
        reader.close()
        tables.close()
    waiting = sum(len(read_segment(journal)[1]) for journal in local.glob("journal-*"))
    for number, blocks in sorted(lost.items()):
        checked.add(
            "cache",
            f"the cache in {path} has lost {blocks} unsaved blocks of inode {number}: its overlay file is missing",
            "Mount with this cache to save the rest",
        )
    if standing is None:
        return [f"The cache in {path} holds no workspace yet."]
    notes = []
    head = checked.head.head if checked.head else None
    if checked.format is not None and standing.workspace != checked.format.workspace_id:
        notes.append(f"The cache in {path} is of another workspace.")
    elif head is not None and standing.commit != head.commit:
        notes.append(f"The cache in {path} stands on commit #{standing.seq}, and the newest is #{head.seq}.")
    if dirty or waiting:
        notes.append(
            f"The cache in {path} holds changes of {len(dirty)} files, and {waiting} operations in its journal, that"
            " are not in the store: mount with it to save them."
        )
    return notes or [f"The cache in {path} holds nothing that is not in the store."]
