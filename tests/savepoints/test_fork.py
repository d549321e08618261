"""Forks: two workspaces that share what both have, and lose nothing whatever the other does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Store, World

from wsfs.errors import BaseGoneError, ForeignWorkspaceError, TransientStoreError, WorkspaceExistsError
from wsfs.fsck import check
from wsfs.repo import fork as forks
from wsfs.repo.encryption import KeyFile
from wsfs.repo.head import read_head
from wsfs.repo.workspace import initialise
from wsfs.store.memory import MemoryBucket
from wsfs.sync.history import save_points
from wsfs.sync.load import read_manifest


class Shop:
    """Stores in memory by URL, as many workspaces as a test needs, all with one key or none."""

    def __init__(self, key: KeyFile | None) -> None:
        self.buckets: dict[str, MemoryBucket] = {}
        self.key = key
        self.log: list[tuple[str, str]] = []

    def raw(self, url: str) -> Store:
        store = Store(self.buckets.setdefault(url, MemoryBucket()))
        store.url = url
        store.log = self.log
        return store

    def whole(self, url: str) -> Any:
        return forks.open_whole(self.raw(url), self.key, self.raw)

    def fork(self, url: str, new: str) -> None:
        base = self.whole(url)
        forks.fork(base, url, read_manifest(base, read_head(base).head), self.raw(new), wrapper=self.key)


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    found = Shop(KeyFile(tmp_path / "key") if request.param else None)
    initialise(found.raw("memory://a"), owner=(1000, 1000), wrapper=found.key)
    return found


@pytest.fixture
def mount(shop: Shop, tmp_path: Path) -> Iterator[Callable[[str], World]]:
    """A workspace, mounted without FUSE, with an empty cache."""
    made: list[World] = []

    def one(url: str) -> World:
        root = tmp_path / f"w{len(made)}"
        root.mkdir()
        world = World(root, bucket=shop.buckets[url])
        world.observer = lambda: shop.whole(url)  # type: ignore[method-assign]
        made.append(world)
        world.start()
        return world

    yield one
    for world in made:
        world.crash()
        shutil.rmtree(world.cache_path, ignore_errors=True)


BIG = b"0123456789abcdef" * 300
OTHER = b"fedcba9876543210" * 400


def test_a_fork_has_what_its_base_had_and_each_goes_its_own_way(shop: Shop, mount: Callable[[str], World]) -> None:
    a = mount("memory://a")
    a.create(b"big", BIG)
    a.create(b"small", b"small")
    a.commit()
    a.stop()
    before = dict(shop.buckets["memory://a"].objects)
    shop.fork("memory://a", "memory://b")
    b = mount("memory://b")
    assert (b.content(b"big"), b.content(b"small")) == (BIG, b"small")
    b.create(b"new", OTHER)
    b.unlink(b"small")
    b.commit()
    b.stop()
    shop.fork("memory://b", "memory://c")
    c = mount("memory://c")
    assert (c.content(b"big"), c.content(b"new")) == (BIG, OTHER)
    c.stop()
    a = mount("memory://a")
    assert a.content(b"small") == b"small"
    assert b"new" not in a.listing()
    a.stop()
    now = shop.buckets["memory://a"].objects
    assert all(now[key].data == found.data for key, found in before.items() if key != "HEAD" and key != "probe")
    for url in shop.buckets:
        assert not check(shop.whole(url), data=True, every_commit=True).findings


def test_a_fork_takes_the_same_requests_whatever_the_size(shop: Shop, mount: Callable[[str], World]) -> None:
    shop.log.clear()
    shop.fork("memory://a", "memory://small")
    small = len(shop.log)
    a = mount("memory://a")
    for number in range(300):
        a.create(b"%d" % number, b"%d " % number * 300)
    a.commit()
    a.stop()
    shop.log.clear()
    shop.fork("memory://a", "memory://large")
    assert len(shop.log) == small


def test_a_workspace_that_is_no_fork_costs_no_request_more(shop: Shop, mount: Callable[[str], World]) -> None:
    a = mount("memory://a")
    a.create(b"big", BIG)
    a.commit()
    a.stop()
    shop.log.clear()
    assert mount("memory://a").content(b"big") == BIG
    assert [key for _, key in shop.log].count("FORMAT") == (1 if shop.key is None else 2)


def test_what_is_there_is_never_overwritten_and_an_interrupted_fork_goes_on(shop: Shop) -> None:
    shop.fork("memory://a", "memory://b")
    with pytest.raises(WorkspaceExistsError):
        shop.fork("memory://a", "memory://b")
    shop.raw("memory://c").put("something", b"else")
    with pytest.raises(ForeignWorkspaceError):
        shop.fork("memory://a", "memory://c")
    shop.raw("memory://b").delete("HEAD")
    with pytest.raises(WorkspaceExistsError):
        initialise(shop.raw("memory://b"), wrapper=shop.key)
    shop.fork("memory://a", "memory://b")
    assert not check(shop.whole("memory://b")).findings


def test_a_fork_whose_last_answer_is_lost_has_succeeded(shop: Shop) -> None:
    raw = shop.raw("memory://b")

    def lost(_method: str, key: str) -> None:
        if key == "HEAD":
            raise TransientStoreError("no answer in time")

    raw.lost = lost
    base = shop.whole("memory://a")
    forks.fork(base, "memory://a", read_manifest(base, read_head(base).head), raw, wrapper=shop.key)
    assert not check(shop.whole("memory://b")).findings


def test_a_base_that_is_gone_is_named_and_repairs_nothing(shop: Shop, mount: Callable[[str], World]) -> None:
    a = mount("memory://a")
    a.create(b"big", BIG)
    a.commit()
    a.stop()
    shop.fork("memory://a", "memory://b")
    (mark,) = [key for key in shop.buckets["memory://a"].objects if key.startswith("forks/")]
    with pytest.raises(WorkspaceExistsError):
        forks.release(shop.whole("memory://a"), shop.raw("memory://b"))
    assert any(point.pin and "memory://b" in point.pin.reason for point in save_points(shop.whole("memory://a")))
    head = shop.buckets["memory://b"].objects.pop("HEAD")  # not found once
    with pytest.raises(WorkspaceExistsError):
        forks.release(shop.whole("memory://a"), shop.raw("memory://b"))
    shop.buckets["memory://b"].objects["HEAD"] = head
    shop.raw("memory://a").delete(mark)
    assert [finding.kind for finding in check(shop.whole("memory://b")).findings] == ["base"]
    forks.keep(shop.whole("memory://a"), shop.raw("memory://b"))
    assert mark in shop.buckets["memory://a"].objects
    kept = shop.buckets.pop("memory://a")
    with pytest.raises(BaseGoneError, match="memory://a"):
        check(shop.whole("memory://b"))
    shop.buckets["memory://a"] = kept
    del shop.buckets["memory://b"]
    assert forks.release(shop.whole("memory://a"), shop.raw("memory://b")) == 1
    assert mark not in shop.buckets["memory://a"].objects


def test_a_fork_through_the_real_commands(site: Any, workspace: Any, ask: Callable[..., Any]) -> None:
    """Mounted, changed, stopped, and mounted again without a cache; the base is what it was."""
    top, base, url = site.mountpoint, site.url, f"{site.url}-fork"
    (top / "kept").write_bytes(BIG * 50)
    (top / "changed").write_text("before")
    site.umount()
    made = ask("fork", base, url)
    assert (made["base"], made["files"]) == (base, 4)
    site.wsfs("fork", base, url, code=21)
    site.wsfs("fork", base, "s3://elsewhere/fork", code=2)
    cache = site.base / "fork-cache"
    site.url = url
    site.mount(cache=cache)
    assert (top / "kept").read_bytes() == BIG * 50
    (top / "changed").write_text("after")
    site.umount()
    shutil.rmtree(cache)
    site.mount(cache=cache)
    assert ((top / "kept").read_bytes(), (top / "changed").read_text()) == (BIG * 50, "after")
    site.umount()
    assert "All is well" in site.wsfs("fsck", url, "--data").stdout
    assert ask("usage", url)["files"] == 4
    site.wsfs("fork", base, url, "--release", code=21)
    site.wsfs("pin", base, made["base_id"], "--remove", code=2)
    site.url = base
    site.mount()
    assert (top / "changed").read_text() == "before"
    site.umount()
    where = Path(base.removeprefix("file://"))
    where.rename(where.with_name("moved"))
    assert base in site.wsfs("fsck", url, code=28).stderr
    where.with_name("moved").rename(where)
    shutil.rmtree(f"{where}-fork")
    assert ask("fork", base, url, "--release")["released"] == 1
