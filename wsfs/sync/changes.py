"""What a commit has to do, out of the rows that have changed: blocks to send, and rows to publish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from wsfs.index.base import dirty_rows
from wsfs.index.order import in_order, let_go
from wsfs.index.tables import Reader
from wsfs.model import BLOCK_SIZE, Ino
from wsfs.repo import codec
from wsfs.repo.segment import Row
from wsfs.sync.partial import Left
from wsfs.sync.progress import Progress
from wsfs.sync.upload import Work


def blocks_to_send(reader: Reader, generation: int, progress: Progress) -> list[Work]:
    """The blocks whose bytes the bucket does not have, so that files of one directory end up side by side."""
    names: dict[int, tuple[int, bytes]] = {}
    local: list[tuple[Ino, int, bytes, bool]] = []
    inodes = 0
    attributes = Ino(0), b""
    for key, row in dirty_rows(reader, generation):
        if row is None:
            continue
        table = codec.table_of(key)
        if table == codec.ATTR:
            attributes = codec.ino_of(key), row
            inodes += 1
        elif table == codec.DIRENT:
            names[codec.dirent_fields(row)[0]] = (codec.ino_of(key), key[9:])
        elif table == codec.BLOCK and ((held := codec.is_held(row)) or codec.is_local(row)):
            ino = codec.ino_of(key)
            if attributes[0] != ino:  # unchanged; else they have just come, for an inode's rows lie side by side
                attributes = ino, reader.get(codec.attr_key(ino)) or b""
                inodes += 1
            local.append((ino, codec.block_index(key), attributes[1], held))
    found: list[Work] = []
    for ino, index, row, held in local:
        size = codec.content_size(row) if row else 0
        name = names.get(ino) or (codec.parent_of(row) if row else 0, b"")
        found.append(Work(name, ino, index, min(BLOCK_SIZE, max(size - index * BLOCK_SIZE, 0)), size, held))
    work = list(in_order(found, lambda w: (w.name, w.ino, w.index)))
    # Of the other inodes there is nothing to send but a row.
    others = inodes - len({one.ino for one in work})
    progress.plan(inodes, sum(one.length for one in work))
    progress.prepared(others)
    progress.done(others, 0, 0)
    let_go(names, local, found)
    return work


def published_rows(
    rows: Iterable[Row], resolved: Mapping[bytes, bytes | None], first_new: int, left: Left
) -> Iterator[Row]:
    """Rows as the bucket holds them, with what their blocks have become (`resolved`). Of an inode that came and went
    between two commits, so from `first_new` on, there is no trace. Its name, if it is in an older directory, is deleted
    unless the index has left it out: nobody knows here whether it took the place of another."""
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
