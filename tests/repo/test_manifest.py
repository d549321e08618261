"""The manifest of a commit."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from wsfs.errors import FormatError
from wsfs.repo.frame import compress, digest, dump_json
from wsfs.repo.manifest import RAW_MAX, Manifest, SegmentRef, decode_manifest, encode_manifest

REF = SegmentRef("meta/a", 1, 2, bytes(20))
MANIFEST = Manifest("w", 1, 2, "n", "p", "2026-01-01T00:00:00Z", 16, 2, 3, (REF,), ())
GOLDEN = bytes.fromhex(
    "575346534d414e31 00000102"
    "28b52ffd600200250500b2cb221f6087d3628087550ae9468a98c6eb9a6d05f909000e7b35ad77b3c12008ec028f9fef54d0d1"
    "c5528f41eab69372a1b39dbe53492a6d05e45e18823dc8b4c858aa610a148a72723b186ec56d72d91e38840410444010a190a0e47bc9c5"
    "5cca16706b6e03b11d1e7fefc2d52db9f5516b436ec5265236db08809b8cef462eb6d1f76a26986587e14e45c48e080051c508b0706f38"
    "6d5920c2c62834ae7482a90477"
)

WORD = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
KEY = st.from_regex(r"[a-z]{1,9}(/[0-9a-f]{1,9}){0,2}", fullmatch=True)
COUNT = st.integers(0, 2**63 - 1)
EPOCH = st.integers(0, 2**32 - 1)
DIGEST = st.binary(min_size=20, max_size=20)
manifests = st.builds(
    Manifest,
    WORD,
    st.integers(0, 2**63 - 2),
    EPOCH,
    WORD,
    st.just("") | KEY,
    WORD,
    st.integers(0, 2**62),
    COUNT,
    COUNT,
    st.lists(st.binary(min_size=1, max_size=30), unique=True, max_size=5).map(
        lambda starts: tuple(SegmentRef("k", 1, 2, bytes(20), start) for start in (b"", *sorted(starts)))
    ),
    st.lists(st.builds(SegmentRef, KEY, COUNT, EPOCH, DIGEST), max_size=3).map(tuple),
    WORD,
    COUNT,
)


def manifest(**changes: Any) -> bytes:
    value = json.loads(zstandard.ZstdDecompressor().decompress(encode_manifest(MANIFEST)[12:]))
    value.update(changes)
    raw = dump_json({k: v for k, v in value.items() if v is not ...})
    return struct.pack(">8sI", b"WSFSMAN1", len(raw)) + compress(raw)


def test_a_manifest_is_a_header_and_compressed_json() -> None:
    """Magic, raw length, and canonical JSON with digests and start keys in hexadecimal."""
    encoded = encode_manifest(MANIFEST)
    assert encoded[:12] == GOLDEN[:12]
    assert zstandard.ZstdDecompressor().decompress(encoded[12:]) == (
        b'{"base":[{"digest":"0000000000000000000000000000000000000000","key":"meta/a","length":1,"rows":2,"start":""}],'
        b'"bytes":3,"created":"2026-01-01T00:00:00Z","deltas":[],"epoch":2,"files":2,"format":1,"next_id":16,'
        b'"nonce":"n","parent":"p","seq":1,"workspace":"w"}'
    )


def test_a_manifest_of_the_first_release_is_still_read() -> None:
    """The bytes that version 1 wrote decode to the same commit for ever."""
    assert decode_manifest(GOLDEN) == MANIFEST


def test_a_commit_is_named_by_its_place_its_writer_and_chance() -> None:
    """Sequence, epoch and nonce: names sort by age, and no two writers can choose the same one."""
    assert replace(MANIFEST, seq=42, epoch=7, nonce="abcd").key == "commits/0000000042-00000007-abcd"


@given(manifests)
def test_manifests_round_trip(value: Manifest) -> None:
    """Whatever a commit can hold comes back the same."""
    assert decode_manifest(encode_manifest(value)) == value


REF_OUT = {"key": "k", "length": 1, "rows": 2, "digest": "00" * 20, "start": ""}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"seq": -1},
        {"seq": True},
        {"seq": 1.0},
        {"workspace": None},
        {"nonce": ...},
        {"base": {}},
        {"base": [1]},
        {"base": [{**REF_OUT, "start": "61"}]},
        {"base": [REF_OUT, REF_OUT]},
        {"base": [{**REF_OUT, "digest": "00"}]},
        {"base": [{**REF_OUT, "digest": "zz"}]},
        {"deltas": [{**REF_OUT, "length": "1"}]},
        {"deltas": [{**REF_OUT, "key": "../../etc/passwd"}]},
        {"deltas": [{**REF_OUT, "rows": 2**32}]},
        {"base": [REF_OUT, {**REF_OUT, "start": "61" * 600}]},
        {"parent": "/etc/passwd"},
        {"next_id": 2**62 + 1},
        {"files": 2**64},
        {"epoch": 2**32},
        {"seq": 10**400},
    ],
)
def test_malformed_manifests_are_refused(changes: dict[str, Any]) -> None:
    """A field that is missing, of the wrong kind or contradictory makes the whole commit unreadable."""
    with pytest.raises(FormatError):
        decode_manifest(manifest(**changes))


def test_a_segment_must_be_the_one_that_was_written() -> None:
    """Length and digest are checked before a segment is decoded."""
    ref = SegmentRef("meta/a", 4, 1, digest(b"good"))
    assert ref.check(b"good") == b"good"
    for data in (b"evil", b"goodx", b""):
        with pytest.raises(FormatError, match="not the one that was written"):
            ref.check(data)


def test_a_bomb_is_refused() -> None:
    """A manifest that announces more than the limit is not unpacked."""
    bomb = zstandard.ZstdCompressor().compress(bytes(RAW_MAX + 1))
    for announced in (RAW_MAX + 1, 100):
        with pytest.raises(FormatError):
            decode_manifest(struct.pack(">8sI", b"WSFSMAN1", announced) + bomb)


@given(st.binary(max_size=100), st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_nothing_but_format_errors(junk: bytes, at: int, flip: int) -> None:
    """Arbitrary and damaged bytes are refused as what they are."""
    damaged = bytearray(GOLDEN)
    damaged[at] ^= flip
    raw = struct.pack(">8sI", b"WSFSMAN1", len(junk)) + compress(junk)
    for data in (junk, GOLDEN[:12] + junk, raw):
        with pytest.raises(FormatError):
            decode_manifest(data)
    with suppress(FormatError):
        decode_manifest(bytes(damaged))
