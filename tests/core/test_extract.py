"""What tells how far an export is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness import SMALL_BLOCK as BLOCK
from harness import World

from wsfs.extract import extract
from wsfs.sync.load import read_manifest
from wsfs.sync.progress import DOWNLOAD, Progress
from wsfs.targets import Content, DirectoryTarget


def test_progress_moves_within_a_file(small: World, tmp_path: Path) -> None:
    """Else the time that is left would be guessed from small files, while the large ones are on their way."""
    small.create(b"f", os.urandom(6 * BLOCK))
    holes = small.create(b"holes")
    small.truncate(holes, 10 * BLOCK)
    small.write(holes, 4 * BLOCK, os.urandom(BLOCK))
    small.commit()
    progress = Progress(DOWNLOAD)
    seen: list[int] = []

    class Watching(DirectoryTarget):
        def file(self, path: bytes, content: Content, *more: Any) -> None:
            def pieces() -> Any:
                for piece in content.pieces:
                    seen.append(progress.bytes_done)
                    yield piece

            super().file(path, content._replace(pieces=pieces()), *more)

    extract(small.store, read_manifest(small.store, small.head()), Watching(tmp_path / "out"), progress)
    assert len(set(seen)) >= 6
    assert progress.bytes_done == progress.bytes
