"""A stop under a deadline: it ends in time, what was sent counts, and nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from wsfs.notify import Notifier
from wsfs.stop import STALLED_SECONDS, extending_timeout

MIB = 1 << 20
BUSY = 10.0
"""Seconds that a busy machine may add to a deadline. What hangs for the store does so for 30 and more."""


def fill(top: Path) -> None:
    """A little that people care for, a lot that can be made again, and something large."""
    (top / "work").mkdir()
    for number in range(10):
        (top / "work" / f"notebook{number}.ipynb").write_bytes(os.urandom(30_000))
    (top / "project" / "node_modules" / "package").mkdir(parents=True)
    for number in range(40):
        (top / "project" / "node_modules" / "package" / f"{number}.js").write_bytes(os.urandom(MIB))
    (top / "large.bin").write_bytes(os.urandom(40 * MIB))


def without_content(found: dict[bytes, Any]) -> dict[bytes, Any]:
    """Directories change when names are left out; files do not."""
    return {path: facts for path, facts in found.items() if "content" in facts}


def test_what_people_care_for_is_saved_first(site: Any, tree: Any, tmp_path: Path) -> None:
    if site.server is None:
        pytest.skip("needs a server that can be slowed down")
    site.mount()
    top = site.mountpoint
    (top / "old").write_bytes(os.urandom(2 * MIB))
    old = (top / "old").read_bytes()
    site.wsfs("sync", top)
    fill(top)
    (top / "old").write_bytes(os.urandom(20 * MIB))
    before = tree.of(top)
    with site.server.slow("PUT", "/packs/", 1.5):
        began = time.monotonic()
        result = site.wsfs("umount", top, "--deadline", "9s", code=3)
        assert time.monotonic() - began < 9 + BUSY
    first, *names = [line for line in result.stderr.splitlines() if not line.startswith("wsfs: saving: ")]
    assert re.match(r"wsfs: time is up, and \d+ files with about [\d.]+ MB could not be saved", first)
    assert str(site.cache) in first
    assert 0 < len(names) <= 21
    assert all(name.startswith("  ") for name in names)
    assert any("node_modules" in name or "large.bin" in name for name in names)
    assert not any("notebook" in name for name in names)
    state = site.status()
    assert state["state"] == "SYNC_FAILED"
    assert state["reason"].startswith("time is up")
    away = site.status(site.url)
    assert away["state"] == "SYNC_FAILED"
    assert away["reason"].endswith(
        f"{site.cache} on {socket.gethostname()}, and the next mount with this cache saves it"
    )

    # Another host finds what was saved, whole.
    site.mount("-o", "ro", cache=tmp_path / "other")
    found = tree.of(top)
    assert {name for name in found if b"notebook" in name} == {name for name in before if b"notebook" in name}
    whole = without_content(before)
    for path, facts in without_content(found).items():
        if path != b"old":
            assert facts == whole[path]
    assert (top / "old").read_bytes() in (old, None) or found[b"old"]["content"] == before[b"old"]["content"]
    assert len(without_content(found)) < len(whole)
    site.umount()

    # This one has everything, and saves the rest. Also later it is known of each save point what is missing in it.
    point = json.loads(site.wsfs("log", site.url, "--json").stdout)["save_points"][0]
    assert point["left_out"] > 1
    assert f"without {point['left_out']} files that could not be saved in time" in site.wsfs("log", site.url).stdout
    site.mount()
    assert tree.of(top) == before
    site.wsfs("sync", top)
    newest = json.loads(site.wsfs("log", top, "--json").stdout)["save_points"][0]
    assert newest["id"] > point["id"]
    assert newest["left_out"] == 0
    site.elsewhere()
    assert tree.of(top) == before


@pytest.mark.long
def test_enough_time(site: Any, tree: Any) -> None:
    """Nothing is left out then: the same as without a deadline."""
    site.mount()
    fill(site.mountpoint)
    before = tree.of(site.mountpoint)
    site.umount("--deadline", "60s")
    assert site.status()["state"] == "STOPPED"
    assert site.status(site.url)["state"] == "STOPPED"
    site.wipe()
    site.mount()
    assert tree.of(site.mountpoint) == before


@pytest.mark.parametrize(
    ("mode", "way"),
    [
        ("stall request", "signal"),
        ("refuse", "unmount"),
        pytest.param("stall request", "unmount", marks=pytest.mark.long),
        pytest.param("refuse", "signal", marks=pytest.mark.long),
    ],
)
def test_a_deadline_for_others(site: Any, proxy: Any, tools: Any, mode: str, way: str) -> None:
    """SIGTERM, or an unmount that does not ask, while the store is away or hangs for longer: it ends in time."""
    site.mount("-o", "stop_deadline=3s")
    path = site.mountpoint / "a file"
    content = os.urandom(9 * MIB)
    path.write_bytes(content)
    pid = site.pid()
    with proxy.fault(mode):
        began = time.monotonic()
        if way == "signal":
            os.kill(pid, signal.SIGTERM)
        else:
            tools.run("umount", "-i", site.mountpoint)
        tools.until(lambda: tools.is_gone(pid))
        assert time.monotonic() - began < 3 + BUSY
    assert not tools.is_mounted(site.mountpoint)
    state = site.status()
    assert state["state"] == "SYNC_FAILED"
    assert state["exit_code"] == 3
    assert "a file" in state["reason"]
    site.mount()
    assert path.read_bytes() == content
    site.elsewhere()
    assert path.read_bytes() == content


def test_a_deadline_while_a_background_save_hangs(site: Any, proxy: Any, tools: Any) -> None:
    """Nobody waits for it; and the next mount with this cache has everything."""
    site.mount("-o", "save_interval=1")
    path = site.mountpoint / "file"
    with proxy.fault("stall request", "PUT"):
        path.write_bytes(b"x" * MIB)
        time.sleep(2.5)
        began = time.monotonic()
        result = site.wsfs("umount", site.mountpoint, "--deadline", "2s", code=3)
        assert time.monotonic() - began < 2 + BUSY
        assert "file" in result.stderr
    site.mount()
    assert path.read_bytes() == b"x" * MIB


@pytest.mark.parametrize("size", [MIB, pytest.param(9 * MIB, marks=pytest.mark.long)])
def test_a_deadline_after_a_stop_that_takes_its_time(site: Any, proxy: Any, tools: Any, size: int) -> None:
    """Whoever has asked without one gets the same answer, at the same time; what they wait for hangs: the pack, or,
    where there is much to save, the word to other hosts that it is being saved."""
    site.mount()
    path = site.mountpoint / "a file"
    content = os.urandom(size)
    path.write_bytes(content)
    pid = site.pid()
    words, environ = site.command("umount", site.mountpoint)
    with proxy.fault("stall request", "PUT"), subprocess.Popen(words, env=environ, stderr=subprocess.PIPE) as patient:
        tools.until(lambda: site.status()["state"] == "STOPPING")
        began = time.monotonic()
        result = site.wsfs("umount", site.mountpoint, "--deadline", "2s", code=3)
        assert time.monotonic() - began < 2 + BUSY
        assert "a file" in result.stderr
        assert patient.wait(60) == 3
        tools.until(lambda: tools.is_gone(pid))
    assert not tools.is_mounted(site.mountpoint)
    site.mount()
    assert path.read_bytes() == content


@pytest.mark.parametrize("way", ["command", "unmount"])
def test_time_is_up_and_nothing_is_left_to_save(site: Any, tools: Any, way: str) -> None:
    """What is saved already is no failure, however little time there is."""
    site.mount("-o", "stop_deadline=1ms")
    (site.mountpoint / "file").write_text("x")
    site.wsfs("sync", site.mountpoint)
    pid = site.pid()
    if way == "command":
        site.umount("--deadline", "1ms")
    else:
        tools.run("umount", "-i", site.mountpoint)
        tools.until(lambda: tools.is_gone(pid))
    assert site.status()["state"] == "STOPPED"
    assert site.status(site.url)["state"] == "STOPPED"
    site.mount()
    assert (site.mountpoint / "file").read_text() == "x"


@pytest.mark.parametrize(
    "command", ["gc", *(pytest.param(other, marks=pytest.mark.long) for other in ("restore", "refresh"))]
)
def test_a_deadline_while_something_else_waits_for_the_store(site: Any, proxy: Any, tools: Any, command: str) -> None:
    """Nobody waits for it. All that is saved is given back, and the next mount with this cache finds it in order."""
    site.mount()
    (site.mountpoint / "file").write_text("x")
    site.wsfs("sync", site.mountpoint)
    if command == "refresh":
        site.umount()
        site.mount("-o", "ro")
    pid = site.pid()
    words, environ = site.command(command, *(["--at", "2"] if command == "restore" else []), site.mountpoint)
    with proxy.fault("stall request", "GET"), subprocess.Popen(words, env=environ, stderr=subprocess.DEVNULL) as other:
        time.sleep(2)
        assert other.poll() is None
        began = time.monotonic()
        site.umount("--deadline", "3s")
        assert time.monotonic() - began < 3 + BUSY
        assert tools.is_gone(pid)
        other.wait(60)
    assert proxy.treated
    assert site.status()["state"] == "STOPPED"
    assert site.status(site.url)["state"] == "STOPPED"
    site.mount()
    assert (site.mountpoint / "file").read_text() == "x"


@pytest.mark.long
def test_a_deadline_while_the_start_profile_is_written(site: Any, proxy: Any) -> None:
    """It is only advice for the next mount."""
    site.mount()
    path = site.mountpoint / "file"
    path.write_bytes(os.urandom(3 * MIB))
    site.elsewhere()
    path.read_bytes()
    with proxy.fault("stall request", "PUT", "/hints/"):
        began = time.monotonic()
        site.umount("--deadline", "3s")
        assert time.monotonic() - began < 3 + BUSY
    assert proxy.treated == 1
    assert site.status(site.url)["state"] == "STOPPED"


def test_a_reader_that_waits_for_the_store_keeps_no_signal_waiting(site: Any, proxy: Any, tools: Any) -> None:
    """Whoever reads what is not here gets an error when the time is up, and no answer from a store that hangs."""
    site.mount()
    path = site.mountpoint / "file"
    path.write_bytes(os.urandom(9 * MIB))
    site.elsewhere("-o", "stop_deadline=3s")
    pid = site.pid()
    with (
        proxy.fault("stall response", "GET", "/packs/"),
        subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader,
    ):
        time.sleep(1)
        assert reader.poll() is None
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        tools.until(lambda: tools.is_gone(pid))
        took = time.monotonic() - began
        assert reader.wait(60) == 1
    assert proxy.treated
    assert took < 3 + BUSY
    assert not tools.is_mounted(site.mountpoint)
    assert site.status()["state"] == "STOPPED"
    assert site.status(site.url)["state"] == "STOPPED"


WRITER = """import os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"written!" * 512, (2 << 20) + 8192)
print("done", flush=True)
time.sleep(1000)"""


@contextlib.contextmanager
def a_write_that_waits(site: Any, *around: str) -> Iterator[Path]:
    """A program has written a page into a block that is not here, and keeps the file open. It was told that this is
    done; what waits for the rest of the block is the mount. The store must answer no GET of a pack yet."""
    path: Path = site.mountpoint / "file"
    words = [*around, sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"done\n"
        try:
            yield path
        finally:
            program.kill()


def was_written(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek((2 * MIB) + 8192)
        return file.read(4096) == b"written!" * 512


ANOTHER_NAMESPACE = ("unshare", "--mount", "--propagation", "private")


@pytest.mark.parametrize("way", ["command", "signal"])
def test_a_stop_without_a_deadline_waits_for_what_was_written(site: Any, tools: Any, way: str) -> None:
    """Nobody is told STOPPED while a write waits for the store, whoever holds the mount."""
    if site.server is None:
        pytest.skip("needs a server that can be slowed down")
    site.mount()
    (site.mountpoint / "file").write_bytes(os.urandom(9 * MIB))
    site.elsewhere()
    pid = site.pid()
    with (
        site.server.slow("GET", "/packs/", 5.0),
        a_write_that_waits(site, *(ANOTHER_NAMESPACE if way == "command" else ())) as path,
    ):
        if way == "command":
            site.umount()
        else:
            os.kill(pid, signal.SIGTERM)
        tools.until(lambda: tools.is_gone(pid))
    assert site.status(site.url)["state"] == "STOPPED"
    site.wipe()
    site.mount()
    assert was_written(path)


def test_a_deadline_cuts_off_a_write_that_waits_and_says_so(site: Any, proxy: Any, tools: Any) -> None:
    """It cannot be saved, and the program has been told that it is done: this is no success."""
    site.mount("-o", "stop_deadline=4s")
    (site.mountpoint / "file").write_bytes(os.urandom(9 * MIB))
    site.elsewhere("-o", "stop_deadline=4s")
    pid = site.pid()
    with proxy.fault("stall response", "GET", "/packs/"), a_write_that_waits(site):
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        tools.until(lambda: tools.is_gone(pid))
        assert time.monotonic() - began < 4 + BUSY
    for state in (site.status(), site.status(site.url)):
        assert state["state"] == "SYNC_FAILED"
        assert "1 change that waited for the store could not be made" in state["reason"]


def test_what_was_cut_off_is_told_beside_what_is_not_saved(site: Any, proxy: Any, tools: Any) -> None:
    """The next mount with this cache saves the one; the other is lost."""
    site.mount()
    (site.mountpoint / "file").write_bytes(os.urandom(9 * MIB))
    site.elsewhere("-o", "stop_deadline=4s")
    pid = site.pid()
    (site.mountpoint / "unsaved").write_bytes(os.urandom(MIB))
    with proxy.fault("stall request"), a_write_that_waits(site):
        os.kill(pid, signal.SIGTERM)
        tools.until(lambda: tools.is_gone(pid))
    reason = site.status()["reason"]
    assert "2 files with about 1.0 MB could not be saved" in reason
    assert "1 change that waited for the store could not be made" in reason
    site.mount()
    assert (site.mountpoint / "unsaved").stat().st_size == MIB
    assert not was_written(site.mountpoint / "file")


def test_a_sync_has_what_was_written_before_it(site: Any, tools: Any) -> None:
    """Also what waits for the store: the kernel does not wait for that, as of Linux 6.18."""
    if site.server is None:
        pytest.skip("needs a server that can be slowed down")
    site.mount()
    (site.mountpoint / "file").write_bytes(os.urandom(9 * MIB))
    site.elsewhere()
    words, environ = site.command("sync", site.mountpoint)
    with contextlib.ExitStack() as stack:
        with site.server.held("GET", "/packs/"):
            path = stack.enter_context(a_write_that_waits(site))
            syncing = stack.enter_context(subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL))
            time.sleep(1.5)
            assert syncing.poll() is None
        assert syncing.wait(60) == 0
        site.kill()
    site.wipe()
    site.mount("-o", "takeover")
    assert was_written(path)


def test_in_use(site: Any) -> None:
    """A deadline is no reason to cut off programs."""
    site.mount()
    path = site.mountpoint / "file"
    path.write_text("x")
    with path.open():
        assert "is in use" in site.wsfs("umount", site.mountpoint, "--deadline", "5s", code=41).stderr
        assert site.status()["state"] == "RUNNING"
    site.umount("--deadline", "30s")


def test_in_use_and_not_saved(site: Any, proxy: Any) -> None:
    """Then no code says that everything is saved: who trusts that may drop the cache."""
    site.mount("-o", "store_timeout=2s")
    path = site.mountpoint / "file"
    path.write_bytes(os.urandom(2 * MIB))
    with path.open(), proxy.fault("refuse"):
        told = site.wsfs("umount", site.mountpoint, "--deadline", "3s", code=50).stderr
        assert "1 file with about 2.1 MB could not be saved" in told
        assert "is in use, so it is still mounted, and goes on saving" in told
        assert "next mount" not in told
        assert site.status()["state"] == "SYNC_FAILED"
    site.umount("--deadline", "30s")


SLOW_SYNC = """#!/bin/sh
exec 3<"$2"
sleep 4
exec /bin/sync "$@"
"""


def test_a_background_save_is_no_user_of_the_mount(site: Any, tmp_path: Path) -> None:
    """It looks into the mount for a moment, to have the kernel send its pages: a stop waits for that."""
    stub = tmp_path / "bin"
    stub.mkdir()
    (stub / "sync").write_text(SLOW_SYNC)
    (stub / "sync").chmod(0o755)
    path = os.environ["PATH"]
    site.environ["PATH"] = f"{stub}:{path}"
    site.mount("-o", "save_interval=500ms")
    (site.mountpoint / "file").write_text("x")
    time.sleep(1)
    site.environ["PATH"] = path
    site.umount()


def test_a_deadline_that_is_none(site: Any) -> None:
    site.mount()
    for wrong in ("soon", "0", "-1"):
        site.wsfs("umount", site.mountpoint, "--deadline", wrong, code=2)
    site.umount()


class Manager:
    """The service manager: until when it waits."""

    def __init__(self) -> None:
        self.until = 0.0
        self.status = ""

    def notify(self, state: str) -> None:
        for name, _, value in (line.partition("=") for line in state.split("\n")):
            if name == "EXTEND_TIMEOUT_USEC":
                self.until = trio.current_time() + int(value) / 1e6
            elif name == "STATUS":
                self.status = value


def test_the_service_manager_waits_for_progress_and_for_nothing_else() -> None:
    """A save may take hours, as long as something moves. One that hangs ends in a timeout."""
    manager = Manager()
    moved = 0

    async def main() -> None:
        nonlocal moved
        began = trio.current_time()
        async with extending_timeout(Notifier(manager), lambda: moved, lambda: "7 bytes left"):
            for _ in range(60):  # an hour in which little happens
                await trio.sleep(60)
                moved += 1
                assert manager.until > trio.current_time()
            assert manager.status.startswith("saving: 7 bytes left")
            await trio.sleep(STALLED_SECONDS + 20)
            assert began + 3600 < manager.until < trio.current_time()
            assert "no progress for 3" in manager.status
            moved += 1
            await trio.sleep(20)
            assert manager.until > trio.current_time() + STALLED_SECONDS - 30

    trio.run(main, clock=MockClock(autojump_threshold=0))
