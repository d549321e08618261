"""The bench counts right, makes workspaces that are whole, and reports what was measured."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import generate
from bench.report import picture, table

from wsfs.store.directory import DirectoryStore

ROOT = Path(__file__).parents[2]
PROXY = ROOT / "tests/bench/proxy.py"


class Server(http.server.BaseHTTPRequestHandler):
    """Takes what it is given, and answers a GET with 100,000 bytes."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(b"")

    def do_GET(self) -> None:
        self._answer(b"x" * 100_000)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[subprocess.Popen[str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, str(PROXY), f"127.0.0.1:{server.server_port}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()
    server.shutdown()
    server.server_close()


def order(proxy: subprocess.Popen[str], **what: Any) -> dict[str, list[int]]:
    assert proxy.stdin is not None
    assert proxy.stdout is not None
    print(json.dumps(what), file=proxy.stdin, flush=True)
    found: dict[str, list[int]] = json.loads(proxy.stdout.readline())
    return found


def test_the_proxy_counts_requests_and_bytes_by_kind_and_adds_latency(proxy: subprocess.Popen[str]) -> None:
    assert proxy.stdout is not None
    address = proxy.stdout.readline().strip().removeprefix("http://")
    client = http.client.HTTPConnection(address)

    def ask(method: str, key: str, body: bytes | None = None) -> bytes:
        client.request(method, f"/bucket/prefix/{key}", body)
        return client.getresponse().read()

    ask("PUT", "packs/00/1", os.urandom(3_000_000))
    ask("PUT", "packs/01/2", b"1")
    assert len(ask("GET", "HEAD")) == 100_000
    wanted = {"PUT packs": [2, 3_000_001, 0], "GET HEAD": [1, 0, 100_000]}
    assert order(proxy) == wanted
    assert order(proxy, reset=True, latency=0.2) == wanted
    assert order(proxy) == {}
    began = time.monotonic()
    ask("GET", "HEAD")
    assert time.monotonic() - began >= 0.2
    client.close()


@pytest.mark.parametrize(("files", "wide"), [(100, False), (2000, False), (500, True)])
def test_a_generated_workspace_is_whole(tmp_path: Path, files: int, wide: bool) -> None:
    store = DirectoryStore(str(tmp_path))
    widths = generate.layout(files, wide=wide)
    assert generate.make(store, widths) == files
    # With --data: every block leads to bytes that are there.
    command = [sys.executable, "-m", "wsfs.cli.main", "fsck", f"file://{tmp_path}", "--data"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len({generate.path(widths, number) for number in range(files)}) == files


def result(ours: float, native: float) -> dict[str, Any]:
    return {
        "machine": {"processor": "p", "kernel": "k", "date": "d", "commit": "c"},
        "loads": {"install": 0.5},
        "store": "s",
        "sizes": {"repeats": 1, "few": 10, "many": 20, "wide": 5},
        "figures": {
            "install.cp": {"native": {"median": native}, "wsfs": {"median": ours}, "s3fs": {"median": 500.0}},
            "install.creates": {"native": {"median": 1000.0}, "wsfs": {"median": 100.0}},
            "requests.cached_stat": {"wsfs": {"median": 0.0}},
        },
        "failures": ["install, rclone: no"],
    }


@pytest.mark.parametrize(("ours", "verdict"), [(39.0, "yes"), (41.0, "no")])
def test_the_table_says_what_is_reached(ours: float, verdict: str) -> None:
    shown = table(result(ours, 10.0))
    rows = {row[0]: row for row in ([c.strip() for c in line.strip("|").split("|")] for line in shown.splitlines())}
    assert rows["cp -a of the environment"][2:] == [f"{ours:g} s", "native: 10 s", f"{ours / 10:.2f}", verdict, "500 s"]
    assert rows["creates"][5] == "no", "more is better there"
    assert rows["requests: cached stat by a path"][5] == "yes"
    assert "Failed: install, rclone: no" in shown


def test_the_picture_has_a_bar_for_each_system_that_has_a_yardstick() -> None:
    drawn = picture(result(40.0, 10.0))
    bars = [line for line in drawn.splitlines() if 'height="11"' in line]
    assert len(bars) == 3
    assert "4<" in drawn
    assert "50<" in drawn


def test_the_page_about_fleets_is_what_the_script_prints() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts/fleet")], check=True, capture_output=True, text=True)
    assert (ROOT / "docs/FLEET.md").read_text() == done.stdout, "run scripts/fleet > docs/FLEET.md"
