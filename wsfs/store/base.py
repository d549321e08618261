"""What wsfs asks of an object store, and nothing more (L1).

The calls block and may be made from several threads at once. Every implementation has the same conditional
semantics; `wsfs.store.probe` checks at init and mount that the store really enforces them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Blob:
    """An object, or a range of one.

    `age` is how long ago the object was written, in seconds, by the store's own clock for both ends of the
    difference, so that a wrong clock on this host cannot disturb it; None where the store does not say.
    """

    data: bytes
    etag: str
    age: float | None = None


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """A row of a listing: key relative to the workspace's prefix, size in bytes, age in seconds.

    `written` is when the object was written, in seconds by the store's own clock, from whatever moment that counts;
    None where the store does not say.
    """

    key: str
    size: int
    age: float
    written: float | None = None


@runtime_checkable
class Describes(Protocol):
    """A store that can say how it is reached."""

    def credentials_source(self) -> str | None:
        """Where the credentials were found, in a word; None if there are none. Never the credentials."""

    def clock_ahead(self) -> float | None:
        """Seconds by which this machine's clock is ahead of the store's, or None if that does not tell. Makes a
        request, which may be refused. Raises TransientStoreError, StoreError."""


@runtime_checkable
class Prepares(Protocol):
    """A store whose first request takes longer than the next ones."""

    def prepare(self) -> None:
        """Do now what the first request does before it is sent. Raises AccessDeniedError, StoreError."""


class Store(Protocol):
    """A flat set of immutable or compare-and-swapped objects under one prefix.

    Raises from every call: TransientStoreError (try again), AccessDeniedError, StoreFullError, StoreError.
    """

    url: str

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """The object, or `length` bytes of it from `start`; fewer at its end. Raises NotFoundError."""

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        """Write the whole object atomically and durably, and return its etag.

        With `if_none_match` only when there is no such object, with `if_match` only when its etag is that
        one; else PreconditionFailedError and nothing changes. After TransientStoreError the write may or may
        not have happened.
        """

    def delete(self, key: str) -> None:
        """Remove the object; one that is gone already is fine."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in any order."""

    def close(self) -> None:
        """Give back connections. Calls after it raise StoreError."""
