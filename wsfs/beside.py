"""A thread that does something now and then, for as long as something else takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Ended = Callable[[float], bool]
"""Waits for so many seconds, and says whether the other work has ended."""


@contextmanager
def beside(name: str, work: Callable[[Ended], None]) -> Iterator[None]:
    """Run `work` on a thread of its own during the block. It has to return when what it is given says so."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended.wait,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
