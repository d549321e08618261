"""What is written is what is read: by every way to write, at every place, beside every other writer."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

from calls import MIB, checked, fails_with, libc, python


def test_append_from_two_processes(here: Path) -> None:
    """O_APPEND never loses or mixes the lines of two writers."""
    log = here / "log"
    script = (
        "import os, sys\nfd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)\n"
        "for n in range(3000): os.write(fd, f'{sys.argv[2]} {n}\\n'.encode())\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, log, name]) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = log.read_text().splitlines()
    for name in "ab":
        assert [line for line in lines if line[0] == name] == [f"{name} {n}" for n in range(3000)]
    assert len(lines) == 6000


def test_random_writes_and_reads(here: Path) -> None:
    """A file under random writes, truncations and reads is always what a list of bytes would be."""
    noise = random.Random(11)
    model = bytearray()
    with (here / "file").open("w+b", buffering=0) as file:
        for _ in range(400):
            offset = noise.randrange(3 * MIB)
            action = noise.random()
            if action < 0.6:
                data = noise.randbytes(noise.choice([1, 100, 4096, 70_000, MIB + 1]))
                os.pwrite(file.fileno(), data, offset)
                if len(model) < offset:
                    model += bytes(offset - len(model))
                model[offset : offset + len(data)] = data
            elif action < 0.7:
                os.ftruncate(file.fileno(), offset)
                model = model[:offset] + bytes(max(offset - len(model), 0))
            elif action < 0.75:
                os.fsync(file.fileno())
            else:
                assert os.pread(file.fileno(), 50_000, offset) == model[offset : offset + 50_000]
        assert os.fstat(file.fileno()).st_size == len(model)
    assert (here / "file").read_bytes() == model


def test_direct_io(here: Path) -> None:
    """O_DIRECT sees and writes the same bytes as everybody else."""
    path = here / "file"
    path.write_bytes(b"a" * 8192)
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4096)
    assert os.preadv(descriptor, [buffer], 4096) == 4096
    assert buffer[:] == b"a" * 4096
    buffer[:] = b"b" * 4096
    assert os.pwritev(descriptor, [buffer], 4096) == 4096
    os.close(descriptor)
    assert path.read_bytes() == b"a" * 4096 + b"b" * 4096


def test_direct_and_buffered_writes_mixed(here: Path) -> None:
    """A direct read sees what was just written through the page cache, and the other way round."""
    path = here / "file"
    buffered = os.open(path, os.O_RDWR | os.O_CREAT)
    direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    for step in range(20):
        os.pwrite(buffered, bytes([step]) * 8192, step * 4096)
        assert os.preadv(direct, [page], step * 4096) == 4096
        assert page[:] == bytes([step]) * 4096
        page[:] = bytes([100 + step]) * 4096
        assert os.pwritev(direct, [page], step * 4096) == 4096
        assert os.pread(buffered, 4096, step * 4096) == bytes([100 + step]) * 4096
    os.close(buffered)
    os.close(direct)
    assert path.read_bytes() == b"".join(bytes([100 + step]) * 4096 for step in range(20)) + bytes([19]) * 4096


def test_vectors_and_splice(here: Path) -> None:
    """readv, writev, sendfile, splice and copy_file_range carry the same bytes as read and write."""
    noise = random.Random(3).randbytes(3 * MIB + 17)
    source, target = here / "source", here / "target"
    with source.open("wb", buffering=0) as file:
        assert os.writev(file.fileno(), [noise[:100], noise[100:5000], noise[5000:]]) == len(noise)
    with source.open("rb", buffering=0) as one, target.open("w+b", buffering=0) as two:
        parts = [bytearray(100), bytearray(4900), bytearray(len(noise) - 5000)]
        assert os.preadv(one.fileno(), parts, 0) == len(noise)
        assert b"".join(parts) == noise
        at = 0
        while at < MIB:
            at += os.sendfile(two.fileno(), one.fileno(), at, MIB - at)
        os.lseek(one.fileno(), MIB, os.SEEK_SET)
        read_end, write_end = os.pipe()
        while at < 2 * MIB:
            got = os.splice(one.fileno(), write_end, min(65536, 2 * MIB - at))
            assert os.splice(read_end, two.fileno(), got) == got
            at += got
        os.close(read_end)
        os.close(write_end)
        while at < len(noise):
            at += os.copy_file_range(one.fileno(), two.fileno(), len(noise) - at, at, at)
        fails_with(errno.EINVAL, os.copy_file_range, two.fileno(), two.fileno(), 100, 0, 50)
    assert target.read_bytes() == noise


def test_a_file_grows_where_it_is_written(here: Path) -> None:
    """A write far behind the end makes a hole of zeros; sizes are right at once, and across handles."""
    path = here / "file"
    with path.open("wb", buffering=0) as writer, path.open("rb", buffering=0) as reader:
        os.pwrite(writer.fileno(), b"x", 10 * MIB)
        assert path.stat().st_size == 10 * MIB + 1
        assert reader.read(10) == bytes(10)
        assert os.pread(reader.fileno(), 10, 10 * MIB) == b"x"


def test_fsync(here: Path) -> None:
    """fsync, fdatasync, fsync of a directory, sync_file_range and syncfs succeed."""
    descriptor = os.open(here / "file", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 100_000)
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    checked(libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), 7))
    directory = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    checked(libc.syncfs(directory))
    os.close(descriptor)
    os.close(directory)


def test_sync_flags_of_open(here: Path) -> None:
    """O_SYNC and O_DSYNC writes work, and are read back."""
    for flag in (os.O_SYNC, os.O_DSYNC):
        descriptor = os.open(here / "file", os.O_RDWR | os.O_CREAT | flag)
        assert os.write(descriptor, b"synced") == 6
        os.close(descriptor)
        assert (here / "file").read_bytes() == b"synced"


def test_file_size_limit_of_the_process(here: Path) -> None:
    """RLIMIT_FSIZE stops a write with EFBIG, and a truncation too."""
    script = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
fd = os.open("file", os.O_RDWR | os.O_CREAT)
assert os.pwrite(fd, b"x" * 6000, 8000) == 2000
refused(errno.EFBIG, os.pwrite, fd, b"x", 10_000)
refused(errno.EFBIG, os.ftruncate, fd, 10_001)
"""
    python(script, cwd=here)
    assert (here / "file").read_bytes() == bytes(8000) + b"x" * 2000


def test_many_open_files(here: Path) -> None:
    """A process may have as many files open as it is allowed to, each with its own content."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(hard, 3000) - 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3000)), hard))
    try:
        descriptors = [os.open(here / f"{n}", os.O_RDWR | os.O_CREAT) for n in range(count)]
        for n, descriptor in enumerate(descriptors):
            os.write(descriptor, b"%d" % n)
        for n, descriptor in enumerate(descriptors):
            assert os.pread(descriptor, 10, 0) == b"%d" % n
            os.close(descriptor)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [(here / f"{n}").read_bytes() for n in range(count)] == [b"%d" % n for n in range(count)]
