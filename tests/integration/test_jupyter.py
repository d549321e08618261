"""The server's part of the Jupyter extension: a real jupyter_server over a real mount, asked as a browser does it.

What the browser shows is tested by scripts/jupyter-test.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wsfs.errors import NotMountedError
from wsfs.jupyter.handlers import Workspace

if TYPE_CHECKING:
    from conftest import Helpers, Site

TOKEN = "for-the-test"


class Server:
    """A Jupyter server, and a client that keeps its cookies."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._cookies: dict[str, str] = {}

    def ask(self, method: str, path: str, **headers: str) -> tuple[int, Any]:
        """The status of the answer, and the JSON in it, None if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        connection.request(method, f"/user/ada{path}", headers={"Cookie": cookies} | headers)
        answer = connection.getresponse()
        body = answer.read()
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.partition(";")[0].partition("=")
            self._cookies[name] = value
        connection.close()
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(body)
        return answer.status, None

    @property
    def xsrf(self) -> str:
        return self._cookies["_xsrf"]


@pytest.fixture
def jupyter(site: Site, tools: type[Helpers], tmp_path: Path) -> Iterator[Server]:
    """A server whose root directory is in the mounted workspace."""
    site.mount()
    root = site.mountpoint / "notebooks"
    root.mkdir()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.base_url": "/user/ada/",
        "ServerApp.root_dir": root,
        "ServerApp.allow_root": True,
        "ServerApp.open_browser": False,
        "ServerApp.jpserver_extensions": "{'wsfs.jupyter': True}",
        "IdentityProvider.token": TOKEN,
    }
    words = [sys.executable, "-W", "ignore", "-m", "jupyter_server", *(f"--{k}={v}" for k, v in options.items())]
    log = tmp_path / "jupyter.log"
    with log.open("wb") as output:
        process = subprocess.Popen(words, env=site.environ, stdout=output, stderr=output, cwd="/")
    server = Server(port)

    def up() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            return server.ask("GET", "/api")[0] == 200
        return False

    try:
        tools.until(up)
        yield server
    finally:
        process.terminate()
        process.wait(30)
        assert "Traceback" not in log.read_text()


def test_state_and_save_through_a_jupyter_server(site: Site, tools: type[Helpers], jupyter: Server) -> None:
    jupyter.ask("GET", "/login")  # sets the cookie against XSRF
    assert jupyter.ask("GET", "/wsfs/status")[0] == 403, "without a login"
    assert jupyter.ask("POST", "/wsfs/save")[0] == 403
    login = {"Authorization": f"token {TOKEN}"}
    status, state = jupyter.ask("GET", "/wsfs/status", **login)
    assert status == 200
    assert state["state"] == "RUNNING"
    assert state["mountpoint"] == str(site.mountpoint)
    assert state["read_only"] is False

    (site.mountpoint / "notebooks" / "data").write_bytes(os.urandom(100_000))
    os.sync()
    assert jupyter.ask("GET", "/wsfs/status", **login)[1]["unsaved_bytes"] == 100_000

    # A browser that has logged in sends a cookie; another site can make it do that, but does not know the token.
    jupyter.ask("GET", f"/api/contents?token={TOKEN}")
    assert jupyter.ask("GET", "/wsfs/status")[0] == 200, "the cookie is a login"
    assert jupyter.ask("POST", "/wsfs/save")[0] == 403, "XSRF"
    status, answer = jupyter.ask("POST", "/wsfs/save", **{"X-XSRFToken": jupyter.xsrf})
    assert status == 200, answer
    assert answer["seq"] > state["seq"]
    after = site.status()
    assert (after["unsaved_bytes"], after["seq"]) == (0, answer["seq"])

    pid = site.pid()
    os.kill(pid, signal.SIGKILL)
    tools.until(lambda: tools.is_gone(pid))
    status, state = jupyter.ask("GET", "/wsfs/status", **login)
    assert status == 200
    assert state["state"] == "ERROR"
    assert "the daemon died" in state["reason"]
    status, answer = jupyter.ask("POST", "/wsfs/save", **login)
    assert (status, answer["exit_code"]) == (503, 50)
    assert re.search("unmount it and mount it again", answer["message"])
    subprocess.run(["umount", "-i", "-l", site.mountpoint], check=True)


def test_outside_of_a_workspace_there_is_no_state(tmp_path: Path) -> None:
    async def ask() -> None:
        workspace = Workspace(str(tmp_path))
        assert await workspace.status() == {"state": None}
        with pytest.raises(NotMountedError, match="is in no workspace"):
            await workspace.save()

    asyncio.run(ask())


def test_needs_nothing_of_the_daemon_s_packages() -> None:
    """Jupyter may live in another environment than wsfs."""
    code = (
        "import sys, wsfs.jupyter.handlers as _\n"
        "print(sorted({'pyfuse3', 'trio', 'boto3', 'lmdb', 'zstandard', 'click', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
