"""wsfs fsck and wsfs verify, as users call them, on a store in a directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from garbage import GcWorld

from wsfs.cli.fsck import parse_share
from wsfs.errors import DamagedError, UsageError
from wsfs.store.directory import DirectoryStore

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A workspace in a directory, with a file of a block and one that is inline."""
    world = GcWorld(tmp_path / "world")
    world.cache_path.parent.mkdir()
    world.start()
    world.create(b"file", os.urandom(5000))
    world.create(b"odd\n\xff", os.urandom(5000))
    world.create(b"inline", b"x")
    world.stop()
    where = tmp_path / "store"
    store = DirectoryStore(str(where))
    for key, found in world.bucket.objects.items():
        store.put(key, found.data)
    store.close()
    return where


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "WSFS_RUNTIME_DIR": str(tmp_path / "run"), "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "wsfs.cli.main", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)

    return call


def lose_the_pack(place: Path) -> str:
    (pack,) = (path for path in (place / "packs").rglob("*-*") if path.is_file())
    pack.unlink()
    return pack.name


def test_a_clean_one(place: Path, run: Run) -> None:
    result = run("fsck", f"file://{place}", "--data", "--all")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("All is well: save point #2, 5 files, ")
    assert "2 blocks read" in result.stdout


def test_damage_has_its_exit_code_and_names_its_files(place: Path, run: Run) -> None:
    name = lose_the_pack(place)
    result = run("fsck", f"file://{place}")
    assert result.returncode == DamagedError.exit_code == 25
    line, last = result.stdout.splitlines()
    assert name in line
    assert "/file" in line
    assert "/odd\\n\\xff" in line, "one line for a finding, whatever the names are"
    assert "--repair" in line
    assert last == "1 finding."


def test_json(place: Path, run: Run) -> None:
    lose_the_pack(place)
    result = run("fsck", f"file://{place}", "--json")
    assert result.returncode == 25
    outcome = json.loads(result.stdout)
    assert not outcome["clean"]
    (finding,) = outcome["findings"]
    assert finding["kind"] == "data"
    assert "/file" in finding["paths"]
    assert json.loads(run("verify", f"file://{place}", "--json").stdout)["clean"] is False


def test_repair_says_what_it_did_and_all_is_well_then(place: Path, run: Run) -> None:
    lose_the_pack(place)
    result = run("fsck", f"file://{place}", "--repair")
    assert result.returncode == 0, result.stderr
    assert "Repaired: /file is now /file.damaged: it has zeros in bytes 0-4999, which are lost." in result.stdout
    assert "Made commit #3, which is whole. The one before stays for 30 days, as kept/" in result.stdout
    assert run("fsck", f"file://{place}", "--data").returncode == 0
    assert run("fsck", f"file://{place}", "--repair").stdout.startswith("All is well")


def test_verify(place: Path, run: Run) -> None:
    result = run("verify", f"file://{place}", "--sample", "100%")
    assert result.returncode == 0, result.stderr
    assert "2 blocks read" in result.stdout
    lose_the_pack(place)
    assert run("verify", f"file://{place}").returncode == 25


def test_wrong_use(place: Path, run: Run) -> None:
    assert run("fsck").returncode == 2
    assert run("fsck", f"file://{place}", "--repair", "--all").returncode == 2
    assert run("verify", f"file://{place}", "--sample", "0%").returncode == 2
    assert run("verify", f"file://{place}", "--sample", "lots").returncode == 2
    assert run("fsck", str(place)).returncode == 42
    assert run("fsck", f"file://{place}x").returncode == 20
    with pytest.raises(UsageError):
        parse_share("101%")
    assert parse_share("2.5%") == 0.025


def test_the_cache(place: Path, run: Run, tmp_path: Path) -> None:
    result = run("fsck", f"file://{place}", "--cache-dir", str(tmp_path / "world" / "cache"))
    assert result.returncode == 0
    assert "holds nothing that is not in the store" in result.stdout
    assert run("fsck", f"file://{place}", "--cache-dir", str(tmp_path)).returncode == 60


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE")
def test_a_mount(place: Path, run: Run, tmp_path: Path) -> None:
    """It is checked by its mount point, while programs write; and repaired by its URL only, once it is unmounted."""
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    url = f"file://{place}"
    mounted = run("mount", url, str(mountpoint), "--cache-dir", str(tmp_path / "cache"), "--save-interval", "1")
    assert mounted.returncode == 0, mounted.stderr
    try:
        (mountpoint / "new").write_bytes(os.urandom(100_000))
        assert run("fsck", str(mountpoint), "--data").returncode == 0
        refused = run("fsck", str(mountpoint), "--repair")
        assert refused.returncode == 2
        assert url in refused.stderr
        for pack in (place / "packs").rglob("00000001-*"):
            pack.unlink()
        assert run("fsck", str(mountpoint)).returncode == 25
        refused = run("fsck", url, "--repair")
        assert refused.returncode == 30, "it is mounted"
    finally:
        assert run("umount", str(mountpoint)).returncode == 0
    assert run("fsck", url, "--repair").returncode == 0
    assert run("fsck", url, "--data").returncode == 0
