"""Each way in which a store can misbehave, against each thing that a mount wants of it.

Nothing hangs, nothing is lost, work on what is local goes on, the state and the reason are shown, commands fail with
the store's code and one sentence, and succeed when they are repeated after the fault.

WSFS_TEST_FAULTS=all runs the whole matrix; without it a part that stands for the rest is run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ALL = os.environ.get("WSFS_TEST_FAULTS") == "all"
IMPATIENT = ("-o", "store_timeout=2")
READ_DEADLINE = 4.0
MIB = 1 << 20


@dataclass(frozen=True)
class Fault:
    """A mode of the proxy, and the exit code of each command under it; 0: it does not mind."""

    mode: str
    sync: int = 11
    mount: int = 11
    read: bool = False  # whether reads succeed
    often: bool = False  # part of the short matrix: writes
    also: bool = False  # part of the short matrix: reads and mounts


MATRIX = [
    Fault("refuse", often=True),
    Fault("reset"),
    Fault("stall request"),
    Fault("stall response", often=True, also=True),
    Fault("delay", sync=0, mount=0, read=True),
    Fault("500"),
    Fault("slowdown", also=True),
    Fault("expired", sync=12, mount=12),
    Fault("full", sync=16, mount=16),
    Fault("deleted", sync=14, mount=20),
    Fault("truncated", sync=0),
    Fault("flipped", sync=0, mount=22, also=True),
    Fault("stale", sync=0, read=True),
]


def cases(short: str) -> list[Any]:
    return [pytest.param(fault, id=fault.mode.replace(" ", "-")) for fault in MATRIX if ALL or getattr(fault, short)]


def sentence(text: str) -> None:
    """One line for the user."""
    assert text.startswith("wsfs: ")
    assert text.count("\n") == 1


@pytest.mark.parametrize("fault", cases("often"))
def test_saves(site: Any, proxy: Any, tools: Any, fault: Fault) -> None:
    """Background saves, sync and umount while the fault lasts, and after it."""
    site.mount(*IMPATIENT, "-o", "save_interval=1")
    top = site.mountpoint
    (top / "before").write_bytes(os.urandom(MIB))
    site.wsfs("sync", top)
    content = os.urandom(2 * MIB)
    with proxy.fault(fault.mode):
        (top / "file").write_bytes(content)
        if fault.sync:
            status = tools.until(lambda: (s := site.status())["state"] == "SYNC_FAILED" and s)
            assert status["reason"]
            assert status["unsaved_files"] > 0
        began = time.monotonic()
        (top / "directory").mkdir()
        (top / "directory" / "other").write_text("work goes on")
        assert (top / "file").read_bytes() == content
        os.rename(top / "directory" / "other", top / "renamed")
        assert time.monotonic() - began < 2
        result = site.wsfs("sync", top, code=fault.sync, timeout=40)
        if fault.sync:
            sentence(result.stderr)
            assert site.status()["state"] == "SYNC_FAILED"
            result = site.wsfs("umount", top, code=50, timeout=40)
            sentence(result.stderr)
            assert "still mounted" in result.stderr
            assert (top / "renamed").read_text() == "work goes on"
            assert site.status()["state"] == "SYNC_FAILED"
    if fault.sync:
        tools.until(lambda: site.status()["state"] == "RUNNING")
    (top / "last").write_text("the end")
    site.umount()
    site.wipe()
    site.mount()
    assert (top / "file").read_bytes() == content
    assert (top / "renamed").read_text() == "work goes on"
    assert (top / "last").read_text() == "the end"


@pytest.mark.parametrize("fault", cases("also"))
def test_cold_reads(site: Any, proxy: Any, tools: Any, fault: Fault) -> None:
    """They end with EIO, in time; whoever reads can be killed; the same read succeeds afterwards."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    contents = {name: os.urandom(3 * MIB) for name in ("one", "two", "three")}
    for name, content in contents.items():
        (top / name).write_bytes(content)
    site.umount()
    site.wipe()
    site.mount(*IMPATIENT)
    assert (top / "one").read_bytes() == contents["one"]
    assert sorted(path.name for path in top.iterdir() if not path.name.startswith(".")) == sorted(contents)
    with proxy.fault(fault.mode, "GET"):
        reader = subprocess.Popen(["cat", top / "three"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(0.3)
        killed = time.monotonic()
        reader.kill()
        reader.wait(READ_DEADLINE)
        assert time.monotonic() - killed < READ_DEADLINE
        if fault.read:
            assert (top / "two").read_bytes() == contents["two"]
        else:
            result = tools.run("dd", f"if={top}/two", "of=/dev/null", "bs=1M", code=None, timeout=30)
            assert result.returncode == 1
            assert "Input/output error" in result.stderr
        # What is here goes on working, and the state says nothing of a failed save: there was none.
        assert (top / "one").read_bytes() == contents["one"]
        (top / "new").write_text("written meanwhile")
        assert site.status()["state"] == "RUNNING"
    for name, content in contents.items():
        assert (top / name).read_bytes() == content
    site.umount()


@pytest.mark.parametrize("fault", cases("also"))
def test_mounts(site: Any, proxy: Any, fault: Fault) -> None:
    """A mount is refused with the store's code and one sentence, in time, and the next one is not."""
    site.mount(*IMPATIENT)
    (site.mountpoint / "file").write_text("content")
    if fault.mode == "stale":
        with proxy.fault("delay"):  # the proxy remembers the oldest HEAD that it has seen
            site.status(site.url)
    site.umount()
    began = time.monotonic()
    part = {"flipped": "/commits/", "truncated": "/commits/"}.get(fault.mode, "")
    site.wipe()
    with proxy.fault(fault.mode, part=part):
        result = site.mount(*IMPATIENT, code=fault.mount)
        assert time.monotonic() - began < 30
        if fault.mount:
            sentence(result.stderr)
            assert site.status()["state"] == "ERROR"
            assert site.status()["reason"] in result.stderr
    if fault.mount:
        assert proxy.treated or fault.mode == "refuse"
        site.mount()
    assert (site.mountpoint / "file").read_text() == "content"
    site.umount()


APPLIED = ["applied, error", "applied, closed", "applied, no answer"]
OBJECTS = {"HEAD": "/HEAD", "manifest": "/commits/", "segment": "/meta/", "pack": "/packs/"}


@pytest.mark.parametrize("mode", APPLIED if ALL else APPLIED[1:2])
@pytest.mark.parametrize("key", OBJECTS)
def test_done_but_not_told(site: Any, proxy: Any, mode: str, key: str) -> None:
    """The store has done what was asked, and the answer is lost: that is no failure, and nothing is done twice."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    seq = site.status()["seq"]
    content = os.urandom(MIB)
    (top / "file").write_bytes(content)
    with proxy.fault(mode, "PUT", OBJECTS[key], times=1):
        site.wsfs("sync", top)
    assert proxy.treated == 1
    status = site.status()
    assert (status["state"], status["seq"], status["unsaved_files"]) == ("RUNNING", seq + 1, 0)
    site.elsewhere()
    assert (top / "file").read_bytes() == content


@pytest.mark.parametrize("mode", APPLIED if ALL else APPLIED[:1])
def test_done_and_nobody_tells(site: Any, proxy: Any, mode: str) -> None:
    """HEAD was swapped, the answer is lost, and then the store is away: the next save finds out, and so does a mount
    after a crash."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    seq = site.status()["seq"]
    (top / "file").write_text("one")
    with proxy.fault(mode, part="/HEAD"):
        site.wsfs("sync", top, code=11, timeout=40)
        (top / "file").write_text("two")
        (top / "more").write_text("of it")
    site.wsfs("sync", top)
    assert site.status()["seq"] == seq + 2
    (top / "file").write_text("three")
    with proxy.fault(mode, part="/HEAD"):
        site.wsfs("sync", top, code=11, timeout=40)
        site.kill()
    site.mount()
    assert (top / "file").read_text() == "three"
    site.elsewhere()
    assert (top / "file").read_text() == "three"
    assert (top / "more").read_text() == "of it"


def test_a_stale_answer_after_a_lost_one(site: Any, proxy: Any) -> None:
    """HEAD was swapped, the answer is lost, and the store then shows the HEAD of before: nobody is fenced for that."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    (top / "file").write_text("one")
    with proxy.fault("delay", part="/HEAD"):
        site.status(site.url)
    with proxy.fault("applied, closed", "PUT", "/HEAD", times=1):
        pass
    proxy.set(mode="applied, closed", method="PUT", part="/HEAD", times=1)
    result = site.wsfs("sync", top, code=None, timeout=40)
    assert result.returncode in (0, 11)
    with proxy.fault("stale", part="/HEAD"):
        (top / "file").write_text("two")
        result = site.wsfs("sync", top, code=None, timeout=40)
        assert result.returncode in (0, 11)
    assert site.status()["state"] in ("RUNNING", "SYNC_FAILED")
    site.wsfs("sync", top)
    site.elsewhere()
    assert (top / "file").read_text() == "two"


def test_the_mount_takes_the_lease_and_is_not_told(site: Any, proxy: Any) -> None:
    with proxy.fault("applied, closed", "PUT", "/HEAD", times=1):
        site.mount(*IMPATIENT)
    assert proxy.treated == 1
    (site.mountpoint / "file").write_text("x")
    with proxy.fault("applied, closed", "PUT", "/HEAD", times=5):
        site.umount()
    assert site.status(site.url)["state"] == "STOPPED"


def test_a_store_that_hangs_does_not_keep_a_signal_waiting(site: Any, proxy: Any, tools: Any) -> None:
    """SIGTERM while everything hangs: the daemon ends when its requests have, with SYNC_FAILED."""
    site.mount(*IMPATIENT)
    (site.mountpoint / "file").write_bytes(os.urandom(MIB))
    pid = site.pid()
    with proxy.fault("stall response"):
        os.kill(pid, signal.SIGTERM)
        tools.until(lambda: tools.is_gone(pid), 60)
    assert site.status()["state"] == "SYNC_FAILED"
    site.mount()
    assert (site.mountpoint / "file").stat().st_size == MIB


def test_python_only() -> None:
    """The proxy is a program of its own that needs nothing but Python."""
    result = subprocess.run(
        [sys.executable, "-I", Path(__file__).with_name("proxy.py"), "127.0.0.1:9"],
        input="{}\n",
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert result.stdout.splitlines()[1] == "0"
