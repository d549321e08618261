"""What others can learn: from the bucket of an encrypted workspace, from the process list, from logs, from memory."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Helpers, Site

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
RANDOM = os.urandom(3 << 20)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return tmp_path / "key"


@pytest.fixture
def encrypted(tmp_path: Path, new_site: Any, key: Path) -> Iterator[Site]:
    """An encrypted workspace, not mounted."""
    site = new_site(tmp_path, "directory")
    site.init("--encrypt", "--key-file", key, "--label", "team=a-secret-label", "--framework", "a-secret-framework")
    try:
        yield site
    finally:
        site.finish()


def fill(site: Site) -> None:
    (site.mountpoint / "a-secret-directory").mkdir()
    for name in ("a-secret-name", "a-secret-log", "a-secret-directory/a-secret-name"):
        (site.mountpoint / name).write_bytes(content(name))
    (site.mountpoint / "random").write_bytes(RANDOM)
    (site.mountpoint / "a-secret-link").symlink_to("a-secret-name")
    os.setxattr(site.mountpoint / "a-secret-name", "user.a-secret", b"secret")


def content(name: str) -> bytes:
    return f"a secret line of {name}\n".encode() * (20_000 if name.endswith("log") else 2)


def files_below(*directories: Path) -> Iterator[Path]:
    for directory in directories:
        yield from (path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())


def test_an_encrypted_workspace_comes_back_on_another_machine(encrypted: Site, key: Path) -> None:
    """With nothing in the bucket in clear, names, labels and the host included."""
    site = encrypted
    site.mount("-o", f"key_file={key},xattr")
    fill(site)
    site.wsfs("sync", site.mountpoint)
    with (site.mountpoint / "random").open("r+b") as file:
        file.write(b"changed")
    site.umount()
    for path in files_below(site.store):
        data = path.read_bytes()
        if path == site.store / "READER.py":  # the same in each workspace
            assert data == (Path(__file__).parents[2] / "wsfs" / "repo" / "reader.py").read_bytes()
            continue
        for word in (
            b"secret",
            b"RUNNING",
            b"STOPPED",
            b"WSFSSEG1",
            b"WSFSPAK1",
            b"WSFSMAN1",
            RANDOM[1000:1020],
            b'"host":"',
        ):
            assert word not in data, path
            assert word.decode("latin-1") not in str(path.relative_to(site.store))
    site.wipe()
    site.environ["WSFS_KEY_FILE"] = str(key)
    site.mount("-o", "xattr")
    for name in ("a-secret-name", "a-secret-log", "a-secret-directory/a-secret-name"):
        assert (site.mountpoint / name).read_bytes() == content(name)
    assert (site.mountpoint / "random").read_bytes() == b"changed" + RANDOM[7:]
    assert os.getxattr(site.mountpoint / "a-secret-link", "user.a-secret") == b"secret"
    site.wsfs("verify", site.mountpoint, "--sample", "100%")
    site.umount()
    site.wsfs("fsck", site.url, "--data", "--all")
    assert site.status(site.url)["state"] == "STOPPED"


def test_without_the_right_key_it_is_refused(encrypted: Site, key: Path) -> None:
    site = encrypted
    refused = site.mount(code=26)
    assert "is encrypted: name its key with --key-file" in refused.stderr
    other = key.with_name("other")
    other.touch(mode=0o600)
    other.write_text("0" * 64)
    assert "other does not hold the key of this workspace" in site.mount("--key-file", other, code=26).stderr
    assert "other-one cannot be read" in site.mount("-o", f"key_file={other}-one", code=26).stderr
    key.chmod(0o644)
    assert f"chmod 600 {key}" in site.mount("--key-file", key, code=26).stderr
    key.chmod(0o600)
    for command in ("status", "fsck"):
        assert "is encrypted: name its key" in site.wsfs(command, site.url, code=26).stderr
    site.mount("--key-file", os.path.relpath(key))


def test_a_key_is_given_on_purpose(site: Site, key: Path) -> None:
    """Neither does init make a workspace in clear when a key is given, nor does mount take one that lies there."""
    empty = site.url + "-empty"
    assert "--encrypt is not" in site.wsfs("init", empty, "--key-file", key, code=2).stderr
    assert not key.exists()
    assert "is not encrypted, and a key was given" in site.mount("--key-file", key, code=26).stderr


def test_unsaved_files_are_rescued_with_the_key(encrypted: Site, key: Path, tmp_path: Path) -> None:
    site = encrypted
    site.mount("--key-file", key)
    path = site.mountpoint / "a-secret-log"
    path.write_bytes(RANDOM)
    site.elsewhere("--key-file", key)
    with path.open("r+b") as file:
        file.write(b"unsaved")
        os.fsync(file.fileno())
    site.kill()
    words = ("export", "--cache-dir", site.cache, "--url", site.url)
    assert "is encrypted: name its key" in site.wsfs(*words, "--unsaved", tmp_path / "no", code=26).stderr
    site.wsfs(*words, "--unsaved", tmp_path / "rescued", "--key-file", key)
    assert (tmp_path / "rescued" / "a-secret-log").read_bytes() == b"unsaved" + RANDOM[7:]


@pytest.mark.parametrize("site", ["moto"], indirect=True)
def test_credentials_and_keys_are_nowhere_to_be_seen(site: Site, key: Path, tmp_path: Path) -> None:
    """Not in the process list, in logs, in records, in the cache directory, or in the environment of other programs."""
    secret = "testing-secret"
    assert site.environ["AWS_SECRET_ACCESS_KEY"] == secret
    site.environ["WSFS_DEBUG"] = "1"
    url = site.url + "-encrypted"
    site.wsfs("init", url, "--encrypt", "--key-file", key)
    site.url = url
    site.mount("--key-file", key)
    (site.mountpoint / "file").write_bytes(RANDOM)
    site.wsfs("sync", site.mountpoint)
    shown = subprocess.run(["ps", "-efww"], capture_output=True, check=True, text=True).stdout
    shown += site.wsfs("status", site.mountpoint, "--json").stdout
    digits = key.read_text().strip()
    site.umount()
    places = [path.read_bytes() for path in files_below(site.cache, site.base / "run")]
    for word in (secret, digits):
        assert word not in shown
        assert word.encode() not in b"".join(places)
        assert bytes.fromhex(digits) not in b"".join(places)
    assert "level=" in site.log()


def test_the_cache_is_private(workspace: Site) -> None:
    """Also one that was made by hand, open to everybody."""
    (workspace.mountpoint / "file").write_bytes(RANDOM)
    workspace.wsfs("sync", workspace.mountpoint)
    workspace.umount()
    workspace.cache.chmod(0o777)
    workspace.mount()
    assert stat.S_IMODE(workspace.cache.stat().st_mode) == 0o700
    assert stat.S_IMODE((workspace.base / "run").stat().st_mode) == 0o700
    (socket,) = (workspace.base / "run").glob("*.sock")
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600


def test_another_user_cannot_ask_the_daemon(reachable: Path, shared_site: Site) -> None:
    """Even where the directory of the sockets is open, the kernel tells who asks."""
    runtime = shared_site.base / "run"
    (socket,) = runtime.glob("*.sock")
    ask = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        's.sendall(b\'{"op": "status"}\\n\'); print(s.recv(65536).decode())'
    )
    words = [*NOBODY, sys.executable, "-c", ask, str(socket)]
    closed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "Permission" in closed.stderr
    runtime.chmod(0o755)
    socket.chmod(0o666)
    try:
        asked = subprocess.run(words, capture_output=True, text=True, check=False)
    finally:
        socket.chmod(0o600)
        runtime.chmod(0o700)
    assert '"ok": false' in asked.stdout
    assert "url" not in asked.stdout


def test_a_daemon_that_dies_leaves_no_core_file(site: Site, tmp_path: Path, tools: type[Helpers]) -> None:
    """Its memory holds credentials, and keys."""

    def unlimited() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    control = subprocess.Popen(
        [sys.executable, "-c", "import os; os.abort()"],
        preexec_fn=unlimited,
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
    )
    if not os.WCOREDUMP(os.waitpid(control.pid, 0)[1]):
        pytest.skip("nothing leaves a core file on this machine")
    words, environ = site.command("mount", site.url, site.mountpoint, "--foreground")
    with (tmp_path / "log").open("wb") as log:
        daemon = subprocess.Popen(
            words, env=environ, preexec_fn=unlimited, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT
        )
    tools.until(
        lambda: tools.is_mounted(site.mountpoint) and site.wsfs("status", site.mountpoint, "--check", code=None)
    )
    daemon.send_signal(signal.SIGABRT)
    _, status = os.waitpid(daemon.pid, 0)
    control.returncode = daemon.returncode = 0
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)
    subprocess.run(["umount", "-i", "-l", site.mountpoint], check=True)
