"""Who can read an encrypted workspace: its data key, and the keys that this is wrapped with.

The data key is random, and made at init. FORMAT holds it wrapped: encrypted with the key in a key file, or by a key
management service. Only who can unwrap it reads or writes anything but FORMAT's public part.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wsfs.disk import sync_directory
from wsfs.errors import EncryptionKeyError, UsageError
from wsfs.store.sealed import KEY_SIZE, NONCE_SIZE, Cipher

_LINE = re.compile(rb"[0-9a-f]{64}\n?")


class Wrapper(Protocol):
    """Something that wraps data keys."""

    @property
    def kind(self) -> str:
        """What FORMAT calls it."""

    def wrap(self, key: bytes, workspace: str) -> bytes:
        """`key` so that only `unwrap` can read it, and only for this workspace. Raises EncryptionKeyError."""

    def unwrap(self, wrapped: bytes, workspace: str) -> bytes:
        """What `wrap` was given. Raises EncryptionKeyError when it cannot be had."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as FORMAT holds it."""

    kind: str
    wrapped: bytes


class KeyFile:
    """Wraps with AES-256-GCM and the key in a file: one line of 64 hexadecimal digits. `wrap` makes the file if it is
    missing, with mode 0600."""

    kind: Final = "file"

    def __init__(self, path: Path) -> None:
        self._path = path

    def wrap(self, key: bytes, workspace: str) -> bytes:
        """See `Wrapper.wrap`: a nonce, and the key with its tag. The workspace's id is authenticated."""
        if not self._path.exists():
            self._make()
        nonce = os.urandom(NONCE_SIZE)
        return nonce + AESGCM(self._read()).encrypt(nonce, key, _about(workspace))

    def unwrap(self, wrapped: bytes, workspace: str) -> bytes:
        """See `Wrapper.unwrap`."""
        gcm = AESGCM(self._read())
        try:
            return gcm.decrypt(wrapped[:NONCE_SIZE], wrapped[NONCE_SIZE:], _about(workspace))
        except (InvalidTag, ValueError) as exc:
            raise EncryptionKeyError(
                f"{self._path} does not hold the key of this workspace: name the key file that it was made with"
            ) from exc

    def _make(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(KEY_SIZE) + "\n")
                file.flush()
                os.fsync(descriptor)
            sync_directory(self._path.parent)  # a workspace must not outlive its key
        except OSError as exc:
            raise EncryptionKeyError(f"the key file {self._path} cannot be made: {exc.strerror}") from exc

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                line = file.read(256)
        except OSError as exc:
            raise EncryptionKeyError(
                f"the key file {self._path} cannot be read ({exc.strerror}): without it nobody can read the workspace"
            ) from exc
        if mode & stat.S_IRWXO or mode & stat.S_IWGRP:
            raise EncryptionKeyError(
                f"the key file {self._path} is open to other users: 'chmod 600 {self._path}', and make a new workspace"
                " if somebody may have read it"
            )
        if not _LINE.fullmatch(line):
            raise EncryptionKeyError(
                f"{self._path} is no key file: 'wsfs init --encrypt' makes one, a line of 64 hexadecimal digits"
            )
        return bytes.fromhex(line.decode())


def wrapper_for(key_file: Path | None, kms_key: str | None) -> Wrapper | None:
    """What the options name; None if they name nothing. Raises UsageError."""
    if key_file is not None and kms_key is not None:
        raise UsageError("a workspace has one key: give either key_file or kms_key")
    if kms_key is not None:
        from wsfs.store.kms import KmsKey  # here, because botocore takes long to import

        return KmsKey(kms_key)
    return None if key_file is None else KeyFile(key_file)


def new_key(wrapper: Wrapper, workspace: str) -> WrappedKey:
    """A data key for a new workspace. Raises EncryptionKeyError."""
    return WrappedKey(wrapper.kind, wrapper.wrap(os.urandom(KEY_SIZE), workspace))


def unwrap(found: WrappedKey, wrapper: Wrapper, workspace: str, url: str) -> Cipher:
    """The cipher of a workspace. Raises EncryptionKeyError."""
    if found.kind != wrapper.kind:
        option = "--kms-key ID" if found.kind == "aws-kms" else "--key-file FILE"
        raise EncryptionKeyError(f"the workspace at {url} has a key of another kind: give it with {option}")
    key = wrapper.unwrap(found.wrapped, workspace)
    if len(key) != KEY_SIZE:
        raise EncryptionKeyError(f"what FORMAT at {url} holds as a key is none")
    return Cipher(key, workspace)


def _about(workspace: str) -> bytes:
    return f"wsfs data key\0{workspace}".encode()
