"""Checks a cache directory that no daemon uses: what is in it that the bucket does not have, and is that whole?"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsfs.errors import CacheError, FormatError, LeaseHeldError, NotFoundError
from wsfs.fsck import Checked, check_marker, tell
from wsfs.index.base import Standing, read_pending, read_standing
from wsfs.index.journal import read_segment
from wsfs.index.tables import Tables
from wsfs.repo import codec
from wsfs.repo.manifest import decode_manifest
from wsfs.store.base import Store
from wsfs.sync.survey import pack_sizes
from wsfs.sync.verify import take_census

_RESCUE: Final = "Copy what is unsaved with 'wsfs export --unsaved DIR --cache-dir {}', then remove the cache directory"


@dataclass(frozen=True, slots=True)
class Held:
    """Whether a cache holds something that is nowhere else, and whether some of it is unsaved and builds on HEAD: a
    mount with it saves that, and would set it aside after another commit."""

    only_here: bool = False
    can_be_saved: bool = False


def check_cache(path: Path, checked: Checked, store: Store) -> Held:
    """Add what is wrong to the findings of `checked`, and what is good to know to its notes. Changes nothing.

    The rows are judged as those of the bucket are, laid over the commit that they build on. Raises LeaseHeldError while
    a daemon uses it, CacheError when there is no cache, or one that cannot be opened.
    """
    if not (path / "lock").exists():
        raise CacheError(f"{path} is not a cache directory: 'wsfs status' names that of a mount")
    lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise LeaseHeldError(f"the cache directory {path} is in use: unmount that workspace first") from exc
        return _check(path, checked, store)
    finally:
        os.close(lock)


def _check(path: Path, checked: Checked, store: Store) -> Held:
    local = path / "local" if (path / "local").is_dir() else path
    if not (local / "index").is_dir():
        checked.notes.append(f"The cache in {path} is empty.")
        return Held()
    tables = Tables(local / "index")
    reader = tables.reader()
    try:
        standing, pending = read_standing(reader), read_pending(reader)
        dirty = {codec.ino_of(key) for key, _ in reader.scan(b"dirty", b"")}
        kept = {codec.ino_of(key) for key, _ in reader.scan(b"kept", b"") if codec.table_of(key) == codec.ATTR}
        rows = {key: row or None for key, row in reader.scan(b"rows", b"")}
    finally:
        reader.close()
        tables.close()
    lost: dict[int, int] = {}
    for key, row in rows.items():
        if codec.table_of(key) == codec.BLOCK and row is not None and codec.is_local(row):
            ino = codec.ino_of(key)
            if not (local / "overlay" / f"{ino & 0xFF:02x}" / f"{ino:x}").exists():
                lost[ino] = lost.get(ino, 0) + 1
    waiting = sum(len(read_segment(journal)[1]) for journal in local.glob("journal-*"))
    for number, blocks in sorted(lost.items()):
        checked.add(
            "cache",
            f"the cache in {path} has lost {blocks} unsaved blocks of inode {number}: its overlay file is missing",
            f"Mount with this cache and delete it ('find MOUNTPOINT -inum {number}' names it): then the rest is saved",
        )
    if standing is None:
        checked.notes.append(f"The cache in {path} holds no workspace yet.")
        return Held()
    notes = _check_rows(path, checked, store, standing, rows)
    head = checked.head.head if checked.head else None
    # The commit that a crash has interrupted may be HEAD: the next mount finds that out.
    commits = {standing.commit, pending.standing.commit if pending else standing.commit}
    if checked.format is not None and standing.workspace != checked.format.workspace_id:
        notes.append(f"The cache in {path} is of another workspace.")
    elif head is not None and head.commit not in commits:
        notes.append(f"The cache in {path} stands on commit #{standing.seq}, and the newest is #{head.seq}.")
    if kept:
        notes.append(
            f"The cache in {path} holds {len(kept)} files and directories that stay on this machine (.wsfsignore)."
        )
    if dirty or waiting:
        notes.append(
            f"The cache in {path} holds changes of {len(dirty)} files, and {waiting} operations in its journal, that"
            " are not in the store: mount with it to save them."
        )
    checked.notes += notes or [f"The cache in {path} holds nothing that is not in the store."]
    unsaved = bool(dirty or waiting)
    return Held(unsaved or bool(kept), unsaved and head is not None and head.commit in commits)


def _check_rows(
    path: Path, checked: Checked, store: Store, standing: Standing, rows: dict[bytes, bytes | None]
) -> list[str]:
    """Judge names, counts and places of data as this cache has them. Returns notes."""
    if checked.listing is None or checked.format is None or standing.workspace != checked.format.workspace_id:
        return []
    try:
        manifest = decode_manifest(store.get(standing.commit).data)
    except (NotFoundError, FormatError):
        return [f"The cache in {path} stands on commit #{standing.seq}, which is gone: its names were not checked."]
    packs = pack_sizes(store, checked.listing)
    found = Checked(format=checked.format, census=take_census(store, manifest, packs, fixes=rows, local=True))
    assert found.census is not None
    tell(found, found.census, f"in the cache in {path} ")
    check_marker(found, f"in the cache in {path} ")
    for finding in found.findings:
        checked.add("cache", finding.what, _RESCUE.format(path), finding.paths)
    return []
