"""MemoryStore: objects in a dictionary, for tests.

It keeps every rule of `base.Store`, and nothing else: no delays, no faults. The objects live in a
`MemoryBucket`, so that a store can be closed and another one opened on what it left.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from wsfs.errors import NotFoundError, PreconditionFailedError, StoreError
from wsfs.store.base import Blob, ObjectInfo
from wsfs.store.keys import check_key, check_prefix, check_range


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    etag: str
    written: float


@dataclass(frozen=True, slots=True)
class MemoryBucket:
    """The objects, and the lock that makes each call on them atomic."""

    objects: dict[str, _Object] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MemoryStore:
    """A store in this process's memory. Every call is atomic, safe from any thread, and quick."""

    def __init__(
        self,
        url: str = "memory://",
        bucket: MemoryBucket | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.url = url
        self._bucket = MemoryBucket() if bucket is None else bucket
        self._clock = clock
        self._closed = False

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """See `base.Store.get`."""
        self._check_open()
        check_key(key)
        window = check_range(start, length)
        with self._bucket.lock:
            found = self._bucket.objects.get(key)
        if found is None:
            raise NotFoundError(f"{self.url}: there is no object {key}")
        data = found.data
        if window is not None:
            first, count = window
            data = data[first:] if count is None else data[first : first + count]
        return Blob(data, found.etag, max(0.0, self._clock() - found.written))

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        """See `base.Store.put`."""
        self._check_open()
        check_key(key)
        # The etag is a hash of the content, as it is in S3: writing the same bytes again gives the same etag.
        new = _Object(bytes(data), hashlib.blake2b(data, digest_size=16).hexdigest(), self._clock())
        with self._bucket.lock:
            old = self._bucket.objects.get(key)
            if if_none_match and old is not None:
                raise PreconditionFailedError(f"{self.url}: cannot create {key}: it exists already")
            if if_match is not None and (old is None or old.etag != if_match):
                raise PreconditionFailedError(f"{self.url}: cannot replace {key}: it is not version {if_match}")
            self._bucket.objects[key] = new
        return new.etag

    def delete(self, key: str) -> None:
        """See `base.Store.delete`."""
        self._check_open()
        check_key(key)
        with self._bucket.lock:
            self._bucket.objects.pop(key, None)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `base.Store.list`: a snapshot taken now."""
        self._check_open()
        check_prefix(prefix)
        now = self._clock()
        with self._bucket.lock:
            return iter(
                [
                    ObjectInfo(key, len(found.data), max(0.0, now - found.written), found.written)
                    for key, found in self._bucket.objects.items()
                    if key.startswith(prefix)
                ]
            )

    def close(self) -> None:
        """See `base.Store.close`. The objects stay in the bucket."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.url}: the store is closed")
