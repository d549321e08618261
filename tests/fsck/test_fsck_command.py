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
from wsfs.errors import CacheError, DamagedError, UsageError
from wsfs.model import HELD_MAX
from wsfs.repo.head import read_head
from wsfs.repo.manifest import Manifest
from wsfs.store.directory import DirectoryStore
from wsfs.store.memory import MemoryBucket
from wsfs.sync.load import read_manifest

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


def newest_of(place: Path) -> Manifest:
    store = DirectoryStore(str(place))
    try:
        return read_manifest(store, read_head(store).head)
    finally:
        store.close()


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


def crash_with_changes(place: Path, world: GcWorld) -> list[Path]:
    """A mount of the workspace writes two files and dies. Returns where the cache has them."""
    world.bucket = MemoryBucket()
    store = DirectoryStore(str(place))
    for info in store.list(""):
        world.observer().put(info.key, store.get(info.key).data)
    store.close()
    world.start()
    inodes = [world.create(name, os.urandom(HELD_MAX + 1)) for name in (b"unsaved", b"lost")]
    world.flush()
    world.crash()
    return [world.cache_path / "local" / "overlay" / f"{ino & 0xFF:02x}" / f"{ino:x}" for ino in inodes]


def test_a_damaged_cache_is_no_reason_for_a_commit(place: Path, run: Run, tmp_path: Path) -> None:
    """After one the cache would not stand on HEAD, and a mount would set aside what it would have saved."""
    world = GcWorld(tmp_path / "world")
    crash_with_changes(place, world)[1].unlink()
    words = ("fsck", f"file://{place}", "--cache-dir", str(world.cache_path), "--repair")
    before = (place / "HEAD").read_bytes()
    result = run(*words)
    assert result.returncode == 25, "it is still there"
    assert "has lost 1 unsaved blocks" in result.stdout
    assert "1 finding." in result.stdout
    assert (place / "HEAD").read_bytes() == before
    result = run(*words, "--json")
    assert result.returncode == 25
    assert "commit" not in json.loads(result.stdout)


def test_no_repair_over_what_a_mount_would_save(place: Path, run: Run, tmp_path: Path) -> None:
    """The store is damaged, and the cache holds changes that build on HEAD: first these are saved."""
    world = GcWorld(tmp_path / "world")
    crash_with_changes(place, world)[1].unlink()
    lose_the_pack(place)
    words = ("fsck", f"file://{place}", "--cache-dir", str(world.cache_path), "--repair")
    before = (place / "HEAD").read_bytes()
    result = run(*words)
    assert result.returncode == CacheError.exit_code
    assert "mount with it and unmount" in result.stderr
    assert "/file" in result.stdout, "what is damaged is told all the same"
    assert (place / "HEAD").read_bytes() == before
    assert run(*words[:2], "--repair").returncode == 0, "without the cache it can be done"


def test_a_repair_tells_what_is_left_in_the_cache(place: Path, run: Run, tmp_path: Path) -> None:
    """One that does not stand on HEAD is not made worse by a commit; nor is it mended, if it holds something."""
    lose_the_pack(place)
    words = ("fsck", f"file://{place}", "--cache-dir", str(tmp_path / "world" / "cache"), "--repair")
    assert run(*words).returncode == 0, "what that cache lacks is what the store has lost, and a mount drops it"
    world = GcWorld(tmp_path / "world")
    crash_with_changes(place, world)[1].unlink()
    (place / newest_of(place).deltas[-1].key).unlink()
    assert run(*words[:2], "--repair").returncode == 0
    (place / newest_of(place).deltas[-1].key).unlink()
    result = run(*words)
    assert result.returncode == 25
    assert "Made commit" in result.stdout
    assert result.stdout.endswith("What is wrong in the cache is as it was.\n")


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
