"""One workspace that is mounted, killed and mounted again: the daemon, its cache, its store, its dead mounts."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import powerloss

from wsfs.cli import daemon as commands
from wsfs.errors import WsfsError
from wsfs.mountinfo import all_mounts

REPOSITORY = Path(__file__).parents[2]
MARKER = ".workspace.initialized"
START_TIMEOUT = 60.0
DEATH_TIMEOUT = 20.0


class Failure(Exception):
    """A promise was broken."""


class Rig:
    """Everything lives below `base`. With `power`, daemons note how to undo what they have not synced; with `encrypt`
    the workspace has a key there."""

    def __init__(self, base: Path, url: str | None = None, *, power: bool = False, encrypt: bool = False) -> None:
        self.base = base
        self.url = url or f"file://{base}/store"
        self.mountpoint = base / "workspace"
        self.cache = base / "cache"
        self.logs = base / "daemon.log"
        self.undo = base / "undo"
        self.power = power
        self.boot_id = str(uuid.uuid4())
        self.taken_over = False
        self.process: subprocess.Popen[bytes] | None = None
        self.confirmed: list[float] = []
        """When each `wsfs sync` began that returned success."""
        self.hung = False
        self._killed = 0
        self.mountpoint.mkdir(parents=True, exist_ok=True)
        os.environ["WSFS_RUNTIME_DIR"] = str(base / "run")
        paths = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
        # With the fault handler a daemon that is given up says in its log what each of its threads was doing.
        self._environ = os.environ | {
            "PYTHONPATH": paths, "WSFS_CACHE_DIR": str(self.cache), "PYTHONFAULTHANDLER": "1",
        }  # fmt: skip
        if encrypt:
            self._environ["WSFS_KEY_FILE"] = str(base / "key")
        self.wsfs("init", self.url, *["--encrypt"] * encrypt)
        self.marker = b""

    def wsfs(self, *words: str) -> None:
        command = [sys.executable, "-P", "-m", "wsfs.cli.main", *words]
        subprocess.run(command, env=self._environ, check=True, capture_output=True, timeout=60)

    # --- the daemon

    def launch(self, save_interval: int) -> int:
        """Start a daemon, and return the descriptor on which it reports."""
        self._killed = 0
        receiving, sending = os.pipe()
        words = [sys.executable, "-P", "-m"]
        if self.power:
            words += ["powerloss", str(self.undo), str(self.cache), self.boot_id]
        else:
            words += ["wsfs.cli.main"]
        words += ["mount", "--foreground", "--ready-fd", str(sending), "--save-interval", str(save_interval)]
        if self.taken_over:
            words.append("--takeover")
        with self.logs.open("ab") as log:
            self.process = subprocess.Popen(
                [*words, "--", self.url, str(self.mountpoint)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(sending,),
                env=self._environ,
                cwd="/",
                start_new_session=True,
            )
        os.close(sending)
        return receiving

    def mount(self, save_interval: int = 0) -> None:
        """Start a daemon and wait until it is ready. Raises Failure."""
        with open(self.launch(save_interval), "rb") as reports:
            deadline = time.monotonic() + START_TIMEOUT
            while select.select([reports], [], [], max(deadline - time.monotonic(), 0))[0]:
                line = reports.readline()
                message = json.loads(line) if line else {"error": "it ended without a word"}
                if "error" in message:
                    raise Failure(f"the mount is refused: {message['error']}")
                if message.get("ready"):
                    self.taken_over = False
                    return
        raise Failure(f"the mount was not ready after {START_TIMEOUT:.0f} s")

    def wait_for_note(self, state: str, seconds: float) -> bool:
        """Wait until our daemon has noted this state in its cache directory, or is gone. Whether it has."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError, ValueError):
                note = json.loads((self.cache / "lock").read_text())
                if note["pid"] == self.process.pid and note["state"] == state:
                    return True
            time.sleep(0.002)
        return False

    def kill(self) -> float:
        """SIGKILL, unless that was done already. Returns when; the time is from before."""
        assert self.process is not None
        if not self._killed:
            self._killed = time.monotonic_ns()
            self.process.kill()
        try:
            self.process.wait(DEATH_TIMEOUT)
        except subprocess.TimeoutExpired:
            # Some thread of it waits in the kernel for an answer of its own. This ends the connection.
            subprocess.run(["umount", "-i", "-f", self.mountpoint], check=False, capture_output=True, timeout=20)
            raise Failure("the daemon does not die of SIGKILL") from None
        return self._killed

    def clear(self) -> None:
        """Take the dead mount away."""
        while is_mounted(self.mountpoint):
            subprocess.run(["umount", "-i", "-l", self.mountpoint], check=True, capture_output=True, timeout=20)

    def wipe(self) -> None:
        """This machine is gone for ever: the next mount is another's."""
        shutil.rmtree(self.cache, ignore_errors=True)
        shutil.rmtree(self.undo, ignore_errors=True)

    def lose_power(self, rng: random.Random) -> dict[str, int]:
        """After a kill: what was not synced may be lost, and the next start is after a reboot."""
        undone = powerloss.lose_power(self.undo, rng)
        self.boot_id = str(uuid.uuid4())
        if self.url.startswith("file://"):
            # Starting a machine takes its time: its last sign of life is long ago.
            long_ago = time.time() - 300
            os.utime(Path(self.url.removeprefix("file://"), "HEAD"), (long_ago, long_ago))
        else:
            self.taken_over = True
        return undone

    # --- commands

    def sync(self) -> bool:
        """`wsfs sync`. Whether it returned success."""
        began = time.monotonic_ns()
        try:
            commands.sync(self.mountpoint)
        except (WsfsError, OSError):
            return False
        self.confirmed.append(began)
        return True

    def stop(self) -> bool:
        """`wsfs umount`. Whether it returned success."""
        try:
            commands.stop(self.mountpoint)
        except (WsfsError, OSError):
            return False
        return True

    def status(self) -> dict[str, Any]:
        return commands.status(self.mountpoint)

    def check_marker(self) -> None:
        content = (self.mountpoint / MARKER).read_bytes()
        self.marker = self.marker or content
        if not content or content != self.marker:
            raise Failure(f"{MARKER} has other bytes than at first")

    def finish(self) -> None:
        """End everything."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.clear()

    @contextlib.contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """Kill a daemon that lets us wait for too long: we then get an error. Raises Failure."""

        def end() -> None:
            self.hung = True
            if self.process is not None:
                self.process.send_signal(signal.SIGABRT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(DEATH_TIMEOUT)
                self.process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except OSError as exc:
            if self.hung:
                raise Failure(f"the mount did not answer for {seconds:.0f} s") from exc
            raise Failure(f"a system call failed: {exc}") from exc
        finally:
            timer.cancel()


def is_mounted(where: Path) -> bool:
    """Whether anything is mounted there. Never asks the mount."""
    return any(mount.mountpoint == str(where) for mount in all_mounts())
