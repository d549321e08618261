"""Runs the real commands, with the mount daemon replaced by a stub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsfs.mountinfo import all_mounts

REPOSITORY = Path(__file__).parents[2]
STUB = Path(__file__).parent / "stub"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A clean environment: nothing of the machine's configuration, everything below tmp_path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WSFS_", "XDG_", "AWS_"))}
    return kept | {
        "WSFS_RUNTIME_DIR": str(tmp_path / "run"),
        "HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "home-cache"),
        "WSFS_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": f"{STUB}{os.pathsep}{REPOSITORY}",
        "PYTHONWARNINGS": "ignore",
    }


@pytest.fixture
def wsfs(environ: dict[str, str], tmp_path: Path) -> Run:
    """Call it as wsfs("status", "--json", code=0): the finished process, after a check of its exit code."""

    def run(
        *arguments: object, code: int | None = 0, module: str = "wsfs.cli.main", **env: str
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", module, *map(str, arguments)]
        # Files, not pipes: a daemon that is started on the way would keep a pipe open.
        with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
            finished = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environ | env, timeout=60, check=False
            )
            out.seek(0)
            err.seek(0)
            result = subprocess.CompletedProcess(command, finished.returncode, out.read(), err.read())
        assert "Traceback" not in result.stderr
        if code is not None:
            assert result.returncode == code, result
        return result

    return run


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount on; whatever is left mounted there goes away at the end."""
    where = tmp_path / "workspace"
    where.mkdir()
    yield where
    while any(mount.mountpoint == str(where) for mount in all_mounts()):
        subprocess.run(["umount", "-i", "-l", where], check=True)
