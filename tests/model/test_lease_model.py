"""Every state that the protocol of lease and commit can reach is looked at; see lease_model.py for what must hold."""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lease_model import Bounds, Model, Rules, explore

ALL = bool(os.environ.get("WSFS_TEST_ALL"))
TWO = Bounds(writers=2, epochs=2, items=1, flights=2)
MORE = [
    Bounds(writers=1, epochs=4, items=3, flights=3),
    Bounds(writers=2, epochs=3, items=1, flights=2),
    Bounds(writers=2, epochs=2, items=2, flights=2),
    Bounds(writers=3, epochs=3, items=1, flights=1),
]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bounds", [TWO, *(MORE if ALL else MORE[:1])], ids=str)
def test_the_protocol_holds(bounds: Bounds, capsys: pytest.CaptureFixture[str]) -> None:
    states, steps, broken = explore(Model(bounds))
    with capsys.disabled():
        print(f" [{states:,} states, {steps:,} steps]", end="")
    assert broken is None, "\n".join(broken)
    assert states > 1000


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rule", [field.name for field in fields(Rules)])
def test_each_rule_is_needed(rule: str) -> None:
    """Without any one of them something breaks, and the model shows how."""
    for bounds in (TWO, Bounds(writers=2, epochs=3, items=2, flights=2)):
        _states, _steps, broken = explore(Model(bounds, Rules(**{rule: False})), limit=150_000)
        if broken is not None:
            return
    pytest.fail("nothing broke")
