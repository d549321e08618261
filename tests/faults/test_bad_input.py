"""Bad input through a real mount: odd names, sizes and times, no mount point or store, hostile buckets."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))

from hostile import HOSTILE, make_hostile

from wsfs.store.directory import DirectoryStore

HERE = Path(__file__).parent
MANY = 3_000
TIB = 1 << 40
BLOCK = 1 << 20
ODD_NAMES = [
    b"\n",
    b"new\nline",
    b"\xff\xfe invalid",
    b"\x1b]0;title\x07\x1b[2J",
    b"\xe2\x80\xae.txt",
    b"-rf",
    b"...",
    b" ",
    b"'\"\\$(x)`",
    b"x" * 255,
    "\N{SNOWMAN}".encode() * 85,
]


@pytest.fixture
def site(tmp_path: Path, new_site: Callable[[Path, str], Any], integration: Any) -> Iterator[Any]:
    """A workspace in a directory store, not mounted."""
    found = new_site(tmp_path, integration.DIRECTORY).init()
    with integration._watched(found, 100):
        try:
            yield found
        finally:
            found.finish()


@pytest.fixture
def integration() -> Any:
    return sys.modules["wsfs_integration_conftest"]


def failing(call: Callable[..., object], *args: object) -> str | None:
    """The errno's name with which a call fails."""
    try:
        call(*args)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return None


def write(path: bytes | Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


# --- names ------------------------------------------------------------------------------------------------------------


def test_odd_names(site: Any) -> None:
    """Bytes are bytes: they survive a cold remount, as files, directories and targets of links."""
    site.mount()
    top = os.fsencode(site.mountpoint)
    for name in ODD_NAMES:
        os.mkdir(top + b"/" + name)
        write(top + b"/" + name + b"/" + name, name)
        os.symlink(name, top + b"/" + name + b"/link")
    assert failing(os.mkdir, top + b"/" + b"x" * 256) == "ENAMETOOLONG"
    assert failing(os.stat, top + b"/" + b"x" * 256) == "ENAMETOOLONG"
    assert failing(os.rename, top + b"/" + ODD_NAMES[0], top + b"/" + b"x" * 256) == "ENAMETOOLONG"
    site.elsewhere()
    assert set(os.listdir(top)) == {*ODD_NAMES, b".workspace.initialized"}
    for name in ODD_NAMES:
        assert sorted(os.listdir(top + b"/" + name)) == sorted([name, b"link"])
        assert os.readlink(top + b"/" + name + b"/link") == name
        with open(top + b"/" + name + b"/link", "rb") as file:
            assert file.read() == name


def test_odd_names_on_a_terminal(site: Any, tmp_path: Path) -> None:
    """Status, fsck, a missed deadline and export tell of them without breaking a line; export keeps their bytes."""
    site.mount()
    top = os.fsencode(site.mountpoint)
    for name in ODD_NAMES:
        write(top + b"/" + name, name * 1000)
    outputs = [
        site.wsfs("status", site.mountpoint),
        site.wsfs("export", "--unsaved", tmp_path / "out", site.mountpoint),
    ]
    assert set(os.listdir(os.fsencode(tmp_path / "out"))) == set(ODD_NAMES)
    site.wsfs("sync", site.mountpoint)
    for pack in site.objects("packs"):
        pack.unlink()
    outputs.append(site.wsfs("fsck", site.url, code=25))
    shutil.rmtree(site.store / "commits")  # nothing can be saved
    for result in outputs:
        text = result.stdout + result.stderr
        assert text.replace("\n", "").isprintable(), repr(text)
    lines = outputs[-1].stdout.splitlines()
    assert any("new\\nline" in line for line in lines)
    assert any("\\x1b]0;title\\x07" in line for line in lines)


def test_paths_as_long_as_they_get(site: Any) -> None:
    """A path of PATH_MAX works, a longer one gives ENAMETOOLONG, and deeper ones work step by step; all come back."""
    site.mount()
    part = "d" * 200
    here = os.open(site.mountpoint, os.O_RDONLY)
    for _ in range(40):  # 8,000 bytes
        os.mkdir(part, dir_fd=here)
        below = os.open(part, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with open(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=here), "w") as file:
        file.write("deep")
    os.close(here)
    site.elsewhere()
    long = str(site.mountpoint)
    while len(long) + 201 < 4095:
        long += "/" + part
    assert failing(os.stat, long + "/" + "x" * (4094 - len(long))) == "ENOENT"
    assert failing(os.stat, long + "/" + "x" * (4095 - len(long))) == "ENAMETOOLONG"
    here = os.open(site.mountpoint, os.O_RDONLY)
    for _ in range(40):
        below = os.open(part, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    with open(os.open("file", os.O_RDONLY, dir_fd=here)) as file:
        assert file.read() == "deep"
    os.close(here)
    site.run("rm", "-rf", site.mountpoint / part)
    assert os.listdir(site.mountpoint) == [".workspace.initialized"]


# --- sizes and times --------------------------------------------------------------------------------------------------


def test_a_tebibyte_of_nothing(site: Any) -> None:
    """What a sparse file costs follows from its data, here, in the store, and at a cold start."""
    site.mount()
    path = site.mountpoint / "sparse"
    with path.open("wb") as file:
        file.truncate(TIB)
        file.seek(TIB - 5)
        file.write(b"end")
    site.wsfs("sync", site.mountpoint)
    assert site.stored_bytes() < 100_000
    assert sum(f.stat().st_blocks * 512 for f in site.cache.rglob("*") if f.is_file()) < 50 << 20
    site.elsewhere()
    assert path.stat().st_size == TIB
    with path.open("rb") as file:
        assert file.read(BLOCK) == bytes(BLOCK)
        file.seek(TIB - 10)
        assert file.read() == bytes(5) + b"end" + bytes(2)
    with path.open("r+b") as file:
        file.truncate(100)
    assert path.read_bytes() == bytes(100)


def test_the_largest_file(site: Any) -> None:
    """4 PiB, and EFBIG beyond; what the file system below cannot hold is EFBIG too, and not EIO."""
    site.mount()
    path = site.mountpoint / "largest"
    path.touch()
    os.truncate(path, 1 << 52)
    assert failing(os.truncate, path, (1 << 52) + 1) == "EFBIG"
    with path.open("r+b") as file:
        assert failing(os.pwrite, file.fileno(), b"x", 1 << 52) in ("EFBIG", None)
        assert failing(os.fsync, file.fileno()) in ("EFBIG", None)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), b"x" * 40_000, (1 << 52) - 40_000)
        assert failing(os.fsync, file.fileno()) in ("EFBIG", None)
    site.wsfs("sync", site.mountpoint, code=None)  # a write that failed is told once more
    site.elsewhere()
    assert path.stat().st_size == 1 << 52


def test_times(site: Any) -> None:
    """They come back as they were set: 35,000 years ago, 1969, 1970, 2242, and in 35,000 years."""
    site.mount()
    moments = {f"{second}": second * 10**9 + 123_456_789 for second in (-(1 << 40), -1, 0, 1 << 33, 1 << 40)}
    for name, moment in moments.items():
        (site.mountpoint / name).touch()
        os.utime(site.mountpoint / name, ns=(moment, moment + 1))

    def check() -> None:
        for name, moment in moments.items():
            found = (site.mountpoint / name).stat()
            assert (found.st_atime_ns, found.st_mtime_ns) == (moment, moment + 1)

    check()
    site.elsewhere()
    check()


def test_many_files_in_a_directory(tmp_path: Path, site: Any) -> None:
    """A change of one of many files sends little; scripts/many-files has a million by default."""
    script = HERE.parents[1] / "scripts" / "many-files"
    command = [sys.executable, script, "--files", str(MANY), "--work", tmp_path, "--json"]
    wrapper = Path(sys.executable).parent / "wsfs"
    if not wrapper.exists():
        pytest.skip("needs the wsfs command beside this Python")
    done = subprocess.run(command, env=site.environ, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["save of one changed file, bytes sent"] < 10_000
    assert figures["save of one changed file, cold, bytes sent"] < 10_000


# --- mount points and stores that are none ----------------------------------------------------------------------------


def refused(site: Any, code: int, words: str, *options: object, **more: Any) -> None:
    """One sentence, its exit code, and nothing mounted."""
    result = site.mount(*options, code=code, **more)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert words in lines[0]
    assert not site.mounts()


def test_mount_points_that_are_none(site: Any, tmp_path: Path) -> None:
    """Gone, a file, a link to nothing, below a file: refused with what to do."""
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, words in (("gone", "mkdir"), ("file", "not a directory"), ("dangling", "mkdir"), ("file/x", "mkdir")):
        refused(site, 40, words, where=tmp_path / name)
    site.mount()


def test_a_directory_that_is_not_empty(site: Any) -> None:
    """It is hidden while the workspace is mounted, and as it was afterwards."""
    (site.mountpoint / "mine").write_text("mine")
    site.mount()
    assert os.listdir(site.mountpoint) == [".workspace.initialized"]
    site.umount()
    assert (site.mountpoint / "mine").read_text() == "mine"


STORES = {
    "unreachable": (
        "s3://bucket/x",
        {"WSFS_ENDPOINT_URL": "http://127.0.0.1:9"},
        11,
        "check the network and the endpoint",
    ),
    "unknown host": (
        "s3://bucket/x",
        {"WSFS_ENDPOINT_URL": "http://nowhere.invalid"},
        11,
        "check the network and the endpoint",
    ),
    "no credentials": (
        "s3://bucket/x",
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
        12,
        "AWS_ACCESS_KEY_ID",
    ),
    "no such directory": ("file:///nonexistent/store", {}, 20, "wsfs init"),
    "not a URL": ("s3://[/x", {}, 2, "s3://bucket/prefix"),
}


@pytest.mark.parametrize("name", STORES)
def test_stores_that_are_none(site: Any, tmp_path: Path, name: str) -> None:
    """Each is told in one sentence with a code of its own; what waits in a cache is still there."""
    url, environ, code, words = STORES[name]
    credentials = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    usual, site.url = site.url, url
    before, site.environ = site.environ, site.environ | credentials | environ | {"NO_PROXY": "*"}
    refused(site, code, words, "-o", "store_timeout=2", cache=tmp_path / "other")
    site.url, site.environ = usual, before
    site.mount()


# --- a hostile bucket -------------------------------------------------------------------------------------------------

ON_A_MOUNT = ["a cycle of directories", "the root in itself", "a name of nothing", "sizes", "counts", "blocks"]
"""tests/fuzz has all of them, without FUSE; these are where the kernel has a say."""


@pytest.mark.parametrize("name", ON_A_MOUNT)
def test_a_hostile_bucket(site: Any, name: str, tmp_path: Path) -> None:
    """Programs that go through all of it come to an end, and the daemon is well."""
    store = DirectoryStore(str(site.store))
    make_hostile(store, HOSTILE[name])
    store.close()
    result = site.mount(code=None)
    if result.returncode != 0:
        assert result.returncode == 22, result.stderr
        return
    for command in (
        "find . -printf '%p %l\\n'",
        "ls -laR .",
        "find . -type f -size -1M -exec cat {} +",
        "find . -exec stat {} +",
        "rm -rf ./*",
    ):
        subprocess.run(["sh", "-c", command], cwd=site.mountpoint, timeout=30, check=False, capture_output=True)
        assert site.status()["state"] == "RUNNING"
    assert "Traceback" not in site.log()
    site.wsfs("umount", site.mountpoint, code=None)
    if site.mounts():
        site.abort()


def test_a_hostile_head_on_a_terminal(site: Any) -> None:
    """The reason that HEAD gives is text from elsewhere."""
    path = site.store / "HEAD"
    head = json.loads(path.read_bytes())
    path.write_bytes(json.dumps(head | {"reason": "\x1b[2J\nSTATE: all is well"}).encode())
    text = site.wsfs("status", site.url).stdout
    assert "\\x1b[2J\n             STATE" in text, "no line of it can be taken for one of ours"
    assert text.replace("\n", "").isprintable()
