"""What a user is told: how long a stop would take, what is not saved and why, how far a save is, and the states."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

MIB = 1 << 20
REPOSITORY = Path(__file__).parents[2]
ACCOUNT = {"state", "direction", "total", "processed", "completed", "skipped", "failed", "transferredBytes"}
moto = pytest.mark.parametrize("site", ["moto"], indirect=True)


def test_the_forecast(workspace: Site) -> None:
    """More to save takes longer, and a stop with nothing unsaved takes a moment; the sentence has the numbers."""
    workspace.wsfs("sync", workspace.mountpoint)
    quiet = workspace.status()
    assert (quiet["unsaved_files"], quiet["unsaved_bytes"], quiet["unsaved_packs"]) == (0, 0, 0)
    assert 0.3 <= quiet["stop_seconds"] < 1.5
    (workspace.mountpoint / "big").write_bytes(os.urandom(40 * MIB))
    busy = workspace.status()
    assert busy["unsaved_packs"] == 3
    assert busy["stop_seconds"] > quiet["stop_seconds"]
    text = workspace.wsfs("status", workspace.mountpoint).stdout
    # The last save is the making of the workspace, which all tests of a run copy: minutes ago, perhaps.
    assert re.search(
        r"stopping now takes about [\d.]+ s: 41\.9 MB in 3 packs unsaved; last save [\d.]+ (s|min) ago\n", text
    )
    workspace.wsfs("sync", workspace.mountpoint)
    assert json.loads((workspace.cache / "pace.json").read_text())["rate"] > 0
    assert "everything is saved; last save" in workspace.wsfs("status", workspace.mountpoint).stdout


def test_which_workspace_is_meant(workspace: Site, tools: Helpers, tmp_path: Path) -> None:
    """That around the current directory, as for git; else there must be only one. So for every command that asks."""
    url, other = f"{workspace.url}-other", tmp_path / "other"
    other.mkdir()
    workspace.wsfs("init", url)
    workspace.wsfs("mount", url, other, cache=tmp_path / "cache of the other")
    (other / "directory").mkdir()
    (tmp_path / "picture").write_text("x")
    words, environ = workspace.command("unsaved")
    assert "  directory\n" in tools.run(*words, env=environ, cwd=other / "directory").stdout
    tools.run(*words[:-1], "keep", tmp_path / "picture", env=environ, cwd=other / "directory")
    assert (other / "picture").read_text() == "x"
    assert "Saved: " in tools.run(*words[:-1], "sync", env=environ, cwd=other).stdout
    assert workspace.status(other)["unsaved_files"] == 0
    answer = workspace.wsfs("sync", code=2).stderr
    assert "several workspaces are mounted here: name one of " in answer
    workspace.wsfs("umount", other)


def test_what_is_not_saved_and_why(workspace: Site) -> None:
    """Oldest first; changing, waiting, and failing with the store's error; then nothing."""
    top = workspace.mountpoint

    def unsaved() -> dict[str, dict[str, Any]]:
        answer = json.loads(workspace.wsfs("unsaved", top, "--json").stdout)
        assert answer["total"] == len(answer["files"])
        ages = [one["age"] for one in answer["files"]]
        assert ages == sorted(ages, reverse=True)
        return {one["path"]: one for one in answer["files"]}

    (top / "first").write_bytes(b"x" * 5000)
    time.sleep(5.5)  # for as long a file counts as changing
    (top / "d").mkdir()
    (top / "d" / "second").write_text("y")
    found = unsaved()
    assert (found["first"]["state"], found["first"]["size"]) == ("waiting", 5000)
    assert found["first"]["reason"] == "it is saved at sync and stop"
    assert found["d/second"]["state"] == "changing"
    text = workspace.wsfs("unsaved", top, "--limit", 1).stdout.splitlines()
    assert text[0].split()[-1] == "first"
    assert "more: --limit" in text[1]
    workspace.store.rename(workspace.store.with_name("away"))
    workspace.store.write_text("not a directory")
    error = workspace.wsfs("sync", top, code=None).stderr
    found = unsaved()
    assert found["first"]["state"] == found["d/second"]["state"] == "failing"
    assert found["first"]["reason"] in error
    assert "The last save failed: " in workspace.wsfs("unsaved", top).stdout
    assert "the last save failed" in workspace.wsfs("status", top).stdout
    workspace.store.unlink()
    workspace.store.with_name("away").rename(workspace.store)
    workspace.wsfs("sync", top)
    assert unsaved() == {}
    assert workspace.wsfs("unsaved", top).stdout == "Everything is saved.\n"
    assert "no workspace is mounted" in workspace.wsfs("unsaved", workspace.base, code=42).stderr


@moto
def test_the_states_as_another_host_sees_them(site: Site, tools: type[Helpers]) -> None:
    """STARTING, RUNNING, SYNC_FAILED with its reason, RUNNING again, STOPPING, STOPPED, each in HEAD."""

    def state() -> str:
        return str(site.status(site.url)["state"])

    assert state() == "STOPPED"
    words, environ = site.command("mount", site.url, site.mountpoint, "--save-interval", "0")
    with site.server.held("GET", "/meta/"):
        mounting = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        tools.until(lambda: state() == "STARTING")
    assert mounting.wait(60) == 0
    site.pid()
    tools.until(lambda: state() == "RUNNING")
    (site.mountpoint / "big").write_bytes(os.urandom(20 * MIB))
    words, environ = site.command("umount", site.mountpoint)
    with site.server.held("PUT", "/packs/"):
        stopping = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL)
        tools.until(lambda: state() == "STOPPING")
        assert stopping.poll() is None
    assert stopping.wait(60) == 0
    assert state() == "STOPPED"


def test_a_save_that_failed_is_known_elsewhere_when_the_store_is_back(workspace: Site, tools: type[Helpers]) -> None:
    """Packs cannot be written, HEAD can: others see SYNC_FAILED and why, until a save works again."""
    (workspace.mountpoint / "file").write_bytes(os.urandom(MIB))
    packs = workspace.store / "packs"
    packs.write_text("in the way")
    workspace.wsfs("sync", workspace.mountpoint, code=None)
    seen = tools.until(lambda: (found := workspace.status(workspace.url))["state"] == "SYNC_FAILED" and found)
    assert seen["reason"]
    assert seen["reason"] == workspace.status()["reason"]
    packs.unlink()
    workspace.wsfs("sync", workspace.mountpoint)
    seen = workspace.status(workspace.url)
    assert (seen["state"], seen["reason"]) == ("RUNNING", "")


@moto
def test_a_terminal_shows_a_bar_and_a_pipe_lines(workspace: Site) -> None:
    """Files, bytes and the time that is left; at the end one sentence with the save point."""
    for number in range(20):
        (workspace.mountpoint / f"file{number}").write_bytes(os.urandom(MIB))
    words, environ = workspace.command("sync", workspace.mountpoint)
    with workspace.server.slow("PUT", "/packs/", 2.0):
        leader, follower = pty.openpty()
        process = subprocess.Popen(words, env=environ | {"TERM": "xterm"}, stdout=follower, stderr=follower)
        os.close(follower)
        shown = b""
        while True:
            try:
                chunk = os.read(leader, 4096)
            except OSError:  # the other end is closed
                break
            shown += chunk
        os.close(leader)
        assert process.wait() == 0
    assert b"Saving" in shown
    assert re.search(rb"\d+ of 21 files, [\d.]+ (B|MB) of 21\.0 MB", shown)
    last = shown.decode().splitlines()[-1]
    assert re.search(r"Saved: 21 files, 21\.0 MB in [\d.]+ s\. Save point \S+Z #\d+\.", last)

    (workspace.mountpoint / "more").write_bytes(os.urandom(MIB))
    with workspace.server.slow("PUT", "/packs/", 6.0):
        result = workspace.umount()
    assert re.search(r"^wsfs: saving: \d of 2 files, 0 B of 1\.0 MB", result.stderr)
    assert len(result.stderr.splitlines()) <= 3
    assert result.stdout.startswith("Saved: 2 files, 1.0 MB in ")


def test_accounts_as_json(workspace: Site) -> None:
    (workspace.mountpoint / "file").write_text("x" * 5000)
    answer = json.loads(workspace.wsfs("sync", workspace.mountpoint, "--json").stdout)
    assert set(answer) >= ACCOUNT
    assert (answer["state"], answer["direction"]) == ("RUNNING", "upload")
    assert answer["total"] == answer["processed"] == answer["completed"] == answer["files"] == 2
    assert answer["transferredBytes"] == answer["sent"] > 0
    answer = json.loads(workspace.umount("--json").stdout)
    assert set(answer) >= ACCOUNT
    assert (answer["state"], answer["total"], answer["failed"]) == ("STOPPED", 0, 0)


def test_every_field_is_documented(workspace: Site) -> None:
    """What the commands print today is in docs/JSON.md."""
    (workspace.mountpoint / "file").write_text("x" * 5000)
    documented = set(re.findall(r"`(\w+)`", (REPOSITORY / "docs" / "JSON.md").read_text()))
    for words in (["unsaved"], ["sync"], ["status"], ["status", workspace.url], ["umount"]):
        place = [] if len(words) > 1 else [workspace.mountpoint]
        answer = json.loads(workspace.wsfs(*words, *place, "--json").stdout)
        fields = (
            {*answer, *(name for one in answer.get("files", []) for name in one)} if "unsaved" in words else {*answer}
        )
        assert fields - {"ok"} <= documented


def test_a_signal_while_nothing_can_be_saved_is_known_elsewhere(workspace: Site, tools: type[Helpers]) -> None:
    """Packs cannot be written, HEAD can: the mount goes, and any host reads that something is missing, and where."""
    (workspace.mountpoint / "file").write_bytes(os.urandom(MIB))
    (workspace.store / "packs").write_text("in the way")
    pid = workspace.pid()
    os.kill(pid, signal.SIGTERM)
    tools.until(lambda: tools.is_gone(pid))
    seen = workspace.status(workspace.url)
    assert seen["state"] == "SYNC_FAILED"
    assert str(workspace.cache) in seen["reason"]
    (workspace.store / "packs").unlink()
    workspace.mount()
    workspace.umount()
    assert workspace.status(workspace.url)["state"] == "STOPPED"
