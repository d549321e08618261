"""Directories that programs make again when they are gone: finding them, and removing them."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from wsfs.model import MARKER_NAME

ANYWHERE: Final = {
    "__pycache__": "python",
    ".ipynb_checkpoints": "jupyter",
    ".Trash-*": "trash",
}
"""Patterns of a directory's name, and the kind of cache that it is."""

BELOW: Final = {
    ".cache/pip": "pip",
    ".cache/uv": "uv",
    ".cache/conda": "conda",
    ".conda/pkgs": "conda",
    ".npm/_cacache": "npm",
    ".npm/_npx": "npm",
    ".cache/huggingface/hub": "huggingface",
    ".cache/huggingface/datasets": "huggingface",
    ".cache/huggingface/xet": "huggingface",
}
"""Ends of a path. Not what lies above: it may have settings, and Hugging Face keeps a token there."""

_CONDA: Final = ("pkgs", "conda-meta")
"""conda keeps its packages beside the description of its base environment."""

_MARKER: Final = os.fsdecode(MARKER_NAME)


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache by its path below the directory that was looked through. `size`: bytes of files that have no name
    elsewhere."""

    path: str
    kind: str
    files: int
    size: int


def find(top: str) -> Iterator[Cache]:
    """The caches below `top`, none of them within another. Goes into no other file system, and follows no link."""
    device = os.lstat(top).st_dev
    for path, directories, _names, descriptor in os.fwalk(top, follow_symlinks=False):
        here = os.path.relpath(path, top)
        inside = []
        for name in directories:
            status = _look(name, descriptor)
            if status is None or not stat.S_ISDIR(status.st_mode) or status.st_dev != device:
                continue
            below = os.path.normpath(os.path.join(here, name))
            kind = _kind(name, below, directories)
            cache = None if kind is None else _measure(top, below, kind, device)
            if cache is None:
                inside.append(name)
            else:
                yield cache
        directories[:] = sorted(inside)


def _look(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:  # gone just now
        return None


def _kind(name: str, path: str, siblings: list[str]) -> str | None:
    for pattern, kind in ANYWHERE.items():
        if fnmatchcase(name, pattern):
            return kind
    for end, kind in BELOW.items():
        if f"/{path}".endswith(f"/{end}"):
            return kind
    return "conda" if name == _CONDA[0] and _CONDA[1] in siblings else None


def _measure(top: str, path: str, kind: str, device: int) -> Cache | None:
    """None if it is not to be removed: another file system is mounted in it, or it holds a workspace's marker."""
    files = size = 0
    linked: dict[int, int] = {}
    for _path, directories, names, descriptor in os.fwalk(os.path.join(top, path), follow_symlinks=False):
        if _MARKER in names or os.fstat(descriptor).st_dev != device:
            return None
        for name in (*names, *directories):
            status = _look(name, descriptor)
            if status is None or stat.S_ISDIR(status.st_mode):
                continue
            files += 1
            linked[status.st_ino] = linked.get(status.st_ino, 0) + 1
            if linked[status.st_ino] == status.st_nlink:
                size += status.st_size
    return Cache(path, kind, files, size)


def remove(top: str, cache: Cache) -> str | None:
    """Remove a cache with all that is in it. Returns why not all of it could be removed.

    Each directory on the way is opened in the one above: a link that was put there meanwhile leads nowhere.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    problems: list[str] = []
    *way, last = cache.path.split("/")
    descriptor = -1
    try:
        descriptor = os.open(top, flags)
        for name in way:
            inner = os.open(name, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        shutil.rmtree(last, dir_fd=descriptor, onerror=lambda _function, _path, info: problems.append(str(info[1])))
    except OSError as exc:
        problems.append(exc.strerror or str(exc))
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return problems[0] if problems else None
