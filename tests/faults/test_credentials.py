"""Credentials that expire while a mount is up: whoever renews them renews a file, and the store reads it again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from wsfs.errors import AccessDeniedError, TransientStoreError
from wsfs.store.s3 import S3Store

OLD, NEW = "old-key", "new-key"


class Server(ThreadingHTTPServer):
    """Takes PUTs that are signed with the valid key; the others it refuses, as S3 does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.valid = OLD
        self.code = "ExpiredToken"
        self.done: list[tuple[str, str | None]] = []
        self.refused = 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if f"Credential={self.server.valid}/" in self.headers["Authorization"]:
            self.server.done.append((self.path, self.headers["If-Match"]))
            status, body = 200, b""
        else:
            self.server.refused += 1
            status, body = 403, f"<Error><Code>{self.server.code}</Code></Error>".encode()
        self.send_response(status)
        self.send_header("ETag", '"etag"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credentials file, and nothing else that the SDK could read."""
    path = tmp_path / "credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    write(path, OLD)
    return path


def write(path: Path, key: str) -> None:
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


@pytest.fixture
def store(server: Server, credentials: Path) -> Iterator[S3Store]:
    store = S3Store("bucket", endpoint_url=f"http://127.0.0.1:{server.server_port}", addressing_style="path")
    yield store
    store.close()


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
def test_renewed_credentials_are_read_again(server: Server, store: S3Store, credentials: Path, code: str) -> None:
    """The refused request is sent again with them, a compare-and-swap too: what is refused was not done."""
    server.code = code
    store.put("HEAD", b"1", if_match="a")
    server.valid = NEW
    write(credentials, NEW)
    store.put("HEAD", b"2", if_match="b")
    assert server.done == [("/bucket/HEAD", "a"), ("/bucket/HEAD", "b")]
    assert server.refused == 1


def test_credentials_that_nobody_has_renewed_yet(server: Server, store: S3Store, credentials: Path) -> None:
    """It says so, at once and not for ever: as soon as there are new ones, the same store works again."""
    server.valid = NEW
    for _ in range(2):
        with pytest.raises(AccessDeniedError, match="expired: renew them"):
            store.put("key", b"x")
    assert server.refused == 4
    write(credentials, NEW)
    store.put("key", b"x")
    assert server.done == [("/bucket/key", None)]


def test_other_refusals_are_not_repeated(server: Server, store: S3Store) -> None:
    server.valid, server.code = NEW, "AccessDenied"
    with pytest.raises(AccessDeniedError):
        store.put("key", b"x")
    assert server.refused == 1


class Program:
    """A credential_process: it hangs while it is told to, and notes each run."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "process"
        self._hang = directory / "hang"
        self._answer = directory / "answer"
        self._runs = directory / "runs"
        self.path.write_text(
            f"#!/bin/sh\necho >> {self._runs}\nwhile [ -e {self._hang} ]; do sleep 0.05; done\ncat {self._answer}\n"
        )
        self.path.chmod(0o755)
        self.gives(None)

    def gives(self, seconds: float | None) -> None:
        """Credentials that are valid for so long."""
        answer = {"Version": 1, "AccessKeyId": OLD, "SecretAccessKey": "secret", "SessionToken": "token"}
        if seconds is not None:
            answer["Expiration"] = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        self._answer.write_text(json.dumps(answer))

    def hangs(self, now: bool) -> None:
        if now:
            self._hang.touch()
        else:
            self._hang.unlink()

    @property
    def runs(self) -> int:
        return len(self._runs.read_text())


@pytest.fixture
def program(tmp_path: Path, credentials: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    program = Program(tmp_path)
    credentials.unlink()
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {program.path}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    yield program
    program._hang.unlink(missing_ok=True)


@pytest.fixture
def impatient(server: Server, program: Program) -> Iterator[S3Store]:
    """A request may wait for half a second for credentials."""
    endpoint = f"http://127.0.0.1:{server.server_port}"
    store = S3Store("bucket", endpoint_url=endpoint, addressing_style="path", credentials_timeout=0.5)
    yield store
    store.close()


def fails_in_time(store: S3Store) -> None:
    began = time.monotonic()
    with pytest.raises(TransientStoreError, match="does not answer; check credential_process"):
        store.put("key", b"x")
    assert time.monotonic() - began < 15


def works_soon(store: S3Store) -> None:
    """The store works again, and who tries does not wait for long."""
    give_up = time.monotonic() + 60
    while True:
        try:
            store.put("key", b"x")
        except TransientStoreError:
            assert time.monotonic() < give_up
        else:
            return


def test_a_credential_process_that_hangs(server: Server, program: Program, impatient: S3Store) -> None:
    """Each request ends, and says so; one program is run for all of them, and what it gives at last is used."""
    program.hangs(True)
    fails_in_time(impatient)
    fails_in_time(impatient)
    with pytest.raises(TransientStoreError, match="does not answer; check credential_process"):
        impatient.credentials_source()
    assert program.runs == 1
    program.hangs(False)
    works_soon(impatient)
    assert program.runs == 1
    assert server.done == [("/bucket/key", None)]


def test_a_store_is_closed_while_a_credential_process_hangs(program: Program, impatient: S3Store) -> None:
    program.hangs(True)
    fails_in_time(impatient)
    began = time.monotonic()
    impatient.close()
    assert time.monotonic() - began < 15


def test_a_credential_process_that_hangs_when_credentials_expire(
    server: Server, program: Program, impatient: S3Store
) -> None:
    program.gives(30)
    works_soon(impatient)
    program.hangs(True)
    fails_in_time(impatient)
    fails_in_time(impatient)
    program.gives(3600)
    program.hangs(False)
    works_soon(impatient)
    runs = program.runs
    impatient.put("key", b"x")
    assert program.runs == runs
    assert len(server.done) == 3


def test_nobody_waits_for_a_renewal_while_credentials_are_valid(
    server: Server, program: Program, impatient: S3Store
) -> None:
    program.gives(300)
    works_soon(impatient)
    program.hangs(True)
    for _ in range(2):
        impatient.put("key", b"x")
    assert len(server.done) == 3
