"""`.wsfsignore` on a real mount: what matches is used like everything else, and is on this machine alone."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def project(top: Path) -> None:
    """A project with what its tools make."""
    (top / ".wsfsignore").write_text("node_modules/\n*.ckpt\n!keep.ckpt\n/build\n")
    for number in range(40):
        put(top / f"node_modules/package{number}/index.js", os.urandom(2000))
    put(top / "node_modules/native/addon.node", os.urandom(3 << 20))
    put(top / "src/main.py", b"print(1)\n")
    put(top / "src/last.ckpt", os.urandom(1 << 20))
    put(top / "keep.ckpt", b"kept")
    put(top / "build/out", b"made")


def paths(top: Path) -> set[str]:
    found = {os.path.relpath(os.path.join(at, name), top) for at, d, f in os.walk(top) for name in (*d, *f)}
    return found - {".workspace.initialized", ".wsfsignore"}


IGNORED = 1 + 41 + 40 + 1 + 1 + 2
SAVED = {"src", "src/main.py", "keep.ckpt"}


def test_it_stays_here_through_all_and_is_nowhere_else(site: Any) -> None:
    site.mount("-o", "save_interval=1")
    top = site.mountpoint
    project(top)
    before = {name: (top / name).read_bytes() for name in paths(top) if (top / name).is_file()}
    site.wsfs("sync", top)
    state = site.status()
    assert (state["unsaved_files"], state["unsaved_bytes"]) == (0, 0)
    assert state["kept_files"] == IGNORED
    assert "86 files stay on this machine (.wsfsignore)" in site.wsfs("status", top).stdout
    assert site.stored_bytes() < 500_000
    # What is changed there is nothing to save.
    seq = state["seq"]
    put(top / "node_modules/package1/index.js", b"changed")
    put(top / "src/next.ckpt", os.urandom(1000))
    (top / "src/next.ckpt").rename(top / "src/last.ckpt")
    (top / "node_modules/package2/index.js").unlink()
    assert "nothing has changed" in site.wsfs("sync", top).stdout
    assert site.status()["seq"] == seq
    told = site.wsfs("unsaved", top).stdout
    assert told.startswith("Everything is saved.\nNot saved, and not to be: ")
    # A killed daemon, and a stop.
    before |= {"node_modules/package1/index.js": b"changed", "src/last.ckpt": (top / "src/last.ckpt").read_bytes()}
    del before["node_modules/package2/index.js"]
    site.kill()
    site.mount()
    assert {name: (top / name).read_bytes() for name in paths(top) if (top / name).is_file()} == before
    assert "stay on this machine (.wsfsignore)." in site.umount().stdout
    site.wsfs("fsck", site.url, "--data")
    site.wsfs("fsck", "--cache-dir", site.cache, site.url)
    site.mount()
    assert {name: (top / name).read_bytes() for name in paths(top) if (top / name).is_file()} == before
    # Another machine, which has its own; then this one comes back, and what it had is set aside.
    site.umount()
    mine = site.base / "mine"
    site.cache.rename(mine)
    site.mount()
    assert paths(top) == SAVED
    put(top / "build/out", b"made elsewhere")
    put(top / "src/second.py", b"print(2)\n")
    site.umount()
    site.wipe()
    mine.rename(site.cache)
    told = site.mount().stderr
    assert "files that stay on this machine (.wsfsignore) build on a commit that is not the newest" in told
    assert "remove that directory if nothing in it is needed" in told
    assert paths(top) == SAVED | {"src/second.py"}
    site.umount()
    rescued = site.base / "rescued"
    site.wsfs("export", "--unsaved", rescued, "--cache-dir", site.cache)
    for name, content in before.items():
        if name not in (*SAVED, ".wsfsignore"):
            assert (rescued / name).read_bytes() == content


def test_check_ignore(site: Any) -> None:
    site.mount()
    top = site.mountpoint
    put(top / "build", b"saved before")
    site.wsfs("sync", top)
    project_file = top / ".wsfsignore"
    project_file.write_text("# what can be made again\n*.log\n!keep.log\n/build\n")
    put(top / "a.log", b"x")
    (top / "link.log").symlink_to("nowhere")
    said = site.wsfs("check-ignore", top / "a.log", top / "keep.log", top / "src.py", top / "build").stdout
    assert said.splitlines() == [
        f".wsfsignore:2:*.log\t{top}/a.log",
        f".wsfsignore:3:!keep.log\t{top}/keep.log",
        f".wsfsignore:4:/build\t{top}/build  (was saved before, and goes on being saved)",
    ]
    assert site.wsfs("check-ignore", top / "src.py", code=1).stdout == ""
    (one, two) = json.loads(site.wsfs("check-ignore", "--json", f"{top}/x.log/", top / "link.log").stdout)
    assert one == {
        "path": f"{top}/x.log/",
        "ignored": True,
        "line": 2,
        "pattern": "*.log",
        "matched": "x.log",
        "stays": None,
    }
    assert two["stays"] is True
    assert site.wsfs("check-ignore", top / ".wsfsignore", top / ".workspace.initialized", code=1).stdout == ""
    assert "in no workspace" in site.wsfs("check-ignore", "/proc", code=42).stderr
    assert "always saved" in site.wsfs("check-ignore", top, code=2).stderr
    project_file.unlink()
    assert site.wsfs("check-ignore", top / "a.log", code=1).stdout == ""
    site.wsfs("sync", top)
    site.elsewhere()
    assert paths(top) == {"build", "a.log", "link.log"}


def test_what_stays_can_be_copied_out_and_hides_no_mass_delete(site: Any) -> None:
    site.mount()
    top = site.mountpoint
    (top / ".wsfsignore").write_text("local/\n")
    for directory, count in (("local", 1500), ("saved", 1200)):
        (top / directory).mkdir()
        for number in range(count):
            (top / directory / str(number)).touch()
    put(top / "local/deep/file", b"here only")
    site.wsfs("sync", top)
    rescued = site.base / "rescued"
    told = json.loads(site.wsfs("unsaved", top, "--json").stdout)
    assert (told["total"], told["kept_files"], told["kept_bytes"]) == (0, 1503, 9)
    site.wsfs("export", "--unsaved", rescued, top)
    assert (rescued / "local/deep/file").read_bytes() == b"here only"
    assert not (rescued / "saved").exists()
    site.run("rm", "-r", "saved")
    give_up = time.monotonic() + 60
    while "wsfs undo" not in site.status()["notice"]:
        assert time.monotonic() < give_up, "the mass delete was not noticed"
    site.run("rm", "-r", "local")
    site.wsfs("undo", top)
    assert len(list((top / "saved").iterdir())) == 1200


def test_a_read_only_mount_with_the_same_cache_does_not_move(site: Any) -> None:
    site.mount()
    top = site.mountpoint
    (top / ".wsfsignore").write_text("local/\n")
    put(top / "local/file", b"here only")
    site.umount()
    (site.base / "second").mkdir()
    site.mount("--read-only")
    assert (top / "local/file").read_bytes() == b"here only"
    site.mount(where=site.base / "second", cache=site.base / "other")
    put(site.base / "second/new", b"x")
    site.wsfs("umount", site.base / "second")
    told = site.wsfs("refresh", top, code=60).stderr
    assert "--cache-dir" in told
    assert not (top / "new").exists()


def test_programs_see_one_file_system_with_a_border(site: Any) -> None:
    site.mount()
    top = site.mountpoint
    (top / ".wsfsignore").write_text("cache/\n*.bak\n")
    put(top / "cache/a", os.urandom(200_000))
    put(top / "file", os.urandom(200_000))
    with pytest.raises(OSError, match="cross-device"):
        os.link(top / "cache/a", top / "b")
    content = (top / "file").read_bytes()
    site.run("mv", "file", "file.bak")
    site.run("mv", "cache/a", "out")
    site.run("cp", "-r", "cache", "copied")
    for number in range(20):
        put(top / f"copied/{number}", b"new")
    site.run("mv", "copied", "cache")
    assert site.status()["unsaved_files"] < 10, "what was moved to where it stays is not unsaved"
    with (top / "cache/open").open("wb") as file:
        file.write(b"first")
        file.flush()
        os.rename(top / "cache/open", top / "opened")
        file.write(b" second")
    site.run("git", "init", "-q", "cache/repository")
    put(top / "cache/repository/x", b"1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    site.run(*git, "add", "x", cwd=top / "cache/repository")
    site.run(*git, "commit", "-qm", "one", cwd=top / "cache/repository")
    site.wsfs("sync", top)
    site.kill()
    site.mount()
    assert (top / "file.bak").read_bytes() == content
    assert (top / "opened").read_bytes() == b"first second"
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=top / "cache/repository", capture_output=True, check=True
    )
    assert status.stdout == b""
    site.run("git", "fsck", "--strict", cwd=top / "cache/repository")
    site.elsewhere()
    assert paths(top) == {"out", "opened"}
    assert (top / "opened").read_bytes() == b"first second"
    site.umount()
    site.wsfs("fsck", site.url, "--data")
