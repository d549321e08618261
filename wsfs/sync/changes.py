"""What a commit has to do, out of the rows that have changed: blocks to send, and rows to publish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from wsfs.index.base import dirty_rows
from wsfs.index.tables import Reader
from wsfs.model import BLOCK_SIZE
from wsfs.repo import codec
from wsfs.repo.segment import Row
from wsfs.sync.partial import Left
from wsfs.sync.progress import Progress
from wsfs.sync.upload import Work


def blocks_to_send(reader: Reader, generation: int, progress: Progress) -> list[Work]:
    """The blocks whose bytes the bucket does not have, so that files of one directory end up side by side."""
    names: dict[int, tuple[int, bytes]] = {}
    attributes: dict[int, bytes] = {}
    local: list[tuple[int, int, bool]] = []
    for key, row in dirty_rows(reader, generation):
        if row is None:
            continue
        table = codec.table_of(key)
        if table == codec.ATTR:
            attributes[codec.ino_of(key)] = row
        elif table == codec.DIRENT:
            names[codec.dirent_fields(row)[0]] = (codec.ino_of(key), key[9:])
        elif table == codec.BLOCK and ((held := codec.is_held(row)) or codec.is_local(row)):
            local.append((codec.ino_of(key), codec.block_index(key), held))
    changed = attributes.keys()
    work: list[Work] = []
    for ino, index, held in local:
        row = attributes.get(ino) or reader.get(codec.attr_key(ino))
        size = codec.content_size(row) if row else 0
        name = names.get(ino) or (codec.parent_of(row) if row else 0, b"")
        work.append(Work(name, ino, index, min(BLOCK_SIZE, max(size - index * BLOCK_SIZE, 0)), size, held))
    work.sort(key=lambda w: (w.name, w.ino, w.index))
    with_data = {one.ino for one in work}
    progress.plan(len(changed | with_data), sum(one.length for one in work))
    # Of these there is nothing to send but a row.
    progress.prepared(len(changed - with_data))
    progress.done(len(changed - with_data), 0, 0)
    return work


def published_rows(
    rows: Iterable[Row], resolved: Mapping[bytes, bytes | None], first_new: int, left: Left
) -> Iterator[Row]:
    """Rows as the bucket holds them, with what their blocks have become (`resolved`). What came and went between two
    commits, from inode `first_new` on, leaves no trace."""
    for key, row in rows:
        if row is None:
            if codec.ino_of(key) < first_new:
                yield key, None
        elif key in resolved:
            value = resolved[key]
            if value is not None or codec.ino_of(key) < first_new:
                yield key, value
        else:
            yield key, left.publish(key, codec.published(key, row))
