"""Stores to test: in memory, in a directory, and S3 against a server on the loopback."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wsfs.errors import StoreError
from wsfs.store.base import Blob, ObjectInfo, Store
from wsfs.store.directory import DirectoryStore
from wsfs.store.memory import MemoryStore
from wsfs.store.sealed import Cipher, SealedStore

BUCKET = "test-bucket"


@pytest.fixture(scope="session")
def aws_environment() -> Iterator[None]:
    """Dummy credentials, and nothing of this machine's own configuration."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_CA_BUNDLE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing-key-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="session")
def s3_endpoint(aws_environment: None) -> Iterator[str]:
    """A moto server with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    # moto checks a condition and writes without a lock in between: one request at a time, or the CAS tests
    # would test moto's races instead of our requests.
    turn = threading.Lock()
    assert server._server is not None
    app: Any = server._server.app

    def one_at_a_time(environ: Any, start_response: Any) -> list[bytes]:
        with turn:
            return list(app(environ, start_response))

    server._server.app = one_at_a_time
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.session.Session().client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket=BUCKET)
    client.close()
    yield endpoint
    server.stop()
    server._server.server_close()


_prefixes = itertools.count()


@pytest.fixture
def s3_store(s3_endpoint: str) -> Iterator[Store]:
    from wsfs.store.s3 import S3Store

    store = S3Store(BUCKET, f"nested/prefix-{next(_prefixes)}", endpoint_url=s3_endpoint)
    yield store
    store.close()


@pytest.fixture(params=["memory", "directory", "s3", "sealed"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """One empty store of each kind."""
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "directory":
        yield DirectoryStore(str(tmp_path / "store"))
    elif request.param == "sealed":
        yield SealedStore(MemoryStore(), Cipher(bytes(32), "id"))
    else:
        yield request.getfixturevalue("s3_store")


class ScriptedStore:
    """A store whose calls fail as told: before each call the next entry of `script` is taken.

    An exception is raised instead of the call; ("after", exception) makes the call and raises then, as when
    the answer is lost; None lets it through, as does an empty script.
    """

    def __init__(self, inner: Store, script: list[Any] | None = None) -> None:
        self.inner = inner
        self.url = inner.url
        self.script: list[Any] = [] if script is None else script
        self.calls: list[str] = []

    def _do(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, StoreError):
            raise step
        result = call()
        if step is not None:
            raise step[1]
        return result

    def get(self, key: str, start: int | None = None, length: int | None = None) -> Blob:
        return self._do("get", lambda: self.inner.get(key, start, length))

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_none_match: bool = False) -> str:
        return self._do("put", lambda: self.inner.put(key, data, if_match=if_match, if_none_match=if_none_match))

    def delete(self, key: str) -> None:
        self._do("delete", lambda: self.inner.delete(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.calls.append("list")
        for info in self.inner.list(prefix):
            step = self.script.pop(0) if self.script else None
            if step is not None:
                raise step
            yield info

    def close(self) -> None:
        self.inner.close()


@pytest.fixture
def scripted_store() -> type[ScriptedStore]:
    return ScriptedStore


class ScriptedServer:
    """An HTTP server that gives each connection one answer from a list, and then closes it.

    An answer is bytes, sent as they are; ("reset", bytes) aborts the connection after them; ("stall", bytes)
    sends them and then nothing until the test is over; ("dribble", bytes) sends one every 0.05 s, and ("dribble body",
    bytes) does so behind the head. `requests` holds the heads that were received. It waits `pause`
    seconds after each 64 KiB of a body.
    """

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[bytes] = []
        self.pause = 0.0
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                piece = connection.recv(65536)
                if not piece:
                    return
                head += piece
            head, _, body = head.partition(b"\r\n\r\n")
            self.requests.append(head)
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            if fields.get(b"expect") == b"100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            missing = int(fields.get(b"content-length", b"0")) - len(body)
            while missing > 0:
                piece = connection.recv(65536)
                if not piece:
                    return
                missing -= len(piece)
                self._over.wait(self.pause)
            answer = self.answers.pop(0)
            manner, data = answer if isinstance(answer, tuple) else ("close", answer)
            if manner.startswith("dribble"):
                at = data.index(b"\r\n\r\n") + 4 if manner == "dribble body" else 0
                connection.sendall(data[:at])
                self._dribble(connection, data[at:])
                return
            connection.sendall(data)
            if manner == "stall":
                self._over.wait()
            elif manner == "reset":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _dribble(self, connection: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            for byte in data:
                if self._over.wait(0.05):
                    return
                connection.sendall(bytes([byte]))

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def scripted_server(aws_environment: None) -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.close()
