"""wsfs usage, through the real command line: by mount point and by URL, encrypted too; the ledger across mounts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from wsfs.repo.head import decode_head

KEY = "11" * 32


def usage(site: Any, where: object, *options: object) -> dict[str, Any]:
    return dict(json.loads(site.wsfs("usage", where, "--json", *options).stdout))


def rewind(site: Any, old: str, new: str) -> None:
    """Put the times of the ledger back."""
    head = site.store / "HEAD"
    head.write_bytes(head.read_bytes().replace(old.encode(), new.encode()))


def test_what_is_stored_for_what(workspace: Any) -> None:
    top = workspace.mountpoint
    once, twice = os.urandom(200_000), os.urandom(300_000)
    for name in ("env", "env/deep", "data"):
        (top / name).mkdir()
    (top / "env" / "deep" / "once").write_bytes(once)
    (top / "env" / "twice").write_bytes(twice)
    (top / "data" / "twice").write_bytes(twice)
    (top / "data" / "text").write_bytes(b"word" * 100_000)
    (top / "alone").write_bytes(os.urandom(50_000))
    workspace.wsfs("sync", top)
    (top / "alone").write_bytes(os.urandom(60_000))
    workspace.wsfs("sync", top)
    found = usage(workspace, top)
    assert found == usage(workspace, workspace.url) | {"cost": found["cost"]}
    assert found["deduplication"] == 300_000
    assert 300_000 < found["compression"] < 400_000
    shares = {one["path"]: one for one in found["directories"]}
    assert set(shares) == {"env", "data", "."}
    assert (shares["env"]["bytes"], shares["env"]["files"]) == (500_000, 4)
    assert shares["env"]["stored"] + shares["data"]["stored"] + shares["."]["stored"] == found["stored"]["data"]
    assert shares["."]["stored"] == 60_000
    objects = sum(len(path.read_bytes()) for kind in ("packs", "meta", "commits") for path in workspace.objects(kind))
    assert found["stored"]["total"] == objects
    assert sum(size for name, size in found["stored"].items() if name != "total") == objects
    # What only the second save point and older ones need: a pack of its own would show the first 'alone' there.
    assert [one["id"] for one in found["save_points"]] == [2, 1]
    text = workspace.wsfs("usage", top).stdout
    assert text.startswith("Stored: ")
    assert "  env\n" in text


def test_what_was_written_anew_is_needed_by_the_save_points_that_had_it(workspace: Any) -> None:
    """And not by the newer one, whose deltas still name where it was: to unpin that would free nothing."""
    for _ in range(3):
        (workspace.mountpoint / "checkpoint").write_bytes(os.urandom(3 << 20))
        workspace.wsfs("sync", workspace.mountpoint)
    found = json.loads(workspace.wsfs("usage", workspace.mountpoint, "--json").stdout)
    sizes = {one["id"]: one["bytes"] for one in found["save_points"]}
    assert set(sizes) == {1, 2, 3}
    assert sizes[2] > 3 << 20
    assert sizes[3] > 3 << 20
    assert sizes[1] < 1 << 20
    assert found["stored"]["other"] < 1 << 20


def test_a_fresh_workspace_has_nothing_to_collect(site: Any) -> None:
    """Manifests of save points are in use, too."""
    stored = usage(site, site.url)["stored"]
    assert stored["other"] == 0
    assert stored["metadata"] == stored["total"]


def test_the_ledger_counts_from_the_first_stop_on(site: Any) -> None:
    site.mount()
    (site.mountpoint / "file").write_bytes(os.urandom(1_000_000))
    site.wsfs("sync", site.mountpoint)
    before = usage(site, site.mountpoint)["cost"]
    assert (before["since"], before["gb_hours"], before["free_seconds_left"]) == (None, 0, 30 * 86400)
    site.umount()
    ledger = decode_head((site.store / "HEAD").read_bytes()).ledger
    assert ledger is not None
    assert ledger.since == ledger.at
    assert 1_000_000 < ledger.stored < 1_010_000
    rewind(site, ledger.at, "2020-01-01T00:00:00Z")
    found = usage(site, site.url, "--price", "2000", "--free-size", "1K")["cost"]
    assert found["since"] == "2020-01-01T00:00:00Z"
    assert found["gb_hours"] > 24
    assert found["free_seconds_left"] == found["free_bytes_left"] == 0
    assert found["month"] == found["month_now"] == pytest.approx(2, rel=0.05)
    # The next mount carries it on, and with what it deletes nothing goes back.
    site.mount()
    (site.mountpoint / "file").unlink()
    site.umount()
    carried = decode_head((site.store / "HEAD").read_bytes()).ledger
    assert carried is not None
    assert carried.since == "2020-01-01T00:00:00Z"
    assert carried.byte_hours >= 24 * 10**9
    assert "GB-hours since the first stop" in site.wsfs("usage", site.url).stdout


def test_rates_come_from_the_environment_and_flags_win(site: Any) -> None:
    site.environ["WSFS_PRICE"] = "3"
    assert usage(site, site.url)["cost"]["price"] == 3
    assert usage(site, site.url, "--price", "4.5")["cost"]["price"] == 4.5
    refused = site.wsfs("usage", site.url, "--price", "cheap", code=2)
    assert refused.stderr == "wsfs: --price: 'cheap' is not a price: write it as 0.01\n"


def test_an_encrypted_workspace(site: Any, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    shutil.rmtree(site.store)
    site.init("--encrypt", "--key-file", key)
    site.mount("--key-file", key)
    (site.mountpoint / "file").write_bytes(os.urandom(100_000))
    site.wsfs("sync", site.mountpoint)
    # The daemon has the key.
    found = usage(site, site.mountpoint)
    assert found["stored"]["data"] == 100_000
    assert usage(site, site.url, "--key-file", key)["stored"] == found["stored"]
    site.wsfs("usage", site.url, code=26)


def test_clean_on_a_mount(workspace: Any) -> None:
    top = workspace.mountpoint
    (top / "src" / "__pycache__").mkdir(parents=True)
    (top / "src" / "__pycache__" / "m.pyc").write_bytes(bytes(5000))
    (top / "src" / "m.py").write_text("x = 1\n")
    # It is about the workspace that we are in.
    words = workspace.command("clean", "--apply", "--json")[0]
    found = json.loads(workspace.run(*words, cwd=top / "src").stdout)
    assert [(one["path"], one["bytes"], one["removed"]) for one in found["caches"]] == [("src/__pycache__", 5000, True)]
    workspace.elsewhere()
    assert sorted(os.listdir(top / "src")) == ["m.py"]
    assert (top / ".workspace.initialized").exists()
