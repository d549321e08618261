"""What cannot be had here, and the errno that says so: the table in docs/SEMANTICS.md."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest
from calls import AT_FDCWD, MIB, checked, fails_with, libc

FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
FIDEDUPERANGE = 0xC0189436
FS_IOC_FIEMAP = 0xC020660B
FIBMAP = 1
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602
FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_GETVERSION = 0x80087601
FIFREEZE = 0xC0045877
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 2, 8, 16, 32, 64
RWF_NOWAIT, RWF_DSYNC, RWF_APPEND, RWF_ATOMIC = 8, 2, 16, 64
STATX_ALL, STATX_BTIME = 0xFFF, 0x800


@pytest.fixture
def file(here: Path) -> Path:
    """A file with 8 KiB in it."""
    path = here / "file"
    path.write_bytes(b"x" * 8192)
    return path


@pytest.mark.parametrize(
    "mode", [0, KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE, ZERO, KEEP_SIZE | ZERO, COLLAPSE, INSERT, UNSHARE]
)
def test_fallocate(file: Path, mode: int) -> None:
    """No mode works, and none pretends to."""
    with file.open("r+b") as open_file:
        call = libc.fallocate
        call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        fails_with(errno.ENOTSUP, lambda: checked(call(open_file.fileno(), mode, 0, 4096)))
    assert file.read_bytes() == b"x" * 8192


def test_posix_fallocate(file: Path) -> None:
    """The C library writes instead; what was there stays."""
    with file.open("r+b") as open_file:
        os.posix_fallocate(open_file.fileno(), 0, 3 * MIB)
    assert file.read_bytes() == b"x" * 8192 + bytes(3 * MIB - 8192)


def test_seeking_holes(file: Path) -> None:
    """The whole file counts as data, also a hole of it; beyond the end there is neither."""
    os.truncate(file, 5 * MIB)
    with file.open("rb") as open_file:
        descriptor = open_file.fileno()
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 5 * MIB
        assert os.lseek(descriptor, 3 * MIB, os.SEEK_DATA) == 3 * MIB
        fails_with(errno.ENXIO, os.lseek, descriptor, 5 * MIB, os.SEEK_DATA)
        fails_with(errno.ENXIO, os.lseek, descriptor, 5 * MIB, os.SEEK_HOLE)


def test_sharing_blocks(file: Path) -> None:
    """No reflinks, and no deduplication on request; cp falls back to copying unless it must not."""
    other = file.with_name("other")
    with file.open("rb") as source, other.open("w+b") as target:
        request = struct.pack("qQQQ", source.fileno(), 0, 4096, 0)
        fails_with(errno.ENOTSUP, fcntl.ioctl, target, FICLONE, source.fileno())
        fails_with(errno.ENOTSUP, fcntl.ioctl, target, FICLONERANGE, request)
    assert subprocess.run(["cp", "--reflink=always", file, other], check=False, capture_output=True).returncode == 1
    subprocess.run(["cp", "--reflink=auto", file, other], check=True)
    assert other.read_bytes() == file.read_bytes()


def test_ioctl(file: Path) -> None:
    """There are no flags, no versions, no maps of extents, and no freezing."""
    numbers = {
        FS_IOC_FIEMAP: errno.ENOTSUP,
        FS_IOC_GETFLAGS: errno.ENOTTY,
        FS_IOC_SETFLAGS: errno.ENOTTY,
        FS_IOC_FSGETXATTR: errno.ENOTTY,
        FS_IOC_GETVERSION: errno.ENOTTY,
        FIFREEZE: errno.ENOTSUP,
    }
    with file.open("r+b") as open_file:
        for request, number in numbers.items():
            fails_with(number, fcntl.ioctl, open_file, request, bytes(64))


def test_temporary_files_without_a_name(here: Path) -> None:
    """O_TMPFILE is not there; the tempfile module then makes a name and removes it."""
    fails_with(errno.ENOTSUP, os.open, here, os.O_TMPFILE | os.O_RDWR)


def test_birth_time(file: Path) -> None:
    """statx does not say that it knows one."""
    buffer = ctypes.create_string_buffer(256)
    checked(libc.statx(AT_FDCWD, os.fsencode(file), 0, STATX_ALL, buffer))
    mask = struct.unpack_from("I", buffer.raw)[0]
    assert mask & 0x7FF == 0x7FF
    assert not mask & STATX_BTIME


def test_flags_of_single_reads_and_writes(file: Path) -> None:
    """RWF_NOWAIT and RWF_ATOMIC are refused; RWF_DSYNC and RWF_APPEND do what they say."""
    with file.open("r+b", buffering=0) as open_file:
        descriptor = open_file.fileno()
        fails_with(errno.ENOTSUP, os.preadv, descriptor, [bytearray(10)], 0, RWF_NOWAIT)
        fails_with(errno.ENOTSUP, os.pwritev, descriptor, [b"y"], 0, RWF_ATOMIC)
        assert os.pwritev(descriptor, [b"synced"], 0, RWF_DSYNC) == 6
        assert os.pwritev(descriptor, [b"end"], 0, RWF_APPEND) == 3
    assert file.read_bytes() == b"synced" + b"x" * 8186 + b"end"


def test_handles(file: Path) -> None:
    """A file handle leads to its file only as long as the kernel knows that; so nothing can be exported by NFS."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    mount_id = ctypes.c_int()
    checked(libc.name_to_handle_at(AT_FDCWD, os.fsencode(file), handle, ctypes.byref(mount_id), 0))
    directory = os.open(file.parent, os.O_RDONLY)
    descriptor = checked(libc.open_by_handle_at(directory, handle, os.O_RDONLY))
    assert os.fstat(descriptor).st_ino == file.stat().st_ino
    os.close(descriptor)
    file.unlink()
    fails_with(errno.ESTALE, lambda: checked(libc.open_by_handle_at(directory, handle, os.O_RDONLY)))
    os.close(directory)


def test_swap_files(file: Path) -> None:
    """They are refused."""
    file.chmod(0o600)
    os.truncate(file, MIB)
    subprocess.run(["mkswap", file], check=True, capture_output=True)
    fails_with(errno.EINVAL, lambda: checked(libc.swapon(os.fsencode(file), 0)))


def test_extended_attributes_are_off_by_default(file: Path) -> None:
    """Without -o xattr they are not supported, and say so."""
    fails_with(errno.ENOTSUP, os.setxattr, file, "user.a", b"b")
    fails_with(errno.ENOTSUP, os.getxattr, file, "user.a")
    fails_with(errno.ENOTSUP, os.removexattr, file, "user.a")
    assert os.listxattr(file) == []


def test_access_control_lists(file: Path) -> None:
    """They are refused, and getfacl shows the mode."""
    done = subprocess.run(["setfacl", "-m", "u:1000:r", file], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Operation not supported" in done.stderr
    done = subprocess.run(["getfacl", "-cp", file], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["user::rw-", "group::r--", "other::r--"]
