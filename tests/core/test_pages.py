"""Which files' bytes the kernel is given when they are opened."""

from __future__ import annotations

import os

import pyfuse3
import pytest
from harness import World, unreachable

from wsfs.kernel.pages import SMALL, Pages
from wsfs.model import Ino
from wsfs.remote import NeedRemote


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bytes]]:
    """What was stored in the kernel's page cache."""
    found: list[tuple[int, int, bytes]] = []
    monkeypatch.setattr(pyfuse3, "notify_store", lambda *stored: found.append(stored))
    return found


def opened(world: World, pages: Pages, ino: Ino, flags: int = os.O_RDONLY) -> None:
    inode = world.index.inode(ino)
    assert inode is not None
    pages.opened(inode, flags)


def test_the_first_open_gives_all_bytes(world: World, given: list[tuple[int, int, bytes]]) -> None:
    """And no other one, until the kernel has forgotten the inode, and its pages."""
    pages = Pages(world.files.read)
    ino = world.create(b"file", b"x" * SMALL)
    for _ in range(2):
        opened(world, pages, ino)
        assert given == [(ino, 0, b"x" * SMALL)]
    pages.forgotten(ino)
    opened(world, pages, ino)
    assert len(given) == 2


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
def test_what_may_have_changed_in_the_kernel_is_never_given(
    world: World, given: list[tuple[int, int, bytes]], flags: int
) -> None:
    pages = Pages(world.files.read)
    changed, made = world.create(b"changed", b"old"), world.create(b"made", b"old")
    opened(world, pages, changed, flags)
    pages.made(made)
    for ino in (changed, made):
        opened(world, pages, ino)
    assert not given


def test_large_and_empty_files_are_not_given(world: World, given: list[tuple[int, int, bytes]]) -> None:
    pages = Pages(world.files.read)
    for number, size in enumerate((0, SMALL + 1)):
        opened(world, pages, world.create(b"%d" % number, b"x" * size))
    assert not given


def test_what_is_not_here_is_not_waited_for(world: World, given: list[tuple[int, int, bytes]]) -> None:
    """The open succeeds without asking the store; the read asks it, and fails if need be."""
    pages = Pages(world.files.read)
    ino = world.create(b"file", os.urandom(SMALL))
    world.commit()
    assert world.evictor.evict(ino)
    world.workspace.packs.shrink(0)
    world.store.fault = unreachable
    opened(world, pages, ino)
    assert not given
    with pytest.raises(NeedRemote):
        world.files.read(ino, 0, SMALL)


def test_a_kernel_that_does_not_take_pages_is_no_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_stored: object) -> None:
        raise OSError(38, "no such notification")

    monkeypatch.setattr(pyfuse3, "notify_store", refuse)
    opened(world, Pages(world.files.read), world.create(b"file", b"x"))
