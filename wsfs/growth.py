"""Says which directories have grown most, when a quota is reached."""

from __future__ import annotations

import time
from collections.abc import Callable
from heapq import nlargest
from typing import Final

from wsfs.errors import WsfsError
from wsfs.index.index import Index
from wsfs.index.quota import Quota
from wsfs.log import get_log
from wsfs.remote import NeedRemote
from wsfs.text import printable
from wsfs.tree.paths import Paths

log = get_log(__name__)

_EVERY: Final = 60.0
_LOOKED_AT: Final = 200
_TOLD: Final = 5


class Growers:
    """Belongs to the owner thread."""

    def __init__(self, index: Index, quota: Quota, clock: Callable[[], float] = time.monotonic) -> None:
        self._index = index
        self._quota = quota
        self._clock = clock
        self._told_at = -_EVERY

    def tell(self) -> None:
        """One line in the log, at most once a minute."""
        now = self._clock()
        if now - self._told_at < _EVERY:
            return
        self._told_at = now
        log.warning(
            "quota reached",
            bytes=self._index.shared_bytes,
            quota=self._quota.size,
            files=self._index.shared_files,
            quota_files=self._quota.files,
            grown=", ".join(f"{printable(name)} {size:+d} bytes {files:+d} files" for name, size, files in self.most())
            or "nothing",
            remedy="delete something, or mount with a larger quota",
        )

    def most(self) -> list[tuple[bytes, int, int]]:
        """The entries of the top directory that have grown most, of the directories that have: name, bytes, files."""
        paths = Paths(self._index)
        tops: dict[bytes, tuple[int, int]] = {}
        for directory, (size, files) in nlargest(_LOOKED_AT, self._quota.growth.items(), key=lambda one: one[1]):
            try:
                path = paths.of(directory)
            except (NeedRemote, WsfsError):
                path = b"?"  # not here, and this must not wait
            if path is None:
                continue
            top = b"/" + path.split(b"/")[0]
            before = tops.get(top, (0, 0))
            tops[top] = before[0] + size, before[1] + files
        grown = [(name, size, files) for name, (size, files) in tops.items() if size > 0 or files > 0]
        return nlargest(_TOLD, grown, key=lambda one: one[1:])
