"""What the disk is asked to begin with while a large file is still being written."""

from __future__ import annotations

import ctypes
import errno
import threading
from pathlib import Path

import pytest

from wsfs.data.behind import LARGE, STEP, WriteBehind, begin_writeback
from wsfs.data.overlay import Overlay

MIB = 1 << 20


class Disk:
    """Notes the ranges, and lets the test wait for so many."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int, int]] = []
        self._more = threading.Semaphore(0)

    def begin(self, fd: int, offset: int, length: int) -> None:
        self.begun.append((fd, offset, length))
        self._more.release()

    def wait(self, count: int) -> list[tuple[int, int, int]]:
        for _ in range(count):
            assert self._more.acquire(timeout=60)
        return self.begun


def write(behind: WriteBehind, fd: int, start: int, end: int, piece: int = MIB) -> None:
    for offset in range(start, end, piece):
        behind.wrote(fd, offset, piece)


def test_the_disk_begins_after_each_step_and_with_each_byte_once() -> None:
    disk = Disk()
    behind = WriteBehind(disk.begin)
    write(behind, 7, 0, 3 * STEP)
    assert disk.wait(3) == [(7, 0, STEP), (7, STEP, STEP), (7, 2 * STEP, STEP)]


def test_what_is_short_is_left_to_the_kernel() -> None:
    disk = Disk()
    behind = WriteBehind(disk.begin)
    write(behind, 7, 0, STEP - MIB)
    write(behind, 8, 0, STEP)
    assert disk.wait(1) == [(8, 0, STEP)]


def test_small_writes_are_not_looked_at() -> None:
    disk = Disk()
    behind = WriteBehind(disk.begin)
    write(behind, 7, 0, 2 * STEP, LARGE // 2)
    write(behind, 8, 0, STEP, LARGE)
    assert disk.wait(1) == [(8, 0, STEP)]


def test_a_jump_begins_a_new_run() -> None:
    disk = Disk()
    behind = WriteBehind(disk.begin)
    write(behind, 7, 0, STEP // 2)
    write(behind, 7, 10 * STEP, 11 * STEP)
    assert disk.wait(1) == [(7, 10 * STEP, STEP)]


def test_two_files_at_once_and_a_descriptor_that_comes_again() -> None:
    disk = Disk()
    behind = WriteBehind(disk.begin)
    for offset in range(0, STEP - MIB, MIB):
        behind.wrote(7, offset, MIB)
        behind.wrote(8, offset, MIB)
    behind.closed(7)
    behind.wrote(7, STEP - MIB, MIB)
    behind.wrote(8, STEP - MIB, MIB)
    assert disk.wait(1) == [(8, 0, STEP)]


def test_the_kernel_takes_the_request(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(bytes(MIB))
        ctypes.set_errno(0)
        begin_writeback(file.fileno(), 0, MIB)
        assert ctypes.get_errno() == 0
        begin_writeback(-1, 0, MIB)
        assert ctypes.get_errno() == errno.EBADF  # it was the kernel that was asked


def test_the_overlay_tells_of_each_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk()
    monkeypatch.setattr("wsfs.data.overlay.WriteBehind", lambda: WriteBehind(disk.begin))
    overlay = Overlay(tmp_path)
    for offset in range(0, STEP, MIB):
        overlay.write(20, offset, bytes(MIB))
    assert [(offset, length) for _fd, offset, length in disk.wait(1)] == [(0, STEP)]
    overlay.close()
