"""A daemon is a fork of the command that starts it: the modules that both need are imported once.

It holds nothing else of its parent's: no descriptor, no terminal, no directory, no way for signals or for imports.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import NoReturn

from wsfs.cli.process import guarded, keep_memory_private, leave


def fork(body: Callable[[int], int], title: str, *, output: int, kept: int) -> int:
    """Fork a daemon; returns its process number, and it is for the caller to wait for it. No other thread may run.

    The daemon calls `body` with its number of the descriptor `kept`, and ends with the exit code that this returns.
    `title` is what ps shows of it. stdout and stderr go to the descriptor `output`.
    """
    assert threading.active_count() == 1, "what other threads hold would stay locked in the child"
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # or both would write it
    # Nothing may unwind the stack of the caller in the child: signals wait until that stands on its own feet.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be_daemon(body, title, output, kept, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _be_daemon(body: Callable[[int], int], title: str, output: int, kept: int, mask: Iterable[int]) -> NoReturn:
    def whole() -> int:
        keep_memory_private()
        os.setsid()
        os.chdir("/")  # a daemon must not keep somebody's directory busy
        if not sys.flags.safe_path:
            del sys.path[0]  # which may be that very directory, and is not there for our imports
        mine = _let_go(output, kept)
        import setproctitle  # only here: it takes time, and keeps what it finds of the command line

        setproctitle.setproctitle(title)
        gc.freeze()  # what the parent has left must not be finalised, and close descriptors that are others by then
        _forget_handlers()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return body(mine)

    code = 1
    try:
        code = guarded(whole)
    finally:
        leave(code)


def _let_go(output: int, kept: int) -> int:
    """Close every descriptor but the standard ones, which lead to nowhere and to `output`, and `kept`; returns the new
    number of that."""
    # Above those first: where the parent has no standard streams these may have their numbers.
    output, kept, null = (
        fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        for descriptor in (output, kept, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    )
    for descriptor, standard in ((null, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, standard)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != kept:
            os.closerange(number, number + 1)  # the one with which the list was read is closed already
    # The parent's may be missing, or write somewhere else in another way.
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    return kept


def _forget_handlers() -> None:
    """What the parent does at a signal is nothing for us; what it ignores we ignore as well, as after an exec."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
