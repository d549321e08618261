"""What writers did, as they noted it outside the mount, and what may be seen of it after a crash.

A writer notes a line before each system call and one after it: [I, time, name, arguments...] and [D, time], or
[E, time, errno]. From these lines a `Model` knows, for each moment, what the file system had promised: which names
there are, and of each page of each file every version that may be seen.
"""

from __future__ import annotations

import json
import os
import random
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

PAGE = 4096
FOREVER = float("inf")
T = TypeVar("T")


def content(seed: int, size: int) -> bytes:
    """The bytes that a write with this seed writes. Some are zeros."""
    return bytes(size) if seed % 11 == 0 else random.Random(seed).randbytes(size)


class Stopped(Exception):
    """A system call failed: the file system is gone, or it broke a promise."""


class Ledger:
    """Where one writer notes what it does. Each line is one write(2), so it survives the writer."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def step(self, name: str, *args: Any, call: Callable[[], T]) -> T:
        """Note a system call, make it, and note that it returned. Raises Stopped when it fails."""
        self._note("I", name, *args)
        try:
            result = call()
        except Exception as exc:  # SQLite has errors of its own
            self._note("E", getattr(exc, "errno", None) or 0, str(exc))
            raise Stopped from exc
        self._note("D")
        return result

    def _note(self, *line: Any) -> None:
        what, *rest = line
        os.write(self._fd, json.dumps([what, time.monotonic_ns(), *rest]).encode() + b"\n")


@dataclass(slots=True)
class Step:
    """One system call: when it was begun, when it had returned (None: never), what it was."""

    begun: float
    name: str
    args: list[Any]
    done: float | None = None
    error: tuple[float, int, str] | None = None
    late: bool = False
    """It returned when the daemon was dead already."""


def read_ledger(path: Path) -> list[Step]:
    """The steps of one writer. Only the last can be without an end."""
    steps: list[Step] = []
    for line in path.read_bytes().splitlines():
        kind, when, *rest = json.loads(line)
        if kind == "I":
            steps.append(Step(when, rest[0], rest[1:]))
        elif kind == "D":
            steps[-1].done = when
        else:
            steps[-1].error = (when, *rest)
    return steps


def _page(data: bytes | bytearray, number: int) -> bytes:
    """A page of a file, with zeros after the end."""
    return bytes(data[number * PAGE : (number + 1) * PAGE]).ljust(PAGE, b"\0")


Versions = dict[int, list[bytes]]


@dataclass(slots=True)
class Node:
    """A file, directory or symbolic link: what its writer sees, and what else may be found of it after a crash.

    `loose` has the older versions of pages since the daemon surely had everything (close, fsync), `soft` those since
    everything was surely on disk (fsync). `low` and `high` bound the size that the daemon may know.
    """

    kind: str
    data: bytearray = field(default_factory=bytearray)
    target: str = ""
    low: int = 0
    high: int = 0
    loose: Versions = field(default_factory=dict)
    soft: Versions = field(default_factory=dict)
    synced: bool = False
    number: int = -1

    def write(self, offset: int, data: bytes) -> None:
        if not data:
            return
        for number in range(offset // PAGE, (offset + len(data) - 1) // PAGE + 1):
            old = _page(self.data, number)
            self.loose.setdefault(number, []).append(old)
            self.soft.setdefault(number, []).append(old)
        self.data.extend(bytes(max(offset - len(self.data), 0)))
        self.data[offset : offset + len(data)] = data
        self.high = max(self.high, len(self.data))
        self.synced = False

    def truncate(self, size: int) -> None:
        for number in range(size // PAGE, -(-len(self.data) // PAGE)):
            self.soft.setdefault(number, []).append(_page(self.data, number))
        if size < len(self.data):
            del self.data[size:]
            keep = size % PAGE
            self.loose = {
                number: [v[:keep].ljust(PAGE, b"\0") if number == size // PAGE else v for v in versions]
                for number, versions in self.loose.items()
                if number * PAGE < size
            }
        else:
            self.data.extend(bytes(size - len(self.data)))
        self.low = self.high = size
        self.synced = False

    def hand_over(self) -> None:
        """The daemon has everything."""
        self.loose = {}
        self.low = self.high = len(self.data)

    def make_durable(self) -> None:
        """Everything is on disk, or in the store."""
        self.hand_over()
        self.soft = {}
        self.synced = True


class Model:
    """The tree of one writer. Paths are relative to its directory."""

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}
        self.open: dict[int, Node] = {}
        self.nodes: list[Node] = []
        """All there ever were, by number: the same steps give the same numbers."""

    def _add(self, path: str, node: Node) -> Node:
        node.number = len(self.nodes)
        self.nodes.append(node)
        self.names[path] = node
        return node

    @classmethod
    def of(cls, seen: dict[str, Seen], soft: dict[str, Node] | None = None) -> Model:
        """What was found is what there is. `soft` has the nodes of which something may not be on disk yet."""
        model = cls()
        by_ino: dict[int, Node] = {}
        for path, found in seen.items():
            node = by_ino.get(found.ino)
            if node is None:
                node = Node(found.kind, bytearray(found.data), found.target)
                node.low = node.high = len(node.data)
                node.synced = True
                old = (soft or {}).get(path)
                if old is not None and old.soft:
                    node.soft = {number: list(versions) for number, versions in old.soft.items()}
                    for number, versions in node.soft.items():
                        versions.append(_page(old.data, number))
                    node.synced = False
                by_ino[found.ino] = model._add(path, node)
            model.names[path] = node
        return model

    def apply(self, step: Step) -> None:
        if step.name in ("fsync", "close") and (step.done is None or step.late):
            return  # it promises nothing before it has returned
        getattr(self, f"_do_{step.name}")(*step.args)

    def settle(self) -> None:
        """Everything is in the store."""
        for node in self.nodes:
            node.make_durable()

    def _do_mkdir(self, path: str) -> None:
        self._add(path, Node("d"))

    def _do_rmdir(self, path: str) -> None:
        del self.names[path]

    _do_unlink = _do_rmdir

    def _do_create(self, fd: int, path: str) -> None:
        self.open[fd] = self._add(path, Node("f"))

    def _do_open(self, fd: int, path: str) -> None:
        self.open[fd] = self.names[path]

    def _do_opentrunc(self, fd: int, path: str) -> None:
        self.open[fd] = self.names[path]
        self.open[fd].truncate(0)

    def _do_write(self, fd: int, offset: int, seed: int, size: int) -> None:
        self.open[fd].write(offset, content(seed, size))

    def _do_text(self, fd: int, offset: int, text: str) -> None:
        self.open[fd].write(offset, text.encode())

    def _do_ftruncate(self, fd: int, size: int) -> None:
        self.open[fd].truncate(size)

    def _do_truncate(self, path: str, size: int) -> None:
        self.names[path].truncate(size)

    def _do_fsync(self, fd: int) -> None:
        self.open[fd].make_durable()

    def _do_fsyncdir(self, path: str) -> None:
        pass

    def _do_close(self, fd: int) -> None:
        self.open.pop(fd).hand_over()

    def _do_symlink(self, target: str, path: str) -> None:
        self._add(path, Node("l", target=target))

    def _do_link(self, path: str, new: str) -> None:
        self.names[new] = self.names[path]

    def _do_rename(self, path: str, new: str) -> None:
        below = path + "/"
        self.names = {
            (new + name[len(path) :] if name == path or name.startswith(below) else name): node
            for name, node in self.names.items()
            if name != new
        }


# --- what is there --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Seen:
    """What a walk has found at a path."""

    kind: str
    ino: int
    nlink: int
    mode: int
    mtime: int
    data: bytes = b""
    target: str = ""


def walk(top: Path) -> dict[str, Seen]:
    """Everything below a directory, with contents."""
    found: dict[str, Seen] = {}
    pending = [""]
    while pending:
        directory = pending.pop()
        for name in os.listdir(top / directory):
            path = os.path.join(directory, name)
            status = os.lstat(top / path)
            seen = Seen("?", status.st_ino, status.st_nlink, status.st_mode, status.st_mtime_ns)
            if stat.S_ISDIR(status.st_mode):
                seen.kind = "d"
                pending.append(path)
            elif stat.S_ISLNK(status.st_mode):
                seen.kind, seen.target = "l", os.readlink(top / path)
            else:
                seen.kind, seen.data = "f", (top / path).read_bytes()
                if len(seen.data) != status.st_size:
                    raise AssertionError(f"{path}: stat says {status.st_size} bytes, and {len(seen.data)} can be read")
            found[path] = seen
    return found


# --- comparing ------------------------------------------------------------------------------------------------------


def differences(model: Model, seen: dict[str, Seen], last: Model | None = None) -> Iterator[str]:
    """What of `seen` the model does not allow.

    After a power loss names and sizes are those of `model`, and of each page any version up to `last` that may have
    been on disk.
    """
    names = model.names
    for path in sorted(names.keys() ^ seen.keys()):
        yield f"{path}: is missing" if path in names else f"{path}: must not exist"
    counts: dict[int, int] = {}
    inos: dict[int, int] = {}
    for node in names.values():
        counts[id(node)] = counts.get(id(node), 0) + 1
    for path in sorted(names.keys() & seen.keys()):
        node, found = names[path], seen[path]
        if node.kind != found.kind:
            yield f"{path}: is of kind {found.kind} instead of {node.kind}"
            continue
        if node.kind == "l" and node.target != found.target:
            yield f"{path}: leads to {found.target} instead of {node.target}"
        if node.kind != "f":
            continue
        if found.nlink != counts[id(node)]:
            yield f"{path}: has {found.nlink} links instead of {counts[id(node)]}"
        if inos.setdefault(id(node), found.ino) != found.ino:
            yield f"{path}: is another inode than its other name"
        if not node.low <= len(found.data) <= node.high:
            bounds = str(node.low) if node.low == node.high else f"{node.low} to {node.high}"
            yield f"{path}: has {len(found.data)} bytes instead of {bounds}"
        elif last is None:
            yield from _content_differences(path, found.data, node.data, node.loose)
        else:
            newest = last.nodes[node.number]
            yield from _content_differences(path, found.data, newest.data, newest.soft)


def _content_differences(path: str, found: bytes, data: bytearray, versions: Versions) -> Iterator[str]:
    if found == data:
        return
    for number in range(-(-len(found) // PAGE)):
        have = found[number * PAGE : (number + 1) * PAGE]
        want = _page(data, number)
        if have == want[: len(have)]:
            continue
        allowed = [want, *versions.get(number, ())]
        bad = [at for at, byte in enumerate(have) if all(byte != version[at] for version in allowed)]
        if bad:
            what = "zeros" if not any(have) else "old bytes" if len(set(have)) > 16 else "other bytes"
            yield (
                f"{path}: page {number} of {-(-len(found) // PAGE)} has {what} at {bad[0]} to {bad[-1]}"
                f" ({len(bad)} bytes that are in none of {len(allowed)} versions)"
            )


@dataclass(slots=True)
class Match:
    """The state after `count` steps is one that fits; what was seen shows a moment from `begin` to `end`."""

    count: int
    begin: float
    end: float


class History:
    """The steps of one writer from a known state on."""

    def __init__(self, base: Callable[[], Model], steps: list[Step], confirmed: Iterable[float] = ()) -> None:
        self._base = base
        self.steps = steps
        self._confirmed = sorted(confirmed)
        self.acknowledged = sum(1 for step in steps if step.done is not None)

    def states(self) -> Iterator[tuple[int, Model]]:
        """The number of steps, and the state after them; the same Model each time, changed in between."""
        model = self._base()
        confirmed = list(self._confirmed)
        for count in range(len(self.steps) + 1):
            last = self.steps[count - 1].done if count else 0.0
            if count:
                model.apply(self.steps[count - 1])
            following = self.steps[count].done if count < len(self.steps) else None
            # Saved in full after this step and before the next had returned: what this step left is safe.
            while confirmed and last is not None and last < confirmed[0] < (following or FOREVER):
                confirmed.pop(0)
                model.settle()
            yield count, model

    def after(self, count: int) -> Model:
        for number, model in self.states():
            if number == count:
                return model
        raise AssertionError("there are not so many steps")

    def check_now(self, seen: dict[str, Seen]) -> tuple[Match | None, list[str]]:
        """Exactly what was acknowledged, and perhaps what was under way."""
        complaints: list[str] = []
        for count, model in self.states():
            if count >= self.acknowledged:
                found = list(differences(model, seen))
                if not found:
                    return Match(count, 0.0, FOREVER), []
                complaints = complaints or found
        return None, complaints

    def moments(self, seen: dict[str, Seen], earliest: float, *, power_lost: bool) -> tuple[list[Match], list[str]]:
        """The moments since `earliest` at which the tree looked as seen; else what is wrong with the best."""
        last = self.after(len(self.steps)) if power_lost else None
        matches: list[Match] = []
        best: list[str] = ["no state is new enough"]
        least = 1 << 30
        for count, model in self.states():
            end = self.steps[count].done if count < len(self.steps) else None
            end = FOREVER if end is None else end
            if end < earliest:
                continue
            # Comparing bytes takes long: of what fits less well than another state it is enough to know that.
            found = list(islice(differences(model, seen, last), least + 1))
            if not found:
                begin = self.steps[count - 1].begun if count else 0.0
                matches.append(Match(count, begin, end))
                least = 0
            elif len(found) <= least:
                least = len(found)
                best = [f"(best fit: after step {count} of {len(self.steps)})", *found]
        return matches, best


def common_moment(writers: dict[str, list[Match]], earliest: float, latest: float) -> dict[str, Match] | None:
    """One match a writer so that all of them can have been true at the same moment."""
    moments = sorted({earliest, *(m.begin for matches in writers.values() for m in matches if m.begin > earliest)})
    for moment in reversed(moments):
        if moment > latest:
            continue
        chosen = {
            name: next((m for m in reversed(matches) if m.begin <= moment <= m.end), None)
            for name, matches in writers.items()
        }
        if all(chosen.values()):
            return {name: match for name, match in chosen.items() if match is not None}
    return None
