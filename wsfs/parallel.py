"""Many alike requests to a store: several at a time, in threads, with the results in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ordered(
    function: Callable[[T], R], items: Iterable[T], *, threads: int, name: str, ahead: int | None = None
) -> Iterator[R]:
    """`function` of each item, in their order, in up to `threads` threads called `name`.

    Items are taken one by one, on the caller's thread: at most `ahead` more than there are threads (by default as many
    again) before their results are asked for, so there may be very many. One item alone is done on the caller's
    thread, for to start another takes longer than many a request. Raises what `function` raises when its turn comes;
    then, or when nobody wants the rest, what has not begun is left out, and what has is waited for.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2 or threads == 1:
        yield from map(function, chain(first, rest))
        return
    most = threads + (threads if ahead is None else ahead)
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, name)
    try:
        for item in chain(first, rest):
            waiting.append(pool.submit(function, item))
            if len(waiting) == most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
