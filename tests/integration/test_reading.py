"""What a mount fetches, when, and what happens when it gets something else than was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from wsfs.kernel.mountpoint import MAX_BACKGROUND
from wsfs.mountinfo import all_mounts
from wsfs.repo.head import State
from wsfs.store.url import open_store
from wsfs.sync.commit import Committer
from wsfs.sync.lease import this_process
from wsfs.sync.start import CacheDirectory, open_workspace
from wsfs.tree.namespace import Caller

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

MIB = 1 << 20


def on_disk(directory: Path) -> int:
    """Bytes that a directory takes on disk."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def flip(path: Path) -> None:
    """Change bits all over a file."""
    data = bytearray(path.read_bytes())
    for at in range(8, len(data), 1000):
        data[at] ^= 0x40
    path.write_bytes(data)


def gets(site: Site, part: str) -> list[tuple[str, str, str]]:
    """The reads of objects with `part` in their key since the last look."""
    return [request for request in site.server.requests() if request[0] == "GET" and part in request[1]]


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_a_warm_mount_loads_nothing(workspace: Site, tools: type[Helpers]) -> None:
    """With the cache at HEAD a mount reads FORMAT and HEAD, and what was written or read here needs no request."""
    top = workspace.mountpoint
    for number in range(50):
        (top / f"file{number}").write_bytes(os.urandom(10_000 * number))
    digest = hashlib.sha256((top / "file49").read_bytes()).hexdigest()
    workspace.umount()
    workspace.server.requests()
    workspace.mount()
    assert hashlib.sha256((top / "file49").read_bytes()).hexdigest() == digest
    tools.run("grep", "-r", "-c", "x", top, code=None)
    asked = Counter(key.rsplit("/", 1)[1] for method, key, _ in workspace.server.requests() if method == "GET")
    assert set(asked) <= {"FORMAT", "HEAD", "probe"}, asked


def test_a_big_file_is_fetched_where_it_is_touched(workspace: Site) -> None:
    """A cold mount answers before any data is local; a read brings what it needs and little more, in bounded memory."""
    top = workspace.mountpoint
    noise = random.Random(1)
    blocks = [noise.randbytes(MIB) for _ in range(16)]
    order = [noise.randrange(16) for _ in range(200)]
    with (top / "big").open("wb") as file:
        for number, which in enumerate(order):
            file.write(number.to_bytes(8, "big") + blocks[which][8:])
    workspace.umount()
    workspace.wipe()
    began = time.monotonic()
    workspace.mount()
    assert (top / "big").stat().st_size == 200 * MIB
    assert time.monotonic() - began < 30
    assert on_disk(workspace.cache / "packs") < 8 * MIB
    with (top / "big").open("rb") as file:
        file.seek(100 * MIB)
        assert file.read(8) == (100).to_bytes(8, "big")
    assert on_disk(workspace.cache / "packs") < 16 * MIB
    data = hashlib.sha256()
    for number, which in enumerate(order):
        data.update(number.to_bytes(8, "big") + blocks[which][8:])
    with (top / "big").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == data.hexdigest()
    status = Path(f"/proc/{workspace.pid()}/status").read_text()
    assert int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) < 400 * 1024


def test_the_cache_stays_within_its_limit(workspace: Site) -> None:
    """Reading more than cache_size leaves no more than that on disk, and every byte is right."""
    top = workspace.mountpoint
    for number in range(8):
        (top / f"file{number}").write_bytes(random.Random(number).randbytes(12 * MIB))
    workspace.elsewhere("-o", "cache_size=32M")
    for number in range(8):
        assert (top / f"file{number}").read_bytes() == random.Random(number).randbytes(12 * MIB)
    assert on_disk(workspace.cache / "packs") < 48 * MIB


def connection(top: Path, file: str) -> int:
    """What the kernel says of its connection to the daemon. Skips the test where it tells nobody."""
    number = next(mount.device for mount in reversed(all_mounts()) if mount.mountpoint == str(top)).partition(":")[2]
    script = 'mount -t fusectl none /sys/fs/fuse/connections && cat "/sys/fs/fuse/connections/$1/$2"'
    words = ["unshare", "--mount", "sh", "-c", script, "sh", number, file]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"fusectl cannot be mounted: {done.stderr}")
    return int(done.stdout)


@pytest.mark.long
@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_readers_who_wait_for_the_store_keep_nobody_from_syncing(workspace: Site, tools: type[Helpers]) -> None:
    """Reads ahead and the writing of pages share what the kernel allows. More wait here than it allows by itself."""
    top = workspace.mountpoint
    files = [top / f"file{number}" for number in range(40)]
    for file in files:
        file.write_bytes(os.urandom(200_000))
    workspace.elsewhere()
    assert connection(top, "max_background") == MAX_BACKGROUND
    with workspace.server.held("GET", "/packs/"):
        readers = [subprocess.Popen(["cat", file], stdout=subprocess.DEVNULL) for file in files]
        tools.until(lambda: connection(top, "waiting") >= len(readers))
        with (top / "new").open("wb") as file:
            file.write(bytes(300_000))
            file.flush()
            os.fsync(file.fileno())
        assert [reader.poll() for reader in readers] == [None] * len(readers)
        for reader in readers:
            reader.kill()
            reader.wait()


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_readers_at_the_same_time_fetch_once(workspace: Site, tools: type[Helpers]) -> None:
    """Four programs that read the same cold files share each request, and other requests are served meanwhile."""
    top = workspace.mountpoint
    content = os.urandom(MIB + 500_000)
    (top / "file").write_bytes(content)
    workspace.elsewhere()
    gets(workspace, "/packs/")
    asked: Counter[tuple[str, str, str]] = Counter()

    def look() -> bool:
        asked.update(gets(workspace, "/packs/"))
        return bool(asked)

    with workspace.server.held("GET", "/packs/"):
        readers = [subprocess.Popen(["sha256sum", top / "file"], stdout=subprocess.PIPE) for _ in range(4)]
        tools.until(look)
        (top / "other").write_text("x")
        assert "other" in os.listdir(top)
        assert [reader.poll() for reader in readers] == [None] * 4
    answers = {reader.communicate(timeout=60)[0].split()[0].decode() for reader in readers}
    assert answers == {hashlib.sha256(content).hexdigest()}
    look()
    assert max(asked.values()) == 1, asked


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: os.truncate(path, 100)])
def test_damaged_data_is_an_error_not_wrong_bytes(workspace: Site, damage: object) -> None:
    """A pack that is damaged or gone: EIO for its files and a log line with the path; all else goes on."""
    top = workspace.mountpoint
    (top / "dir").mkdir()
    for name in ("good", "dir/bad", "good too"):
        (top / name).write_bytes(os.urandom(300_000))
        workspace.wsfs("sync", top)
    (pack,) = [p for p in workspace.objects("packs") if (top / "dir/bad").read_bytes()[:1000] in p.read_bytes()]
    original = pack.read_bytes()
    workspace.umount()
    damage(pack)  # type: ignore[operator]
    workspace.wipe()
    workspace.mount()
    for _ in range(2):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is checked
            (top / "dir/bad").read_bytes()
        assert caught.value.errno == errno.EIO
    assert re.search(r"level=ERROR .*op=read path=/dir/bad errno=EIO error=.*packs/", workspace.log())
    for name in ("good", "good too"):
        assert len((top / name).read_bytes()) == 300_000
    with pytest.raises(OSError, match="Input/output"):
        workspace_write(top / "dir/bad")
    (top / "dir/bad").rename(top / "dir/renamed")
    assert workspace.status()["state"] == "RUNNING"
    workspace.wsfs("sync", top)
    pack.write_bytes(original)
    assert len((top / "dir/renamed").read_bytes()) == 300_000
    (top / "dir/renamed").unlink()


def workspace_write(path: Path) -> None:
    """Change a byte in the middle, which needs the rest of the block."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.pwrite(descriptor, b"x", 1234)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_damaged_metadata_is_an_error(site: Site, tools: type[Helpers]) -> None:
    """A base partition that is damaged: its files give EIO with a log line, the rest of the tree works."""
    make_big_directory(site, 30_000)
    segments = site.objects("meta")
    site.mount()
    site.umount()
    site.wipe()
    victim = segments[2]  # after init's and the first one, which has the root
    original = victim.read_bytes()
    flip(victim)
    site.mount()
    assert ".workspace.initialized" in os.listdir(site.mountpoint)
    names = [site.mountpoint / "big" / f"file{number:05}" for number in range(30_000)]
    with pytest.raises(OSError, match="Input/output"):
        list(map(os.stat, names))
    assert re.search(r"level=ERROR .*op=lookup path=/big/file\d+ errno=EIO error=.*meta/", site.log())
    victim.write_bytes(original)
    tools.until(lambda: len(os.listdir(site.mountpoint / "big")) == 30_000)


def make_big_directory(site: Site, count: int) -> None:
    """Commit a directory /big with so many empty files that the metadata fills several partitions."""
    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        for name, value in site.environ.items():
            if name.startswith("AWS_"):
                context.setenv(name, value)
        store = open_store(site.url, endpoint_url=site.environ.get("WSFS_ENDPOINT_URL"))
        cache = CacheDirectory(site.base / "making", print)
        workspace = open_workspace(store, cache, this_process(), cache_size=1 << 30, tell=print)
        root = Caller(0, 0)
        big = workspace.names.make(1, b"big", 0o40755, root).ino
        for number in range(count):
            workspace.names.make(big, b"file%05d" % number, 0o100644, root)
        assert workspace.lease is not None
        Committer(store, workspace.index, workspace.overlay, workspace.packs, workspace.lease, lambda f: f()).commit(
            State.STOPPED
        )
        workspace.lease.renew(State.STOPPED)
        workspace.close()
        cache.close(clean=True)
        store.close()


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_a_big_directory_is_listed_before_its_metadata_is_here(site: Site) -> None:
    """ls of a directory whose inodes come from partitions that still load: each name exactly once."""
    make_big_directory(site, 30_000)
    expected = sorted(f"file{number:05}" for number in range(30_000))
    with site.server.slow("GET", "/meta/", 0.4):
        site.mount()
        script = "import os, sys; print('\\n'.join(sorted(os.listdir(sys.argv[1]))))"
        found = site.run(sys.executable, "-c", script, site.mountpoint / "big").stdout.split()
    assert Counter(found) - Counter(expected) == Counter()
    assert found == expected
    assert len({os.stat(site.mountpoint / "big" / name).st_ino for name in found[::100]}) == 300


def test_a_start_is_remembered_and_fetched_ahead(workspace: Site) -> None:
    """What the first mount on another machine reads first, the next one fetches before anybody asks."""
    for number in range(4):
        (workspace.mountpoint / f"file{number}").write_bytes(random.Random(number).randbytes(5 * MIB))
    workspace.elsewhere()
    assert (workspace.mountpoint / "file1").read_bytes() == random.Random(1).randbytes(5 * MIB)
    workspace.elsewhere()
    ends = time.monotonic() + 60
    while on_disk(workspace.cache / "packs") < 5 * MIB and time.monotonic() < ends:
        time.sleep(0.05)
    assert on_disk(workspace.cache / "packs") >= 5 * MIB
    assert (workspace.mountpoint / "file1").read_bytes() == random.Random(1).randbytes(5 * MIB)


def test_a_small_file_comes_with_its_open(workspace: Site) -> None:
    """No READ is sent for it, and no GETATTR by the stat after that; what is written to it later is what is read."""
    top = workspace.mountpoint
    contents = {f"file{number}": os.urandom(number * 1000 + 1) for number in range(100)}
    for name, content in contents.items():
        (top / name).write_bytes(content)
    workspace.umount()
    workspace.mount()
    assert set(os.listdir(top)) > set(contents)  # and the kernel has their attributes

    def count() -> Counter[str]:
        told = json.loads(workspace.wsfs("stats", top, "--json").stdout)["requests"]
        return Counter({name: request["count"] for name, request in told.items()})

    before = count()
    for name, content in contents.items():
        with (top / name).open("rb") as file:
            assert file.read() == content
            assert os.fstat(file.fileno()).st_size == len(content)
    asked = count() - before
    assert asked["open"] == len(contents)
    assert not asked["read"]
    assert asked["getattr"] < 10
    with (top / "file9").open("r+b") as file:
        file.write(b"changed")
        file.flush()
        assert (top / "file9").read_bytes() == b"changed" + contents["file9"][7:]
    os.truncate(top / "file8", 5)
    assert (top / "file8").read_bytes() == contents["file8"][:5]
    (top / "file7").write_bytes(b"short")
    assert (top / "file7").read_bytes() == b"short"
