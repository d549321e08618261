"""Packs: frames, the table of contents, the footer."""

from __future__ import annotations

import os
import random
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from wsfs.errors import FormatError
from wsfs.model import BLOCK_SIZE, Codec, FrameLoc
from wsfs.repo.frame import decompress, digest
from wsfs.repo.pack import END, FOOTER_SIZE, MAGIC, PackWriter, TocEntry, make_frame, open_frame, read_toc

BLOCK = b"a" * 1000
GOLDEN = bytes.fromhex(
    "5753465350414b31"
    "28b52ffd60e8024d00001061610100e32b8005"
    "28b52ffd202d6901000000000800000013000003e8010c8c64f74ac7d623cfbfc452aefb31d8b8dadad9000000000000000500000000"
    "00000001 0000001b 00000036 a17f4acbb8947f30be41f39cd89f46041cc97efe 57534653454e4431"
)


def packed(*blocks: bytes) -> tuple[bytes, list[FrameLoc]]:
    writer = PackWriter(1, 2)
    found = [writer.add(make_frame(block, digest(block)), 5, n) for n, block in enumerate(blocks)]
    return writer.finish(), found


def test_a_pack_of_the_first_release_is_still_read() -> None:
    """The bytes that version 1 wrote decode to the same frame and table of contents for ever."""
    assert len(GOLDEN) == 8 + 19 + 54 + 40
    assert read_toc(GOLDEN, len(GOLDEN)) == [TocEntry(8, 19, 1000, Codec.ZSTD, digest(BLOCK), 5, 0)]
    loc = FrameLoc(1, 2, 8, 19, 1000, 1000, Codec.ZSTD, digest(BLOCK))
    assert open_frame(GOLDEN[8:27], loc) == BLOCK


def test_a_pack_is_frames_between_a_magic_and_a_footer() -> None:
    """Every frame lies where its location says; the footer leads to a table that says the same."""
    blocks = [os.urandom(700), bytes(BLOCK_SIZE), b"text " * 500]
    data, locations = packed(*blocks)
    assert data.startswith(MAGIC)
    assert data.endswith(END)
    for block, loc in zip(blocks, locations, strict=True):
        assert open_frame(data[loc.offset : loc.offset + loc.stored_length], loc) == block
    assert [loc.codec for loc in locations] == [Codec.RAW, Codec.ZSTD, Codec.ZSTD]
    assert locations[0].offset == 8
    toc = read_toc(data, len(data))
    assert [(e.offset, e.stored_length, e.raw_length, e.codec, e.digest) for e in toc] == [
        (x.offset, x.stored_length, x.raw_length, x.codec, x.digest) for x in locations
    ]
    assert [(e.ino, e.block) for e in toc] == [(5, 0), (5, 1), (5, 2)]
    tail = data[-(FOOTER_SIZE + 300) :]
    assert read_toc(tail, len(data)) == toc


@given(st.binary(min_size=1, max_size=3000))
def test_frames_round_trip(block: bytes) -> None:
    """Compressible or not, a block comes back, and is never stored larger than it is."""
    frame = make_frame(block, digest(block))
    loc = FrameLoc(1, 2, 8, len(frame.stored), frame.raw_length, frame.raw_length, frame.codec, frame.digest)
    assert open_frame(frame.stored, loc) == block
    assert len(frame.stored) <= len(block)


@pytest.mark.parametrize("codec", [Codec.RAW, Codec.ZSTD])
def test_a_frame_with_other_bytes_is_refused(codec: Codec) -> None:
    """Bit rot, zeros and a wrong length fail the digest or the frame itself."""
    block = os.urandom(900) if codec == Codec.RAW else b"b" * 900
    frame = make_frame(block, digest(block))
    assert frame.codec == codec
    loc = FrameLoc(1, 2, 8, len(frame.stored), 900, 900, frame.codec, frame.digest)
    stored = bytes(frame.stored)
    flipped = bytearray(stored)
    flipped[random.Random(1).randrange(len(stored))] ^= 1
    for data in (bytes(flipped), bytes(len(stored)), stored[:-1], stored + b"\0", b""):
        with pytest.raises(FormatError):
            open_frame(data, loc)


def test_a_frame_of_an_unknown_codec_is_refused() -> None:
    """A newer wsfs may code frames in other ways: this one says so instead of guessing."""
    with pytest.raises(FormatError, match="coded in a way"):
        open_frame(b"x", FrameLoc(1, 2, 8, 1, 1, 1, 9, digest(b"x")))


def test_a_frame_larger_than_a_block_is_refused() -> None:
    """No row makes a reader unpack more than a block."""
    bomb = zstandard.ZstdCompressor().compress(bytes(BLOCK_SIZE + 1))
    loc = FrameLoc(1, 2, 8, len(bomb), BLOCK_SIZE + 1, 1, Codec.ZSTD, bytes(20))
    with pytest.raises(FormatError, match="more than a block"):
        open_frame(bomb, loc)


def test_a_bomb_in_a_frame_is_refused() -> None:
    """A frame that announces a gigabyte, or does not say its size, is refused without unpacking it."""
    one = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    for bomb in (one, silent):
        with pytest.raises(FormatError, match="announces"):
            decompress(bomb, BLOCK_SIZE)


def test_nothing_may_follow_a_compressed_frame() -> None:
    """Equal content is equal bytes: garbage behind a frame is damage."""
    data, _ = packed(BLOCK)
    assert decompress(data[8:27], 1000) == BLOCK
    with pytest.raises(FormatError, match="damaged"):
        decompress(data[8:27] + b"x", 1000)


@pytest.mark.parametrize(
    ("tail", "size", "message"),
    [
        (b"", 0, "shorter than its footer"),
        (GOLDEN[:-1], len(GOLDEN) - 1, "does not end"),
        (GOLDEN, len(GOLDEN) + 1, "does not fit"),
        (GOLDEN[-50:], len(GOLDEN), "does not hold"),
        (GOLDEN[:30] + b"\xff" + GOLDEN[31:], len(GOLDEN), "damaged"),
        (GOLDEN[:-40] + b"\xff" + GOLDEN[-39:], len(GOLDEN), "does not fit"),
    ],
)
def test_a_damaged_table_of_contents_is_refused(tail: bytes, size: int, message: str) -> None:
    """Footer, size and digest are checked before the table is unpacked."""
    with pytest.raises(FormatError, match=message):
        read_toc(tail, size)


@given(st.binary(max_size=200), st.integers(0, len(GOLDEN) - 1), st.integers(1, 255))
def test_nothing_but_format_errors(junk: bytes, at: int, flip: int) -> None:
    """Arbitrary and damaged tails raise nothing else."""
    damaged = bytearray(GOLDEN)
    damaged[at] ^= flip
    for data in (junk, bytes(damaged), junk + GOLDEN[-40:]):
        with suppress(FormatError):
            read_toc(data, len(data))
