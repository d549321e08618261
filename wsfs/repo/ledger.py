"""What the bucket has held, and for how long: kept in HEAD, and carried on with each change of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from wsfs.repo.frame import U63, field, number, word

_HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class Ledger:
    """`stored` bytes lie in the bucket since `at`. `byte_hours` have been used from `since`, the first stop, to `at`.

    Times are ISO 8601; `since` is empty before the first stop, and nothing is counted then.
    """

    stored: int = 0
    byte_hours: int = 0
    since: str = ""
    at: str = ""

    def until(self, now: str) -> Ledger:
        """The ledger at a later time, with nothing more and nothing less stored."""
        used = int(self.stored * _seconds_between(self.at, now) / _HOUR) if self.since else 0
        # A clock that was put back counts nothing until it is where it was.
        at = now if _seconds_between(self.at, now) or not self.at else self.at
        return Ledger(self.stored, min(self.byte_hours + used, U63), self.since, at)

    def changed(self, now: str, by: int, *, stopped: bool) -> Ledger:
        """The ledger when `by` bytes have come or, below 0, gone. `stopped`: the workspace is given back now."""
        then = self.until(now)
        since = now if stopped and not then.since else then.since
        return Ledger(min(max(then.stored + by, 0), U63), then.byte_hours, since, then.at)


def ledger_out(ledger: Ledger) -> dict[str, Any]:
    return {"stored": ledger.stored, "byte_hours": ledger.byte_hours, "since": ledger.since, "at": ledger.at}


def ledger_in(value: object, what: str) -> Ledger:
    """Raises FormatError on anything but a well-formed ledger."""
    found: dict[str, Any] = value if isinstance(value, dict) else {}
    stored, used = number(found, "stored", what), number(found, "byte_hours", what)
    since = word(found, "since", what) if field(found, "since", str, what) else ""
    return Ledger(stored, used, since, word(found, "at", what))


def _seconds_between(first: str, second: str) -> float:
    """0 if one of them is no time, or the second is not later."""
    try:
        return max((datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
