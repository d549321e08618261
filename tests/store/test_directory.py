"""DirectoryStore: crashes, several processes, and what the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import wsfs
from wsfs.errors import (
    AccessDeniedError,
    NotFoundError,
    PreconditionFailedError,
    StoreError,
    StoreFullError,
    TransientStoreError,
)
from wsfs.store.directory import CLOCK_SECONDS, DirectoryStore

PRELUDE = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
from wsfs.errors import PreconditionFailedError
from wsfs.store.directory import DirectoryStore
store = DirectoryStore(sys.argv[2])
"""


def start(code: str, root: Path) -> subprocess.Popen[bytes]:
    source = Path(wsfs.__file__).parents[1]
    return subprocess.Popen([sys.executable, "-c", PRELUDE + code, str(source), str(root)])


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("condition", ["", ", if_none_match=True", ", if_match=etag"])
@pytest.mark.parametrize("step", ["rename", "link", "unlink", "fsync"])
def test_a_killed_writer_leaves_the_old_version_or_the_new(tmp_path: Path, step: str, condition: str) -> None:
    old = None
    if "if_match" in condition:
        old = DirectoryStore(str(tmp_path)).put("HEAD", b"old")
    code = f"""
etag = {old!r}
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
os.{step} = die
store.put("HEAD", b"new"{condition})
"""
    process = start(code, tmp_path)
    process.wait(30)
    store = DirectoryStore(str(tmp_path))
    try:
        data = store.get("HEAD").data
    except NotFoundError:
        data = None
    assert data in (b"new", None if old is None else b"old")
    if process.returncode == 0:
        assert data == b"new"
    listed = [(info.key, info.size) for info in store.list("")]
    assert listed == ([] if data is None else [("HEAD", 3)])
    store.put("HEAD", b"later")
    assert store.get("HEAD").data == b"later"


def test_stale_temporary_files_are_swept_on_open_and_young_ones_kept(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    store.put("key", b"x")
    for name, age in (("old", 86_400 + 60), ("young", 60)):
        (tmp_path / ".tmp" / name).write_bytes(b"half")
        then = time.time() - age
        os.utime(tmp_path / ".tmp" / name, (then, then))
    assert [info.key for info in store.list("")] == ["key"]
    DirectoryStore(str(tmp_path))
    assert files(tmp_path) == [".lock", ".tmp/young", "key"]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    etag = store.put("a/key", b"x", if_none_match=True)
    store.put("a/key", b"y", if_match=etag)
    store.put("a/key", b"z")
    for conditions in ({"if_none_match": True}, {"if_match": "wrong"}):
        with pytest.raises(PreconditionFailedError):
            store.put("a/key", b"lost", **conditions)
    assert files(tmp_path) == [".lock", "a/key"]


def test_counting_by_compare_and_swap_in_several_processes_loses_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    store.put("counter", b"0")
    code = """
for _ in range(25):
    while True:
        blob = store.get("counter")
        try:
            store.put("counter", b"%d" % (int(blob.data) + 1), if_match=blob.etag)
            break
        except PreconditionFailedError:
            pass
"""
    processes = [start(code, tmp_path) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert store.get("counter").data == b"100"


def test_only_one_of_several_processes_creates(tmp_path: Path) -> None:
    code = """
won = []
for number in range(40):
    try:
        store.put(f"commits/{number}", b"%d" % os.getpid(), if_none_match=True)
        won.append(number)
    except PreconditionFailedError:
        pass
store.put(f"won-{os.getpid()}", json.dumps(won).encode())
"""
    processes = [start(code, tmp_path) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    store = DirectoryStore(str(tmp_path))
    won = [number for process in processes for number in json.loads(store.get(f"won-{process.pid}").data)]
    assert sorted(won) == list(range(40))


def test_data_is_synced_before_its_name_and_the_name_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(str(tmp_path / "store"))
    store.put("dir/first", b"x")
    events: list[str] = []
    fsync, rename, link = os.fsync, os.rename, os.link

    def record(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def recorded(*arguments: Any) -> None:
            if name == "fsync":
                path = os.readlink(f"/proc/self/fd/{arguments[0]}")
                events.append("fsync " + ("file" if "/.tmp/" in path else os.path.relpath(path, tmp_path)))
            else:
                events.append(name)
            call(*arguments)

        return recorded

    for name, call in (("fsync", fsync), ("rename", rename), ("link", link)):
        monkeypatch.setattr(os, name, record(name, call))
    etag = store.put("dir/key", b"x")
    assert events == ["fsync file", "rename", "fsync store/dir"]
    events.clear()
    store.put("dir/key", b"y", if_match=etag)
    assert events == ["fsync file", "rename", "fsync store/dir"]
    events.clear()
    store.put("dir/new", b"y", if_none_match=True)
    assert events == ["fsync file", "link", "fsync store/dir"]
    events.clear()
    DirectoryStore(str(tmp_path / "store")).put("dir/sub/key", b"x")
    assert events[-3:] == ["fsync file", "rename", "fsync store/dir/sub"]
    assert {"fsync store/dir", "fsync store", "fsync ."} <= set(events[:-3]), "the names of the directories, too"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, StoreFullError),
        (errno.EDQUOT, StoreFullError),
        (errno.EACCES, AccessDeniedError),
        (errno.EROFS, AccessDeniedError),
        (errno.EIO, TransientStoreError),
        (errno.ESTALE, TransientStoreError),
    ],
)
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_what_the_disk_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError], call: str
) -> None:
    store = DirectoryStore(str(tmp_path))
    store.put("key", b"old")

    def refuse(*arguments: Any) -> None:
        raise OSError(number, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(StoreError) as caught:
            store.put("key", b"new")
    assert type(caught.value) is kind
    assert str(caught.value).startswith(f"file://{tmp_path}: cannot put key: {os.strerror(number)}; ")
    assert store.get("key").data == b"old"
    assert files(tmp_path) == [".lock", "key"]


def test_where_there_are_no_hard_links_creation_is_still_exclusive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = DirectoryStore(str(tmp_path))
    store.put("key", b"x", if_none_match=True)
    with pytest.raises(PreconditionFailedError):
        store.put("key", b"y", if_none_match=True)
    assert store.get("key").data == b"x"


def test_a_key_below_another_object_is_refused_with_a_sentence(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    store.put("a", b"x")
    store.put("b/c", b"x")
    for key in ("a/b", "b"):
        with pytest.raises(StoreError, match="lies in its way"):
            store.put(key, b"y")


def test_links_and_foreign_files_are_not_objects(tmp_path: Path) -> None:
    root = tmp_path / "store"
    store = DirectoryStore(str(root))
    store.put("key", b"x")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "with space").write_bytes(b"")
    os.mkfifo(root / "pipe")
    assert [info.key for info in store.list("")] == ["key"]
    with pytest.raises(NotFoundError):
        store.get("pipe")
    with pytest.raises(StoreError):
        store.get("link")


def test_age_is_by_mtime(tmp_path: Path) -> None:
    store = DirectoryStore(str(tmp_path))
    store.put("key", b"x")
    then = time.time() - 500
    os.utime(tmp_path / "key", (then, then))
    age = store.get("key").age
    assert age == pytest.approx(500, abs=0.5)
    assert [info.age for info in store.list("")] == [pytest.approx(500, abs=0.5)]


@pytest.mark.parametrize("skew", [300.0, -300.0, 5 * 86_400.0])
def test_age_is_by_the_clock_that_stamps_files(tmp_path: Path, skew: float) -> None:
    """On a network file system it is another machine's: this one is ahead or behind, and what is young is young."""
    store = DirectoryStore(str(tmp_path))
    store.put("key", b"x")
    (tmp_path / ".tmp" / "being-written").write_bytes(b"")
    mine = DirectoryStore(str(tmp_path), clock=lambda: time.time() + skew)
    age = mine.get("key").age
    assert age is not None
    assert age < 5
    assert [info.age < 5 for info in mine.list("")] == [True]
    assert [entry.name for entry in (tmp_path / ".tmp").iterdir()] == ["being-written"], "nor is it swept"


def test_the_clock_is_asked_for_rarely_and_again_after_it_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]
    store = DirectoryStore(str(tmp_path), clock=lambda: now[0])
    store.put("key", b"x")
    asked: list[float] = []
    monkeypatch.setattr(store, "_measure", lambda: asked.append(now[0]) or 0.0)
    for _ in range(10):
        store.get("key")
        list(store.list(""))
    assert len(asked) == 1
    for step in (CLOCK_SECONDS + 1, -10.0):
        now[0] += step
        store.get("key")
    assert len(asked) == 3


def test_who_may_not_write_goes_by_the_own_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(str(tmp_path))
    store.put("key", b"x")
    mine = DirectoryStore(str(tmp_path), clock=lambda: time.time() + 300)

    monkeypatch.setattr(os, "open", without_new_files(os.O_CREAT, os.O_TMPFILE))
    assert mine.get("key").age == pytest.approx(300, abs=5)


def test_the_clock_is_that_of_a_file_with_a_name_where_there_are_none_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(str(tmp_path))
    store.put("key", b"x")
    mine = DirectoryStore(str(tmp_path), clock=lambda: time.time() + 300)
    monkeypatch.setattr(os, "open", without_new_files(os.O_TMPFILE))
    age = mine.get("key").age
    assert age is not None
    assert age < 5
    assert not list((tmp_path / ".tmp").iterdir())


def without_new_files(*kinds: int) -> Callable[..., int]:
    """An os.open that makes no files of these kinds."""
    real = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if any(flags & kind == kind for kind in kinds):
            raise PermissionError(errno.EACCES, "no")
        return real(path, flags, mode)

    return refusing


def test_a_pack_is_hashed_once_for_many_ranges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DirectoryStore(str(tmp_path))
    data = bytes(range(256)) * 4096
    etag = store.put("pack", data)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10 * 10**9)
    assert store.get("pack", 0, 10).etag == etag
    read: list[int] = []
    pread = os.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        read.append(count)
        return pread(fd, count, offset)

    monkeypatch.setattr(os, "pread", counted)
    for start_ in range(0, 1000, 100):
        assert store.get("pack", start_, 100).etag == etag
    assert read == [100] * 10
    with (tmp_path / "pack").open("r+b") as file:  # the same inode and size, as when an inode is used again
        file.write(b"changed")
    assert store.get("pack", 0, 10).etag != etag
    changed = store.put("pack", data[::-1])
    assert store.get("pack", 0, 10).etag == changed


def test_the_root_must_be_absolute() -> None:
    with pytest.raises(StoreError, match="absolute"):
        DirectoryStore("relative/dir")
