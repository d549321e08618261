"""The start profile: what a mount read first, kept in the bucket as advice for the next one. It may vanish any time."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from wsfs.data.ahead import PROFILE_MAX, Window
from wsfs.errors import FormatError, NotFoundError
from wsfs.repo.frame import dump_json, field, load_json
from wsfs.store.base import Store

PREFIX: Final = "hints/"
_NAME = re.compile(r"hints/[0-9a-f]{8}")
_SIZE_MAX: Final = 64 << 10
_NEWS: Final = 0.1
"""A profile is written anew if so much of it was not in the last one."""


def read_profile(store: Store) -> tuple[str | None, list[Window]]:
    """The newest profile's object name, and what it says. Raises StoreError, FormatError."""
    key = max((info.key for info in store.list(PREFIX) if _NAME.fullmatch(info.key)), default=None)
    if key is None:
        return None, []
    try:
        data = store.get(key, 0, _SIZE_MAX).data
    except NotFoundError:
        return None, []
    windows = field(load_json(data, "the start profile"), "windows", list, "the start profile")
    return key, [_window(entry) for entry in windows[:PROFILE_MAX]]


def _window(entry: object) -> Window:
    if not (isinstance(entry, list) and len(entry) == 3 and all(type(n) is int and 0 <= n < 1 << 32 for n in entry)):
        raise FormatError("the start profile names a part of a pack that cannot be")
    return Window(*entry)


def is_news(first: Collection[Window], profile: Collection[Window]) -> bool:
    """Whether what was read first differs so much from a profile that it is worth writing."""
    return len(set(first) - set(profile)) > _NEWS * len(first)


def write_profile(store: Store, epoch: int, first: Collection[Window], old: str | None) -> None:
    """Leave a profile for the next mount, in place of the object `old`. Raises StoreError."""
    key = f"{PREFIX}{epoch:08x}"
    store.put(key, dump_json({"windows": [list(window) for window in first]}))
    if old is not None and old != key:
        store.delete(old)
