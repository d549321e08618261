"""Small shared pieces of the format: digests, bounded compression, canonical JSON."""

from __future__ import annotations

import hashlib
import json
import threading
from typing import Any, Final

import zstandard

from wsfs.errors import FormatError
from wsfs.repo.codec import DIGEST_SIZE

ZSTD_LEVEL: Final = 3
"""What packs a Python environment to 31 %; higher levels cost more time than they save."""

ZSTD_LEVEL_FAST: Final = 1
"""For a save that waits for the processor and not for the network: 8 % more bytes, in two thirds of the time."""


class _Contexts(threading.local):
    """zstd's working memory, one a thread: to make it anew for each small block takes as long as the block."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self.compressors.get(level)
        if found is None:
            found = self.compressors[level] = zstandard.ZstdCompressor(level=level)
        return found


_contexts = _Contexts()


def digest(data: bytes | memoryview) -> bytes:
    """BLAKE2b with 160 bits: the identity of a block, and the check of everything that is read back."""
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def compress(data: bytes | memoryview, level: int = ZSTD_LEVEL) -> bytes:
    """One zstd frame that states its content size. Any thread."""
    return _contexts.compressor(level).compress(data)


def decompress(data: bytes | memoryview, raw_length: int) -> bytes:
    """Exactly `raw_length` bytes, or FormatError: a hostile frame cannot make us allocate more than its row says."""
    try:
        params = zstandard.get_frame_parameters(data)
        if params.content_size != raw_length:
            raise FormatError(f"a compressed frame announces {params.content_size} bytes where {raw_length} belong")
        raw = _contexts.decompressor.decompress(data, max_output_size=max(raw_length, 1), allow_extra_data=False)
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


U32: Final = (1 << 32) - 1
U63: Final = (1 << 63) - 1
WORD: Final = 128


def field(value: dict[str, Any], name: str, kind: type[Any], what: str) -> Any:
    """`value[name]`, which must be a `kind`; for numbers and words there are `number` and `word`."""
    found = value.get(name)
    if not isinstance(found, kind):
        raise FormatError(f"{what} has no usable '{name}'")
    return found


def number(value: dict[str, Any], name: str, what: str, most: int = U63) -> int:
    """`value[name]`, which must be an integer from 0 to `most`."""
    found = field(value, name, int, what)
    if isinstance(found, bool) or not 0 <= found <= most:
        raise FormatError(f"{what} has a '{name}' that cannot be")
    return int(found)


def word(value: dict[str, Any], name: str, what: str, most: int = WORD) -> str:
    """`value[name]`, which must be text of at most `most` printable ASCII characters: an id, a time, a key."""
    found = field(value, name, str, what)
    if len(found) > most or not (found.isascii() and found.isprintable()):
        raise FormatError(f"{what} has a '{name}' that cannot be")
    return str(found)
