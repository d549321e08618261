"""What is to be reached, figure by figure: the one list, for the report and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure (`key`), its unit, and its limit: at most, or at least where more is better. `against` names the system
    whose figure the limit is a multiple of; None: the limit is an absolute value, if there is one."""

    key: str
    title: str
    unit: str
    limit: float | None = None
    against: str | None = None
    more: bool = False

    @property
    def text(self) -> str:
        """The goal in words."""
        if self.limit is None:
            return "to be stated"
        bound = "at least" if self.more else "at most"
        if self.against is None:
            return f"{bound} {self.limit:g} {self.unit}".strip()
        return f"{bound} {self.limit:.2g} x {self.against}"


def goals(few: int, many: int, wide: int) -> list[Goal]:
    """All rows in their order, for workspaces, and a directory, of these sizes."""
    rows = [
        Goal("requests.create_write_close", "requests: create, write, close", "requests", 6),
        Goal("requests.warm_open_read_close", "requests: warm open, read, close", "requests", 2),
        Goal("requests.cached_stat", "requests: cached stat by a path", "requests", 0),
        Goal("instructions.lookup", "instructions: lookup", "", 40_000),
        Goal("instructions.create", "instructions: create", "", 40_000),
        Goal("instructions.getattr", "instructions: getattr", "", 40_000),
        Goal("install.cp", "cp -a of the environment", "s", 4, "native"),
        Goal("install.cp_processor", "processor time of the daemon for it", "s"),
        Goal("install.pip", "pip install", "s", 1.5, "native"),
        Goal("install.git_clone", "git clone", "s", 2, "native"),
        Goal("install.git_status", "git status, warm", "s", 2, "native"),
        Goal("install.creates", "creates", "/s", 4 / 30, "native", more=True),
        Goal("install.stats", "stats", "/s", None, "native", more=True),
        Goal("install.renames", "renames", "/s", None, "native", more=True),
        Goal("install.unlinks", "unlinks", "/s", None, "native", more=True),
        Goal("big.write", "big file: sequential write, fsync", "MiB/s", 0.7, "native", more=True),
        Goal("big.read", "big file: read from the cache disk", "MiB/s", 0.7, "native", more=True),
        Goal("big.random_writes", "random writes of 4 KiB", "/s", 1 / 3, "native", more=True),
        Goal("big.amplification", "bytes written to the cache disk a byte", "", 1.2),
    ]
    for at in ("@0ms", "@20ms"):
        trip = 0.02 if at == "@20ms" else 0.0
        rows += [
            Goal(f"push.rate{at}", f"push of the environment, {at[1:]}", "MB/s", 0.8, "raw", more=True),
            Goal(f"push.copy_and_stop{at}", f"copy and push, {at[1:]}", "s"),
            Goal(f"push.requests{at}", f"requests of the push, {at[1:]}", "requests"),
            Goal(f"stop.20_changes{at}", f"stop after 20 changes, {at[1:]}", "s", 0.5 + 4 * trip),
            Goal(f"stop.20_changes_requests{at}", f"requests of that stop, {at[1:]}", "requests", 6),
            Goal(f"stop.20_changes_kib{at}", f"sent by that stop, {at[1:]}", "KiB", 100),
            Goal(f"stop.unchanged{at}", f"stop with nothing unsaved, {at[1:]}", "s", 0.3),
            Goal(f"stop.wide_metadata{at}", f"one change in a wide directory, {at[1:]}", "KiB", 64),
        ]
        for label, count in (("few", few), ("many", many)):
            where = f"{count:,} files, {at[1:]}"
            rows += [
                Goal(f"start.cold_{label}{at}", f"cold mount, {where}", "s", 0.5 + 3 * trip),
                Goal(f"start.first_ls_{label}{at}", f"first ls, {where}", "s"),
                Goal(f"start.first_stat_{label}{at}", f"first stat, {where}", "s"),
                Goal(f"start.warm_{label}{at}", f"warm mount, {where}", "s", 0.3 + (3 * trip)),
                Goal(f"start.memory_{label}{at}", f"peak memory, {where}", "MiB", 500),
                Goal(f"start.index_{label}{at}", f"index on disk, {where}", "MiB"),
                Goal(f"scale.stat_{label}{at}", f"stat of a new path, {where}", "ms"),
                Goal(f"scale.create_{label}{at}", f"create, {where}", "ms"),
                Goal(f"scale.unlink_{label}{at}", f"unlink, {where}", "ms"),
                Goal(f"scale.commit_{label}{at}", f"save of 20 new files, {where}", "s"),
            ]
    return [
        *rows,
        Goal("cold.import_first@20ms", "cold import, no profile, 20ms", "s", 5, "native"),
        Goal("cold.import@20ms", "cold import, with a profile, 20ms", "s", 2, "native"),
        Goal("cold.tar@20ms", "full cold read, 20ms", "MB/s", 0.8, "raw", more=True),
        Goal("foreground.create", "p99 of create during a push : idle", "x", 2),
        Goal("foreground.stat", "p99 of stat during a push : idle", "x", 2),
        Goal("foreground.create_idle", "p99 of create, idle", "ms"),
        Goal("foreground.create_busy", "p99 of create, during a push", "ms"),
        Goal("foreground.stat_idle", "p99 of stat, idle", "ms"),
        Goal("foreground.stat_busy", "p99 of stat, during a push", "ms"),
        Goal("foreground.longest", f"longest create or stat while {wide:,} files are saved", "ms", 100),
    ]


ROWS: Final = ("requests", "instructions", "install", "big", "push", "cold", "stop", "start", "foreground")
