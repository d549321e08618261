"""The units: systemd accepts them, and they say what must not be lost from sight."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from wsfs.config import OPTIONS, parse_mount_options
from wsfs.errors import (
    BaseGoneError,
    EncryptionKeyError,
    FencedError,
    ForeignWorkspaceError,
    FormatError,
    LeaseHeldError,
    MarkerError,
    NoSavePointError,
    NoWorkspaceError,
    SyncFailedError,
    TransientStoreError,
    UnsafeStoreError,
    UsageError,
)

POINTLESS = (
    UsageError,
    UnsafeStoreError,
    NoWorkspaceError,
    FormatError,
    ForeignWorkspaceError,
    MarkerError,
    EncryptionKeyError,
    NoSavePointError,
    BaseGoneError,
)
"""What is no better after five seconds: somebody must do something."""
UNITS = Path(__file__).parents[2] / "systemd"
Unit = dict[str, dict[str, list[str]]]


def parse(path: Path) -> Unit:
    """A unit's sections, each with every value that a key is given."""
    sections: Unit = {}
    current: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith(("#", ";")):
            key, equals, value = line.partition("=")
            assert equals, line
            current.setdefault(key, []).append(value)
    return sections


@pytest.fixture
def workspace() -> Unit:
    return parse(UNITS / "wsfs@.service")


@pytest.fixture
def jupyter() -> Unit:
    return parse(UNITS / "jupyter.service")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("old_kernel", [False, True], ids=["", "old-kernel"])
def test_systemd_accepts_the_units(tmp_path: Path, old_kernel: bool) -> None:
    for name in ("data.mount", "jupyter.service", "wsfs@.service"):
        text = (UNITS / name).read_text()
        # verify looks whether the programs exist, and they are not part of this repository
        text = re.sub(r"^(ExecStart=)/usr/bin/(wsfs|jupyter)", r"\1/bin/true", text, flags=re.MULTILINE)
        (tmp_path / name).write_text(text)
    if old_kernel:
        shutil.copytree(UNITS / "data.mount.d", tmp_path / "data.mount.d")
    names = ["wsfs@workspace.service", "wsfs@home-jovyan-work.service", "data.mount", "jupyter.service"]
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *names],
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}:", "SYSTEMD_LOG_LEVEL": "notice", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    complaints = [line for line in result.stderr.splitlines() if re.search(r"wsfs|data\.mount|jupyter", line)]
    assert complaints == []
    assert result.returncode == 0, result.stderr


def test_daemon_says_when_it_is_ready_and_stays_in_the_foreground(workspace: Unit) -> None:
    service = workspace["Service"]
    assert service["Type"] == ["notify"]
    assert service["NotifyAccess"] == ["main"]
    (command,) = service["ExecStart"]
    assert command.startswith("/usr/bin/wsfs mount --foreground ")
    assert command.endswith(" -- ${WSFS_URL} %f")
    assert service["EnvironmentFile"] == ["/etc/wsfs/%i.env"]
    assert "network-online.target" in workspace["Unit"]["After"][0]
    assert workspace["Unit"]["Wants"] == ["network-online.target"]


def test_stop_and_restart_cannot_lose_data(workspace: Unit) -> None:
    service = workspace["Service"]
    assert service["KillMode"] == ["mixed"]
    assert service["KillSignal"] == ["SIGTERM"]
    assert service["SendSIGKILL"] == ["no"]
    assert service["Restart"] == ["on-failure"]
    final = {int(code) for code in service["RestartPreventExitStatus"][0].split()}
    assert FencedError.exit_code in final  # or two hosts would take the workspace from each other for ever
    assert {error.exit_code for error in POINTLESS} <= final
    assert not final & {LeaseHeldError.exit_code, TransientStoreError.exit_code, SyncFailedError.exit_code, 1}


def test_nothing_hides_the_mount_in_a_namespace(workspace: Unit) -> None:
    hiding = re.compile(
        r"Private(Tmp|Mounts|Devices|Users)|Protect\w+|ReadOnlyPaths|BindPaths|RootDirectory|DynamicUser"
    )
    assert not [key for key in workspace["Service"] if hiding.match(key)]


def test_default_options_are_understood(workspace: Unit) -> None:
    (value,) = workspace["Service"]["Environment"]
    options = parse_mount_options(value.removeprefix("WSFS_OPTIONS="))
    assert options["allow_other"] is True


def test_data_is_a_plain_tmpfs() -> None:
    for path in (UNITS / "data.mount", UNITS / "data.mount.d" / "kernel-before-6.4.conf"):
        options = parse(path)["Mount"]["Options"][0].split(",")
        assert {"nosuid", "nodev", "mode=1777", "size=50%"} <= set(options)
        assert ("noswap" in options) == (path.name == "data.mount")
    mount = parse(UNITS / "data.mount")["Mount"]
    assert (mount["Type"], mount["Where"]) == (["tmpfs"], ["/data"])


def test_notebook_server_needs_both_and_ends_before_them(jupyter: Unit) -> None:
    needed = {"wsfs@workspace.service", "data.mount"}
    for key in ("Requires", "After", "BindsTo"):
        assert needed <= set(" ".join(jupyter["Unit"][key]).split())
    assert jupyter["Service"]["User"] not in ([], ["root"])


def test_every_setting_is_in_the_example_and_the_readme() -> None:
    example = (UNITS / "workspace.env.example").read_text()
    readme = (UNITS / "README.md").read_text()
    names = [f"WSFS_{name.upper()}" for name, option in OPTIONS.items() if option.in_environment]
    for name in [*names, "WSFS_URL", "WSFS_OPTIONS", "WSFS_DEBUG"]:
        assert re.search(rf"^#?{name}=", example, re.MULTILINE), name
        assert f"`{name}`" in readme, name
    assert not re.search(r"^#?AWS_SECRET_ACCESS_KEY=.", example, re.MULTILINE)


def test_readme_names_every_file() -> None:
    readme = (UNITS / "README.md").read_text()
    files = [path.relative_to(UNITS) for path in UNITS.rglob("*") if path.is_file() and path.name != "README.md"]
    assert all(str(path) in readme for path in files)
