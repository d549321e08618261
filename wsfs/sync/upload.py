"""Blocks into packs, and packs into the store: what takes long in a commit."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from wsfs.data.packcache import PackCache, Pieces
from wsfs.errors import DeadlineError, PreconditionFailedError, StoreError
from wsfs.index.base import known_frame
from wsfs.index.tables import Reader
from wsfs.log import get_log
from wsfs.model import BLOCK_SIZE, INLINE_MAX, FrameLoc, Inline, Packed, pack_key
from wsfs.repo import codec
from wsfs.repo.frame import ZSTD_LEVEL, ZSTD_LEVEL_FAST, digest
from wsfs.repo.pack import TARGET_SIZE, Frame, PackWriter, make_frame
from wsfs.store.base import Store
from wsfs.sync.progress import Progress

log = get_log(__name__)

REUSE_SECONDS: Final = 1800.0
"""For so long after its upload a frame is used again that no commit leads to yet. The garbage collector spares what is
younger than twice that."""

_REUSE_MAX: Final = 200_000
_PORTION: Final = 64
_PORTION_IN_HASTE: Final = 8
_PORTION_SIZE: Final = 4 << 20
_SIZE_IN_HASTE: Final = 2 << 20
_NICE: Final = 10
_ZEROS: Final = bytes(BLOCK_SIZE)


class Limit(NamedTuple):
    """When a save must have ended, by time.monotonic(). Uploads end `reserve` seconds before, to commit them."""

    end: float
    reserve: float

    @property
    def uploads(self) -> float:
        return self.end - self.reserve


@dataclass(frozen=True, slots=True)
class Work:
    """A block on its way: `name` orders it; `size` is that of the whole file; `held`: its bytes are in its row."""

    name: tuple[int, bytes]
    ino: int
    index: int
    length: int
    size: int
    held: bool = False

    @property
    def key(self) -> bytes:
        """Of its row."""
        return codec.block_key(self.ino, self.index)


class Origin(Protocol):
    """Where the bytes of blocks come from; any thread may ask."""

    def capture(self, ino: int, index: int, length: int) -> bytes:
        """So many bytes of a block, as they are to be saved."""


class Tally(NamedTuple):
    """How many files end in a pack, and how many bytes of files it is for, those that needed no room included."""

    files: int
    bytes: int


Prepared = bytes | Frame | FrameLoc
"""What a block has become: bytes for its row (none: it is all zeros), a frame for a pack, or a frame that is there."""


class Uploaded:
    """Frames that are in the store although no commit leads to them: a commit that is tried again need not send them.

    Only for commits of one epoch, and of one process. Any thread may add.
    """

    def __init__(self, clock: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)) -> None:
        self._clock = clock
        self._frames: dict[bytes, tuple[FrameLoc, float]] = {}

    def add(self, places: list[FrameLoc]) -> None:
        if len(self._frames) < _REUSE_MAX:
            now = self._clock()
            self._frames.update({place.digest: (place, now) for place in places})

    def get(self, name: bytes) -> FrameLoc | None:
        found = self._frames.get(name)
        return None if found is None else found[0]

    def expire(self) -> None:
        """Before a commit, during which no garbage is collected: forget what it could find deleted."""
        oldest = self._clock() - REUSE_SECONDS
        self._frames = {name: found for name, found in list(self._frames.items()) if found[1] > oldest}

    def clear(self) -> None:
        self._frames = {}


def _stand_back() -> None:
    """Let this thread have what others leave of the processor. On Linux each thread has a nice value of its own."""
    with contextlib.suppress(OSError):  # it is polite, and no more
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


class Packs:
    """Turns blocks into rows, by way of packs that are uploaded in parallel. At most `uploads` packs wait in memory.

    `behind`: while programs use the mount, their requests go first, and a processor is left to them: with all of them
    busy, a kernel that preempts lazily (from Linux 6.13 on) lets a request wait for the next tick of its clock.

    With a limit packs are smaller, and what is not in the store in time is told by `is_sent`. `cache` gets what rows
    held, and `reader` has these rows, and the frames that are in the store; a first commit needs neither.
    """

    def __init__(
        self,
        store: Store,
        origin: Origin,
        cache: PackCache | None,
        reader: Reader | None,
        new_pack: Callable[[], PackWriter],
        uploaded: Uploaded,
        *,
        uploads: int,
        compressors: int,
        progress: Progress,
        limit: Limit | None = None,
        behind: bool = False,
    ) -> None:
        self._store = store
        self._origin = origin
        self._cache = cache
        self._progress = progress
        self._reader = reader
        self._new_pack = new_pack
        self._uploaded = uploaded
        self._uploads = uploads
        self._limit = limit
        begin = None
        if behind:
            begin = _stand_back
            compressors = max(1, min(compressors, len(os.sched_getaffinity(0)) - 1))
        self._compress = ThreadPoolExecutor(compressors, "wsfs-compress", begin)
        self._upload = ThreadPoolExecutor(uploads, "wsfs-upload", begin)
        self._running: list[Future[None]] = []
        self._seen: dict[bytes, FrameLoc] = {}
        self._missing: set[tuple[int, int]] = set()
        self._pack = new_pack()
        self._places: list[FrameLoc] = []
        self._held: Pieces = []
        self._tally = Tally(0, 0)
        self._ahead = 2 * compressors
        self._level = ZSTD_LEVEL_FAST
        """Compress better as long as the network is what takes time."""
        self._target = TARGET_SIZE if limit is None else min(TARGET_SIZE, _SIZE_IN_HASTE)
        self.puts = 0
        self.sent = 0
        self.failure: StoreError | None = None
        """With a limit: why a pack is not in the store."""

    def upload(self, blocks: list[Work], goes_on: Callable[[Work], bool]) -> dict[bytes, bytes | None]:
        """As `pack`, once all packs are in the store."""
        resolved = self.pack(blocks, goes_on)
        self.wait()
        return resolved

    def pack(self, blocks: list[Work], goes_on: Callable[[Work], bool]) -> dict[bytes, bytes | None]:
        """The published row of each block, once all are in packs, of which some are on their way; None for one that is
        all zeros. Raises StoreError.

        Ends before the first portion whose first block `goes_on` declines.
        """
        resolved: dict[bytes, bytes | None] = {}
        last = {work.ino: work.index for work in blocks}
        for work, found in self._prepared(blocks, goes_on):
            ended = last[work.ino] == work.index
            self._progress.prepared(ended)
            self._tally = Tally(self._tally.files + ended, self._tally.bytes + work.length)
            if isinstance(found, bytes):
                resolved[work.key] = codec.encode_block(Inline(found)) if found else None
            else:
                resolved[work.key] = codec.encode_block(Packed(self._place(found, work)))
        if self._pack.frames:
            self._send()
        return resolved

    def wait(self) -> None:
        """Until all packs are in the store. Raises StoreError."""
        self._wait(0)
        tally, self._tally = self._tally, Tally(0, 0)
        self._progress.done(*tally, 0)

    def is_sent(self, row: bytes | None) -> bool:
        """Whether what a row of `upload` leads to is in the store."""
        place = None if row is None else codec.place_of(row)
        return place is None or place[:2] not in self._missing

    def close(self) -> None:
        """Wait for what is under way; with a limit, leave it to itself."""
        for pool in (self._compress, self._upload):
            pool.shutdown(wait=self._limit is None, cancel_futures=True)

    def _prepared(self, blocks: list[Work], goes_on: Callable[[Work], bool]) -> Iterator[tuple[Work, Prepared]]:
        """Each block with what has become of it, in order. While one portion is packed, the next ones are prepared."""
        under_way: deque[tuple[list[Work], Future[list[Prepared]]]] = deque()
        for portion in self._portions(blocks):
            if not goes_on(portion[0]):
                break
            # The reader belongs to this thread.
            held = [self._held_row(one) if one.held else None for one in portion]
            under_way.append((portion, self._compress.submit(self._prepare, portion, held, self._level)))
            if len(under_way) > self._ahead:
                done, results = under_way.popleft()
                yield from zip(done, results.result(), strict=True)
        for done, results in under_way:
            yield from zip(done, results.result(), strict=True)

    def _held_row(self, work: Work) -> bytes | None:
        assert self._reader is not None
        return self._reader.get(work.key)

    def _portions(self, blocks: list[Work]) -> Iterator[list[Work]]:
        most = _PORTION if self._limit is None else _PORTION_IN_HASTE
        portion: list[Work] = []
        size = 0
        for work in blocks:
            portion.append(work)
            size += work.length
            if len(portion) == most or size >= _PORTION_SIZE:
                yield portion
                portion, size = [], 0
        if portion:
            yield portion

    def _prepare(self, portion: list[Work], held: list[bytes | None], level: int) -> list[Prepared]:
        return [self._prepare_one(work, row, level) for work, row in zip(portion, held, strict=True)]

    def _prepare_one(self, work: Work, row: bytes | None, level: int) -> Prepared:
        data = row[1:] if row else self._origin.capture(work.ino, work.index, work.length)
        if data == _ZEROS[: len(data)]:
            return b""
        if len(data) <= INLINE_MAX:
            return data
        name = digest(data)
        known = self._seen.get(name) or self._uploaded.get(name)
        return known if known is not None else make_frame(data, name, level)

    def _place(self, found: Frame | FrameLoc, work: Work) -> FrameLoc:
        if isinstance(found, FrameLoc):
            return found
        known = self._seen.get(found.digest)
        if known is None and self._reader is not None:
            known = known_frame(self._reader, found.digest)
        if known is None:
            known = self._pack.add(found, work.ino, work.index)
            self._places.append(known)
            if work.held:
                self._held.append((known.offset, found.stored))
            if self._pack.size >= self._target:
                self._send()
        self._seen[found.digest] = known
        return known

    def _send(self) -> None:
        pack, self._pack = self._pack, self._new_pack()
        places, self._places = self._places, []
        held, self._held = self._held, []
        tally, self._tally = self._tally, Tally(0, 0)
        self._missing.add((pack.epoch, pack.number))
        waits = sum(not upload.done() for upload in self._running) >= self._uploads
        self._level = ZSTD_LEVEL if waits else ZSTD_LEVEL_FAST
        self._wait(self._uploads - 1)
        self._running.append(self._upload.submit(self._put, pack, places, held, tally))
        self.puts += 1

    def _wait(self, running: int) -> None:
        """Until at most so many uploads are under way. Raises StoreError; with a limit it notes that, and ends then."""
        while len(self._running) > running:
            first = self._running[0]
            if self._limit is not None:
                wait([first], max(self._limit.uploads - time.monotonic(), 0))
                if not first.done():
                    return
            self._running.pop(0)
            try:
                first.result()
            except StoreError as exc:
                if self._limit is None or isinstance(exc, PreconditionFailedError):  # no time makes that better
                    raise
                log.warning("a pack is not sent", error=exc)
                self.failure = exc

    def _put(self, pack: PackWriter, places: list[FrameLoc], held: Pieces, tally: Tally) -> None:
        data = pack.finish()
        # A copy of this machine, resumed from the same snapshot, has our epoch and our numbers. Without the condition
        # it would replace what a commit of ours leads to, before HEAD tells it that it is not the one.
        self._store.put(pack_key(pack.epoch, pack.number), data, if_none_match=True)
        self.sent += len(data)
        self._progress.done(*tally, len(data))
        self._uploaded.add(places)
        self._missing.discard((pack.epoch, pack.number))
        # The rows will lead to the pack: else what was just written would have to be fetched.
        if self._cache is not None:
            self._cache.keep(pack.epoch, pack.number, held)


def in_time(limit: Limit | None) -> None:
    """Raise DeadlineError when it is too late to begin the next step of a commit."""
    if limit is not None and time.monotonic() >= limit.end:
        raise DeadlineError("there was no time left to commit what had been sent")
