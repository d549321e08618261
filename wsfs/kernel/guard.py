"""What stands around every handler: fetch and come again, errors to errnos, and a log line for what should not happen.

pyfuse3 ends the mount when a handler raises anything but FUSEError, so nothing else may get past here.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

import pyfuse3

from wsfs.errors import CacheFullError, NeedRemote, WsfsError, errno_of

if TYPE_CHECKING:
    from wsfs.kernel.operations import Operations

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]

_MAX_FETCHES: Final = 64
_DELETING: Final = frozenset({"unlink", "rmdir", "rename"})
_MAX_CROWDED: Final = 8
"""How often a request may find the cache disk full again after room was made."""

_QUIET: Final = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT})


def guarded(handler: Handler[P, R]) -> Handler[P, R]:
    """A handler that only reads."""
    return _guard(handler, mutates=False)


def mutating(handler: Handler[P, R]) -> Handler[P, R]:
    """A handler that changes something: EROFS on a mount that may not write any more."""
    return _guard(handler, mutates=True)


def _guard(handler: Handler[P, R], *, mutates: bool) -> Handler[P, R]:
    @functools.wraps(handler)
    async def wrapper(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        crowded = 0
        for _ in range(_MAX_FETCHES):
            try:
                if mutates and self.read_only:
                    raise pyfuse3.FUSEError(errno.EROFS)
                try:
                    return await handler(self, *args, **kwargs)
                except NeedRemote as need:
                    await self.fetcher.satisfy(need)
            except pyfuse3.FUSEError:
                raise
            except CacheFullError as exc:
                # Nothing has changed yet: whoever wants to write waits until there is room again.
                crowded += 1
                if crowded > _MAX_CROWDED or not await self.make_room(deleting=handler.__name__ in _DELETING):
                    raise _translate(self, handler.__name__, args, exc) from None
            except Exception as exc:
                raise _translate(self, handler.__name__, args, exc) from None
        log.error("gave up: op=%s what it fetches disappears at once: the cache is too small", handler.__name__)
        raise pyfuse3.FUSEError(errno.EIO)

    return wrapper


def _translate(operations: Operations, name: str, args: tuple[Any, ...], exc: Exception) -> pyfuse3.FUSEError:
    number = errno_of(exc)
    if isinstance(exc, WsfsError):
        level = logging.WARNING if number in _QUIET else logging.ERROR
        log.log(level, "op=%s path=%s error=%s", name, operations.describe(args), exc)
    elif not isinstance(exc, OSError):
        log.error("op=%s path=%s unexpected", name, operations.describe(args), exc_info=exc)
    return pyfuse3.FUSEError(number)
