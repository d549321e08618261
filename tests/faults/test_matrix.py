"""Each way in which a store can misbehave, against each thing that a mount wants of it.

Nothing hangs, nothing is lost, work on what is local goes on, the state and the reason are shown, commands fail with
the store's code and one sentence, and succeed when they are repeated after the fault.

`scripts/test --all` runs the whole matrix; without that a part that stands for the rest is run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ALL = bool(os.environ.get("WSFS_TEST_ALL"))
IMPATIENT = ("-o", "store_timeout=5")
"""Five seconds for a request and its repetitions, half of that for an answer, ten for a read."""
READ_SECONDS = 30.0
"""Ten would do; the rest is for a slow machine."""
MIB = 1 << 20


@dataclass(frozen=True)
class Fault:
    """A mode of the proxy, the exit code of each command under it (0: it does not mind), and what is said."""

    mode: str
    what: str
    says: str = ""
    sync: int = 11
    mount: int = 11
    mount_says: str = ""  # if it is something else
    read: bool = False  # whether reads succeed
    often: bool = False  # part of the short matrix: writes
    also: bool = False  # part of the short matrix: reads and mounts

    @property
    def umount(self) -> int:
        return 50 if self.sync else 0

    @property
    def state(self) -> str:
        return "SYNC_FAILED" if self.sync else "RUNNING"


DAMAGE = "is damaged"
MATRIX = [
    Fault("refuse", "refuses connections", "cannot connect", often=True),
    Fault("reset", "resets connections", "the connection was closed before the answer"),
    Fault("stall request", "takes requests and does not answer", "no answer in time"),
    Fault("stall response", "stops in the middle of an answer", "no answer in time", often=True, also=True),
    Fault("dribble", "sends its answers byte by byte", "no answer in time"),
    Fault("delay", "takes 20 to 500 ms longer for each request", sync=0, mount=0, read=True),
    Fault("500", "answers 500 InternalError", "it is overloaded or busy"),
    Fault("slowdown", "answers 503 SlowDown", "it is overloaded or busy"),
    Fault("expired", "answers 403 ExpiredToken", "the credentials have expired: renew them", sync=12, mount=12),
    Fault("full", "answers 507 InsufficientStorage", "free space in bucket", sync=16, mount=16),
    Fault("deleted", "has lost every object", "there is no object", sync=14, mount=20, mount_says="no workspace"),
    Fault("truncated", "cuts bodies short", "", sync=0, mount_says="the answer was cut short"),
    Fault("flipped", "sends a flipped bit", "", sync=0, mount=22, mount_says=DAMAGE, also=True),
    Fault("stale", "shows an old HEAD", sync=0, read=True, mount_says="shows an old HEAD"),
]
DOCUMENT = Path(__file__).parents[2] / "docs" / "FAULTS.md"
BEGIN, END = "<!-- MATRIX: as tests/faults/test_matrix.py has it. -->\n\n", "\n<!-- END MATRIX -->"


def table() -> str:
    """The matrix for people. To renew the one in the document: python tests/faults/test_matrix.py."""
    rows = [
        ("the store ...", "`sync`", "`umount`", "state", "a read of what is not here", "`mount`", "what is said"),
        ("---",) * 7,
    ]
    for fault in MATRIX:
        said = [text for text in (fault.says, fault.mount_says and f"mount: {fault.mount_says}") if text]
        read = "works" if fault.read else "EIO"
        codes = [str(code) for code in (fault.sync, fault.umount)]
        rows.append((fault.what, *codes, fault.state, read, str(fault.mount), "; ".join(said)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def test_the_document_shows_this_matrix() -> None:
    assert table() == DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


def cases(short: str) -> list[Any]:
    return [pytest.param(fault, id=fault.mode.replace(" ", "-")) for fault in MATRIX if ALL or getattr(fault, short)]


def sentence(text: str, says: str) -> None:
    """One line for the user, with the reason, after those that tell how far it is."""
    lines = [line for line in text.splitlines() if not line.startswith("wsfs: saving: ")]
    assert len(lines) == 1
    assert lines[0].startswith("wsfs: ")
    assert says in lines[0]


@pytest.mark.parametrize("fault", cases("often"))
def test_saves(site: Any, proxy: Any, tools: Any, fault: Fault) -> None:
    """Background saves, sync and umount while the fault lasts, and after it."""
    site.mount(*IMPATIENT, "-o", "save_interval=1")
    top = site.mountpoint
    (top / "before").write_bytes(os.urandom(MIB))
    site.wsfs("sync", top)
    content = os.urandom(2 * MIB)
    with proxy.fault(fault.mode):
        (top / "file").write_bytes(content)
        if fault.sync:
            status = tools.until(lambda: (s := site.status())["state"] == "SYNC_FAILED" and s)
            assert fault.says in status["reason"]
            assert fault.says in site.wsfs("status", top).stdout
            assert status["unsaved_files"] > 0
        began = time.monotonic()
        (top / "directory").mkdir()
        (top / "directory" / "other").write_text("work goes on")
        assert (top / "file").read_bytes() == content
        os.rename(top / "directory" / "other", top / "renamed")
        assert time.monotonic() - began < 4, "the store's answers are waited for"
        result = site.wsfs("sync", top, code=fault.sync, timeout=40)
        if fault.sync:
            sentence(result.stderr, fault.says)
            assert site.status()["state"] == fault.state
            result = site.wsfs("umount", top, code=fault.umount, timeout=40)
            sentence(result.stderr, fault.says)
            assert "still mounted" in result.stderr
            assert (top / "renamed").read_text() == "work goes on"
        assert site.status()["state"] == fault.state
    if fault.sync:
        tools.until(lambda: site.status()["state"] == "RUNNING")
    (top / "last").write_text("the end")
    site.umount()
    site.wipe()
    site.mount()
    assert (top / "file").read_bytes() == content
    assert (top / "renamed").read_text() == "work goes on"
    assert (top / "last").read_text() == "the end"


@pytest.mark.parametrize("fault", cases("also"))
def test_cold_reads(site: Any, proxy: Any, tools: Any, fault: Fault) -> None:
    """They end with EIO, in time; the same read succeeds afterwards."""
    site.mount()
    top = site.mountpoint
    contents = {name: os.urandom(3 * MIB) for name in ("one", "two", "three")}
    for name, content in contents.items():
        (top / name).write_bytes(content)
    site.umount()
    site.wipe()
    site.mount(*IMPATIENT)
    assert (top / "one").read_bytes() == contents["one"]
    assert sorted(path.name for path in top.iterdir() if not path.name.startswith(".")) == sorted(contents)
    with proxy.fault(fault.mode, "GET"):
        if fault.read:
            assert (top / "two").read_bytes() == contents["two"]
        else:
            result = tools.run("dd", f"if={top}/two", "of=/dev/null", "bs=1M", code=None, timeout=READ_SECONDS)
            assert result.returncode == 1
            assert "Input/output error" in result.stderr
        # What is here goes on working, and the state says nothing of a failed save: there was none.
        assert (top / "one").read_bytes() == contents["one"]
        (top / "new").write_text("written meanwhile")
        assert site.status()["state"] == "RUNNING"
    for name, content in contents.items():
        assert (top / name).read_bytes() == content
    site.umount()


MAPPED = "import mmap, sys; f = open(sys.argv[1]); print(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[1 << 20])"


def test_a_reader_that_waits_can_be_ended(site: Any, proxy: Any) -> None:
    """A signal ends whoever waits for a store that hangs at once, and not when the wait of two minutes is over."""
    site.mount()
    top = site.mountpoint
    names = [f"file{number}" for number in range(4)]
    for name in names:
        (top / name).write_bytes(os.urandom(3 * MIB))
    site.elsewhere()
    assert len([path.stat() for path in top.iterdir()]) == 5
    with proxy.fault("stall response", "GET"):
        mapped = [sys.executable, "-c", MAPPED]
        commands = [["cat"], ["cat"], mapped, mapped]
        signals = [signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM]
        for name, command, number in zip(names, commands, signals, strict=True):
            reader = subprocess.Popen(
                [*command, top / name],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )
            time.sleep(1)
            assert reader.poll() is None, "it does not wait"
            reader.send_signal(number)
            assert reader.wait(20) == -number
        assert site.status()["state"] == "RUNNING"
    site.umount()


@pytest.mark.parametrize("fault", cases("also"))
def test_mounts(site: Any, proxy: Any, fault: Fault) -> None:
    """A mount is refused with the store's code and one sentence, in time, and the next one is not."""
    site.mount()
    (site.mountpoint / "file").write_text("content")
    site.umount()
    began = time.monotonic()
    part = {"flipped": "/commits/", "truncated": "/commits/"}.get(fault.mode, "")
    site.wipe()
    with proxy.fault(fault.mode, part=part):
        result = site.mount(*IMPATIENT, code=fault.mount)
        assert time.monotonic() - began < 30
        if fault.mount:
            sentence(result.stderr, fault.mount_says or fault.says)
            assert site.status()["state"] == "ERROR"
            assert site.status()["reason"] in result.stderr
    if fault.mount:
        assert proxy.treated or fault.mode == "refuse"
        site.mount()
    assert (site.mountpoint / "file").read_text() == "content"
    site.umount()


APPLIED = ["applied, error", "applied, closed", "applied, no answer"]
OBJECTS = {"HEAD": "/HEAD", "manifest": "/commits/", "segment": "/meta/", "pack": "/packs/"}


@pytest.mark.parametrize("mode", APPLIED if ALL else APPLIED[1:2])
@pytest.mark.parametrize("key", ["HEAD", *(pytest.param(key, marks=pytest.mark.long) for key in list(OBJECTS)[1:])])
def test_done_but_not_told(site: Any, proxy: Any, mode: str, key: str) -> None:
    """The store has done what was asked, and the answer is lost: that is no failure, and nothing is done twice."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    seq = site.status()["seq"]
    content = os.urandom(MIB)
    (top / "file").write_bytes(content)
    with proxy.fault(mode, "PUT", OBJECTS[key], times=1):
        site.wsfs("sync", top)
    assert proxy.treated == 1
    status = site.status()
    assert (status["state"], status["seq"], status["unsaved_files"]) == ("RUNNING", seq + 1, 0)
    site.elsewhere()
    assert (top / "file").read_bytes() == content


@pytest.mark.parametrize("mode", APPLIED if ALL else APPLIED[:1])
def test_done_and_nobody_tells(site: Any, proxy: Any, mode: str) -> None:
    """HEAD was swapped, the answer is lost, and then the store is away: the next save finds out, and so does a mount
    after a crash."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    seq = site.status()["seq"]
    (top / "file").write_text("one")
    with proxy.fault(mode, part="/HEAD"):
        site.wsfs("sync", top, code=11, timeout=40)
        (top / "file").write_text("two")
        (top / "more").write_text("of it")
    site.wsfs("sync", top)
    assert site.status()["seq"] == seq + 2
    (top / "file").write_text("three")
    with proxy.fault(mode, part="/HEAD"):
        site.wsfs("sync", top, code=11, timeout=40)
        site.kill()
    site.mount()
    assert (top / "file").read_text() == "three"
    site.elsewhere()
    assert (top / "file").read_text() == "three"
    assert (top / "more").read_text() == "of it"


def test_a_stale_answer_after_a_lost_one(site: Any, proxy: Any) -> None:
    """HEAD was swapped, the answer is lost, and the store then shows the HEAD of before: nobody is fenced for that."""
    site.mount(*IMPATIENT)
    top = site.mountpoint
    (top / "file").write_text("one")
    with proxy.fault("delay", part="/HEAD"):
        site.status(site.url)
    with proxy.fault("applied, closed", "PUT", "/HEAD", times=1):
        pass
    proxy.set(mode="applied, closed", method="PUT", part="/HEAD", times=1)
    result = site.wsfs("sync", top, code=None, timeout=40)
    assert result.returncode in (0, 11)
    with proxy.fault("stale", part="/HEAD"):
        (top / "file").write_text("two")
        result = site.wsfs("sync", top, code=None, timeout=40)
        assert result.returncode in (0, 11)
    assert site.status()["state"] in ("RUNNING", "SYNC_FAILED")
    site.wsfs("sync", top)
    site.elsewhere()
    assert (top / "file").read_text() == "two"


def delete(site: Any, part: str) -> int:
    """Delete objects of a workspace, past the proxy and past everybody. Returns how many there were."""
    import boto3

    bucket, _, prefix = site.url.removeprefix("s3://").partition("/")
    real = os.environ.get("WSFS_TEST_S3_ENDPOINT")
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    client = boto3.session.Session().client("s3", endpoint_url=real or site.server.endpoint, **({} if real else keys))
    found = client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/{part}").get("Contents", [])
    for item in found:
        client.delete_object(Bucket=bucket, Key=item["Key"])
    client.close()
    return len(found)


def test_packs_that_somebody_deleted(site: Any, proxy: Any, tools: Any) -> None:
    """What they held is lost, and nothing else; the check names the files."""
    site.mount()
    top = site.mountpoint
    (top / "lost").write_bytes(os.urandom(MIB))
    (top / "small").write_text("in the metadata")
    site.elsewhere()
    assert delete(site, "packs/")
    assert tools.run("cat", top / "lost", code=1).stderr.endswith("Input/output error\n")
    assert (top / "small").read_text() == "in the metadata"
    (top / "new").write_bytes(content := os.urandom(MIB))
    site.wsfs("sync", top)
    assert " /lost" in site.wsfs("fsck", site.url, code=25).stdout
    site.elsewhere()
    assert (top / "new").read_bytes() == content
    site.umount()


def test_a_head_that_somebody_deleted(site: Any, proxy: Any, tools: Any, tmp_path: Path) -> None:
    """Nothing can be saved, nothing is lost. The repair makes HEAD anew, and what was unsaved can be had."""
    site.mount()
    top = site.mountpoint
    (top / "saved").write_text("saved")
    site.wsfs("sync", top)
    assert delete(site, "HEAD") == 1
    (top / "unsaved").write_text("unsaved")
    sentence(site.wsfs("sync", top, code=20).stderr, "the object HEAD is missing")
    assert site.status()["state"] == "SYNC_FAILED"
    assert "the object HEAD is missing" in site.wsfs("umount", top, code=50).stderr
    assert (top / "unsaved").read_text() == "unsaved"
    assert "made HEAD anew" in site.wsfs("fsck", site.url, "--repair").stdout
    site.wsfs("sync", top, code=31)
    site.wsfs("export", "--unsaved", tmp_path / "rescued", top)
    assert (tmp_path / "rescued" / "unsaved").read_text() == "unsaved"
    site.wsfs("umount", top, "--deadline", "60s", code=31)
    site.wipe()
    site.mount()
    assert (top / "saved").read_text() == "saved"
    site.umount()


def test_the_mount_takes_the_lease_and_is_not_told(site: Any, proxy: Any) -> None:
    with proxy.fault("applied, closed", "PUT", "/HEAD", times=1):
        site.mount(*IMPATIENT)
    assert proxy.treated == 1
    (site.mountpoint / "file").write_text("x")
    with proxy.fault("applied, closed", "PUT", "/HEAD", times=5):
        site.umount()
    assert site.status(site.url)["state"] == "STOPPED"


@pytest.mark.long
def test_a_store_that_hangs_does_not_keep_a_signal_waiting(site: Any, proxy: Any, tools: Any) -> None:
    """SIGTERM while everything hangs: the daemon ends when its requests have, with SYNC_FAILED."""
    site.mount(*IMPATIENT)
    (site.mountpoint / "file").write_bytes(os.urandom(MIB))
    pid = site.pid()
    with proxy.fault("stall response"):
        os.kill(pid, signal.SIGTERM)
        tools.until(lambda: tools.is_gone(pid))
    assert site.status()["state"] == "SYNC_FAILED"
    site.mount()
    assert (site.mountpoint / "file").stat().st_size == MIB


def test_python_only() -> None:
    """The proxy is a program of its own that needs nothing but Python."""
    result = subprocess.run(
        [sys.executable, "-I", Path(__file__).with_name("proxy.py"), "127.0.0.1:9"],
        input="{}\n",
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    assert result.stdout.splitlines()[1] == "0"


if __name__ == "__main__":
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table() + END + rest.partition(END)[2])
