"""What goes, what stays, and for how long."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from garbage import HOUR, GcWorld, retained
from harness import Crash

import wsfs.sync.commit
from wsfs.errors import FencedError, FormatError, TransientStoreError
from wsfs.model import ROOT_INO, Packed
from wsfs.repo.head import State
from wsfs.sync.pins import pin
from wsfs.sync.retain import Commit, keep_for
from wsfs.values import Retention

Make = Callable[..., GcWorld]
BLOCK = 4096


def test_a_deleted_file_goes_and_the_others_stay(world: GcWorld) -> None:
    world.create(b"dead", os.urandom(20 * BLOCK))
    world.create(b"alive", data := os.urandom(5 * BLOCK))
    world.commit()
    world.unlink(b"dead")
    world.commit()
    before = world.usage()
    done = world.settle()
    assert done.packs
    assert before - world.usage("packs/") > 19 * BLOCK
    assert world.check()
    assert not world.garbage()
    world.restart_cold()
    assert world.content(b"alive") == data


def test_nothing_goes_before_its_time(world: GcWorld) -> None:
    world.create(b"a", os.urandom(8 * BLOCK))
    world.commit()
    world.unlink(b"a")
    world.commit()
    everything = set(world.bucket.objects)
    for _ in range(5):
        world.touch()
        world.pass_time(HOUR / 10)
        done = world.collect()
        assert (done.packs, done.segments, done.commits) == (0, 0, 0)
    assert everything <= set(world.bucket.objects)


def test_a_commit_that_was_head_until_now_is_kept_however_old_it_is(world: GcWorld) -> None:
    world.create(b"a", os.urandom(8 * BLOCK))
    world.commit()
    old = world.head().commit
    world.pass_time(100 * HOUR)
    world.unlink(b"a")
    for _ in range(4):
        world.touch()
    for _ in range(3):
        world.touch()
        world.collect()
    assert old in world.bucket.objects, "readers may stand on it"
    world.check()
    world.settle()
    assert old not in world.bucket.objects


def test_a_pack_goes_only_after_a_commit_has_followed_its_condemnation(world: GcWorld) -> None:
    """Whoever stands on an older commit, with a cache that knows nothing of it, can make no commit any more then."""
    world.create(b"a", os.urandom(8 * BLOCK))
    world.commit()
    world.unlink(b"a")
    world.bury()
    for _ in range(3):
        done = world.collect()
        assert done.packs == 0
        assert done.condemned
        world.pass_time(HOUR + 1)
    world.touch()
    assert world.collect().packs >= 3
    world.check()


def test_a_new_epoch_deletes_no_pack_before_it_has_made_two_commits(world: GcWorld, make: Make) -> None:
    """The other one's cache is warm, and knows blocks that nothing leads to any more."""
    data = os.urandom(8 * BLOCK)
    world.create(b"a", data)
    world.commit()
    world.unlink(b"a")
    world.bury()
    world.touch()
    world.stop()
    other = make(world)
    other.start()
    for _ in range(4):
        other.pass_time(HOUR + 1)
        assert other.collect().packs == 0
    other.stop()
    world.start()  # its cache stands on HEAD, and it writes the same blocks again
    world.create(b"b", data)
    world.commit()
    world.check()
    world.settle()
    world.check()
    assert world.content(b"b") == data


def test_an_equal_block_never_leads_to_a_condemned_pack(world: GcWorld) -> None:
    data = os.urandom(2 * BLOCK)
    world.create(b"a", data)
    world.commit()
    first = world.index.block(world.file(b"a"), 0)
    assert isinstance(first, Packed)
    world.unlink(b"a")
    world.bury()
    assert world.collect().condemned
    world.create(b"b", data)
    world.commit()
    second = world.index.block(world.file(b"b"), 0)
    assert isinstance(second, Packed)
    assert (second.loc.epoch, second.loc.pack) != (first.loc.epoch, first.loc.pack)
    world.settle()
    world.check()
    assert world.content(b"b") == data


def test_an_equal_block_still_saves_an_upload_before_that(world: GcWorld) -> None:
    data = os.urandom(2 * BLOCK)
    world.create(b"a", data)
    world.commit()
    world.unlink(b"a")
    world.touch()
    world.collect()
    world.store.log.clear()
    world.create(b"b", data)
    world.commit()
    assert not world.store.puts("packs/")
    world.settle()
    world.check()


def test_a_file_that_is_open_without_a_name_stays_readable(world: GcWorld) -> None:
    ino = world.create(b"a", data := os.urandom(8 * BLOCK))
    world.commit()
    world.restart_cold()
    world.load_all()
    assert world.do(world.names.unlink, ROOT_INO, b"a") == ino
    world.settle()
    assert world.read(ino) == data
    world.names.forgotten(ino)
    assert world.settle().packs
    world.check()


def test_orphans_of_a_crash_go_but_not_at_once(world: GcWorld) -> None:
    def crash(step: str) -> None:
        if step == "manifest":
            raise Crash

    world.create(b"a", os.urandom(6 * BLOCK))
    world.reached = crash
    with pytest.raises(Crash):
        world.commit()
    world.reached = lambda _step: None
    orphans = world.garbage()
    assert len({key.split("/")[0] for key in orphans}) == 3, "packs, a segment, and a manifest"
    world.restart()
    world.touch()
    world.collect()
    world.touch()
    world.collect()
    assert orphans <= set(world.bucket.objects)
    world.settle()
    assert not orphans & set(world.bucket.objects)
    world.check()


def test_objects_of_newer_epochs_and_of_unknown_names_are_never_touched(world: GcWorld) -> None:
    names = ["packs/01/000000ff-00000001", "meta/000000ff/00000001", "commits/0000000009-000000ff-0123456789abcdef"]
    names += ["hints/00000001", "packs/readme", "meta/other", "commits/notes"]
    for name in names:
        world.observer().put(name, b"not ours")
    world.settle()
    assert set(names) <= set(world.bucket.objects)


def test_a_damaged_commit_stops_the_collection_before_anything_is_deleted(world: GcWorld) -> None:
    world.create(b"a", os.urandom(8 * BLOCK))
    world.commit()
    world.unlink(b"a")
    world.commit()
    world.bury()
    world.touch()
    del world.bucket.objects[max(key for key in world.bucket.objects if key.startswith("meta/00000001/"))]
    before = set(world.bucket.objects)
    with pytest.raises(FormatError):
        world.collect()
    assert set(world.bucket.objects) == before


def test_a_pinned_commit_stays_with_all_it_leads_to(world: GcWorld) -> None:
    world.create(b"a", os.urandom(8 * BLOCK))
    world.commit()
    old = world.head().commit
    name = pin(world.observer(), old, "a test")
    world.unlink(b"a")
    world.settle()
    assert old in world.bucket.objects
    world.check()
    world.pass_time(31 * 24 * HOUR)
    world.settle()
    assert old not in world.bucket.objects
    assert name not in world.bucket.objects
    assert not world.garbage()


def test_a_commit_in_doubt_keeps_everything(world: GcWorld) -> None:
    world.create(b"a", os.urandom(8 * BLOCK))
    world.commit()
    world.unlink(b"a")
    world.bury()
    world.collect()
    world.create(b"b", os.urandom(BLOCK))

    def lost(method: str, key: str) -> None:
        if key == "HEAD":
            raise TransientStoreError("the answer was lost")

    def down(method: str, key: str) -> None:
        if key == "HEAD" and method == "get":
            raise TransientStoreError("down")

    world.store.lost, world.store.fault = lost, down
    with pytest.raises(TransientStoreError):
        world.commit()
    world.store.heal()
    world.pass_time(HOUR + 1)
    before = set(world.bucket.objects)
    assert world.index.pending is not None
    world.collect()
    assert set(world.bucket.objects) == before
    world.commit()
    world.settle()
    world.check()


def test_what_deltas_hide_is_garbage_without_a_fold(world: GcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real number of deltas it would take sixteen commits, each with a copy of what changes."""
    monkeypatch.setattr(wsfs.sync.commit, "MAX_DELTAS", 1000)
    monkeypatch.setattr(wsfs.sync.commit, "_FOLD_FLOOR", 1 << 40)
    kept = {}
    for number in range(10):
        world.create(b"%d" % number, data := os.urandom(3 * BLOCK))
        kept[b"%d" % number] = data
    world.commit()
    for _ in range(12):
        world.unlink(b"0")
        world.create(b"0", data := os.urandom(40 * BLOCK))
        kept[b"0"] = data
        world.commit()
        world.check()
    world.bury()
    world.collect()
    world.touch()
    world.collect()
    assert world.usage("packs/") < 1.5 * world.live_bytes()
    assert len(list(world.bucket.objects)) < 60
    world.check()
    world.restart_cold()
    assert {name: world.content(name) for name in kept} == kept


def test_what_only_an_older_commit_shows_is_kept_for_it(world: GcWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wsfs.sync.commit, "MAX_DELTAS", 1000)
    rng = random.Random(4)
    for _ in range(12):
        name = b"%d" % rng.randrange(4)
        if name in world.listing():
            world.unlink(name)
        world.create(name, rng.randbytes(5 * BLOCK))
        world.commit()
        world.pass_time(HOUR / 4)
        world.collect()
        assert world.check() >= 2


def test_it_is_due_after_a_while_and_a_commit(world: GcWorld) -> None:
    assert not world.collector.due()
    world.pass_time(601)
    assert world.collector.due()
    world.collect()
    world.pass_time(601)
    assert not world.collector.due(), "there was no commit"
    world.touch()
    assert world.collector.due()


def test_it_ends_early_when_there_is_no_time(world: GcWorld) -> None:
    for number in range(8):
        world.create(b"%d" % number, os.urandom(4 * BLOCK))
    world.commit()
    for number in range(8):
        world.unlink(b"%d" % number)
    world.bury()
    world.collect()
    world.touch()
    world.stopping = True
    assert world.collect().packs == 0
    world.stopping = False
    assert world.collect().packs


def test_what_a_failed_commit_has_uploaded_is_not_used_again_once_it_is_condemned(world: GcWorld) -> None:
    """Even if the store's clock jumps: ages do not decide what a commit may lead to."""
    for name in (b"a", b"b", b"c"):
        world.create(name, os.urandom(3 * BLOCK))

    def down(method: str, key: str) -> None:
        if method == "put" and key.startswith("meta/"):
            raise TransientStoreError("down")

    world.store.fault = down
    with pytest.raises(TransientStoreError):
        world.commit()
    world.store.heal()
    packs = [key for key in world.bucket.objects if key.startswith("packs/")]
    assert packs
    world.pass_time(2 * HOUR)
    assert world.collect().condemned == len(packs)
    world.commit()
    assert world.collect().packs == len(packs)
    world.check()


def test_rows_that_only_memory_holds_count(world: GcWorld, caplog: pytest.LogCaptureFixture) -> None:
    for name in (b"a", b"b", b"c", b"d", b"e"):
        world.create(name, os.urandom(BLOCK))
    world.commit()
    for name in (b"a", b"b", b"c", b"d"):
        world.unlink(name)
    world.bury()
    before = set(world.bucket.objects)
    while not world.collect().repacked:
        pass
    fresh = {key for key in set(world.bucket.objects) - before if key.startswith("packs/")}
    assert fresh
    for _ in range(3):
        world.pass_time(HOUR + 1)
        world.collect()
    world.touch()
    world.collect()
    assert fresh <= set(world.bucket.objects)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    world.check()


@pytest.mark.parametrize("step", ["frames read", "pack written"])
def test_what_changes_while_packs_are_written_anew_stays_changed(world: GcWorld, step: str) -> None:
    names = [b"%d" % number for number in range(6)]
    for name in names:
        world.create(name, os.urandom(3 * BLOCK))
    world.commit()
    for name in names:  # one block of three stays: the packs are sparse
        ino = world.file(name)
        world.truncate(ino, BLOCK)
    world.bury()
    before = {name: world.content(name) for name in names}
    done = False

    def change(reached: str) -> None:
        nonlocal done
        if reached != step or done:
            return
        done = True
        world.write(world.file(b"0"), 0, b"n" * BLOCK)
        world.commit()
        world.write(world.file(b"1"), 0, b"l" * 10)
        world.truncate(world.file(b"2"), 1000)
        world.unlink(b"3")
        held = world.do(world.names.unlink, ROOT_INO, b"4")
        assert world.read(held) == before[b"4"]
        before[b"0"] = b"n" * BLOCK
        before[b"1"] = b"l" * 10 + before[b"1"][10:]
        before[b"2"] = before[b"2"][:1000]
        del before[b"3"], before[b"4"]

    world.step = change
    while not world.collect().repacked:
        world.touch()
    assert done
    world.commit()
    world.check()
    world.settle()
    assert {name: world.content(name) for name in before} == before
    world.check()
    world.restart_cold()
    assert {name: world.content(name) for name in before} == before


def test_damaged_frames_are_left_where_they_are(world: GcWorld, caplog: pytest.LogCaptureFixture) -> None:
    for name in (b"a", b"b", b"c"):
        world.create(name, os.urandom(BLOCK))
    world.commit()
    row = world.index.block(world.file(b"a"), 0)
    assert isinstance(row, Packed)
    key = f"packs/{row.loc.pack & 0xFF:02x}/{row.loc.epoch:08x}-{row.loc.pack:08x}"
    data = bytearray(world.bucket.objects[key].data)
    data[row.loc.offset + 5] ^= 1
    world.observer().put(key, bytes(data))
    world.unlink(b"b")
    world.unlink(b"c")
    world.bury()
    world.collect()
    world.touch()
    world.collect()
    after = world.index.block(world.file(b"a"), 0)
    assert isinstance(after, Packed)
    assert after.loc == row.loc
    assert key in world.bucket.objects
    assert "is damaged" in caplog.text


def test_the_policy_keeps_the_newest_two_and_what_was_head_within_the_retention() -> None:
    ages = [None, 50.0, 200.0, 3599.0, 3600.0, 9000.0]
    commits = [Commit(f"c{n}", n, age) for n, age in enumerate(ages)]
    assert retained(commits) == {"c0", "c1", "c2", "c3"}
    assert keep_for(Retention(0, 0, 0))(commits) == {"c0", "c1", "c2", "c3"}, "readers need an hour"
    assert retained(commits[:1]) == {"c0"}
    taken = iter(commits)
    retained(taken)
    assert list(taken) == commits[5:], "no more is asked for than is needed: each costs a request"


def test_a_stop_in_between_loses_nothing(world: GcWorld) -> None:
    rng = random.Random(1)
    for number in range(6):
        world.create(b"%d" % number, rng.randbytes(3 * BLOCK))
        world.commit()
        world.pass_time(HOUR / 2)
        world.collect()
    for number in range(0, 6, 2):
        world.unlink(b"%d" % number)
    world.commit(State.STOPPING)
    world.stop()
    world.start()
    world.settle()
    world.check()
    assert not world.garbage()


@pytest.mark.parametrize("step", ["frozen", "packs", "segments", "manifest", "pending"])
def test_a_zombie_writer_beside_collections(world: GcWorld, make: Make, step: str) -> None:
    """A host stops in the middle of a commit, for hours. Another one takes over, and collects its garbage meanwhile.
    What the first one still sends when it goes on is garbage too, and it keeps what it could not save."""
    rng = random.Random(8)
    world.create(b"shared", shared := rng.randbytes(3 * BLOCK))
    world.commit()
    world.create(b"unsaved", unsaved := rng.randbytes(5 * BLOCK))
    other = make(world)
    swept = 0

    def sleep(reached: str) -> None:
        nonlocal swept
        if reached != step or swept:
            return
        other.start()
        other.load_all()
        other.create(b"same", unsaved)
        other.commit()
        swept = 1 + other.settle(3).packs

    world.reached = sleep
    with pytest.raises(FencedError):
        world.commit()
    assert swept
    other.check()
    assert other.content(b"same") == unsaved
    other.settle()
    other.check()
    assert not other.garbage()
    assert other.content(b"shared") == shared
    assert b"unsaved" not in other.listing()
    assert world.content(b"unsaved") == unsaved
    other.restart_cold()
    assert other.content(b"same") == unsaved
