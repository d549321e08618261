"""One run of the bench: what was measured, on what, and how it is told."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.store import S3, Traffic, Unable
from bench.systems import Native, System, Wsfs

PROGRAMS = Path(__file__).parent / "programs.py"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work there is. `--quick` is for seeing that the bench works: its figures say little."""

    repeats: int = 3
    small: int = 200
    micro: int = 10_000
    big: int = 2048
    random_file: int = 1024
    random_writes: int = 20_000
    wide: int = 100_000
    few: int = 1000
    many: int = 1_000_000
    seconds: float = 10.0
    packages: tuple[str, ...] = ("numpy", "pandas")
    imports: str = "import numpy, pandas, sklearn.linear_model, matplotlib.pyplot"


QUICK = Sizes(
    repeats=1,
    small=50,
    micro=1000,
    big=128,
    random_file=64,
    random_writes=1000,
    wide=5000,
    few=100,
    many=10_000,
    seconds=2.0,
    packages=("numpy",),
    imports="import numpy",
)


@dataclass
class Figures:
    """The values of one figure of one system, and what was noted beside them."""

    values: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class Run:
    """Collects figures. Keys are `row.figure`, with `@20ms` behind them where the store is that far away."""

    def __init__(
        self, s3: S3, systems: list[System], sizes: Sizes, work: Path, environment: Path, wheels: Path
    ) -> None:
        self.s3 = s3
        self.systems = systems
        self.sizes = sizes
        self.work = work
        self.environment = environment
        self.wheels = wheels
        self.figures: dict[str, dict[str, Figures]] = {}
        self.failures: list[str] = []
        self.limit = 900.0
        """Seconds after which a piece of work is given up, and counted as a failure."""
        self.machine = machine()
        self.loads: dict[str, float] = {}

    @property
    def mounted(self) -> list[System]:
        return [system for system in self.systems if not isinstance(system, Native)]

    @property
    def native(self) -> System:
        return self.systems[0]

    @property
    def wsfs(self) -> Wsfs | None:
        return next((system for system in self.systems if isinstance(system, Wsfs)), None)

    def begin(self, row: str) -> None:
        """Note what else the machine does when a row begins."""
        self.loads[row] = os.getloadavg()[0]
        print(f"{row}, load average {self.loads[row]:.1f}", file=sys.stderr, flush=True)

    def record(self, key: str, system: str, value: float, **notes: Any) -> None:
        figures = self.figures.setdefault(key, {}).setdefault(system, Figures())
        figures.values.append(value)
        figures.notes.update(notes)
        print(f"  {key:34} {system:8} {value:14.4g}", file=sys.stderr, flush=True)

    @contextmanager
    def attempt(self, key: str, system: System) -> Iterator[None]:
        """What goes wrong inside is noted as this system's failure; the bench goes on, and the mount is taken away."""
        try:
            yield
        except (Unable, OSError, subprocess.SubprocessError) as exc:
            self.failures.append(f"{key}, {system.name}: {exc}")
            print(f"  {key:34} {system.name:8} failed: {exc}", file=sys.stderr, flush=True)
        finally:
            system.discard()

    def program(self, name: str, *arguments: object) -> Any:
        """Runs one of programs.py, and returns what it prints."""
        command = [sys.executable, str(PROGRAMS), name, *map(str, arguments)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=self.limit)
        return json.loads(done.stdout)

    def timed(self, *command: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None) -> float:
        """Seconds that a command takes. Raises Unable with what it said last if it fails, TimeoutExpired when the limit
        is over."""
        words = [str(word) for word in command]
        began = time.monotonic()
        done = subprocess.run(
            words,
            check=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, **(env or {})},
            timeout=self.limit,
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise Unable(f"{words[0]} failed: {done.stderr.strip().splitlines()[-1:]}")
        return seconds

    def copy(self, system: System) -> float:
        """Seconds to copy the environment to where a system keeps it."""
        return self.timed("cp", system.copy_flag, self.environment, system.path / "env")

    @contextmanager
    def latency(self, seconds: float) -> Iterator[str]:
        """The store is so far away while this is entered; yields what goes behind a figure's key."""
        self.s3.set_latency(seconds)
        try:
            yield f"@{seconds * 1000:.0f}ms"
        finally:
            self.s3.set_latency(0.0)

    def result(self) -> dict[str, Any]:
        """Everything, for the JSON file."""
        return {
            "machine": self.machine,
            "loads": self.loads,
            "store": self.s3.kind,
            "sizes": asdict(self.sizes),
            "figures": {
                key: {
                    name: {"median": one.median, "values": one.values, **({"notes": one.notes} if one.notes else {})}
                    for name, one in systems.items()
                }
                for key, systems in self.figures.items()
            },
            "failures": self.failures,
        }


def traffic_notes(traffic: Traffic) -> dict[str, Any]:
    return {"requests": traffic.requests, "sent": traffic.sent, "received": traffic.received, "kinds": traffic.kinds}


def machine() -> dict[str, Any]:
    """What the figures were measured on, and what else it was doing."""
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=PROGRAMS.parent
    )
    return {
        "processor": f"{len(model)} x {model[0] if model else platform.machine()}",
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit.stdout.strip(),
        "s3fs": version("s3fs", "--version"),
        "rclone": version("rclone", "version"),
        "s3ql": version("mount.s3ql", "--version"),
    }


def version(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return (done.stdout or done.stderr).splitlines()[0]
