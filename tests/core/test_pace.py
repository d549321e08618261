"""Forecasts of a save, from what earlier ones took."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsfs.sync.commit import Saved
from wsfs.sync.pace import FILE_BYTES, FIRST_RATE, ROUND_TRIPS, Pace

MB = 1_000_000


def saved(size: int, seconds: float, files: int = 0) -> Saved:
    return Saved(1, files, size, size, 4, seconds)


def test_before_the_first_save(tmp_path: Path) -> None:
    """The latency of the mount's own requests, and a rate that is no boast."""
    pace = Pace(tmp_path, lambda: 0.05)
    assert pace.seconds(0, 0) == 0
    assert pace.seconds(1, 0) == pytest.approx(ROUND_TRIPS * 0.05 + FILE_BYTES / FIRST_RATE)
    assert pace.seconds(0, int(FIRST_RATE)) == pytest.approx(ROUND_TRIPS * 0.05 + 1)
    assert Pace(tmp_path, lambda: None).seconds(1, 0) < 0.01


def test_it_learns_and_the_next_mount_knows(tmp_path: Path) -> None:
    pace = Pace(tmp_path, lambda: 0.1)
    for _ in range(12):
        pace.learn(saved(80 * MB, 2.4))
    assert pace.seconds(0, 80 * MB) == pytest.approx(2.4, rel=0.05)
    again = Pace(tmp_path, lambda: 0.2)
    assert again.seconds(0, 80 * MB) == pytest.approx(2.8, rel=0.05)
    assert again.seconds(1000, 80 * MB) > again.seconds(0, 80 * MB)


def test_the_first_save_counts_for_more_than_a_guess(tmp_path: Path) -> None:
    """Afterwards one save in between that was slow does not turn all upside down."""
    pace = Pace(tmp_path, lambda: None)
    pace.learn(saved(80 * MB, 20.0))
    assert pace.seconds(0, 80 * MB) == pytest.approx(20.0)
    again = Pace(tmp_path, lambda: None)
    again.learn(saved(80 * MB, 2.0))
    assert 2.0 < again.seconds(0, 80 * MB) < 20.0


def test_what_says_nothing_about_the_rate(tmp_path: Path) -> None:
    """Small saves, and those that were quicker than their round trips."""
    pace = Pace(tmp_path, lambda: 0.1)
    pace.learn(saved(1000, 9.0))
    pace.learn(saved(80 * MB, 0.2))
    assert pace.rate == FIRST_RATE
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"rate": "x"}', '{"rate": null}', '{"rate": -1}', '{"rate": NaN}'])
def test_a_note_that_is_not_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "pace.json").write_text(text)
    assert Pace(tmp_path, lambda: None).rate == FIRST_RATE


def test_a_cache_that_is_gone(tmp_path: Path) -> None:
    pace = Pace(tmp_path / "gone", lambda: 0.0)
    pace.learn(saved(80 * MB, 1.0))
    assert pace.rate > FIRST_RATE
