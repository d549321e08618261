"""mount(8), umount(8) and fstab, with the helpers installed, on real mounts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsfs.mountinfo import all_mounts

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

pytestmark = pytest.mark.usefixtures("mount_helpers")


def options_of(where: Path) -> set[str]:
    """What the kernel says about a mount."""
    return set(next(mount for mount in all_mounts() if mount.mountpoint == str(where)).options)


@pytest.mark.parametrize("kind", ["wsfs", "fuse.wsfs"])
def test_mount_by_type(site: Site, tools: type[Helpers], kind: str) -> None:
    """mount -t TYPE URL DIR -o OPTIONS, write, umount DIR; mounted again, it is all there."""
    words = ["mount", "-t", kind, site.url, site.mountpoint]
    site.run(*words, "-o", "nosuid,nodev,noexec,noatime,allow_other,save_interval=0", cwd="/")
    assert {"nosuid", "nodev", "noexec", "noatime", "allow_other", "default_permissions"} <= options_of(site.mountpoint)
    (site.mountpoint / "file").write_text("content")
    (site.mountpoint / "file").chmod(0o755)
    with pytest.raises(PermissionError):
        site.run(site.mountpoint / "file", cwd="/")
    site.pid()
    site.run("umount", site.mountpoint, cwd="/")
    assert not tools.is_mounted(site.mountpoint)
    assert site.status(site.url)["state"] == "STOPPED"
    site.run(*words, "-o", "ro", cwd="/")
    assert (site.mountpoint / "file").read_text() == "content"
    with pytest.raises(OSError, match="Read-only"):
        (site.mountpoint / "file").write_text("x")


def test_fstab(site: Site, tools: type[Helpers], tmp_path: Path) -> None:
    """A line in fstab with the options that mount and systemd read themselves; mount and umount by directory."""
    fstab = tmp_path / "fstab"
    options = "noauto,_netdev,nofail,x-systemd.requires=network-online.target,x-systemd.mount-timeout=30,rw,nosuid"
    fstab.write_text(f"{site.url} {site.mountpoint} wsfs {options},cache_dir={tmp_path}/fstab-cache 0 0\n")
    site.run("mount", "-T", fstab, site.mountpoint, cwd="/")
    assert "nosuid" in options_of(site.mountpoint)
    assert site.status()["cache_dir"] == f"{tmp_path}/fstab-cache"
    site.pid()
    (site.mountpoint / "file").write_text("content")
    site.run("umount", site.mountpoint, cwd="/")
    site.run("mount", "-T", fstab, site.mountpoint, cwd="/")
    assert (site.mountpoint / "file").read_text() == "content"


def test_beside_a_mount_with_an_odd_name(site: Site, tools: type[Helpers], tmp_path: Path) -> None:
    """Whoever else mounts something somewhere, under whatever name, is none of our business."""
    odd = tmp_path / "o\r\v\f\x1c\x85\u2028\udce9d"
    odd.mkdir()
    tools.run("mount", "-t", "tmpfs", "tmpfs", odd)
    try:
        site.mount()
        assert site.status()["state"] == "RUNNING"
        assert "RUNNING" in site.wsfs("status").stdout
        site.umount()
    finally:
        tools.run("umount", odd)


def test_an_unknown_option_is_named(site: Site, tools: type[Helpers]) -> None:
    """Nothing is mounted, and the message names the option and what it may have meant."""
    result = site.run("mount", "-t", "wsfs", site.url, site.mountpoint, "-o", "rw,save_intervall=3", code=1, cwd="/")
    assert "unknown mount option 'save_intervall': did you mean save_interval" in result.stderr
    assert not tools.is_mounted(site.mountpoint)
    assert "'nonsense'" in site.mount("-o", "nonsense", code=2).stderr


def test_refusals_come_through(site: Site, tools: type[Helpers], tmp_path: Path) -> None:
    """A workspace that is not there: mount(8) fails with our sentence, once, and nothing is mounted."""
    words = ["mount", "-t", "wsfs", f"file://{tmp_path}/missing", site.mountpoint]
    result = site.run(*words, code=32, cwd="/")
    assert result.stderr.count("there is no workspace at") == 1
    assert not tools.is_mounted(site.mountpoint)
    assert not os.path.exists(tmp_path / "missing" / "HEAD")
