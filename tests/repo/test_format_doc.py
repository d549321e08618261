"""docs/FORMAT.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wsfs import model
from wsfs.repo import codec, frame, head, manifest, pack, segment, workspace
from wsfs.store import sealed
from wsfs.sync import commit

DOC = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()


def table(heading: str) -> dict[str, str]:
    """The first two columns of the table below a heading."""
    section = DOC.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `?([^|`]+?)`? +\| `?([^|`]+?)`? +\|", section, flags=re.MULTILINE)
    return dict(rows[1:])


def test_constants() -> None:
    """Every constant that a reader needs has the value that the code uses."""
    assert table("Constants") == {
        "format version": str(workspace.VERSION),
        "block size": str(model.BLOCK_SIZE),
        "largest inline block": str(model.INLINE_MAX),
        "longest name": str(model.NAME_MAX),
        "digest": f"BLAKE2b, {codec.DIGEST_SIZE} bytes",
        "root inode": str(model.ROOT_INO),
        "marker inode": str(model.MARKER_INO),
        "first free number": str(model.FIRST_FREE_ID),
        "marker name": model.MARKER_NAME.decode(),
        "largest FORMAT": str(workspace.FORMAT_MAX),
        "largest HEAD": str(head.HEAD_MAX),
        "largest manifest, unpacked": str(manifest.RAW_MAX),
        "largest segment, unpacked": str(segment.RAW_MAX),
        "most frames in a pack": str(pack.MAX_FRAMES),
        "target size of a pack": str(pack.TARGET_SIZE),
        "target size of a partition": str(commit.PARTITION_SIZE),
        "target size of a delta": str(commit.DELTA_SIZE),
        "most deltas before a fold": str(commit.MAX_DELTAS),
        "zstd level": str(frame.ZSTD_LEVEL),
        "encrypted chunk": str(sealed.CHUNK),
    }


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("inode row", codec._INODE.size),
        ("dirent row", codec._DIRENT.size),
        ("packed block row", codec._LOC.size),
        ("segment header", segment._HEADER.size),
        ("segment row header", segment._ROW.size),
        ("manifest header", manifest._HEADER.size),
        ("table of contents entry", pack._ENTRY.size),
        ("pack footer", pack.FOOTER_SIZE),
        ("nonce", sealed.NONCE_SIZE),
        ("tag", sealed.TAG_SIZE),
    ],
)
def test_sizes(name: str, size: int) -> None:
    """Every fixed-size structure has as many bytes as the document counts."""
    assert table("Sizes")[name] == str(size)


@pytest.mark.parametrize("magic", [segment.MAGIC, manifest.MAGIC, pack.MAGIC, pack.END])
def test_magics(magic: bytes) -> None:
    """Every magic is quoted."""
    assert f'"{magic.decode()}"' in DOC


@pytest.mark.parametrize("module", [codec, segment, manifest, pack, sealed])
def test_grammars(module: object) -> None:
    """The grammar in a module's docstring is the document's, word for word."""
    text = module.__doc__ or ""
    lines = [line.strip() for line in text.splitlines() if ":=" in line]
    assert lines
    for line in lines:
        assert re.sub(r"\s+", " ", line) in re.sub(r"[ ]+", " ", DOC), line


def test_object_names() -> None:
    """The layout shows the names that the code makes."""
    for key in (
        model.pack_key(0x2A, 0x1234),
        model.segment_key(0x2A, 7),
        "commits/0000000042-0000002a-0123456789abcdef",
        workspace.FORMAT_KEY,
        head.HEAD_KEY,
    ):
        assert f"`{key}`" in DOC


@pytest.mark.parametrize("state", list(head.State))
def test_states(state: head.State) -> None:
    """Every state that HEAD can be in is explained."""
    assert table("HEAD")[state.value]
