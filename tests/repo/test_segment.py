"""Metadata segments: golden bytes, round trips, and what a reader refuses."""

from __future__ import annotations

import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from wsfs.errors import FormatError
from wsfs.repo import codec
from wsfs.repo.frame import compress
from wsfs.repo.segment import RAW_MAX, Row, decode_segment, encode_segment, row_size

ROWS: list[Row] = [
    (codec.attr_key(1), b"abc"),
    (codec.dirent_key(1, b"x"), None),
    (codec.dirent_key(1, b"y"), b""),
]
RAW = bytes.fromhex(
    "0009 00000004 000000000000000161 616263000a 00000000 00000000000000016478000a 00000001 00000000000000016479"
)
GOLDEN = bytes.fromhex(
    "5753465353454731 00000032 00000003"
    "28b52ffd2032050100a0000900000004000161616263000a0001647801790400a0c4cc3bc0e6033002"
)

rows_strategy = st.dictionaries(
    st.builds(
        codec.xattr_key,
        st.integers(1, 2**62 - 1),
        st.binary(min_size=1, max_size=255).filter(lambda name: b"\0" not in name),
    ),
    st.none() | st.binary(max_size=300),
    max_size=30,
).map(lambda rows: sorted(rows.items()))


def segment(raw: bytes, count: int, announced: int | None = None) -> bytes:
    return struct.pack(">8sII", b"WSFSSEG1", len(raw) if announced is None else announced, count) + compress(raw)


def row(key: bytes, value: bytes | None) -> bytes:
    return struct.pack(">HI", len(key), 0 if value is None else len(value) + 1) + key + (value or b"")


def test_a_segment_is_a_header_and_compressed_rows() -> None:
    """Magic, raw length, row count, then rows with their lengths before them; a coded length of 0 is a deletion."""
    encoded = encode_segment(ROWS)
    assert encoded[:16] == GOLDEN[:16]
    assert zstandard.ZstdDecompressor().decompress(encoded[16:]) == RAW
    assert sum(row_size(key, value) for key, value in ROWS) == len(RAW)


def test_a_segment_of_the_first_release_is_still_read() -> None:
    """The bytes that version 1 wrote decode to the same rows for ever."""
    assert list(decode_segment(GOLDEN)) == ROWS


@given(rows_strategy)
def test_segments_round_trip(rows: list[Row]) -> None:
    """Any sorted rows come back, deletions and empty values told apart."""
    assert list(decode_segment(encode_segment(rows))) == rows


A, B = codec.attr_key(1), codec.attr_key(2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "shorter than its header"),
        (b"WSFSSEG2" + GOLDEN[8:], "magic"),
        (GOLDEN[:-1], "damaged"),
        (segment(row(A, b"1"), 2), "middle of a row"),
        (segment(row(A, b"1")[:-1], 1), "middle of a row"),
        (segment(row(A, b"1") + b"\0", 1), "more bytes than its rows"),
        (segment(row(B, b"1") + row(A, b"1"), 2), "out of order"),
        (segment(row(A, b"1") + row(A, b"2"), 2), "out of order"),
        (segment(row(b"nonsense!", b"1"), 1), "impossible key"),
        (segment(row(A, b"1"), 1, announced=99), "announces"),
    ],
)
def test_damaged_segments_are_refused(data: bytes, message: str) -> None:
    """Each way in which a segment can be wrong has its own sentence."""
    with pytest.raises(FormatError, match=message):
        list(decode_segment(data))


def test_a_bomb_is_refused_before_anything_is_unpacked() -> None:
    """A few bytes that announce gigabytes cost nothing, whether header and frame agree or not."""
    bomb = zstandard.ZstdCompressor().compress(bytes(RAW_MAX + 1))
    assert len(bomb) < 100_000
    for announced in (RAW_MAX + 1, RAW_MAX, 10):
        with pytest.raises(FormatError, match="announces"):
            list(decode_segment(struct.pack(">8sII", b"WSFSSEG1", announced, 1) + bomb))


@given(st.binary(max_size=200), st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_nothing_but_format_errors(tail: bytes, at: int, flip: int) -> None:
    """Arbitrary bytes and single damaged bytes are refused as what they are, or still hold sorted rows."""
    damaged = bytearray(GOLDEN)
    damaged[at] ^= flip
    for data in (tail, GOLDEN[:16] + tail, bytes(damaged), GOLDEN + tail[:1]):
        try:
            keys = [key for key, _ in decode_segment(data)]
        except FormatError:
            continue
        assert keys == sorted(set(keys))
