"""Helpers for mount(8): what is written where, and that nothing foreign is touched."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsfs.cli import install
from wsfs.cli.helpers import parse
from wsfs.errors import UsageError, WsfsError

if TYPE_CHECKING:
    from tests.cli.conftest import Run

NAMES = ["mount.fuse.wsfs", "mount.wsfs", "umount.fuse.wsfs", "umount.wsfs"]


def test_helpers_are_installed_repeated_and_removed(wsfs: Run, tmp_path: Path) -> None:
    wsfs("install-helpers", "--prefix", tmp_path)
    wsfs("install-helpers", "--prefix", tmp_path)
    assert sorted(os.listdir(tmp_path / "sbin")) == NAMES
    assert all(os.access(tmp_path / "sbin" / name, os.X_OK) for name in NAMES)
    (tmp_path / "sbin" / "mount.nfs").write_text("not ours")
    wsfs("install-helpers", "--prefix", tmp_path, "--remove")
    assert os.listdir(tmp_path / "sbin") == ["mount.nfs"]
    wsfs("install-helpers", "--prefix", tmp_path, "--remove")


def test_foreign_files_are_left_alone(wsfs: Run, tmp_path: Path) -> None:
    (tmp_path / "sbin").mkdir()
    foreign = tmp_path / "sbin" / "mount.wsfs"
    foreign.write_text("#!/bin/sh\n")
    assert "not made by wsfs" in wsfs("install-helpers", "--prefix", tmp_path, code=2).stderr
    wsfs("install-helpers", "--prefix", tmp_path, "--remove")
    assert foreign.read_text() == "#!/bin/sh\n"


@pytest.mark.parametrize("target", ["usr/sbin", "/usr/sbin"])
def test_link_in_an_image_does_not_lead_out_of_it(wsfs: Run, tmp_path: Path, target: str) -> None:
    (tmp_path / "usr" / "sbin").mkdir(parents=True)
    (tmp_path / "sbin").symlink_to(target)
    wsfs("install-helpers", "--prefix", tmp_path)
    assert sorted(os.listdir(tmp_path / "usr" / "sbin")) == NAMES


def test_interpreter_of_an_image(wsfs: Run, tmp_path: Path) -> None:
    wsfs("install-helpers", "--prefix", tmp_path, "--python", "/opt/my python/bin/python")
    text = (tmp_path / "sbin" / "mount.wsfs").read_text()
    assert "exec '/opt/my python/bin/python' -P -m wsfs.cli.helpers mount \"$@\"" in text
    assert "PYTHONPATH" not in text


def test_installed_helper_runs_this_wsfs_from_anywhere(
    wsfs: Run, tmp_path: Path, environ: dict[str, str], mountpoint: Path
) -> None:
    wsfs("install-helpers", "--prefix", tmp_path)
    (tmp_path / "trap" / "wsfs").mkdir(parents=True)
    (tmp_path / "trap" / "wsfs" / "__init__.py").write_text("raise SystemExit('imported from the current directory')")
    helper = [tmp_path / "sbin" / "mount.wsfs", "s3://bucket/ada", mountpoint]
    bare = {name: value for name, value in environ.items() if name != "PYTHONPATH"}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*helper, *more], cwd=tmp_path / "trap", env=bare, capture_output=True, text=True, check=False
        )

    fake = run("-f", "-o", "rw,noauto,_netdev,allow_other,x-systemd.automount")
    assert fake.returncode == 0, fake
    assert f"would mount s3://bucket/ada on {mountpoint}" in fake.stdout
    unknown = run("-o", "rw,frobnicate")
    assert unknown.returncode == 1
    assert "'frobnicate'" in unknown.stderr
    assert run("-s", "-f", "-o", "rw,frobnicate").returncode == 0


@pytest.mark.parametrize(
    ("line", "flags", "options"),
    [
        (["URL", "/w"], "", ""),
        (["URL", "/w", "-o", "rw,nosuid"], "", "rw,nosuid"),
        (["URL", "/w", "-sfnv", "-o", "rw", "-t", "fuse.wsfs"], "sfnv", "rw"),
        (["-v", "URL", "-o", "ro", "/w", "-o", "noexec"], "v", "ro,noexec"),
    ],
)
def test_command_lines_of_mount(line: list[str], flags: str, options: str) -> None:
    parsed = parse(line, "sfnvw", 2)
    assert parsed.words == ("URL", "/w")
    assert parsed.flags == set(flags)
    assert parsed.options == options


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["URL"], "URL DIRECTORY expected"),
        (["URL", "/w", "more"], "expected"),
        (["URL", "/w", "-x"], "option -x not recognized"),
        (["URL", "/w", "-N", "/proc/1/ns/mnt"], "nsenter --mount"),
    ],
)
def test_command_lines_that_cannot_be(line: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(line, "sfnvw", 2)


def test_command_lines_of_umount() -> None:
    parsed = parse(["/w", "-fl", "-n", "-r", "-t", "fuse.wsfs"], "flnrvic", 1)
    assert parsed.words == ("/w",)
    assert parsed.flags == set("flnr")


def test_a_user_is_told_that_it_needs_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    with pytest.raises(WsfsError, match="it needs root, try sudo"):
        install.install_helpers.callback(prefix=str(tmp_path), python=None, remove=False)
    assert list(tmp_path.iterdir()) == []
