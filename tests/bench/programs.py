"""The programs that do the work, one a process: programs.py NAME ARGUMENT... They print one JSON value.

They run outside the bench's own process, for what they do may hang, and so that nothing of the bench is measured.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

MIB: Final = 1 << 20


def micro(directory: str, count: str) -> dict[str, float]:
    """Operations a second: create an empty file, stat it with cold attributes and warm ones, rename, unlink."""
    base = Path(directory)
    names = [str(base / f"file-{number:06}") for number in range(int(count))]
    moved = [f"{name}.moved" for name in names]
    base.mkdir()

    def create(name: str) -> None:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    found = {"creates": rate(create, names), "stats": rate(os.stat, names)}
    found["renames"] = rate(lambda pair: os.rename(*pair), list(zip(names, moved, strict=True)))
    found["unlinks"] = rate(os.unlink, moved)
    base.rmdir()
    return found


def rate(function: Callable[[Any], object], items: list[Any]) -> float:
    began = time.monotonic()
    for item in items:
        function(item)
    return len(items) / (time.monotonic() - began)


def small_files(directory: str, count: str) -> None:
    """Create, write 1 KiB, close."""
    for number in range(int(count)):
        # Not open(): that asks for the attributes as well.
        fd = os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY, 0o644)
        os.write(fd, b"x" * 1024)
        os.close(fd)


def read_files(directory: str, count: str) -> None:
    """Open, read, close."""
    for number in range(int(count)):
        fd = os.open(f"{directory}/{number}", os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)


def walk(directory: str, count: str) -> None:
    """Names and attributes, by long paths."""
    for number in range(int(count)):
        os.stat(f"{directory}/{number}")


def write_big(path: str, size: str) -> float:
    """Seconds to write so many MiB one after the other, each different, and fsync."""
    block = bytearray(os.urandom(MIB))
    began = time.monotonic()
    with open(path, "wb", buffering=0) as file:
        for number in range(int(size)):
            block[:8] = number.to_bytes(8, "big")
            file.write(block)
        os.fsync(file.fileno())
    return time.monotonic() - began


def read_big(path: str) -> float:
    """Seconds to read a file from the first byte to the last."""
    began = time.monotonic()
    buffer = bytearray(MIB)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.monotonic() - began


def random_writes(path: str, count: str) -> float:
    """Seconds for so many writes of 4 KiB at random places, with an fsync after every hundred."""
    pages = os.stat(path).st_size // 4096
    places = random.Random(1)
    data = os.urandom(4096)
    began = time.monotonic()
    with open(path, "r+b", buffering=0) as file:
        for number in range(1, int(count) + 1):
            os.pwrite(file.fileno(), data, places.randrange(pages) * 4096)
            if number % 100 == 0:
                os.fsync(file.fileno())
        os.fsync(file.fileno())
    return time.monotonic() - began


def latencies(directory: str, stop: str) -> dict[str, list[float]]:
    """Seconds of each create (with its close) and each stat by a new name, one of each every 5 ms, until the file
    `stop` exists."""
    found: dict[str, list[float]] = {"create": [], "stat": []}
    number = 0
    os.makedirs(directory, exist_ok=True)
    while not os.path.exists(stop):
        name = f"{directory}/{number}"
        began = time.monotonic()
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644))
        created = time.monotonic()
        exists(f"{name}.no")
        found["create"].append(created - began)
        found["stat"].append(time.monotonic() - created)
        number += 1
        time.sleep(0.005)
    return found


def exists(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def touch_paths(paths_file: str) -> dict[str, float]:
    """Milliseconds of a stat of each path in a file, the mean; none has been looked at before."""
    paths = Path(paths_file).read_text().split("\n")
    began = time.monotonic()
    for path in paths:
        os.lstat(path)
    return {"stat": (time.monotonic() - began) / len(paths) * 1000}


PROGRAMS: Final[dict[str, Callable[..., Any]]] = {
    function.__name__: function
    for function in (
        micro, small_files, read_files, walk, write_big, read_big, random_writes, latencies, touch_paths,
    )
}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])))
