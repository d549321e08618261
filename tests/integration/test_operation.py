"""What an administrator sees of a mount: its counters, live and for Prometheus."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wsfs.metrics import BOUNDS, Latency, quantile

if TYPE_CHECKING:
    from tests.integration.conftest import Site


def samples(text: str) -> dict[str, float]:
    """The samples of an exposition, without the label that all have."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    pairs = (line.rpartition(" ")[::2] for line in lines)
    bare = ((re.sub(r',?mountpoint="[^"]*"', "", name), value) for name, value in pairs)
    return {name.replace("{,", "{").replace("{}", ""): float(value) for name, value in bare}


def test_a_histogram() -> None:
    latency = Latency()
    for seconds in [0.00004] * 98 + [0.004, 100.0]:
        latency.add(seconds)
    assert sum(latency.counts) == 100
    assert (latency.counts[0], latency.counts[-1]) == (98, 1)
    assert quantile(latency.counts, 0.5) == BOUNDS[0]
    assert quantile(latency.counts, 0.99) == 0.005
    assert quantile(latency.counts, 1.0) == float("inf")


def test_stats(workspace: Site) -> None:
    """Counters move with what is done, and nothing is measured before somebody asks."""
    top = workspace.mountpoint

    def stats() -> dict[str, Any]:
        return dict(json.loads(workspace.wsfs("stats", top, "--json").stdout))

    before = stats()
    assert before["requests"] == {}
    assert before["unsaved_age"] == 0.0
    (top / "file").write_bytes(os.urandom(100_000))
    during = stats()
    assert during["requests"]["create"]["count"] == 1
    assert sum(during["requests"]["write"]["buckets"]) == during["requests"]["write"]["count"] >= 1
    assert during["unsaved_bytes"] >= 100_000
    workspace.wsfs("sync", top)
    after = stats()
    assert after["saves"] == before["saves"] + 1
    assert after["store"]["bytes_out"] >= before["store"]["bytes_out"] + 100_000
    assert (after["unsaved_bytes"], after["unsaved_age"], after["save_failures"]) == (0, 0.0, 0)
    text = workspace.wsfs("stats", top).stdout
    assert "that failed" in text
    assert re.search(r"create +1 ", text)
    assert "no workspace is mounted" in workspace.wsfs("stats", "/tmp", code=42).stderr


def test_cache_misses(workspace: Site) -> None:
    (workspace.mountpoint / "file").write_bytes(os.urandom(100_000))
    workspace.elsewhere()
    (workspace.mountpoint / "file").read_bytes()
    cache = json.loads(workspace.wsfs("stats", workspace.mountpoint, "--json").stdout)["cache"]
    assert cache["misses"] >= 1
    assert cache["bytes"] >= 100_000


def test_stats_live(workspace: Site) -> None:
    """A line as often as asked for, until it is interrupted."""
    words, environ = workspace.command("stats", workspace.mountpoint, "--watch", "--interval", "0.1s")
    with subprocess.Popen(words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        lines = [watching.stdout.readline() for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 0
    assert all(line.startswith("state=RUNNING unsaved_bytes=") for line in lines), lines


def test_stats_on_a_terminal(workspace: Site) -> None:
    """The same screen again and again, and an end when the mount goes away."""
    words, environ = workspace.command("stats", workspace.mountpoint, "--watch", "--interval", "0.1s")
    script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(
        command, env=environ | {"TERM": "xterm"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as watching:
        assert watching.stdout is not None
        shown = ""
        while "/s in" not in shown:  # only a second sample has rates
            shown += watching.stdout.readline()
        workspace.umount()
        watching.stdout.read()
        assert watching.wait(30) == 0
    assert f"{workspace.mountpoint} RUNNING" in " ".join(shown.split()), "a long path has a line of its own"


def test_metrics_on_a_port(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    site.mount("-o", f"metrics=127.0.0.1:{port}")
    (site.mountpoint / ".wsfsignore").write_text("*.log\n")
    (site.mountpoint / "file").write_bytes(os.urandom(50_000))
    (site.mountpoint / "x.log").write_bytes(os.urandom(1_000))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        found = samples(answer.read().decode())
    assert found["wsfs_unsaved_bytes"] >= 50_000
    assert (found["wsfs_kept_files"], found["wsfs_kept_bytes"]) == (1, 1_000)
    site.wsfs("sync", site.mountpoint)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        found = samples(answer.read().decode())
    assert found["wsfs_unsaved_bytes"] == found["wsfs_unsaved_age_seconds"] == 0
    assert found["wsfs_saves_total"] == 1
    assert found['wsfs_state{state="RUNNING"}'] == 1
    assert found['wsfs_store_bytes_total{kind="put"}'] >= 50_000
    assert found['wsfs_request_seconds_count{op="write"}'] >= 1
    assert sum(value for name, value in found.items() if name.startswith("wsfs_state")) == 1


def test_metrics_in_a_file(site: Site, tmp_path: Path) -> None:
    """Nothing but whole files, and how it ended in the last one."""
    file = tmp_path / "wsfs.prom"
    site.mount("-o", f"metrics={file}")
    site.umount()
    found = samples(file.read_text())
    assert found['wsfs_state{state="STOPPED"}'] == 1
    assert [name for name in os.listdir(tmp_path) if name.startswith(file.name)] == [file.name]


def test_metrics_that_cannot_be_are_no_reason_not_to_mount(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        site.mount("-o", f"metrics=127.0.0.1:{taken.getsockname()[1]}")
        assert "choose another port with -o metrics=" in site.log()
    assert "of this machine alone" in site.wsfs("mount", site.url, "/tmp", "-o", "metrics=0.0.0.0:9464", code=2).stderr


def test_the_log_for_programs(site: Site) -> None:
    """Each line is an object that says which mount it is about; also why a mount was refused."""
    site.mount("-o", "log_format=json,quota=4M")
    with (site.mountpoint / "a file").open("wb") as file:
        file.write(os.urandom(6 << 20))
        file.flush()
        with pytest.raises(OSError, match="No space left"):
            os.fsync(file.fileno())
    site.umount()
    site.mount("-o", "at=nothing,ro,log_format=json", code=27, cache=site.cache)
    records = [json.loads(line) for line in site.log().splitlines()]
    for record in records:
        assert {"ts", "level", "event", "logger"} <= record.keys()
        assert (record["workspace"], record["mountpoint"]) == (site.url, str(site.mountpoint))
    (refused,) = [record for record in records if record.get("op")]
    assert (refused["op"], refused["path"], refused["errno"]) == ("write", "/a file", "ENOSPC")
    assert "mounted" in [record["event"] for record in records]
    at = site.cache.with_name(site.cache.name + "-at")
    (ended,) = [one for one in map(json.loads, site.log(at).splitlines()) if one["event"] == "ended"]
    assert (ended["level"], ended["exit_code"]) == ("ERROR", 27)
    assert "nothing" in ended["error"]
    assert ended["remedy"]
