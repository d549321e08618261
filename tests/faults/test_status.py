"""What `wsfs status` says is true: of the last save, whoever made it, and of a mount that says nothing itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HOUR = 3600
MIB = 1 << 20


def test_the_last_save_is_that_of_the_newest_commit(tmp_path: Path, new_site: Callable[[Path, str], Any]) -> None:
    """Neither a mount nor a save that had nothing to do is one."""
    site = new_site(tmp_path, "directory").init()
    head = site.store / "HEAD"
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3 * HOUR))
    head.write_text(json.dumps(json.loads(head.read_text()) | {"saved_at": before}, sort_keys=True))
    try:
        site.mount()
        for _ in range(2):
            status = site.status()
            assert status["last_save"] == before
            assert 3 * HOUR <= status["last_save_age"] < 4 * HOUR
            assert f"last save  {before}, " in site.wsfs("status", site.mountpoint).stdout
            site.wsfs("sync", site.mountpoint)
        (site.mountpoint / "file").write_text("x")
        site.wsfs("sync", site.mountpoint)
        assert site.status()["last_save"] > before
        assert site.status()["last_save_age"] < HOUR
        site.umount()
    finally:
        site.finish()


@pytest.mark.parametrize("where", [pytest.param("at its socket", marks=pytest.mark.long), "in the kernel"])
def test_a_mount_that_does_not_answer_keeps_no_one_waiting(site: Any, tmp_path: Path, where: str) -> None:
    """One daemon hangs: that is said soon, and of all other mounts how they are. Without its socket (the commands look
    for that in another directory) there is only the mount itself to ask."""
    site.mount()
    other = tmp_path / "other"
    other.mkdir()
    site.mount("-o", "ro", where=other, cache=tmp_path / "cache of the other")
    if where == "in the kernel":
        site.environ["WSFS_RUNTIME_DIR"] = str(tmp_path / "nothing here")
    pid = site.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        listed = json.loads(site.wsfs("status", "--json", timeout=60).stdout)
        one = site.status()
    finally:
        os.kill(pid, signal.SIGCONT)
        site.environ["WSFS_RUNTIME_DIR"] = str(tmp_path / "run")
    states = {found["mountpoint"]: found["state"] for found in listed}
    assert (states[str(site.mountpoint)], states[str(other)]) == ("ERROR", "RUNNING")
    assert one["state"] == "ERROR"
    assert "did not answer within" in one["reason"]
    assert "kill -9" in one["reason"]
    assert site.status()["state"] == "RUNNING"
    site.wsfs("umount", other)


_IMPATIENT = """
import wsfs.cli.daemon, wsfs.cli.mounts, wsfs.cli.main
wsfs.cli.daemon.SILENCE_SECONDS = wsfs.cli.mounts.ANSWER_SECONDS = 1
wsfs.cli.main.run()
"""


@pytest.mark.parametrize(
    "command", ["sync", *(pytest.param(other, marks=pytest.mark.long) for other in ("umount", "unsaved", "log"))]
)
def test_a_command_does_not_hang_with_the_daemon(site: Any, command: str) -> None:
    """It says what to do, and nothing is lost: the daemon does its work once it goes on."""
    site.mount()
    (site.mountpoint / "file").write_text("x")
    pid = site.pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        words = [sys.executable, "-P", "-c", _IMPATIENT, command, site.mountpoint]
        done = site.run(*words, code=1, cwd=site.base, timeout=60)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert done.stderr.startswith("wsfs: the daemon did not answer within 1 s. If that stays so, end its process")
    assert (site.mountpoint / "file").read_text() == "x"
    site.umount()


def test_a_mount_says_what_the_one_before_has_kept_elsewhere(site: Any, proxy: Any, tmp_path: Path) -> None:
    """A stop that ran out of time, then a mount with another cache: at the mount, in the log, and for as long as it
    lives. The one with the cache that has it all says nothing."""
    elsewhere = tmp_path / "another cache"
    site.mount()
    (site.mountpoint / "thesis").write_bytes(os.urandom(5 * MIB))
    with proxy.fault("500", method="PUT", part="/packs/"):
        told = site.wsfs("umount", site.mountpoint, "--deadline", "3s", code=3).stderr
    where = f"stays in {site.cache} on {socket.gethostname()}"
    assert where in told
    assert where in site.status(site.url)["reason"]
    # Names have lines of their own where people read them; the log has them in one.
    assert "saves it: thesis" in site.log()
    assert r"\n" not in site.log()
    shown = site.wsfs("status", site.mountpoint).stdout
    assert r"\n" not in shown
    assert "saves it:\n               thesis\n" in shown
    said = site.mount(cache=elsewhere).stderr
    for text in (said, site.log(elsewhere), site.status()["notice"], site.wsfs("status", site.mountpoint).stdout):
        assert "files are missing here" in text
        assert where in text
    assert not (site.mountpoint / "thesis").exists()
    site.umount()
    said = site.mount().stderr
    assert "missing" not in said
    assert (site.mountpoint / "thesis").stat().st_size == 5 * MIB
    assert site.status()["notice"] == ""


def test_a_mount_says_that_the_one_before_has_died_elsewhere(site: Any, tmp_path: Path) -> None:
    """Nobody knows what that had: so something may be missing, unless it is this cache that has it."""
    elsewhere = tmp_path / "another cache"
    site.mount()
    (site.mountpoint / "file").write_text("x")
    site.kill()
    said = site.mount(cache=elsewhere).stderr
    for text in (said, site.log(elsewhere), site.status()["notice"]):
        assert "files may be missing here, for the mount before did not end in order: what it had not saved" in text
        assert f" is in its cache directory on {socket.gethostname()} (process " in text
    site.umount()
    said = site.mount().stderr
    assert "missing" not in said
    assert (site.mountpoint / "file").read_text() == "x"
    site.kill()
    assert "missing" not in site.mount().stderr
