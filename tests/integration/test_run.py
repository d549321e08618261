"""`wsfs run` as the first process of a container: in pid and mount namespaces of its own, over a real mount."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Helpers, Server, Site

REPOSITORY = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
WAIT = "until [ -e ../go ]; do sleep 0.1; done"
LOOP = "while :; do sleep 0.1; done"
ELSEWHERE = "mount -t tmpfs -o mode=755 elsewhere /mnt; mkdir /mnt/work /mnt/run; exec "


class Container:
    """What a container engine does: namespaces, a first process, a signal to it."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._process: subprocess.Popen[bytes] | None = None
        self.out, self.err = site.base / "out", site.base / "err"

    def start(self, *command: str, options: tuple[object, ...] = (), before: str = "exec ", **env: str) -> None:
        """`wsfs run URL OPTIONS -- COMMAND`; `before` is what the shell does that becomes it."""
        site = self._site
        places = () if "--workspace" in options else ("--workspace", site.mountpoint, "--data", site.base / "data")
        words, environ = site.command("run", site.url, *places, "-o", "save_interval=0", *options, "--", *command)
        spaces = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self._process = subprocess.Popen(
                [*spaces, "sh", "-c", f'{before}"$@"', "sh", *words],
                env=environ | env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def says(self, word: str) -> bool:
        return word in self.out.read_text()

    def signal(self, number: int) -> None:
        """To the first process, as the engine sends it."""
        assert self._process is not None
        parent = self._process.pid
        (first,) = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        os.kill(int(first), number)

    def code(self, seconds: float = 60) -> int:
        assert self._process is not None
        try:
            return self._process.wait(seconds)
        finally:
            self._process.kill()  # and with it everything inside
            self._process.wait()
            assert "Traceback" not in self.told

    @property
    def told(self) -> str:
        return self.err.read_text(errors="replace")

    def run(self, *command: str, **how: Any) -> int:
        self.start(*command, **how)
        return self.code()


@pytest.fixture
def container(site: Site) -> Container:
    return Container(site)


def saved(site: Site, name: str) -> str:
    """A file's content as another host sees it."""
    site.mount(cache=site.base / "elsewhere")
    try:
        return (site.mountpoint / name).read_text()
    finally:
        site.umount()


def test_a_command_that_ends_by_itself(site: Site, container: Container) -> None:
    script = """
        echo "parent $PPID"; pwd
        findmnt --noheadings --output FSTYPE --target ../data
        (sleep 0.2 &)                     # an orphan, which nobody else would reap
        echo content >file; sleep 1
        grep -l '^State:.Z' /proc/[0-9]*/status
        sleep 1000 >held &                # keeps a file open
        exit 7
    """
    assert container.run("sh", "-c", script) == 7, container.told
    assert container.out.read_text() == f"parent 1\n{site.mountpoint}\ntmpfs\n"
    assert "Saved: " in container.told
    assert site.status(site.url)["state"] == "STOPPED"
    assert saved(site, "file") == "content\n"


def test_sigterm_ends_the_command_and_saves_what_it_writes_last(
    site: Site, tools: type[Helpers], container: Container
) -> None:
    container.start("sh", "-c", f"trap 'echo last >words; exit 5' TERM; trap 'echo usr1' USR1; echo up; {LOOP}")
    tools.until(lambda: container.says("up"))
    container.signal(signal.SIGUSR1)
    tools.until(lambda: container.says("usr1"))
    container.signal(signal.SIGTERM)
    assert container.code() == 5, container.told
    assert saved(site, "words") == "last\n"


def test_a_command_that_does_not_listen_is_killed_in_time(
    site: Site, tools: type[Helpers], container: Container
) -> None:
    options = ("--grace", "8s")
    container.start("sh", "-c", f"trap '' TERM; echo content >file; echo up; {LOOP}", options=options)
    tools.until(lambda: container.says("up"))
    container.signal(signal.SIGTERM)
    assert container.code() == 128 + signal.SIGKILL, container.told
    assert "has not ended in time: killed" in container.told
    assert saved(site, "file") == "content\n"


@pytest.mark.parametrize("site", ["moto"], indirect=True)
@pytest.mark.parametrize("by_itself", [True, pytest.param(False, marks=pytest.mark.long)])
def test_when_the_grace_time_is_up_the_rest_stays_in_the_cache(
    site: Site, server: Server, tools: type[Helpers], container: Container, by_itself: bool
) -> None:
    """Also when the command has ended before, and the save was to take as long as it needs."""
    container.start("sh", "-c", f"head -c 300000 /dev/urandom >file; echo up; {WAIT}", options=("--grace", "6s"))
    tools.until(lambda: container.says("up"))
    with server.slow("PUT", "", 1000):
        if by_itself:
            (site.base / "go").touch()
            tools.until(lambda: site.status()["state"] == "STOPPING")
        container.signal(signal.SIGTERM)
        assert container.code() == 3, container.told
    assert "\n  file\n" in container.told  # its daemon has ended by itself, and says what is missing
    site.mount()
    assert (site.mountpoint / "file").stat().st_size == 300_000


def test_a_store_that_is_away_gives_50(site: Site, tools: type[Helpers], container: Container) -> None:
    container.start("sh", "-c", f"echo content >file; echo up; {WAIT}", options=("-o", "store_timeout=2"))
    tools.until(lambda: container.says("up"))
    away = site.store.rename(site.base / "away")
    site.store.touch()
    (site.base / "go").touch()
    assert container.code() == 50, container.told
    assert "not everything could be saved" in container.told
    site.store.unlink()
    away.rename(site.store)
    site.mount()  # HEAD still names the other, which could not say that it has gone
    assert (site.mountpoint / "file").read_text() == "content\n"


def test_a_daemon_that_dies_ends_the_command(site: Site, container: Container) -> None:
    script = f"echo content >file; pkill -9 -f '[m]ount --foreground'; {LOOP}"
    assert container.run("sh", "-c", script) == 50, container.told
    assert f"the workspace on {site.mountpoint} is gone" in container.told
    assert "the next mount with this cache saves them" in container.told
    site.mount()
    assert (site.mountpoint / "file").read_text() == "content\n"


def test_what_cannot_begin(site: Site, container: Container) -> None:
    assert container.run("no-such-program") == 127
    assert "wsfs: no-such-program could not be started: No such file" in container.told
    site.url += "/nothing"
    assert container.run("touch", str(site.base / "ran")) == 20
    assert not (site.base / "ran").exists()
    assert container.run("true", options=("--user", "nobody-there")) == 2
    assert "no user 'nobody-there'" in container.told


def test_a_user_may_save_but_not_stop(site: Site, container: Container) -> None:
    """What the status item in JupyterLab does, which runs as this user."""
    script = (
        "import os; from wsfs import control; from wsfs.cli import daemon\n"
        "print(os.getuid(), os.environ['HOME'])\n"
        "print(daemon.status('/mnt/work')['state'], daemon.sync('/mnt/work')['state'])\n"
        "try: control.request(daemon.socket_of('/mnt/work'), {'op': 'stop'})\n"
        "except Exception as exc: print(exc)\n"
    )
    as_nobody = ["setpriv", "--reuid=65534", SYSTEM_PYTHON, "-c", "import wsfs.control"]
    if subprocess.run(as_nobody, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=False).returncode:
        pytest.skip("this checkout cannot be read by others")
    options = ("--user", "nobody", "--workspace", "/mnt/work", "--no-data")
    code = container.run(SYSTEM_PYTHON, "-c", script, options=options, before=ELSEWHERE, WSFS_RUNTIME_DIR="/mnt/run")
    assert code == 0, container.told
    who, states, refusal = container.out.read_text().splitlines()
    assert who == "65534 /nonexistent"
    assert states == "RUNNING RUNNING"
    assert refusal == "an operator may ask for the state and for a save: this is for root to do, try sudo"
