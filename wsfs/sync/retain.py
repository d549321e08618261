"""Which commits are kept as save points: all of the last hour, then the newest of each hour, then of each day.

A function of the commits and the time, and nothing else. It is monotonic: a commit that is not kept now never is again,
and taking away what is not kept changes no later answer. Garbage collection rests on both (docs/GC.md).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from wsfs.errors import FormatError
from wsfs.repo.manifest import Manifest
from wsfs.store.base import ObjectInfo
from wsfs.values import Retention

READERS: Final = 3600.0
"""For how many seconds a commit is kept at least after the next one has replaced it: readers may still stand on it."""

NEWEST: Final = 2
"""So many are kept whatever their age."""

_HOUR: Final = 3600
_DAY: Final = 86400


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that HEAD leads to. `position` counts from HEAD's, which has 0.

    `created` is when it was made, in seconds since 1970 by its writer's clock, and `written` the same by the store's
    clock; None if that is not known. `superseded`: for how many seconds a newer one has been there, by the store's
    clock; None for HEAD's.
    """

    key: str
    position: int
    superseded: float | None
    created: float = 0.0
    written: float | None = None


Policy = Callable[[Iterable[Commit]], set[str]]
"""Which commits are kept. It gets them newest first, one at a time, and stops where the older ones may go."""


def keep_for(retention: Retention) -> Policy:
    """The policy that keeps save points for these times, and never less than what readers need.

    The newest of an hour is what one of both clocks says is it. The writer's may begin anew at each boot, and the store
    forgets its own when a bucket is copied: all would be of one hour then.
    """
    every = max(retention.every, READERS)
    longest = max(every, retention.hourly, retention.daily)

    def policy(commits: Iterable[Commit]) -> set[str]:
        kept: set[str] = set()
        hours: set[tuple[int, int]] = set()
        days: set[tuple[int, int]] = set()
        for commit in commits:
            age = commit.superseded
            if age is not None and age >= longest and commit.position >= NEWEST:
                break
            of_hour = _is_first(commit, _HOUR, hours)
            of_day = _is_first(commit, _DAY, days)
            if (
                age is None
                or commit.position < NEWEST
                or age < every
                or (of_hour and age < retention.hourly)
                or (of_day and age < retention.daily)
            ):
                kept.add(commit.key)
        return kept

    return policy


def _is_first(commit: Commit, seconds: int, seen: set[tuple[int, int]]) -> bool:
    """Whether by one clock at least no newer commit is of the same hour or day; it is in `seen` from now on."""
    clocks = enumerate((commit.created, commit.written))
    periods = {(number, int(when // seconds)) for number, when in clocks if when is not None}
    first = commit.written is None or not periods <= seen
    seen |= periods
    return first


def lineage(
    head: str,
    manifest_of: Callable[[str], Manifest | None],
    commits: dict[str, ObjectInfo],
    marked: Collection[str],
    seq_of: Callable[[str], int],
) -> Iterator[Commit]:
    """HEAD's commit and its ancestors, newest first, as far as they are there; each is read only when it is asked for.

    Where a commit is missing, the history goes on with the next older one that is marked: only ancestors ever are.
    `commits` is the listing of all. Raises what `manifest_of` raises.
    """
    rest = sorted(marked, key=seq_of, reverse=True)  # a listing of the commits may lack some
    key, superseded = head, None
    position = 0
    while key:
        manifest = manifest_of(key)
        if manifest is None:
            rest = [one for one in rest if seq_of(one) < seq_of(key)]
            key = rest.pop(0) if rest else ""
            continue
        info = commits.get(key)
        written = None if info is None else info.written
        yield Commit(key, position, superseded, seconds_of(manifest.created), written)
        # A commit that is not listed was made after the listing. Where successors are gone, the next newer one that is
        # there stands for them: how old the commit itself is does not count, it may have been HEAD for long.
        superseded = max(superseded or 0.0, 0.0 if info is None else info.age)
        position += 1
        key = manifest.parent
        if key and seq_of(key) >= manifest.seq:
            raise FormatError(f"the commit '{manifest.key}' names a parent that is not older: '{key}'")


def seconds_of(created: str) -> float:
    """Seconds since 1970 of a time that a manifest names; 0 if it is none."""
    try:
        return datetime.fromisoformat(created).timestamp()
    except (ValueError, OverflowError):
        return 0.0
