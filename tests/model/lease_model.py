"""The protocol of lease and commit, as a machine small enough to look at all of its states.

What is modelled, as wsfs does it (`repo/head.py`, `sync/lease.py`, `sync/commit.py`, `sync/start.py`):

    HEAD       one object with an epoch, a commit and a nonce, replaced if its version is the one that was named; a
               version is as good as its nonce, which is new each time
    network    a swap may arrive at any time, also long after its sender gave up or died, or never; its answer may be
               lost; a read of HEAD may fail, and else tells what HEAD is
    writers    each takes the lease without asking (politeness is left out: it may only forbid), writes, commits,
               renews, gives back, and can crash between any two steps. What is on its disk stays: the commit that it
               stands on, a pending commit, what is unsaved, and what was set aside

What must hold in every state:

    one history    HEAD only ever moves to a commit whose parent is the commit that HEAD was at
    fenced         nobody changes HEAD with an epoch that is older than HEAD's, and nobody is fenced but by a newer one
    nothing lost   what was written is in HEAD's commit, or unsaved or set aside on its writer's disk; and what a
                   writer was told to be saved is in HEAD's commit for ever
    no conflict    changes are set aside only if somebody else has committed since the commit that they build on. They
                   may be saved all the same: a writer that died before it knew, and finds another's commit, cannot tell
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

OFF, TAKE, IDLE, PUBLISH, WAIT, ADVANCE, FENCED = "off", "take", "idle", "publish", "wait", "advance", "fenced"
DEAD = -1
"""A nonce that HEAD does not have, and can never have again."""


class Broken(Exception):
    """A state that must not be."""


@dataclass(frozen=True)
class Rules:
    """What the protocol rests on. To see that the model would notice, each can be left out."""

    if_match: bool = True
    new_epoch: bool = True
    void_before_drop: bool = True
    know_own_late_swaps: bool = True
    settle_at_start: bool = True
    settle_after_taking: bool = True
    keep_pending: bool = True
    compare_epochs: bool = True


class Bounds(NamedTuple):
    """How far to look: writers, the highest epoch, items that each writer may write, and swaps under way."""

    writers: int
    epochs: int
    items: int
    flights: int


class Head(NamedTuple):
    nonce: int
    epoch: int
    commit: int


class Flight(NamedTuple):
    """A swap on its way."""

    match: int
    new: Head
    sender: int


class Commit(NamedTuple):
    parent: int
    content: int
    writer: int


class Writer(NamedTuple):
    """On disk: standing, pending (a commit, -1: none), dirty, frozen, aside. The rest is lost in a crash."""

    phase: str = OFF
    standing: int = 0
    pending: int = -1
    dirty: int = 0
    frozen: int = 0
    aside: int = 0
    written: int = 0
    saved: int = 0
    version: Head | None = None
    unanswered: frozenset[int] = frozenset()
    sent: Head | None = None
    purpose: str = ""
    resume: str = IDLE

    def off(self) -> Writer:
        return self._replace(phase=OFF, version=None, unanswered=frozenset(), sent=None, purpose="", resume=IDLE)


class State(NamedTuple):
    head: Head
    commits: tuple[Commit, ...]
    flights: frozenset[Flight]
    writers: tuple[Writer, ...]


def start(bounds: Bounds) -> State:
    return State(Head(0, 0, 0), (Commit(-1, 0, -1),), frozenset(), (Writer(),) * bounds.writers)


class Model:
    def __init__(self, bounds: Bounds, rules: Rules | None = None) -> None:
        self.bounds = bounds
        self.rules = rules or Rules()

    # --- the steps ------------------------------------------------------------------------------------------------

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Every state that may come next, each with what happens. Raises Broken."""
        for flight in state.flights:
            yield from self._network(state, flight)
        for number, writer in enumerate(state.writers):
            if writer.phase != OFF:
                yield f"{number} crashes", self._with(state, number, writer.off())
            yield from self._writer(state, number, writer)

    def _network(self, state: State, flight: Flight) -> Iterator[tuple[str, State]]:
        rest = state._replace(flights=state.flights - {flight})
        number = flight.sender
        yield f"a swap of {number} is lost", rest
        applied = flight.match == state.head.nonce or not self.rules.if_match
        if applied:
            self._check_swap(state, flight)
            rest = rest._replace(head=flight.new)
        yield f"a swap of {number} arrives, its answer does not", rest
        writer = rest.writers[number]
        if applied and writer.phase == WAIT and writer.sent == flight.new:
            yield f"{number} is told of its swap", self._done(rest, number, flight.new)

    def _writer(self, state: State, number: int, writer: Writer) -> Iterator[tuple[str, State]]:
        match writer.phase:
            case "off":
                if state.head.epoch < self.bounds.epochs:
                    if not self.rules.settle_after_taking:
                        writer = self._settled(writer, state.head.commit)
                    yield (
                        f"{number} reads HEAD",
                        self._with(state, number, writer._replace(phase=TAKE, version=state.head)),
                    )
            case "take":
                yield from self._send(state, number, "take")
            case "idle":
                yield from self._idle(state, number, writer)
            case "publish":
                yield from self._send(state, number, "publish")
                yield from self._send(state, number, "renew", resume=PUBLISH)
            case "wait":  # refused, or tired of waiting: both come to the same
                yield f"{number} cannot look", self._failed(state, number)
                yield f"{number} looks", self._look(state, number)
            case "advance":
                clean = writer._replace(
                    phase=IDLE,
                    standing=writer.pending,
                    pending=-1,
                    dirty=writer.dirty & ~writer.frozen,
                    saved=writer.saved | writer.frozen,
                    frozen=0,
                )
                yield f"{number} has saved", self._with(state, number, clean)

    def _idle(self, state: State, number: int, writer: Writer) -> Iterator[tuple[str, State]]:
        assert writer.version is not None
        for item in range(self.bounds.items):
            bit = 1 << (number * self.bounds.items + item)
            if not writer.written & bit:
                changed = writer._replace(written=writer.written | bit, dirty=writer.dirty | bit)
                yield f"{number} writes", self._with(state, number, changed)
                break
        yield from self._send(state, number, "renew")
        if not writer.dirty and writer.pending < 0:
            yield from self._send(state, number, "release")
        yield f"{number} refreshes", self._refresh(state, number)
        if writer.pending >= 0:
            yield from self._settle(state, number)
        elif writer.dirty:
            content = state.commits[writer.standing].content | writer.dirty
            commits = (*state.commits, Commit(writer.standing, content, number))
            frozen = writer._replace(phase=PUBLISH, pending=len(state.commits), frozen=writer.dirty)
            yield f"{number} commits", self._with(state._replace(commits=commits), number, frozen)

    def _refresh(self, state: State, number: int) -> State:
        writer = state.writers[number]
        assert writer.version is not None
        if self.rules.compare_epochs and state.head.epoch != writer.version.epoch:
            return self._with(state, number, writer._replace(phase=FENCED))
        # One that got no answer was applied: then no other one can be any more.
        unanswered = frozenset() if state.head.nonce in writer.unanswered else writer.unanswered
        return self._with(state, number, writer._replace(version=state.head, unanswered=unanswered))

    def _settle(self, state: State, number: int) -> Iterator[tuple[str, State]]:
        """Before a commit: what became of the one whose swap got no answer?"""
        looked = self._refresh(state, number)
        writer = looked.writers[number]
        if writer.phase == FENCED:
            yield f"{number} finds itself fenced", looked
        elif looked.head.commit == writer.pending:
            yield f"{number} finds its commit", self._with(looked, number, writer._replace(phase=ADVANCE))
        elif self.rules.void_before_drop:
            yield from self._send(looked, number, "void")
        else:
            yield f"{number} drops its commit", self._with(looked, number, writer._replace(pending=-1, frozen=0))

    # --- swaps ----------------------------------------------------------------------------------------------------

    def _send(self, state: State, number: int, purpose: str, resume: str = IDLE) -> Iterator[tuple[str, State]]:
        if len(state.flights) >= self.bounds.flights:
            return
        writer = state.writers[number]
        old = writer.version
        assert old is not None
        nonce = self._fresh(state)
        new = old._replace(nonce=nonce)
        if purpose == "take" and self.rules.new_epoch:
            new = new._replace(epoch=old.epoch + 1)
        if purpose == "publish":
            new = new._replace(commit=writer.pending)
        waiting = writer._replace(phase=WAIT, sent=new, purpose=purpose, resume=resume)
        flights = state.flights | {Flight(old.nonce, new, number)}
        yield f"{number} sends {purpose}", self._with(state._replace(flights=flights), number, waiting)

    @staticmethod
    def _fresh(state: State) -> int:
        used = {state.head.nonce}
        for flight in state.flights:
            used |= {flight.match, flight.new.nonce}
        for writer in state.writers:
            used |= writer.unanswered
            used |= {head.nonce for head in (writer.version, writer.sent) if head is not None}
        return max(used) + 1

    def _look(self, state: State, number: int) -> State:
        """After a swap that was refused or got no answer: `swap_head`."""
        writer, now = state.writers[number], state.head
        old, new = writer.version, writer.sent
        assert old is not None
        assert new is not None
        if now.nonce == new.nonce:
            return self._done(state, number, now)
        if now.epoch > old.epoch:
            return self._fenced(state, number)
        if self.rules.know_own_late_swaps and now.nonce in writer.unanswered:
            # The next try is against that version, and no other swap can be applied any more.
            failed = self._failed(state, number)
            known = failed.writers[number]
            if known.phase == OFF:
                return failed
            return self._with(failed, number, known._replace(version=now, unanswered=frozenset()))
        if now.nonce != old.nonce:  # somebody without a lease of his own
            return self._fenced(state, number)
        return self._failed(state, number)

    def _fenced(self, state: State, number: int) -> State:
        writer = state.writers[number]
        if writer.purpose == "take":  # somebody was faster
            return self._with(state, number, writer.off())
        assert writer.version is not None
        if state.head.epoch == writer.version.epoch:
            raise Broken("a writer was fenced by itself")
        return self._with(state, number, writer._replace(phase=FENCED, sent=None))

    def _failed(self, state: State, number: int) -> State:
        writer = state.writers[number]
        assert writer.sent is not None
        if writer.purpose in ("take", "release"):
            return self._with(state, number, writer.off())
        kept = {} if self.rules.keep_pending or writer.purpose != "publish" else {"pending": -1, "frozen": 0}
        phase = writer.resume if writer.purpose == "renew" else IDLE
        failed = writer._replace(
            phase=phase, unanswered=writer.unanswered | {writer.sent.nonce}, sent=None, purpose="", resume=IDLE, **kept
        )
        return self._with(state, number, failed)

    def _done(self, state: State, number: int, version: Head) -> State:
        """A swap is known to have been applied."""
        writer = state.writers[number]._replace(version=version, unanswered=frozenset(), sent=None)
        purpose, resume = writer.purpose, writer.resume
        writer = writer._replace(purpose="", resume=IDLE, phase=IDLE)
        match purpose:
            case "take":
                writer = self._opened(state, number, writer, version.commit)
            case "renew":
                writer = writer._replace(phase=resume)
            case "void":
                writer = writer._replace(pending=-1, frozen=0)
            case "publish":
                writer = writer._replace(phase=ADVANCE)
            case "release":
                writer = writer.off()
        return self._with(state, number, writer)

    def _settled(self, writer: Writer, commit: int) -> Writer:
        """A pending commit of an earlier run: it is HEAD, or it will never be."""
        if writer.pending < 0:
            return writer
        if writer.pending == commit:
            dirty, saved = writer.dirty & ~writer.frozen, writer.saved | writer.frozen
            return writer._replace(standing=commit, pending=-1, dirty=dirty, saved=saved, frozen=0)
        return writer._replace(pending=-1, frozen=0)

    def _opened(self, state: State, number: int, writer: Writer, commit: int) -> Writer:
        """The lease is ours: bring the cache up to HEAD."""
        settled = self._settled(writer, commit)
        writer = settled if self.rules.settle_at_start else writer._replace(pending=-1, frozen=0)
        if writer.standing == commit:
            return writer
        if writer.dirty:
            self._check_aside(state, number, writer, commit)
        return writer._replace(standing=commit, aside=writer.aside | writer.dirty, dirty=0)

    # --- what must hold -------------------------------------------------------------------------------------------

    @staticmethod
    def _check_swap(state: State, flight: Flight) -> None:
        old, new = state.head, flight.new
        if new.epoch < old.epoch:
            raise Broken("a fenced writer changed HEAD")
        if new.commit != old.commit and state.commits[new.commit].parent != old.commit:
            raise Broken("HEAD left its history")

    @staticmethod
    def _check_aside(state: State, number: int, writer: Writer, commit: int) -> None:
        at, others = commit, False
        while at >= 0 and at != writer.standing:
            others = others or state.commits[at].writer != number
            at = state.commits[at].parent
        if not others:
            raise Broken("a writer without a rival had its changes set aside")

    @staticmethod
    def check(state: State) -> None:
        content = state.commits[state.head.commit].content
        for writer in state.writers:
            if writer.saved & ~content:
                raise Broken("what was saved is gone")
            if writer.written & ~(content | writer.dirty | writer.aside):
                raise Broken("what was written is gone")

    # --- states ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _with(state: State, number: int, writer: Writer) -> State:
        writers = (*state.writers[:number], writer, *state.writers[number + 1 :])
        return state._replace(writers=writers)

    def normal(self, state: State) -> State:
        """The same state without what no longer matters: nonces that can never be HEAD's again, swaps that can never be
        applied, commits that nothing leads to. The rest is numbered anew, for only which are equal matters."""
        flights = state.flights
        if self.rules.if_match:
            flights = frozenset(flight for flight in flights if flight.match == state.head.nonce)
        alive = {state.head.nonce: 0}
        for flight in sorted(flights):
            alive.setdefault(flight.new.nonce, len(alive))
            if not self.rules.if_match:
                alive.setdefault(flight.match, len(alive))
        commits = self._commits_in_use(state, flights)
        numbers = {old: new for new, old in enumerate(commits)}

        def renamed(head: Head | None) -> Head | None:
            if head is None:
                return None
            nonce = alive.get(head.nonce, DEAD)
            # A swap from a dead version is dead itself, so what it would keep does not matter, but for the epoch.
            return Head(nonce, head.epoch, numbers.get(head.commit, 0) if nonce != DEAD else 0)

        def moved(flight: Flight) -> Flight:
            new = renamed(flight.new)
            assert new is not None
            return Flight(alive.get(flight.match, DEAD), new, flight.sender)

        def kept(writer: Writer) -> Writer:
            return writer._replace(
                version=renamed(writer.version),
                sent=renamed(writer.sent),
                unanswered=frozenset(alive[nonce] for nonce in writer.unanswered if nonce in alive),
                standing=numbers[writer.standing],
                pending=numbers.get(writer.pending, -1),
            )

        head = renamed(state.head)
        assert head is not None
        return State(
            head,
            tuple(commit._replace(parent=numbers.get(commit.parent, -1)) for commit in commits.values()),
            frozenset(map(moved, flights)),
            tuple(map(kept, state.writers)),
        )

    @staticmethod
    def _commits_in_use(state: State, flights: frozenset[Flight]) -> dict[int, Commit]:
        used: set[int] = set()
        ends = [state.head.commit, *(flight.new.commit for flight in flights)]
        for writer in state.writers:
            ends += [writer.standing, writer.pending]
            ends += [head.commit for head in (writer.version, writer.sent) if head is not None]
        for end in ends:
            at = end
            while at >= 0 and at not in used:
                used.add(at)
                at = state.commits[at].parent
        return {number: state.commits[number] for number in sorted(used)}


def explore(model: Model, limit: int | None = None) -> tuple[int, int, list[str] | None]:
    """Look at every state: how many there are, how many steps between them, and the shortest way to a broken one."""
    first = model.normal(start(model.bounds))
    came: dict[State, tuple[State, str] | None] = {first: None}
    level, steps = [first], 0
    while level:
        following = []
        for state in level:
            try:
                for what, after in model.steps(state):
                    steps += 1
                    found = model.normal(after)
                    if found not in came:
                        came[found] = (state, what)
                        model.check(found)
                        following.append(found)
            except Broken as exc:
                return len(came), steps, [*_way(came, state), str(exc)]
            if limit is not None and len(came) > limit:
                return len(came), steps, None
        level = following
    return len(came), steps, None


def _way(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    way = []
    while (step := came[state]) is not None:
        state, what = step
        way.append(what)
    return list(reversed(way))
