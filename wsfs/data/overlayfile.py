"""What the overlay does with the files on its disk, and what their errors mean."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable
from typing import Final

from wsfs.disk import is_full
from wsfs.errors import CacheError, CacheFullError
from wsfs.log import get_log
from wsfs.model import BLOCK_SIZE

log = get_log(__name__)

_KEEP_SIZE_PUNCH_HOLE: Final = 0x03
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def read_block(path: str, index: int, length: int) -> bytes | None:
    """What a file has of a block; None if there is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise disk_error(exc) from exc
    try:
        return os.pread(fd, length, index * BLOCK_SIZE)
    except OSError as exc:
        raise disk_error(exc) from exc
    finally:
        os.close(fd)


def remove(path: str) -> bool:
    """Remove what nobody needs any more. If that fails only room is lost, and whoever waits for more goes on."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError as exc:
        log.warning("a file in the cache is not removed", path=path, error=exc, remedy=CacheError.remedy)
        return False
    return True


def hold(path: str) -> int | None:
    """A descriptor that keeps what is in a file after its last name is gone; None if there is no such file. Removing
    the name is then quick, however large the file is, and `give_back` takes the time."""
    try:
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # whoever removes it hears of it
        return None


def give_back(held: Iterable[int | None]) -> None:
    """Let go of what `hold` has returned: the disk gets its room back."""
    for fd in held:
        if fd is not None:
            os.close(fd)


def release(fd: int, blocks: Iterable[int]) -> int:
    """Give the room of these blocks back, where the file system can do that. Returns bytes. Raises OSError."""
    before = os.fstat(fd).st_blocks
    for index in blocks:
        libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, index * BLOCK_SIZE, BLOCK_SIZE)
    return (before - os.fstat(fd).st_blocks) * 512


def punch(fd: int, offset: int, length: int) -> None:
    """Make a hole. Raises OSError."""
    if libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
        return
    # Not every file system can: then write the zeros, up to the end of the file.
    length = min(length, os.fstat(fd).st_size - offset)
    if length > 0:
        write_all(fd, bytes(length), offset)


def sync_file_system(fd: int) -> None:
    """All that is on the disk of an open file. Raises OSError."""
    if libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite(2) until all is written: on a disk that fills up it writes less at first, and only then fails."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:] if done else data, offset + done)


def missing(path: str, ino: int) -> CacheError:
    """What to raise when the overlay file of an inode is not there."""
    if not os.path.isdir(os.path.dirname(path)):
        return CacheError("the cache directory was deleted while it was in use: what it held is lost")
    error = CacheError(f"the cache has lost what was not saved of inode {ino}: its file in the overlay is missing")
    error.remedy = (
        f"'find MOUNTPOINT -inum {ino}' names it: delete it, or nothing is saved; 'wsfs restore' brings"
        " back what was saved of it before"
    )
    return error


def disk_error(exc: OSError) -> CacheError:
    """What to raise instead."""
    if is_full(exc):
        return CacheFullError()
    if exc.errno == errno.EFBIG:
        too_large = CacheError("the file system of the cache directory cannot hold a file of this size")
        too_large.errno = errno.EFBIG
        return too_large
    return CacheError(f"the cache disk failed: {exc.strerror}")
