"""The counters of a mount, for `wsfs stats` and for Prometheus."""

from __future__ import annotations

import time
from typing import Any

from wsfs.config import MountSettings
from wsfs.kernel.operations import Operations
from wsfs.kernel.timing import measure
from wsfs.metrics import Latency, account
from wsfs.report import Report
from wsfs.saver import Saver
from wsfs.store.retry import StoreStats
from wsfs.sync.start import Workspace


class Stats:
    """Belongs to the trio thread."""

    def __init__(
        self,
        settings: MountSettings,
        workspace: Workspace,
        operations: Operations,
        saver: Saver,
        report: Report,
        store: StoreStats,
    ) -> None:
        self._settings = settings
        self._workspace = workspace
        self._operations = operations
        self._saver = saver
        self._report = report
        self._store = store
        self._began = time.monotonic()
        self._latencies: dict[str, Latency] | None = None
        self._unsaved_since: float | None = None
        self._saves = 0

    def tick(self) -> None:
        """Notice since when something is not saved. Called about once a second."""
        now = time.monotonic()
        if self._saves != self._saver.saves:  # what is unsaved now came after that save had begun
            self._saves = self._saver.saves
            self._unsaved_since = now - self._saver.save_seconds
        if not self._workspace.index.is_dirty:
            self._unsaved_since = None
        elif self._unsaved_since is None:
            self._unsaved_since = now

    def snapshot(self) -> dict[str, Any]:
        """All counters, as docs/JSON.md describes them. Requests of programs are measured from the first call on."""
        if self._latencies is None:
            self._latencies = measure(self._operations)
        self.tick()
        store, packs, now = self._store.snapshot(), self._workspace.packs, time.monotonic()
        return {
            "state": self._saver.state.value,
            "mountpoint": str(self._settings.mountpoint),
            "url": self._settings.url,
            "uptime": round(now - self._began, 3),
            **self._report.forecast(),
            "unsaved_age": 0.0 if self._unsaved_since is None else round(now - self._unsaved_since, 1),
            "saves": self._saver.saves,
            "save_failures": self._saver.failures,
            "store": {
                "get": store.gets,
                "put": store.puts,
                "list": store.lists,
                "delete": store.deletes,
                "bytes_in": store.bytes_in,
                "bytes_out": store.bytes_out,
                "retries": store.retries,
                "failures": store.failures,
                "latency": self._store.latency,
            },
            "cache": {
                "hits": max(packs.served - packs.missed, 0),
                "misses": packs.missed,
                "bytes": packs.size,
            },
            "files": self._workspace.index.files,
            "bytes": self._workspace.index.bytes,
            "requests": account(self._latencies),
        }
