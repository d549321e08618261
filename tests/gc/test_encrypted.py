"""An encrypted workspace without FUSE: nothing above the store knows that it is one."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import harness
import pytest
from garbage import GcWorld
from harness import Store

from wsfs.errors import EncryptionKeyError
from wsfs.fsck import Checked, check
from wsfs.repair import repair
from wsfs.repo.encryption import KeyFile
from wsfs.repo.workspace import READER_KEY, initialise, unlock
from wsfs.store.base import Store as AnyStore
from wsfs.store.sealed import SealedStore
from wsfs.sync.lease import this_process

NAME, SMALL, LARGE = b"a-secret-name", b"a secret so small that its row holds it", b"a secret line\n" * 300
BLOCK = 4096


class Encrypted:
    """A workspace that is always looked at through its key."""

    def __init__(self, world: GcWorld, key: KeyFile) -> None:
        self.world = world
        self._in_clear = world.observer
        self._key = key
        world.observer = self.store  # type: ignore[method-assign, assignment]

    def store(self) -> AnyStore:
        return unlock(self._in_clear(), self._key)

    def checked(self) -> Checked:
        return check(self.store(), data=True)

    def everything(self) -> bytes:
        """All names and objects but the reader, which is the same in each workspace."""
        objects = self.world.bucket.objects.items()
        return b"".join(key.encode() + found.data for key, found in objects if key != READER_KEY)


@pytest.fixture
def encrypted(make: Callable[..., GcWorld], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Encrypted:
    """An encrypted workspace, mounted."""
    key = KeyFile(tmp_path / "key")
    monkeypatch.setattr(harness, "initialise", partial(initialise, wrapper=key))
    found = Encrypted(make(), key)
    found.world.start()
    assert isinstance(found.world.store, SealedStore)
    return found


def test_nothing_is_in_clear_and_all_of_it_comes_back(encrypted: Encrypted) -> None:
    world = encrypted.world
    world.create(NAME, SMALL)
    world.create(NAME + b".log", LARGE)
    world.create(b"again", LARGE)
    before = len(encrypted.everything())
    world.commit()
    assert len(encrypted.everything()) - before < len(LARGE), "equal blocks are stored once, and compressed"
    for secret in (NAME, b"secret", b"WSFSSEG1", b"WSFSPAK1", b"WSFSMAN1", b"RUNNING", b'"host":'):
        assert secret not in encrypted.everything()
    assert not encrypted.checked().findings
    elsewhere = world.cache_path.with_name("elsewhere")
    world.crash()
    world.cache_path = elsewhere
    world.start()
    assert (world.content(NAME), world.content(NAME + b".log")) == (SMALL, LARGE)


def test_without_the_key_there_is_nothing_to_read(encrypted: Encrypted) -> None:
    encrypted.world.commit()
    with pytest.raises(EncryptionKeyError):
        check(Store(encrypted.world.bucket))


def test_garbage_goes_and_frames_move(encrypted: Encrypted) -> None:
    """A frame that moves is encrypted anew, for its new place."""
    world = encrypted.world
    contents = {b"%d" % number: os.urandom(BLOCK) for number in range(12)}
    for name, data in contents.items():
        world.create(name, data)
    world.commit()
    for number in set(range(12)) - {3, 7}:
        world.unlink(b"%d" % number)
        del contents[b"%d" % number]
    world.bury()
    for _ in range(10):
        if world.collect().repacked:
            break
        world.touch()
    else:
        pytest.fail("nothing was moved")
    world.bury()
    world.collect()
    world.touch()
    assert world.collect().packs
    assert not encrypted.checked().findings
    world.crash()
    world.cache_path = world.cache_path.with_name("elsewhere")
    world.start()
    assert {name: world.content(name) for name in contents} == contents


def test_damage_is_found_named_and_repaired(encrypted: Encrypted) -> None:
    world = encrypted.world
    for name in (b"one", b"two", b"three", b"four", b"five", b"six"):
        world.create(name, os.urandom(BLOCK))
    world.commit()
    world.crash()
    (pack, *_) = sorted(key for key in world.bucket.objects if key.startswith("packs/"))
    stored = bytearray(world.bucket.objects[pack].data)
    stored[100] ^= 1
    Store(world.bucket).put(pack, bytes(stored))
    found = encrypted.checked()
    assert {finding.kind for finding in found.findings} == {"data"}
    assert any(finding.paths for finding in found.findings)
    store = encrypted.store()
    assert repair(store, found, this_process()).done
    assert not encrypted.checked().findings
    world.start()
    assert any(name.endswith(b".damaged") for name in world.listing())


def test_a_damaged_head_is_made_anew(encrypted: Encrypted) -> None:
    world = encrypted.world
    world.create(NAME, LARGE)
    world.commit()
    world.crash()
    Store(world.bucket).put("HEAD", bytes(300))
    found = encrypted.checked()
    assert {finding.kind for finding in found.findings} == {"head"}
    repair(encrypted.store(), found, this_process())
    assert not encrypted.checked().findings
    world.start()
    assert world.content(NAME) == LARGE
