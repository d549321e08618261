"""What stands around every handler: fetch and come again, errors to errnos, and a log line for what should not happen.

pyfuse3 ends the mount when a handler raises anything but FUSEError, so nothing else may get past here.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pyfuse3

from wsfs.disk import FULL
from wsfs.errors import CacheFullError, WsfsError, errno_of
from wsfs.log import REPORT, get_log
from wsfs.model import PAST
from wsfs.remote import NeedRemote

if TYPE_CHECKING:
    from wsfs.kernel.operations import Operations

log = get_log(__name__)

R = TypeVar("R")
S = TypeVar("S", bound="Operations")
Handler = Callable[..., Coroutine[Any, Any, R]]

_MAX_FETCHES: Final = 64
_DELETING: Final = frozenset({"unlink", "rmdir", "rename"})
_BY_INODE: Final = frozenset({"getattr", "read", "readdir", "readlink"})
"""Requests that name no path: their inode was there, and another host has deleted it, as a read-only mount now sees."""

_MAX_CROWDED: Final = 8
"""How often a request may find the cache disk full again after room was made."""

_NOTHING: Final = object()
_QUIET: Final = frozenset({*FULL, errno.EROFS, errno.EFBIG})


def reading(method: Callable[..., R]) -> Handler[R]:
    """The handler of a request that only reads. `method` does not wait; its first argument is the inode's number."""
    name = method.__name__

    # Two or three arguments, and no tuple of them: to take one and to hand it on takes as long as a getattr itself.
    @functools.wraps(method)
    async def handler(self: S, ino: int, one: Any, two: Any = _NOTHING, /) -> Any:
        try:
            if ino < PAST:
                return method(self, ino, one) if two is _NOTHING else method(self, ino, one, two)
        except Exception as exc:
            args = (ino, one) if two is _NOTHING else (ino, one, two)
            return await _recover(self, method, args, exc)
        return await self.in_past(name, ino, one, *(() if two is _NOTHING else (two,)))

    return handler


def mutating(method: Callable[..., R]) -> Handler[R]:
    """The handler of a request that changes something: EROFS in a save point, and on a mount that may not write any
    more."""

    @functools.wraps(method)
    async def handler(self: S, ino: int, /, *args: Any) -> Any:
        if self.read_only or ino >= PAST:
            raise pyfuse3.FUSEError(errno.EROFS)
        try:
            return method(self, ino, *args)
        except Exception as exc:
            with self.under_way.change():
                return await _recover(self, method, (ino, *args), exc, mutates=True)

    return handler


def waiting(method: Handler[R]) -> Handler[R]:
    """The handler of a request that waits by itself."""

    @functools.wraps(method)
    async def handler(self: S, /, *args: Any) -> Any:
        try:
            return await method(self, *args)
        except Exception as exc:
            return await _recover(self, method, args, exc)

    return handler


async def _recover(
    operations: Operations, method: Callable[..., Any], args: tuple[Any, ...], exc: Exception, *, mutates: bool = False
) -> Any:
    """What a request comes to that did not succeed at once: fetch what is missing, or make room, and run it again."""
    name = method.__name__
    crowded = 0
    for _ in range(_MAX_FETCHES):
        try:
            if isinstance(exc, NeedRemote):
                await operations.fetcher.satisfy(exc)
            elif isinstance(exc, CacheFullError) and crowded < _MAX_CROWDED:
                # Nothing has changed yet: whoever wants to write waits until there is room again. Whoever reads tries
                # once more without: what was fetched is in memory for a while.
                crowded += 1
                if not await operations.make_room(deleting=name in _DELETING):
                    if mutates:
                        raise exc
                    crowded = _MAX_CROWDED
            else:
                raise exc
            if mutates and operations.read_only:
                raise pyfuse3.FUSEError(errno.EROFS)
            result = method(operations, *args)
            return await result if inspect.isawaitable(result) else result
        except pyfuse3.FUSEError:
            raise
        except (NeedRemote, CacheFullError) as again:
            if again is exc:
                raise _translate(operations, name, args, exc) from None
            exc = again
        except Exception as failed:
            raise _translate(operations, name, args, failed) from None
    log.error(
        "what a request fetches disappears at once",
        op=name,
        path=operations.describe(args),
        errno="EIO",
        remedy="make the cache larger with -o cache_size=",
    )
    raise pyfuse3.FUSEError(errno.EIO)


def _translate(operations: Operations, name: str, args: tuple[Any, ...], exc: Exception) -> pyfuse3.FUSEError:
    number = errno_of(exc)
    if number == errno.ENOENT and name in _BY_INODE:
        number = errno.ESTALE
    if name == "write" and not operations.refusals.refused(args[0], number):
        return pyfuse3.FUSEError(number)  # a large file is refused in many pieces
    if isinstance(exc, WsfsError) or name == "write":
        level = logging.WARNING if number in _QUIET else logging.ERROR
        log.log(
            level,
            "request failed",
            op=name,
            path=operations.describe(args),
            errno=errno.errorcode.get(number, number),
            error=exc,
        )
    elif not isinstance(exc, OSError):
        log.error(
            "internal error",
            op=name,
            path=operations.describe(args),
            errno=errno.errorcode.get(number, number),
            remedy=REPORT,
            exc_info=exc,
        )
    return pyfuse3.FUSEError(number)
