"""A notebook's turn: start, work, keep what /data has, stop; with the warnings and refusals on the way."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

MIB = 1 << 20


@pytest.fixture
def scratch(site: Site, tools: type[Helpers]) -> Iterator[Path]:
    """Where this test's tmpfs goes."""
    where = site.base / "data"
    yield where
    while tools.is_mounted(where):
        subprocess.run(["umount", "-l", where], check=True)


@pytest.fixture
def started(site: Site, scratch: Path) -> Site:
    """A workspace after `wsfs start`."""
    site.mountpoint.rmdir()
    words = ["--data", scratch, "--data-size", "64m", "-o", "save_interval=0"]
    text = site.wsfs("start", site.url, site.mountpoint, *words).stdout
    assert text.startswith(f"Started: {site.url} on {site.mountpoint} (2 files, ")
    site.pid()
    return site


def test_the_whole_turn(started: Site, scratch: Path, tools: type[Helpers]) -> None:
    """Both are mounted; what would be lost is named at the stop; what was kept is there the next time."""
    (started.mountpoint / "note").write_text("kept in the workspace")
    (started.mountpoint / ".wsfsignore").write_text("local\n")
    (started.mountpoint / "local").write_text("here only")
    assert os.stat(scratch).st_mode & 0o7777 == 0o1777
    (scratch / "large").write_bytes(bytes(3 * MIB))
    (scratch / "new").write_text("x")
    (scratch / "dir").mkdir()
    (scratch / "dir" / "model").write_text("weights")
    assert "Kept: 1 file, 7 B at " in started.wsfs("keep", scratch / "dir", f"{started.mountpoint}/").stdout
    result = started.wsfs("stop", started.mountpoint, "--data", scratch)
    assert f"{scratch} holds 3 files, 3.1 MB, which a stop loses" in result.stderr
    assert f"{scratch}/large" in result.stderr.splitlines()[1]
    assert f"wsfs keep {scratch}/large" in result.stderr
    assert "wsfs: 9 B in 1 file stays on this machine (.wsfsignore): no other machine has that" in result.stderr
    assert result.stdout.startswith("Saved: ")
    assert not tools.is_mounted(scratch)
    assert not tools.is_mounted(started.mountpoint)
    assert started.status(started.url)["state"] == "STOPPED"
    started.wipe()
    started.mount()
    assert (started.mountpoint / "dir" / "model").read_text() == "weights"
    assert (started.mountpoint / "note").read_text() == "kept in the workspace"


def test_stop_as_json_and_a_tmpfs_that_stays(started: Site, scratch: Path, tools: type[Helpers]) -> None:
    (scratch / "x").write_text("12345")
    result = started.wsfs("stop", started.mountpoint, "--data", scratch, "--keep-data", "--json")
    assert json.loads(result.stdout)["data"] is None
    assert result.stderr == ""
    assert (scratch / "x").read_text() == "12345"
    started.wsfs("start", started.url, started.mountpoint, "--data", scratch, "-o", "save_interval=0")
    assert (scratch / "x").read_text() == "12345"
    result = started.wsfs("stop", started.mountpoint, "--data", scratch, "--json")
    answer = json.loads(result.stdout)
    assert answer["data"] == {"mountpoint": str(scratch), "files": 1, "bytes": 5}
    assert answer["state"] == "STOPPED"
    assert not tools.is_mounted(scratch)


def on_a_terminal(site: Site, answer: bytes, *arguments: object) -> tuple[int, str]:
    """Run a command on a terminal and type an answer: its exit code, and what was shown."""
    words, environ = site.command(*arguments)
    leader, follower = pty.openpty()
    process = subprocess.Popen(words, env=environ, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    os.write(leader, answer)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while chunk := os.read(leader, 4096):
            shown += chunk
    os.close(leader)
    return process.wait(), shown.decode()


def test_a_terminal_is_asked(started: Site, scratch: Path, tools: type[Helpers]) -> None:
    (scratch / "precious").write_text("x")
    words = ("stop", started.mountpoint, "--data", scratch)
    code, shown = on_a_terminal(started, b"n\n", *words)
    assert (code, "Nothing was stopped." in shown) == (1, True)
    assert (scratch / "precious").exists()
    assert started.status()["state"] == "RUNNING"
    code, shown = on_a_terminal(started, b"y\n", *words)
    assert (code, "Saved: " in shown) == (0, True)
    assert not tools.is_mounted(scratch)


def test_a_stop_that_cannot_save_leaves_both(started: Site, scratch: Path) -> None:
    """And as JSON it says how much is not saved."""
    (started.mountpoint / "file").write_bytes(os.urandom(MIB))
    (started.store / "packs").write_text("in the way")
    result = started.wsfs("stop", started.mountpoint, "--data", scratch, "--json", code=50)
    answer = json.loads(result.stdout)
    assert (answer["state"], answer["failed"], answer["exit_code"]) == ("SYNC_FAILED", 2, 50)
    assert "try again" in answer["error"]
    assert answer["error"] in result.stderr
    (scratch / "still").write_text("here")
    assert started.status()["state"] == "SYNC_FAILED"
    (started.store / "packs").unlink()
    started.wsfs("stop", started.mountpoint, "--data", scratch, "--yes")
    assert started.status(started.url)["state"] == "STOPPED"


def test_a_stop_that_is_late_ends_both_and_says_so_elsewhere(
    started: Site, scratch: Path, tools: type[Helpers]
) -> None:
    """Exit code 3, and SYNC_FAILED in HEAD, which any host can read."""
    (started.mountpoint / "file").write_bytes(os.urandom(MIB))
    (started.store / "packs").write_text("in the way")
    started.wsfs("stop", started.mountpoint, "--data", scratch, "--deadline", "2s", code=3)
    assert not tools.is_mounted(scratch)
    assert not tools.is_mounted(started.mountpoint)
    seen = started.status(started.url)
    assert seen["state"] == "SYNC_FAILED"
    assert "could not be saved" in seen["reason"]
    (started.store / "packs").unlink()


def test_a_tmpfs_in_use(started: Site, scratch: Path) -> None:
    with (scratch / "open").open("w"):
        result = started.wsfs("stop", started.mountpoint, "--data", scratch, code=41)
    assert "the workspace is stopped" in result.stderr
    assert started.status(started.url)["state"] == "STOPPED"


def test_a_start_that_is_refused_takes_the_tmpfs_away(site: Site, scratch: Path, tools: type[Helpers]) -> None:
    result = site.wsfs("start", f"{site.url}-none", site.mountpoint, "--data", scratch, code=20)
    assert "no workspace" in result.stderr
    assert not tools.is_mounted(scratch)
    assert "no workspace is mounted" in site.wsfs("stop", site.mountpoint, "--data", scratch, code=42).stderr


class TestKeep:
    """A copy that is whole or not there, and like what it was made of."""

    def test_a_tree(self, workspace: Site, tree: type, tmp_path: Path) -> None:
        source = tmp_path / "job"
        (source / "sub").mkdir(parents=True)
        (source / "sub" / "data").write_bytes(os.urandom(3 * MIB))
        (source / "sub" / "empty").touch()
        os.symlink("sub/data", source / "link")
        os.chmod(source / "sub" / "data", 0o4750)
        os.chown(source / "sub" / "empty", 1234, 4321)
        os.utime(source / "sub" / "data", ns=(1_000_000_001, 2_000_000_002))
        os.utime(source / "sub", ns=(3_000_000_003, 4_000_000_004))
        os.mkfifo(source / "fifo")
        result = workspace.wsfs("keep", source, workspace.mountpoint / "kept", "--json")
        answer = json.loads(result.stdout)
        assert (answer["files"], answer["bytes"]) == (2, 3 * MIB)
        assert answer["skipped"] == [f"{source}/fifo"]
        (source / "fifo").unlink()
        os.utime(source, ns=(1, 1))
        os.utime(workspace.mountpoint / "kept", ns=(1, 1))
        kept, made = tree.of(workspace.mountpoint / "kept", inodes=False), tree.of(source, inodes=False)
        for facts in (*kept.values(), *made.values()):
            facts.pop("nlink")
            facts.pop("atime", None)  # reading the original has changed it
        assert kept == made

    def test_what_is_there_stays_without_force(self, workspace: Site, tmp_path: Path) -> None:
        top = workspace.mountpoint
        (tmp_path / "x").write_text("new")
        (top / "x").mkdir()
        (top / "x" / "old").write_text("old")
        result = workspace.wsfs("keep", tmp_path / "x", top / "x", code=2)
        assert "--force" in result.stderr
        assert (top / "x" / "old").read_text() == "old"
        workspace.wsfs("keep", tmp_path / "x", top / "x", "--force")
        assert (top / "x").read_text() == "new"
        assert sorted(os.listdir(top)) == [".workspace.initialized", "x"]

    def test_a_copy_that_fails_leaves_nothing(self, workspace: Site, tmp_path: Path) -> None:
        """The second file is too large: neither the first one nor half of it is there."""
        top = workspace.mountpoint
        (tmp_path / "job").mkdir()
        (tmp_path / "job" / "a").write_text("fine")
        (tmp_path / "job" / "b").write_bytes(b"x" * MIB)
        (top / "job").write_text("old")
        words, environ = workspace.command("keep", tmp_path / "job", top / "job", "--force")
        limited = ["prlimit", "--fsize=500000", *words]
        done = subprocess.run(limited, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "job/b" in done.stderr
        assert "is as it was" in done.stderr
        assert (top / "job").read_text() == "old"
        assert sorted(os.listdir(top)) == [".workspace.initialized", "job"]

    def test_directories_on_the_way_are_made(self, workspace: Site, tmp_path: Path) -> None:
        """As by 'mkdir -p'; none of them stays if nothing could be kept."""
        top = workspace.mountpoint
        (tmp_path / "run7").mkdir()
        (tmp_path / "run7" / "a").write_text("new")
        workspace.wsfs("keep", tmp_path / "run7", top / "results" / "of today" / "run7")
        assert (top / "results" / "of today" / "run7" / "a").read_text() == "new"
        workspace.wsfs("keep", tmp_path / "run7", top / "more" / ("y" * 256) / "run7", code=1)
        assert sorted(os.listdir(top)) == [".workspace.initialized", "results"]

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("{tmp}/elsewhere", "is not in a workspace"),
            ("{top}/.workspace.initialized/x", "is not a directory"),
            ("{top}/.workspace.initialized", "--force"),
        ],
    )
    def test_refusals(self, workspace: Site, tmp_path: Path, target: str, words: str) -> None:
        (tmp_path / "x").write_text("new")
        place = target.format(tmp=tmp_path, top=workspace.mountpoint)
        assert words in workspace.wsfs("keep", tmp_path / "x", place, code=2).stderr
        assert "there is no" in workspace.wsfs("keep", tmp_path / "none", code=2).stderr

    def test_the_marker_cannot_be_replaced(self, workspace: Site, tmp_path: Path) -> None:
        (tmp_path / "x").write_text("new")
        marker = workspace.mountpoint / ".workspace.initialized"
        before = marker.read_bytes()
        result = workspace.wsfs("keep", tmp_path / "x", marker, "--force", code=1)
        assert "is as it was" in result.stderr
        assert marker.read_bytes() == before
        assert os.listdir(workspace.mountpoint) == [marker.name]

    def test_a_directory_into_itself(self, workspace: Site) -> None:
        (workspace.mountpoint / "d").mkdir()
        result = workspace.wsfs("keep", workspace.mountpoint / "d", workspace.mountpoint / "d" / "copy", code=2)
        assert "itself" in result.stderr
