"""Frames out of packs, each checked: neighbours with one request, and several requests at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from functools import partial
from typing import Final, NamedTuple

from wsfs.errors import FormatError, NotFoundError
from wsfs.model import FrameLoc, pack_key
from wsfs.parallel import map_ordered
from wsfs.repo.pack import open_frame
from wsfs.store.base import Store
from wsfs.store.sealed import read_range

RUN_STORED: Final = 4 << 20
RUN_RAW: Final = 12 << 20
"""Neither does a run read more than the one, nor does it unpack to more than the other."""

_GAP: Final = 64 << 10
_READERS: Final = 4
_AHEAD: Final = 2


class FrameUse(NamedTuple):
    """A block, and the frame that it leads to."""

    ino: int
    block: int
    loc: FrameLoc


Opened = tuple[FrameUse, bytes | FormatError]
"""A block and the whole frame, or what is wrong with it."""


def in_order(store: Store, uses: Iterable[FrameUse]) -> Generator[Opened, None, None]:
    """Each block in the order in which it is asked for, fetched ahead with at most some 120 MB of memory.

    The nearer that order is to the one in the packs, the fewer requests. Raises StoreError.
    """
    opened = partial(_opened, store)
    for run in map_ordered(opened, runs(uses), threads=_READERS, name="wsfs-frames", ahead=_AHEAD):
        yield from run


def runs(uses: Iterable[FrameUse]) -> Iterator[list[FrameUse]]:
    """Uses that follow each other, in portions that one request can serve."""
    run: list[FrameUse] = []
    start = end = raw = 0
    for use in uses:
        loc = use.loc
        fits = (
            run
            and (run[0].loc.epoch, run[0].loc.pack) == (loc.epoch, loc.pack)
            and start <= loc.offset <= end + _GAP
            and loc.offset + loc.stored_length <= start + RUN_STORED
            and raw + loc.raw_length <= RUN_RAW
        )
        if not fits:
            if run:
                yield run
            run, raw = [], 0
            start = end = loc.offset
        run.append(use)
        end = max(end, loc.offset + loc.stored_length)
        raw += loc.raw_length
    if run:
        yield run


def _opened(store: Store, run: list[FrameUse]) -> list[Opened]:
    return list(open_run(store, run))


def open_run(store: Store, run: list[FrameUse]) -> Iterator[Opened]:
    """The frames of a run, by one request. Raises StoreError."""
    first = run[0].loc
    key = pack_key(first.epoch, first.pack)
    end = max(use.loc.offset + use.loc.stored_length for use in run)
    try:
        data = memoryview(read_range(store, key, first.offset, end - first.offset))
    except NotFoundError:
        missing = FormatError(f"the pack '{key}' is missing")
        yield from ((use, missing) for use in run)
        return
    last: FrameLoc | None = None
    opened: bytes | FormatError = b""
    for use in run:
        loc = use.loc._replace(length=use.loc.raw_length)
        if loc != last:
            try:
                opened = open_frame(data[loc.offset - first.offset :][: loc.stored_length], loc)
            except FormatError as exc:
                opened = FormatError(f"in the pack '{key}' {exc}")
            last = loc
        yield use, opened
