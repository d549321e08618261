"""What is not local: layers that must not wait raise a request for it; whoever may wait runs that, and asks again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")
Fetches = dict[object, Callable[[], object]]
"""Equal keys fetch the same thing."""


class NeedRemote(Exception):  # noqa: N818 - not an error: a request to fetch something and come again
    """An operation needs something that is not local yet.

    Raised by the synchronous layers *before* they change anything. Whoever called runs `fetches` (each blocks; they are
    independent of each other, and equal keys fetch the same thing, so they can be shared) and calls again.
    """

    def __init__(self, fetches: Fetches) -> None:
        super().__init__(f"{len(fetches)} remote ranges")
        self.fetches = fetches

    def fetch(self) -> None:
        """Run them all, one after the other, on this thread. Raises what they raise."""
        for fetch in self.fetches.values():
            fetch()


def fetch_all(look: Callable[[], T]) -> T:
    """What `look` returns once all that it needs was fetched, on this thread. Raises what a fetch raises.

    For threads that may wait; the one that answers the kernel never does: `kernel.fetcher`.
    """
    while True:
        try:
            return look()
        except NeedRemote as need:
            need.fetch()


class Have(Protocol):
    """How a look gets what it needs: `fetch_all`, or one of the caller's own."""

    def __call__(self, look: Callable[[], T], /) -> T: ...


def as_it_is(look: Callable[[], T]) -> T:
    """A `Have` that lets NeedRemote pass."""
    return look()
