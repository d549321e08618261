"""What system calls do on a mount, as POSIX and Linux have it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

MIB = 1 << 20
CLOCK_REALTIME_COARSE = 5
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def fails_with(number: int, call: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
        call(*arguments)
    assert caught.value.errno == number, caught.value


def tick() -> None:
    """Let the kernel's coarse clock, which stamps files, go on."""
    before = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) == before:
        time.sleep(0.001)


# --- data


def test_append_from_two_processes(here: Path, shared_site: Site) -> None:
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


def test_truncate_in_open(here: Path) -> None:
    """O_TRUNC empties the file: what was there never shines through."""
    path = here / "file"
    path.write_bytes(b"old" * MIB)
    descriptor = os.open(path, os.O_RDWR | os.O_TRUNC)
    assert os.fstat(descriptor).st_size == 0
    assert os.read(descriptor, 10) == b""
    os.pwrite(descriptor, b"new", 5000)
    os.close(descriptor)
    assert path.read_bytes() == bytes(5000) + b"new"
    path.write_text("short")
    assert path.read_text() == "short"


def test_truncate_down_and_up(here: Path) -> None:
    """What a truncation cuts off reads as zeros when the file grows again, in every block and at every edge."""
    path = here / "file"
    path.write_bytes(b"x" * (3 * MIB))
    for size in (2 * MIB + 1, 2 * MIB, 2 * MIB - 1, MIB, 4097, 4096, 1, 0):
        path.write_bytes(b"x" * (3 * MIB))
        os.truncate(path, size)
        os.truncate(path, 3 * MIB)
        data = path.read_bytes()
        assert data.count(b"x") == size
        assert data[size:] == bytes(3 * MIB - size)


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


def test_shared_mapping(here: Path, shared_site: Site) -> None:
    """Writes through a shared mapping reach the file, and other mappings of it."""
    path = here / "mapped"
    path.write_bytes(bytes(2 * MIB + 100))
    script = """
import mmap, os, sys
with open(sys.argv[1], "r+b") as file:
    one, two = mmap.mmap(file.fileno(), 0), mmap.mmap(file.fileno(), 0)
    one[0:5] = b"first"
    one[2097152:2097156] = b"last"
    assert two[0:5] == b"first"
    one.flush()
    assert os.pread(file.fileno(), 4, 2097152) == b"last"
    one[4096:4100] = b"more"
"""
    shared_site.run(sys.executable, "-c", script, path)
    data = path.read_bytes()
    assert (data[:5], data[4096:4100], data[2 * MIB : 2 * MIB + 4]) == (b"first", b"more", b"last")
    assert len(data) == 2 * MIB + 100


def test_unlinked_open_file(here: Path) -> None:
    """A file without a name can be read and written until it is closed."""
    path = here / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(b"before")
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b" and after")
        os.fsync(file.fileno())
        os.ftruncate(file.fileno(), MIB + 20)
        os.pwrite(file.fileno(), b"end", MIB + 17)
        os.fchmod(file.fileno(), 0o600)
        assert os.pread(file.fileno(), 16, 0) == b"before and after"
        assert os.pread(file.fileno(), 10, MIB + 17) == b"end"
        path.write_text("a new one")
        assert os.pread(file.fileno(), 6, 0) == b"before"
    assert path.read_text() == "a new one"


def test_replaced_open_file(here: Path) -> None:
    """Who has a file open keeps its content when another is renamed over it."""
    (here / "old").write_bytes(b"old" * 1000)
    (here / "new").write_bytes(b"new")
    with (here / "old").open("rb", buffering=0) as file:
        (here / "new").rename(here / "old")
        assert file.read() == b"old" * 1000
    assert (here / "old").read_bytes() == b"new"


def test_fsync(here: Path) -> None:
    """fsync, fdatasync, fsync of a directory, sync_file_range and syncfs succeed."""
    descriptor = os.open(here / "file", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 100_000)
    os.fsync(descriptor)
    os.fdatasync(descriptor)
    directory = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    assert ctypes.CDLL(None).syncfs(directory) == 0
    os.close(descriptor)
    os.close(directory)


def test_locks(here: Path) -> None:
    """flock and fcntl locks exclude each other's holders."""
    with (here / "file").open("w") as one, (here / "file").open("w") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_grows_where_it_is_written(here: Path) -> None:
    """A write far behind the end makes a hole of zeros; sizes are right at once, and across handles."""
    path = here / "file"
    with path.open("wb", buffering=0) as writer, path.open("rb", buffering=0) as reader:
        os.pwrite(writer.fileno(), b"x", 10 * MIB)
        assert path.stat().st_size == 10 * MIB + 1
        assert reader.read(10) == bytes(10)
        assert os.pread(reader.fileno(), 10, 10 * MIB) == b"x"
    fails_with(errno.EFBIG, os.truncate, path, 1 << 62)


# --- names


def test_rename_flags(here: Path, renameat2: Callable[[Path, Path, int], None]) -> None:
    """RENAME_NOREPLACE refuses to replace, RENAME_EXCHANGE swaps files and directories, others are refused."""
    one, two, directory = here / "one", here / "two", here / "directory"
    one.write_text("one")
    two.write_text("two")
    (directory / "sub").mkdir(parents=True)
    fails_with(errno.EEXIST, renameat2, one, two, 1)
    renameat2(one, here / "three", 1)
    renameat2(here / "three", two, 2)
    assert ((here / "three").read_text(), two.read_text()) == ("two", "one")
    renameat2(two, directory, 2)
    assert two.is_dir()
    assert (two / "sub").is_dir()
    assert directory.read_text() == "one"
    assert here.stat().st_nlink == 3
    fails_with(errno.ENOENT, renameat2, two, here / "missing", 2)
    fails_with(errno.EINVAL, renameat2, two, here / "missing", 3)
    fails_with(errno.EINVAL, renameat2, directory, here / "missing", 4)  # RENAME_WHITEOUT


def test_rename_across_directories(here: Path) -> None:
    """Link counts of directories follow what is moved; a directory cannot move into itself."""
    a, b = here / "a", here / "b"
    (a / "inner").mkdir(parents=True)
    b.mkdir()
    (a / "inner" / "file").write_text("content")
    assert (a.stat().st_nlink, b.stat().st_nlink) == (3, 2)
    (a / "inner").rename(b / "moved")
    assert (a.stat().st_nlink, b.stat().st_nlink) == (2, 3)
    assert (b / "moved" / "file").read_text() == "content"
    assert (b / "moved" / "..").stat().st_ino == b.stat().st_ino
    fails_with(errno.EINVAL, os.rename, b, b / "moved" / "deep")
    fails_with(errno.ENOTEMPTY, os.rename, a, b)
    b.rename(a)  # over an empty directory
    assert sorted(os.listdir(here)) == ["a"]
    (here / "file").write_text("x")
    fails_with(errno.ENOTDIR, os.rename, a, here / "file")
    fails_with(errno.EISDIR, os.rename, here / "file", a)
    fails_with(errno.ENOTEMPTY, os.rmdir, a)
    fails_with(errno.ENOTDIR, os.rmdir, here / "file")
    fails_with(errno.EISDIR, os.unlink, a)


def test_hard_links(here: Path) -> None:
    """Names of one file share content, attributes and link count; renaming one over the other changes nothing."""
    one, two = here / "one", here / "two"
    one.write_text("x")
    os.link(one, two)
    two.write_text("changed")
    two.chmod(0o600)
    assert one.read_text() == "changed"
    assert one.stat() == two.stat()
    assert one.stat().st_nlink == 2
    one.rename(two)
    assert one.exists()
    assert two.exists()
    one.unlink()
    assert two.stat().st_nlink == 1
    fails_with(errno.EPERM, os.link, here, here / "loop")
    descriptor = os.open(two, os.O_RDONLY)
    two.unlink()
    libc = ctypes.CDLL(None, use_errno=True)
    at_symlink_follow = 0x400
    names = f"/proc/self/fd/{descriptor}".encode(), os.fsencode(here / "revived")
    assert libc.linkat(-100, names[0], -100, names[1], at_symlink_follow) == -1
    assert ctypes.get_errno() == errno.ENOENT
    os.close(descriptor)


def test_long_names(here: Path) -> None:
    """255 bytes are a name, 256 are not; symbolic links hold up to 4,095 bytes; deep paths work."""
    (here / ("n" * 255)).write_text("x")
    for call in (os.mkdir, os.mkfifo, os.stat, os.unlink):
        fails_with(errno.ENAMETOOLONG, call, here / ("n" * 256))
    fails_with(errno.ENAMETOOLONG, os.rename, here / ("n" * 255), here / ("n" * 256))
    fails_with(errno.ENAMETOOLONG, os.symlink, "x", here / ("n" * 256))
    os.symlink("t" * 4095, here / "link")
    assert len(os.readlink(here / "link")) == 4095
    fails_with(errno.ENAMETOOLONG, os.symlink, "t" * 4096, here / "longer")
    fails_with(errno.ENOENT, os.symlink, "", here / "nothing")
    deep = here.joinpath(*["d" * 200] * 15)
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    assert (deep / "file").read_text() == "deep"


def test_what_is_not_there(here: Path) -> None:
    """A missing name stays missing until it is made, then is there at once; the same the other way round."""
    path = here / "file"
    for _ in range(3):
        fails_with(errno.ENOENT, os.stat, path)
        fails_with(errno.ENOENT, os.open, path, os.O_RDONLY)
        path.write_text("now")
        assert path.read_text() == "now"
        fails_with(errno.EEXIST, os.mkdir, path)
        fails_with(errno.ENOTDIR, os.stat, path / "below")
        path.unlink()


def test_a_working_directory_that_is_removed(here: Path, shared_site: Site) -> None:
    """Nothing can be made in a directory that was removed."""
    script = """
import errno, os
os.mkdir("sub"); os.chdir("sub"); os.rmdir("../sub")
assert os.listdir(".") == []
for call in (lambda: os.mkdir("x"), lambda: open("y", "w"), lambda: os.symlink("a", "z")):
    try: call()
    except FileNotFoundError: pass
    else: raise SystemExit("made in a removed directory")
"""
    shared_site.run(sys.executable, "-c", script, cwd=here)


# --- directories


def test_reading_a_directory_that_changes(here: Path) -> None:
    """While entries come and go, all others are seen exactly once."""
    for number in range(3000):
        (here / f"stays{number}").touch()
        if number % 3 == 0:
            (here / f"goes{number}").touch()
    seen = []
    with os.scandir(here) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 10 == 0 and (here / f"goes{number}").exists():
                (here / f"goes{number}").unlink()
            if number % 50 == 0:
                (here / f"new{number}").touch()
            if number % 97 == 0 and 0 < number < 3000:
                (here / f"stays{number}").rename(here / f"renamed{number}")
                (here / f"renamed{number}").rename(here / f"stays{number}")
    moved = {f"stays{n}" for n in range(97, 3000, 97)}  # these may be seen at their old and at their new place
    assert sorted(n for n in seen if n.startswith("stays") and n not in moved) == sorted(
        {f"stays{n}" for n in range(3000)} - moved
    )
    assert moved <= set(seen)


def test_removing_a_big_directory(here: Path, shared_site: Site) -> None:
    """rm -rf of 5,000 files, which deletes while it reads the directory, leaves nothing."""
    big = here / "big"
    big.mkdir()
    for number in range(5000):
        os.close(os.open(big / f"file {number}", os.O_CREAT | os.O_WRONLY))
    assert len(os.listdir(big)) == 5000
    shared_site.run("rm", "-rf", big)
    assert not big.exists()


def test_positions_in_a_directory(here: Path) -> None:
    """telldir and seekdir: a position leads to the same entry, although others were removed meanwhile."""
    for number in range(500):
        (here / f"{number}").touch()
    libc = ctypes.CDLL(None, use_errno=True)

    class Entry(ctypes.Structure):
        _fields_ = [
            ("ino", ctypes.c_uint64),
            ("off", ctypes.c_int64),
            ("length", ctypes.c_ushort),
            ("kind", ctypes.c_ubyte),
            ("name", ctypes.c_char * 256),
        ]

    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(here)))

    def following() -> str | None:
        entry = libc.readdir(stream)
        return Entry.from_address(entry).name.decode() if entry else None

    order, places = [], []
    while True:
        places.append(libc.telldir(stream))
        name = following()
        if name is None:
            break
        order.append(name)
    assert set(order) - {".", ".."} == {str(n) for n in range(500)}
    for at in (10, 499, 3, 250, 400, 0):
        victim = here / order[at]
        libc.seekdir(stream, ctypes.c_long(places[at + 1]))
        if victim.name not in (".", ".."):
            victim.unlink(missing_ok=True)
        rest = []
        while (name := following()) is not None:
            rest.append(name)
        assert [name for name in rest if (here / name).exists()] == [n for n in order[at + 1 :] if (here / n).exists()]
    libc.closedir(stream)


def test_link_counts_and_times_of_directories(here: Path) -> None:
    """A directory's mtime and ctime change with its entries, its nlink with its subdirectories."""
    before = here.stat()
    (here / "sub").mkdir()
    after = here.stat()
    assert after.st_nlink == before.st_nlink + 1
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns == after.st_mtime_ns
    (here / "sub").rmdir()
    assert here.stat().st_nlink == before.st_nlink
    assert here.stat().st_mtime_ns > after.st_mtime_ns


# --- attributes


def test_times(here: Path) -> None:
    """mtime moves with writes, ctime with every change, both stay with reads; utime sets each nanosecond."""
    path = here / "file"
    path.write_text("x")
    first = path.stat()
    assert abs(first.st_mtime - time.time()) < 10
    path.read_text()
    assert path.stat() == first
    tick()
    path.chmod(0o600)
    second = path.stat()
    assert second.st_mtime_ns == first.st_mtime_ns
    assert second.st_ctime_ns > first.st_ctime_ns
    tick()
    with path.open("a") as file:
        file.write("y")
    third = path.stat()
    assert third.st_mtime_ns > second.st_mtime_ns
    tick()
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    status = path.stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_000_000_001)
    assert status.st_ctime_ns > third.st_ctime_ns
    with path.open("r+b") as file:
        file.write(b"z")
        os.utime(file.fileno(), ns=(5, 5))
    assert path.stat().st_mtime_ns != 5 or path.read_bytes()[:1] == b"z"


def test_times_set_after_a_write_stay(here: Path) -> None:
    """write, then utime, then close: the time that was set counts, as for tar, cp -p and rsync -t."""
    path = here / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 200_000)
    os.utime(descriptor, ns=(7, 1_000_000_007))
    os.fchmod(descriptor, 0o4751)
    os.close(descriptor)
    assert path.stat().st_mtime_ns == 1_000_000_007
    assert path.stat().st_mode == stat.S_IFREG | 0o4751
    os.sync()
    assert path.stat().st_mtime_ns == 1_000_000_007


def test_set_id_bits(here: Path, shared_site: Site) -> None:
    """chown and a write by an ordinary user take set-user-ID away."""
    path = here / "file"
    path.write_text("x")
    path.chmod(0o6755)
    os.chown(path, 65534, 65534)
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    path.chmod(0o6755)
    here.chmod(0o755)
    shared_site.run(*NOBODY, "sh", "-c", f"echo more >> {path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert path.read_text() == "xmore\n"


def test_setgid_directory(here: Path) -> None:
    """What is made in a set-group-ID directory gets its group; a subdirectory gets the bit too."""
    os.chown(here, 0, 4321)
    here.chmod(0o2775)
    (here / "file").touch()
    (here / "sub").mkdir()
    os.symlink("x", here / "link")
    os.mkfifo(here / "fifo")
    for name in ("file", "sub", "link", "fifo"):
        assert (here / name).lstat().st_gid == 4321
    assert (here / "sub").stat().st_mode & stat.S_ISGID
    assert not (here / "file").stat().st_mode & stat.S_ISGID


def test_umask_of_the_process(here: Path) -> None:
    """The mode of a new file is what was asked for without the process's umask."""
    old = os.umask(0o027)
    try:
        os.close(os.open(here / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(here / "dir", 0o777)
        os.mkfifo(here / "fifo", 0o666)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((here / name).stat().st_mode) for name in ("file", "dir", "fifo")]
    assert modes == [0o640, 0o750, 0o640]


def test_other_users(here: Path, shared_site: Site) -> None:
    """Permissions hold for others: what a mode forbids fails with EACCES, what it allows works."""
    here.chmod(0o755)
    (here / "secret").write_text("secret")
    (here / "secret").chmod(0o600)
    (here / "public").write_text("public")
    (here / "public").chmod(0o644)
    (here / "open").mkdir()
    (here / "open").chmod(0o777)
    (here / "closed").mkdir(0o700)
    script = """
import errno, os, sys
def refused(number, call, *args):
    try: call(*args)
    except OSError as exc: assert exc.errno == number, exc
    else: raise SystemExit(f"allowed: {args}")
assert open("public").read() == "public"
refused(errno.EACCES, open, "secret")
refused(errno.EACCES, open, "public", "w")
refused(errno.EACCES, os.truncate, "public", 0)
refused(errno.EACCES, os.listdir, "closed")
refused(errno.EACCES, os.mkdir, "new")
refused(errno.EACCES, os.unlink, "public")
refused(errno.EACCES, os.rename, "public", "open/x")
refused(errno.EPERM, os.chmod, "public", 0o777)
refused(errno.EPERM, os.chown, "public", 65534, 65534)
refused(errno.EPERM, os.utime, "public", (1, 1))
with open("open/mine", "w") as file: file.write("x")
status = os.stat("open/mine")
assert (status.st_uid, status.st_gid) == (65534, 65534)
os.chmod("open/mine", 0o600)
refused(errno.EPERM, os.chown, "open/mine", 0, 0)
os.mkdir("open/dir"); os.rename("open/mine", "open/dir/mine"); os.unlink("open/dir/mine"); os.rmdir("open/dir")
"""
    shared_site.run(*NOBODY, sys.executable, "-c", script, cwd=here)


def test_sticky_directory(here: Path, shared_site: Site) -> None:
    """In a sticky directory only the owner removes or renames a file."""
    here.chmod(0o1777)
    (here / "roots").write_text("x")
    (here / "roots").chmod(0o666)
    shared_site.run(*NOBODY, "rm", "-f", here / "roots", code=1)
    shared_site.run(*NOBODY, "mv", here / "roots", here / "taken", code=1)
    shared_site.run(*NOBODY, "sh", "-c", f"touch {here}/mine && rm {here}/mine")
    assert (here / "roots").exists()


def test_special_files_work(here: Path) -> None:
    """A FIFO and a socket carry bytes between processes, a device node is the device."""
    os.mkfifo(here / "fifo")
    writer = threading.Thread(target=lambda: (here / "fifo").write_text("through"))
    writer.start()
    assert (here / "fifo").read_text() == "through"
    writer.join()
    directory = os.open(here, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(f"/proc/self/fd/{directory}/socket")
        listener.listen()
        client.connect(f"/proc/self/fd/{directory}/socket")
        client.send(b"hello")
        with listener.accept()[0] as accepted:
            assert accepted.recv(10) == b"hello"
    os.close(directory)
    os.mknod(here / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    with contextlib.suppress(PermissionError), (here / "zero").open("rb", buffering=0) as zero:
        assert zero.read(5) == bytes(5)


def test_statfs(here: Path) -> None:
    """Used space and files grow with what is written, and shrink when it is removed."""

    def used() -> tuple[int, int]:
        found = os.statvfs(here)
        assert found.f_namemax == 255
        assert 0 < found.f_bavail <= found.f_blocks
        assert found.f_files > 0
        return (found.f_blocks - found.f_bfree) * found.f_frsize, found.f_files - found.f_ffree

    before = used()
    with (here / "file").open("wb") as file:
        file.write(b"x" * (16 * MIB))
        os.fsync(file.fileno())
    assert used() == (before[0] + 16 * MIB, before[1] + 1)
    (here / "file").unlink()
    assert used() == before


def test_extended_attributes_are_off_by_default(here: Path) -> None:
    """Without -o xattr they are not supported, and say so."""
    (here / "file").touch()
    fails_with(errno.ENOTSUP, os.setxattr, here / "file", "user.a", b"b")
    fails_with(errno.ENOTSUP, os.getxattr, here / "file", "user.a")
    assert os.listxattr(here / "file") == []


# --- with a mount of their own


def test_an_unlinked_open_file_is_gone_after_a_remount(workspace: Site) -> None:
    """What had no name at the stop is not in the next mount, nor in the store."""
    path = workspace.mountpoint / "file"
    with path.open("wb", buffering=0) as file:
        file.write(os.urandom(8 * MIB))
        os.fsync(file.fileno())
        path.unlink()
        workspace.wsfs("sync", workspace.mountpoint)
        assert os.fstat(file.fileno()).st_size == 8 * MIB
    workspace.elsewhere()
    assert os.listdir(workspace.mountpoint) == [".workspace.initialized"]
    assert workspace.stored_bytes() < MIB
    assert workspace.status()["bytes"] < MIB


def test_extended_attributes(workspace: Site) -> None:
    """With -o xattr they can be set, listed, replaced and removed, and come back on another host."""
    path = workspace.mountpoint / "file"
    path.touch()
    workspace.elsewhere("-o", "xattr")
    os.setxattr(path, "user.one", b"\0binary\xff")
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.gone", b"x")
    os.removexattr(path, "user.gone")
    os.setxattr(path, "user.one", b"second", os.XATTR_REPLACE)
    fails_with(errno.EEXIST, os.setxattr, path, "user.one", b"x", os.XATTR_CREATE)
    fails_with(errno.ENODATA, os.setxattr, path, "user.none", b"x", os.XATTR_REPLACE)
    fails_with(errno.ENODATA, os.getxattr, path, "user.gone")
    workspace.elsewhere("-o", "xattr")
    assert sorted(os.listxattr(path)) == ["user.empty", "user.one"]
    assert os.getxattr(path, "user.one") == b"second"
    assert os.getxattr(path, "user.empty") == b""


def test_owner_and_umask_options(workspace: Site) -> None:
    """uid=, gid= and umask= change what is shown, not what is kept."""
    path = workspace.mountpoint / "file"
    path.write_text("x")
    path.chmod(0o666)
    os.chown(path, 12, 34)
    workspace.elsewhere("-o", "uid=1000,gid=nogroup,umask=027")
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 65534, 0o640)
    assert workspace.mountpoint.stat().st_uid == 1000
    workspace.elsewhere()
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (12, 34, 0o666)


def test_read_only(workspace: Site, tmp_path: Path) -> None:
    """A read-only mount shows everything and changes nothing; two of them may exist at a time."""
    path = workspace.mountpoint / "file"
    path.write_bytes(b"x" * 100_000)
    workspace.umount()
    before = sorted((p, p.stat().st_mtime_ns) for p in workspace.store.rglob("*"))
    workspace.mount("--read-only")
    assert path.read_bytes() == b"x" * 100_000
    for call in (
        lambda: path.write_text("y"),
        lambda: path.open("a"),
        lambda: path.chmod(0o777),
        lambda: path.unlink(),
        lambda: path.rename(path.with_name("other")),
        lambda: path.with_name("new").mkdir(),
        lambda: os.utime(path),
        lambda: os.truncate(path, 0),
        lambda: os.link(path, path.with_name("link")),
    ):
        fails_with(errno.EROFS, call)
    second = tmp_path / "second"
    second.mkdir()
    workspace.mount("-o", "ro", where=second, cache=tmp_path / "second-cache")
    assert (second / "file").read_bytes() == b"x" * 100_000
    workspace.wsfs("umount", second, cache=tmp_path / "second-cache")
    workspace.umount()
    assert sorted((p, p.stat().st_mtime_ns) for p in workspace.store.rglob("*")) == before


def test_without_allow_other_nobody_else_gets_in(site: Site, reachable: Path, tools: type[Helpers]) -> None:
    """Other users cannot even look, unless the mount says allow_other."""
    where = reachable / "private"
    where.mkdir()
    for options, code in (((), 1), (("--allow-other",), 0)):
        site.mount(*options, where=where)
        (where / "file").write_text("x")
        tools.run(*NOBODY, "cat", where / "file", code=code)
        site.wsfs("umount", where)
