"""The log: events with fields, as text and as JSON, on stderr, in the journal, and in a file that does not grow."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from wsfs import errors
from wsfs.errors import TransientStoreError
from wsfs.log import Json, Text, get_log
from wsfs.logfile import LIMIT, OLDER

REPOSITORY = Path(__file__).parents[2]
ABOUT = {"workspace": "s3://bucket/ada", "mountpoint": "/workspace"}
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture
def record(caplog: pytest.LogCaptureFixture) -> Any:
    """Makes a record: the event and its fields."""

    def make(event: str, **fields: Any) -> logging.LogRecord:
        get_log("wsfs.test").warning(event, **fields)
        return caplog.records[-1]

    return make


def test_text_is_one_line_that_can_be_taken_apart(record: Any) -> None:
    one = record(
        "cache not shrunk", path="/a b", op="read", size=7, error='say "no"\\\x1b[2J\n', remedy="", missing=None
    )
    assert Text(stamped=False).format(one) == (
        'level=WARNING event="cache not shrunk" path="/a b" op=read size=7 error="say \\"no\\"\\\\\\\\x1b[2J\\\\n"'
        ' remedy="" logger=wsfs.test'
    )
    assert re.match(f"{STAMP} level=WARNING event=", Text(stamped=True).format(one))


def test_json_is_one_object_a_line(record: Any) -> None:
    one = record("request failed", op="read", path="/\udcff", size=7, packs=["a"], missing=None)
    line = Json(ABOUT).format(one)
    found = json.loads(line)
    assert "\n" not in line
    assert re.fullmatch(STAMP, found.pop("ts"))
    assert found == ABOUT | {
        "level": "WARNING",
        "event": "request failed",
        "op": "read",
        "path": "/\udcff",
        "size": 7,
        "packs": ["a"],
        "logger": "wsfs.test",
    }


def test_an_exception_tells_what_it_knows(record: Any) -> None:
    """In words, with the errno of a system call, and what helps; what the caller says wins."""
    found = json.loads(Json({}).format(record("x", error=TransientStoreError("the store is away"))))
    assert (found["error"], found["remedy"]) == ("the store is away", TransientStoreError.remedy)
    found = json.loads(Json({}).format(record("x", error=TransientStoreError("away"), remedy="wait")))
    assert found["remedy"] == "wait"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/secret/place")
    found = json.loads(Json({}).format(record("x", error=full)))
    assert (found["error"], found["errno"]) == ("No space left on device", "ENOSPC")
    assert "remedy" not in found


def test_a_traceback_stays_with_its_record(record: Any) -> None:
    try:
        raise KeyError("lost")
    except KeyError as exc:
        one = record("internal error", exc_info=exc)
    assert json.loads(Json({}).format(one))["traceback"].endswith("KeyError: 'lost'")
    first, *rest = Text(stamped=False).format(one).split("\n")
    assert first == 'level=WARNING event="internal error" logger=wsfs.test'
    assert rest[-1] == "KeyError: 'lost'"


def test_records_of_libraries_have_no_fields(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("library").warning("found %d", 3)
    assert Text(stamped=False).format(caplog.records[-1]) == 'level=WARNING event="found 3" logger=library'


def test_every_error_has_a_remedy() -> None:
    classes = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.WsfsError)]
    assert len(classes) > 20
    for cls in classes:
        assert (vars(cls).get("remedy") == "") == (cls is errors.WsfsError), cls


# --- where it goes --------------------------------------------------------------------------------------------------


def daemon(script: str, *, journal: bool, stderr: Path, **environ: str) -> None:
    """Run a script that sets up its log, in a process of its own; its stderr is a file, or said to be the journal."""
    with stderr.open("wb") as file:
        status = os.fstat(file.fileno())
        stream = f"{status.st_dev}:{status.st_ino}" if journal else "1:2"
        subprocess.run(
            [sys.executable, "-c", f"from wsfs.log import get_log\nfrom wsfs.logfile import *\n{script}"],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JOURNAL_STREAM": stream} | environ,
            stderr=file,
            check=True,
        )


SAY = """
set_up({shape!r}, {{}})
log = get_log("wsfs.test")
log.debug("hidden")
log.info("up")
try:
    1 / 0
except ZeroDivisionError as exc:
    log.error("down", exc_info=exc)
"""


def test_the_journal_gets_priorities_and_no_time(tmp_path: Path) -> None:
    daemon(SAY.format(shape="text"), journal=True, stderr=tmp_path / "err")
    lines = (tmp_path / "err").read_text().splitlines()
    assert lines[0] == "<6>level=INFO event=up logger=wsfs.test"
    assert lines[1] == "<3>level=ERROR event=down logger=wsfs.test"
    assert all(line.startswith("<3>") for line in lines[1:])
    assert lines[-1] == "<3>ZeroDivisionError: division by zero"


def test_elsewhere_it_has_a_time_and_no_priority(tmp_path: Path) -> None:
    """Also if the variable was inherited from a unit, and stderr leads to another place."""
    daemon(SAY.format(shape="text"), journal=False, stderr=tmp_path / "err")
    assert re.match(f"{STAMP} level=INFO event=up", (tmp_path / "err").read_text())
    daemon(SAY.format(shape="json"), journal=False, stderr=tmp_path / "err", WSFS_DEBUG="1")
    events = [json.loads(line)["event"] for line in (tmp_path / "err").read_text().splitlines()]
    assert events == ["hidden", "up", "down"]


FILL = f"""
import os
from pathlib import Path
set_up("text", {{}}, file=Path(os.environ["LOG"]))
log = get_log("wsfs.test")
for number in range({(OLDER + 3) * LIMIT // 1000}):
    log.info("filling", number=number, text="x" * 1000)
os.write(2, b"the last words of a library\\n")
"""


@pytest.mark.long
def test_the_file_makes_way_and_the_whole_stays_small(tmp_path: Path) -> None:
    """What a library writes to stderr is in the newest one."""
    path = tmp_path / "cache" / "daemon.log"
    path.parent.mkdir()
    path.write_bytes(b"x" * LIMIT)
    daemon(FILL, journal=False, stderr=tmp_path / "err", LOG=str(path))
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["daemon.log", *(f"daemon.log.{number}" for number in range(1, OLDER + 1))]
    assert sum(file.stat().st_size for file in files) <= (OLDER + 1) * LIMIT
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    newest = path.read_text()
    assert f"number={(OLDER + 3) * LIMIT // 1000 - 1} " in newest
    assert newest.endswith("the last words of a library\n")
    assert (tmp_path / "err").read_text() == ""
