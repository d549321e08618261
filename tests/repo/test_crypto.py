"""Encrypted workspaces: the bytes, what is refused, and the keys."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from wsfs.errors import (
    EncryptionKeyError,
    FormatError,
    NotFoundError,
    TransientStoreError,
    UsageError,
    WorkspaceExistsError,
)
from wsfs.repo import reader
from wsfs.repo.encryption import KeyFile, WrappedKey, unwrap, wrapper_for
from wsfs.repo.head import HEAD_KEY, read_head
from wsfs.repo.manifest import decode_manifest
from wsfs.repo.segment import encode_segment
from wsfs.repo.workspace import (
    FORMAT_KEY,
    READER_KEY,
    Format,
    decode_format,
    encode_format,
    initialise,
    read_format,
    unlock,
)
from wsfs.store.kms import KmsKey
from wsfs.store.memory import MemoryBucket, MemoryStore
from wsfs.store.sealed import CHUNK, OVERHEAD, Cipher, SealedStore, TamperedError, plain_size, read_range

KEY = bytes(range(32))
SEALED_CHUNK = CHUNK + OVERHEAD
PACK = "packs/01/00000001-00000001"
SIZES = [0, 1, 511, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 17]

GOLDEN_OBJECT = "000000000000000000000001d2075cdc69291fbadb836310f5d248fc5b53c29919"
GOLDEN_SEGMENT = (
    "000000000000000000000001bf323da336a2db19f1ae0d144d322632d7e809710fd33139cc37ab37d0668ec51ac6a400bd02"
    "fa8827a89e4b1d66187b99d82e9c"
)
GOLDEN_FORMAT = (
    b'{"block_size":1048576,"cipher":"aes-256-gcm","compression":"zstd","created":"2026-01-01T00:00:00Z","'
    b'hash":"blake2b-160","key":{"kind":"file","wrapped":"0102"},"magic":"wsfs","sealed":"0000000000000000'
    b"00000001ae147e317af29ec51af2556a8db9465004776df9b62cfd540605df909b9c17779c721bc0464cd6cd6ece1e0b9255"
    b'443d329014575ae2b962c4546d296a","version":1,"workspace_id":"id"}'
)


def counted() -> Cipher:
    """A cipher whose nonces are 1, 2, 3, ...: for golden bytes only."""
    numbers = count(1)
    return Cipher(KEY, "id", lambda size: next(numbers).to_bytes(size, "big"))


def sealed_store(bucket: MemoryBucket, key: bytes = KEY, workspace: str = "id") -> SealedStore:
    return SealedStore(MemoryStore(bucket=bucket), Cipher(key, workspace))


@pytest.fixture
def bucket() -> MemoryBucket:
    return MemoryBucket()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "key"


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_golden_object() -> None:
    """Key, nonce, associated data and tag of a small object, as the document has them."""
    sealed = counted().seal(PACK, b"hello")
    assert sealed.hex() == GOLDEN_OBJECT
    about = b"id\0packs/01/00000001-00000001\0"
    key = HKDFExpand(SHA256(), 32, about).derive(KEY)
    assert sealed[:12] == (1).to_bytes(12, "big")
    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], about + bytes(8)) == b"hello"


def test_golden_segment() -> None:
    segment = encode_segment([(bytes(7) + b"\1a", None)])
    sealed = counted().seal("meta/00000001/00000001", segment)
    assert sealed.hex() == GOLDEN_SEGMENT


def test_golden_format() -> None:
    fmt = Format("id", "2026-01-01T00:00:00Z", "jupyter", {"team": "a"})
    data = encode_format(fmt, WrappedKey("file", b"\1\2"), counted())
    assert data == GOLDEN_FORMAT
    assert decode_format(data, "memory://x", Cipher(KEY, "id")) == fmt


@pytest.mark.parametrize("size", SIZES)
def test_sizes_and_round_trips(bucket: MemoryBucket, size: int) -> None:
    store, data = sealed_store(bucket), os.urandom(size)
    store.put(PACK, data)
    stored = bucket.objects[PACK].data
    assert store.get(PACK).data == data
    assert len(stored) == size + OVERHEAD * (size // CHUNK + 1)
    assert plain_size(len(stored)) == size == next(store.list("")).size
    assert data[:64] not in stored or size < 4


@given(size=st.sampled_from(SIZES), start=st.integers(0, 4 * CHUNK), length=st.none() | st.integers(0, 4 * CHUNK))
def test_ranges_are_those_of_the_content(size: int, start: int, length: int | None) -> None:
    store, plain = sealed_store(MemoryBucket()), MemoryStore()
    data = os.urandom(size)
    for one in (store, plain):
        one.put(PACK, data)
    assert store.get(PACK, start, length).data == plain.get(PACK, start, length).data


def test_a_range_reads_no_more_than_its_chunks(bucket: MemoryBucket) -> None:
    asked = []

    class Watched(MemoryStore):
        def get(self, key: str, start: int | None = None, length: int | None = None):  # type: ignore[no-untyped-def]
            asked.append((start, length))
            return super().get(key, start, length)

    store = SealedStore(Watched(bucket=bucket), Cipher(KEY, "id"))
    store.put(PACK, bytes(10 * CHUNK))
    store.get(PACK, 2 * CHUNK + 5, 10)
    store.get(PACK, 2 * CHUNK, 2 * CHUNK)
    assert asked == [(2 * SEALED_CHUNK, SEALED_CHUNK), (2 * SEALED_CHUNK, 2 * SEALED_CHUNK)]


def test_equal_content_is_not_equal_in_the_bucket(bucket: MemoryBucket) -> None:
    store = sealed_store(bucket)
    for key in ("packs/01/a", "packs/01/b"):
        store.put(key, b"the same")
    first = bucket.objects["packs/01/a"].data
    assert first != bucket.objects["packs/01/b"].data
    store.put("packs/01/a", b"the same")
    assert first != bucket.objects["packs/01/a"].data


# --- what is refused ------------------------------------------------------------------------------------------------


def set_object(bucket: MemoryBucket, key: str, data: bytes) -> None:
    MemoryStore(bucket=bucket).put(key, data)


def refused(store: SealedStore, key: str = PACK) -> TamperedError:
    with pytest.raises(TamperedError, match=f"'{key}' is not what was written") as caught:
        store.get(key)
    return caught.value


def test_every_changed_byte_is_refused(bucket: MemoryBucket) -> None:
    store = sealed_store(bucket)
    store.put(PACK, b"content")
    stored = bucket.objects[PACK].data
    for at in range(len(stored)):
        set_object(bucket, PACK, stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :])
        assert refused(store).blob.data == bytes(7)
        with pytest.raises(TamperedError):
            store.get(PACK, 2, 3)


@pytest.mark.parametrize("size", [100, CHUNK, 2 * CHUNK + 100])
def test_what_was_cut_off_or_has_grown_is_refused(bucket: MemoryBucket, size: int) -> None:
    store = sealed_store(bucket)
    store.put(PACK, os.urandom(size))
    stored = bucket.objects[PACK].data
    cuts = {0, 1, 11, 12, 27, 28, len(stored) - 1, *range(0, len(stored), SEALED_CHUNK)} - {len(stored)}
    for data in (*(stored[:cut] for cut in sorted(cuts)), stored + b"x", stored + stored[:SEALED_CHUNK], stored * 2):
        set_object(bucket, PACK, data)
        with pytest.raises(TamperedError):
            store.get(PACK)


def test_chunks_cannot_change_places(bucket: MemoryBucket) -> None:
    """Neither in an object, nor between two objects, nor with an older version of the same one at another place."""
    store, other = sealed_store(bucket), "packs/02/00000001-00000002"
    for key in (PACK, other):
        store.put(key, os.urandom(3 * CHUNK))
    one, two = bucket.objects[PACK].data, bucket.objects[other].data
    set_object(bucket, PACK, one[SEALED_CHUNK : 2 * SEALED_CHUNK] + one[:SEALED_CHUNK] + one[2 * SEALED_CHUNK :])
    refused(store)
    assert store.get(PACK, 2 * CHUNK, CHUNK).data  # what is in its place is read
    set_object(bucket, PACK, two[:SEALED_CHUNK] + one[SEALED_CHUNK:])
    refused(store)
    set_object(bucket, PACK, one)
    assert store.get(PACK)


def test_objects_cannot_change_names_or_workspaces(bucket: MemoryBucket) -> None:
    store = sealed_store(bucket)
    for key in ("meta/00000001/00000001", "meta/00000001/00000002"):
        store.put(key, b"12345678")
    one, two = (bucket.objects[f"meta/00000001/0000000{number}"].data for number in (1, 2))
    set_object(bucket, "meta/00000001/00000001", two)
    set_object(bucket, "meta/00000001/00000002", one)
    refused(store, "meta/00000001/00000001")
    refused(store, "meta/00000001/00000002")
    for foreign in (sealed_store(bucket, workspace="another"), sealed_store(bucket, key=bytes(32))):
        foreign.put("meta/00000001/00000001", b"12345678")
        refused(store, "meta/00000001/00000001")


def test_damage_costs_no_more_than_its_chunk(bucket: MemoryBucket) -> None:
    store, data = sealed_store(bucket), os.urandom(4 * CHUNK)
    etag = store.put(PACK, data)
    stored = bytearray(bucket.objects[PACK].data)
    stored[SEALED_CHUNK + 100] ^= 1
    set_object(bucket, PACK, bytes(stored))
    found = read_range(store, PACK, 10, 3 * CHUNK)
    assert found == data[10:CHUNK] + bytes(CHUNK) + data[2 * CHUNK : 3 * CHUNK + 10]
    assert refused(store).blob.etag != etag
    with pytest.raises(NotFoundError):
        read_range(store, "packs/00/none", 0, 1)


@given(st.binary(max_size=200), st.sampled_from([None, 0, 7]))
def test_any_bytes_are_refused(data: bytes, first: int | None) -> None:
    content, whole = Cipher(KEY, "id").open(PACK, data, first=first)
    assert content == bytes(max(len(data) - OVERHEAD, 0))
    assert not whole or (first is not None and not data)


# --- workspaces -----------------------------------------------------------------------------------------------------


def texts(bucket: MemoryBucket) -> bytes:
    """All names and objects but the reader, which is the same in each workspace."""
    assert bucket.objects[READER_KEY].data == Path(reader.__file__).read_bytes()
    return b"".join(key.encode() + found.data for key, found in bucket.objects.items() if key != READER_KEY)


def test_a_workspace_shows_nothing(bucket: MemoryBucket, key_file: Path) -> None:
    made = initialise(
        MemoryStore(bucket=bucket), framework="a-framework", labels={"a-label": "its-value"}, wrapper=KeyFile(key_file)
    )
    everything = texts(bucket)
    for secret in (b"framework", b"label", b"value", b"STOPPED", b"initialized", b"WSFSSEG1", b"WSFSMAN1"):
        assert secret not in everything
    public = json.loads(bucket.objects[FORMAT_KEY].data)
    assert public.keys() == {
        *("block_size", "cipher", "compression", "created", "hash", "key", "magic"),
        *("sealed", "version", "workspace_id"),
    }
    store = unlock(MemoryStore(bucket=bucket), KeyFile(key_file))
    assert read_format(store) == made
    head = read_head(store).head
    assert decode_manifest(store.get(head.commit).data).workspace == made.workspace_id


def test_keys_that_do_not_fit(bucket: MemoryBucket, key_file: Path, tmp_path: Path) -> None:
    store = MemoryStore(bucket=bucket)
    initialise(store, wrapper=KeyFile(key_file))
    assert unlock(store, None) is store
    with pytest.raises(EncryptionKeyError, match="is encrypted: name its key"):
        read_format(store)
    other = tmp_path / "other"
    other.touch(mode=0o600)
    other.write_text("0" * 64 + "\n")
    with pytest.raises(EncryptionKeyError, match="other does not hold the key of this workspace"):
        unlock(store, KeyFile(other))
    with pytest.raises(EncryptionKeyError, match="of another kind: give it with --key-file"):
        unlock(store, KmsKey("alias/x"))
    with pytest.raises(WorkspaceExistsError):
        initialise(store, wrapper=KeyFile(other))
    with pytest.raises(WorkspaceExistsError):
        initialise(store)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_format_that_nobody_could_read_is_not_written(key_file: Path, encrypted: bool) -> None:
    store = MemoryStore()
    labels = {f"{number:02}" + "\u00e4" * 254: "\u00e4" * 256 for number in range(64)}
    with pytest.raises(UsageError, match="too long"):
        initialise(store, labels=labels, wrapper=KeyFile(key_file) if encrypted else None)
    initialise(store)


def test_a_key_of_another_workspace_does_not_open_this_one(key_file: Path) -> None:
    """Even with the same key file: what is wrapped says for which workspace."""
    wrapped = KeyFile(key_file).wrap(KEY, "one")
    assert KeyFile(key_file).unwrap(wrapped, "one") == KEY
    with pytest.raises(EncryptionKeyError):
        KeyFile(key_file).unwrap(wrapped, "two")


@pytest.mark.parametrize("field", ["key", "sealed", "workspace_id"])
def test_a_changed_format_is_refused(bucket: MemoryBucket, key_file: Path, field: str) -> None:
    store = MemoryStore(bucket=bucket)
    initialise(store, wrapper=KeyFile(key_file))
    value = json.loads(bucket.objects[FORMAT_KEY].data)

    def flipped(text: str) -> str:
        return text[:-1] + ("0" if text[-1] != "0" else "1")

    for change in (flipped, lambda _text: "", lambda text: text[:20], lambda _text: "zz", lambda _text: 7):
        if field == "key":
            fields = value | {"key": value["key"] | {"wrapped": change(value["key"]["wrapped"])}}
        else:
            fields = value | {field: change(value[field])}
        set_object(bucket, FORMAT_KEY, json.dumps(fields).encode())
        with pytest.raises((EncryptionKeyError, FormatError)):
            read_format(unlock(store, KeyFile(key_file)))


def test_whoever_gives_a_key_gets_no_workspace_in_clear(bucket: MemoryBucket, key_file: Path) -> None:
    """Else who can write to the bucket could put another workspace there, and read what is saved next."""
    store = MemoryStore(bucket=bucket)
    initialise(MemoryStore(), wrapper=KeyFile(key_file))
    initialise(store)
    with pytest.raises(EncryptionKeyError, match="is not encrypted, and a key was given"):
        unlock(store, KeyFile(key_file))


class DyingStore(MemoryStore):
    """Fails every put after so many."""

    left = 0

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        if key != "probe":
            self.left -= 1
        if self.left < 0:
            raise TransientStoreError("gone")
        return super().put(key, data, if_match=if_match, if_none_match=if_none_match)


@pytest.mark.parametrize("puts", [1, 2, 3])
def test_an_interrupted_init_goes_on_with_its_key(bucket: MemoryBucket, key_file: Path, puts: int) -> None:
    store = DyingStore(bucket=bucket)
    store.left = puts
    with pytest.raises(TransientStoreError):
        initialise(store, wrapper=KeyFile(key_file))
    again = MemoryStore(bucket=bucket)
    with pytest.raises(EncryptionKeyError):
        initialise(again)
    initialise(again, wrapper=KeyFile(key_file))
    assert HEAD_KEY in bucket.objects
    assert read_head(unlock(again, KeyFile(key_file)))


# --- key files ------------------------------------------------------------------------------------------------------


def test_a_key_file_is_made_once_and_is_private(key_file: Path) -> None:
    before = os.umask(0)
    try:
        first = KeyFile(key_file).wrap(KEY, "id")
    finally:
        os.umask(before)
    text = key_file.read_text()
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert len(text) == 65
    second = KeyFile(key_file).wrap(KEY, "id")
    assert key_file.read_text() == text
    assert first != second
    assert KeyFile(key_file).unwrap(first, "id") == KeyFile(key_file).unwrap(second, "id") == KEY


def test_a_key_file_is_not_made_to_read_a_workspace(key_file: Path) -> None:
    with pytest.raises(EncryptionKeyError, match="cannot be read"):
        KeyFile(key_file).unwrap(bytes(60), "id")
    assert not key_file.exists()


def test_a_key_file_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(EncryptionKeyError, match="cannot be made"):
        KeyFile(tmp_path / "missing" / "key").wrap(KEY, "id")


@pytest.mark.parametrize(
    ("mode", "fine"), [(0o400, True), (0o440, True), (0o604, False), (0o602, False), (0o620, False)]
)
def test_a_key_file_that_others_can_read_is_refused(key_file: Path, mode: int, fine: bool) -> None:
    """The group may read it: that is how Kubernetes hands a secret to a user that is not root."""
    wrapped = KeyFile(key_file).wrap(KEY, "id")
    key_file.chmod(mode)
    if fine:
        assert KeyFile(key_file).unwrap(wrapped, "id") == KEY
    else:
        with pytest.raises(EncryptionKeyError, match="chmod 600"):
            KeyFile(key_file).unwrap(wrapped, "id")


@pytest.mark.parametrize("content", [b"", b"\n", b"0" * 63, b"0" * 65, b"g" * 64, b"0" * 64 + b"\n\n", bytes(32)])
def test_what_is_no_key_file_is_refused(key_file: Path, content: bytes) -> None:
    key_file.touch(mode=0o600)
    key_file.write_bytes(content)
    with pytest.raises(EncryptionKeyError, match="is no key file"):
        KeyFile(key_file).wrap(KEY, "id")


def test_one_key_and_no_more(key_file: Path) -> None:
    assert wrapper_for(None, None) is None
    with pytest.raises(UsageError, match="one key"):
        wrapper_for(key_file, "alias/x")


# --- key management service -----------------------------------------------------------------------------------------


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The ARN of a key."""
    import boto3
    from moto import mock_aws

    for name in ("AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield boto3.client("kms", region_name="eu-west-1").create_key()["KeyMetadata"]["Arn"]


def test_a_key_in_a_key_management_service(bucket: MemoryBucket, kms: str) -> None:
    store = MemoryStore(bucket=bucket)
    made = initialise(store, wrapper=wrapper_for(None, kms))
    assert json.loads(bucket.objects[FORMAT_KEY].data)["key"]["kind"] == "aws-kms"
    assert read_format(unlock(store, KmsKey(kms))) == made


def test_keys_that_the_service_refuses(kms: str) -> None:
    wrapped = KmsKey(kms).wrap(KEY, "one")
    assert KmsKey(kms).unwrap(wrapped, "one") == KEY
    with pytest.raises(EncryptionKeyError, match="not the key that this workspace was made with"):
        KmsKey(kms).unwrap(wrapped, "two")
    with pytest.raises(EncryptionKeyError, match="no such key"):
        KmsKey(kms[:-4] + "0000").wrap(KEY, "one")
    with pytest.raises(EncryptionKeyError, match="has no region"):
        KmsKey("alias/x").wrap(KEY, "one")


def test_a_service_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
    with pytest.raises(TransientStoreError, match="cannot be reached"):
        KmsKey("arn:aws:kms:eu-west-1:123456789012:key/x").unwrap(b"x", "id")


def test_credentials_for_a_key_that_never_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that should print them hangs."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "config"
    config.write_text("[default]\ncredential_process = sleep 20\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("wsfs.store.kms.PATIENCE", 0.5)
    began = time.monotonic()
    with pytest.raises(TransientStoreError, match="did not answer within"):
        KmsKey("arn:aws:kms:eu-west-1:123456789012:key/x").unwrap(b"x", "id")
    assert time.monotonic() - began < 10


def test_only_a_whole_key_is_one(key_file: Path) -> None:
    wrapped = KeyFile(key_file).wrap(b"short", "id")
    with pytest.raises(EncryptionKeyError, match="holds as a key is none"):
        unwrap(WrappedKey("file", wrapped), KeyFile(key_file), "id", "memory://x")
