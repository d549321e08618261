"""For all tests."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# How long one example takes is the machine's business: one that is busy must not fail a test.
settings.register_profile("wsfs", deadline=None)
settings.load_profile("wsfs")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So it is in a job that a script has put into the background, and in what the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked `long` is only run by `scripts/test --all`."""
    if os.environ.get("WSFS_TEST_ALL"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]
