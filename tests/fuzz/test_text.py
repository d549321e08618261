"""Names and texts from elsewhere, as they are shown to people."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsfs.text import lines, printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain", "plain"),
        ("gr\xfc\xdfe \N{SNOWMAN}".encode(), "gr\xfc\xdfe \N{SNOWMAN}"),
        (b"a\nb", "a\\nb"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("\N{RIGHT-TO-LEFT OVERRIDE}cod.exe".encode(), "\\u202ecod.exe"),
        (os.fsdecode(b"\xff"), "\\xff"),
        ("\ud800", "\\ud800"),
    ],
)
def test_names_are_shown_on_one_line(name: bytes | str, shown: str) -> None:
    """What is text stays readable; the rest cannot break a line, or do anything to a terminal."""
    assert printable(name) == shown


@given(st.binary(max_size=100) | st.text(max_size=100))
def test_whatever_the_name(name: bytes | str) -> None:
    """It can be printed, on any terminal and into any file."""
    shown = printable(name)
    assert shown.isprintable()
    shown.encode()


def test_lines_stay_lines() -> None:
    assert lines("a\nb\x07\n  c") == "a\nb\\x07\n  c"
