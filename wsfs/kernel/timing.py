"""Measures how long requests take, from the first time that somebody wants to know. Until then it costs nothing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from wsfs.metrics import Latency

P = ParamSpec("P")
R = TypeVar("R")


def measure(operations: pyfuse3.Operations) -> dict[str, Latency]:
    """Time every request that `operations` answers from now on. What a request waits for, such as the store, counts.

    pyfuse3 looks a handler up each time: one that is set on the instance takes the place of the class's.
    """
    latencies: dict[str, Latency] = {}
    for name in vars(pyfuse3.Operations):
        handler = getattr(operations, name)
        if inspect.iscoroutinefunction(handler):
            latencies[name] = Latency()
            setattr(operations, name, _timed(handler, latencies[name].add))
    return latencies


def _timed(
    handler: Callable[P, Coroutine[Any, Any, R]], add: Callable[[float], None]
) -> Callable[P, Coroutine[Any, Any, R]]:
    @functools.wraps(handler)
    async def timed(*args: P.args, **kwargs: P.kwargs) -> R:
        began = perf_counter()
        try:
            return await handler(*args, **kwargs)
        finally:
            add(perf_counter() - began)

    return timed
