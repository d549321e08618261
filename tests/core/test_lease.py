"""Who may write: politeness, takeover, fencing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from harness import World, unreachable

from wsfs import mount
from wsfs.config import load_settings
from wsfs.errors import FencedError, ForeignWorkspaceError, LeaseHeldError, MarkerError, TransientStoreError
from wsfs.index.index import Batch
from wsfs.model import MARKER_INO
from wsfs.repo import codec
from wsfs.repo.head import HeadVersion, Holder, State, read_head
from wsfs.repo.workspace import initialise
from wsfs.store.memory import MemoryStore
from wsfs.store.url import open_store
from wsfs.sync.lease import SILENT_SECONDS, Lease, obstacle, this_process, wait_for
from wsfs.sync.start import CacheDirectory

ELSEWHERE = Holder("elsewhere", 77, "another-boot", "2026-01-01T00:00:00Z")


def held(by: Holder | None, state: State = State.RUNNING, age: float | None = 1.0) -> HeadVersion:
    store = MemoryStore()
    initialise(store)
    version = read_head(store)
    return replace(version, head=replace(version.head, holder=by, state=state), age=age)


@pytest.mark.parametrize(
    ("version", "worth"),
    [
        (held(None), None),
        (held(ELSEWHERE, State.STOPPED), None),
        (held(ELSEWHERE, State.ERROR), None),
        (held(ELSEWHERE), False),
        (held(ELSEWHERE, State.SYNC_FAILED), False),
        (held(ELSEWHERE, State.STOPPING), True),
        (held(ELSEWHERE, age=None), False),
        (held(ELSEWHERE, age=SILENT_SECONDS - 1), False),
        (held(ELSEWHERE, age=SILENT_SECONDS + 1), None),
        (held(ELSEWHERE, State.STOPPING, age=SILENT_SECONDS + 1), None),
        (held(this_process()), None),
        (held(replace(this_process(), pid=os.getppid())), False),
        (held(replace(this_process(), pid=2**22 + 1)), None),
        (held(replace(this_process(), pid=2**22 + 1, boot_id="another")), False),
    ],
)
def test_what_stands_in_the_way(version: HeadVersion, worth: bool | None) -> None:
    """A live or recent holder does; one that stopped, died here or fell silent does not."""
    found = obstacle(version, this_process())
    assert (None if found is None else found.worth) == worth


@pytest.mark.parametrize(
    ("cache", "boot", "free"), [("1:2", "boot", True), ("1:3", "boot", False), ("", "boot", False), ("1:2", "b", False)]
)
def test_a_holder_whose_cache_we_have_locked_is_gone(cache: str, boot: str, free: bool) -> None:
    """In whatever container it was, as host name and pid namespace tell, but under this kernel."""
    dead = Holder("container-1", 7, "boot/4026531836", "2026-01-01T00:00:00Z", "1:2" if cache else "")
    me = Holder("container-2", 7, f"{boot}/4026531999", "2026-01-01T00:01:00Z", cache)
    for state in (State.RUNNING, State.STOPPING, State.SYNC_FAILED):
        assert (obstacle(held(dead, state), me) is None) == free


def test_the_lock_of_a_copied_cache_is_another_one(world: World, tmp_path: Path) -> None:
    """Else who mounts a copy would shut out a daemon that lives."""
    shutil.copytree(world.cache_path, tmp_path / "copy")
    copy = CacheDirectory(tmp_path / "copy", world.told.append)
    assert copy.lock_id != world.cache.lock_id
    copy.close(clean=False)
    before = world.cache.lock_id
    world.crash()
    world.start()
    assert world.cache.lock_id == before


def test_a_held_workspace_is_refused_unless_taken_over(world: World, tmp_path: Path) -> None:
    """The refusal names the holder and the way to cut it off; nothing changes by it."""
    world.stop()
    first = World(tmp_path / "first", bucket=world.bucket)
    first.start(me=ELSEWHERE)
    before = world.bucket.objects["HEAD"]
    second = World(tmp_path / "second", bucket=world.bucket)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsfs.sync.start.PATIENCE", 0.0)
        with pytest.raises(LeaseHeldError, match=r"elsewhere \(process 77.*takeover"):
            second.start()
    assert world.bucket.objects["HEAD"] == before
    second.start(takeover=True)
    assert second.head().epoch == first.workspace.lease.epoch + 1  # type: ignore[union-attr]
    lease = first.workspace.lease
    assert lease is not None
    for _ in range(2):
        with pytest.raises(FencedError, match="taken over"):
            lease.renew(State.RUNNING)
    assert lease.fenced is not None
    first.crash()
    second.crash()


def test_a_mount_that_is_saving_is_waited_for() -> None:
    """As long as it says so; then the new one starts."""
    store = MemoryStore()
    initialise(store)
    lease = Lease.take(store, read_head(store), ELSEWHERE, takeover=False)
    lease.renew(State.STOPPING)
    told: list[str] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 50:
            lease.release(State.STOPPED)

    version = wait_for(
        store, read_head(store), this_process(), patience=1.0, tell=told.append, sleep=sleep, clock=lambda: sum(slept)
    )
    assert version.head.state == State.STOPPED
    assert sum(slept) > 1.0
    assert any("still saving" in line for line in told)


def test_waiting_for_one_that_just_runs_is_short() -> None:
    """It may have been unmounted just now; but not for long."""
    store = MemoryStore()
    initialise(store)
    Lease.take(store, read_head(store), ELSEWHERE, takeover=False)
    slept: list[float] = []
    version = wait_for(
        store,
        read_head(store),
        this_process(),
        patience=3.0,
        tell=lambda _line: None,
        sleep=slept.append,
        clock=lambda: sum(slept),
    )
    assert version.head.holder == ELSEWHERE
    assert 3.0 <= sum(slept) < 6.0


def test_of_two_that_take_it_at_once_one_wins() -> None:
    """The other is told so, and has changed nothing."""
    store = MemoryStore()
    initialise(store)
    version = read_head(store)
    lease = Lease.take(store, version, this_process(), takeover=False)
    with pytest.raises(LeaseHeldError, match="at the same moment"):
        Lease.take(store, version, ELSEWHERE, takeover=False)
    before = read_head(store)
    lease.renew(State.RUNNING)
    assert before.head.epoch == lease.epoch == read_head(store).head.epoch


def test_a_renewal_that_fails_can_be_repeated(world: World) -> None:
    """Only politeness depends on it."""
    lease = world.workspace.lease
    assert lease is not None
    world.store.fault = unreachable
    with pytest.raises(TransientStoreError):
        lease.renew(State.SYNC_FAILED, "down")
    world.store.heal()
    lease.renew(State.SYNC_FAILED, "down")
    assert (world.head().state, world.head().reason) == (State.SYNC_FAILED, "down")


def test_one_daemon_per_cache_directory(world: World) -> None:
    """The second is refused, and told where the first one is."""
    world.cache.note("/somewhere", State.RUNNING)
    with pytest.raises(LeaseHeldError, match=r"mounted at /somewhere: .* or this one read-only"):
        CacheDirectory(world.cache_path, lambda _line: None, sleep=lambda _seconds: None)


def test_a_mount_that_fails_gives_the_lease_back(world: World) -> None:
    """HEAD says ERROR and why, and names no holder: the next one need not wait."""
    world.stop()
    world.start()
    batch = Batch()
    batch.put(codec.block_key(MARKER_INO, 0), b"\x01damaged")
    world.index.apply(batch)
    world.commit()
    world.crash()
    with pytest.raises(MarkerError, match="damaged"):
        world.start()
    assert (world.head().state, world.head().holder) == (State.ERROR, None)
    assert "damaged" in world.head().reason


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_cache_stays_locked_while_anything_of_the_mount_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abandoned: bool
) -> None:
    """Whoever has the lock takes the workspace from the holder at once. So a stop that has left a commit behind, in a
    thread that waits for the store, keeps the lock until its process ends."""
    import wsfs.daemon

    class Daemon:
        def __init__(self, *_parts: object) -> None:
            self.abandoned = abandoned

        def run(self) -> None:
            pass

    kept: list[CacheDirectory] = []

    class Kept(CacheDirectory):
        def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
            super().__init__(path, tell)
            kept.append(self)

    monkeypatch.setattr(wsfs.daemon, "Daemon", Daemon)
    monkeypatch.setattr(mount, "CacheDirectory", Kept)
    url, cache = f"file://{tmp_path}/bucket", tmp_path / "cache"
    initialise(open_store(url))
    (tmp_path / "here").mkdir()
    mount.run(load_settings(url, tmp_path / "here", options=[f"cache_dir={cache}"]), lambda: None)
    if abandoned:
        with pytest.raises(LeaseHeldError):
            CacheDirectory(cache, lambda _line: None, sleep=lambda _seconds: None)
        kept[0].close(clean=False)
    CacheDirectory(cache, lambda _line: None, sleep=lambda _seconds: None).close(clean=False)


def test_a_machine_that_cannot_serve_gives_the_workspace_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What serves is imported while the store is asked: that it is missing shows when the lease is taken."""
    monkeypatch.setitem(sys.modules, "wsfs.daemon", None)
    url = f"file://{tmp_path}/bucket"
    initialise(open_store(url))
    (tmp_path / "here").mkdir()
    with pytest.raises(ImportError):
        mount.run(load_settings(url, tmp_path / "here", options=[f"cache_dir={tmp_path}/cache"]), lambda: None)
    head = read_head(open_store(url)).head
    assert (head.state, head.holder) == (State.ERROR, None)


def test_the_cache_of_another_workspace_is_not_mixed_in(tmp_path: Path) -> None:
    """A bucket that was made anew at the same URL has another id: the old rows are not its rows."""
    one = World(tmp_path)
    one.start()
    one.create(b"old", b"x")
    one.stop()
    two = World(tmp_path)
    two.start()
    assert two.listing()[1:] == []
    two.crash()


def test_head_of_another_workspace_is_refused(world: World, tmp_path: Path) -> None:
    """FORMAT and HEAD must belong together."""
    world.crash()
    other = World(tmp_path / "other")
    world.bucket.objects["HEAD"] = other.bucket.objects["HEAD"]
    with pytest.raises(ForeignWorkspaceError):
        world.start()
