"""Small files wait in their rows until a commit packs them."""

from __future__ import annotations

import os

from harness import World

from wsfs.model import HELD_MAX, INLINE_MAX, Inline, Local, Packed


def test_a_small_file_has_no_file_of_its_own(world: World) -> None:
    content = os.urandom(HELD_MAX)
    ino = world.create(b"small", content)
    assert world.index.block(ino, 0) == Inline(content)
    assert list(world.overlay.inodes()) == []
    assert world.files.unsaved_bytes() == HELD_MAX
    world.crash()
    world.start()
    assert world.content(b"small") == content
    assert world.files.unsaved_bytes() == HELD_MAX


def test_it_is_packed_by_a_commit_and_read_without_a_request(world: World) -> None:
    contents = {b"%d" % size: os.urandom(size) for size in (INLINE_MAX, INLINE_MAX + 1, 5000, HELD_MAX)}
    inodes = {name: world.create(name, content) for name, content in contents.items()}
    world.commit()
    assert world.files.unsaved_bytes() == 0
    kinds = [type(world.index.block(ino, 0)) for ino in inodes.values()]
    assert kinds == [Inline, Packed, Packed, Packed]
    world.store.log.clear()
    assert {name: world.content(name) for name in contents} == contents
    assert world.store.log == []


def test_what_was_not_written_here_is_fetched_into_the_same_pack(world: World) -> None:
    """A pack of which only the small blocks were kept is not taken for whole."""
    big, small = os.urandom(HELD_MAX + 1), os.urandom(1000)
    ino = world.create(b"big", big)
    world.create(b"small", small)
    world.commit()
    assert world.evictor.evict(ino)
    assert (world.content(b"small"), world.content(b"big")) == (small, big)
    assert [key for method, key in world.store.log if method == "get" and key.startswith("packs/")] != []


def test_a_part_that_is_overwritten_moves_it_to_the_overlay(world: World) -> None:
    ino = world.create(b"f", b"a" * 9000)
    world.write(ino, 5000, b"b")
    assert world.index.block(ino, 0) == Local()
    assert world.content(b"f") == b"a" * 5000 + b"b" + b"a" * 3999
    assert world.files.unsaved_bytes() == 9000


def test_zeros_become_a_hole(world: World) -> None:
    ino = world.create(b"zeros", bytes(HELD_MAX))
    world.commit()
    assert world.index.block(ino, 0) is None
    assert world.content(b"zeros") == bytes(HELD_MAX)


def test_unsaved_bytes_follow_what_becomes_of_a_file(world: World) -> None:
    ino = world.create(b"f", b"a" * 5000)
    world.write(ino, 0, b"b" * 6000)
    assert world.files.unsaved_bytes() == 6000
    world.truncate(ino, 0)
    assert world.files.unsaved_bytes() == 0
    world.write(ino, 0, b"c" * 7000)
    world.unlink(b"f")
    assert world.files.unsaved_bytes() == 0
