"""The fixtures of tests/integration, and those of tests/core for what needs no mount."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "core"))


def _integration() -> Any:
    """What the tests of real mounts have: tests are no package, so it is loaded by its path."""
    path = HERE.parent / "integration" / "conftest.py"
    spec = importlib.util.spec_from_file_location("wsfs_integration_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


integration = _integration()
new_site = integration.new_site
fresh_store = integration.fresh_store
site = integration.site
workspace = integration.workspace
tree = integration.tree


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a mount need one to be possible."""
    possible = os.geteuid() == 0 and os.path.exists("/dev/fuse")
    for item in items:
        if HERE in item.path.parents and {"site", "workspace"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.mount)
            if not possible:
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


@pytest.fixture
def ask(site: Any) -> Callable[..., Any]:
    """What a command prints with --json."""

    def run(*arguments: object, **how: Any) -> Any:
        return json.loads(site.wsfs(*arguments, "--json", **how).stdout)

    return run
