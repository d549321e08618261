"""Which object keys and ranges wsfs uses: the one place that checks them, for every store.

Keys are deliberately narrow - ASCII letters, digits and `._=-` in `/`-separated components that do not start
with a dot - so that the same key is a good S3 key, a good file name and a good line in a log, needs no
escaping anywhere, and leaves names that start with a dot to the stores themselves (temporary files, locks).
"""

from __future__ import annotations

import re

from wsfs.errors import StoreError

MAX_KEY_LENGTH = 800  # S3 allows 1024 bytes for prefix and key together

_COMPONENT = r"[A-Za-z0-9_=-][A-Za-z0-9._=-]{0,239}"
_KEY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_PREFIX = re.compile(rf"(?:{_COMPONENT}/)*(?:{_COMPONENT})?")


def is_key(key: str) -> bool:
    """Whether `key` is one that wsfs could have written; listings leave out what is not."""
    return len(key) <= MAX_KEY_LENGTH and _KEY.fullmatch(key) is not None


def check_key(key: str) -> None:
    """Raise StoreError unless `key` is a safe, relative object key."""
    if not is_key(key):
        raise StoreError(
            f"{key!r} is not an object key that wsfs uses: keys are relative, made of ASCII letters, digits "
            f"and ._=- in components that are separated by single slashes and do not start with a dot"
        )


def check_prefix(prefix: str) -> None:
    """Raise StoreError unless `prefix` is the beginning of safe keys: empty, `packs/`, or `packs/00/1-`."""
    if len(prefix) > MAX_KEY_LENGTH or _PREFIX.fullmatch(prefix) is None:
        raise StoreError(f"{prefix!r} is not the beginning of any object key that wsfs uses")


def check_range(start: int | None, length: int | None) -> tuple[int, int | None] | None:
    """The range that a `get` asks for as (start, length or None for the rest); None for the whole object.

    Raises StoreError if either is negative.
    """
    if start is None and length is None:
        return None
    first = start or 0
    if first < 0 or (length is not None and length < 0):
        raise StoreError(f"a range of an object cannot start at {start} with length {length}: neither may be negative")
    return first, length
