"""Every commit is one moment: what is in it was true at once, whatever programs were doing."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import commits
import pytest
import writers
from ledger import FOREVER, History, Match, Model, Step, common_moment, read_ledger, walk
from rig import Rig

from wsfs.store.directory import DirectoryStore

CREW = {"tree": "tree", "pair": "pair", "logs": "logs", "bank": "bank", "git": "git"}
PATIENCE = 60.0
STAGES = 2
STEPS = 10
"""What each writer does in a stage, at least, before the two commits that end it: the second has all of that."""


def by_count(steps: list[Step], count: int) -> list[Match]:
    """The moment that a number of numbered steps shows."""
    begin = steps[count - 1].begun if count else 0.0
    end = steps[count].done if count < len(steps) else None
    return [Match(count, begin, FOREVER if end is None else end)]


def let_them_work(ledgers: list[Path], observer: commits.Observer) -> None:
    """Until each has done so much, however quick the machine is, and two commits have become HEAD after that."""
    wanted = [steps_in(ledger) + STEPS for ledger in ledgers]
    until(lambda: all(steps_in(ledger) >= count for ledger, count in zip(ledgers, wanted, strict=True)))
    seen = len(observer.seen)
    until(lambda: len(observer.seen) >= seen + 2)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.05)


def steps_in(ledger: Path) -> int:
    """How many steps have been done. A ledger is there once its writer runs."""
    return ledger.read_bytes().count(b'["D"') if ledger.exists() else 0


@pytest.mark.timeout(300)
def test_every_background_commit_is_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that note what they do; a commit each second; each is read with nothing but the store at hand."""
    monkeypatch.setenv("WSFS_RUNTIME_DIR", str(tmp_path / "run"))
    rig = Rig(tmp_path)
    store = DirectoryStore(str(tmp_path / "store"))
    rig.mount(1)
    try:
        with rig.watched(200):
            for name in CREW:
                (rig.mountpoint / name).mkdir()
            assert rig.sync()
            with commits.Observer(store) as observer:
                pids = [
                    writers.start(kind, rig.mountpoint / name, tmp_path / f"{name}.ledger", f"7/{name}", Model(), 0.004)
                    for name, kind in CREW.items()
                ]
                for _stage in range(STAGES):
                    let_them_work([tmp_path / f"{name}.ledger" for name in CREW], observer)
                for pid in pids:
                    os.kill(pid, signal.SIGTERM)
                codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
                assert codes == [0] * len(pids)
                assert rig.stop()
    finally:
        rig.finish()
    steps = {name: read_ledger(tmp_path / f"{name}.ledger") for name in CREW}
    moments = [check(tmp_path, store, seen, steps) for seen in observer.seen]
    for name in CREW:
        counts = [moment[name].count for moment in moments]
        assert counts == sorted(counts)
        assert counts[-1] == len(steps[name]), "the last commit has everything"
        assert len(set(counts)) > STAGES, "what was there at first, and after each stage"


def check(base: Path, store: DirectoryStore, seen: commits.Seen, steps: dict[str, list[Step]]) -> dict[str, Match]:
    """For each writer the state that the commit shows; all of them were true at one moment, before it was seen."""
    place = base / f"commit-{seen.seq}"
    commits.export(store, seen.data, base / f"cache-{seen.seq}", place)
    matches: dict[str, list[Match]] = {}
    for name in ("tree", "pair", "logs"):
        matches[name], complaints = History(Model, steps[name]).moments(walk(place / name), 0.0, power_lost=False)
        assert matches[name], (seen.seq, name, complaints[:20])
    matches["git"] = by_count(steps["git"], writers.git_commits_of(place / "git"))
    for path in (place / "bank").glob("*-shm"):
        path.unlink()
    matches["bank"] = by_count(steps["bank"], writers.transactions_of(place / "bank" / writers.BankWriter.DATABASE))
    newest = [(place / "pair" / name).read_text() if (place / "pair" / name).exists() else "" for name in "AB"]
    assert int(newest[1] or 0) <= int(newest[0] or 0), "B is newer than A"
    chosen = common_moment(matches, 0.0, seen.when)
    assert chosen is not None, (seen.seq, matches)
    shutil.rmtree(place)
    return chosen
