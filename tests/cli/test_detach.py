"""The daemon that a command leaves behind: nothing of the command's is left in it, and how its start ends is told."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from wsfs.cli import mounts

if TYPE_CHECKING:
    from tests.cli.conftest import Run

FORK = """
    import os, signal, sys, threading
    from pathlib import Path
    from wsfs.cli import detach
    {before}
    receiving, sending = os.pipe()
    def body(kept):
        import ctypes, json, socket
        print("said")
        print("complained", file=sys.stderr)
        about = {{
            "cwd": os.getcwd(), "leader": os.getsid(0) == os.getpid(), "path": sys.path, "kept": kept,
            "open": {{
                fd: os.readlink(f"/proc/self/fd/{{fd}}")
                for fd in range(64)
                if os.path.lexists(f"/proc/self/fd/{{fd}}")
            }},
            "term": signal.getsignal(signal.SIGTERM), "hup": signal.getsignal(signal.SIGHUP),
            "int": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
            "shown": Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0"),
        }}
        os.write(kept, json.dumps(about, default=os.fsdecode).encode())
        return 7
    with open("log", "a") as log:
        pid = detach.fork(body, "shown as this", output=log.fileno(), kept=sending)
    os.close(sending)
    with open("about", "wb") as about:
        about.write(open(receiving, "rb").read())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    Path("code").write_text(str(code))
"""


def forked(directory: Path, *, before: str = "", shell: str = 'exec "$@"', **how: Any) -> dict[str, Any]:
    """What a forked process tells about itself, after `before` in its parent, which `shell` becomes."""
    script = textwrap.dedent(FORK).format(before=before)
    command = ["sh", "-c", shell, "sh", sys.executable, "-P", "-c", script, "some", "words", "of", "the", "parent"]
    subprocess.run(command, cwd=directory, check=True, timeout=60, **how)
    assert (directory / "code").read_text() == "7"
    return dict(json.loads((directory / "about").read_text()))


def test_nothing_of_the_parent_is_left(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        before = "os.dup2(receiving := os.open('secret', os.O_RDONLY), 30)"
        about = forked(tmp_path, before=before, pass_fds=(secret.fileno(),))
    assert (about["cwd"], about["leader"], about["dumpable"]) == ("/", True, 0)
    assert about["shown"] == "shown as this"
    log = str(tmp_path / "log")
    kept = str(about["kept"])
    assert about["open"].pop(kept).startswith("pipe:")
    assert about["open"] == {"0": "/dev/null", "1": log, "2": log}
    assert Path(log).read_text() == "said\ncomplained\n"


def test_a_parent_without_standard_streams(tmp_path: Path) -> None:
    """Its pipe and its log then have their numbers."""
    about = forked(tmp_path, shell='exec "$@" <&- >&- 2>&-')
    log = str(tmp_path / "log")
    assert [about["open"][number] for number in "012"] == ["/dev/null", log, log]
    assert about["kept"] > 2
    assert (tmp_path / "log").read_text() == "said\ncomplained\n"


def test_signals_are_those_of_a_new_program(tmp_path: Path) -> None:
    before = (
        "signal.signal(signal.SIGTERM, print); signal.signal(signal.SIGINT, print);"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])"
    )
    about = forked(tmp_path, before=before)
    assert (about["term"], about["int"], about["hup"]) == (signal.SIG_DFL, True, signal.SIG_IGN)
    assert about["blocked"] == [signal.SIGUSR2]


def test_what_the_parent_has_not_written_yet_is_written_once(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        forked(tmp_path, before="print('begun')", stdout=out)
    assert (tmp_path / "out").read_text() == "begun\n"
    assert "begun" not in (tmp_path / "log").read_text()


# --- of a mount -----------------------------------------------------------------------------------------------------


def daemons(mountpoint: Path) -> list[int]:
    """The processes that are shown as the daemon of this mount point."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            shown = (entry / "cmdline").read_bytes().rstrip(b"\0")
        except OSError:
            continue
        if shown.startswith(b"wsfs mount --foreground ") and shown.endswith(b" %s" % os.fsencode(mountpoint)):
            found.append(int(entry.name))
    return found


def until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "this never came true"
        time.sleep(0.02)


@pytest.mark.mount
@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="needs root and FUSE")
class TestOfAMount:
    """With the stub in place of the core."""

    def test_it_has_no_terminal_and_no_directory(
        self, environ: dict[str, str], wsfs: Run, mountpoint: Path, tmp_path: Path
    ) -> None:
        """What lies in the directory of the command is not imported, either."""
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "trio.py").write_text("raise SystemExit('imported')")
        (tmp_path / "here" / "pyfuse3.py").write_text("raise SystemExit('imported')")
        command = [sys.executable, "-m", "wsfs.cli.main", "mount", "s3://b/ok", str(mountpoint)]
        pid, leader = pty.fork()
        if pid == 0:
            os.chdir(tmp_path / "here")
            os.execvpe(command[0], command, environ)
        try:
            while os.read(leader, 1024):
                pass
        except OSError:  # nobody has the other end any more
            pass
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(leader)
        (daemon,) = daemons(mountpoint)
        process = Path(f"/proc/{daemon}")
        _, parent, _, session, terminal = process.joinpath("stat").read_text().rpartition(")")[2].split()[:5]
        assert (int(session), int(terminal)) == (daemon, 0)
        assert int(parent) != pid
        assert os.readlink(process / "cwd") == "/"
        leads = []
        for descriptor in process.joinpath("fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                leads.append(os.readlink(descriptor))
        assert not [where for where in leads if where.startswith(("/dev/pts", "/dev/tty"))]
        wsfs("umount", mountpoint)

    def test_it_is_shown_although_its_mount_point_is_no_text(self, wsfs: Run, mountpoint: Path) -> None:
        where = mountpoint / os.fsdecode(b"caf\xe9")
        where.mkdir()
        wsfs("mount", "s3://b/ok", where)
        assert len(daemons(mountpoint / r"caf\xe9")) == 1
        wsfs("umount", where)

    def test_one_that_is_killed_at_the_start(self, wsfs: Run, mountpoint: Path) -> None:
        result = wsfs("mount", "s3://b/killed", mountpoint, code=40)
        assert "ended before the mount answered (killed by SIGKILL): last words" in result.stderr

    def test_an_interruption_ends_it(self, environ: dict[str, str], mountpoint: Path) -> None:
        command = [sys.executable, "-P", "-m", "wsfs.cli.main", "mount", "s3://b/hang", str(mountpoint)]
        with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                assert process.stderr.readline() == "wsfs: hanging\n"
                assert len(daemons(mountpoint)) == 1
                process.send_signal(signal.SIGINT)
                assert process.stderr.read().strip() == "wsfs: interrupted"
            finally:
                process.kill()  # it is gone, if all is well; else leaving it would wait for it
        assert process.returncode == 130
        assert daemons(mountpoint) == []

    def test_the_end_of_whoever_waits_for_it_does_not(
        self, environ: dict[str, str], wsfs: Run, mountpoint: Path, tmp_path: Path
    ) -> None:
        """It has a session of its own, and goes on."""
        command = [sys.executable, "-P", "-m", "wsfs.cli.main", "mount", "s3://b/slow", str(mountpoint)]
        with (tmp_path / "told").open("w+") as told:
            process = subprocess.Popen(command, env=environ, stderr=told, start_new_session=True)
            until(lambda: (tmp_path / "told").read_text())
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        until(lambda: mounts.find_wsfs(mountpoint))
        until(lambda: json.loads(wsfs("status", mountpoint, "--json").stdout)["state"] == "RUNNING")
        wsfs("umount", mountpoint)

    @pytest.mark.parametrize("behaviour", ["refuse", "die"])
    def test_no_zombie_is_left_in_a_parent_that_lives_on(
        self, environ: dict[str, str], mountpoint: Path, behaviour: str
    ) -> None:
        script = f"""
            import os
            from pathlib import Path
            from wsfs.cli import background
            from wsfs.config import load_settings
            from wsfs.errors import WsfsError
            try:
                background.start(load_settings("s3://b/{behaviour}", "{mountpoint}"))
            except WsfsError:
                print(Path(f"/proc/self/task/{{os.getpid()}}/children").read_text())
        """
        command = [sys.executable, "-P", "-c", textwrap.dedent(script)]
        assert subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout == "\n"
