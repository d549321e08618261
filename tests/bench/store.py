"""The S3 server that the bench talks to: one that is named, Ceph RGW, or moto; always through the counting proxy."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
BUCKET = "bench"
PART = 16 << 20
"""The size of the objects of the raw transfers: what a pack has."""

_CEPH_ENDPOINT = "http://127.0.0.1:8090"
_KEYS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_DEFAULT_REGION": "us-east-1"}


class Unable(Exception):
    """Something cannot be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests to the store, and bytes of their bodies; `kinds` splits them up: method and part of the key."""

    requests: int
    sent: int
    received: int
    kinds: dict[str, list[int]]

    @classmethod
    def of(cls, kinds: dict[str, list[int]]) -> Traffic:
        total = [sum(count[i] for count in kinds.values()) for i in range(3)]
        return cls(total[0], total[1], total[2], kinds)


class S3:
    """A server and the proxy before it. Credentials are put into the environment, where every system finds them."""

    def __init__(self, endpoint: str | None, work: Path) -> None:
        self._work = work
        self._server: subprocess.Popen[str] | None = None
        self._ceph: Path | None = None
        self.kind = "named"
        direct = endpoint or self._start()
        if self.kind != "named":
            os.environ.update(_KEYS)
        address = urlsplit(direct)
        self._proxy = subprocess.Popen(
            [sys.executable, str(HERE / "proxy.py"), f"{address.hostname}:{address.port or 80}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # else a Ctrl-C ends it before we have tidied up
        )
        assert self._proxy.stdout is not None
        self.endpoint = self._proxy.stdout.readline().strip()
        self.latency = 0.0
        client = self.client()
        try:
            if BUCKET not in [one["Name"] for one in client.list_buckets()["Buckets"]]:
                client.create_bucket(Bucket=BUCKET)
        except BotoCoreError as exc:
            self.close()
            raise Unable(f"the store cannot be used: {exc}") from exc

    def _start(self) -> str:
        script = Path(os.environ.get("WSFS_CEPH_SCRIPT", REPOSITORY.parent / "shared/ceph-rgw-up.sh"))
        if os.access(script, os.X_OK) and subprocess.run(["which", "radosgw"], capture_output=True).returncode == 0:
            if listening(_CEPH_ENDPOINT):
                raise Unable(f"something listens at {_CEPH_ENDPOINT} already: stop it, or use --endpoint-url")
            self.kind = "Ceph RGW, in memory"
            self._ceph = self._work / "ceph"
            with (self._work / "ceph.log").open("w") as log:
                subprocess.run(
                    [str(script), str(self._ceph)], check=True, stdout=log, stderr=log, start_new_session=True
                )
            return _CEPH_ENDPOINT
        self.kind = "moto (slow: no figures of throughput)"
        self._server = subprocess.Popen(
            [
                sys.executable,
                str(REPOSITORY / "tests/integration/s3server.py"),
                os.devnull,
                str(self._work / "no"),
                BUCKET,
            ],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def client(self) -> Any:
        """A boto3 client that goes through the proxy."""
        config = Config(max_pool_connections=64, s3={"addressing_style": "path"})
        return boto3.session.Session().client("s3", endpoint_url=self.endpoint, config=config)

    def set_latency(self, seconds: float) -> None:
        self.latency = seconds
        self._order({"latency": seconds})

    def traffic(self) -> Traffic:
        """What went through since the last call."""
        return Traffic.of(self._order({"reset": True}))

    def _order(self, order: dict[str, Any]) -> dict[str, list[int]]:
        assert self._proxy.stdin is not None
        assert self._proxy.stdout is not None
        print(json.dumps(order), file=self._proxy.stdin, flush=True)
        answer: dict[str, list[int]] = json.loads(self._proxy.stdout.readline())
        return answer

    def remove(self, prefix: str) -> None:
        """Delete all objects under a prefix."""
        client = self.client()
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/"):
            keys = [{"Key": one["Key"]} for one in page.get("Contents", ())]
            if keys:
                client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys, "Quiet": True})

    def close(self) -> None:
        for process in (self._proxy, self._server):
            if process is not None:
                process.kill()
                process.wait()
        if self._ceph is not None:
            for file in self._ceph.glob("run/*.pid"):
                pid = int(file.read_text())
                command = Path(f"/proc/{pid}/cmdline")
                # Only what we started: the number may belong to another process by now.
                if command.exists() and (b"ceph" in command.read_bytes() or b"radosgw" in command.read_bytes()):
                    os.kill(pid, signal.SIGKILL)


def listening(endpoint: str) -> bool:
    address = urlsplit(endpoint)
    with contextlib.suppress(OSError), socket.create_connection((address.hostname, address.port)):
        return True
    return False


def raw_put(s3: S3, prefix: str, size: int, threads: int = 16) -> float:
    """Seconds that boto3 takes to put `size` bytes as objects of 16 MiB, several at a time."""
    client = s3.client()
    data = os.urandom(PART)
    pieces = [min(PART, size - at) for at in range(0, size, PART)]
    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        puts = (
            pool.submit(client.put_object, Bucket=BUCKET, Key=f"{prefix}/{number}", Body=data[:length])
            for number, length in enumerate(pieces)
        )
        for put in list(puts):
            put.result()
    return time.monotonic() - began


def raw_get(s3: S3, prefix: str, threads: int = 16) -> float:
    """Seconds that boto3 takes to get what `raw_put` has put."""
    client = s3.client()
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")["Contents"]]

    def get(key: str) -> int:
        return len(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    began = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(get, keys))
    return time.monotonic() - began
