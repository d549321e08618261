"""An end for each request, however slowly the other side goes on with it.

The timeouts of a socket count from byte to byte: an answer that comes a byte a minute never meets one. So who waits for
too long has the connection shut down under it, by a thread that watches. The wait then fails at once, and its thread is
free. A handshake of TLS is not covered: its socket belongs to nobody yet.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, Final

_AGAIN_SECONDS: Final = 1.0
"""What is late and still goes on, on a connection that was made meanwhile, is ended again."""


class TooSlowError(OSError):
    """What was asked of the network was not done in time."""


class Limit:
    """The time that one thread has for what it asks of the network; `over` once that has passed."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.over = False
        self.connection: socket.socket | None = None

    def extend(self, seconds: float) -> None:
        """There is more to do than was known at first."""
        self.end += seconds

    def cut(self) -> None:
        """Shut the connection down; who waits for it wakes up. It is not closed: that is for who uses it."""
        self.over = True
        if self.connection is not None:
            with suppress(OSError):
                # As a plain socket: what TLS knows about it belongs to the other thread.
                socket.socket.shutdown(self.connection, socket.SHUT_RDWR)


class Deadlines:
    """Watches requests of any thread, on a thread of its own that begins with the first one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._limits: set[Limit] = set()
        self._wakes = float("inf")
        self._thread: threading.Thread | None = None
        self._mine = threading.local()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[Limit]:
        """What this thread asks of the network in the block ends after so long.

        Raises TooSlowError then, whatever the block has made of it: an answer whose head was cut off looks like one
        with fewer fields.
        """
        limit = Limit(self._clock() + seconds)
        with self._changed:
            self._limits.add(limit)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="wsfs-deadlines", daemon=True)
                self._thread.start()
            if limit.end < self._wakes:
                self._changed.notify()
        self._mine.limit = limit
        try:
            yield limit
        except Exception as exc:
            if limit.over:
                raise TooSlowError("the deadline is over") from exc
            raise
        else:
            if limit.over:
                raise TooSlowError("the deadline is over")
        finally:
            self._mine.limit = None
            with self._changed:
                self._limits.discard(limit)

    def uses(self, connection: socket.socket | None) -> None:
        """This thread waits for this connection from now on."""
        limit: Limit | None = getattr(self._mine, "limit", None)
        if limit is not None and connection is not None:
            limit.connection = connection

    def install(self, pools: MutableMapping[str, Any]) -> None:
        """Have urllib3's connection pools, by scheme, tell which connection a thread uses."""
        for scheme, pool in list(pools.items()):
            pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": _telling(pool.ConnectionCls, self.uses)})

    def close(self) -> None:
        """End the thread, once nothing is left to watch."""
        with self._changed:
            thread, self._thread = self._thread, None
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _watch(self) -> None:
        with self._changed:
            while self._thread is threading.current_thread():
                now = self._clock()
                for limit in self._limits:
                    if limit.end <= now:
                        limit.cut()
                        limit.end = now + _AGAIN_SECONDS
                self._wakes = min((limit.end for limit in self._limits), default=float("inf"))
                self._changed.wait(None if self._wakes == float("inf") else max(self._wakes - now, 0))


def _telling(connection: Any, uses: Callable[[socket.socket | None], None]) -> Any:
    """A class of connections that tells `uses` about its socket, once there is one and before each request."""

    class Telling(connection):  # type: ignore[misc]
        def connect(self) -> None:
            super().connect()
            uses(self.sock)

        def request(self, *args: Any, **kwargs: Any) -> Any:
            uses(self.sock)
            return super().request(*args, **kwargs)

    return Telling
