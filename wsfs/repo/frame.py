"""Small shared pieces of the format: digests, bounded compression, canonical JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

import zstandard

from wsfs.errors import FormatError
from wsfs.repo.codec import DIGEST_SIZE

ZSTD_LEVEL: Final = 3
"""Level 3 packs a Python environment to 29 % at some 300 MB/s a core; higher levels cost more time than they save."""


def digest(data: bytes | memoryview) -> bytes:
    """BLAKE2b with 160 bits: the identity of a block, and the check of everything that is read back."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def compress(data: bytes | memoryview) -> bytes:
    """One zstd frame that states its content size. Thread safe: a compressor of its own each call."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)


def decompress(data: bytes | memoryview, raw_length: int) -> bytes:
    """Exactly `raw_length` bytes, or FormatError: a hostile frame cannot make us allocate more than its row says."""
    try:
        params = zstandard.get_frame_parameters(data)
        if params.content_size != raw_length:
            raise FormatError(f"a compressed frame announces {params.content_size} bytes where {raw_length} belong")
        raw = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
            data, max_output_size=max(raw_length, 1), allow_extra_data=False
        )
    except zstandard.ZstdError as exc:
        raise FormatError("a compressed frame is damaged") from exc
    if len(raw) != raw_length:
        raise FormatError(f"a compressed frame holds {len(raw)} bytes where {raw_length} belong")
    return raw


def dump_json(value: object) -> bytes:
    """Canonical JSON: sorted keys, no white space, so that equal content is equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def load_json(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`, or FormatError that names `what`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{what} is not valid JSON") from exc
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a JSON object")
    return value


def field(value: dict[str, Any], name: str, kind: type[Any], what: str) -> Any:
    """`value[name]`, which must be a `kind` (and not a bool where an int is asked for)."""
    found = value.get(name)
    if not isinstance(found, kind) or (kind is int and (isinstance(found, bool) or found < 0)):
        raise FormatError(f"{what} has no usable '{name}'")
    return found
