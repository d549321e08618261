"""FORMAT, the marker, and init."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfs.errors import (
    ForeignWorkspaceError,
    FormatError,
    NoWorkspaceError,
    StoreError,
    TransientStoreError,
    UnsafeStoreError,
    UsageError,
    WorkspaceExistsError,
    WsfsError,
)
from wsfs.model import MARKER_INO, MARKER_NAME, ROOT_INO, Inline, Ino
from wsfs.repo import codec
from wsfs.repo.head import HEAD_KEY, State, read_head
from wsfs.repo.manifest import decode_manifest
from wsfs.repo.segment import decode_segment
from wsfs.repo.workspace import (
    FORMAT_KEY,
    FORMAT_MAX,
    Format,
    decode_format,
    encode_format,
    initialise,
    read_format,
)
from wsfs.store.memory import MemoryBucket, MemoryStore
from wsfs.sync.lease import Lease, this_process

FORMAT = Format("id", "2026-01-01T00:00:00Z", "jupyter", {"team": "a"})
GOLDEN = (
    b'{"block_size":1048576,"cipher":null,"compression":"zstd","created":"2026-01-01T00:00:00Z","framework":"jupyter",'
    b'"hash":"blake2b-160","labels":{"team":"a"},"magic":"wsfs","version":1,"workspace_id":"id"}'
)
MARKER = b'{"created":"2026-01-01T00:00:00Z","format_version":1,"framework":"jupyter","workspace_id":"id"}\n'


def changed(**changes: Any) -> bytes:
    value = json.loads(GOLDEN)
    value.update(changes)
    return json.dumps({k: v for k, v in value.items() if v is not ...}).encode()


class DyingStore(MemoryStore):
    """Fails every put from the n-th on."""

    def __init__(self, bucket: MemoryBucket, puts: int) -> None:
        super().__init__(bucket=bucket)
        self.left = puts

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        if key != "probe":
            self.left -= 1
            if self.left < 0:
                raise StoreError("out of order")
        return super().put(key, data, if_match=if_match, if_none_match=if_none_match)


class CarelessStore(MemoryStore):
    """Accepts conditions and ignores them."""

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        return super().put(key, data)


def content(bucket: MemoryBucket) -> dict[str, bytes]:
    return {key: found.data for key, found in bucket.objects.items() if key != "probe"}


def test_format_is_canonical_json() -> None:
    """What never changes about a workspace, in one object that says what else to expect."""
    assert encode_format(FORMAT) == GOLDEN
    assert decode_format(GOLDEN, "u") == FORMAT


def test_the_marker_follows_from_format() -> None:
    """`.workspace.initialized` is one line of JSON that a mount can verify."""
    assert FORMAT.marker == MARKER


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", ForeignWorkspaceError),
        (b"PNG", ForeignWorkspaceError),
        (b"[1]", ForeignWorkspaceError),
        (b'{"magic":"other"}', ForeignWorkspaceError),
        (b" " * FORMAT_MAX + GOLDEN, ForeignWorkspaceError),
        (changed(version=2), FormatError),
        (changed(block_size=4096), FormatError),
        (changed(hash="md5"), FormatError),
        (changed(compression="lz4"), FormatError),
        (changed(cipher="aes"), FormatError),
        (changed(workspace_id=...), FormatError),
        (changed(created=7), FormatError),
        (changed(framework=[]), FormatError),
        (changed(labels=None), FormatError),
    ],
)
def test_another_format_is_refused(data: bytes, error: type[WsfsError]) -> None:
    """What is not ours is foreign; what is ours but damaged, or of a newer version, is a FormatError."""
    with pytest.raises(error):
        decode_format(data, "u")


@given(st.binary(max_size=100), st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_nothing_but_documented_errors(junk: bytes, at: int, flip: int) -> None:
    """Arbitrary and damaged bytes raise nothing else."""
    damaged = bytearray(GOLDEN)
    damaged[at] ^= flip
    for data in (junk, bytes(damaged)):
        with suppress(FormatError, ForeignWorkspaceError):
            decode_format(data, "u")


def test_init_makes_one_commit_with_the_marker() -> None:
    """HEAD names it, its one partition holds root and marker, and the counters fit."""
    store = MemoryStore()
    fmt = initialise(store, framework="jupyter", labels={"a": "b"}, owner=(1000, 1001), clock=lambda: 1_700_000_000.5)
    assert read_format(store) == fmt
    assert (fmt.created, fmt.framework, fmt.labels) == ("2023-11-14T22:13:20Z", "jupyter", {"a": "b"})
    head = read_head(store).head
    assert (head.workspace, head.epoch, head.seq, head.state, head.holder) == (
        fmt.workspace_id,
        0,
        1,
        State.STOPPED,
        None,
    )
    manifest = decode_manifest(store.get(head.commit).data)
    assert (manifest.files, manifest.bytes, manifest.next_id, manifest.deltas) == (2, len(fmt.marker), 16, ())
    rows = dict(decode_segment(manifest.base[0].check(store.get(manifest.base[0].key).data)))
    root = codec.decode_inode(ROOT_INO, rows[codec.attr_key(ROOT_INO)] or b"")
    assert (root.mode, root.uid, root.gid, root.nlink, root.size) == (0o40755, 1000, 1001, 2, 1)
    assert codec.decode_dirent(rows[codec.dirent_key(ROOT_INO, MARKER_NAME)] or b"").ino == MARKER_INO
    marker = codec.decode_inode(Ino(MARKER_INO), rows[codec.attr_key(MARKER_INO)] or b"")
    assert (marker.mode, marker.uid, marker.size) == (0o100444, 0, len(fmt.marker))
    assert codec.decode_block(rows[codec.block_key(MARKER_INO, 0)] or b"") == Inline(fmt.marker)
    assert len(rows) == 4


def test_init_leaves_an_existing_workspace_alone() -> None:
    """A second init is refused and changes not one byte."""
    bucket = MemoryBucket()
    initialise(MemoryStore(bucket=bucket))
    before = content(bucket)
    with pytest.raises(WorkspaceExistsError, match="mount it"):
        initialise(MemoryStore(bucket=bucket))
    assert content(bucket) == before


@pytest.mark.parametrize("key", ["data.csv", FORMAT_KEY])
def test_init_refuses_a_prefix_with_other_objects(key: str) -> None:
    """Somebody else's bucket stays somebody else's."""
    bucket = MemoryBucket()
    store = MemoryStore(bucket=bucket)
    store.put(key, b"mine")
    with pytest.raises(ForeignWorkspaceError):
        initialise(store)
    assert content(bucket) == {key: b"mine"}


@pytest.mark.parametrize("puts", [0, 1, 2, 3, 4])
def test_an_interrupted_init_is_completed_by_the_next(puts: int) -> None:
    """Whatever init had written when it died, the next one makes a whole workspace, with the same identity."""
    bucket = MemoryBucket()
    with pytest.raises(StoreError):
        initialise(DyingStore(bucket, puts))
    store = MemoryStore(bucket=bucket)
    first = read_format(store) if puts else None
    fmt = initialise(store)
    assert first in (None, fmt)
    head = read_head(store).head
    assert head.workspace == fmt.workspace_id
    decode_manifest(store.get(head.commit).data)


def test_of_two_inits_at_once_one_wins() -> None:
    """Both may write a first commit, but only one becomes HEAD."""

    class Racing(MemoryStore):
        raced = False

        def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
            if key == HEAD_KEY and not Racing.raced:
                Racing.raced = True
                initialise(MemoryStore(bucket=self._bucket))
            return super().put(key, data, if_match=if_match, if_none_match=if_none_match)

    bucket = MemoryBucket()
    with pytest.raises(WorkspaceExistsError):
        initialise(Racing(bucket=bucket))
    store = MemoryStore(bucket=bucket)
    assert read_head(store).head.workspace == read_format(store).workspace_id


class LosingStore(MemoryStore):
    """The answer to the PUT of HEAD is lost: what became of it is as `how` says."""

    def __init__(self, bucket: MemoryBucket, how: str) -> None:
        super().__init__(bucket=bucket)
        self.how = how

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        if key != HEAD_KEY:
            return super().put(key, data, if_match=if_match, if_none_match=if_none_match)
        if self.how == "somebody else's":
            initialise(MemoryStore(bucket=self._bucket))
        elif self.how != "never arrived":
            super().put(key, data, if_match=if_match, if_none_match=if_none_match)
        if self.how == "mounted":
            Lease.take(self._other(), read_head(self._other()), this_process(), takeover=False)
        if self.how == "sent twice":
            return super().put(key, data, if_match=if_match, if_none_match=if_none_match)
        raise TransientStoreError("no answer in time")

    def _other(self) -> MemoryStore:
        return MemoryStore(bucket=self._bucket)


@pytest.mark.parametrize("how", ["arrived", "mounted", "sent twice"])
def test_an_init_whose_last_answer_is_lost_has_succeeded(how: str) -> None:
    """HEAD tells: it leads to our commit. A 412 means the same, where something between us and the store repeats."""
    bucket = MemoryBucket()
    fmt = initialise(LosingStore(bucket, how))
    assert read_head(MemoryStore(bucket=bucket)).head.workspace == fmt.workspace_id


def test_an_init_whose_last_request_is_lost_can_be_repeated() -> None:
    bucket = MemoryBucket()
    with pytest.raises(TransientStoreError, match="no answer in time"):
        initialise(LosingStore(bucket, "never arrived"))
    initialise(MemoryStore(bucket=bucket))
    with pytest.raises(WorkspaceExistsError):
        initialise(LosingStore(MemoryBucket(), "somebody else's"))


def test_a_workspace_that_lost_its_head_is_not_made_anew() -> None:
    """Where packs are, there was a workspace: init must not hide them behind an empty one."""
    store = MemoryStore()
    initialise(store)
    store.put("packs/01/00000001-00000001", b"data")
    store.delete(HEAD_KEY)
    with pytest.raises(FormatError, match="lost its HEAD"):
        initialise(store)


def test_a_workspace_of_small_files_that_lost_its_head_is_not_made_anew() -> None:
    """Small files need no pack: a later commit alone says that there was a workspace."""
    store = MemoryStore()
    initialise(store)
    store.put("commits/0000000002-00000001-0123456789abcdef", b"data")
    store.delete(HEAD_KEY)
    with pytest.raises(FormatError, match="lost its HEAD"):
        initialise(store)


def test_init_refuses_a_store_that_ignores_conditions() -> None:
    """Where two writers could destroy each other no workspace is made."""
    bucket = MemoryBucket()
    with pytest.raises(UnsafeStoreError):
        initialise(CarelessStore(bucket=bucket))
    assert content(bucket) == {}


@pytest.mark.parametrize(
    ("framework", "labels"),
    [("x" * 257, {}), ("a\nb", {}), (None, {"k": "\0"}), (None, {str(n): "v" for n in range(65)})],
)
def test_odd_labels_are_refused(framework: str | None, labels: dict[str, str]) -> None:
    """Before anything is written."""
    bucket = MemoryBucket()
    with pytest.raises(UsageError):
        initialise(MemoryStore(bucket=bucket), framework=framework, labels=labels)
    assert content(bucket) == {}


def test_no_workspace_is_told_apart_from_a_store_that_fails() -> None:
    """The first can be initialised; the second must be asked again."""
    with pytest.raises(NoWorkspaceError, match="wsfs init"):
        read_format(MemoryStore())

    class Down(MemoryStore):
        def get(self, key: str, start: int | None = None, length: int | None = None) -> Any:
            raise TransientStoreError("down")

    with pytest.raises(TransientStoreError):
        read_format(Down())
