"""Programs that people run in a workspace, and what they find on another host."""

from __future__ import annotations

import os
import random
import sqlite3
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
