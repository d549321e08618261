"""Each decoder for a moment: its seeds, and what hypothesis makes of them. scripts/fuzz does it at length."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import TARGETS, run

EXAMPLES = 200


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name: str) -> None:
    """Else the fuzzer would begin outside."""
    assert [run(name, seed) for seed in TARGETS[name].seeds].count(True) >= 1


@st.composite
def mutations(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed with some bytes replaced, removed or added."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=12)) + data[at + draw(st.integers(0, 12)) :]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_wsfs_errors(name: str) -> None:
    """Whatever the bytes: they are accepted, or refused with an error of ours."""

    @settings(max_examples=EXAMPLES)
    @given(mutations(TARGETS[name].seeds) | st.binary(max_size=200))
    def check(data: bytes) -> None:
        run(name, data)

    check()
