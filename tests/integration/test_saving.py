"""What is saved, when, and how little of it travels; and what a crash leaves."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site, Tree

MIB = 1 << 20


def saved(site: Site) -> dict[str, int]:
    """Push now; what the daemon says it did."""
    answer = site.wsfs("sync", site.mountpoint, "--json").stdout
    return {name: int(value) for name, value in re.findall(r'"(\w+)": (\d+)', answer)}


def test_saves_in_the_background(site: Site, tools: type[Helpers]) -> None:
    """With save_interval=1 changes are saved without anybody asking; a crash then costs nothing."""
    site.mount("-o", "save_interval=1")
    path = site.mountpoint / "file"
    path.write_bytes(b"x" * MIB)
    seq = site.status()["seq"]
    tools.until(lambda: site.status()["unsaved_files"] == 0)
    assert site.status()["seq"] > seq or site.log().count("event=saved ") >= 1
    site.kill()
    site.wipe()
    site.mount()
    assert path.read_bytes() == b"x" * MIB


def test_a_file_that_stays_open_is_saved(site: Site, tools: type[Helpers]) -> None:
    """What a program has written to a file it keeps open, such as a log, is saved in the background too."""
    site.mount("-o", "save_interval=1")
    with (site.mountpoint / "log").open("w") as log:
        log.write("a line\n")
        log.flush()
        tools.until(lambda: site.status(site.url)["files"] == 3)
        site.kill()
    site.wipe()
    site.mount()
    assert (site.mountpoint / "log").read_text() == "a line\n"


def test_no_change_no_request(workspace: Site) -> None:
    """A sync without changes writes nothing, and neither does reading."""
    (workspace.mountpoint / "file").write_text("x" * 1000)
    saved(workspace)
    before = {path: path.stat().st_mtime_ns for path in workspace.store.rglob("*") if path.is_file()}
    assert (workspace.mountpoint / "file").read_text() == "x" * 1000
    os.listdir(workspace.mountpoint)
    assert saved(workspace)["requests"] == 0
    assert {path: path.stat().st_mtime_ns for path in workspace.store.rglob("*") if path.is_file()} == before


def test_deleted_files_never_travel(workspace: Site) -> None:
    """Files that are deleted before a save cost nothing: neither data nor rows."""
    top = workspace.mountpoint
    saved(workspace)
    before = workspace.stored_bytes()
    (top / "scratch").mkdir()
    for number in range(100):
        (top / "scratch" / f"{number}").write_bytes(os.urandom(100_000))
    (top / "big").write_bytes(os.urandom(30 * MIB))
    (top / "kept").write_text("kept")
    workspace.run("rm", "-rf", "scratch", "big")
    answer = saved(workspace)
    assert answer["bytes"] == 4
    assert workspace.stored_bytes() - before < 4096
    assert answer["sent"] < 4096


def test_one_byte_in_a_big_file(workspace: Site) -> None:
    """Changing one byte of 50 MiB uploads one block; appending a line, the last one."""
    path = workspace.mountpoint / "big"
    path.write_bytes(os.urandom(50 * MIB))
    assert saved(workspace)["sent"] > 50 * MIB
    before = workspace.stored_bytes()
    with path.open("r+b") as file:
        file.seek(20 * MIB + 12345)
        file.write(b"!")
    assert saved(workspace)["sent"] < MIB + 16384
    with path.open("ab") as file:
        file.write(b"a line")
    assert saved(workspace)["sent"] < 16384
    path.rename(path.with_name("renamed"))
    path.with_name("renamed").chmod(0o600)
    assert saved(workspace)["sent"] < 16384
    assert workspace.stored_bytes() - before < MIB + 65536


def test_identical_content_travels_once(workspace: Site, tools: type[Helpers]) -> None:
    """Copies of a file, in the same save, in a later one and after a remount, upload no data again."""
    top = workspace.mountpoint
    content = os.urandom(10 * MIB)
    for name in ("one", "two", "three"):
        (top / name).write_bytes(content)
    answer = saved(workspace)
    assert answer["bytes"] == 30 * MIB
    assert answer["sent"] < 10 * MIB + 65536
    (top / "four").write_bytes(content)
    assert saved(workspace)["sent"] < 65536
    workspace.umount()
    workspace.mount()
    (top / "five").write_bytes(content)
    assert saved(workspace)["sent"] < 65536
    assert workspace.stored_bytes() < 10 * MIB + 2 * 65536
    workspace.elsewhere()
    for name in ("one", "three", "five"):
        assert (top / name).read_bytes() == content


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_small_files_share_packs(workspace: Site) -> None:
    """Two thousand files make a handful of requests, and compressible ones few bytes."""
    top = workspace.mountpoint
    for number in range(2000):
        path = top / f"d{number % 20}" / f"module{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# module {number}\n" + "import os\n" * 200)
    workspace.server.requests()
    answer = saved(workspace)
    puts = [key for method, key, _ in workspace.server.requests() if method in ("PUT", "POST")]
    assert answer["files"] > 2000
    assert len(puts) <= 6, puts
    assert answer["sent"] < MIB


def test_a_crash_loses_nothing_that_was_closed(workspace: Site, tree: type[Tree], tools: type[Helpers]) -> None:
    """kill -9, the same cache: every file that was closed is there, and the mount says what it recovered."""
    top = workspace.mountpoint
    (top / "old").write_text("old")
    (top / "gone").write_text("gone")
    workspace.wsfs("sync", top)
    for number in range(300):
        (top / f"file{number}").write_bytes(os.urandom(number * 100))
    (top / "big").write_bytes(os.urandom(5 * MIB + 1))
    (top / "old").write_text("changed")
    (top / "gone").unlink()
    os.truncate(top / "file299", 1000)
    (top / "file298").rename(top / "moved")
    unlinked = (top / "unlinked").open("wb", buffering=0)
    unlinked.write(os.urandom(MIB))
    (top / "unlinked").unlink()
    before = tree.of(top)
    pid = workspace.pid()
    os.kill(pid, 9)
    tools.until(lambda: tools.is_gone(pid))
    with contextlib.suppress(OSError):  # its last bytes have nowhere to go
        unlinked.close()
    status = workspace.status()
    assert status["state"] == "ERROR"
    assert "died" in status["reason"]
    assert "died" in workspace.wsfs("sync", top, code=50).stderr
    workspace.mount()  # takes the dead mount away by itself
    assert tree.of(top) == before
    assert re.search(r"recovered after a crash: \d+ operations", workspace.log())
    workspace.elsewhere()
    assert tree.of(top) == before


def test_umount_of_a_dead_mount(workspace: Site, tools: type[Helpers]) -> None:
    """After kill -9, wsfs umount takes the dead mount away, and says with its exit code that not all is saved."""
    (workspace.mountpoint / "file").write_text("x")
    pid = workspace.pid()
    os.kill(pid, 9)
    tools.until(lambda: tools.is_gone(pid))
    assert str(workspace.cache) in workspace.umount(code=50).stderr
    assert not tools.is_mounted(workspace.mountpoint)
    workspace.umount(code=42)
    workspace.mount()
    assert (workspace.mountpoint / "file").read_text() == "x"


def test_a_crash_in_the_middle_of_a_save(site: Site, tree: type[Tree], tools: type[Helpers]) -> None:
    """kill -9 at odd moments while saves run all the time: the store always has one point in time, the cache all."""
    top = site.mountpoint
    for round_ in range(3):
        site.mount("-o", "save_interval=0.05")
        for number in range(60):
            (top / f"a{number}").write_text(f"{round_}-{number}")
            (top / f"b{number}").write_text(f"{round_}-{number}")
        before = tree.of(top, content=False)
        site.kill()
        kept = site.cache.with_name("kept")
        site.cache.rename(kept)
        site.mount()  # what the store has: of each pair, b, written later, is never newer than a
        for number in range(60):
            texts = [p.read_text() if p.exists() else "" for p in (top / f"a{number}", top / f"b{number}")]
            assert not texts[0] or texts[0] >= texts[1]  # empty: it was just being rewritten
        site.umount()
        site.wipe()
        # The old cache builds on a commit that is still the newest: nothing was written meanwhile.
        kept.rename(site.cache)
        site.mount()
        assert tree.of(top, content=False) == before
        site.umount()


def test_status_counts_what_is_unsaved(workspace: Site) -> None:
    """unsaved_files and unsaved_bytes say what a crash of the machine would cost now; after a sync, nothing."""
    assert workspace.status()["unsaved_files"] == 0
    (workspace.mountpoint / "a").write_bytes(b"x" * 100_000)
    (workspace.mountpoint / "b").write_bytes(b"x" * 50)
    status = workspace.status()
    assert status["unsaved_files"] >= 2
    assert status["unsaved_bytes"] == 100_050
    saved(workspace)
    status = workspace.status()
    assert (status["unsaved_files"], status["unsaved_bytes"]) == (0, 0)
    assert status["last_save_age"] < 30
    assert status["files"] == 4
