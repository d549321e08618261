"""The store of a fork: what it has written itself, and below that the objects of the workspace that it was made from.

Packs and segments carry the epoch of their writer in their names. Those up to the epoch of the commit that was forked
are the base's, all later ones the fork's own: so the name alone says where an object is. Only reading reaches the base.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from wsfs.errors import NotFoundError
from wsfs.store.base import Blob, ObjectInfo, Store

_NAMED = re.compile(r"(?:packs/[0-9a-f]{2}|meta)/([0-9a-f]{8})[-/].*")


class Base(NamedTuple):
    """A workspace that another one was made from: its packs and segments up to `epoch` are the fork's as well."""

    store: Store
    epoch: int


class ForkedStore:
    """`inner`, and for what it lacks the store that `find` opens; `find` returns None if the workspace is no fork.

    A workspace that is none is not asked anything more than without this. Raises what `find` raises.
    """

    def __init__(self, inner: Store, find: Callable[[], Base | None]) -> None:
        self.inner = inner
        self.url = inner.url
        self._find = find
        self._finding = threading.Lock()
        self._asked = False
        self._base: Base | None = None

    @property
    def base(self) -> Base | None:
        """The base, which is looked for when it is first needed; None if there is none."""
        with self._finding:
            if not self._asked:
                self._base = self._find()
                self._asked = True
            return self._base

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """See `base.Store.get`."""
        named = _NAMED.fullmatch(key)
        if named is None:
            return self.inner.get(key, start, length)
        epoch = int(named[1], 16)
        if not self._asked:
            try:
                return self.inner.get(key, start, length)
            except NotFoundError:
                if self.base is None:
                    raise
        base = self.base
        return (self.inner if base is None or epoch > base.epoch else base.store).get(key, start, length)

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        """See `base.Store.put`."""
        return self.inner.put(key, data, if_match=if_match, if_none_match=if_none_match)

    def delete(self, key: str) -> None:
        """See `base.Store.delete`. Never reaches the base."""
        self.inner.delete(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `base.Store.list`: only what is the fork's own."""
        return self.inner.list(prefix)

    def close(self) -> None:
        """See `base.Store.close`."""
        self.inner.close()
        with self._finding:
            if self._base is not None:
                self._base.store.close()
