"""Mount, status, sync and every way to stop, on real mounts served by a stub daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsfs.cli import mounts

if TYPE_CHECKING:
    from tests.cli.conftest import Run

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE"),
]


def state(wsfs: Run, mountpoint: Path) -> dict[str, object]:
    return dict(json.loads(wsfs("status", mountpoint, "--json").stdout))


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_mount_status_sync_umount(wsfs: Run, mountpoint: Path, tmp_path: Path) -> None:
    wsfs("mount", "s3://b/ok", mountpoint, "-o", "nosuid,nodev")
    mount = mounts.find_wsfs(mountpoint)
    assert mount is not None
    assert mount.source == "s3://b/ok"
    assert {"nosuid", "nodev"} <= set(mount.options)
    shown = state(wsfs, mountpoint)
    assert (shown["state"], shown["url"], shown["unsaved_files"]) == ("RUNNING", "s3://b/ok", 3)
    assert shown["mountpoint"] == str(mountpoint)
    text = wsfs("status", "--check").stdout if len(json.loads(wsfs("status", "--json").stdout)) == 1 else ""
    assert not text or "unsaved    3 files, 1.5 kB" in text
    assert "Saved: 3 files, 1.5 kB in 0.2 s. Save point #7." in wsfs("sync", mountpoint).stdout
    assert json.loads(wsfs("sync", mountpoint, "--json").stdout)["requests"] == 4
    assert "mounted already" in wsfs("mount", "s3://b/ok", mountpoint, code=40).stderr
    assert "Saved: 3 files" in wsfs("umount", mountpoint).stdout
    assert mounts.find_wsfs(mountpoint) is None
    assert is_gone(int(str(shown["pid"])))
    assert state(wsfs, mountpoint)["state"] == "STOPPED"
    wsfs("umount", mountpoint, code=42)
    log = tmp_path / "cache" / "daemon.log"
    assert log.stat().st_mode & 0o777 == 0o600


def test_relative_and_linked_mount_points_are_the_same(wsfs: Run, mountpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(mountpoint)
    shown = json.loads(wsfs("mount", "s3://b/ok", tmp_path / "link", "--json").stdout)
    assert (shown["state"], shown["mountpoint"]) == ("RUNNING", str(mountpoint))
    assert state(wsfs, mountpoint)["state"] == "RUNNING"
    wsfs("umount", f"{mountpoint}/")
    assert mounts.find(mountpoint) is None


@pytest.mark.parametrize(
    ("behaviour", "code", "words"),
    [
        ("refuse", 24, "the marker is missing"),
        ("crash", 1, "internal error: KeyError"),
    ],
)
def test_refusal_is_reported_and_remembered(
    wsfs: Run, mountpoint: Path, tmp_path: Path, behaviour: str, code: int, words: str
) -> None:
    result = wsfs("mount", f"s3://b/{behaviour}", mountpoint, code=code)
    assert words in result.stderr
    assert mounts.find(mountpoint) is None
    shown = state(wsfs, mountpoint)
    assert (shown["state"], shown["exit_code"]) == ("ERROR", code)
    assert words in str(shown["reason"])
    wsfs("status", mountpoint, "--check", code=1)
    assert words in (tmp_path / "cache" / "daemon.log").read_text()


def test_daemon_that_dies_at_the_start_is_reported_with_its_last_words(wsfs: Run, mountpoint: Path) -> None:
    result = wsfs("mount", "s3://b/die", mountpoint, code=40)
    assert "ended before the mount answered (exit code 9): last words" in result.stderr


def test_cache_directory_that_cannot_be_used(wsfs: Run, mountpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = wsfs("mount", "s3://b/ok", mountpoint, "--cache-dir", tmp_path / "file", code=60)
    assert "--cache-dir" in result.stderr


def test_log_that_has_grown_makes_way(wsfs: Run, mountpoint: Path, tmp_path: Path) -> None:
    log = tmp_path / "cache" / "daemon.log"
    log.parent.mkdir()
    log.write_bytes(b"x" * (1 << 20) + b"y")
    wsfs("mount", "s3://b/refuse", mountpoint, code=24)
    assert log.stat().st_size < 10_000
    assert log.with_name("daemon.log.1").stat().st_size == (1 << 20) + 1


@pytest.mark.parametrize(("behaviour", "code", "words"), [("busy", 41, "in use by sleep"), ("storedown", 50, "down")])
def test_stop_that_cannot_be_leaves_the_mount(
    wsfs: Run, mountpoint: Path, behaviour: str, code: int, words: str
) -> None:
    wsfs("mount", f"s3://b/{behaviour}", mountpoint)
    assert words in wsfs("umount", mountpoint, code=code).stderr
    helper = wsfs("umount", mountpoint, "-t", "fuse.wsfs", module="wsfs.cli.helpers", code=32)
    assert words in helper.stderr
    assert os.listdir(mountpoint) == []
    assert state(wsfs, mountpoint)["state"] == "RUNNING"


def test_helpers_mount_and_unmount(wsfs: Run, mountpoint: Path) -> None:
    def helper(*arguments: object, code: int = 0) -> str:
        result = wsfs(*arguments, module="wsfs.cli.helpers", code=code)
        return result.stdout + result.stderr

    line = ["mount", "s3://b/ok", mountpoint]
    assert "would mount" in helper(*line, "-f")
    assert mounts.find(mountpoint) is None
    assert "mounted on" in helper(*line, "-v", "-o", "rw,noexec,noauto,_netdev,x-systemd.automount")
    assert mounts.find_wsfs(mountpoint) is not None
    assert "mounted already" in helper(*line, code=32)
    assert "Saved: 3 files" in helper("umount", mountpoint, "-t", "fuse.wsfs")
    assert mounts.find(mountpoint) is None
    assert "no workspace is mounted" in helper("umount", mountpoint, code=32)
    assert "marker" in helper("mount", "s3://b/refuse", mountpoint, code=32)
    assert "expected" in helper("umount", code=1)


@pytest.mark.parametrize("flag", ["-l", "-f"])
def test_forced_unmount_says_what_is_not_saved(wsfs: Run, mountpoint: Path, flag: str) -> None:
    wsfs("mount", "s3://b/busy", mountpoint)
    result = wsfs("umount", mountpoint, flag, module="wsfs.cli.helpers")
    assert "3 files, 1.5 kB not saved yet" in result.stderr
    assert mounts.find(mountpoint) is None


def kill_daemon(wsfs: Run, mountpoint: Path) -> None:
    pid = int(str(state(wsfs, mountpoint)["pid"]))
    os.kill(pid, signal.SIGKILL)
    while not is_gone(pid):
        time.sleep(0.01)
    assert mounts.is_dead(mountpoint)


def test_dead_daemon(wsfs: Run, mountpoint: Path, tmp_path: Path) -> None:
    wsfs("mount", "s3://b/ok", mountpoint)
    kill_daemon(wsfs, mountpoint)
    shown = state(wsfs, mountpoint)
    assert shown["state"] == "ERROR"
    assert f"changes that were not saved stay in {tmp_path}/cache" in str(shown["reason"])
    doctor = wsfs("doctor", mountpoint, code=1).stdout
    assert f"-> mount it again: wsfs mount s3://b/ok {mountpoint} --cache-dir {tmp_path}/cache" in doctor
    assert "wsfs unsaved" not in doctor
    assert "the daemon of" in wsfs("sync", mountpoint, code=50).stderr
    result = wsfs("umount", mountpoint, code=50)
    assert f"stay in {tmp_path}/cache, and the next mount" in result.stderr
    assert mounts.find(mountpoint) is None


def test_mount_takes_a_dead_one_away(wsfs: Run, mountpoint: Path) -> None:
    wsfs("mount", "s3://b/ok", mountpoint)
    kill_daemon(wsfs, mountpoint)
    wsfs("mount", "s3://b/ok", mountpoint)
    assert [mount.mountpoint for mount in mounts.all_mounts()].count(str(mountpoint)) == 1
    wsfs("umount", mountpoint)


def test_living_mount_without_its_socket_is_not_taken_away(wsfs: Run, mountpoint: Path, tmp_path: Path) -> None:
    wsfs("mount", "s3://b/ok", mountpoint)
    elsewhere = str(tmp_path / "elsewhere")
    assert "WSFS_RUNTIME_DIR" in wsfs("umount", mountpoint, code=40, WSFS_RUNTIME_DIR=elsewhere).stderr
    assert mounts.answers(mountpoint)
    wsfs("umount", mountpoint)


def test_next_mount_waits_for_a_daemon_that_still_saves(wsfs: Run, mountpoint: Path) -> None:
    wsfs("mount", "s3://b/ok", mountpoint)
    subprocess.run(["fusermount3", "-u", str(mountpoint)], check=True)
    result = wsfs("mount", "s3://b/ok", mountpoint)
    assert result.stderr in ("", "wsfs: waiting for the previous mount to finish saving\n")
    wsfs("umount", mountpoint)


def test_foreground_tells_systemd(wsfs: Run, mountpoint: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    import socket
    import sys

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        command = [sys.executable, "-m", "wsfs.cli.main", "mount", "--foreground", "s3://b/ok", str(mountpoint)]
        with (tmp_path / "log").open("w") as log:
            daemon = subprocess.Popen(command, env=environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}, stderr=log)
            try:
                assert manager.recv(4096).startswith(b"READY=1\n")
                wsfs("umount", mountpoint)
                assert daemon.wait(60) == 0
            finally:
                daemon.kill()
                daemon.wait()


class TestData:
    """wsfs data: a tmpfs, once."""

    def test_tmpfs(self, wsfs: Run, mountpoint: Path) -> None:
        assert "Mounted a tmpfs of 10%" in wsfs("data", mountpoint, "--size", "10%").stdout
        mount = mounts.find(mountpoint)
        assert mount is not None
        assert mount.fstype == "tmpfs"
        assert {"nosuid", "nodev"} <= set(mount.options)
        assert mountpoint.stat().st_mode & 0o7777 == 0o1777
        assert json.loads(wsfs("data", mountpoint, "--json").stdout) == {"mountpoint": str(mountpoint), "made": False}
        assert "already" in wsfs("data", mountpoint).stdout
        assert [mount.mountpoint for mount in mounts.all_mounts()].count(str(mountpoint)) == 1
        (mountpoint / "x").write_text("x")
        assert "already" in wsfs("data", mountpoint).stdout

    def test_missing_directory_is_made(self, wsfs: Run, mountpoint: Path) -> None:
        mountpoint.rmdir()
        wsfs("data", mountpoint, "--size", "1m")
        assert mounts.find(mountpoint) is not None

    def test_nothing_is_hidden(self, wsfs: Run, mountpoint: Path) -> None:
        (mountpoint / "precious").write_text("x")
        assert "not empty" in wsfs("data", mountpoint, code=40).stderr
        assert mounts.find(mountpoint) is None

    def test_other_mounts_are_refused(self, wsfs: Run, mountpoint: Path) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700,nosuid,nodev", "x", mountpoint], check=True)
        assert "other options" in wsfs("data", mountpoint, code=40).stderr
        subprocess.run(["umount", mountpoint], check=True)
        wsfs("mount", "s3://b/ok", mountpoint)
        assert "fuse.wsfs" in wsfs("data", mountpoint, code=40).stderr
