"""Who may write: politeness, takeover, fencing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
from harness import World, delayed_swap, unreachable

from wsfs import mount
from wsfs.config import load_settings
from wsfs.daemon import Daemon
from wsfs.errors import (
    FencedError,
    ForeignWorkspaceError,
    FormatError,
    LeaseHeldError,
    MarkerError,
    NotFoundError,
    NoWorkspaceError,
    SyncFailedError,
    TransientStoreError,
)
from wsfs.index.index import Batch
from wsfs.model import MARKER_INO, pack_key, segment_key
from wsfs.repo import codec
from wsfs.repo.head import Head, HeadVersion, Holder, State, read_head
from wsfs.repo.workspace import initialise
from wsfs.store.base import Blob
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


def test_a_save_without_changes_says_that_the_mount_was_cut_off(world: World) -> None:
    """What is seen here is not what is saved there."""
    world.create(b"f", b"x")
    world.commit()
    lease = world.workspace.lease
    assert lease is not None
    other = world.observer()
    Lease.take(other, read_head(other), ELSEWHERE, takeover=True)
    with pytest.raises(FencedError):
        lease.renew(State.RUNNING)
    with pytest.raises(FencedError, match="taken over by elsewhere"):
        world.commit()


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


def showing(world: World, blob: Blob) -> None:
    """From now on the store shows this HEAD."""
    plain = world.store.get

    def get(key: str, start: int | None = None, length: int | None = None) -> Blob:
        return blob if key == "HEAD" else plain(key, start, length)

    world.store.get = get  # type: ignore[method-assign]


def shown_well(world: World) -> None:
    del world.store.get


def old_blob(world: World) -> Blob:
    return world.observer().get("HEAD")


@pytest.mark.parametrize("which", ["of this mount", "of the one before"])
def test_an_old_head_fences_nobody(world: World, which: str) -> None:
    """A store that shows an older version for a moment is asked again later; and what it showed is not kept."""
    old = old_blob(world)
    if which == "of the one before":
        world.stop()
        world.start()
    lease = world.workspace.lease
    assert lease is not None
    for _ in range(2):
        lease.renew(State.RUNNING)
    showing(world, old)
    with pytest.raises(TransientStoreError, match="an old HEAD"):
        lease.refresh()
    shown_well(world)
    lease.renew(State.RUNNING)
    assert lease.fenced is None
    # The same where the answer to a swap got lost.
    world.store.lost = unreachable
    showing(world, old)
    with pytest.raises(TransientStoreError, match="an old HEAD"):
        lease.renew(State.RUNNING)
    world.store.heal()
    shown_well(world)
    world.create(b"file", b"x" * 9000)
    with pytest.raises(TransientStoreError, match="arrived late"):
        world.commit()
    assert world.commit() is not None


@pytest.mark.parametrize("head", [b"garbage", None], ids=["damaged", "missing"])
def test_a_head_that_cannot_be_read_after_a_lost_answer_fences_nobody(world: World, head: bytes | None) -> None:
    """What was sent then is still known as ours when it is seen later."""
    lease = world.workspace.lease
    assert lease is not None
    world.store.lost = unreachable
    if head is not None:
        showing(world, Blob(head, "etag", 1.0))
    else:
        world.store.fault = missing
    with pytest.raises((FormatError, NoWorkspaceError)):
        lease.renew(State.RUNNING)
    world.store.heal()
    if head is not None:
        shown_well(world)
    with pytest.raises(TransientStoreError, match="arrived late"):
        lease.renew(State.RUNNING)
    lease.renew(State.RUNNING)


def missing(method: str, key: str) -> None:
    if (method, key) == ("get", "HEAD"):
        raise NotFoundError("there is no HEAD")


def test_a_swap_that_arrives_late_is_built_upon(world: World) -> None:
    """It is one of ours: the next but one knows it. So a stop that was complete does not end as a failure."""
    lease = world.workspace.lease
    assert lease is not None
    lease.grew(1000)
    before = world.head().ledger
    arrive = delayed_swap(world)
    with pytest.raises(TransientStoreError):
        lease.release(State.STOPPED)
    arrive()
    assert world.head().state == State.STOPPED
    with pytest.raises(TransientStoreError, match="arrived late"):
        lease.release(State.STOPPED)
    lease.release(State.STOPPED)
    after = world.head().ledger
    assert after is not None
    assert after.stored - (before.stored if before else 0) == 1000


def test_a_commit_that_arrives_while_another_swap_is_tried(world: World) -> None:
    """The lease is renewed beside a commit that waits for its answer: HEAD keeps the commit."""
    world.create(b"file", b"x" * 9000)
    lease = world.workspace.lease
    assert lease is not None
    arrive = delayed_swap(world)
    with pytest.raises(TransientStoreError):
        world.commit()
    arrive()
    with pytest.raises(TransientStoreError, match="arrived late"):
        lease.renew(State.RUNNING)
    lease.renew(State.RUNNING)
    world.create(b"more")
    saved = world.commit()
    assert saved is not None
    assert (saved.files, saved.bytes) == (2, 0), "only this one and its directory: the other had been committed"
    world.restart_cold()
    assert world.content(b"file") == b"x" * 9000


def test_a_copy_of_this_machine_replaces_nothing(world: World, tmp_path: Path) -> None:
    """Two that are resumed from one snapshot have the same epoch, and choose the same names. What the first one has
    committed stays whole, the second one is told by HEAD that it is not the one, and its changes stay in its cache."""
    other = World(tmp_path / "other", bucket=world.bucket)
    world.stop()
    shutil.copytree(world.cache_path, other.cache_path, dirs_exist_ok=True)
    world.start()
    lease, snapshot = world.workspace.lease, world.bucket.objects["HEAD"]
    assert lease is not None
    version = read_head(world.observer())
    other.start(takeover=True)  # for an index; its lease is then made a copy of the first one's
    world.bucket.objects["HEAD"] = snapshot
    other.create(b"theirs", b"B" * 9000)
    other.workspace.lease = other.committer._lease = Lease(other.store, version, this_process())
    world.create(b"mine", b"A" * 9000)
    world.commit()
    with pytest.raises(TransientStoreError, match="other names"):
        other.commit()
    with pytest.raises(FencedError):
        other.commit()
    world.restart_cold()
    assert world.content(b"mine") == b"A" * 9000
    assert other.content(b"theirs") == b"B" * 9000
    other.crash()


@pytest.mark.parametrize("folder", ["packs", "meta"])
def test_names_that_are_taken_are_left_out(world: World, folder: str) -> None:
    """As after a bucket was put back to an older state: a save goes on with other names."""
    assert world.workspace.lease is not None
    epoch = world.workspace.lease.epoch
    for number in range(1, 9):
        key = pack_key(epoch, number) if folder == "packs" else segment_key(epoch, number)
        world.observer().put(key, b"left")
    world.create(b"file", b"x" * 9000)
    with pytest.raises(TransientStoreError, match="other names"):
        world.commit()
    world.commit()
    world.restart_cold()
    assert world.content(b"file") == b"x" * 9000


@pytest.mark.parametrize("when", ["before the commit", "during it"])
def test_nothing_is_saved_for_a_workspace_that_was_given_back(world: World, when: str) -> None:
    """The commit is not HEAD, and nothing counts as saved. What has changed stays in the cache, whatever was asked: the
    next mount saves it."""
    lease = world.workspace.lease
    assert lease is not None
    world.create(b"precious", b"P" * 9000)
    left: list[Head] = []

    def give_back(step: str) -> None:
        if step == "manifest":
            lease.release(State.SYNC_FAILED, "the store was down")
            left.append(world.head())

    if when == "during it":
        world.reached = give_back
    else:
        give_back("manifest")
    with pytest.raises(SyncFailedError, match="given the workspace back"):
        world.commit()
    world.reached = lambda _step: None
    assert left == [world.head()]
    world.close()
    world.start()
    assert world.content(b"precious") == b"P" * 9000


def test_a_takeover_does_not_wait_for_one_that_says_that_it_stops() -> None:
    """It may say so for ever."""
    store = MemoryStore()
    initialise(store)
    lease = Lease.take(store, read_head(store), ELSEWHERE, takeover=False)
    lease.renew(State.STOPPING)
    version = wait_for(
        store,
        read_head(store),
        this_process(),
        patience=0.0,
        insist=True,
        tell=lambda _line: None,
        sleep=lambda _seconds: pytest.fail("it waits"),
    )
    assert version.head.state == State.STOPPING


def test_a_mount_is_told_that_it_was_taken_over_whoever_finds_out(world: World) -> None:
    """A collection of garbage may be the first to see it."""
    lease = world.workspace.lease
    assert lease is not None
    Lease.take(world.observer(), read_head(world.observer()), ELSEWHERE, takeover=True)
    with pytest.raises(FencedError):
        lease.refresh()
    told: list[FencedError] = []

    class Saver:
        state = State.RUNNING
        reason = ""

        async def fence(self, exc: FencedError) -> None:
            told.append(exc)

    async def main() -> None:
        with trio.fail_after(60):
            await Daemon._renew_lease(daemon)  # type: ignore[arg-type]

    daemon = SimpleNamespace(_workspace=world.workspace, _saver=Saver())
    trio.run(main)
    assert told == [lease.fenced]


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
