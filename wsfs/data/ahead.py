"""Which parts of packs will be read next, judged by those that were read.

A commit lays packs out by directory and name, so who reads some of a pack mostly wants the rest, and who reads pack
after pack the next one. What was read first after a mount is remembered: the next mount elsewhere begins with that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from wsfs.data.packcache import WINDOW
from wsfs.repo.pack import TARGET_SIZE

WINDOWS: Final = TARGET_SIZE // WINDOW + 1
"""How many windows a pack may have: its last frame may begin just below the target size."""

PROFILE_MAX: Final = 512
"""How many windows are remembered: a gibibyte."""

_WHOLE: Final = 3
"""A pack of which so many windows were read is fetched whole. One block may lie in two."""

_ONWARD: Final = WINDOWS // 2
"""A pack of which so many windows were read, after another one like it, announces the next one."""


_SPAN: Final = 3
"""How many adjacent windows one request brings at most: who waits for one of them waits for all."""


class Window(NamedTuple):
    """A part of a pack, as it is fetched."""

    epoch: int
    pack: int
    number: int


class Ahead:
    """Knows what was touched, and queues what to fetch. Belongs to one thread."""

    def __init__(self) -> None:
        self._touched: dict[tuple[int, int], set[int]] = {}
        self._planned: set[Window] = set()
        self.queue: deque[Window] = deque()
        self.first: list[Window] | None = []
        """What was touched since the mount, in order; None when that is not of interest any more."""

    def begin_with(self, profile: Iterable[Window]) -> None:
        """Queue what an earlier mount read first."""
        for window in profile:
            self._plan(window)

    def take(self, workers: int, under_way: Callable[[Window], bool]) -> list[Window]:
        """What to fetch next, by one request: adjacent windows that are not under way, so few of them that `workers`
        requests at a time all have something to bring. Empty when nothing is left."""
        most = min(_SPAN, -(-len(self.queue) // workers))
        found: list[Window] = []
        while self.queue and len(found) < most:
            window = self.queue[0]
            if found and window != found[-1]._replace(number=found[-1].number + 1):
                break
            self.queue.popleft()
            if not under_way(window):
                found.append(window)
            elif found:
                break
        return found

    def touch(self, window: Window) -> None:
        """Bytes of this window are needed, or were read."""
        pack = window[:2]
        numbers = self._touched.setdefault(pack, set())
        if window.number in numbers:
            return
        numbers.add(window.number)
        self._planned.add(window)
        if self.first is not None and len(self.first) < PROFILE_MAX:
            self.first.append(window)
        if len(numbers) >= _WHOLE:
            self._plan_pack(*pack)
        if len(numbers) >= _ONWARD and len(self._touched.get((window.epoch, window.pack - 1), ())) >= _ONWARD:
            self._plan_pack(window.epoch, window.pack + 1)

    def _plan_pack(self, epoch: int, pack: int) -> None:
        # The end first: there is the table of contents, by which frames are opened ahead.
        for number in (WINDOWS - 1, *range(WINDOWS - 1)):
            self._plan(Window(epoch, pack, number))

    def _plan(self, window: Window) -> None:
        if window not in self._planned:
            self._planned.add(window)
            self.queue.append(window)
