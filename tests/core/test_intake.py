"""An import that is interrupted: the workspace is empty or has all of it, whatever stops it and wherever."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Crash, Store, World, shrink

import wsfs.sync.lease
from wsfs.errors import FencedError, LeaseHeldError, StoreError, TransientStoreError, WsfsError
from wsfs.fsck import check
from wsfs.intake import EMPTY, take_in
from wsfs.repo.head import HEAD_KEY, Holder, State, encode_head, read_head
from wsfs.repo.workspace import initialise
from wsfs.sources import DirectorySource
from wsfs.store.memory import MemoryBucket
from wsfs.sync.lease import Lease, this_process
from wsfs.sync.progress import Progress
from wsfs.sync.recover import left_elsewhere

FILES = 30


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectorySource:
    """More than one pack and more than one partition."""
    shrink(monkeypatch)
    top = tmp_path / "source"
    for number in range(FILES):
        (top / f"d{number % 3}").mkdir(parents=True, exist_ok=True)
        (top / f"d{number % 3}" / f"f{number}").write_bytes(os.urandom(3000))
    return DirectorySource(top)


def new_bucket() -> MemoryBucket:
    bucket = MemoryBucket()
    initialise(Store(bucket))
    return bucket


def run(store: Store, source: DirectorySource) -> None:
    take_in(store, source, owner=None, progress=Progress())


def is_whole(bucket: MemoryBucket) -> bool:
    """Whether it is there; False if the workspace is empty. Anything else is wrong."""
    store = Store(bucket)
    assert not check(store, data=True, every_commit=True).findings
    files = read_head(store).head.files
    assert files in (EMPTY, EMPTY + FILES + 3)
    return files != EMPTY


def test_an_import_promises_nothing_of_what_a_cache_has_kept(source: DirectorySource) -> None:
    """The first stop could not save anything, and so the workspace is empty."""
    store = Store(new_bucket())
    head = read_head(store).head
    store.put(HEAD_KEY, encode_head(replace(head, state=State.SYNC_FAILED, reason="it stays on a")))
    run(store, source)
    now = read_head(store).head
    assert now.state is State.SYNC_FAILED
    assert now.reason.startswith("it stays on a; the workspace was changed since, ")


def test_an_import_that_fails_forgets_nothing_of_what_a_cache_has_kept(
    source: DirectorySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount before has died elsewhere."""
    store = Store(new_bucket())
    dead = Holder("a", 7, "its boot", "noon", "cache")
    store.put(HEAD_KEY, encode_head(replace(read_head(store).head, state=State.RUNNING, holder=dead)))
    monkeypatch.setattr(wsfs.sync.lease, "SILENT_SECONDS", -1)

    def no_packs(method: str, key: str) -> None:
        if method == "put" and key.startswith("packs/"):
            raise StoreError("no packs")

    store.fault = no_packs
    with pytest.raises(StoreError):
        run(store, source)
    told = left_elsewhere(read_head(store).head, this_process(), crashed=False, unsaved=False)
    assert "cache directory on a (process 7" in told


def puts_of(source: DirectorySource) -> int:
    store = Store(new_bucket())
    run(store, source)
    assert len(store.puts("packs/")) > 3
    assert len(store.puts("meta/")) > 3
    return len(store.puts())


class Strike:
    """For `Store.fault` and `Store.lost`: raises from the PUT of this number on."""

    def __init__(self, number: int, what: type[BaseException]) -> None:
        self.left = number
        self.what = what

    def __call__(self, method: str, _key: str) -> None:
        self.left -= method == "put"
        if self.left < 0 and method == "put":
            raise self.what("now")


@pytest.mark.parametrize("how", ["before", "after", "refused", "unanswered"])
def test_whatever_stops_it_the_workspace_is_empty_or_whole_and_it_can_be_repeated(
    source: DirectorySource, how: str
) -> None:
    """At each PUT: killed before it and after it, an error before it, and no answer to it."""
    for stop in range(puts_of(source)):
        bucket = new_bucket()
        store = Store(bucket)
        strike = Strike(stop, {"refused": StoreError, "unanswered": TransientStoreError}.get(how, Crash))
        if how in ("before", "refused"):
            store.fault = strike
        else:
            store.lost = strike
        try:
            run(store, source)
        except (Crash, StoreError, WsfsError):
            done = is_whole(bucket)
        else:
            done = True
        assert is_whole(bucket) == done
        if not done:
            run(Store(bucket), source)
            assert is_whole(bucket)
        assert read_head(Store(bucket)).head.state in (State.STOPPED, State.STOPPING, State.STARTING)


def test_who_takes_the_workspace_over_wins(source: DirectorySource, tmp_path: Path) -> None:
    """Nothing of the import is seen then."""
    bucket = new_bucket()
    store = Store(bucket)

    def strike(_method: str, key: str) -> None:
        if key.startswith("packs/"):
            store.heal()
            other = Store(bucket)
            Lease.take(other, read_head(other), this_process(), takeover=True).release(State.STOPPED)

    store.fault = strike
    with pytest.raises(FencedError):
        run(store, source)
    assert not is_whole(bucket)


def test_who_commits_between_the_look_and_the_lease_wins(source: DirectorySource, tmp_path: Path) -> None:
    world = World(tmp_path)
    store = Store(world.bucket)
    real = source.items

    def items() -> object:
        world.start()
        world.create(b"mine", b"mine")
        world.commit()
        world.stop()
        return real()

    source.items = items  # type: ignore[method-assign, assignment]
    with pytest.raises(LeaseHeldError):
        run(store, source)
    world.start()
    assert world.content(b"mine") == b"mine"
    world.crash()


def test_a_mount_waits_while_it_is_imported(source: DirectorySource) -> None:
    store = Store(new_bucket())
    states = []

    def note(method: str, key: str) -> None:
        if key.startswith("packs/"):
            states.append(read_head(Store(store._bucket)).head.state)

    store.fault = note
    run(store, source)
    assert set(states) == {State.STOPPING}
    assert read_head(store).head.holder is None
    ledger = read_head(store).head.ledger
    assert ledger is not None
    assert ledger.stored > FILES * 3000


@pytest.mark.parametrize("cannot", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_tell_where_data_is_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cannot: int
) -> None:
    """A file takes fewer blocks than its size wherever it is compressed: that alone does not make zeros of it."""
    top = tmp_path / "source"
    top.mkdir()
    with (top / "f").open("wb") as file:
        file.truncate(3 << 20)
        file.seek(2 << 20)
        file.write(b"here")
    lseek = os.lseek

    def seek(descriptor: int, offset: int, how: int) -> int:
        if how == os.SEEK_DATA:
            raise OSError(cannot, os.strerror(cannot))
        return lseek(descriptor, offset, how)

    monkeypatch.setattr(os, "lseek", seek)
    item = next(item for item in DirectorySource(top).items() if item.path == b"f")
    assert item.extents == ((0, 3 << 20),)
