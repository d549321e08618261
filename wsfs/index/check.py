"""Whether the tables of an index are whole, and what can still be read of those that are not.

LMDB has no checksums. A page that a disk has lost can end the process that reads it, so this is a program of its own:

    python -m wsfs.index.check INDEX           reads everything; exit code 0: it is whole
    python -m wsfs.index.check INDEX TARGET    copies what can be read into a new index
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import wsfs
from wsfs.index.tables import Reader, Tables
from wsfs.repo import codec

_TABLES: Final = (b"meta", b"parts", b"dirty", b"kept", b"rows", b"cookies", b"changed", b"digests")
"""Those that matter most first: whatever has been copied when the process is ended counts."""

_AT_ONCE: Final = 4096
_SKIPS: Final = 64
_TORN: Final = 3


def is_whole(directory: Path) -> bool:
    """Read every row of an index that nobody uses, in another process. Raises OSError if that cannot be started."""
    return _run(directory) == 0


def salvage(directory: Path, target: Path) -> None:
    """Make a new index of what can be read, in another process. Raises OSError."""
    _run(directory, target)


def _run(*paths: Path) -> int:
    environ = dict(os.environ)
    root = str(Path(wsfs.__file__).parents[1])
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH"))))
    command = [sys.executable, "-P", "-m", __name__, *map(str, paths)]
    return subprocess.run(command, env=environ, check=False, stdin=subprocess.DEVNULL, capture_output=True).returncode


def copy(source: Path, target: Path | None) -> bool:
    """In the process that may end: read everything, copy it if there is a target, and say whether all was whole."""
    tables = Tables(source)
    into = None if target is None else Tables(target)
    reader = tables.reader()
    whole = True
    for name in _TABLES:
        rows = _Rows(reader, name, skip=into is not None)
        found = iter(rows)
        while some := list(islice(found, _AT_ONCE)):
            if into is not None:
                with into.writer() as txn:
                    for key, value in some:
                        txn.put(name, key, value)
        whole = whole and rows.whole
    reader.close()
    for opened in (tables, into):
        if opened is not None:
            opened.close()
    return whole


class _Rows:
    """The rows of a table that make sense; `whole` says, afterwards, whether these are all."""

    def __init__(self, reader: Reader, name: bytes, *, skip: bool) -> None:
        self._reader = reader
        self._name = name
        self._skips = _SKIPS if skip else 0
        self.whole = True

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        low, seen = b"", 0
        for skipped in range(self._skips + 1):
            last = low
            try:
                for key, value in self._reader.scan(self._name, low):
                    if seen and key <= last:
                        break  # pages that lead in a circle
                    _check(self._name, key, value)
                    yield key, value
                    last, seen = key, seen + 1
                else:
                    self.whole = self.whole and seen == self._reader.count(self._name)
                    return
            except Exception:  # noqa: S110 - lmdb's errors, and all that garbage can lead to
                pass
            self.whole = False
            # Most keys begin with a number: go on behind what cannot be read, in growing steps.
            number = int.from_bytes(last[:8].ljust(8, b"\0"), "big") + (1 << skipped)
            if number >= 1 << 64:
                return
            low = number.to_bytes(8, "big")


def _check(name: bytes, key: bytes, value: bytes) -> None:
    """Raises FormatError for a row that wsfs does not write."""
    if name != b"rows":
        return
    codec.check_key(key)
    table = codec.table_of(key)
    if not value:
        return
    if table == codec.ATTR:
        codec.decode_inode(codec.ino_of(key), value)
    elif table == codec.DIRENT:
        codec.decode_dirent(value)
    elif table == codec.BLOCK:
        codec.decode_block(value)


def main() -> None:
    source, *target = map(Path, sys.argv[1:])
    sys.exit(0 if copy(source, target[0] if target else None) else _TORN)


if __name__ == "__main__":
    main()
