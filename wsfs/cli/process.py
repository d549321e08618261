"""How a process of wsfs begins and ends: with private memory, with one sentence for an error, and at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import click

from wsfs.control import as_wsfs_error, sentence
from wsfs.text import lines

INTERRUPTED = 130
PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """No core file of this process, whatever takes those, and no debugger but root's: its memory holds credentials, and
    the key of an encrypted workspace. Programs that it starts are not affected."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def guarded(body: Callable[[], object]) -> int:
    """Run `body` and return the exit code; each error becomes one sentence on stderr, never a traceback.

    An integer that `body` returns is the exit code.
    """
    for stream in (sys.stdout, sys.stderr):  # names are bytes: printing one must not fail
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        result = body()
        sys.stdout.flush()
    except click.UsageError as exc:
        message = exc.format_message()
        if exc.ctx is not None and message == exc.ctx.get_help():  # nothing was asked for: then that is all
            _write(message)
            return exc.exit_code
        _complain(message)
        if exc.ctx is not None:
            _write(f"Try '{exc.ctx.command_path} --help' for help and examples.")
        return exc.exit_code
    except click.ClickException as exc:
        _complain(exc.format_message())
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, BaseExceptionGroup) as exc:
        return _failed(exc)
    return result if isinstance(result, int) else 0


def _failed(exc: BaseException) -> int:
    if os.environ.get("WSFS_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    error = as_wsfs_error(exc)
    if error is not None:
        _complain(sentence(error))
        return error.exit_code
    if isinstance(exc, BaseExceptionGroup) and exc.subgroup(KeyboardInterrupt) is not None:
        _complain("interrupted")
        return INTERRUPTED
    if isinstance(exc, OSError) and exc.strerror:
        _complain(f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror)
        return 1
    _complain(f"internal error: {type(exc).__name__}: {exc}; set WSFS_DEBUG=1 to see where")
    return 1


def _complain(message: str) -> None:
    _write(f"wsfs: {message}")


def _write(line: str) -> None:
    click.echo(lines(line), err=True)


def leave(code: int) -> NoReturn:
    """End the process at once. The kernel takes everything back much faster than Python does, and whoever waits for a
    stop waits for that."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
