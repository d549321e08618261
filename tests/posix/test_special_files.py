"""FIFOs, sockets and devices, and what statfs says."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
from pathlib import Path

from calls import MIB


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
    assert stat.S_ISSOCK((here / "socket").stat().st_mode)
    os.mknod(here / "zero", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    assert (here / "zero").stat().st_rdev == os.makedev(1, 5)
    with (here / "zero").open("rb", buffering=0) as zero:
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


def test_df(here: Path) -> None:
    """df names the workspace and its kind."""
    words = ["df", "--output=fstype,target", here]
    line = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[1]
    assert line.split() == ["fuse.wsfs", str(here.parent)]
