"""`wsfs doctor` and `wsfs completion`: what they find, and that each trouble has a remedy."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wsfs.cli import checks, checks_store, install
from wsfs.store.memory import MemoryBucket, MemoryStore
from wsfs.store.probe import PROBE_KEY

if TYPE_CHECKING:
    from tests.cli.conftest import Run


def test_a_store_that_is_well(wsfs: Run, tmp_path: Path) -> None:
    """Nothing of the doctor's own is left in it."""
    url = f"file://{tmp_path}/store"
    wsfs("init", url)
    before = sorted(tmp_path.joinpath("store").rglob("*"))
    found = {one["check"]: one for one in json.loads(wsfs("doctor", url, "--json", code=None).stdout)}
    assert {"fuse", "kernel", "helpers", "settings", "cache", "space"} <= set(found)
    for check in ("workspace", "conditional writes", "latency", "bandwidth"):
        assert found[check]["level"] != "error", found[check]
    assert "enforces" in found["conditional writes"]["text"]
    assert sorted(tmp_path.joinpath("store").rglob("*")) == before


def test_errors_have_a_remedy_and_an_exit_code(wsfs: Run, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    text = wsfs("doctor", f"file://{nowhere}", tmp_path, code=1).stdout
    assert "there is none at this URL\n         -> make it with 'wsfs init'" in text
    assert "no workspace is mounted" in text
    assert not nowhere.exists()
    assert "settings: WSFS_PRICE" in wsfs("doctor", code=1, WSFS_PRICE="x").stdout
    assert "one URL and one mount point" in wsfs("doctor", "/a", "/b", code=2).stderr


def test_missing_credentials(wsfs: Run) -> None:
    env = {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nowhere",
        "AWS_SHARED_CREDENTIALS_FILE": "/nowhere",
    }
    text = wsfs("doctor", "s3://bucket/ada", "--endpoint-url", "http://127.0.0.1:1", code=1, **env).stdout
    assert "credentials: there are none" in text
    keys = {"AWS_ACCESS_KEY_ID": "hush", "AWS_SECRET_ACCESS_KEY": "hush"}
    text = wsfs("doctor", "s3://bucket/ada", "--endpoint-url", "http://127.0.0.1:1", code=1, **env | keys).stdout
    assert "credentials: found by way of 'env'" in text
    assert "cannot connect" in text
    assert "hush" not in text


class Careless(MemoryStore):
    """A store that ignores conditions."""

    def put(self, key: str, data: bytes, **_conditions: Any) -> str:
        return super().put(key, data)


def test_a_store_that_ignores_conditions() -> None:
    bucket = MemoryBucket()
    found = {one.check: one for one in checks_store.store(Careless("memory://x", bucket))}
    assert found["conditional writes"].level == "error"
    assert found["conditional writes"].remedy
    assert not list(MemoryStore("memory://x", bucket).list(PROBE_KEY))


@pytest.mark.parametrize(
    ("ahead", "level"), [(0.4, "ok"), (-30, "ok"), (90, "warning"), (-500, "warning"), (1000, "error")]
)
def test_clocks(ahead: float, level: str) -> None:
    assert checks_store.clock(ahead).level == level


@pytest.mark.parametrize(
    ("kind", "level"),
    [("ext4", "ok"), ("xfs", "ok"), ("tmpfs", "warning"), ("overlay", "warning"), ("nfs4", "warning")],
)
def test_cache_disks(kind: str, level: str) -> None:
    finding = checks.cache_kind(Path("/c"), kind)
    assert finding.level == level
    assert bool(finding.remedy) == (level != "ok")


@pytest.mark.parametrize(
    ("release", "level"), [("6.18.0", "ok"), ("6.1.0-13", "warning"), ("4.18.0-500.el8", "warning")]
)
def test_kernels(release: str, level: str) -> None:
    assert checks.kernel(release).level == level


def test_helpers(tmp_path: Path) -> None:
    assert checks.helpers(tmp_path).level == "warning"
    (tmp_path / "sbin").mkdir()
    for name, verb in install.HELPERS.items():
        (tmp_path / "sbin" / name).write_text(install.script(verb, None))
    assert checks.helpers(tmp_path).level == "ok"
    (tmp_path / "sbin" / "umount.wsfs").write_text(install.script("umount", "/nowhere/python"))
    assert checks.helpers(tmp_path).level == "error"


def test_the_time_that_a_stop_has() -> None:
    short, long = {"stop_seconds": 4.0, "unsaved_bytes": 10}, {"stop_seconds": 40.0, "unsaved_bytes": 10**9}
    assert checks.grace(short, None, pod=True).level == "ok"
    assert checks.grace(long, 300.0, pod=False).level == "ok"
    assert "TimeoutStopSec" in checks.grace(short, 10.0, pod=False).remedy
    assert "terminationGracePeriodSeconds to 90" in checks.grace(long, None, pod=True).remedy
    assert [checks.systemd_span(text) for text in ("1min 30s\n", "500ms", "infinity", "")] == [90.0, 0.5, None, None]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(wsfs: Run, shell: str, tmp_path: Path) -> None:
    script = wsfs("completion", shell).stdout
    assert "_WSFS_COMPLETE" in script
    if shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


def test_what_is_completed(wsfs: Run) -> None:
    env = {"_WSFS_COMPLETE": "bash_complete", "COMP_WORDS": "wsfs st", "COMP_CWORD": "1"}
    assert {"plain,start", "plain,stats", "plain,status", "plain,stop"} <= set(wsfs(code=None, **env).stdout.split())
