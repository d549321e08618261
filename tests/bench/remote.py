"""Rows about the store: pushing, stopping, starting, reading from an empty cache, and how cost grows with size."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from bench import generate
from bench.run import Run, traffic_notes
from bench.store import BUCKET, raw_get, raw_put
from bench.systems import System, Wsfs, drop_caches, wait_for

from wsfs.store.url import open_store

FAR = 0.02
"""Seconds to a distant store and back."""


RAW = f"raw-{os.getpid()}"
"""Where the plain objects of this run lie."""


def size_of(directory: Path) -> int:
    """Bytes of the files below a directory."""
    return sum(entry.lstat().st_size for entry in directory.rglob("*") if not entry.is_symlink() and entry.is_file())


def pushes(run: Run) -> None:
    """Everything of an environment into the store, beside the same bytes put as plain big objects."""
    size = size_of(run.environment)
    for _ in range(run.sizes.repeats):
        for latency in (0.0, FAR):
            with run.latency(latency) as at:
                run.record(f"push.rate{at}", "raw", size / raw_put(run.s3, RAW, size) / 1e6)
                run.s3.remove(RAW)
                for system in run.mounted:
                    with run.attempt("push", system):
                        system.fresh(background=False)
                        run.s3.traffic()
                        copied = run.copy(system)
                        seconds = system.stop()
                        notes = traffic_notes(run.s3.traffic())
                        run.record(f"push.rate{at}", system.name, size / seconds / 1e6, copy_seconds=copied, **notes)
                        run.record(f"push.copy_and_stop{at}", system.name, copied + seconds)
                        run.record(f"push.requests{at}", system.name, notes["requests"])


def cold_reads(run: Run) -> None:
    """The first reads of an environment on a machine that has nothing of it, 20 ms from the store."""
    size = size_of(run.environment)
    raw_put(run.s3, RAW, size)
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}

    def importing(system: System) -> float:
        path = str(system.path / "env")
        return run.timed("python3", "-S", "-c", run.sizes.imports, env={**variables, "PYTHONPATH": path})

    for system in run.systems:
        with run.attempt("cold", system):
            system.fresh()
            run.copy(system)
            system.stop()
            for _ in range(run.sizes.repeats):
                with run.latency(FAR) as at:
                    for key in ("import_first", "import"):
                        system.start()
                        drop_caches()
                        run.s3.traffic()
                        seconds = importing(system)
                        run.record(f"cold.{key}{at}", system.name, seconds, **traffic_notes(run.s3.traffic()))
                        system.stop()
                        if not system.remote:
                            run.record(f"cold.import{at}", system.name, seconds)
                            break
                    if not system.remote:
                        run.record(f"cold.tar{at}", "raw", size / raw_get(run.s3, RAW) / 1e6)
                        continue
                    system.start()
                    drop_caches()
                    run.s3.traffic()
                    seconds = run.timed("tar", "cf", run.work / "tar", "-C", system.path, "env")
                    run.record(f"cold.tar{at}", system.name, size / seconds / 1e6, **traffic_notes(run.s3.traffic()))
                    (run.work / "tar").unlink()
                    system.stop()
    run.s3.remove(RAW)


Work = Callable[[Wsfs, str, tuple[int, ...]], None]


def in_generated(run: Run, files: int, work: Work, *, wide: bool = False) -> None:
    """Do some work with wsfs, the place of a workspace of so many files, and its layout, if wsfs is run at all. The
    workspace goes away afterwards."""
    system = run.wsfs
    if system is None:
        return
    prefix = f"generated-{os.getpid()}-{files}{'-wide' if wide else ''}"
    widths = generate.layout(files, wide=wide)
    with run.attempt(f"generated, {files}", system):
        generate.make(open_store(f"s3://{BUCKET}/{prefix}", endpoint_url=run.s3.endpoint), widths)
        try:
            work(system, prefix, widths)
        finally:
            system.discard()
            run.s3.remove(prefix)


def small_stops(run: Run) -> None:
    """Stops that have little to do, of a large workspace; and one file changed in a very wide directory."""

    def work(system: Wsfs, prefix: str, widths: tuple[int, ...]) -> None:
        wide = len(widths) == 2
        for latency in (0.0, FAR):
            with run.latency(latency) as at:
                for number in range(run.sizes.repeats):
                    if wide:
                        _stop_wide(run, system, prefix, widths, at, number)
                    else:
                        _stop(run, system, prefix, widths, at, number)

    for wide in (False, True):
        in_generated(run, run.sizes.wide, work, wide=wide)


def _changed(run: Run, system: Wsfs, prefix: str, widths: tuple[int, ...], count: int, number: int) -> float:
    """Mount, change so many files, and stop: the seconds of the stop. Its traffic is what is counted next."""
    system.fresh(background=False, prefix=prefix)
    settle(system)
    for one in random.Random(number).sample(range(run.sizes.wide), count):
        (system.path / generate.path(widths, one)).write_text(f"changed {time.time_ns()}\n" * 40)
    run.s3.traffic()
    return system.stop()


def _stop(run: Run, system: Wsfs, prefix: str, widths: tuple[int, ...], at: str, number: int) -> None:
    seconds = _changed(run, system, prefix, widths, 20, number)
    traffic = run.s3.traffic()
    run.record(f"stop.20_changes{at}", system.name, seconds, **traffic_notes(traffic))
    run.record(f"stop.20_changes_requests{at}", system.name, traffic.requests)
    run.record(f"stop.20_changes_kib{at}", system.name, traffic.sent / 1024)
    system.start(cold=False)
    settle(system)
    run.s3.traffic()
    seconds = system.stop()
    run.record(f"stop.unchanged{at}", system.name, seconds, **traffic_notes(run.s3.traffic()))


def _stop_wide(run: Run, system: Wsfs, prefix: str, widths: tuple[int, ...], at: str, number: int) -> None:
    _changed(run, system, prefix, widths, 1, number)
    traffic = run.s3.traffic()
    metadata = sum(count[1] for kind, count in traffic.kinds.items() if kind in ("PUT meta", "PUT commits"))
    run.record(f"stop.wide_metadata{at}", system.name, metadata / 1024, **traffic_notes(traffic))


def starts(run: Run) -> None:
    """From nothing to the first answers, and how cost depends on how much there is."""
    for label, files in (("few", run.sizes.few), ("many", run.sizes.many)):

        def work(system: Wsfs, prefix: str, widths: tuple[int, ...], label: str = label) -> None:
            for latency in (0.0, FAR):
                with run.latency(latency) as at:
                    for number in range(run.sizes.repeats):
                        _start(run, system, prefix, widths, f"{label}{at}", number)

        in_generated(run, files, work)


def _start(run: Run, system: Wsfs, prefix: str, widths: tuple[int, ...], at: str, number: int) -> None:
    places = random.Random(number)
    files = widths[0] * widths[1] * widths[2]

    def some(count: int) -> list[str]:
        return [str(system.path / generate.path(widths, places.randrange(files))) for _ in range(count)]

    run.s3.traffic()
    system.discard()
    began = time.monotonic()
    system.fresh(background=False, prefix=prefix)
    run.record(f"start.cold_{at}", system.name, time.monotonic() - began, **traffic_notes(run.s3.traffic()))
    for key, command in (("ls", ["ls", os.path.dirname(some(1)[0])]), ("stat", ["stat", *some(1)])):
        run.record(f"start.first_{key}_{at}", system.name, run.timed(*command))
    settle(system)
    usage = system.usage()
    run.record(f"start.memory_{at}", system.name, usage.peak / 2**20, resident=usage.resident / 2**20)
    index = sum(os.stat(file).st_blocks * 512 for file in (system.cache).rglob("*.mdb"))
    run.record(f"start.index_{at}", system.name, index / 2**20)
    # Files that were not looked at; then new files, and a commit of them.
    paths = run.work / "paths"
    bottom = widths[2]
    directories = places.sample(range(files // bottom), 10)  # as many in a small workspace as in a large one
    numbers = [one * bottom + file for one in directories for file in places.sample(range(bottom), bottom)]
    paths.write_text("\n".join(str(system.path / generate.path(widths, one)) for one in numbers))
    run.record(f"scale.stat_{at}", system.name, run.program("touch_paths", paths)["stat"])
    rates = run.program("micro", system.path / f"micro-{at}-{number}", run.sizes.micro // 5)
    run.record(f"scale.create_{at}", system.name, 1000 / rates["creates"])
    run.record(f"scale.unlink_{at}", system.name, 1000 / rates["unlinks"])
    system.save()
    run.program("small_files", system.path, 20)
    run.s3.traffic()
    seconds = system.save()
    run.record(f"scale.commit_{at}", system.name, seconds, **traffic_notes(run.s3.traffic()))
    system.stop()
    run.record(f"start.warm_{at}", system.name, system.start(cold=False))
    system.stop()


def settle(system: System) -> None:
    """Wait until the daemon does nothing any more: what is loaded in the background is there."""
    last, since = -1.0, time.monotonic()

    def quiet() -> bool:
        nonlocal last, since
        now = system.usage().processor
        if now > last + 0.02:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 1.0

    wait_for(quiet, f"{system.name} does not come to rest")
