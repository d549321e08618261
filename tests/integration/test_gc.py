"""wsfs gc, through the real command line: on a mount, and on a workspace that nobody holds."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

RETAIN = ("-o", "retain=1h/0/0")


def gc(site: Any, where: object, *options: object) -> dict[str, Any]:
    return dict(json.loads(site.wsfs("gc", where, "--json", *options).stdout))


def leave_garbage(site: Any) -> bytes:
    """A file that came and went, and so many saves after it that none that is kept has it. What stays."""
    top = site.mountpoint
    (top / "gone").write_bytes(os.urandom(300_000))
    site.wsfs("sync", top)
    (top / "gone").unlink()
    for _ in range(3):
        (top / "stays").write_bytes(content := os.urandom(50_000))
        site.wsfs("sync", top)
    return content


def grow_old(site: Any) -> None:
    """Everything in the store was written two hours ago."""
    then = time.time() - 7200
    for kind in ("packs", "meta", "commits"):
        for path in site.objects(kind):
            os.utime(path, (then, then))


def names(site: Any) -> set[str]:
    return {str(path) for kind in ("packs", "meta", "commits", "points") for path in site.objects(kind)}


def test_on_a_mount(site: Any) -> None:
    site.mount(*RETAIN)
    top = site.mountpoint
    content = leave_garbage(site)
    grow_old(site)
    before = names(site)
    looked = gc(site, top, "--dry-run")
    assert names(site) == before
    assert not looked["applied"]
    assert looked["garbage"] > 300_000
    assert looked["live"] > 50_000
    done = gc(site, top)
    assert done["applied"]
    assert done["freed"] > 300_000
    assert done["packs"] >= 1
    assert done["garbage"] < looked["garbage"] - 300_000
    assert (top / "stays").read_bytes() == content
    assert "\nFreed: " in site.wsfs("gc", top).stdout
    site.elsewhere()
    assert (top / "stays").read_bytes() == content


def test_on_a_url(site: Any) -> None:
    site.mount(*RETAIN)
    content = leave_garbage(site)
    assert "its state is RUNNING" in site.wsfs("gc", site.url, code=30).stderr
    site.umount()
    grow_old(site)
    before = names(site)
    looked = gc(site, site.url, "--dry-run", "--retain", "1h/0/0")
    assert names(site) == before
    assert looked["garbage"] > 300_000
    done = gc(site, site.url, "--retain", "1h/0/0")
    assert done["freed"] > 300_000
    assert site.status(site.url)["state"] == "STOPPED"
    site.wsfs("fsck", site.url, "--data")
    site.wipe()
    site.mount()
    assert (site.mountpoint / "stays").read_bytes() == content


def test_an_encrypted_workspace(site: Any, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("22" * 32)
    key.chmod(0o600)
    shutil.rmtree(site.store)
    site.init("--encrypt", "--key-file", key)
    site.mount("--key-file", key, *RETAIN)
    leave_garbage(site)
    site.umount()
    grow_old(site)
    site.wsfs("gc", site.url, code=26)
    assert gc(site, site.url, "--retain", "1h/0/0", "--key-file", key)["freed"] > 300_000
    site.wsfs("fsck", site.url, "--data", "--key-file", key)


def test_what_is_refused(site: Any) -> None:
    site.mount()
    assert "--retain goes with a URL" in site.wsfs("gc", site.mountpoint, "--retain", "1h/0/0", code=2).stderr
    site.umount()
    site.mount("--read-only")
    assert "is read-only" in site.wsfs("gc", site.mountpoint, code=2).stderr
    assert gc(site, site.mountpoint, "-n")["applied"] is False
