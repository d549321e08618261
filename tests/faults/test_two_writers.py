"""Two mounts of one workspace: one of them can commit, and the other loses nothing that was written there."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from wsfs.store.directory import DirectoryStore

MIB = 1 << 20
HOUR = 3600

SKEWED = """
import os, time
_skew = float(os.environ.get("WSFS_TEST_SKEW", "0"))
if _skew:
    _time, _time_ns = time.time, time.time_ns
    time.time = lambda: _time() + _skew
    time.time_ns = lambda: _time_ns() + int(_skew * 1e9)
"""


class Other:
    """Another host, as far as the workspace can tell: a mount point, a cache and a clock of its own."""

    def __init__(self, site: Any, base: Path, skew: float = 0) -> None:
        self.site, self.top, self.cache = site, base / "other-workspace", base / "other-cache"
        self.top.mkdir()
        stub = base / "stub"
        stub.mkdir()
        (stub / "sitecustomize.py").write_text(SKEWED)
        self.environ = {"PYTHONPATH": f"{stub}:{site.environ['PYTHONPATH']}", "WSFS_TEST_SKEW": str(skew)}

    def wsfs(self, *arguments: object, code: int = 0) -> Any:
        own, self.site.environ = self.site.environ, self.site.environ | self.environ
        try:
            return self.site.wsfs(*arguments, code=code, cache=self.cache)
        finally:
            self.site.environ = own

    def mount(self, *options: object, code: int = 0) -> Any:
        return self.wsfs("mount", self.site.url, self.top, "--save-interval", "0", *options, code=code)


@pytest.fixture
def other(site: Any, tmp_path: Path) -> Iterator[Other]:
    found = Other(site, tmp_path)
    yield found
    if str(found.top) in site.mounts():
        found.wsfs("umount", found.top)


def cut_off(site: Any, tools: Any) -> None:
    """Take the fenced mount away."""
    pid = site.pid()
    os.kill(pid, 15)
    tools.until(lambda: tools.is_gone(pid))


def fill(top: Path) -> dict[str, bytes]:
    """Unsaved work of all kinds; the content of its files."""
    contents = {}
    (top / "new").mkdir()
    for name, content in (("new/file", os.urandom(3 * MIB)), ("new/empty", b""), ("old", b"changed"), ("tiny", b"x")):
        (top / name).write_bytes(content)
        contents[name] = content
    with (top / "large").open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"in the middle")
    contents["large"] = (top / "large").read_bytes()
    (top / "new" / "file").chmod(0o640)
    os.utime(top / "new" / "file", ns=(1, 1_234_567_890_123_456_789))
    os.symlink("file", top / "new" / "link")
    os.mkfifo(top / "new" / "fifo")
    strange = os.fsdecode(b"line\nbreak \xff")
    (top / strange).write_text("strange")
    contents[strange] = b"strange"
    (top / "deleted").unlink()
    return contents


def check(rescued: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        assert (rescued / name).read_bytes() == content, name
    status = (rescued / "new" / "file").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_mtime_ns == 1_234_567_890_123_456_789
    assert os.readlink(rescued / "new" / "link") == "file"
    assert stat.S_ISFIFO((rescued / "new" / "fifo").lstat().st_mode)
    assert not (rescued / "deleted").exists()
    assert not (rescued / "untouched").exists()


def test_takeover(site: Any, other: Other, tools: Any, tmp_path: Path) -> None:
    """The first mount is cut off: it can neither save nor change anything, and all that it has can be rescued."""
    site.mount()
    top = site.mountpoint
    for name in ("old", "deleted", "untouched"):
        (top / name).write_text("saved")
    (top / "large").write_bytes(os.urandom(12 * MIB))
    site.wsfs("sync", top)
    contents = fill(top)
    refused = other.mount(code=30)
    assert "it is mounted on" in refused.stderr
    assert "last heard of" in refused.stderr
    other.mount("--takeover")
    assert (other.top / "old").read_text() == "saved"
    assert not (other.top / "new").exists()
    (other.top / "theirs").write_text("of the new holder")

    with (top / "open").open("wb", buffering=0) as file:  # it does not know yet
        file.write(b"written before it knew")
        assert "taken over" in site.wsfs("sync", top, code=31).stderr
        contents["open"] = b"written before it knew"
    status = site.status()
    assert status["state"] == "ERROR"
    assert "taken over" in status["reason"]
    for change in (
        lambda: (top / "more").write_text("x"),
        lambda: (top / "old").unlink(),
        lambda: os.truncate(top / "old", 0),
        lambda: (top / "d").mkdir(),
        lambda: os.rename(top / "old", top / "o"),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    assert (top / "new" / "file").read_bytes() == contents["new/file"]
    site.wsfs("sync", top, code=31)

    rescued = tmp_path / "rescued"
    site.wsfs("export", "--unsaved", rescued, top)
    check(rescued, contents)
    assert (rescued / "open").read_bytes() == b"written before it knew"
    assert "not empty" in site.wsfs("export", "--unsaved", rescued, top, code=2).stderr

    other.wsfs("umount", other.top)
    refused = site.wsfs("umount", top, code=31).stderr
    assert f"'wsfs export --unsaved DIR {top}'" in refused
    assert f"'umount -i {top}'" in refused
    assert "9 files" in refused
    assert site.status()["state"] == "ERROR"
    assert (top / "tiny").read_bytes() == b"x"
    cut_off(site, tools)
    assert f"'wsfs export --unsaved DIR --cache-dir {site.cache}'" in site.status()["reason"]
    assert site.status()["exit_code"] == 31
    in_use = tmp_path / "from-cache"
    site.wsfs("export", "--unsaved", in_use, "--cache-dir", site.cache, "--url", site.url)
    check(in_use, contents)

    # The next mount there begins with what the other has saved, and keeps its own changes aside.
    site.mount()
    assert (top / "theirs").read_text() == "of the new holder"
    assert (top / "old").read_text() == "saved"
    assert not (top / "new").exists()
    (aside,) = site.cache.glob("unsaved-*")
    # It is told as long as it is there, with a command that works beside the mount.
    words = f"wsfs export --unsaved DIR --cache-dir {aside} --url {site.url}"
    assert words in site.status()["notice"]
    assert words in site.wsfs("status", top).stdout
    assert words in site.wsfs("doctor", top, code=None).stdout
    site.wsfs(*words.replace("DIR", str(tmp_path / "beside"), 1).split()[1:])
    check(tmp_path / "beside", contents)
    refused = site.wsfs("export", "--unsaved", tmp_path / "no", "--cache-dir", site.cache, code=30).stderr
    assert "or one of its unsaved-... directories" in refused
    assert sorted(path.name for path in aside.iterdir() if path.name.startswith("tmp")) == []
    site.umount()
    site.mount()
    assert words in site.status()["notice"]
    site.umount()
    site.wsfs("export", "--unsaved", tmp_path / "aside", "--cache-dir", site.cache, "--url", site.url)
    check(tmp_path / "aside", contents)
    result = site.wsfs("export", "--unsaved", tmp_path / "again", "--cache-dir", aside, code=None)
    assert result.returncode in (0, 60)
    if result.returncode:
        assert "large" in result.stderr
        assert (tmp_path / "again" / "large.incomplete").exists()
    assert (tmp_path / "again" / "new" / "file").read_bytes() == contents["new/file"]
    shutil.rmtree(aside)
    site.mount()
    assert site.status()["notice"] == ""
    site.umount()


def test_a_fenced_mount_that_saves_in_the_background(site: Any, other: Other, tools: Any) -> None:
    """It finds out by itself, and then takes nothing back."""
    site.mount("-o", "save_interval=1")
    (site.mountpoint / "file").write_text("first")
    tools.until(lambda: site.status()["unsaved_files"] == 0)
    other.mount("-o", "takeover")
    (other.top / "file").write_text("second")
    other.wsfs("sync", other.top)
    (site.mountpoint / "file").write_text("too late")
    tools.until(lambda: site.status()["state"] == "ERROR")
    other.wsfs("umount", other.top)
    # A machine that is about to go away: the mount goes, although nothing can be saved, and does not wait for that.
    began = time.monotonic()
    assert "taken over" in site.wsfs("umount", site.mountpoint, "--deadline", "60s", code=31).stderr
    assert time.monotonic() - began < 30
    assert str(site.mountpoint) not in site.mounts()
    site.wipe()
    site.mount()
    assert (site.mountpoint / "file").read_text() == "second"


def test_a_crashed_mount_is_rescued(site: Any, tmp_path: Path) -> None:
    """What the daemon had when it was killed can be exported as well as mounted."""
    site.mount()
    (site.mountpoint / "file").write_bytes(b"x" * MIB)
    site.kill()
    site.wsfs("export", "--unsaved", tmp_path / "rescued", "--cache-dir", site.cache)
    assert (tmp_path / "rescued" / "file").read_bytes() == b"x" * MIB
    site.mount()
    assert (site.mountpoint / "file").read_bytes() == b"x" * MIB


def test_nothing_to_export(site: Any, tmp_path: Path) -> None:
    site.mount()
    site.wsfs("sync", site.mountpoint)
    assert "0 files" in site.wsfs("export", "--unsaved", tmp_path / "none", site.mountpoint).stdout
    site.umount()
    site.wsfs("export", "--unsaved", tmp_path / "none", site.mountpoint, code=42)
    site.wsfs("export", "--unsaved", tmp_path / "none", code=2)
    site.wsfs("export", "--unsaved", tmp_path / "none", "--cache-dir", tmp_path, code=2)
    site.wsfs("export", "--unsaved", tmp_path / "none", "--cache-dir", site.cache)


SKEWS = [pytest.param(5 * HOUR, id="ahead", marks=pytest.mark.long), pytest.param(-5 * HOUR, id="behind")]


@pytest.mark.parametrize("skew", SKEWS)
def test_a_wrong_clock(site: Any, tools: Any, tmp_path: Path, skew: float) -> None:
    """The age of HEAD is the store's to say. A host whose clock is wrong by hours waits, is refused, takes over and
    fences like any other."""
    site.mount()
    (site.mountpoint / "file").write_text("first")
    site.wsfs("sync", site.mountpoint)
    other = Other(site, tmp_path, skew)
    assert "it is mounted on" in other.mount(code=30).stderr
    other.mount("--takeover")
    (other.top / "file").write_text("second")
    other.wsfs("umount", other.top)
    told = datetime.fromisoformat(site.status(site.url)["last_save"]).timestamp()
    assert abs(time.time() + skew - told) < 600, "its clock was not wrong"
    (site.mountpoint / "file").write_text("too late")
    site.wsfs("sync", site.mountpoint, code=31)
    cut_off(site, tools)
    site.wipe()
    site.mount()
    assert (site.mountpoint / "file").read_text() == "second"
    site.umount()


@pytest.mark.long
@pytest.mark.parametrize("skew", SKEWS)
def test_a_wrong_clock_on_a_shared_disk(
    tmp_path: Path, new_site: Callable[[Path, str], Any], tools: Any, skew: float
) -> None:
    """The machine that stamps the files has the clock that counts: who is hours ahead does not take a living holder for
    dead."""
    site = new_site(tmp_path, "directory").init()
    try:
        site.mount()
        (site.mountpoint / "file").write_text("first")
        site.wsfs("sync", site.mountpoint)
        other = Other(site, tmp_path, skew)
        assert "it is mounted on" in other.mount(code=30).stderr
        site.umount()
        other.mount()
        (other.top / "file").write_text("second")
        other.wsfs("umount", other.top)
        assert DirectoryStore(str(site.store)).get("HEAD")
    finally:
        site.finish()
