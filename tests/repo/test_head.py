"""HEAD: its bytes, and the compare-and-swap."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfs.errors import FencedError, FormatError, NoWorkspaceError, TransientStoreError
from wsfs.repo.head import HEAD_KEY, HEAD_MAX, Head, Holder, State, decode_head, encode_head, read_head, swap_head
from wsfs.store.memory import MemoryStore

HEAD = Head("w", 1, 2, "commits/x", bytes(20), "n", State.RUNNING, "", Holder("h", 1, "b", "s"), "t", 1, 2)
GOLDEN = (
    b'{"bytes":2,"commit":"commits/x","commit_digest":"0000000000000000000000000000000000000000","epoch":1,"files":1,'
    b'"format":1,"holder":{"boot_id":"b","host":"h","pid":1,"since":"s"},"nonce":"n","reason":"","saved_at":"t",'
    b'"seq":2,"state":"RUNNING","workspace":"w"}'
)

COUNT = st.integers(0, 2**63 - 2)
EPOCH = st.integers(0, 2**32 - 2)
heads = st.builds(
    Head,
    st.just("11111111-2222-3333-4444-555555555555"),
    EPOCH,
    COUNT,
    st.just("commits/0000000042-00000007-0123456789abcdef"),
    st.binary(min_size=20, max_size=20),
    st.just("0123456789abcdef"),
    st.sampled_from(State),
    st.text(max_size=600),
    st.none()
    | st.builds(
        Holder,
        st.text(max_size=300),
        st.integers(0, 2**31 - 1),
        st.just("b" * 36),
        st.just("2026-01-01T00:00:00Z"),
        st.sampled_from(["", "801:2a"]),
    ),
    st.just("2026-01-01T00:00:00Z"),
    COUNT,
    COUNT,
)


def changed(**changes: Any) -> bytes:
    value = json.loads(GOLDEN)
    value.update(changes)
    return json.dumps({k: v for k, v in value.items() if v is not ...}).encode()


def test_head_is_canonical_json() -> None:
    """Sorted keys, no white space: equal content is equal bytes."""
    assert encode_head(HEAD) == GOLDEN
    assert decode_head(GOLDEN) == HEAD


@given(heads)
def test_heads_round_trip(head: Head) -> None:
    """Everything comes back; a reason or host name that is too long only loses its end."""
    found = decode_head(encode_head(head))
    assert head.reason.startswith(found.reason)
    assert replace(found, reason="", holder=None) == replace(head, reason="", holder=None)
    if head.holder is None:
        assert found.holder is None
    else:
        assert found.holder is not None
        assert head.holder.host.startswith(found.holder.host)
        assert replace(found.holder, host="") == replace(head.holder, host="")


@pytest.mark.parametrize("character", ["x", "\xe9", "\N{GRINNING FACE}", '"'])
def test_head_stays_small_whatever_the_reason(character: str) -> None:
    """A reason in any script is cut to fit: a mount that fails must be able to say so."""
    head = replace(HEAD, reason=character * 10_000, holder=Holder(character * 300, 1, "b" * 47, "s" * 20, "c" * 33))
    encoded = encode_head(head)
    assert len(encoded) <= HEAD_MAX
    assert set(decode_head(encoded).reason) == {character}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"nonsense",
        b"\xff\xfe",
        GOLDEN[:-1],
        GOLDEN + b" " * HEAD_MAX,
        changed(format=2),
        changed(state="SLEEPING"),
        changed(commit_digest="00"),
        changed(commit_digest="zz" * 20),
        changed(epoch=-1),
        changed(epoch="1"),
        changed(epoch=2**32 - 1),
        changed(seq=2**63),
        changed(bytes=10**400),
        changed(commit="../../etc/passwd"),
        changed(commit=""),
        changed(workspace="w" * 1000),
        changed(nonce="\x1b[2J"),
        changed(saved_at="\n"),
        changed(holder={"host": "h", "pid": 2**40, "boot_id": "b", "since": "s"}),
        changed(holder={"host": "h", "pid": 2, "boot_id": "b", "since": "s", "cache": "\n"}),
        changed(files=True),
        changed(nonce=...),
        changed(holder=[]),
        changed(holder={"host": "h"}),
    ],
)
def test_damaged_heads_are_refused(data: bytes) -> None:
    """Anything but a whole, well-formed HEAD of our format is a FormatError."""
    with pytest.raises(FormatError):
        decode_head(data)


@given(st.binary(max_size=200), st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_nothing_but_format_errors(junk: bytes, at: int, flip: int) -> None:
    """Arbitrary and damaged bytes raise nothing else."""
    damaged = bytearray(GOLDEN)
    damaged[at] ^= flip
    for data in (junk, bytes(damaged)):
        with suppress(FormatError):
            decode_head(data)


class FlakyStore(MemoryStore):
    """Loses the answer to a put: before or after it was applied, and runs `meanwhile` in between."""

    def __init__(self) -> None:
        super().__init__()
        self.applied = True
        self.failing = False
        self.meanwhile: Callable[[], None] = lambda: None

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        if not self.failing:
            return super().put(key, data, if_match=if_match, if_none_match=if_none_match)
        self.failing = False
        if self.applied:
            super().put(key, data, if_match=if_match, if_none_match=if_none_match)
        self.meanwhile()
        raise TransientStoreError("no answer")


@pytest.fixture
def store() -> FlakyStore:
    store = FlakyStore()
    store.put(HEAD_KEY, encode_head(HEAD))
    return store


def test_a_swap_replaces_head(store: FlakyStore) -> None:
    """The new version is what is read from then on, with the etag that the swap returned."""
    new = replace(HEAD, seq=3, nonce="m")
    version = swap_head(store, read_head(store), new)
    found = read_head(store)
    assert (version.head, version.etag) == (found.head, found.etag) == (new, version.etag)


@pytest.mark.parametrize("applied", [True, False])
def test_a_swap_without_an_answer_is_looked_up(store: FlakyStore, applied: bool) -> None:
    """Our nonce in HEAD means that it happened; the old version means that it did not."""
    store.failing, store.applied = True, applied
    old = read_head(store)
    new = replace(HEAD, seq=3, nonce="m")
    if applied:
        assert swap_head(store, old, new).head == new
    else:
        with pytest.raises(TransientStoreError):
            swap_head(store, old, new)
        assert read_head(store).head == HEAD


def test_a_swap_loses_against_a_higher_epoch(store: FlakyStore) -> None:
    """Whoever was taken over is fenced, and told by whom."""
    old = read_head(store)
    swap_head(store, old, replace(HEAD, epoch=2, nonce="m", holder=Holder("other", 7, "b", "noon")))
    with pytest.raises(FencedError, match=r"taken over by other \(process 7, since noon\)"):
        swap_head(store, old, replace(HEAD, seq=3, nonce="k"))


def test_a_swap_loses_against_a_change_in_the_same_epoch(store: FlakyStore) -> None:
    """Nobody but the holder may change HEAD: if somebody did, writing on would destroy something."""
    old = read_head(store)
    store.put(HEAD_KEY, encode_head(replace(HEAD, nonce="stranger")))
    with pytest.raises(FencedError, match="does not hold"):
        swap_head(store, old, replace(HEAD, seq=3, nonce="k"))


def test_an_answer_lost_while_another_took_over_is_a_fence(store: FlakyStore) -> None:
    """Applied or not, a higher epoch in HEAD ends this one."""

    def take_over() -> None:
        store.put(HEAD_KEY, encode_head(replace(HEAD, epoch=9, nonce="z")))

    store.failing, store.meanwhile = True, take_over
    with pytest.raises(FencedError, match="taken over"):
        swap_head(store, read_head(store), replace(HEAD, seq=3, nonce="k"))


def test_no_head_is_no_workspace() -> None:
    """The error names the command that makes one."""
    with pytest.raises(NoWorkspaceError, match="wsfs init memory://"):
        read_head(MemoryStore())
