"""Programs that people run in a workspace, and what they find on another host."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site, Tree

MIB = 1 << 20
GIT = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real package tree of some hundred files: a part of Python's own library."""
    top = tmp_path_factory.mktemp("package")
    library = Path(os.__file__).parent
    for name in ("json", "email", "asyncio", "unittest"):
        os.system(f"cp -a '{library / name}' '{top}'")
    (top / "empty").mkdir()
    os.symlink("json/decoder.py", top / "link")
    os.link(top / "json" / "encoder.py", top / "json" / "encoder-again.py")
    with (top / "sparse").open("wb") as file:
        file.truncate(20 * MIB)
        file.seek(7 * MIB)
        file.write(b"island")
    return top


def same(tools: type[Helpers], one: Path, two: Path) -> None:
    """diff and rsync find no difference between two directories, either way."""
    assert tools.run("diff", "-r", "--no-dereference", one, two).stdout == ""
    for source, target in ((one, two), (two, one)):
        words = ["rsync", "-aHn", "--itemize-changes", "--checksum", "--delete"]
        assert tools.run(*words, f"{source}/", f"{target}/").stdout == ""


@pytest.mark.parametrize("site", ["directory", pytest.param("real", marks=pytest.mark.s3)], indirect=True)
def test_git(workspace: Site, tools: type[Helpers], package: Path, tmp_path: Path) -> None:
    """clone, commit, branch, gc; after a cold remount the status is clean without a look at any content."""
    origin = tmp_path / "origin"
    tools.run("cp", "-a", package, origin)
    tools.run(*GIT, "init", "-q", cwd=origin)
    tools.run(*GIT, "add", ".", cwd=origin)
    tools.run(*GIT, "commit", "-qm", "first", cwd=origin)
    clone = workspace.mountpoint / "clone"
    workspace.run(*GIT, "clone", "-q", "--no-hardlinks", origin, clone)
    for number in range(3):
        (clone / f"new{number}").write_text("content")
        workspace.run(*GIT, "add", ".", cwd=clone)
        workspace.run(*GIT, "commit", "-qm", f"commit {number}", cwd=clone)
    workspace.run(*GIT, "mv", "json", "moved", cwd=clone)
    workspace.run(*GIT, "commit", "-qam", "moved", cwd=clone)
    workspace.run(*GIT, "gc", "-q", "--prune=now", cwd=clone)
    index = (clone / ".git" / "index").read_bytes()
    workspace.elsewhere()
    assert workspace.run(*GIT, "status", "--porcelain", cwd=clone).stdout == ""
    assert (clone / ".git" / "index").read_bytes() == index  # nothing looked changed, so nothing was refreshed
    workspace.run(*GIT, "fsck", "--strict", cwd=clone)
    assert len(workspace.run(*GIT, "log", "--oneline", cwd=clone).stdout.splitlines()) == 5
    workspace.run(*GIT, "checkout", "-q", "HEAD~2", cwd=clone)
    assert (clone / "json" / "decoder.py").exists()


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate"])
def test_sqlite(workspace: Site, journal: str) -> None:
    """A database under transactions, with a rollback and a reader beside the writer, is whole on another host."""
    path = workspace.mountpoint / "data.db"
    script = f"""
PRAGMA journal_mode={journal};
CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB);
BEGIN; INSERT INTO t (body) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
 SELECT randomblob(300) FROM n; COMMIT;
BEGIN; DELETE FROM t WHERE id % 3 = 0; ROLLBACK;
DELETE FROM t WHERE id % 7 = 0;
CREATE INDEX by_body ON t (body);
"""
    assert journal in workspace.run("sqlite3", path, script).stdout
    writer = sqlite3.connect(path, isolation_level=None)
    reader = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO t (body) VALUES ('uncommitted')")
    if journal == "wal":
        assert reader.execute("SELECT count(*) FROM t WHERE body = 'uncommitted'").fetchone() == (0,)
    writer.execute("COMMIT")
    expected = reader.execute("SELECT count(*), sum(length(body)) FROM t").fetchone()
    workspace.wsfs("sync", workspace.mountpoint)
    writer.close()
    reader.close()
    workspace.elsewhere()
    assert workspace.run("sqlite3", path, "PRAGMA integrity_check;").stdout == "ok\n"
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*), sum(length(body)) FROM t").fetchone() == expected
    database.close()


def test_sqlite_in_use_survives_a_save(workspace: Site) -> None:
    """What a sync saves while a program writes transactions is a database that opens and is whole."""
    path = workspace.mountpoint / "data.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=wal")
    writer.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)")
    for round_ in range(4):
        for _ in range(100):
            writer.execute("INSERT INTO t (body) VALUES (randomblob(2000))")
        workspace.wsfs("sync", workspace.mountpoint)
        assert writer.execute("SELECT count(*) FROM t").fetchone() == (100 * (round_ + 1),)
    workspace.kill()
    writer.close()
    workspace.wipe()
    workspace.mount()
    assert workspace.run("sqlite3", path, "PRAGMA integrity_check;").stdout == "ok\n"
    assert workspace.run("sqlite3", path, "SELECT count(*) FROM t;").stdout == "400\n"


def test_venv(workspace: Site) -> None:
    """A virtual environment works where it was made, and on another host."""
    path = workspace.mountpoint / "venv"
    workspace.run(sys.executable, "-m", "venv", "--copies", path)
    code = "import json, sys; print(json.dumps(sys.prefix))"
    assert workspace.run(path / "bin" / "python", "-c", code).stdout == f'"{path}"\n'
    workspace.elsewhere()
    assert workspace.run(path / "bin" / "python", "-c", code).stdout == f'"{path}"\n'
    assert "pip" in workspace.run(path / "bin" / "python", "-m", "pip", "--version").stdout


@pytest.mark.long
def test_copies_by_every_tool(workspace: Site, tools: type[Helpers], package: Path, tmp_path: Path) -> None:
    """cp -a, rsync -aH, tar with and without --sparse, zip and unzip: each copy is the same, also on another host."""
    top = workspace.mountpoint
    tools.run("cp", "-a", package, top / "cp")
    tools.run("rsync", "-aH", f"{package}/", top / "rsync")
    tools.run("tar", "-C", package, "-cf", top / "plain.tar", ".")
    tools.run("tar", "-C", package, "--sparse", "-cf", tmp_path / "sparse.tar", ".")
    for name, archive in (("tar", top / "plain.tar"), ("sparse", tmp_path / "sparse.tar")):
        (top / name).mkdir()
        tools.run("tar", "-C", top / name, "-xpf", archive)
        tools.run("touch", "-r", package, top / name)
    workspace.run("zip", "-qry", top / "all.zip", "asyncio", "email", cwd=package)
    workspace.run("unzip", "-q", top / "all.zip", "-d", top / "zip")
    workspace.elsewhere()
    for name in ("cp", "rsync", "tar", "sparse"):
        same(tools, package, top / name)
    for name in ("asyncio", "email"):
        assert tools.run("diff", "-r", package / name, top / "zip" / name).stdout == ""
    workspace.run("unzip", "-tq", top / "all.zip")
    back = tmp_path / "back"
    tools.run("cp", "-a", top / "cp", back)
    same(tools, package, back)


def test_moving_between_directories_and_file_systems(
    workspace: Site, tools: type[Helpers], package: Path, tmp_path: Path, tree: type[Tree]
) -> None:
    """mv keeps everything: inode numbers within the mount, content and attributes across file systems."""
    top = workspace.mountpoint
    tools.run("cp", "-a", package, top / "one")
    (top / "two").mkdir()
    numbers = {name: facts["ino"] for name, facts in tree.of(top / "one", content=False).items()}
    tools.run("mv", top / "one", top / "two" / "moved")
    assert {name: facts["ino"] for name, facts in tree.of(top / "two" / "moved", content=False).items()} == numbers
    same(tools, package, top / "two" / "moved")
    tools.run("mv", top / "two" / "moved", tmp_path / "out")
    assert not (top / "two" / "moved").exists()
    tools.run("mv", tmp_path / "out", top / "in")
    workspace.elsewhere()
    same(tools, package, top / "in")


def test_mapped_file_of_a_program_that_stays_open(workspace: Site) -> None:
    """What a program has written through a shared mapping, with msync, is in the next save."""
    script = """
import mmap, sys
with open("array", "w+b") as file:
    file.truncate(8 << 20)
    with mmap.mmap(file.fileno(), 0) as array:
        for at in range(0, 8 << 20, 1 << 16):
            array[at:at + 8] = at.to_bytes(8, "big")
        array.flush()
        array[0:8] = b"the last"
"""
    workspace.run(sys.executable, "-c", script)
    workspace.elsewhere()
    data = (workspace.mountpoint / "array").read_bytes()
    assert len(data) == 8 * MIB
    assert data[:8] == b"the last"
    assert all(data[at : at + 8] == at.to_bytes(8, "big") for at in range(1 << 16, 8 * MIB, 1 << 16))


def test_in_place_editors(workspace: Site) -> None:
    """sed -i, patch-like rewrites, truncate and dd conv=notrunc leave what they say, also on another host."""
    noise = random.Random(5).randbytes(3 * MIB)
    path = workspace.mountpoint / "blob"
    path.write_bytes(noise)
    (workspace.mountpoint / "text").write_text("one\ntwo\n" * 1000)
    workspace.elsewhere()
    workspace.run("sed", "-i", "s/two/three/", "text")
    workspace.run("bash", "-c", "printf patch | dd of=blob bs=1 seek=1500000 conv=notrunc")
    workspace.run("truncate", "-s", "2500000", "blob")
    expected = (noise[:1_500_000] + b"patch" + noise[1_500_005:])[:2_500_000]
    assert path.read_bytes() == expected
    workspace.elsewhere()
    assert path.read_bytes() == expected
    assert (workspace.mountpoint / "text").read_text() == "one\nthree\n" * 1000


def test_git_worktrees_and_rebase(workspace: Site, tools: type[Helpers], package: Path) -> None:
    """Branches in worktrees, a rebase with a conflict, a stash and a gc: the history is whole, also on another host."""
    repository, tree = workspace.mountpoint / "repository", workspace.mountpoint / "tree"
    tools.run("cp", "-a", package / "json", repository)

    def git(*arguments: object, where: Path = repository, code: int = 0) -> str:
        return workspace.run(*GIT, *arguments, cwd=where, code=code).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    git("worktree", "add", "-q", tree, "-b", "side")
    for number in range(3):
        (tree / f"side{number}").write_text("x")
        (repository / f"main{number}").write_text("y")
        (repository if number % 2 else tree).joinpath("both").write_text(f"{number}")
        for where in (tree, repository):
            git("add", ".", where=where)
            git("commit", "-qm", f"{number}", where=where)
    git("rebase", "-q", "main", where=tree, code=1)
    (tree / "both").write_text("resolved")
    git("add", "both", where=tree)
    git("-c", "core.editor=true", "rebase", "--skip", where=tree, code=None)  # type: ignore[arg-type]
    git("rebase", "--abort", where=tree, code=None)  # type: ignore[arg-type]
    (repository / "main0").write_text("not committed")
    git("stash", "-q")
    git("gc", "-q", "--prune=now")
    before = git("log", "--all", "--format=%H %T %s"), git("stash", "list"), git("worktree", "list")
    workspace.elsewhere()
    assert (git("log", "--all", "--format=%H %T %s"), git("stash", "list"), git("worktree", "list")) == before
    git("fsck", "--strict")
    git("stash", "pop", "-q")
    assert (repository / "main0").read_text() == "not committed"
    assert git("status", "--porcelain", where=tree) == ""


def test_four_sqlite_writers(workspace: Site) -> None:
    """Four processes write to one database in WAL mode, and wait for each other: no row is missing."""
    path = workspace.mountpoint / "data.db"
    workspace.run("sqlite3", path, "PRAGMA journal_mode=wal; CREATE TABLE t (writer INT, n INT, body BLOB);")
    script = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
for n in range(40):
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT INTO t VALUES (?, ?, randomblob(3000))", (int(sys.argv[2]), n))
    database.execute("COMMIT")
database.close()
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, path, str(number)]) for number in range(4)]
    assert [writer.wait(90) for writer in writers] == [0] * 4
    workspace.elsewhere()
    assert workspace.run("sqlite3", path, "PRAGMA integrity_check;").stdout == "ok\n"
    counts = "SELECT writer, count(*), max(n) FROM t GROUP BY writer ORDER BY writer;"
    assert workspace.run("sqlite3", path, counts).stdout.split() == [f"{number}|40|39" for number in range(4)]


def test_make(workspace: Site) -> None:
    """make builds what is missing, nothing twice, nothing again on another host, and what depends on a change."""
    top = workspace.mountpoint
    rules = "all: $(patsubst %.in,%.out,$(wildcard *.in))\n%.out: %.in\n\t@cat $< common > $@; echo $@\n*.out: common\n"
    (top / "Makefile").write_text(rules)
    (top / "common").write_text("common\n")
    for number in range(20):
        (top / f"{number}.in").write_text(f"{number}\n")
    assert len(workspace.run("make", "-j4").stdout.split()) == 20
    for _ in range(2):
        assert workspace.run("make", "-q").returncode == 0
        workspace.elsewhere()
    (top / "7.in").write_text("changed\n")
    assert workspace.run("make").stdout.split() == ["7.out"]
    assert (top / "7.out").read_text() == "changed\ncommon\n"


def test_environments_of_hard_links(workspace: Site, package: Path, tools: type[Helpers]) -> None:
    """As conda and uv make them: a cache of packages and five environments that share every file with it."""
    top = workspace.mountpoint
    tools.run("cp", "-a", package, top / "cache")
    for number in range(5):
        tools.run("cp", "-al", top / "cache", top / f"env{number}")
    one = top / "env3" / "asyncio" / "events.py"
    (top / "new").write_text("patched in one environment\n")
    (top / "new").rename(one)
    workspace.elsewhere()
    assert (top / "cache" / "asyncio" / "events.py").stat().st_nlink == 5
    assert one.read_text() == "patched in one environment\n"
    same(tools, top / "cache", top / "env1")
    numbers = {(top / f"env{number}" / "json" / "decoder.py").stat().st_ino for number in range(5)}
    assert len(numbers) == 1
    tools.run("rm", "-rf", top / "cache", *(top / f"env{number}" for number in range(1, 5)))
    assert (top / "env0" / "json" / "decoder.py").stat().st_nlink == 1
    same(tools, package / "json", top / "env0" / "json")


def test_rsync_with_everything(workspace: Site, tools: type[Helpers], package: Path, tmp_path: Path) -> None:
    """rsync -aHAX both ways: on a mount with extended attributes they come along; a second run sends nothing."""
    source = tmp_path / "source"
    tools.run("cp", "-a", package, source)
    tagged = source / "json" / "decoder.py"
    os.setxattr(tagged, "user.tag", b"value")
    workspace.elsewhere("-o", "xattr")
    target = workspace.mountpoint / "target"
    tools.run("rsync", "-aHX", f"{source}/", target)
    workspace.elsewhere("-o", "xattr")
    assert os.getxattr(target / "json" / "decoder.py", "user.tag") == b"value"
    assert tools.run("rsync", "-aHXn", "--itemize-changes", "--delete", f"{source}/", target).stdout == ""
    tools.run("rsync", "-aHAX", f"{target}/", tmp_path / "back")
    assert os.getxattr(tmp_path / "back" / "json" / "decoder.py", "user.tag") == b"value"
    same(tools, source, tmp_path / "back")


def test_sparse_archives(workspace: Site, tools: type[Helpers], tmp_path: Path) -> None:
    """tar --sparse and cp --sparse=always find the holes by reading; what they make of them has the same bytes."""
    path = workspace.mountpoint / "sparse"
    with path.open("wb") as file:
        file.truncate(40 * MIB)
        for at in (0, 13 * MIB + 77, 39 * MIB):
            file.seek(at)
            file.write(random.Random(at).randbytes(10_000))
    workspace.run("tar", "--sparse", "--hole-detection=raw", "-cf", "archive.tar", "sparse")
    assert (workspace.mountpoint / "archive.tar").stat().st_size < MIB
    workspace.run("cp", "--sparse=always", "sparse", "copy")
    assert (workspace.mountpoint / "copy").stat().st_blocks * 512 <= 5 * MIB
    tools.run("tar", "-C", tmp_path, "-xf", workspace.mountpoint / "archive.tar")
    assert (tmp_path / "sparse").read_bytes() == path.read_bytes() == (workspace.mountpoint / "copy").read_bytes()
    workspace.elsewhere()
    assert (workspace.mountpoint / "copy").read_bytes() == (tmp_path / "sparse").read_bytes()


def test_editors_that_save_by_renaming(workspace: Site) -> None:
    """vim with a backup, and a notebook server's temporary file and rename: always one whole version, mode kept."""
    path = workspace.mountpoint / "notes.txt"
    path.write_text("first\n")
    path.chmod(0o640)
    for number, backup in enumerate(("no", "yes", "auto")):
        commands = ("-c", f"set backupcopy={backup} writebackup", "-c", rf"$s/$/\rline {number}/", "-c", "wq")
        workspace.run(shutil.which("vim.tiny") or "vim", "-es", "-u", "NONE", *commands, path, code=None)
        assert path.read_text().splitlines()[-1] == f"line {number}"
        assert path.stat().st_mode & 0o777 == 0o640
    notebook = workspace.mountpoint / "work.ipynb"
    for number in range(5):
        temporary = notebook.with_name(".~work.ipynb")
        with temporary.open("w") as file:
            file.write(f'{{"cells": [{number}]}}')
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(notebook)
    assert sorted(os.listdir(workspace.mountpoint)) == [".workspace.initialized", "notes.txt", "work.ipynb"]
    workspace.elsewhere()
    assert path.read_text() == "first\nline 0\nline 1\nline 2\n"
    assert notebook.read_text() == '{"cells": [4]}'
