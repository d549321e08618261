"""Every way to stop saves everything, and says so; what cannot stop stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site, Tree

MIB = 1 << 20


def fill(site: Site, size: int = 24 * MIB) -> None:
    """Some files and a big one, the last bytes written just now and still in the kernel."""
    top = site.mountpoint
    for number in range(200):
        path = top / f"d{number % 5}" / f"file{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(number * 37))
    os.symlink("d1/file1", top / "link")
    with (top / "big").open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))


def by_command(site: Site, tools: type[Helpers]) -> None:
    assert site.umount().stdout.startswith("Saved: ")


def by_umount(site: Site, tools: type[Helpers]) -> None:
    site.run("umount", site.mountpoint, cwd="/")


def by_umount_of_a_relative_path(site: Site, tools: type[Helpers]) -> None:
    site.run("umount", site.mountpoint.name, cwd=site.mountpoint.parent)


def by_fusermount(site: Site, tools: type[Helpers]) -> None:
    pid = site.pid()
    tools.run("fusermount3", "-u", site.mountpoint)
    tools.until(lambda: tools.is_gone(pid))


def by_lazy_umount(site: Site, tools: type[Helpers]) -> None:
    pid = site.pid()
    tools.run("umount", "-i", "-l", site.mountpoint)
    tools.until(lambda: tools.is_gone(pid))


def by_signal(number: signal.Signals) -> Callable[[Site, type[Helpers]], None]:
    def stop(site: Site, tools: type[Helpers]) -> None:
        pid = site.pid()
        os.kill(pid, number)
        tools.until(lambda: tools.is_gone(pid))

    return stop


WAYS = [
    pytest.param(by_command, id="command"),
    pytest.param(by_umount, id="umount"),
    pytest.param(by_umount_of_a_relative_path, id="umount-relative", marks=pytest.mark.long),
    pytest.param(by_fusermount, id="fusermount"),
    pytest.param(by_lazy_umount, id="lazy"),
    pytest.param(by_signal(signal.SIGTERM), id="sigterm"),
    pytest.param(by_signal(signal.SIGINT), id="sigint", marks=pytest.mark.long),
]


@pytest.mark.parametrize("stop", WAYS)
@pytest.mark.usefixtures("mount_helpers")
def test_a_stop_saves_everything(
    workspace: Site, tools: type[Helpers], tree: type[Tree], stop: Callable[[Site, type[Helpers]], None]
) -> None:
    """Written a moment ago, then a stop of each kind: another host sees all of it, and the state is STOPPED."""
    workspace.pid()
    fill(workspace)
    before = tree.of(workspace.mountpoint)
    (workspace.mountpoint / "last").write_text("written, and at once the stop")
    stop(workspace, tools)
    assert not tools.is_mounted(workspace.mountpoint)
    assert workspace.status(workspace.url)["state"] == "STOPPED"
    assert workspace.status()["state"] == "STOPPED"
    workspace.wipe()
    workspace.mount()
    assert (workspace.mountpoint / "last").read_text() == "written, and at once the stop"
    (workspace.mountpoint / "last").unlink()
    found = tree.of(workspace.mountpoint)
    for facts in (found[b""], before[b""]):
        del facts["mtime"], facts["ctime"]
    assert found == before


@pytest.mark.parametrize("site", ["moto"], indirect=True)
@pytest.mark.parametrize("same_cache", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_next_mount_waits(
    workspace: Site, tools: type[Helpers], tree: type[Tree], tmp_path: Path, *, same_cache: bool
) -> None:
    """fusermount3 -u cannot wait for the last save; the next mount does, with the same cache and with another."""
    fill(workspace)
    before = tree.of(workspace.mountpoint)
    pid = workspace.pid()
    with workspace.server.slow("PUT", "/packs/", 2.0):
        tools.run("fusermount3", "-u", workspace.mountpoint)
        if not same_cache:
            workspace.cache = tmp_path / "other-cache"
        workspace.mount()
    assert tools.is_gone(pid)
    assert tree.of(workspace.mountpoint) == before


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_a_mount_point_elsewhere_waits_too(
    workspace: Site, tools: type[Helpers], tree: type[Tree], tmp_path: Path
) -> None:
    """As it would on another host: it knows only what HEAD says, and says what it waits for."""
    fill(workspace)
    before = tree.of(workspace.mountpoint)
    with workspace.server.slow("PUT", "/packs/", 6.0):  # longer than a mount waits for one that only runs
        tools.run("fusermount3", "-u", workspace.mountpoint)
        workspace.mountpoint = tmp_path / "elsewhere"
        workspace.mountpoint.mkdir()
        workspace.cache = tmp_path / "elsewhere-cache"
        workspace.mount()
    assert "still saving" in workspace.log()
    assert tree.of(workspace.mountpoint) == before


@pytest.mark.usefixtures("mount_helpers")
def test_a_busy_mount_stays(workspace: Site, tools: type[Helpers], tmp_path: Path) -> None:
    """While a program uses it, umount fails and says so, the mount works on, and everything is saved already."""
    path = workspace.mountpoint / "file"
    path.write_text("saved")
    with path.open() as user:
        assert "is in use" in workspace.umount(code=41).stderr
        result = workspace.run("umount", workspace.mountpoint, code=32, cwd="/")
        assert "is in use" in result.stderr
        assert workspace.status()["state"] == "RUNNING"
        assert workspace.status()["unsaved_files"] == 0
        assert user.read() == "saved"
        second = tmp_path / "second"
        second.mkdir()
        workspace.mount("-o", "ro", where=second, cache=tmp_path / "second-cache")
        assert (second / "file").read_text() == "saved"
        workspace.wsfs("umount", second)
        (workspace.mountpoint / "more").write_text("and on")
    workspace.umount()
    workspace.wipe()
    workspace.mount()
    assert (workspace.mountpoint / "more").read_text() == "and on"


def test_a_signal_stops_a_busy_mount(workspace: Site, tools: type[Helpers]) -> None:
    """SIGTERM ends a mount that is in use: what was written before it is saved, the user's handle is dead."""
    path = workspace.mountpoint / "file"
    pid = workspace.pid()
    program = subprocess.Popen(["sleep", "1000"], cwd=workspace.mountpoint)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"x" * MIB)
    os.kill(pid, signal.SIGTERM)
    tools.until(lambda: tools.is_gone(pid))
    with pytest.raises(OSError, match="not connected"):
        os.fsync(descriptor)
    with contextlib.suppress(OSError):
        os.close(descriptor)
    program.kill()
    program.wait()
    assert workspace.status(workspace.url)["state"] == "STOPPED"
    assert not tools.is_mounted(workspace.mountpoint)
    workspace.wipe()
    workspace.mount()
    assert path.read_bytes() == b"x" * MIB


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_signals_during_the_last_save(workspace: Site, tools: type[Helpers], tree: type[Tree]) -> None:
    """Impatient people send SIGTERM again and again: the save goes on to its end."""
    fill(workspace)
    before = tree.of(workspace.mountpoint)
    pid = workspace.pid()
    with workspace.server.slow("PUT", "/packs/", 2.0):
        for _ in range(8):
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.2)  # spread over the stop, whatever it does at the moment
        tools.until(lambda: tools.is_gone(pid))
    assert workspace.status(workspace.url)["state"] == "STOPPED"
    workspace.wipe()
    workspace.mount()
    assert tree.of(workspace.mountpoint) == before


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_work_goes_on_during_a_save(workspace: Site, tools: type[Helpers]) -> None:
    """While a sync uploads, programs read and write; it saves one point in time, and the stop saves the rest."""
    top = workspace.mountpoint
    (top / "counter").write_text("0")
    (top / "big").write_bytes(os.urandom(20 * MIB))
    words, environ = workspace.command("sync", top)
    with workspace.server.held("PUT", "/packs/"):
        syncing = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL)
        workspace.server.requests()
        tools.until(lambda: any("/packs/" in key for _, key, _ in workspace.server.requests()))
        for number in range(1, 50):
            (top / "counter").write_text(str(number))
            (top / f"during{number}").write_text("x")
        with (top / "big").open("r+b") as file:
            file.write(b"changed while it is saved")
        assert (top / "counter").read_text() == "49"
        assert syncing.poll() is None
    assert syncing.wait(60) == 0
    saved = top.parent / "saved"
    saved.mkdir()
    workspace.mount("-o", "ro", where=saved, cache=top.parent / "saved-cache")
    assert (saved / "counter").read_text() == "0"
    assert not (saved / "during1").exists()
    with (saved / "big").open("rb") as file:
        assert file.read(25) != b"changed while it is saved"
    workspace.wsfs("umount", saved)
    workspace.elsewhere()
    assert (top / "counter").read_text() == "49"
    assert len(list(top.glob("during*"))) == 49
    with (top / "big").open("rb") as file:
        assert file.read(25) == b"changed while it is saved"


def test_a_store_that_is_away_at_the_stop(workspace: Site, tools: type[Helpers]) -> None:
    """umount fails, nothing is lost, the mount works on; once the store is back the same command succeeds."""
    path = workspace.mountpoint / "file"
    path.write_bytes(b"x" * MIB)
    workspace.store.rename(workspace.store.with_name("away"))
    workspace.store.write_text("not a directory")
    result = workspace.umount(code=50)
    assert "still mounted" in result.stderr
    status = workspace.status()
    assert status["state"] == "SYNC_FAILED"
    assert status["unsaved_files"] > 0
    assert path.read_bytes() == b"x" * MIB
    path.write_bytes(b"y" * MIB)
    workspace.store.unlink()
    workspace.store.with_name("away").rename(workspace.store)
    workspace.elsewhere()
    assert path.read_bytes() == b"y" * MIB


def test_parallel_commands(workspace: Site) -> None:
    """Two syncs and an umount at the same time all succeed, or find the mount gone."""
    fill(workspace, 4 * MIB)
    running: list[tuple[str, subprocess.Popen[Any]]] = []
    for name in ("sync", "sync", "umount"):
        words, environ = workspace.command(name, workspace.mountpoint)
        running.append((name, subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL)))
    codes = [(name, process.wait(60)) for name, process in running]
    assert ("umount", 0) in codes or codes[-1] == ("umount", 41)  # a sync looks at the mount: it may be in use
    assert all(code in (0, 41, 42) for _, code in codes), codes


def test_a_signal_while_the_store_is_away(workspace: Site, tools: type[Helpers]) -> None:
    """SIGTERM ends the daemon all the same: the state is SYNC_FAILED, and the next mount with this cache saves it."""
    path = workspace.mountpoint / "file"
    path.write_bytes(b"x" * MIB)
    pid = workspace.pid()
    workspace.store.rename(workspace.store.with_name("away"))
    workspace.store.write_text("not a directory")
    os.kill(pid, signal.SIGTERM)
    tools.until(lambda: tools.is_gone(pid))
    assert not tools.is_mounted(workspace.mountpoint)
    status = workspace.status()
    assert status["state"] == "SYNC_FAILED"
    assert str(workspace.cache) in status["reason"]
    workspace.mount(code=None)
    assert not tools.is_mounted(workspace.mountpoint)
    workspace.store.unlink()
    workspace.store.with_name("away").rename(workspace.store)
    workspace.mount()
    assert path.read_bytes() == b"x" * MIB
    workspace.elsewhere()
    assert path.read_bytes() == b"x" * MIB
