"""The control socket: one JSON line each way, and nothing that a client does can hurt the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from wsfs import control
from wsfs.cli import daemon, mounts
from wsfs.errors import (
    FormatError,
    MountBusyError,
    MountError,
    NotMountedError,
    SyncFailedError,
    UsageError,
    WsfsError,
)
from wsfs.mountinfo import Mount


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of this test's own."""
    directory = tmp_path / "run"
    monkeypatch.setenv("WSFS_RUNTIME_DIR", str(directory))
    return directory


async def answer(message: dict[str, Any]) -> dict[str, Any]:
    match message["op"]:
        case "status":
            return {"state": "RUNNING", "echo": message}
        case "busy":
            raise MountBusyError("/workspace is in use")
        case "nursery":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer, {"op": "store"})
        case "store":
            raise SyncFailedError("the store is down")
        case "bug":
            raise KeyError("oops")
    return {}


def with_server(
    path: Path,
    client: Callable[[], Any],
    handler: control.Handler = answer,
    progress: control.Account = lambda: None,
) -> Any:
    """Run the blocking `client` in a thread while a server is up; what it returns."""

    async def main() -> Any:
        async with trio.open_nursery() as nursery:
            await nursery.start(control.serve, path, handler, progress)
            with trio.fail_after(60):
                result = await trio.to_thread.run_sync(client)
            nursery.cancel_scope.cancel()
        return result

    return trio.run(main)


def raw(path: Path, data: bytes, *, half_close: bool = True) -> dict[str, Any]:
    """Send `data` as it is and return what comes back."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        try:
            client.sendall(data)
            if half_close:
                client.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server had read enough
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # the server did not want the rest
            while chunk := client.recv(65536):
                answer += chunk
    return json.loads(answer) if answer else {}


def test_request_is_answered_with_the_handlers_fields_and_ok(tmp_path: Path) -> None:
    path = control.socket_path(tmp_path)
    response = with_server(path, lambda: control.request(path, {"op": "status", "deep": True}, timeout=5))
    assert response == {"ok": True, "state": "RUNNING", "echo": {"op": "status", "deep": True}}


def test_socket_is_private_and_goes_away_with_the_server(tmp_path: Path, runtime: Path) -> None:
    path = control.socket_path(tmp_path)
    assert with_server(path, lambda: stat.S_IMODE(path.stat().st_mode)) == 0o600
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert not path.exists()


@pytest.mark.parametrize(
    ("op", "error", "words"),
    [
        ("busy", MountBusyError, "in use"),
        ("store", SyncFailedError, "store is down"),
        ("nursery", SyncFailedError, "store is down"),
        ("bug", WsfsError, "internal error: KeyError"),
    ],
)
def test_errors_of_the_handler_reach_the_client_as_what_they_are(
    tmp_path: Path, op: str, error: type[WsfsError], words: str
) -> None:
    path = control.socket_path(tmp_path)

    def client() -> None:
        with pytest.raises(error, match=words) as caught:
            control.request(path, {"op": op})
        assert type(caught.value) is error
        assert control.request(path, {"op": "status"})["ok"]  # and the server lives on

    with_server(path, client)


@pytest.mark.parametrize(
    "data",
    [
        b"not json\n",
        b"[1, 2]\n",
        b'{"op": 1}\n',
        b"{}\n",
        b"\xff\xfe\n",
        b"\n",
        b"[" * 60_000 + b"\n",
        b'{"op": "status"',
        b"x" * (control.MAX_REQUEST + 1),
    ],
    ids=["text", "list", "op", "empty", "bytes", "blank", "deep", "cut", "long"],
)
def test_bad_requests_are_answered_with_an_error_and_do_not_kill_the_server(tmp_path: Path, data: bytes) -> None:
    path = control.socket_path(tmp_path)

    def client() -> dict[str, Any]:
        response = raw(path, data, half_close=len(data) < control.MAX_REQUEST)
        assert control.request(path, {"op": "status"})["ok"]
        return response

    response = with_server(path, client)
    if data != b"\n":
        assert response["ok"] is False
        assert response["exit_code"] == UsageError.exit_code


def test_silent_client_is_told_off_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_TIMEOUT", 0.1)
    path = control.socket_path(tmp_path)
    response = with_server(path, lambda: raw(path, b'{"op":', half_close=False))
    assert "no whole request" in response["error"]


def test_clients_that_hang_up_do_not_disturb_the_server(tmp_path: Path) -> None:
    path = control.socket_path(tmp_path)

    async def big(message: dict[str, Any]) -> dict[str, Any]:
        await trio.sleep(0.05)
        return {"filler": "x" * 5_000_000} if message["op"] == "big" else {}

    def client() -> None:
        for data in (b"", b'{"op"', b'{"op": "big"}\n'):
            with socket.socket(socket.AF_UNIX) as rude:
                rude.connect(str(path))
                rude.sendall(data)
        assert control.request(path, {"op": "status"})["ok"]
        assert len(control.request(path, {"op": "big"})["filler"]) == 5_000_000

    with_server(path, client, big)


def test_other_users_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = control.socket_path(tmp_path)
    monkeypatch.setattr(control, "peer_credentials", lambda _connection: (1, 4711))
    response = with_server(path, lambda: raw(path, b'{"op": "status"}\n'))
    assert response["ok"] is False
    assert "only root" in response["error"]


def test_response_that_is_ready_is_delivered_although_the_server_ends(tmp_path: Path) -> None:
    path = control.socket_path(tmp_path)
    received: list[dict[str, Any]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def stop(_message: dict[str, Any]) -> dict[str, Any]:
                nursery.cancel_scope.cancel()
                return {"files": 7}

            await nursery.start(control.serve, path, stop)
            client = threading.Thread(target=lambda: received.append(control.request(path, {"op": "stop"})))
            client.start()
            await trio.sleep(10)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(client.join)

    trio.run(main)
    assert received == [{"ok": True, "files": 7}]


def test_daemon_that_dies_before_it_answers_is_reported(tmp_path: Path) -> None:
    path = control.socket_path(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        with pytest.raises(WsfsError, match="daemon"):
            control.request(path, {"op": "status"})
        thread.join()


def test_timeout_is_reported(tmp_path: Path) -> None:
    path = control.socket_path(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(WsfsError, match=r"within 0\.1 s"):
            control.request(path, {"op": "status"}, timeout=0.1)


def test_nobody_listening_is_not_mounted(tmp_path: Path) -> None:
    path = control.socket_path(tmp_path)
    with pytest.raises(NotMountedError):
        control.request(path, {"op": "status"})
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotMountedError):
        control.request(path, {"op": "status"})
    assert control.daemon_pid(path) is None


def test_socket_of_a_dead_daemon_is_taken_over_and_that_of_a_live_one_is_not(tmp_path: Path) -> None:
    path = control.socket_path(tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    def client() -> None:
        assert control.daemon_pid(path) == os.getpid()
        with pytest.raises(MountError, match="already serves"):
            trio.run(control.serve, path, answer)
        assert control.request(path, {"op": "status"})["ok"]

    with_server(path, client)


def test_paths_longer_than_a_socket_address_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSFS_RUNTIME_DIR", str(tmp_path / ("long" * 40)))
    path = control.socket_path(tmp_path)
    assert len(str(path)) > 108
    assert with_server(path, lambda: control.request(path, {"op": "status"}))["ok"]


def test_socket_path_is_the_same_through_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert control.socket_path(tmp_path / "link") == control.socket_path(tmp_path)
    assert control.socket_path(tmp_path / "other") != control.socket_path(tmp_path)


def test_runtime_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "theirs"
    directory.mkdir(mode=0o700)
    monkeypatch.setenv("WSFS_RUNTIME_DIR", str(directory))
    directory.chmod(0o777)
    with pytest.raises(MountError, match="written to by others"):
        control.socket_path(tmp_path)
    directory.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(MountError, match="not a directory of yours"):
        control.socket_path(tmp_path)
    monkeypatch.setenv("WSFS_RUNTIME_DIR", str(tmp_path / "link"))
    (tmp_path / "link").symlink_to(directory)
    with pytest.raises(MountError):
        control.socket_path(tmp_path)


def test_runtime_directories_by_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSFS_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/me")
    assert control.runtime_dir(0) == Path("/run/wsfs")
    assert control.runtime_dir(999_999) == Path("/tmp/wsfs-999999")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert control.runtime_dir() == Path("/run/user/me/wsfs")


def test_records_survive_and_are_private(tmp_path: Path, runtime: Path) -> None:
    assert control.read_record(tmp_path) is None
    control.write_record(tmp_path, {"state": "ERROR", "reason": "no marker", "exit_code": 24})
    control.write_record(tmp_path, {"state": "STOPPED"})
    assert control.read_record(tmp_path) == {"state": "STOPPED"}
    (record,) = runtime.glob("*")
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    record.write_text("{")
    assert control.read_record(tmp_path) is None


def test_errors_by_exit_code() -> None:
    assert type(control.error_with_code(22, "x")) is FormatError
    unknown = control.error_with_code(99, "x")
    assert type(unknown) is WsfsError
    assert unknown.exit_code == 99
    assert control.sentence(MountBusyError()) == "The mount is in use and cannot be unmounted"


def test_every_error_has_an_exit_code_of_its_own() -> None:
    classes = [WsfsError]
    for cls in classes:
        classes.extend(cls.__subclasses__())
    codes = [cls.exit_code for cls in classes if cls.__module__ == "wsfs.errors"]
    assert len(codes) == len(set(codes))


def test_who_waits_is_told_meanwhile_and_answered_at_the_end(tmp_path: Path) -> None:
    """Lines of progress as often as the client wants them, then the response; without being asked, none."""
    path = control.socket_path(tmp_path)
    told: list[dict[str, Any]] = []
    enough = threading.Event()

    def tell(account: dict[str, Any]) -> None:
        told.append(account)
        if len(told) == 3:
            enough.set()

    async def work(message: dict[str, Any]) -> dict[str, Any]:
        if "progress" in message:
            await trio.to_thread.run_sync(enough.wait, 20)
        if message["op"] == "fail":
            raise SyncFailedError("the store is down")
        return {"files": 3}

    def client() -> None:
        assert control.request(path, {"op": "sync", "progress": 0.1}, tell=tell) == {"ok": True, "files": 3}
        assert told[:3] == [{"completed": 1}] * 3
        with pytest.raises(SyncFailedError, match="down"):
            control.request(path, {"op": "fail", "progress": 0.1}, tell=tell)
        told.clear()
        assert control.request(path, {"op": "sync"}, tell=tell)["files"] == 3
        assert told == []
        with pytest.raises(UsageError, match="positive"):
            control.request(path, {"op": "sync", "progress": -1})

    with_server(path, client, work, lambda: {"completed": 1})


def test_who_waits_hears_from_a_daemon_that_has_nothing_to_tell(tmp_path: Path) -> None:
    """A long wait with signs of life is none too long; one in silence is, and then it is said what to do."""
    path = control.socket_path(tmp_path)
    told: list[dict[str, Any]] = []

    async def work(message: dict[str, Any]) -> dict[str, Any]:
        await trio.sleep(2.5)
        return {"files": 3}

    def client() -> None:
        answer = control.request(path, {"op": "sync", "progress": 0.1}, timeout=1.5, tell=told.append)
        assert answer["files"] == 3
        assert told == []
        with pytest.raises(control.SilentError, match=r"did not answer within 1\.5 s.*kill -9"):
            control.request(path, {"op": "sync"}, timeout=1.5)

    with_server(path, client, work, lambda: None)


@pytest.mark.parametrize("command", ["sync", "stop"])
def test_a_save_does_not_wait_for_ever_for_a_daemon_that_hangs(
    command: str, tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even before it has the kernel hand over what it holds, which nobody would take."""
    monkeypatch.setattr(daemon, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(mounts, "find_wsfs", lambda _where: Mount(1, "0:1", str(tmp_path), "fuse.wsfs", "", ()))
    monkeypatch.setattr(mounts, "is_dead", lambda _where: False)
    monkeypatch.setattr(mounts, "hand_over", lambda *_args, **_options: pytest.fail("this would hang"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control.socket_path(tmp_path)))
        listener.listen()
        with pytest.raises(control.SilentError, match="kill -9"):
            getattr(daemon, command)(tmp_path)


@pytest.mark.parametrize("sign", [None, {"completed": 1}])
def test_a_stop_with_a_deadline_does_not_wait_much_longer_than_that(
    sign: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the daemon hangs or only says that it is at work: it is said where the changes are, and what to do."""
    monkeypatch.setattr(daemon, "MARGIN_SECONDS", 0.3)
    monkeypatch.setattr(mounts, "find_wsfs", lambda _where: Mount(1, "0:1", str(tmp_path), "fuse.wsfs", "", ()))
    control.write_record(tmp_path, {"cache_dir": "/the/cache"})

    async def work(message: dict[str, Any]) -> dict[str, Any]:
        assert message["deadline"] == 0.2
        await trio.sleep(60)
        return {}

    def client() -> None:
        began = time.monotonic()
        with pytest.raises(daemon.UnansweredError, match=r"not answer within 0\.5 s;.* /the/cache.*kill -9") as caught:
            daemon.stop(tmp_path, 0.2)
        assert time.monotonic() - began < 30
        assert caught.value.exit_code == 3

    monkeypatch.setattr(daemon, "SIGN_SECONDS", 0.1)
    with_server(control.socket_path(tmp_path), client, work, lambda: sign)


def test_nor_for_the_end_of_a_daemon_that_has_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "MARGIN_SECONDS", 0.2)
    monkeypatch.setattr(mounts, "find_wsfs", lambda _where: None)

    def client() -> None:
        with pytest.raises(MountError, match=f"everything is saved.*kill -9 {os.getpid()}"):
            daemon.stop(tmp_path, 5)

    with_server(control.socket_path(tmp_path), client)


def test_an_answer_that_is_ready_when_the_server_ends_is_delivered_with_progress_too(tmp_path: Path) -> None:
    path = control.socket_path(tmp_path)
    answers: list[dict[str, Any]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:

            async def stop(message: dict[str, Any]) -> dict[str, Any]:
                await trio.sleep(0.25)
                nursery.cancel_scope.cancel()
                return {"files": 3}

            await nursery.start(control.serve, path, stop, lambda: {"completed": 1})
            message = {"op": "stop", "progress": 0.1}
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: answers.append(control.request(path, message)))

    trio.run(main)
    assert answers == [{"ok": True, "files": 3}]


@pytest.mark.parametrize("accepts", [False, True], ids=["before it accepts", "after it accepted"])
def test_the_status_of_a_daemon_that_is_being_killed(accepts: bool, tmp_path: Path, runtime: Path) -> None:
    """It hangs up on those who ask, and is gone a moment later: what is said is that it died."""
    control.write_record(tmp_path, {"state": "RUNNING", "cache_dir": "/the/cache"})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control.socket_path(tmp_path)))
        listener.listen()

        def die() -> None:
            select.select([listener], [], [], 10)
            if accepts:
                listener.accept()[0].close()
                time.sleep(0.2)
            listener.close()

        dying = threading.Thread(target=die)
        dying.start()
        found = daemon.status(tmp_path)
        dying.join()
    assert found["state"] == "ERROR"
    assert found["reason"].startswith("the daemon died; changes that were not saved stay in /the/cache")


def test_the_status_of_a_daemon_that_only_hangs_up(
    tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "DYING_SECONDS", 0.1)
    control.write_record(tmp_path, {"state": "RUNNING"})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control.socket_path(tmp_path)))
        listener.listen()

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        found = daemon.status(tmp_path)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert found["state"] == "ERROR"
    assert re.match("the daemon (hung up|ended before it answered).*kill -9", found["reason"])
