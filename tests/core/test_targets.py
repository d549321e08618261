"""What an export does with what it cannot have."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from wsfs.errors import FormatError
from wsfs.model import Ino, Inode
from wsfs.targets import INCOMPLETE, Content, DirectoryTarget


def about(mode: int) -> Inode:
    return Inode(Ino(20), stat.S_IFREG | mode, os.getuid(), os.getgid(), 1, 0, 4, 5, 6, 7, Ino(1))


def content(data: bytes | FormatError) -> Content:
    return Content(4, [(0, data)], [(0, 4)])


def test_without_its_owner_a_program_does_not_run_as_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = DirectoryTarget(tmp_path / "out")
    target.file(b"with", content(b"data"), about(0o6755))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "chown", refuse)
    target.file(b"without", content(b"data"), about(0o6755))
    target.close()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert modes == {"with": 0o6755, "without": 0o755}


def test_an_incomplete_file_takes_nobodys_name(tmp_path: Path) -> None:
    """Neither that of a file that is called like it, nor a name that is too long."""
    target = DirectoryTarget(tmp_path / "out")
    long = b"x" * 255
    target.file(b"a", content(FormatError("lost")), about(0o644))
    target.file(long, content(FormatError("lost")), about(0o644))
    target.file(b"a" + INCOMPLETE, content(b"mine"), about(0o644))
    target.again(b"b", b"a")
    target.close()
    assert target.done.incomplete == [b"a", long, b"b"]
    names = sorted(os.listdir(os.fsencode(tmp_path / "out")))
    assert names == [b"a.incomplete", b"a.incomplete.1", b"b.incomplete", b"x" * (255 - len(INCOMPLETE)) + INCOMPLETE]
    assert (tmp_path / "out" / "a.incomplete").read_bytes() == b"mine"


def test_extended_attributes_that_cannot_be_had_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOTSUP, "none here")

    monkeypatch.setattr(os, "setxattr", refuse)
    target = DirectoryTarget(tmp_path / "out")
    target.file(b"a", content(b"data"), about(0o644), {b"user.a": b"1"})
    target.close()
    assert target.done.bare == [b"a"]
    assert target.done.files == 1


def test_a_path_that_leads_out_is_refused(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path / "out")
    for path in (b"..", b"a/../../b", b"./a", b""):
        with pytest.raises(FormatError):
            target.file(path, content(b"data"), about(0o644))
    assert os.listdir(tmp_path) == ["out"]
