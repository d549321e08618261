"""Rows about work on the mount itself: requests, installs, big files, and what a background save costs them."""

from __future__ import annotations

import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from bench import requests
from bench.run import Run
from bench.systems import System, drop_caches, wait_for


def requests_per_operation(run: Run) -> None:
    """Upcalls for the commonest operations, each the mean of many."""
    if not requests.available():
        run.failures.append("requests: this kernel does not have the tracepoint fuse_request_send")
        return
    count = run.sizes.small
    for system in run.mounted:
        with run.attempt("requests", system):
            system.fresh(background=False)
            place = system.path / "a/b/c"
            place.mkdir(parents=True)
            for key, program in (
                ("create_write_close", "small_files"),
                ("warm_open_read_close", "read_files"),
                ("cached_stat", "walk"),
            ):
                if program != "small_files":
                    run.program(program, place, count)
                with requests.counted(system.path) as counts:
                    run.program(program, place, count)
                each = {kind: round(number / count, 3) for kind, number in counts.most_common()}
                run.record(f"requests.{key}", system.name, counts.total() / count, each=each)


def installs(run: Run) -> None:
    """Copying, installing and checking out many files, and the bare operations behind that."""
    repository = git_repository(run)
    for _ in range(run.sizes.repeats):
        for system in run.systems:
            with run.attempt("install", system):
                system.fresh()
                os.sync()  # else what an earlier work has left to write makes this one wait
                before = system.usage().processor
                run.record("install.cp", system.name, run.copy(system))
                if system.remote:
                    run.record("install.cp_processor", system.name, system.usage().processor - before)
            with run.attempt("install", system):
                system.fresh()
                pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
                wheels = ["--no-index", "--no-deps", "--find-links", str(run.wheels)]
                target = ["--target", str(system.path / "site")]
                os.sync()
                # What pip unpacks first lies in /tmp for all, as usual.
                seconds = run.timed(*pip, *wheels, *target, *run.sizes.packages)
                run.record("install.pip", system.name, seconds)
            with run.attempt("install", system):
                system.fresh()
                clone = system.path / "clone"
                run.record(
                    "install.git_clone", system.name, run.timed("git", "clone", "-q", f"file://{repository}", clone)
                )
                # Git looks into files that are not older than its index, in whole seconds: the first status ends that.
                time.sleep(1.1)
                run.timed("git", "status", cwd=clone)
                run.record("install.git_status", system.name, run.timed("git", "status", cwd=clone))
            with run.attempt("install", system):
                system.fresh()
                for operation, rate in run.program("micro", system.path / "micro", run.sizes.micro).items():
                    run.record(f"install.{operation}", system.name, rate)


def git_repository(run: Run) -> Path:
    """A bare repository with a few thousand files of the environment, made once, beside it."""
    repository = run.environment.parent / f"{run.environment.name}.git"
    if repository.exists():
        return repository
    tree = run.work / "tree"
    packages = [one for one in ("pandas", "sklearn", "numpy") if (run.environment / one).is_dir()][:2]
    for package in packages:
        shutil.copytree(run.environment / package, tree / package, ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    author = ["-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "files"]):
        subprocess.run(["git", *arguments], check=True, cwd=tree)
    subprocess.run(["git", "clone", "-q", "--bare", str(tree), str(repository)], check=True)
    shutil.rmtree(tree)
    return repository


TRIES: Final = 3
"""A second or two of a disk that others use as well says little."""


def big_files(run: Run) -> None:
    """One big file written and read again from the local disk, and random writes in another."""
    size = run.sizes.big
    for _ in range(run.sizes.repeats):
        for system in run.systems:
            with run.attempt("big", system):
                system.fresh(background=False)
                file = system.path / "big"
                for _ in range(TRIES):
                    before = system.usage().written
                    run.record("big.write", system.name, size / run.program("write_big", file, size))
                    if system.remote:
                        written = system.usage().written - before
                        run.record("big.amplification", system.name, written / (size << 20))
                    drop_caches()
                    run.record("big.read", system.name, size / run.program("read_big", file))
                    file.unlink()
                run.program("write_big", file, run.sizes.random_file)
                count = run.sizes.random_writes
                run.record("big.random_writes", system.name, count / run.program("random_writes", file, count))


def foreground(run: Run) -> None:
    """How long single operations take while nothing else happens, and while everything is being saved."""
    for _ in range(run.sizes.repeats):
        for system in run.systems:
            with run.attempt("foreground", system):
                system.fresh(background=False)
                idle = _latencies(run, system, "idle")
                run.copy(system)
                busy = _latencies(run, system, "busy")
                for operation in idle:
                    for state, found in (("idle", idle), ("busy", busy)):
                        value = percentile(found[operation], 0.99) * 1000
                        run.record(
                            f"foreground.{operation}_{state}", system.name, value,
                            samples=len(found[operation]),
                            p50=percentile(found[operation], 0.5) * 1000,
                            worst=max(found[operation]) * 1000,
                        )  # fmt: skip
                    ratio = percentile(busy[operation], 0.99) / percentile(idle[operation], 0.99)
                    run.record(f"foreground.{operation}", system.name, ratio)
            with run.attempt("foreground", system):
                # Very many records, and hardly any bytes: whatever looks at all of them in one step shows.
                system.fresh(background=False)
                (system.path / "many").mkdir()
                run.program("small_files", system.path / "many", run.sizes.wide)
                saving = _latencies(run, system, "saving")
                run.record("foreground.longest", system.name, max(map(max, saving.values())) * 1000)


def _latencies(run: Run, system: System, state: str) -> dict[str, list[float]]:
    """Times of single operations: idle for a while, or else for as long as a save takes."""
    stop = run.work / "stop"
    stop.unlink(missing_ok=True)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        probe = pool.submit(run.program, "latencies", system.path / state, stop)
        try:
            # A save may be over before the program has begun.
            wait_for((system.path / state / "0").exists, "no file is created", run.limit)
            if state == "idle":
                concurrent.futures.wait([probe], timeout=run.sizes.seconds)
            else:
                system.save()
        finally:
            stop.touch()
        found: dict[str, list[float]] = probe.result()
    return found


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def instructions(run: Run) -> None:
    """Instructions of the daemon a request, as scripts/count-instructions counts them; of wsfs only."""
    if run.wsfs is None:
        return
    with run.attempt("instructions", run.wsfs):
        script = Path(__file__).parents[2] / "scripts/count-instructions"
        done = subprocess.run([sys.executable, str(script), "--json"], check=True, stdout=subprocess.PIPE, timeout=900)
        for kind, count in json.loads(done.stdout).items():
            run.record(f"instructions.{kind}", "wsfs", count)
