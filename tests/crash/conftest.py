"""The modules beside this file; and who may run these tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these tests make real mounts."""
    possible = os.geteuid() == 0 and os.path.exists("/dev/fuse")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.mount)
            if not possible:
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))
