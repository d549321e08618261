"""What cannot be mounted is refused with a sentence and an exit code: never an empty directory."""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsfs.repo import codec
from wsfs.repo.frame import digest
from wsfs.repo.head import HEAD_KEY, encode_head, read_head
from wsfs.repo.manifest import decode_manifest, encode_manifest
from wsfs.repo.segment import decode_segment, encode_segment
from wsfs.repo.workspace import FORMAT_KEY
from wsfs.store.url import open_store

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site


def flip(path: Path, at: int | None = None) -> None:
    """Change one bit in the middle of a file, or of byte `at`."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0x10
    path.write_bytes(data)


def rewrite(site: Site, change: Callable[[list[tuple[bytes, bytes | None]]], list[tuple[bytes, bytes | None]]]) -> None:
    """Change rows of the first commit and everything that vouches for them: a consistent workspace of another kind."""
    store = open_store(site.url)
    version = read_head(store)
    manifest = decode_manifest(store.get(version.head.commit).data)
    assert not manifest.deltas
    rows = change(list(decode_segment(store.get(manifest.base[0].key).data)))
    segment = encode_segment(rows)
    key = f"{manifest.base[0].key}-changed"
    store.put(key, segment)
    ref = dataclasses.replace(manifest.base[0], key=key, length=len(segment), rows=len(rows), digest=digest(segment))
    changed = dataclasses.replace(manifest, base=(ref,), nonce="f" * 16)
    store.put(changed.key, encode_manifest(changed))
    head = dataclasses.replace(
        version.head, commit=changed.key, commit_digest=digest(encode_manifest(changed)), nonce="e" * 16
    )
    store.put(HEAD_KEY, encode_head(head), if_match=version.etag)
    store.close()


def without_marker(site: Site) -> None:
    rewrite(site, lambda rows: [r for r in rows if r[0] != codec.dirent_key(1, b".workspace.initialized")])


def with_another_marker(site: Site) -> None:
    rewrite(site, lambda rows: [(k, v and v.replace(b"workspace_id", b"workspace_ID")) for k, v in rows])


def newest(site: Site, prefix: str) -> Path:
    return max(site.objects(prefix), key=lambda path: path.stat().st_mtime_ns)


DAMAGES = [
    pytest.param(lambda site: flip(site.store / HEAD_KEY, 0), 22, "HEAD", id="HEAD-bytes"),
    pytest.param(lambda site: (site.store / HEAD_KEY).write_bytes(b""), 22, "HEAD", id="HEAD-empty"),
    pytest.param(lambda site: flip(newest(site, "commits")), 22, "commit", id="commit-bytes"),
    pytest.param(lambda site: newest(site, "commits").unlink(), 22, "missing", id="commit-missing"),
    pytest.param(lambda site: flip(newest(site, "meta")), 22, "meta/", id="segment-bytes"),
    pytest.param(lambda site: newest(site, "meta").unlink(), 22, "missing", id="segment-missing"),
    pytest.param(lambda site: (site.store / HEAD_KEY).unlink(), 20, "--repair' makes it anew", id="HEAD-missing"),
    pytest.param(lambda site: (site.store / FORMAT_KEY).unlink(), 20, "FORMAT is missing", id="FORMAT-missing"),
    pytest.param(
        lambda site: (site.store / FORMAT_KEY).write_text("{}"), 23, "not written by wsfs", id="FORMAT-foreign"
    ),
    pytest.param(
        lambda site: (site.store / FORMAT_KEY).write_text('{"magic": "wsfs", "version": 9}'),
        22,
        "version 9",
        id="newer",
    ),
]
MARKERLESS = [
    pytest.param(without_marker, 24, "is missing", id="no-marker"),
    pytest.param(with_another_marker, 24, "does not have the bytes", id="other-marker"),
]


def refused(site: Site, tools: type[Helpers], code: int, words: str, *options: str) -> None:
    """A mount ends with this code and one sentence, leaves nothing mounted, and the state says ERROR and why."""
    result = site.mount(*options, code=code)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("wsfs: ")
    assert words in lines[0]
    assert not tools.is_mounted(site.mountpoint)
    assert os.listdir(site.mountpoint) == []
    status = site.status()
    assert status["state"] == "ERROR"
    assert words in status["reason"]
    assert "Traceback" not in site.wsfs("status", site.url, code=None).stderr


@pytest.mark.parametrize(("damage", "code", "words"), DAMAGES + MARKERLESS)
def test_damage_is_refused(
    site: Site, tools: type[Helpers], damage: Callable[[Site], object], code: int, words: str
) -> None:
    """One flipped bit, a missing object, a foreign or newer format, no marker: refused, also read-only."""
    damage(site)
    for options in ((), ("--read-only",)):
        refused(site, tools, code, words, *options)


@pytest.mark.parametrize(("damage", "code", "words"), MARKERLESS)
def test_the_store_says_error_too(
    site: Site, tools: type[Helpers], damage: Callable[[Site], object], code: int, words: str
) -> None:
    """Without its marker a workspace is in ERROR for everybody who asks the store, with the reason."""
    damage(site)
    refused(site, tools, code, words)
    status = site.status(site.url)
    assert status["state"] == "ERROR"
    assert words in status["reason"]


def test_no_workspace(site: Site, tools: type[Helpers], tmp_path: Path) -> None:
    """A URL that holds nothing is refused, and nothing is made for it: no directory there, and no cache here, unless
    that was there before."""
    site.url = f"file://{tmp_path}/nothing"
    refused(site, tools, 20, "there is no workspace")
    assert not (tmp_path / "nothing").exists()
    assert not site.cache.exists()
    site.mount("--foreground", code=20)
    assert not site.cache.exists()
    (tmp_path / "nothing").mkdir()
    site.cache.mkdir()
    refused(site, tools, 20, "there is no workspace")
    assert list((tmp_path / "nothing").iterdir()) == []
    assert site.cache.exists()


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_no_workspace_in_a_bucket(site: Site, tools: type[Helpers]) -> None:
    site.url += "/nothing"
    site.server.requests()
    refused(site, tools, 20, "there is no workspace")
    changes = [(method, key) for method, key, _ in site.server.requests() if method in ("PUT", "DELETE")]
    assert [method for method, key in changes if key.endswith("/nothing/probe")][-1] == "DELETE"
    assert not site.cache.exists()


def test_a_mount_point_that_is_none(site: Site, tmp_path: Path) -> None:
    """A missing directory, a file, and a mount that is there already are refused."""
    assert "does not exist" in site.mount(where=tmp_path / "missing", code=40).stderr
    (tmp_path / "plain").touch()
    assert "is not a directory" in site.mount(where=tmp_path / "plain", code=40).stderr
    site.mount()
    assert "mounted already" in site.mount(code=40).stderr
    (site.mountpoint / "file").write_text("still works")


def test_a_second_mount_is_refused(workspace: Site, tools: type[Helpers], tmp_path: Path) -> None:
    """Mounted elsewhere: refused with the holder's host, process and age; the first mount goes on."""
    second = tmp_path / "second"
    second.mkdir()
    result = workspace.mount(where=second, cache=tmp_path / "second-cache", code=30)
    (line,) = [line for line in result.stderr.splitlines() if "cannot be mounted" in line]
    assert socket.gethostname() in line
    assert f"process {workspace.pid()}" in line
    assert "last heard of" in line
    assert not tools.is_mounted(second)
    assert workspace.status(second)["state"] == "ERROR"
    (workspace.mountpoint / "file").write_text("x")
    workspace.wsfs("sync", workspace.mountpoint)
    same_cache = workspace.mount(where=second, code=30).stderr
    assert "in use by process" in same_cache
    assert str(workspace.mountpoint) in same_cache


def test_a_takeover_shuts_the_first_mount_out(workspace: Site, tools: type[Helpers], tmp_path: Path) -> None:
    """With -o takeover the older mount turns read-only, keeps what it had not saved, and fails loudly."""
    (workspace.mountpoint / "saved").write_text("saved")
    workspace.wsfs("sync", workspace.mountpoint)
    (workspace.mountpoint / "unsaved").write_text("unsaved")
    second, cache = tmp_path / "second", tmp_path / "second-cache"
    second.mkdir()
    workspace.mount("-o", "takeover", where=second, cache=cache)
    assert (second / "saved").read_text() == "saved"
    assert not (second / "unsaved").exists()
    (second / "new").write_text("new")
    assert "taken over" in workspace.wsfs("sync", workspace.mountpoint, code=31).stderr
    assert workspace.status()["state"] == "ERROR"
    with pytest.raises(OSError, match="Read-only"):
        (workspace.mountpoint / "more").write_text("x")
    assert (workspace.mountpoint / "unsaved").read_text() == "unsaved"
    workspace.wsfs("umount", second, cache=cache)
    result = workspace.wsfs("umount", workspace.mountpoint, code=None)
    assert result.returncode != 0
    if tools.is_mounted(workspace.mountpoint):
        pid = workspace.pid()
        tools.run("fusermount3", "-u", workspace.mountpoint)
        tools.until(lambda: tools.is_gone(pid))
    workspace.mount()
    assert (workspace.mountpoint / "new").read_text() == "new"
    assert not (workspace.mountpoint / "unsaved").exists()
    assert list(workspace.cache.glob("unsaved-*"))
    assert "never saved" in workspace.log()


@pytest.mark.parametrize("what", ["cache directory", "store"])
def test_what_lies_inside_the_mount_point_is_refused(site: Site, what: str) -> None:
    """The mount would have to answer itself: it hung, and whoever asked for its state with it."""
    cache = site.mountpoint / "cache" if what == "cache directory" else None
    if what == "store":
        site.store.rename(site.mountpoint / "store")
        site.url = f"file://{site.mountpoint}/store"
    told = site.mount(cache=cache, code=2).stderr
    assert f"the {what} " in told
    assert "is inside the mount point" in told
