"""A store that holds nothing in clear: objects are encrypted on their way in, decrypted and verified on their way out.

    object := chunk*
    chunk  := nonce:12 ciphertext tag:16

AES-256 in GCM. Each chunk but the last holds 16384 bytes, the last one fewer, perhaps none: so an object that was cut
off shows it. Each object has a key of its own, which follows from the workspace's data key and the object's name, and
each chunk authenticates the workspace, the name and its own number: no chunk passes for another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from wsfs.errors import FormatError
from wsfs.store.base import Blob, ObjectInfo, Store
from wsfs.store.keys import check_range

KEY_SIZE: Final = 32
CHUNK: Final = 16 << 10
"""Bytes in a chunk. What is damaged takes the rest of its chunk along, so it is small; the overhead is 0.17 %."""

NONCE_SIZE: Final = 12
TAG_SIZE: Final = 16
OVERHEAD: Final = NONCE_SIZE + TAG_SIZE
_SEALED: Final = CHUNK + OVERHEAD

CLEAR: Final = frozenset({"FORMAT", "probe", "READER.py"})
"""Objects that are written as they are: they are read before there is a key, and hold nothing of the user's."""


class TamperedError(FormatError):
    """An object is not what was written under its name with this key. `blob` has zeros where it is damaged."""

    def __init__(self, message: str, blob: Blob) -> None:
        super().__init__(message)
        self.blob = blob


class Cipher:
    """Encrypts and decrypts the objects of one workspace. Any thread may use it."""

    def __init__(self, key: bytes, workspace: str, random: Callable[[int], bytes] = os.urandom) -> None:
        assert len(key) == KEY_SIZE
        self._key = key
        self._workspace = workspace
        self._random = random

    def seal(self, name: str, data: bytes | memoryview) -> bytes:
        """The object `name` with the content `data`, encrypted."""
        gcm, about = self._keyed(name)
        view = memoryview(data)
        parts: list[bytes] = []
        for number in range(len(view) // CHUNK + 1):
            nonce = self._random(NONCE_SIZE)
            parts += [nonce, gcm.encrypt(nonce, view[number * CHUNK :][:CHUNK], _numbered(about, number))]
        return b"".join(parts)

    def open(self, name: str, sealed: bytes, *, first: int | None = None) -> tuple[bytes, bool]:
        """The content of an object, or of its chunks from the number `first` on, and whether all of it is what was
        written. What is not, is zeros."""
        gcm, about = self._keyed(name)
        view = memoryview(sealed)
        parts: list[bytes] = []
        whole = first is not None or len(view) % _SEALED >= OVERHEAD
        for number, at in enumerate(range(0, len(view), _SEALED), first or 0):
            chunk = view[at : at + _SEALED]
            try:
                parts.append(gcm.decrypt(chunk[:NONCE_SIZE], chunk[NONCE_SIZE:], _numbered(about, number)))
            except (InvalidTag, ValueError):  # ValueError: too short to hold a nonce
                parts.append(bytes(max(len(chunk) - OVERHEAD, 0)))
                whole = False
        return b"".join(parts), whole

    def _keyed(self, name: str) -> tuple[AESGCM, bytes]:
        about = f"{self._workspace}\0{name}\0".encode()
        return AESGCM(HKDFExpand(SHA256(), KEY_SIZE, about).derive(self._key)), about


def _numbered(about: bytes, number: int) -> bytes:
    return about + number.to_bytes(8, "big")


def plain_size(sealed: int) -> int:
    """How many bytes an encrypted object of `sealed` bytes holds; 0 for a size that none has."""
    chunks, rest = divmod(sealed, _SEALED)
    return chunks * CHUNK + rest - OVERHEAD if rest >= OVERHEAD else 0


class SealedStore:
    """`inner`, through `cipher`. Sizes and ranges are those of the content. `get` also raises TamperedError."""

    def __init__(self, inner: Store, cipher: Cipher) -> None:
        self.inner = inner
        self.url = inner.url
        self.cipher = cipher

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        """See `base.Store.get`."""
        window = check_range(start, length)
        if key in CLEAR:
            return self.inner.get(key, start, length)
        if window is None:
            blob = self.inner.get(key)
            data, whole = self.cipher.open(key, blob.data)
        else:
            begin, wanted = window
            first = begin // CHUNK
            chunks = None if wanted is None else (begin + wanted - 1) // CHUNK - first + 1 if wanted else 0
            blob = self.inner.get(key, first * _SEALED, None if chunks is None else chunks * _SEALED)
            data, whole = self.cipher.open(key, blob.data, first=first)
            skipped = begin - first * CHUNK
            data = data[skipped:] if wanted is None else data[skipped : skipped + wanted]
        found = Blob(data, blob.etag, blob.age)
        if not whole:
            raise TamperedError(
                f"{self.url}: the object '{key}' is not what was written there with this workspace's key: it is"
                " damaged or was exchanged",
                found,
            )
        return found

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        """See `base.Store.put`."""
        sealed = data if key in CLEAR else self.cipher.seal(key, data)
        return self.inner.put(key, sealed, if_match=if_match, if_none_match=if_none_match)

    def delete(self, key: str) -> None:
        """See `base.Store.delete`."""
        self.inner.delete(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `base.Store.list`."""
        return map(_of_content, self.inner.list(prefix))

    def close(self) -> None:
        """See `base.Store.close`."""
        self.inner.close()


def _of_content(info: ObjectInfo) -> ObjectInfo:
    return info if info.key in CLEAR else replace(info, size=plain_size(info.size))


def read_range(store: Store, key: str, start: int, length: int) -> bytes:
    """A part of an object of which the caller verifies each piece. Where an encrypted one is damaged it reads as zeros,
    for one bad chunk must not take what lies beside it along. Raises as `Store.get` does."""
    try:
        return store.get(key, start, length).data
    except TamperedError as exc:
        return exc.blob.data
