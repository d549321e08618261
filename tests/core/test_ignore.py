"""Patterns of `.wsfsignore`: what they mean is what they mean to git."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsfs.cli import daemon, mounts
from wsfs.cli.ignore import decide
from wsfs.tree.ignore import Rules

PATHS = (
    "build/",
    "build/lib/x.o",
    "src/build/",
    "src/build/y.c",
    "src/main.o",
    "keep.o",
    "src/keep.o",
    "a/x/b",
    "a/b/",
    "doc/one.txt",
    "doc/sub/two.txt",
    "#name",
    "!name",
    "end ",
    "node_modules/pkg/index.js",
    "x1",
    "x22",
    "-dash",
)
PATTERNS = (
    "build/",
    "/build",
    "*.o",
    "!keep.o",
    "a/**/b",
    "a/**/",
    "**/",
    "**",
    "/**",
    "!doc/**",
    "!*/",
    "doc/*.txt",
    "doc/**",
    "**/lib",
    "\\#name",
    "\\!name",
    "end\\ ",
    "end   ",
    "x[0-9]",
    "x?2",
    "x[!1]*",
    "# a comment",
    "",
    "node_modules",
    "!node_modules/pkg/index.js",
    "/*",
    "!/src",
    "!src/build/",
)


def git(directory: Path, lines: list[str]) -> dict[str, tuple[int, str, bool]]:
    """Which line decides about each path, as git says."""
    (directory / ".gitignore").write_text("".join(f"{line}\n" for line in lines))
    command = ["git", "check-ignore", "--no-index", "-v", "-z", "--stdin"]
    paths = "\0".join(path.rstrip("/") for path in PATHS).encode()  # it looks itself which are directories
    output = subprocess.run(command, cwd=directory, input=paths, capture_output=True, check=False).stdout.decode()
    fields = output.split("\0")[:-1]
    return {
        _full(fields[at + 3]): (int(fields[at + 1]), fields[at + 2], not fields[at + 2].startswith("!"))
        for at in range(0, len(fields), 4)
    }


def _full(path: str) -> str:
    return path if path in PATHS else f"{path}/"


def ours(lines: list[str]) -> dict[str, tuple[int, str, bool]]:
    rules = Rules("".join(f"{line}\n" for line in lines).encode())
    found = {}
    for path in PATHS:
        decided = rules.decide(os.fsencode(path.rstrip("/")), is_dir=path.endswith("/"))
        if decided is not None:
            pattern = decided[1]
            found[path] = (pattern.line, pattern.text, pattern.ignores)
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    directory = tmp_path_factory.mktemp("git")
    subprocess.run(["git", "init", "-q", directory], check=True)
    for path in PATHS:
        target = directory / path
        (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            target.touch()
    return directory


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(lines=st.lists(st.sampled_from(PATTERNS), max_size=6))
def test_every_verdict_is_that_of_git(repository: Path, lines: list[str]) -> None:
    theirs, mine = git(repository, lines), ours(lines)
    for path in PATHS:
        # Of a negated pattern below an ignored directory git tells the directory's, and so do we.
        assert mine.get(path) == theirs.get(path), (lines, path)


def test_the_marker_and_the_file_itself_are_never_ignored() -> None:
    rules = Rules(b"*\n.*\n/.wsfsignore\n")
    for name in (b".workspace.initialized", b".wsfsignore"):
        assert rules.decide(name, is_dir=False) is None
    assert rules.decide(b"other", is_dir=False) is not None
    below = rules.decide(b"sub/.wsfsignore", is_dir=False)
    assert below is not None
    assert below[0] == b"sub"


def test_names_that_are_no_text() -> None:
    rules = Rules(b"caf\xe9\n*.\xff\xfe\nline\n")
    assert rules.decide(b"caf\xe9", is_dir=False) is not None
    assert rules.decide(b"a.\xff\xfe", is_dir=False) is not None
    assert rules.decide(b"caf\xc3\xa9", is_dir=False) is None
    assert rules.decide(b"line\n", is_dir=False) is None
    assert rules.decide(b"line", is_dir=False) is not None


def test_lines_end_as_editors_end_them_and_what_is_no_pattern_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rules = Rules(b"\xef\xbb\xbfone\r\n!\r\n[[:alpha:]]\r\ntwo")
    found = rules.decide(b"two", is_dir=False)
    assert found is not None
    assert (found[1].line, found[1].text) == (4, "two")
    assert rules.decide(b"one", is_dir=True) is not None
    assert [record.getMessage() for record in caplog.records] == ["a line is no pattern, and is left out"]


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "directory", "none"])
def test_only_a_file_has_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """The command takes for patterns what a mount does: not what a link leads to, which may lie outside."""
    (tmp_path / "patterns").write_text("*.log\n")
    place = tmp_path / ".wsfsignore"
    if kind == "file":
        place.write_text("*.log\n")
    elif kind == "link":
        place.symlink_to("patterns")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    here = mounts.Mount(1, "0:31", str(tmp_path), mounts.FSTYPE, "", ())
    monkeypatch.setattr(mounts, "containing", lambda _path: here)
    monkeypatch.setattr(daemon, "stays", lambda *_asked: None)
    assert decide(str(tmp_path / "x.log"))["ignored"] == (kind == "file")
