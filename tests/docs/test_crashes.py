"""docs/CRASHES.md shows the list that the crash tests are made from."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from gaps import DOCUMENT, rendered


def test_the_tables_are_those_of_the_list() -> None:
    """If not: python tests/core/gaps.py"""
    document = DOCUMENT.read_text()
    assert rendered(document) == document
