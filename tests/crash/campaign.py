"""Rounds of work, death and return; see scripts/crash-test."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import writers
from ledger import FOREVER, History, Match, Model, Node, Seen, Step, common_moment, read_ledger, walk
from rig import Failure, Rig

PHASES = ("idle", "writes", "save", "stop", "recovery")
CREW = {"tree-0": "tree", "tree-1": "tree", "pair": "pair", "logs": "logs", "bank": "bank"}
ROUND_TIMEOUT = 100.0
KEPT = 20
"""For how many rounds the ledgers are kept: what breaks now may have begun earlier."""


class Campaign:
    """A workspace that lives through many crashes. Raises Failure at the first broken promise."""

    def __init__(
        self, base: Path, seed: int, url: str | None = None, *, power: bool = False, encrypt: bool = False
    ) -> None:
        self.base = base
        self.seed = seed
        self.power = power
        self.rig = Rig(base, url, power=power, encrypt=encrypt)
        self.tally: Counter[str] = Counter()
        self.phase = "the first mount"
        self._ledgers = base
        self._base_seen: dict[str, dict[str, Seen]] = {name: {} for name in CREW}
        self._soft: dict[str, dict[str, Node]] = {}
        self._transactions = 0
        self._pids: dict[str, int] = {}

    def run(self, rounds: int, report: object = None) -> None:
        rig = self.rig
        rig.mount(1)
        with rig.watched(ROUND_TIMEOUT):
            for name in CREW:
                (rig.mountpoint / name).mkdir()
            rig.check_marker()
        if not rig.sync():
            raise Failure("the first wsfs sync failed")
        try:
            for number in range(rounds):
                self.round(number)
                if callable(report):
                    report(number)
        finally:
            self._end_writers(signal.SIGKILL)
            rig.finish()

    # --- a round

    def round(self, number: int) -> None:
        rig, rng = self.rig, random.Random(f"{self.seed}/{number}")
        phase = PHASES[number % len(PHASES)] if number < len(PHASES) else rng.choice(PHASES)
        cold = rng.random() < (0.2 if self.power else 0.33)
        power_lost = self.power and not cold and rng.random() < 0.7
        self.phase = f"round {number}: {phase}, {'cold' if cold else 'power loss' if power_lost else 'same cache'}"
        self._ledgers = self.base / f"round-{number:04d}"
        self._ledgers.mkdir()
        (self._ledgers / "phase").write_text(self.phase)
        if number >= KEPT:
            shutil.rmtree(self.base / f"round-{number - KEPT:04d}")
        rig.confirmed.clear()
        if cold and not rig.sync():  # else the last commit might be from before what this round knows
            raise Failure("wsfs sync failed")
        self._start_writers(number, rng)
        with rig.watched(ROUND_TIMEOUT):
            before = None
            stopped = False
            if phase == "idle":
                before = self._idle(rng)
            elif phase == "save":
                self._save(rng)
            elif phase == "stop":
                stopped = self._stop(rng)
            else:
                self._work(rng)
            killed = rig.kill()
            self._end_writers(signal.SIGTERM)
            self.tally[f"killed: {phase}"] += 1
            if power_lost:
                self._lose_power(rng)
            if rng.random() < 0.7:
                rig.clear()
            if phase == "recovery":
                self._kill_recoveries(rng, power_lost=power_lost)
            if cold:
                rig.clear()
                rig.wipe()
            rig.mount(rng.choice([0, 1, 1]))
            if stopped:
                # wsfs umount has returned success: all of it is in the store.
                rig.confirmed.append(killed)
            if before is not None and not cold and not power_lost:
                self._compare_attributes(before)
            self._verify(killed, cold=cold, power_lost=power_lost)

    def _idle(self, rng: random.Random) -> dict[str, dict[str, Seen]]:
        time.sleep(0.2 + rng.random())
        if rng.random() < 0.5:
            self.rig.sync()
        self._end_writers(signal.SIGTERM)
        if rng.random() < 0.3:
            self.rig.sync()
        found = self._walk_all()
        time.sleep(rng.random() * 1.5)
        return found

    def _work(self, rng: random.Random) -> None:
        time.sleep(0.1 + rng.random() * 1.2)
        if rng.random() < 0.5:
            self.rig.sync()
            time.sleep(rng.random() * 0.5)

    def _save(self, rng: random.Random) -> None:
        """Kill during a save, which takes some 50 ms."""
        time.sleep(0.2 + rng.random())
        if rng.random() < 0.5:
            self.rig.sync()
        saving = threading.Thread(target=self.rig.sync)
        saving.start()
        time.sleep(rng.random() ** 2 * 0.3)
        self.rig.kill()
        saving.join()

    def _stop(self, rng: random.Random) -> bool:
        """Kill during the stop. Whether it had ended well before."""
        time.sleep(0.2 + rng.random())
        if rng.random() < 0.3:
            self.rig.sync()
        if rng.random() < 0.8:
            self._end_writers(signal.SIGTERM)
        outcome: list[bool] = []
        stopping = threading.Thread(target=lambda: outcome.append(self.rig.stop()))
        stopping.start()
        if rng.random() < 0.7:
            self.rig.wait_for_note("STOPPING", 10)
        time.sleep(rng.random() ** 2 * 0.5)
        self.rig.kill()
        stopping.join()
        self.tally["stopped before the kill"] += outcome[0]
        return outcome[0]

    def _kill_recoveries(self, rng: random.Random, *, power_lost: bool) -> None:
        rig = self.rig
        for _ in range(rng.randrange(1, 4)):
            os.close(rig.launch(1))
            if rig.wait_for_note("STARTING", 10) and rng.random() < 0.8:
                time.sleep(rng.random() ** 2 * 0.3)
            rig.kill()
            self.tally["killed again: recovery"] += 1
            if self.power and power_lost and rng.random() < 0.5:
                self._lose_power(rng)
            if rng.random() < 0.5:
                rig.clear()

    def _lose_power(self, rng: random.Random) -> None:
        self.tally["power losses"] += 1
        for what, count in self.rig.lose_power(rng).items():
            self.tally[f"undone: {what}"] += count

    # --- writers

    def _start_writers(self, number: int, rng: random.Random) -> None:
        pace = rng.choice([0.0, 0.004, 0.02])
        for name, kind in CREW.items():
            base = self._model(name)
            top = self.rig.mountpoint / name
            path = self._ledgers / name
            self._pids[name] = writers.start(kind, top, path, f"{self.seed}/{number}/{name}", base, pace)

    def _model(self, name: str) -> Model:
        if name == "bank":
            return Model()
        return Model.of(self._base_seen[name], self._soft.get(name))

    def _end_writers(self, number: signal.Signals) -> None:
        """Let each end what it is doing, and wait for it. Raises Failure when one had to fail."""
        codes = {}
        for pid in self._pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + 60
        for name, pid in self._pids.items():
            while True:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[name] = os.waitstatus_to_exitcode(status)
                    break
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.005)
        self._pids = {}
        broken = [name for name, code in codes.items() if code not in (0, 1, -number)]
        if broken:
            raise Failure(f"writers ended by themselves: {broken} {codes}")

    # --- verification

    def _walk_all(self) -> dict[str, dict[str, Seen]]:
        return {name: walk(self.rig.mountpoint / name) for name in CREW}

    def _compare_attributes(self, before: dict[str, dict[str, Seen]]) -> None:
        """Nobody was working when the daemon was killed: then nothing at all has changed."""
        for name, seen in self._walk_all().items():
            for path in seen.keys() | before[name].keys():
                if name != "bank" and seen.get(path) != before[name].get(path):
                    old, new = before[name].get(path), seen.get(path)
                    raise Failure(f"{name}/{path} has changed while nobody worked: from {old} to {new}"[:2000])
        self.tally["trees unchanged in every attribute"] += 1

    def _verify(self, killed: float, *, cold: bool, power_lost: bool) -> None:
        rig = self.rig
        rig.check_marker()
        seen = self._walk_all()
        self._check_counters()
        steps = {name: read_ledger(self._ledgers / name) for name in CREW}
        for name, history in steps.items():
            self._check_errors(name, history, killed)
            _distrust_late_closes(history, killed)
        matches: dict[str, list[Match]] = {}
        histories: dict[str, History] = {}
        durable = max(
            [0.0]
            + [
                step.begun
                for history in steps.values()
                for step in history
                if step.done is not None and step.name in ("fsync", "fsyncdir", "transaction")
            ]
        )
        confirmed = max(rig.confirmed, default=0.0)
        earliest = confirmed if cold else max(confirmed, durable) if power_lost else killed
        for name in CREW:
            if name == "bank":
                matches[name] = self._check_bank(steps[name], cold=cold, confirmed=confirmed)
                continue
            history = histories[name] = History(lambda name=name: self._model(name), steps[name], rig.confirmed)
            if cold or power_lost:
                matches[name], complaints = history.moments(seen[name], earliest, power_lost=power_lost)
            else:
                match, complaints = history.check_now(seen[name])
                matches[name] = [match] if match else []
            if not matches[name]:
                with (self._ledgers / f"{name}.pickle").open("wb") as file:
                    pickle.dump((self._model(name), seen[name], rig.confirmed, earliest), file)
                raise self._failure(name, complaints, history)
        if not power_lost:
            self._check_pair(seen["pair"])
        if power_lost:
            # Names are of one moment, bytes may be newer: a transaction may be there before the names of its time.
            matches["bank"] = [Match(matches["bank"][0].count, 0.0, FOREVER)]
        if cold or power_lost:
            chosen = common_moment(matches, earliest, FOREVER)
            if chosen is None:
                spans = {name: [(m.count, m.begin, m.end) for m in found][-3:] for name, found in matches.items()}
                raise Failure(f"this is no single moment since {earliest}: {spans}")
            matches = {name: [match] for name, match in chosen.items()}
        self.tally["commits checked cold"] += cold
        for name, history in histories.items():
            self._soft[name] = self._still_soft(history, matches[name][0], seen[name], safe=cold or power_lost)
            files = [found for found in seen[name].values() if found.kind == "f"]
            self.tally["files checked"] += len(files)
            model = history.after(matches[name][0].count)
            self.tally["fsynced files checked"] += sum(1 for n in model.names.values() if n.kind == "f" and n.synced)
        self._base_seen = seen

    def _still_soft(self, history: History, match: Match, seen: dict[str, Seen], *, safe: bool) -> dict[str, Node]:
        """By path, the nodes of which something is still not on disk, for the next power loss."""
        if not self.power or safe:
            return {}
        last = history.after(len(history.steps))
        then = history.after(match.count)
        return {path: last.nodes[then.names[path].number] for path in seen}

    @staticmethod
    def _check_errors(name: str, steps: list[Step], killed: float) -> None:
        for step in steps:
            if step.error is not None and step.error[0] < killed:
                raise Failure(f"{name}: {step.name} {step.args} failed before the kill: {step.error[1:]}")

    def _check_bank(self, steps: list[Step], *, cold: bool, confirmed: float) -> list[Match]:
        """The database as it is now; the count of its transactions is the moment that it shows."""
        with tempfile.TemporaryDirectory(dir=self.base) as copy:
            for path in (self.rig.mountpoint / "bank").iterdir():
                if not path.name.endswith("-shm"):
                    shutil.copy(path, copy)
            try:
                count = writers.transactions_of(Path(copy, writers.BankWriter.DATABASE))
            except AssertionError as exc:
                raise Failure(f"the SQLite database is broken: {exc}") from exc
        before, self._transactions = self._transactions, count
        promised = [s for s in steps if s.done is not None and (not cold or s.done < confirmed)]
        low, high = before + len(promised), before + len(steps)
        if cold:
            low = 0 if not confirmed else low
        if not low <= count <= high:
            raise Failure(f"the SQLite database has {count} transactions, promised were {low}, begun {high}")
        self.tally["databases checked"] += 1
        done = count - before
        begin = steps[done - 1].begun if done > 0 else 0.0
        end = steps[done].done if 0 <= done < len(steps) else None
        return [Match(done, begin, FOREVER if end is None else end)]

    def _check_pair(self, seen: dict[str, Seen]) -> None:
        """After a power loss their order is lost, until A is written again."""
        a, b = pair_of(seen)
        if b > a and a != pair_of(self._base_seen["pair"])[0]:
            raise Failure(f"B is newer than A: {b} > {a}")

    def _check_counters(self) -> None:
        """`wsfs status` counts what a walk finds."""
        inodes: dict[int, int] = {}
        pending = [str(self.rig.mountpoint)]
        inodes[os.lstat(pending[0]).st_ino] = 0
        while pending:
            for entry in os.scandir(pending.pop()):
                found = entry.stat(follow_symlinks=False)
                is_directory = entry.is_dir(follow_symlinks=False)
                inodes[found.st_ino] = 0 if is_directory else found.st_size
                if is_directory:
                    pending.append(entry.path)
        status = self.rig.status()
        have = status["files"], status["bytes"]
        want = len(inodes), sum(inodes.values())
        if have != want:
            raise Failure(f"wsfs status counts {have[0]} files of {have[1]} bytes, a walk {want[0]} of {want[1]}")

    def _failure(self, name: str, complaints: list[str], history: History) -> Failure:
        text = [f"{name}: what is there is not what was promised:", *(f"  {line}" for line in complaints[:20])]
        paths = {line.partition(":")[0] for line in complaints}
        related = [s for s in history.steps if any(str(a) in paths for a in s.args)]
        text += [f"  the last of {len(history.steps)} steps, and those about these files:"]
        for step in [*related[-20:], *history.steps[-8:]]:
            outcome = "" if step.done else " (not acknowledged)"
            text.append(f"    {history.steps.index(step)}: {step.name} {step.args}{outcome}")
        return Failure("\n".join(text))


def _distrust_late_closes(steps: list[Step], killed: float) -> None:
    """A close after the daemon's death can return 0 although the kernel had to throw pages away (docs/SEMANTICS.md)."""
    for step in steps:
        if step.name == "close" and step.done is not None and step.done > killed:
            step.late = True


def pair_of(seen: dict[str, Seen]) -> tuple[int, int]:
    """The numbers in A and B; 0 where there is none."""
    a, b = (int(seen[name].data.strip(b"\0\n ") or 0) if name in seen else 0 for name in "AB")
    return a, b
