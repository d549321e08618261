"""Blocks into packs, and packs into the store: what takes long in a commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from wsfs.data.overlay import Overlay
from wsfs.errors import DeadlineError, PreconditionFailedError, StoreError, TransientStoreError
from wsfs.index.base import known_frame
from wsfs.index.tables import Reader
from wsfs.model import BLOCK_SIZE, INLINE_MAX, FrameLoc, Inline, Packed, pack_key
from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.pack import TARGET_SIZE, Frame, PackWriter, make_frame
from wsfs.store.base import Store

log = logging.getLogger(__name__)

REUSE_SECONDS: Final = 1800.0
"""For so long after its upload a frame is used again that no commit leads to yet. The garbage collector spares what is
younger than twice that."""

_REUSE_MAX: Final = 200_000
_BATCH: Final = 64
_BATCH_IN_HASTE: Final = 8
_SIZE_IN_HASTE: Final = 2 << 20
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
    """A block on its way: `name` orders it; `size` is that of the whole file."""

    name: tuple[int, bytes]
    ino: int
    index: int
    length: int
    size: int


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


class Packs:
    """Turns blocks into rows, by way of packs that are uploaded in parallel. At most `uploads` packs wait in memory.

    With a limit packs are smaller, and what is not in the store in time is told by `is_sent`.
    """

    def __init__(
        self,
        store: Store,
        overlay: Overlay,
        reader: Reader,
        new_pack: Callable[[], PackWriter],
        uploaded: Uploaded,
        *,
        uploads: int,
        compressors: int,
        limit: Limit | None = None,
    ) -> None:
        self._store = store
        self._overlay = overlay
        self._reader = reader
        self._new_pack = new_pack
        self._uploaded = uploaded
        self._uploads = uploads
        self._limit = limit
        self._compress = ThreadPoolExecutor(compressors, "wsfs-compress")
        self._upload = ThreadPoolExecutor(uploads, "wsfs-upload")
        self._running: list[Future[None]] = []
        self._seen: dict[bytes, FrameLoc] = {}
        self._missing: set[tuple[int, int]] = set()
        self._pack = new_pack()
        self._places: list[FrameLoc] = []
        self._target = TARGET_SIZE if limit is None else min(TARGET_SIZE, _SIZE_IN_HASTE)
        self.puts = 0
        self.sent = 0
        self.failure: StoreError | None = None
        """With a limit: why a pack is not in the store."""

    def upload(self, blocks: list[Work], goes_on: Callable[[Work], bool]) -> dict[bytes, bytes | None]:
        """The published row of each block, once all packs are in the store; None for one that is all zeros.

        Ends before the first portion whose first block `goes_on` declines.
        """
        resolved: dict[bytes, bytes | None] = {}
        queue = iter(blocks)
        batch = _BATCH if self._limit is None else _BATCH_IN_HASTE
        while (chunk := list(islice(queue, batch))) and goes_on(chunk[0]):
            for work, data, found in zip(chunk, *self._prepare(chunk), strict=True):
                key = codec.block_key(work.ino, work.index)
                if not data:
                    resolved[key] = None
                elif len(data) <= INLINE_MAX:
                    resolved[key] = codec.encode_block(Inline(data))
                else:
                    resolved[key] = codec.encode_block(Packed(self._place(found, work)))
        if self._pack.frames:
            self._send()
        self._wait(0)
        return resolved

    def is_sent(self, row: bytes | None) -> bool:
        """Whether what a row of `upload` leads to is in the store."""
        place = None if row is None else codec.place_of(row)
        return place is None or place[:2] not in self._missing

    def close(self) -> None:
        """Wait for what is under way; with a limit, leave it to itself."""
        for pool in (self._compress, self._upload):
            pool.shutdown(wait=self._limit is None, cancel_futures=True)

    def _prepare(self, chunk: list[Work]) -> tuple[list[bytes], list[Frame | FrameLoc | None]]:
        results = list(self._compress.map(self._prepare_one, chunk))
        return [data for data, _ in results], [found for _, found in results]

    def _prepare_one(self, work: Work) -> tuple[bytes, Frame | FrameLoc | None]:
        data = self._overlay.capture(work.ino, work.index, work.length)
        if data == _ZEROS[: len(data)]:
            return b"", None
        if len(data) <= INLINE_MAX:
            return data, None
        name = digest(data)
        known = self._seen.get(name) or self._uploaded.get(name)
        return data, known if known is not None else make_frame(data, name)

    def _place(self, found: Frame | FrameLoc | None, work: Work) -> FrameLoc:
        assert found is not None
        if isinstance(found, FrameLoc):
            return found
        known = self._seen.get(found.digest) or known_frame(self._reader, found.digest)
        if known is None:
            known = self._pack.add(found, work.ino, work.index)
            self._places.append(known)
            if self._pack.size >= self._target:
                self._send()
        self._seen[found.digest] = known
        return known

    def _send(self) -> None:
        pack, self._pack = self._pack, self._new_pack()
        places, self._places = self._places, []
        self._missing.add((pack.epoch, pack.number))
        self._wait(self._uploads - 1)
        self._running.append(self._upload.submit(self._put, pack, places))
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
                if self._limit is None:
                    raise
                log.warning("a pack is not sent: %s", exc)
                self.failure = exc

    def _put(self, pack: PackWriter, places: list[FrameLoc]) -> None:
        data = pack.finish()
        self._store.put(pack_key(pack.epoch, pack.number), data)
        self.sent += len(data)
        self._uploaded.add(places)
        self._missing.discard((pack.epoch, pack.number))


def put_new(store: Store, key: str, data: bytes) -> None:
    """Write an object under a name that nobody else can choose. A refusal after a lost answer means it is there."""
    try:
        store.put(key, data, if_none_match=True)
    except TransientStoreError as exc:
        log.info("put again: key=%s error=%s", key, exc)
        try:
            store.put(key, data, if_none_match=True)
        except PreconditionFailedError:
            return


def in_time(limit: Limit | None) -> None:
    """Raise DeadlineError when it is too late to begin the next step of a commit."""
    if limit is not None and time.monotonic() >= limit.end:
        raise DeadlineError("there was no time left to commit what had been sent")
