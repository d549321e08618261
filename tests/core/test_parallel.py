"""Alike work in several threads: the order, what is begun, and what becomes of the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from wsfs.parallel import map_ordered


def numbers(taken: list[int], count: int) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


def test_results_come_in_the_order_of_the_items() -> None:
    def late(number: int) -> int:
        time.sleep(0.02 if number % 4 == 0 else 0.0)
        return -number

    assert list(map_ordered(late, range(20), threads=4, name="test")) == [-number for number in range(20)]


def test_several_at_once() -> None:
    together = threading.Barrier(3, timeout=60)
    assert list(map_ordered(lambda _item: together.wait() >= 0, range(3), threads=3, name="test")) == [True] * 3


@pytest.mark.parametrize(("ahead", "most"), [(None, 6), (0, 3), (2, 5)])
def test_items_are_taken_when_they_are_needed(ahead: int | None, most: int) -> None:
    taken: list[int] = []
    results = map_ordered(abs, numbers(taken, 100), threads=3, name="test", ahead=ahead)
    assert not taken
    for number in range(10):
        assert next(results) == number
        assert len(taken) == most + number
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("count", "threads"), [(1, 8), (3, 1)])
def test_what_needs_no_other_thread_starts_none(count: int, threads: int) -> None:
    found = list(map_ordered(lambda _item: threading.get_ident(), range(count), threads=threads, name="test"))
    assert found == [threading.get_ident()] * count


def test_nothing_of_nothing() -> None:
    assert list(map_ordered(abs, [], threads=4, name="test")) == []


def test_an_error_comes_in_its_turn_and_what_has_not_begun_is_left_out() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("three")
        time.sleep(0.02)
        ended.append(number)
        return number

    results = map_ordered(work, range(1000), threads=2, name="test")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(begun) < 10
    assert sorted(begun) == sorted([*ended, 3])  # what had begun was waited for


def test_who_wants_no_more_waits_for_what_has_begun() -> None:
    begun: list[int] = []
    ended: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.02)
        ended.append(number)
        return number

    for _ in map_ordered(work, range(1000), threads=2, name="test"):
        break
    assert len(begun) < 10
    assert sorted(begun) == sorted(ended)
