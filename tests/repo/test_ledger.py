"""The ledger in HEAD: GB-hours from the first stop on."""

from __future__ import annotations

import pytest

from wsfs.errors import FormatError
from wsfs.repo.ledger import Ledger, ledger_in, ledger_out

HOURS = [f"2026-01-01T{hour:02}:00:00Z" for hour in range(24)]


def test_nothing_is_counted_before_the_first_stop() -> None:
    ledger = Ledger().changed(HOURS[0], 5000, stopped=False).changed(HOURS[5], 0, stopped=False)
    assert ledger == Ledger(5000, 0, "", HOURS[5])


def test_bytes_count_for_as_long_as_they_were_there() -> None:
    ledger = Ledger().changed(HOURS[0], 5000, stopped=True)
    ledger = ledger.changed(HOURS[2], 1000, stopped=False)
    assert (ledger.stored, ledger.byte_hours) == (6000, 10_000)
    ledger = ledger.changed(HOURS[3], -4000, stopped=True)
    assert (ledger.stored, ledger.byte_hours, ledger.since) == (2000, 16_000, HOURS[0])
    assert ledger.until(HOURS[8]).byte_hours == 26_000


def test_a_clock_that_was_put_back_counts_nothing_twice() -> None:
    ledger = Ledger(1000, 0, HOURS[0], HOURS[10])
    back = ledger.changed(HOURS[4], 0, stopped=False)
    assert (back.byte_hours, back.at) == (0, HOURS[10])
    assert back.until(HOURS[12]).byte_hours == 2000


def test_more_cannot_go_than_is_there() -> None:
    assert Ledger(10, 0, "", HOURS[0]).changed(HOURS[1], -50, stopped=False).stored == 0


def test_it_is_read_as_it_was_written() -> None:
    ledger = Ledger(1, 2, HOURS[0], HOURS[1])
    assert ledger_in(ledger_out(ledger), "x") == ledger
    assert ledger_in(ledger_out(Ledger(at=HOURS[0])), "x") == Ledger(at=HOURS[0])


@pytest.mark.parametrize("value", [None, 7, {}, {"stored": -1, "byte_hours": 0, "since": "", "at": ""}])
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(FormatError):
        ledger_in(value, "x")
