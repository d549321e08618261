"""Runs what NeedRemote asks for: in worker threads, each thing once at a time, and with a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import trio

from wsfs.errors import NeedRemote, TransientStoreError

PARALLEL: Final = 8
"""Fetches at once. Each holds at most one window or partition in memory, so this bounds it too."""


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
        self._flights: dict[object, _Flight] = {}

    @property
    def busy(self) -> bool:
        """Whether anything is being fetched."""
        return bool(self._flights)

    async def satisfy(self, need: NeedRemote) -> None:
        """Fetch all that is needed. Raises what the first failing fetch raised; TransientStoreError at the deadline."""
        mine: list[tuple[_Flight, object, Callable[[], None]]] = []
        flights = []
        for key, fetch in need.fetches.items():
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = _Flight()
                mine.append((flight, key, cast("Callable[[], None]", fetch)))
            flights.append(flight)
        if len(mine) == 1:
            await self._fly(*mine[0])
        elif mine:
            async with trio.open_nursery() as nursery:
                for args in mine:
                    nursery.start_soon(self._fly, *args)
        for flight in flights:
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error

    async def _fly(self, flight: _Flight, key: object, fetch: Callable[[], None]) -> None:
        try:
            with trio.fail_after(self._deadline):
                await trio.to_thread.run_sync(fetch, abandon_on_cancel=True, limiter=self._limiter)
        except trio.TooSlowError:
            flight.error = TransientStoreError(f"the object store did not answer within {self._deadline:.0f} s")
        except Exception as exc:
            # Whoever waits for this flight raises it.
            flight.error = exc
        finally:
            del self._flights[key]
            flight.done.set()
