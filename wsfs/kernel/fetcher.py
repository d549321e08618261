"""Runs what NeedRemote asks for: in worker threads, each thing once at a time, and with a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from wsfs.errors import TransientStoreError
from wsfs.remote import NeedRemote

PARALLEL: Final = 8
"""Fetches at once. Each holds at most one window or partition in memory, so this bounds it too."""


PARALLEL_AHEAD: Final = 4
"""Fetches at once that nobody waits for yet."""


class _Flight:
    """A fetch under way, and how it ended."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: BaseException | None = None


class Fetcher:
    """Single flight: whoever needs what is being fetched already waits for that."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._limiter = trio.CapacityLimiter(PARALLEL)
        self._ahead = trio.CapacityLimiter(PARALLEL_AHEAD)
        self._flights: dict[object, _Flight] = {}

    async def satisfy(self, need: NeedRemote) -> None:
        """Fetch all that is needed. Raises what the first failing fetch raised; TransientStoreError at the deadline."""
        mine: list[tuple[_Flight, list[object], Callable[[], object]]] = []
        flights = []
        for key, fetch in need.fetches.items():
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight()
                mine.append((flight, [key], fetch))
            flights.append(flight)
        if len(mine) == 1:
            await self._fly(*mine[0], self._limiter)
        elif mine:
            async with trio.open_nursery() as nursery:
                for args in mine:
                    nursery.start_soon(self._fly, *args, self._limiter)
        for flight in flights:
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error

    def has(self, key: object) -> bool:
        """Whether it is being fetched."""
        return key in self._flights

    async def ahead(self, keys: list[object], fetch: Callable[[], object]) -> None:
        """Fetch at once what nobody waits for yet; nothing of it may be under way. Whoever needs some of it meanwhile
        waits for this; if it fails, only they are told."""
        assert not any(map(self.has, keys))
        flight = _Flight()
        self._flights.update(dict.fromkeys(keys, flight))
        await self._fly(flight, keys, fetch, self._ahead)

    async def _fly(
        self, flight: _Flight, keys: list[object], fetch: Callable[[], object], limiter: trio.CapacityLimiter
    ) -> None:
        try:
            with trio.fail_after(self._deadline):
                await trio.to_thread.run_sync(fetch, abandon_on_cancel=True, limiter=limiter)
        except trio.TooSlowError:
            flight.error = TransientStoreError(f"the object store did not answer within {self._deadline:.0f} s")
        except Exception as exc:
            # Whoever waits for this flight raises it.
            flight.error = exc
        finally:
            for key in keys:
                del self._flights[key]
            flight.done.set()
