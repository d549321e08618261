"""A proxy before an S3 server that adds latency and counts, as a program: proxy.py HOST:PORT.

It prints its own endpoint, then reads one JSON object a line: {"latency": 0.02, "reset": true} sets how long a round
trip takes, in seconds, and forgets what was counted. Each line is answered with what was counted up to it:
{"PUT packs": [requests, bytes sent, bytes received], ...}. A kind is the method and what stands behind the prefix in
the key, up to the next slash.

A round trip is waited for once a connection, once a request, and once for "100 Continue", as on a real line; bytes on
the way cost nothing. Bodies go through a pipe by splice(2), so that the proxy takes little of the processor.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.proxy import Gone, Message, Stream

_PIPE: Final = 1 << 20
_KINDS: Final = re.compile(r"^/[^/?]+/[^/?]+/([A-Za-z]+)(?:[/?]|$)")
"""/bucket/prefix/KIND/..."""


class Pipe(Stream):
    """A connection whose bodies can be handed on without being looked at."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._out, self._in = os.pipe()

    def close(self) -> None:
        self.connection.close()
        os.close(self._out)
        os.close(self._in)

    def hand_on(self, to: socket.socket, count: int) -> None:
        """Send the next `count` bytes to another connection."""
        known = self._rest[:count]
        self._rest = self._rest[count:]
        to.sendall(known)
        count -= len(known)
        while count:
            moved = os.splice(self.connection.fileno(), self._in, min(count, _PIPE))
            if not moved:
                raise Gone
            count -= moved
            while moved:
                moved -= os.splice(self._out, to.fileno(), moved)

    def hand_on_chunks(self, to: socket.socket) -> int:
        """Send a chunked body on; how many bytes it has."""
        total = 0
        while True:
            line = self.line()
            size = int(line.split(b";")[0], 16)
            to.sendall(line)
            self.hand_on(to, size + 2)
            total += size
            if not size:
                return total

    def line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._more()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line + b"\r\n"


class Counting:
    """Relays every connection to `upstream`, and counts."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._mutex = threading.Lock()
        self._counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        self.latency = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def tell(self, *, reset: bool) -> dict[str, list[int]]:
        """What was counted since the last reset."""
        with self._mutex:
            counts = {kind: list(count) for kind, count in self._counts.items()}
            if reset:
                self._counts.clear()
            return counts

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        client = Pipe(connection)
        time.sleep(self.latency)
        try:
            server = Pipe(socket.create_connection(self._upstream))
        except OSError:
            client.close()
            return
        with contextlib.suppress(Gone, OSError):
            while self._exchange(client, server):
                pass
        client.close()
        server.close()

    def _exchange(self, client: Pipe, server: Pipe) -> bool:
        """One request and its answer; False when the connection ends with it."""
        request = Message.parse(client.head())
        method, target = request.first.split(" ")[:2]
        if request.fields.pop("expect", "").lower() == "100-continue":
            time.sleep(self.latency)
            client.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        server.connection.sendall(request.head)
        sent = self._body(client, server.connection, request)
        answer = Message.parse(server.head())
        time.sleep(self.latency)
        bodiless = method == "HEAD" or answer.first.split(" ")[1] in ("204", "304")
        # Counted before the client has it: who has an answer may ask for the counts.
        self._count(method, target, 1, sent, 0 if bodiless else answer.length)
        client.connection.sendall(answer.head)
        if not bodiless:
            received = self._body(server, client.connection, answer)
            self._count(method, target, 0, 0, received - answer.length)
        return "close" not in (answer.fields.get("connection", "").lower(), request.fields.get("connection", ""))

    def _count(self, method: str, target: str, *numbers: int) -> None:
        found = _KINDS.match(target)
        with self._mutex:
            count = self._counts[f"{method} {found[1] if found else 'other'}"]
            count[:] = [a + b for a, b in zip(count, numbers, strict=True)]

    @staticmethod
    def _body(source: Pipe, to: socket.socket, message: Message) -> int:
        if "chunked" in message.fields.get("transfer-encoding", "").lower():
            return source.hand_on_chunks(to)
        source.hand_on(to, message.length)
        return message.length


def main() -> None:
    host, port = sys.argv[1].rsplit(":", 1)
    proxy = Counting((host, int(port)))
    print(proxy.endpoint, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        counts = proxy.tell(reset=order.get("reset", False))
        proxy.latency = order.get("latency", proxy.latency)
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
