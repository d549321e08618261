"""Keys and rows: golden bytes, round trips, order, and refusal of everything else."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfs.errors import FormatError
from wsfs.model import LOCAL, Dirent, FrameLoc, Inline, Ino, Inode, Local, Packed
from wsfs.repo import codec

U32 = st.integers(0, 2**32 - 1)
IDS = st.integers(1, 2**62 - 1)
TIMES = st.integers(-(2**63), 2**63 - 1)
NAMES = st.binary(min_size=1, max_size=255).filter(lambda n: not {0, 0x2F} & set(n) and n not in (b".", b".."))
LENGTHS = st.integers(0, 2**20)
LOCATIONS = st.builds(
    FrameLoc, U32, U32, U32, LENGTHS, LENGTHS, LENGTHS, st.integers(0, 255), st.binary(min_size=20, max_size=20)
).filter(lambda loc: loc.length <= loc.raw_length)
BLOCKS = st.one_of(
    st.just(LOCAL),
    st.builds(Inline, st.binary(max_size=512)),
    st.builds(Packed, LOCATIONS, st.booleans()),
)
TYPES = st.sampled_from([0o100000, 0o040000, 0o120000, 0o010000, 0o140000, 0o060000, 0o020000])
MODES = st.builds(lambda kind, bits: kind | bits, TYPES, st.integers(0, 0o7777))
INODES = st.builds(Inode, IDS, MODES, U32, U32, U32, U32, st.integers(0, 2**52), TIMES, TIMES, TIMES, IDS)

PACKED = Packed(FrameLoc(2, 3, 8, 100, 4096, 4000, 1, bytes(range(20))))


def key_of(ino: int, table: bytes, name: bytes, index: int) -> bytes:
    makers = {
        b"a": lambda: codec.attr_key(ino),
        b"b": lambda: codec.block_key(ino, index),
        b"d": lambda: codec.dirent_key(ino, name),
        b"s": lambda: codec.symlink_key(ino),
        b"x": lambda: codec.xattr_key(ino, name),
    }
    return makers[table]()


KEYS = st.tuples(IDS, st.sampled_from([b"a", b"b", b"d", b"s", b"x"]), NAMES, U32)


@pytest.mark.parametrize(
    ("key", "golden"),
    [
        (codec.attr_key(1), "0000000000000001 61"),
        (codec.block_key(0x0102, 3), "0000000000000102 62 00000003"),
        (codec.dirent_key(1, b"a\xff"), "0000000000000001 64 61ff"),
        (codec.symlink_key(2**62 - 1), "3fffffffffffffff 73"),
        (codec.xattr_key(7, b"user.k"), "0000000000000007 78 757365722e6b"),
    ],
)
def test_keys_are_inode_table_suffix(key: bytes, golden: str) -> None:
    """A key is the inode number, the table's letter, and the table's own suffix."""
    assert key == bytes.fromhex(golden)
    codec.check_key(key)


def test_an_inode_row_is_73_bytes() -> None:
    """Version, mode, owner, links, device, size, parent, and three times as seconds and nanoseconds."""
    inode = Inode(Ino(5), 0o100644, 1000, 1001, 1, 0, 7, -1, 1_700_000_000_123_456_789, 15_000_000_000 * 10**9, Ino(1))
    golden = bytes.fromhex(
        "01 000081a4 000003e8 000003e9 00000001 00000000 0000000000000007 0000000000000001"
        "ffffffffffffffff 3b9ac9ff 000000006553f100 075bcd15 000000037e11d600 00000000"
    )
    assert codec.encode_inode(inode) == golden
    assert codec.decode_inode(Ino(5), golden) == inode
    assert len(golden) == 73


@pytest.mark.parametrize(
    ("seconds", "golden"),
    [(-2177452800, "ffffffff7e36b500"), (0, "0000000000000000"), (15_032_385_535, "000000037fffffff")],
    ids=["1901", "1970", "2446"],
)
def test_times_far_from_now_keep_their_nanoseconds(seconds: int, golden: str) -> None:
    """Seconds are signed and floor, so that nanoseconds count forward before 1970 too."""
    moment = seconds * 10**9 + 999_999_999
    inode = Inode(Ino(5), 0o100644, 0, 0, 1, 0, 0, moment, moment, moment, Ino(1))
    row = codec.encode_inode(inode)
    assert row[37:49].hex() == golden + "3b9ac9ff"
    assert codec.decode_inode(Ino(5), row) == inode


def test_a_directory_entry_is_17_bytes() -> None:
    """Inode, file type, cookie."""
    golden = bytes.fromhex("0000000000000005 08 0000000000000006")
    assert codec.encode_dirent(Dirent(Ino(5), 8, 6)) == golden
    assert codec.decode_dirent(golden) == Dirent(Ino(5), 8, 6)


@pytest.mark.parametrize(
    ("block", "golden"),
    [
        (LOCAL, "00"),
        (Inline(b"hi"), "01 6869"),
        (Inline(b""), "01"),
        (PACKED, "02 00000002 00000003 00000008 00000064 00001000 00000fa0 01" + bytes(range(20)).hex()),
        (
            PACKED._replace(resident=True),
            "03 00000002 00000003 00000008 00000064 00001000 00000fa0 01" + bytes(range(20)).hex(),
        ),
    ],
)
def test_block_rows(block: Local | Inline | Packed, golden: str) -> None:
    """A tag, then nothing, the bytes themselves, or the place in a pack."""
    assert codec.encode_block(block) == bytes.fromhex(golden)
    assert codec.decode_block(bytes.fromhex(golden)) == block


def test_what_only_concerns_one_machine_is_not_published() -> None:
    """The bucket does not learn what is resident, and never a block that was not uploaded."""
    key = codec.block_key(5, 0)
    packed = codec.encode_block(PACKED)
    assert codec.published(key, codec.encode_block(PACKED._replace(resident=True))) == packed
    assert codec.published(key, packed) == packed
    assert codec.published(codec.symlink_key(5), b"\x03target") == b"\x03target"
    with pytest.raises(AssertionError, match="never uploaded"):
        codec.published(key, codec.encode_block(LOCAL))


@given(INODES)
def test_inodes_round_trip(inode: Inode) -> None:
    """Whatever stat can say comes back the same."""
    row = codec.encode_inode(inode)
    assert codec.decode_inode(inode.ino, row) == inode
    assert codec.content_size(row) == (0 if inode.is_dir else inode.size)
    assert codec.parent_of(row) == inode.parent


@given(BLOCKS)
def test_blocks_round_trip(block: Local | Inline | Packed) -> None:
    """Every kind of block row comes back the same."""
    assert codec.decode_block(codec.encode_block(block)) == block
    assert codec.is_local(codec.encode_block(block)) == (block == LOCAL)


@given(st.builds(Dirent, IDS, TYPES.map(lambda kind: kind >> 12), IDS))
def test_directory_entries_round_trip(dirent: Dirent) -> None:
    """Every directory entry comes back the same."""
    assert codec.decode_dirent(codec.encode_dirent(dirent)) == dirent


@given(st.lists(KEYS, min_size=2, max_size=8))
def test_keys_sort_by_inode_table_and_suffix(parts: list[tuple[int, bytes, bytes, int]]) -> None:
    """The order of the bytes is the order of the numbers: what belongs together is adjacent."""

    def logical(part: tuple[int, bytes, bytes, int]) -> tuple[int, bytes, int, bytes]:
        ino, table, name, index = part
        return ino, table, index if table == b"b" else 0, name if table in (b"d", b"x") else b""

    by_bytes = sorted(parts, key=lambda part: key_of(*part))
    assert [logical(p) for p in by_bytes] == sorted(logical(p) for p in parts)


@given(KEYS, KEYS)
def test_a_table_range_holds_its_table_and_nothing_else(
    one: tuple[int, bytes, bytes, int], other: tuple[int, bytes, bytes, int]
) -> None:
    """A scan of one table of one inode meets exactly its rows."""
    low, high = codec.table_range(one[0], one[1])
    key = key_of(*other)
    assert low <= key_of(*one) < high
    assert (low <= key < high) == (other[:2] == one[:2])
    assert (codec.ino_of(key), codec.table_of(key)) == (other[0], other[1])
    if other[1] == b"b":
        assert codec.block_index(key) == other[3]
    codec.check_key(key)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        bytes(8),
        bytes(8) + b"c",
        codec.attr_key(1) + b"x",
        codec.symlink_key(1) + b"x",
        codec.block_key(1, 2)[:-1],
        codec.block_key(1, 2) + b"\0",
        codec.dirent_key(1, b""),
        codec.dirent_key(1, b"."),
        codec.dirent_key(1, b".."),
        codec.dirent_key(1, b"a/b"),
        codec.dirent_key(1, b"a\0b"),
        codec.dirent_key(1, b"x" * 256),
        codec.xattr_key(1, b""),
        codec.xattr_key(1, b"a\0b"),
        codec.attr_key(0),
        codec.attr_key(2**62),
    ],
)
def test_impossible_keys_are_refused(key: bytes) -> None:
    """A key that no encoder makes, above all a name that is no name, never gets into the index."""
    with pytest.raises(FormatError, match="impossible key"):
        codec.check_key(key)


@pytest.mark.parametrize(
    "row",
    [
        b"",
        codec.encode_inode(Inode(Ino(5), 0, 0, 0, 1, 0, 0, 0, 0, 0, Ino(1)))[:-1],
        codec.encode_inode(Inode(Ino(5), 0, 0, 0, 1, 0, 0, 0, 0, 0, Ino(1))) + b"\0",
        b"\x02" + codec.encode_inode(Inode(Ino(5), 0, 0, 0, 1, 0, 0, 0, 0, 0, Ino(1)))[1:],
        codec.encode_inode(Inode(Ino(5), 0, 0, 0, 1, 0, 0, 0, 0, 0, Ino(1)))[:-4] + (10**9).to_bytes(4, "big"),
    ],
    ids=["empty", "short", "long", "of another version", "nanoseconds beyond a second"],
)
def test_impossible_inode_rows_are_refused(row: bytes) -> None:
    """Only what encoding makes is decoded."""
    with pytest.raises(FormatError):
        codec.decode_inode(Ino(5), row)


REGULAR = Inode(Ino(5), 0o100644, 0, 0, 1, 0, 0, 0, 0, 0, Ino(1))


@pytest.mark.parametrize(
    "inode",
    [
        REGULAR._replace(mode=0o644),
        REGULAR._replace(mode=0o1100644),
        REGULAR._replace(size=2**52 + 1),
        REGULAR._replace(parent=Ino(0)),
        REGULAR._replace(parent=Ino(2**62)),
    ],
    ids=["no type", "bits beyond the type", "larger than any file", "in no directory", "in none that can be"],
)
def test_inodes_that_cannot_be_are_refused(inode: Inode) -> None:
    """Rows of the right length with values that no system call could take."""
    with pytest.raises(FormatError):
        codec.decode_inode(Ino(5), codec.encode_inode(inode))


@pytest.mark.parametrize(
    "dirent", [Dirent(Ino(0), 8, 1), Dirent(Ino(2**62), 8, 1), Dirent(Ino(5), 3, 1), Dirent(Ino(5), 8, 2**62)]
)
def test_entries_that_cannot_be_are_refused(dirent: Dirent) -> None:
    """Inode 0 would tell the kernel that there is no such name; a cookie is a signed offset."""
    with pytest.raises(FormatError):
        codec.decode_dirent(codec.encode_dirent(dirent))


@pytest.mark.parametrize(
    "change",
    [{"raw_length": 2**20 + 1}, {"length": 4097}, {"stored_length": 2**21 + 1}],
    ids=["raw", "length", "stored"],
)
def test_blocks_that_cannot_be_are_refused(change: dict[str, int]) -> None:
    """Else one read of a small file could fetch gigabytes."""
    with pytest.raises(FormatError):
        codec.decode_block(codec.encode_block(Packed(PACKED.loc._replace(**change))))


@pytest.mark.parametrize("change", [{"size": -1}, {"nlink": -1}, {"nlink": 2**32}])
def test_counts_that_cannot_be_are_damage(change: dict[str, int]) -> None:
    """What a wrong count of a damaged workspace makes of a change: it is told, and nothing is changed."""
    with pytest.raises(FormatError, match="fsck"):
        codec.encode_inode(REGULAR._replace(**change))


@given(st.binary(max_size=120))
def test_decoders_raise_nothing_but_format_errors(data: bytes) -> None:
    """Arbitrary bytes are either exactly what encoding makes or a FormatError."""
    with suppress(FormatError):
        assert codec.encode_inode(codec.decode_inode(Ino(1), data)) == data
    with suppress(FormatError):
        assert codec.encode_dirent(codec.decode_dirent(data)) == data
    with suppress(FormatError):
        assert codec.encode_block(codec.decode_block(data)) == data
    with suppress(FormatError):
        codec.check_key(data)
