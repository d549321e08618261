"""Notices that a large part of a workspace is being deleted, and says which commit is from before that."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

SECONDS: Final = 60.0
FILES: Final = 1000
SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class Sample:
    """How many files there were at a time, in the tree and in the newest commit; and how many seconds ago, at most, the
    tree was like that commit, if it was not the newest one before."""

    when: float
    files: int
    commit: str
    committed: int
    age: float = 0.0


class MassDelete:
    """More than 1,000 files and a fifth of all within a minute is a mass delete. Told once, until it has ended."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._until = 0.0

    def note(self, sample: Sample) -> Sample | None:
        """A new sample; they come in the order of their times. Returns the one from before a mass delete, if that is
        one, and has just been noticed."""
        samples = self._samples
        going_on = bool(samples) and sample.files < samples[-1].files
        if samples and sample.commit != samples[-1].commit:
            # What there was the last time, and what was made since, is in a commit by now, and may have been deleted
            # right after that. No sample need have seen it: the commit has.
            there = sample.committed if sample.age <= SECONDS else samples[-1].files
            samples.append(replace(samples[-1], files=there, commit=sample.commit, committed=sample.committed))
        samples.append(sample)
        while samples[0].when < sample.when - SECONDS:
            samples.popleft()
        if sample.when < self._until:
            if going_on:
                self._until = sample.when + SECONDS
            return None
        # What was made since the last commit and is gone again was never in a save point.
        before = max(samples, key=lambda one: min(one.files, one.committed))
        lost = min(before.files, before.committed) - sample.files
        if lost <= FILES or lost < SHARE * before.files:
            return None
        self._until = sample.when + SECONDS
        samples.clear()
        samples.append(sample)
        return before
