"""The lists of unsaved names beside the index: what is in them, and for how long."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from harness import SMALL_BLOCK, Crash, World, unreachable

from wsfs.errors import StoreError
from wsfs.index import names
from wsfs.index.names import Entry, entries_of, listed
from wsfs.model import ROOT_INO, Dirent, Ino
from wsfs.repo import codec
from wsfs.repo.head import State
from wsfs.sync.upload import Limit


def files(world: World) -> list[Path]:
    return sorted((world.cache_path / "local").glob("names-*"))


def test_they_last_from_the_flush_to_the_commit(small: World) -> None:
    """Of each generation there is one, and a commit that fails takes none away."""
    assert files(small) == []
    ino = small.create(b"f", b"x")
    small.flush()
    assert Entry(ino, ROOT_INO, b"f") in listed(small.cache_path / "local")
    small.store.fault = unreachable
    with pytest.raises(StoreError):
        small.commit()
    small.unlink(b"f")
    small.flush()
    assert len(files(small)) == 2
    assert Entry(0, ROOT_INO, b"f") in listed(small.cache_path / "local")
    small.store.heal()
    small.commit()
    assert files(small) == []


def test_what_a_commit_has_left_out_stays_listed(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsfs.sync.commit._WORTH_LEAVING", 0)
    small.create(b"large", os.urandom(3 * SMALL_BLOCK))
    small.committer.commit(State.STOPPING, limit=Limit(time.monotonic() + 100, 200))
    assert small.index.is_dirty
    assert b"large" in {entry.name for entry in listed(small.cache_path / "local")}
    small.commit()
    assert files(small) == []


def test_a_start_after_a_commit_that_was_finished_by_it_has_none(small: World) -> None:
    """It finds out that HEAD has what the last one died in."""

    def reached(step: str) -> None:
        if step == "head":
            small.crash()
            raise Crash

    small.create(b"f", b"x")
    small.reached = reached
    with pytest.raises(Crash):
        small.commit()
    assert len(files(small)) == 1
    small.reached = lambda _step: None
    small.start()
    assert not small.index.is_dirty
    assert files(small) == []


def test_what_a_full_disk_has_cut_off_hides_nothing_that_follows(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is read up to the first record that is not whole."""
    directory = small.cache_path / "local"
    row = codec.encode_dirent(Dirent(Ino(50), 8, 51))
    write = os.write
    monkeypatch.setattr(names.os, "write", lambda fd, data: write(fd, data[:10]))
    names.note(directory, 7, [(codec.dirent_key(ROOT_INO, b"lost"), row)])
    monkeypatch.undo()
    names.note(directory, 7, [(codec.dirent_key(ROOT_INO, b"kept"), row)])
    assert [entry.name for entry in listed(directory)] == [b"kept"]


def test_a_full_disk_keeps_nothing_from_being_flushed(small: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    small.create(b"f", b"x")
    monkeypatch.setattr(names.os, "fdatasync", full)
    small.flush()
    assert small.index.pending_rows == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "nonsense"])
def test_of_a_damaged_list_what_comes_before_counts(tmp_path: Path, damage: str) -> None:
    def rows(ino: int) -> list[tuple[bytes, bytes]]:
        came = (codec.dirent_key(1, b"n%d" % ino), codec.encode_dirent(Dirent(Ino(ino), 8, ino)))
        return [
            came,
            (codec.attr_key(ino), b"anything"),
            (codec.attr_key(ino + 1), b""),
            (codec.dirent_key(1, b"g"), b""),
        ]

    names.note(tmp_path, 1, rows(20))
    whole = (tmp_path / "names-0000000000000001").read_bytes()
    names.note(tmp_path, 1, rows(30))
    path = tmp_path / "names-0000000000000001"
    data = bytearray(path.read_bytes())
    assert list(listed(tmp_path)) == entries_of(rows(20)) + entries_of(rows(30))
    if damage == "cut":
        del data[-1]
    elif damage == "flipped":
        data[-3] ^= 1
    else:
        data[len(whole) :] = b"\xff" * 40
    path.write_bytes(data)
    assert list(listed(tmp_path)) == [Entry(20, 1, b"n20"), Entry(0, 1, b"g"), Entry(21, 0, b"")]


def test_a_list_that_cannot_be_removed_keeps_no_commit_from_ending(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some file systems even that takes room. It is tried again by the next one."""

    def full(_path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    small.create(b"f", b"x")
    small.flush()
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **how: (full if "names-" in path.name else unlink)(path, **how))
    assert small.commit() is not None
    assert not small.index.is_dirty
    assert len(files(small)) == 1
    monkeypatch.undo()
    small.create(b"g", b"x")
    small.commit()
    assert files(small) == []
