"""The counters of a mount for Prometheus: on a loopback port, or in a file for node_exporter's textfile collector."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import trio
from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from wsfs.log import get_log
from wsfs.metrics import BOUNDS
from wsfs.repo.head import State
from wsfs.values import host_and_port

log = get_log(__name__)

Snapshot = Callable[[], dict[str, Any]]

TEXTFILE_SECONDS: Final = 15.0

_GAUGES: Final = {
    "unsaved_bytes": "Bytes that are not in the store yet, about",
    "unsaved_files": "Files and directories that are not in the store yet",
    "unsaved_age": "Seconds since the oldest change that is not in the store yet",
    "kept_bytes": "Bytes of files that .wsfsignore keeps on this machine",
    "kept_files": "Files and directories that .wsfsignore keeps on this machine",
    "stop_seconds": "Seconds that a stop would take now, about",
    "files": "Files and directories in the workspace",
    "bytes": "Bytes of all files in the workspace",
}
_NAMES: Final = {"unsaved_age": "unsaved_age_seconds"}


class Exporter(Collector):
    """Reads the counters when somebody asks, from any thread but the one that owns them."""

    def __init__(self, snapshot: Snapshot, mountpoint: str) -> None:
        self._snapshot = snapshot
        self._mountpoint = mountpoint

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client. Every sample has the label `mountpoint`: several mounts may have their files in one
        directory."""
        found = self._snapshot()
        for name, words in _GAUGES.items():
            yield self._gauge(f"wsfs_{_NAMES.get(name, name)}", words, found[name])
        state = GaugeMetricFamily("wsfs_state", "1 for the state of the workspace", labels=["mountpoint", "state"])
        for one in State:
            state.add_metric([self._mountpoint, one.value], float(one.value == found["state"]))
        yield state
        yield self._counter("wsfs_saves", "Saves that succeeded", {"": found["saves"]})
        yield self._counter("wsfs_save_failures", "Saves that failed", {"": found["save_failures"]})
        store, cache = found["store"], found["cache"]
        kinds = {kind: store[kind] for kind in ("get", "put", "list", "delete")}
        yield self._counter("wsfs_store_requests", "Requests to the store, each try", kinds, "kind")
        moved = {"get": store["bytes_in"], "put": store["bytes_out"]}
        yield self._counter("wsfs_store_bytes", "Bytes from and to the store", moved, "kind")
        yield self._counter("wsfs_store_retries", "Requests that were sent again", {"": store["retries"]})
        yield self._counter("wsfs_store_failures", "Requests that were given up", {"": store["failures"]})
        yield self._counter("wsfs_cache_hits", "Reads of saved blocks that needed no request", {"": cache["hits"]})
        yield self._counter("wsfs_cache_misses", "Reads of saved blocks that had to be fetched", {"": cache["misses"]})
        yield self._gauge("wsfs_cache_bytes", "Bytes of fetched data on this disk", cache["bytes"])
        yield self._requests(found["requests"])

    def _gauge(self, name: str, words: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, words, labels=["mountpoint"])
        family.add_metric([self._mountpoint], value)
        return family

    def _counter(self, name: str, words: str, values: Mapping[str, float], *label: str) -> Metric:
        family = CounterMetricFamily(name, words, labels=["mountpoint", *label])
        for kind, value in values.items():
            family.add_metric([self._mountpoint, kind] if label else [self._mountpoint], value)
        return family

    def _requests(self, requests: Mapping[str, Mapping[str, Any]]) -> Metric:
        words = "Seconds that requests of programs took"
        family = HistogramMetricFamily("wsfs_request_seconds", words, labels=["mountpoint", "op"])
        for name, one in requests.items():
            total, buckets = 0, []
            for bound, count in zip([*map(str, BOUNDS), "+Inf"], one["buckets"], strict=True):
                total += count
                buckets.append((bound, float(total)))
            family.add_metric([self._mountpoint, name], buckets, one["seconds"])
        return family


async def export(where: str, mountpoint: str, snapshot: Snapshot) -> None:
    """Serve the metrics on the port, or write them into the file, that `-o metrics=` names; until cancelled.

    A port that is taken, or a directory that is missing, is a line in the log: the workspace is more important.
    """
    on_owner = functools.partial(trio.from_thread.run_sync, snapshot, trio_token=trio.lowlevel.current_trio_token())
    snapshot()  # requests are measured from here on
    registry = CollectorRegistry()
    registry.register(Exporter(on_owner, mountpoint))
    if where.startswith("/"):
        await _write(where, registry)
        return
    host, port = host_and_port(where)
    try:
        # Its threads end with the process, which waits for none of them.
        await trio.to_thread.run_sync(lambda: start_http_server(port, host, registry))
    except OSError as exc:
        log.warning("no metrics", address=where, error=exc, remedy="choose another port with -o metrics=")
    else:
        log.info("metrics", url=f"http://{where}/metrics")


async def _write(path: str, registry: CollectorRegistry) -> None:
    complained = False
    try:
        while True:
            try:
                await trio.to_thread.run_sync(write_to_textfile, path, registry)
                complained = False
            except OSError as exc:
                if not complained:
                    log.warning(
                        "no metrics",
                        path=path,
                        error=exc,
                        remedy="make the directory, or choose another with -o metrics=",
                    )
                complained = True
            await trio.sleep(TEXTFILE_SECONDS)
    finally:
        with trio.CancelScope(shield=True):  # how it ended
            try:
                await trio.to_thread.run_sync(write_to_textfile, path, registry)
            except OSError as exc:
                log.debug("last metrics not written", path=path, error=exc)
