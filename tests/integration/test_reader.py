"""READER.py: a copy of the bucket is enough, and Python without wsfs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MARKER = ".workspace.initialized"
PROGRAM = Path(__file__).parents[2] / "wsfs" / "repo" / "reader.py"
EMPTY_ENVIRONMENT = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


def read(program: Path, *words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a reader, with nothing of this repository in reach."""
    command = [sys.executable, "-P", str(program), *map(str, words)]
    done = subprocess.run(command, env=EMPTY_ENVIRONMENT, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def fill(top: Path) -> None:
    (top / "d").mkdir(mode=0o2750)
    for number in range(30):
        (top / "d" / f"f{number}").write_bytes(b"text %d " % number * 200)
    (top / "big").write_bytes(os.urandom(2_500_000))
    (top / "tiny").write_bytes(b"tiny")
    (top / "hard").hardlink_to(top / "d" / "f7")
    (top / "soft").symlink_to("d/f7")
    with (top / "holes").open("wb") as file:
        file.seek(5_000_000)
        file.write(b"x")
        file.truncate(7_000_000)
    os.mkfifo(top / "fifo")
    Path(os.fsdecode(os.fsencode(top) + b"/bad \xff\n")).touch()
    os.setxattr(top / "tiny", "user.a", b"\0b")
    os.chown(top / "big", 12, 34)
    os.utime(top / "d", ns=(1, 981_173_106_123_456_789))


@pytest.fixture
def filled(site: Any) -> Any:
    """A workspace with two save points and more: changed, truncated and deleted in the second."""
    site.mount("-o", "xattr")
    fill(site.mountpoint)
    site.wsfs("sync", site.mountpoint)
    with (site.mountpoint / "big").open("r+b") as file:
        file.seek(1_500_000)
        file.write(b"later")
        file.truncate(1_800_000)
    (site.mountpoint / "d" / "f1").unlink()
    site.umount()
    return site


def expected(tree: Any, site: Any, out: Path, *words: object) -> Any:
    """What an export has."""
    site.wsfs("export", site.url, out, *words)
    return tree.of(out, inodes=False)


def test_it_extracts_what_an_export_does(filled: Any, tree: Any, tmp_path: Path) -> None:
    """From the store's directory itself, with the program that init has put there."""
    program = filled.store / "READER.py"
    assert program.read_bytes() == PROGRAM.read_bytes()
    read(program, "extract", filled.store, tmp_path / "read")
    found = tree.of(tmp_path / "read", inodes=False)
    assert found == expected(tree, filled, tmp_path / "now")
    assert os.getxattr(tmp_path / "read" / "tiny", "user.a") == b"\0b"
    assert (tmp_path / "read" / "holes").stat().st_blocks * 512 <= 2 << 20
    assert (tmp_path / "read" / "hard").samefile(tmp_path / "read" / "d" / "f7")
    read(program, "extract", filled.store, tmp_path / "then", "--at", 2)
    assert tree.of(tmp_path / "then", inodes=False) == expected(tree, filled, tmp_path / "before", "--at", 2)
    assert (tmp_path / "then" / "big").stat().st_size == 2_500_000
    read(program, "extract", filled.store, tmp_path / "then", code=2)


def test_it_lists(filled: Any) -> None:
    lines = read(PROGRAM, "list", filled.store).stdout.splitlines()
    assert any(line.startswith("-rw-r--r--     12     34        1800000") for line in lines)
    assert any(line.endswith(r"/bad \xff\n") for line in lines)
    assert not any(line.endswith("/d/f1") for line in lines)
    commits = read(PROGRAM, "commits", filled.store).stdout.splitlines()
    assert [line.split()[0] for line in commits] == ["1", "2", "3"]
    read(PROGRAM, "list", filled.store, "--at", 9, code=2)
    read(PROGRAM, "list", filled.store / "packs", code=2)


def test_the_zstd_command_is_enough(filled: Any, tree: Any, tmp_path: Path) -> None:
    """Without any package: -I and -S hide all but the standard library."""
    if shutil.which("zstd") is None:
        pytest.skip("the command zstd is not here")
    words = [sys.executable, "-I", "-S", str(PROGRAM), "extract", str(filled.store), str(tmp_path / "read")]
    subprocess.run(words, env=EMPTY_ENVIRONMENT, check=True)
    assert tree.of(tmp_path / "read", inodes=False) == expected(tree, filled, tmp_path / "now")


def test_damage_is_told_and_the_rest_is_extracted(filled: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(filled.store, copy)
    pack = max((copy / "packs").rglob("*-*"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[1000] ^= 1
    pack.write_bytes(data)
    told = read(PROGRAM, "extract", copy, tmp_path / "read", code=1).stderr
    assert "big" in told
    assert (tmp_path / "read" / "big.incomplete").exists()
    assert (tmp_path / "read" / "hard").read_bytes() == b"text 7 " * 200
    newest = max((copy / "meta").rglob("*"), key=lambda path: (path.is_file(), path.stat().st_mtime_ns))
    newest.unlink()
    assert newest.name in read(PROGRAM, "list", copy, code=1).stderr
    (copy / "HEAD").write_bytes(b"{")
    assert "damaged" in read(PROGRAM, "list", copy, code=1).stderr
    assert len(read(PROGRAM, "list", copy, "--at", 2).stdout.splitlines()) > 30


def test_an_encrypted_workspace_needs_its_key(site: Any, tree: Any, tmp_path: Path) -> None:
    top, key = tmp_path / "top", tmp_path / "key"
    top.mkdir()
    fill(top)
    url = f"{site.url}-secret"
    site.wsfs("import", top, url, "--encrypt", "--key-file", key)
    store = Path(url.removeprefix("file://"))
    assert (store / "READER.py").read_bytes() == PROGRAM.read_bytes()
    assert "--key-file" in read(store / "READER.py", "list", store, code=2).stderr
    other = tmp_path / "other"
    other.write_text("0" * 64 + "\n")
    read(store / "READER.py", "list", store, "--key-file", other, code=2)
    read(store / "READER.py", "extract", store, tmp_path / "read", "--key-file", key)
    (tmp_path / "read" / MARKER).unlink()
    found = tree.of(tmp_path / "read", inodes=False)
    wanted = tree.of(top, inodes=False)
    for one in (found, wanted):
        del one[b""]["mtime"]  # the marker was removed from it
    assert found == wanted


def test_a_fork_needs_a_copy_of_its_base(filled: Any, tree: Any, tmp_path: Path) -> None:
    base = filled.store
    filled.wsfs("fork", filled.url, f"{filled.url}-fork")
    filled.url, fork = f"{filled.url}-fork", Path(f"{base}-fork")
    filled.mount(cache=tmp_path / "other")
    (filled.mountpoint / "mine").write_bytes(b"mine " * 500)
    filled.umount()
    assert "--base" in read(fork / "READER.py", "list", fork, code=2).stderr
    read(fork / "READER.py", "extract", fork, tmp_path / "read", "--base", base)
    assert tree.of(tmp_path / "read", inodes=False) == expected(tree, filled, tmp_path / "now")
    assert (tmp_path / "read" / "mine").read_bytes() == b"mine " * 500


def test_it_needs_nothing_but_python(tmp_path: Path) -> None:
    """Of 3.9 or later: the syntax, and the modules that it imports."""
    tree = ast.parse(PROGRAM.read_text(), feature_version=(3, 9))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names | {"__future__"}
    assert "wsfs" not in imported
    assert "--at NUMBER" in read(PROGRAM, "--help").stdout
