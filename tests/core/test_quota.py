"""A quota: what it refuses, what always works, and what grew."""

from __future__ import annotations

import errno
import logging
import os
import stat

import pytest
from harness import CALLER, World

from wsfs.growth import Growers
from wsfs.index.quota import Quota
from wsfs.log import Text
from wsfs.model import ROOT_INO
from wsfs.tree.namespace import Changes

MB = 1 << 20


def limited(world: World, size: int | None, files: int | None = None) -> list[float]:
    """Give the world a quota; the list is its clock."""
    clock = [100.0]
    world.index.quota = Quota(size, files, clock=lambda: clock[0])
    return clock


def refused(world: World, name: bytes) -> bool:
    return world.errno(world.names.make, ROOT_INO, name, stat.S_IFREG | 0o644, CALLER) == errno.ENOSPC


def test_what_would_grow_beyond_it_is_refused_and_changes_nothing(world: World) -> None:
    ino = world.create(b"file", b"x" * MB)
    limited(world, world.index.bytes + 2 * MB)
    world.write(ino, MB, b"y" * MB)
    before = world.index.bytes
    assert world.errno(world.files.write, ino, 2 * MB - 10, b"z" * 2 * MB) == errno.ENOSPC
    assert world.read(ino) == b"x" * MB + b"y" * MB
    assert world.errno(world.names.setattr, ino, Changes(size=9 * MB), CALLER) == errno.ENOSPC
    assert world.index.bytes == before


def test_a_full_workspace_can_be_used_and_emptied(world: World) -> None:
    ino = world.create(b"file", b"x" * 5000)
    other = world.create(b"other", b"old")
    limited(world, 100, 1)
    assert refused(world, b"new")
    world.write(ino, 0, b"y" * 5000)
    world.do(world.names.rename, ROOT_INO, b"file", ROOT_INO, b"moved")
    world.do(world.names.link, ino, ROOT_INO, b"second")
    world.do(world.names.setattr, ino, Changes(mode=0o600), CALLER)
    world.truncate(ino, 2000)
    world.commit()
    world.unlink(b"second")
    world.unlink(b"moved")
    assert refused(world, b"new")
    world.truncate(other, 0)
    world.index.quota = Quota(5000, 100)
    world.create(b"new", b"n")
    world.commit()


def test_small_files_use_the_reserve_one_a_second(world: World) -> None:
    limit = 200 * MB
    clock = limited(world, limit)
    big, note = world.create(b"big"), world.create(b"note")
    most = limit - 2 * MB - world.index.bytes
    assert world.errno(world.names.setattr, big, Changes(size=most + 1), CALLER) == errno.ENOSPC
    world.truncate(big, most)
    world.write(note, 0, os.urandom(5000))
    world.create(b"second")
    assert refused(world, b"third")
    world.do(world.names.rename, ROOT_INO, b"second", ROOT_INO, b"note")
    clock[0] += 1
    third = world.create(b"third")
    assert world.errno(world.names.setattr, third, Changes(size=MB + 1), CALLER) == errno.ENOSPC
    world.truncate(third, MB)
    assert world.errno(world.names.setattr, note, Changes(size=MB), CALLER) is None


def test_the_number_of_files(world: World) -> None:
    clock = limited(world, None, 200)
    for number in range(198 - world.index.files):
        world.create(b"%d" % number)
    world.mkdir(b"in the reserve")
    assert refused(world, b"too fast")
    clock[0] += 1
    world.create(b"the last one")
    clock[0] += 1
    assert refused(world, b"one more")
    big = world.do(world.names.lookup, ROOT_INO, b"1").ino
    world.truncate(big, 900 * MB)
    world.unlink(b"0")
    clock[0] += 1
    assert not refused(world, b"one more")


def test_a_file_without_a_name_is_not_counted(world: World) -> None:
    ino = world.create(b"temporary")
    world.do(world.names.unlink, ROOT_INO, b"temporary")
    limited(world, 1)
    world.write(ino, 0, b"x" * 5000)
    assert world.read(ino) == b"x" * 5000


def test_the_log_names_what_has_grown_most_once_a_minute(world: World, caplog: pytest.LogCaptureFixture) -> None:
    env, data = world.mkdir(b"env"), world.mkdir(b"data")
    deep = world.mkdir(b"lib", env)
    limited(world, 10_000)
    quota = world.index.quota
    assert quota is not None
    clock = [100.0]
    growers = Growers(world.index, quota, clock=lambda: clock[0])
    quota.refused = growers.tell
    world.create(b"a", b"x" * 6000, deep)
    world.create(b"b", b"x" * 2000, data)
    world.create(b"c", b"x" * 100)
    gone = world.mkdir(b"gone")
    world.create(b"d", b"x" * 900, gone)
    world.unlink(b"d", gone)
    assert growers.most() == [(b"/env", 6000, 1), (b"/data", 2000, 1), (b"/", 100, 2)]
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert world.errno(world.names.make, ROOT_INO, b"l", stat.S_IFLNK, CALLER, target=b"x" * 4000)
        clock[0] += 60
        assert world.errno(world.names.make, ROOT_INO, b"l", stat.S_IFLNK, CALLER, target=b"x" * 4000)
    lines = [Text(stamped=False).format(record) for record in caplog.records]
    assert len(lines) == 2
    assert "bytes=" in lines[0]
    assert "/env +6000 bytes +1 files, /data +2000 bytes" in lines[0]


def test_what_comes_and_goes_is_no_growth(world: World) -> None:
    """Nor is it remembered: a directory, what was in it, and what stays on this machine and so does not count."""
    directory = world.mkdir(b"d")
    old = world.mkdir(b"old", directory)
    world.create(b"f", b"x" * 500, old)
    world.create(b".wsfsignore", b"*.tmp\n")
    limited(world, 1 << 40)
    quota = world.index.quota
    assert quota is not None
    for number in range(20):
        made = world.mkdir(b"t%d" % number, directory)
        world.create(b"f", b"x" * 100, made)
        assert quota.growth == {directory: (0, 1), made: (100, 1)}
        world.unlink(b"f", made)
        world.do(world.names.rmdir, directory, b"t%d" % number)
        world.names.forgotten(made)
        assert quota.growth == {}
        world.create(b"a.tmp", b"x" * 100, directory)
        world.unlink(b"a.tmp", directory)
    assert quota.growth == {}
    world.unlink(b"f", old)
    assert quota.growth == {old: (-500, -1)}
    other = world.mkdir(b"other", directory)
    world.do(world.names.rename, directory, b"other", directory, b"old")
    assert quota.growth == {directory: (-500, -1)}
    world.do(world.names.rmdir, directory, b"old")
    world.names.forgotten(other)
    assert quota.growth == {directory: (-500, -2)}
