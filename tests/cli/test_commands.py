"""Commands through the real command line: help, errors as one sentence with an exit code, init and status of a URL."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from wsfs.cli import daemon, main, mounts, process
from wsfs.cli.history import the_mount
from wsfs.cli.init import parse_labels, parse_owner
from wsfs.cli.output import duration, size
from wsfs.cli.status import describe, of_all
from wsfs.errors import MarkerError, MountError, NotMountedError, UsageError
from wsfs.mountinfo import Mount, parse_mountinfo

if TYPE_CHECKING:
    from tests.cli.conftest import Run

COMMANDS = sorted(main.cli.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    command = main.cli.commands[name]
    with click.Context(command, info_name=f"wsfs {name}") as context:
        text = command.get_help(context)
    assert re.search(rf"Examples?:\n(?:  .*\n)*?  .*wsfs {name}", text), text
    assert all(option.help for option in command.params if isinstance(option, click.Option) and not option.hidden)
    assert "\b" not in text
    assert command.short_help
    assert len(command.short_help) < 60


def test_help_fits_a_terminal(wsfs: Run) -> None:
    for name in COMMANDS:
        assert max(map(len, wsfs(name, "--help").stdout.splitlines())) <= 100


def test_the_group_lists_every_command_and_says_where_settings_come_from(wsfs: Run) -> None:
    text = wsfs("--help").stdout
    assert all(f"  {name}" in text for name in COMMANDS)
    assert "WSFS_" in text


def test_commands_start_without_heavy_imports() -> None:
    script = "import sys, wsfs.cli.main, wsfs.cli.helpers; print(' '.join(sys.modules))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "boto3",
        "botocore",
        "pyfuse3",
        "trio",
        "rich",
        "lmdb",
        "zstandard",
        "wsfs.mount",
        "wsfs.store",
        "wsfs.repo",
    }
    assert not heavy & set(found)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["frobnicate"], 2, "No such command"),
        (["mount"], 2, "Try 'wsfs mount --help'"),
        (["mount", "file:///s", "/nowhere/at/all"], 40, "does not exist: make it with mkdir"),
        (["mount", "file:///s", "/etc/passwd"], 40, "is not a directory"),
        (["mount", "file:///s", "/tmp", "-o", "ro,alow_other"], 2, "did you mean allow_other"),
        (["mount", "", "/tmp"], 2, "no workspace URL"),
        (["mount", "s3://key:hush@bucket/x", "/tmp"], 2, "credentials do not belong"),
        (["umount", "/tmp"], 42, "no workspace is mounted at /tmp"),
        (["sync", "/tmp"], 42, "no workspace is mounted at /tmp"),
        (["status", "/tmp"], 42, "no workspace is mounted at /tmp"),
        (
            ["mount", "/mnt", "s3://bucket/x"],
            2,
            "the URL comes first, then the directory: wsfs mount s3://bucket/x /mnt",
        ),
        (["init", "nonsense"], 2, "scheme"),
        (["init", "file:///nowhere", "--label", "x"], 2, "--label KEY=VALUE"),
        (["init", "file:///nowhere", "--encrypt"], 2, "--encrypt needs a key: name a file with --key-file"),
        (["init", "file:///nowhere", "--encrypt", "--key-file", "k", "--kms-key", "x"], 2, "a workspace has one key"),
        (["data", "/tmp", "--size", "all"], 2, "50% or 8G"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(wsfs: Run, arguments: list[str], code: int, words: str) -> None:
    result = wsfs(*arguments, code=code)
    assert words in result.stderr
    assert result.stderr.startswith("wsfs: ")
    assert result.stdout == ""
    assert "hush" not in result.stderr


def test_init_then_status_of_the_url(wsfs: Run, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    assert "wsfs mount" in wsfs("init", url, "--framework", "jupyter", "--label", "team=physics").stdout
    shown = json.loads(wsfs("status", url, "--json").stdout)
    assert shown["state"] == "STOPPED"
    assert shown["url"] == url
    assert "STOPPED" in wsfs("status", url).stdout
    assert wsfs("status", url, "--check", code=1).stdout
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.joinpath("store").rglob("*"))
    assert "already" in wsfs("init", url, code=21).stderr
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.joinpath("store").rglob("*")) == before


def test_a_holder_that_gives_no_sign_of_life(wsfs: Run, tmp_path: Path) -> None:
    """It cannot say that it has died, so its state in the store is RUNNING for ever."""
    url, head = f"file://{tmp_path}/store", tmp_path / "store" / "HEAD"
    wsfs("init", url)
    holder = {"host": "notebook-1", "pid": 7, "boot_id": "b/1", "since": "2026-11-30T12:00:00Z", "cache": "1:2"}

    def left(state: str, age: float) -> dict[str, Any]:
        said = {"state": state, "holder": holder, "reason": "the store was down" if state == "SYNC_FAILED" else ""}
        head.write_text(json.dumps(json.loads(head.read_text()) | said, sort_keys=True))
        os.utime(head, (time.time() - age,) * 2)
        return dict(json.loads(wsfs("status", url, "--json").stdout))

    assert left("RUNNING", 100)["state"] == "RUNNING"
    wsfs("status", url, "--check")
    found = left("RUNNING", 645)
    assert found["state"] == "ERROR"
    assert found["reason"].startswith("no sign of life from notebook-1 (process 7) for 11 min: if it died")
    assert "no sign of life" in wsfs("status", url, "--check", code=1).stdout
    doctor = wsfs("doctor", url, code=None).stdout
    assert f"state: {url} is ERROR: no sign of life from notebook-1" in doctor
    found = left("SYNC_FAILED", 645)
    assert found["state"] == "SYNC_FAILED"
    assert found["reason"].startswith("the store was down; no sign of life from notebook-1")


def test_init_as_json(wsfs: Run, tmp_path: Path) -> None:
    made = json.loads(wsfs("init", f"file://{tmp_path}/store", "--json").stdout)
    assert set(made) == {"url", "workspace_id", "created"}


def test_config_shows_where_each_value_comes_from(wsfs: Run, tmp_path: Path) -> None:
    file = tmp_path / "wsfs.toml"
    file.write_text('price = 2\n["s3://bucket"]\numask = "027"\n')
    env = {"WSFS_CONFIG": str(file), "WSFS_SAVE_INTERVAL": "1m"}
    lines = wsfs("config", "s3://bucket/ada", "-o", "xattr", **env).stdout.splitlines()
    rows = {words[0]: words[1:] for words in map(str.split, lines)}
    assert rows["price"] == ["2", str(file)]
    assert rows["umask"] == ["027", str(file), '["s3://bucket"]']
    assert rows["save_interval"] == ["60", "environment", "WSFS_SAVE_INTERVAL"]
    assert rows["xattr"] == ["yes", "-o"]
    assert rows["retain"] == ["1h/1d/30d", "default"]
    assert rows["store_timeout"] == ["60", "default"]
    assert rows["cache_size"] == ["half", "of", "the", "cache", "disk", "default"]
    shown = json.loads(wsfs("config", "--json", **env).stdout)
    assert shown["files"] == [str(file)]
    assert shown["settings"]["price"] == {"value": 2.0, "source": str(file)}
    assert shown["settings"]["umask"] == {"value": "000", "source": "default"}
    file.write_text("prise = 2\n")
    assert f"{file}: unknown key 'prise': did you mean price?" in wsfs("config", code=2, **env).stderr
    assert f"{file}: unknown key 'prise'" in wsfs("status", "file:///nowhere", code=2, **env).stderr


def test_status_of_a_url_without_workspace(wsfs: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no workspace" in wsfs("status", f"file://{tmp_path}/empty", code=20).stderr


def test_status_without_mounts(wsfs: Run) -> None:
    shown = json.loads(wsfs("status", "--json").stdout)
    assert isinstance(shown, list)  # other tests on this machine may have mounts


def test_status_of_all_leaves_out_what_is_gone_by_the_time_it_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = f"36 35 0:31 / {tmp_path}/gone rw - fuse.wsfs s3://b/w rw,user_id={os.geteuid()}"
    monkeypatch.setattr(mounts, "all_mounts", lambda: parse_mountinfo(gone))
    assert [mount.is_wsfs for mount in mounts.all_mounts()] == [True]
    monkeypatch.setattr(mounts, "find_wsfs", lambda mountpoint: None)
    assert list(of_all()) == []


@pytest.mark.parametrize(("used", "shown"), [(None, "(at most 10.0 GB)"), (5000, "(5.0 kB of 10.0 GB)")])
def test_status_says_how_much_room_the_cache_takes_once_it_knows(used: int | None, shown: str) -> None:
    told = describe({"state": "RUNNING", "cache_dir": "/c", "cache_used": used, "cache_limit": 10**10})
    assert told.splitlines()[-1].endswith(f"/c {shown}")


def test_status_says_what_is_left_of_a_quota() -> None:
    told = describe({"state": "RUNNING", "files": 1200, "bytes": 5000, "quota": 10**10, "quota_files": 10**6})
    assert told.splitlines()[-1].split(maxsplit=1) == ["quota", "5.0 kB of 10.0 GB, 1,200 of 1,000,000 files"]


@pytest.mark.parametrize(
    ("more", "label"), [({}, "held by"), ({"read_only": True}, "served by"), ({"state": "ERROR"}, "served by")]
)
def test_status_calls_nobody_the_holder_who_is_not(more: dict[str, Any], label: str) -> None:
    told = describe({"state": "RUNNING", "host": "h", "pid": 7} | more)
    assert told.splitlines()[-1] == f"  {label:<10} h, process 7"


def test_only_mounts_that_the_caller_may_control_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an argument a command is about the only one of those, whatever else is mounted."""

    def mounted(*owners: int) -> None:
        monkeypatch.setattr(mounts, "all_mounts", lambda: [of(owner) for owner in owners])

    def of(owner: int) -> Mount:
        return Mount(owner, "0:1", f"/home/{owner}/work", "fuse.wsfs", "s3://b/x", ("rw", f"user_id={owner}"))

    monkeypatch.setenv("WSFS_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    mounted(1000, 1001, 0)
    assert daemon.only_mount() == the_mount(None).mountpoint == "/home/1000/work"
    mounted(1001, 0)
    with pytest.raises(NotMountedError, match=r"no workspace of yours .* /home/1001/work.*: name the URL of one"):
        the_mount(None)
    with pytest.raises(NotMountedError, match=r"no workspace of yours .* only those of other users .*/home/1001/work"):
        daemon.only_mount()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UsageError, match="several workspaces are mounted here: name one of"):
        daemon.only_mount()


def test_archives_are_not_compressed(wsfs: Run, tmp_path: Path) -> None:
    """A directory of that name would be no use to anybody."""
    url = f"file://{tmp_path}/store"
    wsfs("init", url)
    for name, program in (("b.tar.gz", "gzip"), ("b.tgz", "gzip"), ("b.tar.xz", "xz"), ("b.TAR.ZST", "zstd")):
        told = wsfs("export", url, tmp_path / name, code=2).stderr
        assert f"'wsfs export {url} - | {program} > {tmp_path / name}'" in told
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_bytes(b"\x1f\x8b\x08\0")
        assert "unpack it first" in wsfs("import", tmp_path / name, f"{url}-2", code=2).stderr
    assert not (tmp_path / "store-2").exists()


def test_nothing_asked_for(wsfs: Run) -> None:
    """Then the help is all: no complaint, and no advice to read it."""
    told = wsfs(code=2).stderr
    assert told.startswith("Usage: wsfs ")
    assert "Try '" not in told


def test_the_line_that_mounts_a_new_workspace_works(wsfs: Run, tmp_path: Path) -> None:
    """With what this command was told about store and key."""
    url, key = f"file://{tmp_path}/store", tmp_path / "the key"
    flags = ["--encrypt", "--key-file", key, "--endpoint-url", "http://s3.example.org"]
    told = wsfs("init", url, *flags).stdout
    assert f"wsfs mount {url} /workspace --endpoint-url http://s3.example.org --key-file '{key}'\n" in told
    for command in ("status", "log", "fsck"):
        assert "name its key with --key-file or --kms-key" in wsfs(command, url, code=26).stderr
    told = wsfs("fork", url, f"{url}-2", "--key-file", key).stdout
    assert f"wsfs mount {url}-2 /workspace --key-file '{key}'\n" in told


def test_a_fork_says_what_is_not_in_it(wsfs: Run, tmp_path: Path) -> None:
    url, head = f"file://{tmp_path}/store", tmp_path / "store" / "HEAD"
    wsfs("init", url)
    assert wsfs("fork", url, f"{url}-1").stderr == ""
    holder = {"host": "notebook-1", "pid": 7, "boot_id": "b/1", "since": "2026-11-30T12:00:00Z"}
    head.write_text(json.dumps(json.loads(head.read_text()) | {"state": "RUNNING", "holder": holder}, sort_keys=True))
    told = wsfs("fork", url, f"{url}-2").stderr
    assert f"{url} is RUNNING: what is not saved there is not in the fork, which begins as save point #" in told


def test_the_cache_and_the_store_do_not_lie_in_each_other(wsfs: Run, tmp_path: Path, mountpoint: Path) -> None:
    store = tmp_path / "outer" / "store"
    wsfs("init", f"file://{store}")
    before = sorted(tmp_path.rglob("*"))
    for cache in (store, store / "cache", store.parent, tmp_path / "x" / ".." / "outer"):
        for more in ([], ["--foreground"]):
            told = wsfs("mount", f"file://{store}", mountpoint, "--cache-dir", cache, *more, code=2).stderr
            assert "must not lie in each other: choose another with --cache-dir" in told
    after = [path for path in sorted(tmp_path.rglob("*")) if path not in (tmp_path / "out", tmp_path / "err")]
    assert [path for path in after if "run" not in path.parts] == [path for path in before if path in after]


def test_a_url_that_leads_nowhere_leaves_nothing(wsfs: Run, tmp_path: Path) -> None:
    for command in ("status", "log", "usage", "fsck", "verify"):
        wsfs(command, f"file://{tmp_path}/nowhere", code=20)
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "cache").exists()


def test_a_user_cannot_mount_where_he_may_not_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    with pytest.raises(MountError, match=r"may not write to .*: choose a directory of your own"):
        mounts.check(tmp_path, allow_other=False)


def test_labels_and_owners() -> None:
    assert parse_labels(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for bad in (["a"], ["=b"], ["a=1", "a=2"]):
        with pytest.raises(UsageError):
            parse_labels(bad)
    assert parse_owner("1000:100") == (1000, 100)
    assert parse_owner(None) == (os.getuid(), os.getgid())
    for text in ("ada", "1000", "1000:", ":1", "-1:0"):
        with pytest.raises(UsageError, match="in numbers"):
            parse_owner(text)


class TestGuarded:
    """What becomes of an exception at the outermost level."""

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (MarkerError("no marker"), 24, "wsfs: no marker"),
            (MarkerError(), 24, "wsfs: `.workspace.initialized` is missing"),
            (ExceptionGroup("trio", [MarkerError("no marker")]), 24, "wsfs: no marker"),
            (KeyError("oops"), 1, "wsfs: internal error: KeyError: 'oops'; set WSFS_DEBUG=1"),
            (PermissionError(13, "Permission denied", "/x"), 1, "wsfs: /x: Permission denied"),
            (KeyboardInterrupt(), 130, "wsfs: interrupted"),
            (BaseExceptionGroup("trio", [KeyboardInterrupt()]), 130, "wsfs: interrupted"),
            (click.Abort(), 130, "wsfs: interrupted"),
        ],
    )
    def test_errors(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        code: int,
        words: str,
    ) -> None:
        def body() -> None:
            raise error

        monkeypatch.delenv("WSFS_DEBUG", raising=False)
        assert process.guarded(body) == code
        shown = capsys.readouterr().err
        assert words in shown
        assert "Traceback" not in shown

    def test_traceback_on_demand(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def body() -> None:
            raise MarkerError("no marker")

        monkeypatch.setenv("WSFS_DEBUG", "1")
        assert process.guarded(body) == 24
        assert "Traceback" in capsys.readouterr().err

    def test_integers_are_exit_codes(self) -> None:
        assert process.guarded(lambda: 3) == 3
        assert process.guarded(lambda: None) == 0


def test_reader_that_has_seen_enough_is_no_error(environ: dict[str, str]) -> None:
    reading, writing = socket.socketpair()
    reading.close()
    with writing:
        command = [sys.executable, "-m", "wsfs.cli.main", "--help"]
        result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=environ, check=False)
    assert result.returncode in (0, 1)
    assert result.stderr == b""


def test_mountinfo() -> None:
    line = (
        r"42 27 0:39 / /work\040space rw,nosuid shared:1 master:2 - fuse.wsfs s3://b/a\134b rw,user_id=1000,group_id=0"
        "\n28 27 0:25 / /tmp rw - tmpfs tmpfs rw,size=4k\nnonsense\n"
    )
    mount, other = parse_mountinfo(line)
    assert (mount.mountpoint, mount.source, mount.owner, mount.is_wsfs) == ("/work space", r"s3://b/a\b", 1000, True)
    assert not other.is_wsfs
    assert other.owner == 0


def test_mountinfo_has_lines_for_the_kernel_only() -> None:
    """Of names it escapes blanks, tabs, newlines and backslashes, and nothing else that ends a line in a text."""
    odd = "/o\r\v\f\x1c\x85\u2028\udce9d"
    assert [one.mountpoint for one in parse_mountinfo(f"1 2 0:3 / {odd} rw - tmpfs tmpfs rw\n" * 2)] == [odd, odd]


def test_numbers_for_people() -> None:
    assert [size(n) for n in (0, 999, 1000, 86_000_000, 123_456_789, 5 * 10**12)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "86.0 MB",
        "123 MB",
        "5.0 TB",
    ]
    assert [duration(s) for s in (0.25, 12, 180, 7200, 200_000)] == ["0.2 s", "12 s", "3 min", "2 h", "2 d"]
