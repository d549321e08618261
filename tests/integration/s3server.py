"""A moto server with one bucket, as a program: s3server.py LOG DELAY BUCKET prints its endpoint and serves.

In a process of its own, for a test that waits for the mount may hold up everything else in its process. Each request is
a line in LOG: method, key, range. The file DELAY, if it exists, says which requests to slow down.
"""

from __future__ import annotations

import io
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer


def rule(delay: Path) -> tuple[str, str, float]:
    """Method, part of the key, and for how many seconds such a request waits; infinite: as long as the rule holds."""
    try:
        method, part, seconds = delay.read_text().split("\t")
    except (FileNotFoundError, ValueError):
        return "", "", 0
    return method, part, float(seconds)


def main(log: Path, delay: Path, bucket: str) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    assert server._server is not None
    app: Any = server._server.app
    turn = threading.Lock()

    def counted(environ: Any, start_response: Any) -> list[bytes]:
        method, key = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with log.open("a") as file:
            file.write(f"{method}\t{key}\t{environ.get('HTTP_RANGE', '')}\n")
        slow_method, part, seconds = rule(delay)
        if method == slow_method and part in key:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            if seconds == math.inf:
                while rule(delay) == (slow_method, part, seconds):
                    time.sleep(0.02)
            else:
                time.sleep(seconds)
        with turn:  # moto checks a condition and writes without a lock in between
            return list(app(environ, start_response))

    server._server.app = counted
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "us-east-1"}
    boto3.session.Session().client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=bucket)
    print(endpoint, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
