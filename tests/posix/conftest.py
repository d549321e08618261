"""The fixtures of tests/integration, with one mount for all tests here that need none of their own."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


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
reachable = integration.reachable
here = integration.here
tree = integration.tree
tools = integration.tools


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these tests make real mounts."""
    possible = os.geteuid() == 0 and os.path.exists("/dev/fuse")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.mount)
            if not possible:
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


@pytest.fixture(scope="session")
def shared_site(new_site: Callable[[Path, str], Any]) -> Iterator[Any]:
    """One mount for all tests here, open to other users, with devices and set-user-ID."""
    base = Path(tempfile.mkdtemp(prefix="wsfs-test-"))
    base.chmod(0o755)  # pytest's own directories are its user's alone
    found = new_site(base / "site", integration.DIRECTORY).init()
    found.mount("-o", "allow_other,suid,dev")
    try:
        yield found
    finally:
        with integration._watched(found, 60):
            found.finish()
        shutil.rmtree(base)
