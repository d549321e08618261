"""Collecting garbage because somebody asks for it: for the daemon of a mount, and for a workspace that nobody holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from wsfs.errors import LeaseHeldError
from wsfs.repo.head import Head, State, read_head
from wsfs.repo.workspace import read_format
from wsfs.store.base import Store
from wsfs.sync.bulk import renewed
from wsfs.sync.commit import Committer
from wsfs.sync.gc import Collected, Collector
from wsfs.sync.lease import best_effort, this_process
from wsfs.sync.retain import Policy
from wsfs.sync.room import room
from wsfs.sync.start import CacheDirectory, Workspace, open_workspace

T = TypeVar("T")

_CACHE_SIZE: Final = 1 << 50


def report(store: Store, policy: Policy, done: Collected | None = None) -> dict[str, Any]:
    """What docs/JSON.md describes for `wsfs gc`. Raises StoreError, FormatError, NoWorkspaceError."""
    read_format(store)  # says so if the key is missing
    seq = read_head(store).head.seq
    counted = asdict(done or Collected())
    return {
        "url": store.url,
        "seq": seq,
        "applied": done is not None,
        **asdict(room(store, policy)),
        "freed": counted.pop("bytes"),
        "moved": counted.pop("sent"),
        **counted,
    }


def needs_commit(done: Collected) -> bool:
    """Whether a commit, and another collection after it, would make more go."""
    return bool(done.condemned or done.repacked)


def add(first: Collected, second: Collected) -> Collected:
    """What two collections, one after the other, did together."""
    both = {one.name: getattr(first, one.name) + getattr(second, one.name) for one in fields(Collected)}
    return Collected(**both | {"condemned": second.condemned})


def collect_unmounted(
    store: Store, policy: Policy, directory: Path, tell: Callable[[str], None] = lambda _notice: None
) -> dict[str, Any]:
    """Collect the garbage of a workspace that was stopped in order. `directory` is empty, and holds a cache meanwhile.

    It takes the lease, and makes a commit if anything is to go that a commit has to come before. Raises
    LeaseHeldError when it is mounted, or was not stopped in order, FencedError when it is taken over meanwhile, and
    whatever a mount raises.
    """
    read_format(store)  # as above
    _check(store, read_head(store).head)
    cache = CacheDirectory(directory, tell)
    try:
        workspace = open_workspace(store, cache, this_process(), cache_size=_CACHE_SIZE, tell=tell)
        lease = workspace.lease
        assert lease is not None
        try:
            _check(store, workspace.head.head)  # nobody was there in between
            # It may take long: who wants to mount the workspace meanwhile waits.
            with renewed(lease, State.STOPPING):
                done = _collect(store, workspace, policy)
        finally:
            before = workspace.head.head
            best_effort(lambda: lease.release(before.state, before.reason), lambda _failed: None)
            workspace.close()
        return report(store, policy, done)
    finally:
        cache.close(clean=False)


def _check(store: Store, head: Head) -> None:
    if head.state != State.STOPPED:
        raise LeaseHeldError(
            f"{store.url} is not stopped, its state is {head.state.value}: name its mount point instead, or mount and"
            " stop it first, so that everything is saved"
        )


def _collect(store: Store, workspace: Workspace, policy: Policy) -> Collected:
    index, lease = workspace.index, workspace.lease
    assert lease is not None
    for ref in index.unloaded():
        workspace.loader.load(ref)
    committer = Committer(store, index, workspace.overlay, workspace.packs, lease, _here)
    collector = Collector(store, index, lease, _here, committer, policy=policy)
    done = collector.collect()
    if needs_commit(done):
        committer.commit(State.STOPPING, empty=True)
        done = add(done, collector.collect())
    return done


def _here(function: Callable[[], T], /) -> T:
    """Nobody else uses the index: this thread owns it."""
    return function()
