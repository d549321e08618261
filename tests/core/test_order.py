"""Sorting, merging and freeing in portions: the same as in one step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfs.index import order
from wsfs.index.order import in_order, let_go, once_each

KEYS = st.lists(st.binary(max_size=2), max_size=40)


@pytest.fixture(autouse=True, scope="module")
def _small_portions() -> object:
    patch = pytest.MonkeyPatch()
    patch.setattr(order, "AT_ONCE", 3)
    yield
    patch.undo()


@given(KEYS)
def test_in_order_is_sorted(keys: list[bytes]) -> None:
    assert list(in_order(keys)) == sorted(keys)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers())))
def test_what_has_the_same_key_stays_in_its_order(items: list[tuple[int, int]]) -> None:
    assert list(in_order(items, lambda item: item[0])) == sorted(items, key=lambda item: item[0])


def test_no_more_than_a_portion_is_sorted_in_one_step() -> None:
    longest = run = 0

    class Counted(int):
        def __lt__(self, other: int) -> bool:
            nonlocal run, longest
            run += 1
            longest = max(longest, run)
            return int(self) < int(other)

    def key(item: Counted) -> Counted:
        nonlocal run
        run = 0  # a sort asks for the keys of all that it sorts before it compares
        return item

    items = [Counted(number * 7 % 100) for number in range(100)]
    assert list(in_order(items, key)) == sorted(range(100))
    assert longest < 100  # to begin with the heads of 34 runs; to sort all takes over 500


@given(KEYS, KEYS)
def test_keys_from_two_sides_come_once_each(some: list[bytes], others: list[bytes]) -> None:
    assert list(once_each(sorted(some), iter(sorted(others)))) == sorted({*some, *others})


def test_keys_out_of_order_are_not_passed_over() -> None:
    with pytest.raises(ValueError, match="in order"):
        list(once_each([b"b", b"a"], [b"c"]))


def test_nothing_is_left() -> None:
    numbers, names = [1, 2, 3], {"a": 1, "b": 2}
    let_go(numbers, names)
    assert (numbers, names) == ([], {})
