"""The units under a real systemd: scripts/systemd-test boots one in a container, as far as this machine can."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "systemd-test"
CANNOT = 77


@pytest.mark.mount
@pytest.mark.timeout(300)
def test_a_booted_machine_keeps_the_promises_of_the_units() -> None:
    wsfs = Path(sys.executable).with_name("wsfs")
    done = subprocess.run([SCRIPT, wsfs], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode == CANNOT:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr
    for promise in ("start:", "data.mount,", "stop:", "SIGKILL:", "no workspace:", "a last save of", "power-off:"):
        assert promise in done.stdout
