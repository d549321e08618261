"""Mapped files."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

from calls import MIB, python


def test_shared_mapping(here: Path) -> None:
    """Writes through a shared mapping reach the file, and other mappings of it."""
    path = here / "mapped"
    path.write_bytes(bytes(2 * MIB + 100))
    script = """
import mmap
with open(sys.argv[1], "r+b") as file:
    one, two = mmap.mmap(file.fileno(), 0), mmap.mmap(file.fileno(), 0)
    one[0:5] = b"first"
    one[2097152:2097156] = b"last"
    assert two[0:5] == b"first"
    one.flush()
    assert os.pread(file.fileno(), 4, 2097152) == b"last"
    one[4096:4100] = b"more"
"""
    python(script, path)
    data = path.read_bytes()
    assert (data[:5], data[4096:4100], data[2 * MIB : 2 * MIB + 4]) == (b"first", b"more", b"last")
    assert len(data) == 2 * MIB + 100


def test_private_mapping(here: Path) -> None:
    """Writes through a private mapping stay with their process."""
    path = here / "mapped"
    path.write_bytes(b"file" * 2000)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as area:
        area[:4] = b"mine"
        assert area[:8] == b"minefile"
    assert path.read_bytes() == b"file" * 2000


def test_mapping_outlives_its_descriptor_and_its_name(here: Path) -> None:
    """A mapping works after close and unlink, and sees what others wrote before."""
    path = here / "mapped"
    with path.open("w+b") as file:
        file.truncate(MIB)
        area = mmap.mmap(file.fileno(), 0)
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"by write", 5000)
    assert area[5000:5008] == b"by write"
    area[6000:6003] = b"map"
    with path.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 3, 6000) == b"map"
    path.unlink()
    area[0:4] = b"gone"
    area.flush()
    assert area[0:4] == b"gone"
    area.close()


def test_mapping_beyond_the_end(here: Path) -> None:
    """Pages behind the end of the file kill with SIGBUS; the rest of the last page is zeros and not written."""
    path = here / "mapped"
    path.write_bytes(b"x" * 10_000)
    script = """
import mmap
file = open(sys.argv[1], "r+b")
area = mmap.mmap(file.fileno(), 0)
os.ftruncate(file.fileno(), 5000)
assert area[4999:5100] == b"x" + bytes(100)
area[5050] = 1
print("so far", flush=True)
area[8192]
"""
    done = subprocess.run([sys.executable, "-c", "import os, sys" + script, path], check=False, capture_output=True)
    assert done.stdout == b"so far\n"
    assert done.returncode == -signal.SIGBUS
    os.truncate(path, 10_000)
    assert path.read_bytes() == b"x" * 5000 + bytes(5000)


def test_executable_mapping(here: Path) -> None:
    """A program can be run from the mount, also while others read it."""
    program = here / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    assert subprocess.run([program], check=False).returncode == 0
    libraries = [line for line in Path("/proc/self/maps").read_text().split() if "libm" in line or "libc" in line]
    library = here / "library.so"
    library.write_bytes(Path(libraries[0]).read_bytes())
    python("import ctypes; ctypes.CDLL(sys.argv[1])", library)
