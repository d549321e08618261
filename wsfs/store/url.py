"""From a URL to a store: s3://bucket/prefix, file:///directory, memory://name."""

from __future__ import annotations

import re
import threading
from urllib.parse import unquote

from wsfs.errors import UsageError
from wsfs.store.base import Store
from wsfs.store.memory import MemoryBucket, MemoryStore
from wsfs.text import split_url

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

# The one global of this layer: memory://name must mean the same objects each time this process opens it.
# For tests.
_memory_buckets: dict[str, MemoryBucket] = {}
_memory_lock = threading.Lock()


def open_store(
    url: str,
    *,
    endpoint_url: str | None = None,
    addressing_style: str = "auto",
    connect_timeout: float = 20.0,
    read_timeout: float = 30.0,
) -> Store:
    """The bare store at `url`: no retries, no request yet. All but `url` is for s3:// only.

    Raises UsageError if the URL is malformed; no message repeats a URL that contains credentials.
    """
    if any(ord(char) <= 0x20 or ord(char) == 0x7F for char in url):
        raise UsageError("the store URL contains a space or a control character: write it as %20 in file:// URLs")
    scheme = url.partition("://")[0] if "://" in url else ""
    match scheme:
        case "s3":
            bucket, prefix = parse_s3_url(url)
            from wsfs.store.s3 import (
                S3Store,
            )  # here, because botocore takes long to import and file:// needs none of it

            return S3Store(
                bucket,
                prefix,
                endpoint_url=endpoint_url,
                addressing_style=addressing_style,
                connect_timeout=connect_timeout,
                read_timeout=read_timeout,
            )
        case "file":
            from wsfs.store.directory import DirectoryStore

            return DirectoryStore(parse_file_url(url))
        case "memory":
            with _memory_lock:
                return MemoryStore(url, _memory_buckets.setdefault(url, MemoryBucket()))
    if not scheme:
        raise UsageError(f"the store URL {_hidden(url)} has no scheme: it must begin with s3://, file:// or memory://")
    raise UsageError(f"the store URL's scheme {scheme}:// is none of those that wsfs knows: s3://, file://, memory://")


def parse_s3_url(url: str) -> tuple[str, str]:
    """(bucket, prefix) of s3://bucket/prefix; the prefix may be empty, and has no slash at its ends nor
    doubled.

    Raises UsageError.
    """
    parts = split_url(url)
    if "@" in parts.netloc:
        raise UsageError(
            "the store URL must not contain credentials: put them into AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or a profile"
        )
    if "?" in url or "#" in url:
        raise UsageError("an s3:// URL has no query and no fragment: remove everything from the ? or # on")
    if not parts.netloc:
        raise UsageError(f"the store URL {url} names no bucket: write s3://bucket/prefix")
    if not _BUCKET.fullmatch(parts.netloc):
        raise UsageError(
            f"{parts.netloc!r} in the store URL is not a bucket name: write s3://bucket/prefix, and name the "
            f"server with the endpoint option"
        )
    components = [part for part in parts.path.split("/") if part]
    if ".." in components or "." in components:
        raise UsageError(f"the prefix in the store URL {url} must not contain . or .. components")
    return parts.netloc, "/".join(components)


def parse_file_url(url: str) -> str:
    """The absolute path of file:///path, percent-decoded. Raises UsageError."""
    parts = split_url(url)
    if "?" in url or "#" in url:
        raise UsageError("a file:// URL has no query and no fragment: write ? as %3F and # as %23")
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise UsageError(
            f"the store URL {_hidden(url)} needs an absolute path: write file:///directory, with three slashes"
        )
    path = unquote(parts.path)
    if not path.strip("/") or "\0" in path:
        raise UsageError(f"the store URL {url} names no directory: write file:///directory")
    return path


def _hidden(url: str) -> str:
    """`url` for a message, unless it may contain credentials."""
    return "(not repeated: it contains an @)" if "@" in url else url
