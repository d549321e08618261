"""Every gap between two steps: what a crash there leaves, and who cleans it up. The one list of them.

docs/CRASHES.md shows these tables (`python tests/core/gaps.py` writes them into it). tests/gc/test_gaps.py compares
them with the steps that the code announces, dies at each of these, and looks whether exactly this is left;
tests/gc/test_gaps_unmounted.py does so with what no mount does, where a step is what has been written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Final

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "CRASHES.md"


class Cleaner(Enum):
    """Who takes something away. In this order they come by."""

    START = "the next start"
    COMMIT = "the next commit"
    INIT = "the next init"
    COLLECTOR = "the garbage collector"
    STOP = "the next stop"
    USER = "the user"
    NOBODY = "nobody"


class Left(Enum):
    """Something that a crash can leave: its name, what it is, and who cleans it up."""

    PACKS = ("orphan packs", "packs that no commit that is kept leads to", Cleaner.COLLECTOR)
    SEGMENTS = ("orphan segments", "deltas or base partitions that no such commit names", Cleaner.COLLECTOR)
    MANIFESTS = ("orphan manifests", "in `commits/`, and HEAD does not lead there", Cleaner.COLLECTOR)
    HOLDER = (
        "a dead holder",
        "HEAD names a mount that is gone. On its host the next mount sees that, and so does one in another container"
        " with the same cache; elsewhere it waits until HEAD is 120 s old, or takes over",
        Cleaner.STOP,
    )
    CRASHED = ("no `clean`", "the cache counts as crashed, so the next start checks the overlay", Cleaner.STOP)
    COPIES = ("copies", "old bytes in `frozen/`, kept for a commit that is dead", Cleaner.START)
    RECORDS = ("records", "in the journal; LMDB has them or not, and their serial numbers tell", Cleaner.START)
    NOTE = (
        "the note",
        "a commit in LMDB of which it is not known whether it became HEAD. HEAD and its ancestors tell: then its last"
        " step is done from the note, else the note is dropped. A read-only start does not drop it",
        Cleaner.START,
    )
    STRAYS = ("strays", "bytes in the overlay of which no row speaks", Cleaner.START)
    RESIDENTS = (
        "residents",
        "rows that trust the overlay with bytes that were never synced, on a machine that was started anew",
        Cleaner.START,
    )
    DIRTY = ("unsaved changes", "rows that no commit is known to hold, and their bytes in the overlay", Cleaner.COMMIT)
    ASIDE = (
        "`unsaved-...`",
        "changes, and what `.wsfsignore` keeps here, that build on a commit that is not the newest any more;"
        " `wsfs export` reads them",
        Cleaner.USER,
    )

    BEGUN = (
        "a workspace that is begun",
        "FORMAT without a HEAD: a mount says that there is none, and the next init takes its id, framework and labels",
        Cleaner.INIT,
    )
    PIN = ("a pin", "it keeps the commit from before a repair, for 30 days", Cleaner.COLLECTOR)
    PROBE = ("the probe", "the object with which init and mounts try conditional writes", Cleaner.NOBODY)

    def __init__(self, text: str, meaning: str, cleaner: Cleaner) -> None:
        self.text = text
        self.meaning = meaning
        self.cleaner = cleaner


L = Left
ORPHANS: Final = frozenset({L.PACKS, L.SEGMENTS, L.MANIFESTS})
MOUNTED: Final = frozenset({L.HOLDER, L.CRASHED})


@dataclass(frozen=True, slots=True)
class Gap:
    """A step, and what a crash between it and the next one leaves beside what its table's crashes always leave."""

    step: str
    leaves: frozenset[Left]


@dataclass(frozen=True, slots=True)
class Table:
    """The gaps of one protocol, in the order of its steps; `begins` is what a crash before the first step leaves."""

    heading: str
    always: frozenset[Left]
    begins: frozenset[Left]
    gaps: tuple[Gap, ...]

    def leaves(self, step: str | None) -> frozenset[Left]:
        """All that a crash after a step leaves; None: before the first."""
        return self.always | next((gap.leaves for gap in self.gaps if gap.step == step), self.begins)

    @property
    def steps(self) -> tuple[str, ...]:
        return tuple(gap.step for gap in self.gaps)

    def render(self) -> str:
        """As in the document: steps that leave the same share a row."""
        rows = [("before the first", self.begins), *((f"`{gap.step}`", gap.leaves) for gap in self.gaps)]
        groups = [(list(group), leaves) for leaves, group in groupby(rows, key=lambda row: row[1])]
        return _table(
            ("step", "a crash after it leaves", "cleaned up by"),
            [(", ".join(step for step, _ in group), *_cells(leaves)) for group, leaves in groups],
        )


def _cells(leaves: frozenset[Left]) -> tuple[str, str]:
    found = [left for left in Left if left in leaves]
    cleaners = [cleaner for cleaner in Cleaner if any(left.cleaner is cleaner for left in found)]
    return ", ".join(left.text for left in found) or "nothing more", ", ".join(one.value for one in cleaners)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    first, *others = (f"| {' | '.join(cells)} |\n".replace("  ", " ") for cells in (head, *rows))
    return "".join((first, "|---" * len(head), "|\n", *others))


def _gaps(*rows: tuple[str, frozenset[Left] | set[Left]]) -> tuple[Gap, ...]:
    return tuple(Gap(step, frozenset(leaves)) for step, leaves in rows)


COMMIT: Final = Table(
    "A commit (`sync/commit.py`)",
    MOUNTED,
    frozenset({L.RECORDS, L.STRAYS, L.DIRTY}),
    _gaps(
        ("frozen", {L.DIRTY}),
        ("packs", {L.DIRTY, L.PACKS}),
        ("segments", {L.DIRTY, L.PACKS, L.SEGMENTS}),
        ("manifest", {L.DIRTY, *ORPHANS}),
        ("pending", {L.DIRTY, L.NOTE, *ORPHANS}),
        ("head", {L.DIRTY, L.NOTE}),
        ("advanced", set()),
    ),
)
_BEFORE = {L.NOTE, L.DIRTY, L.STRAYS, L.RESIDENTS}
CONTINUED: Final = Table(
    "A start on the commit that the cache stands on (`sync/start.py`)",
    MOUNTED | ORPHANS,
    frozenset({L.COPIES, L.RECORDS, *_BEFORE}),
    _gaps(
        ("locked", {L.COPIES, L.RECORDS, *_BEFORE}),
        ("replayed", _BEFORE),
        ("leased", _BEFORE),
        ("settled", _BEFORE - {L.NOTE}),
        ("swept", {L.DIRTY, L.RESIDENTS}),
        ("demoted", {L.DIRTY, L.RECORDS}),
        ("verified", {L.DIRTY, L.RECORDS}),
    ),
)
OVERTAKEN: Final = Table(
    "A start when another host has committed since (`sync/start.py`)",
    MOUNTED | ORPHANS,
    frozenset({L.COPIES, L.RECORDS, *_BEFORE}),
    _gaps(
        ("locked", {L.COPIES, L.RECORDS, *_BEFORE}),
        ("replayed", _BEFORE),
        ("leased", _BEFORE),
        ("settled", _BEFORE - {L.NOTE}),
        ("set aside", {L.ASIDE}),
        ("emptied", {L.ASIDE}),
        ("standing", {L.ASIDE}),
        ("swept", {L.ASIDE}),
        ("demoted", {L.ASIDE}),
        ("verified", {L.ASIDE}),
    ),
)
LEASE: Final = Table(
    "The lease (`sync/lease.py`)",
    frozenset(),
    frozenset(),
    _gaps(("take", {L.HOLDER}), ("renew", {L.HOLDER}), ("refresh", {L.HOLDER}), ("release", set())),
)
COLLECTION: Final = Table(
    "Garbage collection (`sync/gc.py`, `sync/repack.py`)",
    MOUNTED,
    ORPHANS,
    _gaps(
        ("listed", ORPHANS),
        ("surveyed", ORPHANS),
        ("flushed", ORPHANS),
        ("forgotten", ORPHANS),
        ("condemned", ORPHANS),
        ("confirmed", ORPHANS),
        ("commits deleted", {L.PACKS, L.SEGMENTS}),
        ("segments deleted", {L.PACKS}),
        ("packs deleted", {L.PACKS}),
        ("frames read", {L.PACKS}),
        ("pack written", {L.PACKS}),
        ("rows changed", {L.PACKS, L.RECORDS, L.DIRTY}),
        ("digests changed", {L.PACKS, L.RECORDS, L.DIRTY}),
    ),
)
INIT: Final = Table(
    "Init (`repo/workspace.py`)",
    frozenset(),
    frozenset(),
    _gaps(
        ("probe", {L.PROBE}),
        ("FORMAT", {L.PROBE, L.BEGUN}),
        ("READER.py", {L.PROBE, L.BEGUN}),
        ("segment", {L.PROBE, L.BEGUN, L.SEGMENTS}),
        ("manifest", {L.PROBE, L.BEGUN, L.SEGMENTS, L.MANIFESTS}),
        ("HEAD", {L.PROBE}),
    ),
)
REPAIR: Final = Table(
    "Repair (`repair.py`)",
    frozenset(),
    frozenset(),
    _gaps(
        ("HEAD made anew", set()),
        ("lease taken", {L.HOLDER}),
        ("HEAD says STOPPING", {L.HOLDER}),
        ("segments", {L.HOLDER, L.SEGMENTS}),
        ("manifest", {L.HOLDER, L.SEGMENTS, L.MANIFESTS}),
        ("commit pinned", {L.HOLDER, L.SEGMENTS, L.MANIFESTS, L.PIN}),
        ("HEAD swapped", {L.HOLDER, L.PIN}),
        ("lease given back", {L.PIN}),
    ),
)
TABLES: Final = (COMMIT, COLLECTION, CONTINUED, OVERTAKEN, LEASE, INIT, REPAIR)


def legend() -> str:
    """The table of all that can be left."""
    return _table(
        ("what is left", "what it is", "cleaned up by"),
        [(left.text, left.meaning, left.cleaner.value) for left in Left],
    )


def rendered(document: str) -> str:
    """The document with the tables of this list in the place of those that it has."""
    for heading, table in [("What can be left", legend()), *((table.heading, table.render()) for table in TABLES)]:
        pattern = rf"(^## {re.escape(heading)}\n(?:(?!\||## ).*\n)*)(?:\|.*\n)+"
        document, found = re.subn(pattern, lambda match, new=table: match[1] + new, document, flags=re.MULTILINE)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"{DOCUMENT.name} has no section {heading!r} with a table")
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(rendered(DOCUMENT.read_text()))
