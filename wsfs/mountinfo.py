"""What is mounted, as the kernel says it: never asks a mount."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.wsfs"


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    mount_id: int
    device: str  # major:minor
    mountpoint: str
    fstype: str
    source: str
    options: tuple[str, ...]  # of the mount, then of the file system

    @property
    def is_wsfs(self) -> bool:
        return self.fstype == FSTYPE

    @property
    def owner(self) -> int:
        """The user who mounted it; FUSE notes it."""
        for option in self.options:
            if option.startswith("user_id="):
                return int(option.removeprefix("user_id="))
        return 0


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts of a mountinfo file, in the order in which they were made."""
    mounts = []
    for line in text.split("\n"):  # names may hold whatever else ends a line for str.splitlines
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 6 or len(right) < 3:
            continue
        options = tuple(left[5].split(",") + right[2].split(","))
        mounts.append(Mount(int(left[0]), left[2], _unescape(left[4]), right[0], _unescape(right[1]), options))
    return mounts


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def all_mounts() -> list[Mount]:
    """Every mount that this process sees."""
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))
