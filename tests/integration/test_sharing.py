"""Read-only mounts beside a writer: they show what was saved, and move to what was saved later when they are told."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsfs.config import default_cache_dir

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

MIB = 1 << 20


@pytest.fixture
def second(workspace: Site, tmp_path: Path, tools: type[Helpers]) -> Iterator[Path]:
    """A place for a read-only mount on the same host."""
    where = tmp_path / "second"
    where.mkdir()
    yield where
    if tools.is_mounted(where):
        workspace.wsfs("umount", where)


def test_a_reader_moves_on_request(workspace: Site, second: Path, tmp_path: Path) -> None:
    """Beside the writer, on the same host: names, contents, sizes, attributes and what is not there any more."""
    top = workspace.mountpoint
    (top / "kept").write_text("kept")
    (top / "changed").write_text("before")
    (top / "gone").write_bytes(b"g" * 3 * MIB)
    (top / "d").mkdir()
    (top / "d" / "inner").write_text("inner")
    workspace.wsfs("sync", top)
    workspace.mount("-o", "ro", where=second, cache=tmp_path / "second-cache")
    # All of this is in the kernel's caches now, names that are not there included.
    assert (second / "changed").read_text() == "before"
    assert sorted(os.listdir(second / "d")) == ["inner"]
    assert not (second / "new").exists()
    (second / "gone").stat()
    handle = (second / "changed").open()
    lost = os.open(second / "gone", os.O_RDONLY)
    assert os.read(lost, 10) == b"g" * 10

    (top / "changed").write_text("after, and longer")
    (top / "gone").unlink()
    (top / "new").write_text("new")
    os.rename(top / "d" / "inner", top / "d" / "renamed")
    os.chmod(top / "kept", 0o600)
    workspace.wsfs("sync", top)
    assert (second / "changed").read_text() == "before"
    before = workspace.status(second)
    answer = json.loads(workspace.wsfs("refresh", second, "--json").stdout)
    assert answer["direction"] == "download"
    assert answer["seq"] == workspace.status()["seq"] > before["seq"]
    assert answer["total"] == answer["completed"] >= 4

    assert (second / "changed").read_text() == "after, and longer"
    assert (second / "new").read_text() == "new"
    assert not (second / "gone").exists()
    assert sorted(os.listdir(second / "d")) == ["renamed"]
    assert (second / "d" / "renamed").read_text() == "inner"
    assert (second / "kept").stat().st_mode & 0o777 == 0o600
    assert workspace.status(second)["seq"] == answer["seq"]
    counted = os.statvfs(second)  # once: the free ones are those of the cache disk, where others make files as well
    assert counted.f_files - counted.f_ffree == workspace.status()["files"]
    # Who has a changed file open sees its new content; what was deleted cannot be read any more.
    assert handle.read() == "after, and longer"
    handle.close()
    with pytest.raises(OSError, match="Stale") as caught:
        os.pread(lost, 10, 2 * MIB)
    assert caught.value.errno == errno.ESTALE
    os.close(lost)
    assert "Nothing has changed" in workspace.wsfs("refresh", second).stdout
    with pytest.raises(OSError, match="Read-only"):
        (second / "x").touch()
    workspace.wsfs("umount", second)
    workspace.umount()


def test_a_reader_follows_by_itself_with_a_cache_of_its_own(
    workspace: Site, second: Path, tools: type[Helpers], request: pytest.FixtureRequest
) -> None:
    """No --cache-dir, the same host and user as the writer's: it works, and shows each save a moment later."""
    top = workspace.mountpoint
    words, environ = workspace.command("mount", workspace.url, second, "-o", "ro,follow=200ms")
    del environ["WSFS_CACHE_DIR"]
    cache = default_cache_dir(workspace.url, reader=second)
    assert cache != default_cache_dir(workspace.url)
    request.addfinalizer(lambda: shutil.rmtree(cache, ignore_errors=True))
    tools.run(*words, env=environ)
    status = workspace.status(second)
    assert status["cache_dir"] == str(cache)
    assert (status["read_only"], status["follow"], status["at"]) == (True, 0.2, None)
    assert "read-only, looks for a newer save point every 0.2 s" in workspace.wsfs("status", second).stdout
    assert workspace.status()["read_only"] is False
    for number in range(3):
        (top / f"file{number}").write_text("x" * number)
        workspace.wsfs("sync", top)
        tools.until(lambda number=number: (second / f"file{number}").exists())
        assert (second / f"file{number}").read_text() == "x" * number
    workspace.wsfs("umount", second)


def test_requests_go_on_while_a_reader_moves(workspace: Site, second: Path, tmp_path: Path) -> None:
    """Look-ups and reads that come all the time do not hang the invalidation, nor it them."""
    top = workspace.mountpoint
    workspace.mount("-o", "ro,follow=100ms", where=second, cache=tmp_path / "second-cache")
    script = (
        f"while :; do ls -lR {second} >/dev/null 2>&1; cat {second}/f* >/dev/null 2>&1; stat {second}/none 2>&1; done"
    )
    busy = [subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL, cwd="/") for _ in range(2)]
    try:
        for number in range(6):
            for name in range(30):
                (top / f"f{name}").write_text(f"{number}" * 2000)
            workspace.wsfs("sync", top)
        deadline = time.monotonic() + 60
        while (second / "f29").read_text() != "5" * 2000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    workspace.wsfs("umount", second)


def test_refusals(workspace: Site, second: Path, tmp_path: Path) -> None:
    """Each says what to do."""
    assert "shows the newest state already" in workspace.wsfs("refresh", workspace.mountpoint, code=2).stderr
    assert "no workspace is mounted" in workspace.wsfs("refresh", second, code=42).stderr
    result = workspace.mount("-o", "follow=3s", where=second, cache=tmp_path / "second-cache", code=2)
    assert "read-only" in result.stderr
