"""Work on very many records that lets others run: the thread that answers requests needs the interpreter's lock, too.

To sort a million keys, or to free them, is one call, and keeps the lock for as long as it takes: a third of a second.
So a few thousand are sorted at a time, and merged in Python, which gives the lock away when it is asked to.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSequence
from itertools import islice
from typing import Any, Final, TypeVar

T = TypeVar("T")

AT_ONCE: Final = 4096
"""Some two milliseconds."""


def _itself(item: Any) -> Any:
    return item


def in_order(items: Iterable[T], key: Callable[[T], Any] = _itself) -> Iterator[T]:
    """The items as `sorted` would have them."""
    left = iter(items)
    runs: list[list[T]] = []
    while run := list(islice(left, AT_ONCE)):
        run.sort(key=key)
        runs.append(run)
    return heapq.merge(*runs, key=key)


def once_each(*runs: Iterable[bytes]) -> Iterator[bytes]:
    """Keys that come in order, from several sides, in order and each of them once. Raises ValueError if they do not:
    whoever walks along with them would leave some out."""
    last: bytes | None = None
    for key in heapq.merge(*runs):
        if key != last:
            if last is not None and key < last:
                raise ValueError("keys that must come in order do not")
            last = key
            yield key


def let_go(*containers: MutableSequence[Any] | MutableMapping[Any, Any]) -> None:
    """Empty what nobody needs any more, one after the other."""
    for container in containers:
        take = container.popitem if isinstance(container, MutableMapping) else container.pop
        while container:
            take()
