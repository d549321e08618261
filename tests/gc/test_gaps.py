"""Dies in every gap of tests/core/gaps.py, and between any two changes of the bucket and of the cache directory.

One run of a protocol is watched, and at each instant the bucket and the cache directory are copied: every copy is what
a `kill -9` leaves. From it a mount on the same cache, and one on another host with an empty cache, must find what they
should.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from gaps import COLLECTION, COMMIT, CONTINUED, LEASE, OVERTAKEN, Cleaner, Left, Table
from garbage import GcWorld
from harness import Crash, Store, tree
from test_gc_crashes import prepare as prepare_garbage

from wsfs.data.overlay import Overlay
from wsfs.errors import LeaseHeldError, StoreError, TransientStoreError
from wsfs.export import from_cache
from wsfs.index.index import Index
from wsfs.index.journal import read_segment
from wsfs.index.tables import Writer
from wsfs.model import Packed
from wsfs.remote import fetch_all
from wsfs.repo import codec
from wsfs.repo.head import Holder, State, read_head
from wsfs.sync import commit, gc, start
from wsfs.sync.lease import SILENT_SECONDS, Lease, boot_id, this_process
from wsfs.sync.load import Loader

BLOCK = 4096
Make = Callable[..., GcWorld]
Tree = dict[bytes, Any]

GONE = [replace(this_process(), pid=2**22 + number) for number in (1, 2)]
"""Processes of this machine that are dead."""

ELSEWHERE = Holder("elsewhere", 77, "another boot", "2026-01-01T00:00:00Z")


def copy_cache(source: Path, target: Path) -> None:
    """A copy of a cache directory, without directories that are empty, and with holes where there are zeros."""
    target.mkdir()
    for place, _, names in os.walk(source):
        for name in names:
            path = Path(place, name)
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            copy.write_bytes(data.rstrip(b"\0"))
            os.truncate(copy, len(data))
    boot = target / "boot"
    if boot.exists() and boot.read_text() == boot_of(source):
        boot.write_text(boot_of(target))


def boot_of(cache: Path) -> str:
    """What a cache notes about the machine that it is on, and about itself."""
    return f"{boot_id()} {cache.stat().st_ino}"


def signature(top: Path) -> dict[str, tuple[int, int, int]]:
    """Differs when anything in a directory has changed."""
    found = {}
    for place, _, names in os.walk(top):
        for name in names:
            path = os.path.join(place, name)
            status = os.lstat(path)
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


# --- what is watched --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Instant:
    """What a crash finds. `step` was the last one; `exact` if nothing has happened since."""

    label: str
    step: str | None
    exact: bool
    cache: Path
    objects: dict[str, Any]
    time: float


class Watch:
    """Copies everything at each step, and before and after each change."""

    def __init__(self, world: GcWorld, root: Path) -> None:
        self.instants: list[Instant] = []
        self._world = world
        self._root = root
        self._lock = threading.RLock()
        self._step: str | None = None
        self._last: object = None

    def step(self, name: str) -> None:
        self._step = name
        self.take(name, exact=True)

    def take(self, label: str, *, exact: bool = False) -> None:
        with self._lock:
            objects = dict(self._world.bucket.objects)
            state = objects, signature(self._world.cache_path)
            if state == self._last and not exact:
                return
            self._last = state
            place = self._root / f"instant{len(self.instants)}"
            if self._world.cache_path.exists():
                copy_cache(self._world.cache_path, place)
            label = f"{label} (after {self._step})"
            time = self._world.clock.added
            self.instants.append(Instant(label, self._step, exact, place, objects, time))

    def around(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """The function, with a copy before and after it."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.take(f"before {label}")
            result = function(*args, **kwargs)
            self.take(f"after {label}")
            return result

        return watched

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Watch every step, request, LMDB transaction, rename and removal of this world."""
        world = self._world
        world.reached = world.starting = world.step = self.step
        for owner, name in ((Writer, "commit"), (Path, "rename"), (Path, "unlink")):
            patch.setattr(owner, name, self.around(getattr(owner, name), name))

        def watch(store: Store) -> None:
            store.fault = lambda method, key: self.take(f"before {method} {key}") if method == "put" else None
            store.lost = lambda method, key: self.take(f"after {method} {key}")

        world.watch = watch
        watch(world.store)
        world.deleting = lambda key: self.take(f"before delete {key}")
        world.deleted = lambda key: self.take(f"after delete {key}")


# --- what runs --------------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A protocol about to run; `act` runs it, and can be repeated after a failure.

    Another host finds `before` as long as HEAD's commit is `first`, and `after` then. A mount on this cache finds
    `after` in any case, and what `rescued` says in what was set aside.
    """

    table: Table
    world: GcWorld
    act: Callable[[], object]
    first: str
    before: Tree
    after: Tree
    rescued: dict[str, bytes] = field(default_factory=dict)


def with_changes(make: Make, deltas: int = 0) -> tuple[GcWorld, str, Tree]:
    """A mount with unsaved changes of several kinds, the commit that it stands on, and the tree of that."""
    world = make()
    world.start(me=GONE[0])
    ino = world.create(b"f", os.urandom(4 * BLOCK))
    world.create(b"removed", os.urandom(2 * BLOCK))
    world.commit()
    for number in range(deltas):
        world.create(b"delta%d" % number)
        world.commit(may_fold=False)
    before = tree(world)
    world.flush()
    world.write(ino, BLOCK + 10, os.urandom(BLOCK))
    world.unlink(b"removed")
    world.create(b"held", os.urandom(700))
    world.create(b"g", os.urandom(2 * BLOCK), parent=world.mkdir(b"d"))
    return world, world.head().commit, before


def committing(make: Make, deltas: int = 0) -> Scene:
    world, first, before = with_changes(make, deltas)
    return Scene(COMMIT, world, world.commit, first, before, tree(world))


def folding(make: Make) -> Scene:
    """The same steps; the deltas become base partitions."""
    return committing(make, deltas=4)


def died_in_a_commit(make: Make) -> tuple[GcWorld, str, Tree, Tree]:
    """Killed at the note of a commit, while programs wrote and had a removed file open; the machine was started anew.
    Returns also the commit before, its tree, and the tree with all changes."""
    world, first, before = with_changes(make)
    opened = world.create(b"opened", os.urandom(3 * BLOCK))
    found: list[Tree] = []

    def reached(step: str) -> None:
        if step == "frozen":
            world.write(world.file(b"f"), BLOCK, b"new" * 500)
            world.do(world.names.unlink, 1, b"opened")
            assert world.names.inode(opened) is not None
        if step == "pending":
            found.append(tree(world))
            world.crash()
            raise Crash

    world.reached = reached
    with pytest.raises(Crash):
        world.commit()
    world.reached = lambda _step: None
    (world.cache_path / "boot").write_text("another boot")
    return world, first, before, found[0]


def continuing(make: Make) -> Scene:
    world, first, before, after = died_in_a_commit(make)
    return Scene(CONTINUED, world, lambda: world.start(me=GONE[1], takeover=False), first, before, after)


def overtaken(make: Make) -> Scene:
    world, _, _, after = died_in_a_commit(make)
    world.pass_time(SILENT_SECONDS + 1)
    other = make(world)
    other.start(me=ELSEWHERE, takeover=False)
    other.create(b"theirs", os.urandom(2 * BLOCK))
    other.commit()
    theirs = tree(other)
    other.crash()
    world.pass_time(SILENT_SECONDS + 1)
    rescued = {path.decode().strip("/"): after[path][1] for path in (b"/f", b"/held", b"/d/g")}

    def act() -> None:
        world.start(me=GONE[1], takeover=False)

    return Scene(OVERTAKEN, world, act, world.head().commit, theirs, theirs, rescued)


def collecting(make: Make) -> Scene:
    world = make()
    world.start(me=GONE[0])
    prepare_garbage(world)
    found = tree(world)
    return Scene(COLLECTION, world, world.collect, world.head().commit, found, found)


def leasing(make: Make) -> Scene:
    """What a mount does with HEAD beside its commits."""
    world, _, _ = with_changes(make)
    found = tree(world)
    world.stop()

    def act() -> None:
        store = Store(world.bucket)
        store._clock = world.clock
        world.watch(store)
        lease = Lease.take(store, read_head(store), GONE[1], takeover=True)
        world.starting("take")
        lease.renew(State.RUNNING)
        world.starting("renew")
        lease.refresh()
        world.starting("refresh")
        lease.release(State.STOPPED)
        world.starting("release")

    return Scene(LEASE, world, act, world.head().commit, found, found)


SCENES: dict[str, Callable[[Make], Scene]] = {
    "commit": committing,
    "fold": folding,
    "start": continuing,
    "start after another host": overtaken,
    "gc": collecting,
    "lease": leasing,
}


# --- what is left -----------------------------------------------------------------------------------------------------


def left_by(make: Make, instant: Instant) -> set[Left]:
    """Looks for everything that could be left, in a copy: opening an index changes it."""
    world = revive(make, instant)
    found = {_ORPHANS[key.split("/")[0]] for key in world.garbage()}
    head = world.head()
    if head.holder is not None:
        found.add(Left.HOLDER)
    cache = world.cache_path
    boot, clean = cache / "boot", cache / "clean"
    if boot.exists() and not clean.exists():
        found.add(Left.CRASHED)
    if any(cache.glob("unsaved-*")):
        found.add(Left.ASIDE)
    local = cache / "local"
    if any((local / "frozen").glob("*")):
        found.add(Left.COPIES)
    if any(read_segment(path)[1] for path in local.glob("journal-*")):
        found.add(Left.RECORDS)
    if local.exists():
        index, overlay = Index(local, UUID(boot_id()).bytes), Overlay(local)
        Loader(world.observer(), index)
        if index.pending is not None:
            found.add(Left.NOTE)
        if index.is_dirty:
            found.add(Left.DIRTY)
        if index.standing is not None:
            found.update(_in_the_overlay(index, overlay, rebooted=boot.read_text() != boot_of(cache)))
        index.close()
        overlay.close()
    return found


_ORPHANS = {"packs": Left.PACKS, "meta": Left.SEGMENTS, "commits": Left.MANIFESTS}


def _in_the_overlay(index: Index, overlay: Overlay, *, rebooted: bool) -> Iterator[Left]:
    for ino in overlay.inodes():
        inode = fetch_all(lambda ino=ino: index.inode(ino))  # type: ignore[misc]
        path = overlay._path(ino)
        if inode is None or os.stat(path).st_size > inode.size:
            yield Left.STRAYS
            continue
        for _, row in fetch_all(lambda ino=ino: index.scan(ino, codec.BLOCK)):  # type: ignore[misc]
            block = codec.decode_block(row)
            if rebooted and isinstance(block, Packed) and block.resident:
                yield Left.RESIDENTS


def revive(make: Make, instant: Instant, *, cold: bool = False) -> GcWorld:
    """A machine as the crash has left it, or another one, with the bucket as it was."""
    world = make()
    world.bucket.objects.clear()
    world.bucket.objects.update(instant.objects)
    world.clock.added = instant.time
    if not cold and instant.cache.exists():
        copy_cache(instant.cache, world.cache_path)
    return world


def now(make: Make, world: GcWorld) -> set[Left]:
    """What a crash of this mount would leave now; it is dead then."""
    world.crash()
    return left_by(make, Instant("now", None, True, world.cache_path, dict(world.bucket.objects), world.clock.added))


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=SCENES)
def watched(
    request: pytest.FixtureRequest, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Scene, list[Instant]]:
    """A protocol that has run, and every instant of it."""
    scene = SCENES[request.param](make)
    watch = Watch(scene.world, tmp_path)
    with monkeypatch.context() as patch:
        watch.take("begins", exact=True)
        watch.install(patch)
        scene.act()
    scene.world.crash()
    return scene, watch.instants


@pytest.mark.parametrize(
    ("steps", "announced"),
    [
        (COMMIT.steps, commit.STEPS),
        (COLLECTION.steps, gc.STEPS),
        (tuple(step for step in start.STEPS if step in CONTINUED.steps), CONTINUED.steps),
        (OVERTAKEN.steps, start.STEPS),
        (
            {*LEASE.steps, "publish", "grew", "measured", "check_held"},
            {
                name
                for name, what in vars(Lease).items()
                if name[0] != "_" and callable(getattr(Lease, name)) and not isinstance(what, property)
            },
        ),
    ],
)
def test_the_tables_have_the_steps_that_the_code_announces(steps: Any, announced: Any) -> None:
    """What `publish` does is the step `head` of a commit; the ledger's two only note what that writes, and a check
    changes nothing."""
    assert steps == announced


def test_every_gap_leaves_what_its_table_says(watched: tuple[Scene, list[Instant]], make: Make) -> None:
    """Exactly that after a step, and nothing else between two steps; whoever is named then cleans it up."""
    scene, instants = watched
    table = scene.table
    assert [i.step for i in instants if i.exact and i.step] == sorted(
        (i.step for i in instants if i.exact and i.step), key=table.steps.index
    )
    assert {i.step for i in instants if i.exact} == {None, *table.steps}
    following = dict(zip((None, *table.steps), (*table.steps, table.steps[-1]), strict=True))
    for instant in instants:
        found = left_by(make, instant)
        leaves = table.leaves(instant.step)
        if instant.exact:
            assert found == leaves, instant.label
        else:
            assert found <= leaves | table.leaves(following[instant.step]), instant.label
    different = {table.leaves(i.step): i for i in instants if i.exact}
    for instant in different.values():
        clean_up(make, scene, instant)


def clean_up(make: Make, scene: Scene, instant: Instant) -> None:
    """Each cleaner comes by, and what is its business is gone then."""
    world = revive(make, instant)

    def gone(cleaner: Cleaner) -> None:
        left = now(make, world)
        assert not any(one.cleaner is cleaner for one in left - _OF_A_MOUNT), (instant.label, cleaner, left)

    world.start(takeover=False)
    gone(Cleaner.START)
    world.start(takeover=False)
    world.load_all()
    world.commit()
    gone(Cleaner.COMMIT)
    world.start(takeover=False)
    world.settle(4)
    gone(Cleaner.COLLECTOR)
    world.start(takeover=False)
    world.stop()
    gone(Cleaner.STOP)
    if any(world.cache_path.glob("unsaved-*")):
        target = world.cache_path.parent / "rescued"
        from_cache(world.cache_path, target, None)
        assert {name: (target / name).read_bytes() for name in scene.rescued} == scene.rescued
        for aside in world.cache_path.glob("unsaved-*"):
            shutil.rmtree(aside)
    assert now(make, world) == set()


_OF_A_MOUNT = {Left.RECORDS}
"""What a mount leaves at once again."""


def test_a_crash_at_any_instant_loses_nothing(watched: tuple[Scene, list[Instant]], make: Make) -> None:
    """On this cache everything is there; another host finds one commit, whole."""
    scene, instants = watched
    seen: set[tuple[tuple[str, str], ...]] = set()
    for instant in instants:
        world = revive(make, instant)
        world.start(takeover=False)
        assert tree(world) == scene.after, instant.label
        world.crash()
        version = tuple(sorted((key, found.etag) for key, found in instant.objects.items()))
        if version not in seen:
            seen.add(version)
            elsewhere = revive(make, instant, cold=True)
            elsewhere.pass_time(SILENT_SECONDS + 1)
            elsewhere.start(me=ELSEWHERE, takeover=False)
            expected = scene.before if elsewhere.head().commit == scene.first else scene.after
            assert tree(elsewhere) == expected, instant.label
            elsewhere.crash()


@pytest.mark.parametrize(
    "answer", ["lost", *(pytest.param(how, marks=pytest.mark.long) for how in ("refused", "late"))]
)
@pytest.mark.parametrize("name", SCENES)
def test_a_request_without_an_answer(make: Make, name: str, answer: str) -> None:
    """Each change of the bucket in turn is refused, or made without an answer, or made when nobody expects it any more.
    What was under way is repeated until it succeeds, and a restart finds everything."""
    nth = 0
    while True:
        scene = SCENES[name](make)
        faulty = Unanswered(scene.world, nth, answer)
        for _ in range(5):
            try:
                scene.act()
                break
            except (StoreError, LeaseHeldError):
                continue  # held: by this very start, whose request came late
        else:
            raise AssertionError(f"request {nth}, {answer}: it does not succeed when it is repeated")
        if not faulty.happened:
            assert nth > 1
            return
        world = scene.world
        world.crash()
        world.watch = lambda _store: None
        world.start(takeover=True)
        assert tree(world) == scene.after, f"request {nth}, {answer}"
        world.commit()
        world.restart_cold()
        assert tree(world) == scene.after, f"request {nth}, {answer}"
        world.check()
        world.crash()
        nth += 1


class Unanswered:
    """Lets one change of the bucket, the nth, go without an answer."""

    def __init__(self, world: GcWorld, nth: int, answer: str) -> None:
        self.happened = False
        self._nth = nth
        self._answer = answer
        self._late: Callable[[], object] | None = None
        self._lock = threading.Lock()
        world.watch = self._install
        if not world.dead:
            self._install(world.store)

    def _install(self, store: Store) -> None:
        store.put = self._through(store.put)  # type: ignore[method-assign]
        store.delete = self._through(store.delete)  # type: ignore[method-assign]

    def _through(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        def request(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                if self._late is not None:
                    with suppress(StoreError):
                        self._late()
                    self._late = None
                self._nth -= 1
                if self._nth != -1:
                    return plain(*args, **kwargs)
                self.happened = True
                if self._answer == "lost":
                    plain(*args, **kwargs)
                elif self._answer == "late":
                    self._late = lambda: plain(*args, **kwargs)
            raise TransientStoreError("no answer")

        return request
