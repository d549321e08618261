"""Which commits are save points, at any time, and that collecting garbage keeps exactly those."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from garbage import HOUR, GcWorld, check_commit
from hypothesis import given
from hypothesis import strategies as st

from wsfs.errors import NotFoundError, TransientStoreError
from wsfs.repo.frame import dump_json
from wsfs.repo.manifest import decode_manifest
from wsfs.store.base import ObjectInfo
from wsfs.sync.pins import Kind, pin, pin_longer, pin_of, read_pins
from wsfs.sync.retain import NEWEST, READERS, Commit, keep_for, lineage
from wsfs.sync.survey import list_objects, seq_in
from wsfs.values import Retention

DAY = 86400.0
CLOCKS: dict[str, Callable[[float], float]] = {
    "right": lambda when: when,
    "ahead": lambda when: when + 1234.5,
    "begins anew at each boot": lambda when: when % 50000.0,
    "always the same": lambda _when: 600.0,
}
RETENTIONS = st.builds(
    Retention,
    st.sampled_from([3600.0, 7200.0]),
    st.sampled_from([0.0, 5 * HOUR, DAY]),
    st.sampled_from([0.0, 3 * DAY, 30 * DAY]),
)
GAPS = st.lists(st.sampled_from([30.0, 600.0, 1800.0, 5000.0, 20000.0, 100000.0]), min_size=1, max_size=60)


def seen_at(
    made: list[float], now: float, *, among: set[str] | None = None, writer: str = "right", store: str = "right"
) -> list[Commit]:
    """The commits that were made at these times, newest first, as they are at `now`, with what two clocks said."""
    there = [number for number, when in enumerate(made) if when <= now]
    found: list[Commit] = []
    for number in reversed(there):
        if among is None or f"c{number}" in among:
            age = None if number == there[-1] else now - made[number + 1]
            created, written = CLOCKS[writer](made[number]), CLOCKS[store](made[number])
            found.append(Commit(f"c{number}", len(found), age, created, written))
    return found


def times(gaps: list[float]) -> list[float]:
    made = [1_700_000_000.0]
    for gap in gaps:
        made.append(made[-1] + gap)
    return made


@given(
    RETENTIONS,
    GAPS,
    st.lists(st.sampled_from([1.0, 500.0, 4000.0, 90000.0]), min_size=1, max_size=8),
    st.sampled_from(list(CLOCKS)),
    st.sampled_from(list(CLOCKS)),
)
def test_what_is_kept_later_was_kept_before_and_nobody_misses_what_went(
    retention: Retention, gaps: list[float], steps: list[float], writer: str, store: str
) -> None:
    policy, made = keep_for(retention), times(gaps)
    now = made[len(made) // 2]
    before = {commit.key for commit in seen_at(made, now)}
    survivors = policy(seen_at(made, now, writer=writer, store=store))
    for step in steps:
        was, now = now, now + step
        fresh = {f"c{number}" for number, when in enumerate(made) if was < when <= now}
        kept = policy(seen_at(made, now, writer=writer, store=store))
        assert kept & before <= survivors
        assert policy(seen_at(made, now, among=survivors | fresh, writer=writer, store=store)) == kept
        before, survivors = before | fresh, kept


@given(GAPS, st.floats(0, 40 * DAY))
def test_a_save_point_remains_of_each_hour_and_of_each_day(gaps: list[float], rest: float) -> None:
    made = times(gaps)
    commits = seen_at(made, made[-1] + rest)
    kept = keep_for(Retention())(commits)
    for commit in commits:
        age = commit.superseded
        if age is None or age < HOUR or commit.position < NEWEST:
            assert commit.key in kept
        elif age < DAY:
            of_hour = max(made[n] for n in range(len(made)) if made[n] // HOUR == commit.created // HOUR)
            assert (commit.key in kept) == (commit.created == of_hour)
        elif age < 30 * DAY:
            of_day = max(made[n] for n in range(len(made)) if made[n] // DAY == commit.created // DAY)
            assert (commit.key in kept) == (commit.created == of_day)
        else:
            assert commit.key not in kept


@pytest.mark.parametrize(
    ("writer", "store"),
    [("begins anew at each boot", "right"), ("always the same", "ahead"), ("right", "always the same")],
)
def test_one_wrong_clock_costs_no_save_point(writer: str, store: str) -> None:
    """The writer's begins anew at each boot; the store's times are those of a copy of the bucket."""
    policy = keep_for(Retention())
    every_day = [1_700_000_000.0 + DAY * number for number in range(20)]
    now = every_day[-1] + 5.0
    assert len(policy(seen_at(every_day, now, writer=writer, store=store))) == 20
    often = [1_700_000_000.0 + 600.0 * number for number in range(6 * 20)]
    kept = policy(seen_at(often, often[-1] + 5.0, writer=writer, store=store))
    right = policy(seen_at(often, often[-1] + 5.0))
    assert len(right) <= len(kept) <= 2 * len(right), "and it does not keep much more"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.floats(0, DAY), RETENTIONS)
def test_a_clock_that_jumps_brings_nothing_back(created: list[float], later: float, retention: Retention) -> None:
    ages: list[float | None] = [None, *(600.0 * n for n in range(len(created) - 1))]
    commits = [
        Commit(f"c{n}", n, age, when, 1e9 - 600 * n) for n, (age, when) in enumerate(zip(ages, created, strict=True))
    ]
    after = [replace(c, position=c.position + 1, superseded=later + (c.superseded or 0.0)) for c in commits]
    policy = keep_for(retention)
    assert policy([Commit("new", 0, None, 0.0, 1e9 + later), *after]) - {"new"} <= policy(commits)


class TestLineage:
    """HEAD's ancestors are found across what is gone."""

    def test_over_gaps_by_marks(self, world: GcWorld) -> None:
        for number in range(8):
            world.create(b"f%d" % number, os.urandom(600))
            world.commit()
        store = world.observer()
        manifests = {key: decode_manifest(store.get(key).data) for key in list_objects(store).commits}
        keys = sorted(manifests, reverse=True)
        for gone in (keys[2], keys[5], keys[6]):
            del manifests[gone]
        infos = {key: ObjectInfo(key, 1, 10.0 * n) for n, key in enumerate(keys)}
        found = list(lineage(keys[0], manifests.get, infos, {keys[3], keys[7]}, seq_in))
        assert [commit.key for commit in found] == [keys[n] for n in (0, 1, 3, 4, 7, 8)]
        assert [commit.position for commit in found] == list(range(6))
        ages = [commit.superseded for commit in found]
        assert ages == [None, 0.0, 10.0, 30.0, 40.0, 70.0]
        # Without a mark nobody knows that what is left was ever HEAD.
        assert [c.key for c in lineage(keys[0], manifests.get, infos, set(), seq_in)] == keys[:2]


def history(world: GcWorld) -> list[str]:
    """The commits that can be found from HEAD, newest first."""
    store = world.observer()
    listing = list_objects(store)
    marks = {"commits/" + key.removeprefix("points/") for key in listing.marks}

    def read(key: str) -> object:
        return decode_manifest(store.get(key).data) if key in listing.commits else None

    return [c.key for c in lineage(world.head().commit, read, listing.commits, marks, seq_in)]  # type: ignore[arg-type]


def test_days_of_work_leave_whole_save_points_and_nothing_else(world: GcWorld) -> None:
    world.policy = keep_for(Retention(HOUR, 6 * HOUR, 3 * DAY))
    world.crash()
    world.start()
    contents: dict[str, bytes] = {}
    for number in range(60):
        world.pass_time(1700)
        world.now += int(1700e9)
        data = os.urandom(3000)
        if number % 3:
            world.write(world.file(b"a"), 0, data)
        elif not number:
            world.create(b"a", data)
        else:
            world.unlink(b"a")
            world.create(b"a", data)
        world.commit()
        contents[world.head().commit] = data
        if number % 7 == 0:
            world.collect()
    world.collect()
    found = history(world)
    store = world.observer()
    listing = list_objects(store)
    made = [decode_manifest(store.get(key).data) for key in found]
    assert 10 <= len(found) <= 16, [one.created for one in made]
    for manifest in made:
        check_commit(store, manifest, world.sizes(store))
    hours = [one.created[:13] for one in made[3:6]]
    assert len(set(hours)) == len(hours)
    # What is not kept goes, and marks do not pile up.
    young = {key for key, info in listing.commits.items() if info.age < HOUR}
    assert set(listing.commits) <= set(found) | young
    assert len(listing.marks) <= len(found)
    before = len(found)
    world.pass_time(10 * DAY)
    world.settle()
    assert len(history(world)) < before


def test_a_mark_is_written_before_the_commit_above_it_goes(world: GcWorld) -> None:
    world.policy = keep_for(Retention(HOUR, 0, 30 * DAY))
    world.crash()
    world.start()
    for number in range(6):
        world.now += int(13 * HOUR * 1e9)
        world.pass_time(13 * HOUR)
        world.create(b"f%d" % number, os.urandom(5000))
        world.commit()
    order: list[str] = []
    world.deleting = order.append
    world.store.log.clear()
    world.collect()
    marks = world.store.puts("points/")
    assert marks
    assert [key for key in order if key.startswith("commits/")]
    world.crash()  # what is left is found by the next one
    world.start()
    for older, newer in pairwise(reversed(history(world))):
        assert seq_in(older) < seq_in(newer)
    assert {"commits/" + key.removeprefix("points/") for key in marks} <= set(history(world))


def test_a_pin_may_live_for_ever_and_says_why(world: GcWorld) -> None:
    world.create(b"a", os.urandom(20000))
    world.commit()
    old = world.head().commit
    pin(world.observer(), old, "a fork stands on it", kind=Kind.USER, keep=None, name="thesis", paths=[b"a\n\xff"])
    world.unlink(b"a")
    world.pass_time(400 * DAY)
    world.settle()
    store = world.observer()
    found = read_pins(store, list_objects(store).pins.values())[old]
    assert (found.reason, found.name, found.keep, found.paths) == ("a fork stands on it", "thesis", None, (b"a\n\xff",))
    check_commit(store, decode_manifest(store.get(old).data), world.sizes(store))


def test_what_is_held_stays_and_what_is_going_cannot_be_held(world: GcWorld) -> None:
    world.create(b"a", os.urandom(20000))
    world.commit()
    old = world.head().commit
    world.unlink(b"a")
    world.commit()
    with world.collector.holding(old):
        world.bury()
        world.settle()
        store = world.observer()
        check_commit(store, decode_manifest(store.get(old).data), world.sizes(store))
    refused: list[str] = []

    def too_late(step: str) -> None:
        if step == "confirmed" and old in world.bucket.objects:
            with pytest.raises(NotFoundError), world.collector.holding(old):
                pass
            refused.append(step)

    world.step = too_late
    world.settle()
    assert refused
    assert old not in world.bucket.objects


def test_a_pin_that_comes_while_garbage_is_collected_counts(world: GcWorld) -> None:
    world.create(b"a", os.urandom(20000))
    world.commit()
    old = world.head().commit
    world.unlink(b"a")
    world.bury()

    def late(step: str) -> None:
        if step == "condemned":
            pin(world.observer(), old, "just in time")

    world.step = late
    world.collect()
    world.step = lambda _step: None
    world.settle()
    store = world.observer()
    check_commit(store, decode_manifest(store.get(old).data), world.sizes(store))


def test_readers_have_an_hour_whatever_the_retention() -> None:
    commits = [Commit("c0", 0, None), Commit("c1", 1, 5.0), Commit("c2", 2, READERS - 1), Commit("c3", 3, READERS)]
    assert keep_for(Retention(0, 0, 0))(commits) == {"c0", "c1", "c2"}


def test_work_after_a_long_rest_does_not_take_away_what_was_before_it(world: GcWorld) -> None:
    """How old a save point is counts from when it was replaced, also after its successor has gone."""
    world.policy = keep_for(Retention())
    world.crash()
    world.start()
    world.create(b"before", os.urandom(5000))
    world.commit()
    before = world.head().commit
    for gap in (40 * DAY, 60.0, 60.0, 2 * HOUR, 2 * HOUR):
        world.pass_time(gap)
        world.now += int(gap * 1e9)
        world.touch()
        world.collect()
    assert before in history(world)
    store = world.observer()
    check_commit(store, decode_manifest(store.get(before).data), world.sizes(store))


def test_a_pin_of_a_kind_that_is_not_known_lives_longer_and_stays_of_that_kind(world: GcWorld) -> None:
    commit, store = world.head().commit, world.observer()
    store.put(pin_of(commit), dump_json({"commit": commit, "reason": "why", "kind": "of a newer wsfs", "keep": 10}))
    pin_longer(store, commit, "shown", Kind.READER, DAY)
    found = read_pins(store, list_objects(store).pins.values())[commit]
    assert (found.kind, found.reason, found.keep) == ("of a newer wsfs", "why", DAY)


@pytest.mark.parametrize("kind", [Kind.READER, Kind.RESTORE])
@pytest.mark.parametrize("answer", ["not found", "an older version", "no answer to the write"])
def test_a_pin_for_ever_is_not_replaced_by_a_short_one(world: GcWorld, kind: Kind, answer: str) -> None:
    """Whatever the store says about it once."""
    commit, store = world.head().commit, world.observer()
    pin(store, commit, "shown", kind=Kind.READER, keep=DAY)
    older = store.get(pin_of(commit))
    pin(store, commit, "a test", kind=Kind.USER, keep=None, name="thesis")
    told = False

    def once(method: str, key: str) -> None:
        nonlocal told
        if not told and (method == "get") == (answer == "not found"):
            told = True
            raise (NotFoundError if method == "get" else TransientStoreError)("once")

    plain = store.get
    if answer == "an older version":
        store.get = lambda key, *_: store.__dict__.pop("get") and older  # type: ignore[method-assign]
    else:
        store.fault = store.lost = once
    pin_longer(store, commit, "something", kind, 30 * DAY)
    store.heal()
    store.get = plain  # type: ignore[method-assign]
    found = read_pins(store, list_objects(store).pins.values())[commit]
    assert (found.keep, found.name) == (None, "thesis")
