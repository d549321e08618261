"""mount(8), umount(8) and fstab with the installed helpers, in a mount namespace of their own.

The helpers go to a layer over /sbin that only that namespace sees: the machine's /sbin stays as it is.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE"),
]

Shell = Callable[[str], str]
PREPARE = """
set -eu
mount --make-rprivate /
mkdir {tmp}/layer
mount -t tmpfs layer {tmp}/layer
mkdir {tmp}/layer/upper {tmp}/layer/work
mount -t overlay -o lowerdir=/usr/sbin,upperdir={tmp}/layer/upper,workdir={tmp}/layer/work sbin /usr/sbin
{python} -m wsfs.cli.main install-helpers >/dev/null
cd {tmp}
"""


@pytest.fixture
def shell(environ: dict[str, str], tmp_path: Path, mountpoint: Path) -> Shell:
    """Run a script in a namespace where the helpers are installed; its output, after a check of the exit code."""
    words = {"tmp": tmp_path, "python": sys.executable, "mp": mountpoint}
    quoted = {name: shlex.quote(str(value)) for name, value in words.items()}

    def run(script: str) -> str:
        with (tmp_path / "said").open("w+") as said:
            command = ["unshare", "--mount", "sh", "-c", (PREPARE + script).format(**quoted)]
            result = subprocess.run(command, env=environ, stdout=said, stderr=said, timeout=60, check=False)
            said.seek(0)
            text = said.read()
        if "overlay" in text and result.returncode == 32:
            pytest.skip("this machine cannot lay a layer over /sbin")
        assert result.returncode == 0, text
        return text

    return run


@pytest.mark.parametrize("fstype", ["wsfs", "fuse.wsfs"])
def test_mount_and_plain_umount(shell: Shell, fstype: str) -> None:
    text = shell(
        f"mount -t {fstype} s3://b/ok {{mp}} -o rw,nosuid,_netdev,x-systemd.automount\n"
        "grep -q ' {mp} rw,nosuid.* - fuse.wsfs s3://b/ok ' /proc/self/mountinfo\n"
        "umount {mp}\n"
        "! grep -q ' {mp} ' /proc/self/mountinfo\n"
    )
    assert "Saved: 3 files" in text


def test_fstab(shell: Shell) -> None:
    text = shell(
        "echo 's3://b/ok {mp} wsfs noauto,noexec,_netdev,x-systemd.requires=network-online.target 0 0' >fstab\n"
        "mount -T fstab {mp}\n"
        "grep -q ' {mp} .*noexec.* - fuse.wsfs ' /proc/self/mountinfo\n"
        "umount {mp}\n"
    )
    assert "Saved: 3 files" in text


def test_refusals_name_the_reason(shell: Shell) -> None:
    text = shell(
        "mount -t wsfs s3://b/refuse {mp} && exit 1; test $? = 32\n"
        "mount -t wsfs s3://b/ok {mp} -o rw,alow_other && exit 1; test $? = 1\n"
        "! grep -q ' {mp} ' /proc/self/mountinfo\n"
    )
    assert "the marker is missing" in text
    assert "did you mean allow_other" in text


def test_umount_that_cannot_save_leaves_the_mount(shell: Shell) -> None:
    text = shell(
        "mount -t wsfs s3://b/storedown {mp}\n"
        "umount {mp} && exit 1; test $? = 32\n"
        "grep -q ' {mp} .* - fuse.wsfs ' /proc/self/mountinfo\n"
        "umount -l {mp}\n"
        "! grep -q ' {mp} ' /proc/self/mountinfo\n"
    )
    assert "the store is down" in text
    assert "3 files, 1.5 kB not saved yet" in text
