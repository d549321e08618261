"""Programs that use a mount, each a process of its own in a directory of its own, and note what they do.

A writer changes into the mount, so that it can never write to the directory below once the mount is gone. SIGTERM ends
it in order.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from ledger import Ledger, Model, Stopped, content

BIG = 3 << 20
TOTAL = 100_000
ACCOUNTS = 50


class Writer:
    """Works until SIGTERM. `base` is what its directory holds."""

    def __init__(self, ledger: Ledger, rng: random.Random, base: Model, pace: float) -> None:
        self._ledger = ledger
        self._rng = rng
        self._base = base
        self._pace = pace
        self._over = False
        self._fds = 0
        self._native: dict[int, int] = {}

    def run(self) -> None:
        signal.signal(signal.SIGTERM, self._end)
        while not self._over:
            self.work()
            time.sleep(self._rng.random() * self._pace)
        self.finish()

    def work(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        pass

    def _end(self, _number: int, _frame: object) -> None:
        self._over = True

    # --- system calls

    def step(self, name: str, *args: Any, call: Callable[[], Any]) -> Any:
        return self._ledger.step(name, *args, call=call)

    def open(self, name: str, path: str, flags: int) -> int:
        self._fds += 1
        fd = self._fds
        self._native[fd] = self.step(name, fd, path, call=lambda: os.open(path, flags | os.O_CLOEXEC, 0o644))
        return fd

    def create(self, path: str) -> int:
        return self.open("create", path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def write(self, fd: int, offset: int, size: int) -> None:
        seed = self._rng.randrange(1 << 40)
        self.step("write", fd, offset, seed, size, call=lambda: self._pwrite(fd, content(seed, size), offset))

    def text(self, fd: int, offset: int, text: str) -> None:
        self.step("text", fd, offset, text, call=lambda: self._pwrite(fd, text.encode(), offset))

    def _pwrite(self, fd: int, data: bytes, offset: int) -> None:
        if os.pwrite(self._native[fd], data, offset) != len(data):
            raise OSError(0, "a short write")

    def fsync(self, fd: int) -> None:
        call = os.fdatasync if self._rng.random() < 0.3 else os.fsync
        self.step("fsync", fd, call=lambda: call(self._native[fd]))

    def close(self, fd: int) -> None:
        self.step("close", fd, call=lambda: os.close(self._native.pop(fd)))

    def fsyncdir(self, path: str) -> None:
        def call() -> None:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        self.step("fsyncdir", path, call=call)

    def rename(self, path: str, new: str) -> None:
        self.step("rename", path, new, call=lambda: os.rename(path, new))

    def unlink(self, path: str) -> None:
        self.step("unlink", path, call=lambda: os.unlink(path))


class TreeWriter(Writer):
    """Anything that programs do with files and directories, at random."""

    def __init__(self, ledger: Ledger, rng: random.Random, base: Model, pace: float) -> None:
        super().__init__(ledger, rng, base, pace)
        self._files = {p: len(n.data) for p, n in base.names.items() if n.kind == "f"}
        self._links = {p for p, n in base.names.items() if n.kind == "l"}
        self._dirs = {p for p, n in base.names.items() if n.kind == "d"}
        self._inodes: dict[str, object] = {p: id(n) for p, n in base.names.items() if n.kind == "f"}
        self._actions: list[tuple[int, Callable[[], None]]] = [
            (8, self.new_file),
            (5, self.rewrite),
            (6, self.append),
            (6, self.overwrite),
            (6, self.replace),
            (4, self.remove),
            (3, self.move),
            (2, self.truncate),
            (2, self.make_directory),
            (1, self.move_directory),
            (1, self.remove_directory),
            (1, self.symlink),
            (2, self.hard_link),
            (1, self.sync_directory),
            (1, self.big_file),
            (1, self.unlinked_but_open),
        ]

    def work(self) -> None:
        actions = [action for _, action in self._actions]
        self._rng.choices(actions, [weight for weight, _ in self._actions])[0]()

    def _name(self) -> str:
        """A path that does not exist yet."""
        while True:
            parent = self._rng.choice(["", *sorted(self._dirs)])
            path = os.path.join(parent, f"{self._rng.choice('fgh')}{self._rng.randrange(40)}")
            if path not in self._files and path not in self._links and path not in self._dirs:
                return path

    def _file(self) -> str | None:
        return self._rng.choice(sorted(self._files)) if self._files else None

    def _size(self) -> int:
        return self._rng.choice([0, 1, 100, 512, 513, 4095, 4096, 4097, self._rng.randrange(40_000)])

    def _grown(self, path: str, size: int) -> None:
        """A file has another size, and so it has under its other names."""
        for name, inode in self._inodes.items():
            if inode == self._inodes[path]:
                self._files[name] = size

    def _forget(self, path: str) -> None:
        del self._files[path]
        del self._inodes[path]

    def _fill(self, fd: int, size: int) -> None:
        half = self._rng.randrange(size + 1)
        for at, length in ((0, half), (half, size - half)):
            if length:
                self.write(fd, at, length)

    def _end_file(self, fd: int) -> None:
        if self._rng.random() < 0.3:
            self.fsync(fd)
        self.close(fd)

    def new_file(self) -> None:
        if len(self._files) > 40:
            self.remove()
            return
        path, size = self._name(), self._size()
        fd = self.create(path)
        self._files[path], self._inodes[path] = size, object()
        self._fill(fd, size)
        self._end_file(fd)

    def rewrite(self) -> None:
        if path := self._file():
            size = self._size()
            fd = self.open("opentrunc", path, os.O_RDWR | os.O_TRUNC)
            self._grown(path, size)
            self._fill(fd, size)
            self._end_file(fd)

    def append(self) -> None:
        if path := self._file():
            size = self._rng.randrange(1, 5000)
            fd = self.open("open", path, os.O_RDWR)
            for _ in range(self._rng.randrange(1, 4)):
                self.write(fd, self._files[path], size)
                self._grown(path, self._files[path] + size)
            self._end_file(fd)
            if self._files[path] > BIG:
                self.remove(path)

    def overwrite(self) -> None:
        """In place, several times, now and then synced."""
        if path := self._file():
            fd = self.open("open", path, os.O_RDWR)
            for _ in range(self._rng.randrange(1, 5)):
                offset = self._rng.randrange(self._files[path] + 1)
                if self._rng.random() < 0.1:
                    offset += self._rng.randrange(100_000)
                size = self._rng.choice([1, 100, 4096, self._rng.randrange(1, 20_000)])
                self.write(fd, offset, size)
                self._grown(path, max(self._files[path], offset + size))
                if self._rng.random() < 0.3:
                    self.fsync(fd)
            self.close(fd)

    def replace(self) -> None:
        """Written beside, and renamed over."""
        if path := self._file():
            new, size = self._name(), self._size()
            fd = self.create(new)
            self._files[new], self._inodes[new] = size, object()
            self._fill(fd, size)
            self._end_file(fd)
            self.rename(new, path)
            self._forget(path)
            self._files[path], self._inodes[path] = self._files.pop(new), self._inodes.pop(new)
            if self._rng.random() < 0.2:
                self.fsyncdir(os.path.dirname(path) or ".")

    def remove(self, path: str | None = None) -> None:
        if path := path or self._file():
            self.unlink(path)
            self._forget(path)

    def move(self) -> None:
        if path := self._file():
            new = self._name()
            self.rename(path, new)
            self._files[new], self._inodes[new] = self._files.pop(path), self._inodes.pop(path)

    def truncate(self) -> None:
        if path := self._file():
            size = self._rng.choice([0, self._rng.randrange(2 * self._files[path] + 1)])
            self.step("truncate", path, size, call=lambda: os.truncate(path, size))
            self._grown(path, size)

    def make_directory(self) -> None:
        if len(self._dirs) < 8:
            path = self._name()
            self.step("mkdir", path, call=lambda: os.mkdir(path))
            self._dirs.add(path)

    def move_directory(self) -> None:
        if not self._dirs:
            return
        path, new = self._rng.choice(sorted(self._dirs)), self._name()
        if f"{new}/".startswith(f"{path}/"):
            return
        self.rename(path, new)

        def moved(name: str) -> str:
            return new + name[len(path) :] if name == path or name.startswith(f"{path}/") else name

        self._files = {moved(p): size for p, size in self._files.items()}
        self._inodes = {moved(p): inode for p, inode in self._inodes.items()}
        self._links, self._dirs = {moved(p) for p in self._links}, {moved(p) for p in self._dirs}

    def remove_directory(self) -> None:
        """With all that is in it, as rm -r does it."""
        if not self._dirs:
            return
        path = self._rng.choice(sorted(self._dirs))
        for name in sorted(n for n in self._files if n.startswith(f"{path}/")):
            self.remove(name)
        for name in sorted(n for n in self._links if n.startswith(f"{path}/")):
            self.unlink(name)
            self._links.discard(name)
        for name in sorted((n for n in self._dirs if f"{n}/".startswith(f"{path}/")), reverse=True):
            self.step("rmdir", name, call=lambda name=name: os.rmdir(name))
            self._dirs.discard(name)

    def symlink(self) -> None:
        if len(self._links) > 5:
            path = self._rng.choice(sorted(self._links))
            self.unlink(path)
            self._links.discard(path)
        path, target = self._name(), f"nowhere/{self._rng.randrange(1000)}"
        self.step("symlink", target, path, call=lambda: os.symlink(target, path))
        self._links.add(path)

    def hard_link(self) -> None:
        if path := self._file():
            new = self._name()
            self.step("link", path, new, call=lambda: os.link(path, new))
            self._files[new], self._inodes[new] = self._files[path], self._inodes[path]

    def sync_directory(self) -> None:
        self.fsyncdir(self._rng.choice([".", *sorted(self._dirs)]))

    def big_file(self) -> None:
        """Several blocks, written in one go, with a hole before or after."""
        if sum(self._files.values()) > 2 * BIG:
            self.remove(max(sorted(self._files), key=self._files.__getitem__))
            return
        path, start, size = self._name(), self._rng.choice([0, 0, 1_500_000]), self._rng.randrange(1 << 20, 2 << 20)
        fd = self.create(path)
        self._files[path], self._inodes[path] = start + size, object()
        self.write(fd, start, size)
        self._end_file(fd)

    def unlinked_but_open(self) -> None:
        path = self._name()
        fd = self.create(path)
        self.write(fd, 0, 5000)
        self.unlink(path)
        self.write(fd, 5000, 5000)
        self.close(fd)


class PairWriter(Writer):
    """Two files, always A before B: B is never newer than A. Each is one page, written in place and closed."""

    def __init__(self, ledger: Ledger, rng: random.Random, base: Model, pace: float) -> None:
        super().__init__(ledger, rng, base, pace)
        self._count = max(int(base.names[n].data.strip(b"\0\n ") or 0) if n in base.names else 0 for n in "AB")
        self._new = {name for name in "AB" if name not in base.names}

    def work(self) -> None:
        self._count += 1
        for name in "AB":
            if name in self._new:
                self._new.discard(name)
                fd = self.create(name)
            else:
                fd = self.open("open", name, os.O_RDWR)
            self.text(fd, 0, f"{self._count:20d}\n")
            self.close(fd)


class LogWriter(Writer):
    """Logs that stay open: lines are appended, and now and then synced."""

    def __init__(self, ledger: Ledger, rng: random.Random, base: Model, pace: float) -> None:
        super().__init__(ledger, rng, base, pace)
        self._logs: dict[str, int] = {}
        self._sizes = {p: len(n.data) for p, n in base.names.items()}

    def work(self) -> None:
        name = self._rng.choice(["a.log", "b.log"])
        if name not in self._logs:
            if name in self._sizes:
                self._logs[name] = self.open("open", name, os.O_RDWR)
            else:
                self._logs[name] = self.create(name)
                self._sizes[name] = 0
        fd = self._logs[name]
        line = f"{self._sizes[name]} {'x' * self._rng.randrange(200)}\n"
        self.text(fd, self._sizes[name], line)
        self._sizes[name] += len(line)
        chance = self._rng.random()
        if chance < 0.1:
            self.fsync(fd)
        elif chance < 0.12 and self._sizes[name] > 100_000:
            self.step("ftruncate", fd, 0, call=lambda: os.ftruncate(self._native[fd], 0))
            self._sizes[name] = 0
        elif chance < 0.15:
            self.finish_one(name)

    def finish_one(self, name: str) -> None:
        self.close(self._logs.pop(name))

    def finish(self) -> None:
        for name in list(self._logs):
            self.finish_one(name)


class BankWriter(Writer):
    """SQLite in WAL mode. Each transaction moves money, so the sum is constant, and adds one line to a ledger."""

    DATABASE = "bank.db"

    def run(self) -> None:
        try:
            self._connect()
        except sqlite3.Error as exc:
            raise Stopped from exc
        with closing(self._db):
            super().run()

    def _connect(self) -> None:
        self._db = sqlite3.connect(self.DATABASE, isolation_level=None, timeout=30)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute(f"PRAGMA wal_autocheckpoint = {self._rng.choice([5, 50, 1000])}")
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, balance INTEGER)")
        self._db.execute("CREATE TABLE IF NOT EXISTS ledger (n INTEGER PRIMARY KEY, note TEXT)")
        if not self._db.execute("SELECT count(*) FROM account").fetchone()[0]:
            rows = [(number, TOTAL // ACCOUNTS) for number in range(ACCOUNTS)]
            self._db.executemany("INSERT INTO account VALUES (?, ?)", rows)
        self._db.execute("COMMIT")
        self._count = self._db.execute("SELECT coalesce(max(n), 0) FROM ledger").fetchone()[0]

    def work(self) -> None:
        self._count += 1
        self.step("transaction", self._count, call=self._transaction)

    def _transaction(self) -> None:
        giver, taker = self._rng.sample(range(ACCOUNTS), 2)
        amount = self._rng.randrange(100)
        note = "n" * self._rng.randrange(1500)
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, giver))
        self._db.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, taker))
        self._db.execute("INSERT INTO ledger VALUES (?, ?)", (self._count, note))
        self._db.execute("COMMIT")


def transactions_of(database: Path) -> int:
    """How many transactions a database holds. Raises AssertionError when it is not whole.

    `database` must be a copy on another file system: to look into it is to change it.
    """
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        try:
            verdict = db.execute("PRAGMA integrity_check").fetchall()
            assert verdict == [("ok",)], f"integrity_check says {verdict}"
            if not db.execute("SELECT name FROM sqlite_master WHERE name = 'account'").fetchone():
                return 0
            total, accounts = db.execute("SELECT sum(balance), count(*) FROM account").fetchone()
            assert (total, accounts) == (TOTAL, ACCOUNTS), f"{accounts} accounts hold {total} instead of {TOTAL}"
            count, newest = db.execute("SELECT count(*), coalesce(max(n), 0) FROM ledger").fetchone()
        except sqlite3.Error as exc:
            raise AssertionError(f"SQLite says {exc}") from exc
        assert count == newest, f"the ledger ends with {newest} and has {count} lines"
        return int(count)


class GitWriter(Writer):
    """A repository that gets one commit after the other."""

    _count = 0

    def run(self) -> None:
        self._git("init", "-q", ".")
        super().run()

    def work(self) -> None:
        self._count += 1
        self.step("commit", self._count, call=self._commit)

    def _commit(self) -> None:
        for number in range(self._rng.randrange(1, 4)):
            Path(f"file{self._rng.randrange(20)}").write_text(f"{self._count} {number}\n" * self._rng.randrange(500))
        Path("count").write_text(str(self._count))
        self._git("add", "--all")
        self._git("commit", "-q", "-m", str(self._count))

    @staticmethod
    def _git(*words: str) -> None:
        run_git(Path(), *words)


def run_git(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run git as nobody in particular. Raises CalledProcessError."""
    options = ["user.name=a", "user.email=b", "gc.auto=0", "safe.directory=*"]
    return subprocess.run(
        ["git", *(word for option in options for word in ("-c", option)), *words],
        check=True,
        capture_output=True,
        text=True,
        cwd=directory,
        env={"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
    )


def git_commits_of(repository: Path) -> int:
    """How many commits a repository has. Raises AssertionError when it is not whole."""
    if not (repository / ".git" / "refs" / "heads").is_dir() or not any((repository / ".git" / "refs/heads").iterdir()):
        return 0
    try:
        run_git(repository, "fsck", "--full", "--strict")
        count = int(run_git(repository, "rev-list", "--count", "HEAD").stdout)
        assert run_git(repository, "show", "HEAD:count").stdout == str(count)
    except subprocess.CalledProcessError as exc:
        raise AssertionError(f"{exc.cmd[-3:]}: {exc.stdout}{exc.stderr}") from exc
    return count


KINDS: dict[str, type[Writer]] = {
    "tree": TreeWriter,
    "pair": PairWriter,
    "logs": LogWriter,
    "bank": BankWriter,
    "git": GitWriter,
}


def start(kind: str, top: Path, ledger: Path, seed: str, base: Model, pace: float) -> int:
    """Start a writer in `top`, in a process of its own. Returns its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child needs none of our threads
        pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        os.chdir(top)
        KINDS[kind](Ledger(ledger), random.Random(seed), base, pace).run()
        code = 0
    except Stopped:
        code = 1
    except KeyboardInterrupt:  # told to end before it was ready for that
        code = 0
    except FileNotFoundError as exc:
        sys.stderr.write(f"writer {kind}: {exc}\n")
    except OSError as exc:
        code = 1 if exc.errno in (103, 107) else 3
        sys.stderr.write(f"writer {kind}: {exc}\n")
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)
