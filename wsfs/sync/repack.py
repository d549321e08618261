"""Packs that are mostly dead: their live frames move into new packs, and the next commit leads there.

The rows are changed on the owner thread, and only where they still lead to the old frame. They are ordinary changes
then: the old packs die with the commits that lead to them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from wsfs.errors import FormatError, NotFoundError
from wsfs.index.base import note_frame
from wsfs.index.index import Batch, Index
from wsfs.index.tables import Writer
from wsfs.log import get_log
from wsfs.model import FrameLoc, Packed, pack_key
from wsfs.repo import codec
from wsfs.repo.pack import TARGET_SIZE, Frame, PackWriter, open_frame
from wsfs.store.base import Store
from wsfs.store.sealed import read_range
from wsfs.sync.commit import OnOwner
from wsfs.sync.survey import Listing, pack_id

log = get_log(__name__)

SPARSE: Final = 0.5
"""A pack of which less than this is live is written anew."""

SLACK: Final = 1.25
"""And the sparsest others as well, until all packs together are at most this many times as large as what is live."""

AT_ONCE: Final = 256 << 20
"""How many live bytes one collection moves, at most."""

_GAP: Final = 128 << 10
_ROWS: Final = 256
_PER_PACK: Final = 80
_PER_FRAME: Final = 45


@dataclass(slots=True)
class Usage:
    """How much of each pack rows lead to: its stored bytes, and its frames, each counted once."""

    packs: dict[int, list[int]] = field(default_factory=dict)
    _seen: set[int] = field(default_factory=set)

    def add(self, row: bytes) -> None:
        """Count the frame that a block row leads to."""
        place = codec.place_of(row)
        if place is None:
            return
        epoch, number, offset, stored = place
        pack = pack_id(epoch, number)
        frame = pack << 32 | offset
        if frame in self._seen:
            return
        self._seen.add(frame)
        counted = self.packs.get(pack)
        if counted is None:
            self.packs[pack] = [stored, 1]
        else:
            counted[0] += stored
            counted[1] += 1

    def needs(self, pack: int) -> int:
        """At most how many bytes a pack with only the live frames would have."""
        stored, frames = self.packs[pack]
        return stored + frames * _PER_FRAME + _PER_PACK


class _Move(NamedTuple):
    """A row that led to a frame."""

    key: bytes
    loc: FrameLoc


class Repacker:
    """See above. Runs on a thread that is not the owner's (in tests it may be)."""

    def __init__(
        self,
        store: Store,
        index: Index,
        on_owner: OnOwner,
        new_pack: Callable[[], PackWriter],
        *,
        grace: float,
        stopping: Callable[[], bool],
        reached: Callable[[str], None],
    ) -> None:
        self._store = store
        self._index = index
        self._on_owner = on_owner
        self._new_pack = new_pack
        self._grace = grace
        self._stopping = stopping
        self._reached = reached

    def repack(self, usage: Usage, listing: Listing, lasting: Container[int] = ()) -> tuple[int, int]:
        """Move the live frames of sparse packs. Returns how many packs were left, and the bytes sent.

        Packs in `lasting` stay whatever the rows here say: nothing would be gained.

        Raises StoreError, CacheError. Frames that cannot be read, or are damaged, stay where they are.
        """
        chosen = choose(usage, listing, self._grace, lasting)
        if not chosen or self._stopping():
            return 0, 0
        moves = self._rows_in(chosen)
        left = sent = 0
        pack = self._new_pack()
        moved: list[tuple[_Move, FrameLoc]] = []
        for number in sorted(moves):
            if self._stopping():
                break
            frames = self._frames(moves[number])
            self._reached("frames read")
            places: dict[int, FrameLoc] = {}
            for move in moves[number]:
                frame = frames.get(move.loc.offset)
                if frame is None:
                    continue
                place = places.get(move.loc.offset)
                if place is None:
                    place = pack.add(frame, codec.ino_of(move.key), codec.block_index(move.key))
                    places[move.loc.offset] = place
                moved.append((move, place))
            left += 1
            if pack.size >= TARGET_SIZE:
                sent += self._finish(pack, moved)
                pack, moved = self._new_pack(), []
        if moved:
            sent += self._finish(pack, moved)
        return left, sent

    def _rows_in(self, chosen: set[int]) -> dict[int, list[_Move]]:
        """The rows that lead to the chosen packs, by pack, in the order of their frames: neighbours stay neighbours."""
        found: dict[int, list[_Move]] = {}
        reader = self._index.tables.reader()
        try:
            for key, row in reader.scan(b"rows", b""):
                if key[8:9] != codec.BLOCK:
                    continue
                place = codec.place_of(row)
                if place is None or pack_id(place[0], place[1]) not in chosen:
                    continue
                block = codec.decode_block(row)
                assert isinstance(block, Packed)
                found.setdefault(pack_id(place[0], place[1]), []).append(_Move(key, block.loc))
        finally:
            reader.close()
        for moves in found.values():
            moves.sort(key=lambda move: move.loc.offset)
        return found

    def _frames(self, moves: list[_Move]) -> dict[int, Frame]:
        """The frames of one pack, verified, by offset. What is damaged is left out: it must not spread."""
        found: dict[int, Frame] = {}
        for run in _runs(moves):
            key = pack_key(run[0].loc.epoch, run[0].loc.pack)
            start = run[0].loc.offset
            end = max(move.loc.offset + move.loc.stored_length for move in run)
            try:
                data = read_range(self._store, key, start, end - start)
            except NotFoundError:
                log.error("a pack is missing", key=key, remedy=f"run 'wsfs fsck {self._store.url}'")
                continue
            for move in run:
                loc = move.loc
                stored = data[loc.offset - start :][: loc.stored_length]
                try:
                    open_frame(stored, loc)
                except FormatError as exc:
                    log.error(
                        "a frame is damaged", key=key, error=exc, remedy=f"run 'wsfs fsck {self._store.url} --data'"
                    )
                    continue
                found[loc.offset] = Frame(stored, loc.raw_length, loc.codec, loc.digest)
        return found

    def _finish(self, pack: PackWriter, moved: list[tuple[_Move, FrameLoc]]) -> int:
        """The new pack into the store, and then the rows to it."""
        data = pack.finish()
        self._store.put(pack_key(pack.epoch, pack.number), data, if_none_match=True)
        self._reached("pack written")
        for at in range(0, len(moved), _ROWS):
            part = moved[at : at + _ROWS]
            self._on_owner(lambda part=part: self._change(part))  # type: ignore[misc]
        self._reached("rows changed")
        self._index.rewrite(lambda txn: _note(txn, moved))
        self._reached("digests changed")
        return len(data)

    def _change(self, moved: list[tuple[_Move, FrameLoc]]) -> None:
        """Owner thread: rows that still lead to the old frame lead to the new one. Raises CacheError."""
        index = self._index
        batch = Batch()
        for move, place in moved:
            if index.is_detached(codec.ino_of(move.key)):
                continue
            row = index.get(move.key)
            block = codec.decode_block(row) if row else None
            if isinstance(block, Packed) and block.loc._replace(length=0) == move.loc._replace(length=0):
                batch.put(move.key, codec.encode_block(Packed(place._replace(length=block.loc.length), block.resident)))
        index.apply(batch)


def choose(usage: Usage, listing: Listing, grace: float, lasting: Container[int] = ()) -> set[int]:
    """The packs to write anew: the sparsest first; none that is young, for what changes often dies by itself."""
    sizes = {pack: listing.packs[pack].size for pack in usage.packs if pack in listing.packs and pack not in lasting}
    live = {pack: min(usage.needs(pack), size) for pack, size in sizes.items()}
    total, needed = sum(sizes.values()), sum(live.values())
    chosen: set[int] = set()
    budget = AT_ONCE
    for pack in sorted(sizes, key=lambda pack: live[pack] / max(sizes[pack], 1)):
        if live[pack] >= SPARSE * sizes[pack] and total <= SLACK * needed:
            break
        if live[pack] >= sizes[pack] or budget < live[pack]:
            break
        if listing.packs[pack].age < grace:
            continue
        chosen.add(pack)
        total -= sizes[pack] - live[pack]
        budget -= live[pack]
    return chosen


def _runs(moves: list[_Move]) -> Iterator[list[_Move]]:
    """Moves whose frames lie so close that one request fetches them; `moves` are in the order of their frames."""
    run: list[_Move] = []
    end = 0
    for move in moves:
        if run and move.loc.offset > end + _GAP:
            yield run
            run = []
        run.append(move)
        end = max(end if len(run) > 1 else 0, move.loc.offset + move.loc.stored_length)
    if run:
        yield run


def _note(txn: Writer, moved: list[tuple[_Move, FrameLoc]]) -> None:
    """Equal blocks of later commits lead to the new frames."""
    for _, place in moved:
        note_frame(txn, place)
