"""Real mounts behind a proxy that misbehaves, and the workspace without FUSE of tests/core."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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
server = integration.server
real_s3 = integration.real_s3
new_site = integration.new_site
tools = integration.tools
tree = integration.tree

IMPATIENT = "store_timeout=2"
"""Two seconds for a request and its repetitions, one for an answer, four for a read."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    possible = os.geteuid() == 0 and os.path.exists("/dev/fuse")
    for item in items:
        if item.path.parent == HERE and "site" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.mount)
            if os.environ.get("WSFS_TEST_S3_ENDPOINT"):  # then these run against that server, and belong to its tests
                item.add_marker(pytest.mark.s3)
            if not possible:
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


class Proxy:
    """The process of proxy.py."""

    def __init__(self, endpoint: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "proxy.py", endpoint.removeprefix("http://")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.endpoint = self._output.readline().strip()
        self.treated = 0

    def set(self, **rule: Any) -> None:
        """Begin to misbehave, or, with nothing, end it."""
        self._input.write(json.dumps(rule) + "\n")
        self._input.flush()
        self.treated = int(self._output.readline())

    @contextlib.contextmanager
    def fault(self, mode: str, method: str = "", part: str = "", times: int | None = None) -> Iterator[None]:
        """Misbehave during the block; `treated` is then how many requests it hit."""
        self.set(mode=mode, method=method, part=part, times=times)
        try:
            yield
        finally:
            self.set()

    def close(self) -> None:
        self._input.close()
        self._process.wait(60)
        self._output.close()


@pytest.fixture(scope="session")
def proxy(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """In front of the server that WSFS_TEST_S3_ENDPOINT names, else of moto's."""
    if os.environ.get("WSFS_TEST_S3_ENDPOINT"):
        endpoint = request.getfixturevalue("real_s3")
    else:
        endpoint = request.getfixturevalue("server").endpoint
    found = Proxy(endpoint)
    yield found
    found.close()


@pytest.fixture
def site(proxy: Proxy, tmp_path: Path, new_site: Callable[[Path, str], Any]) -> Iterator[Any]:
    """A workspace that exists and is not mounted, in a store behind the proxy."""
    kind = integration.REAL if os.environ.get("WSFS_TEST_S3_ENDPOINT") else integration.MOTO
    found = new_site(tmp_path, kind)
    found.environ["WSFS_ENDPOINT_URL"] = proxy.endpoint
    found.environ["NO_PROXY"] = "127.0.0.1"
    with integration._watched(found, 200):
        found.init()
        try:
            yield found
        finally:
            proxy.set()
            found.finish()
