"""A proxy between a mount and its S3 server that misbehaves as told, as a program: proxy.py HOST:PORT.

It prints its own endpoint, then reads one JSON object a line: {"mode": name, "method": "PUT", "part": "/packs/",
"times": 1} begins to treat requests of this method (any, if it is left out) for keys with this part in them so, at most
so many times; {} ends that, and lets go what it holds up. Each line is answered with the number of requests that were
treated since the line before. In a process of its own, for a test that waits for a mount may hold up everything else in
its process.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field

ANSWERS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "slowdown": ("503 Slow Down", "SlowDown"),
    "expired": ("403 Forbidden", "ExpiredToken"),
    "full": ("507 Insufficient Storage", "InsufficientStorage"),
    "deleted": ("404 Not Found", "NoSuchKey"),
}
MODES = (
    "refuse",
    "reset",
    "stall request",
    "stall response",
    "dribble",
    "delay",
    *ANSWERS,
    "truncated",
    "flipped",
    "stale",
    "applied, error",
    "applied, closed",
    "applied, no answer",
)


class Gone(Exception):
    """The other side has closed the connection."""


class Stream:
    """A connection that can be read by lines and by count."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._rest = b""

    def head(self) -> bytes:
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def take(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._more()
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def chunks(self) -> bytes:
        """A body in chunks, put together."""
        body = b""
        while size := int(self.line().partition(b";")[0], 16):
            body += self.take(size)
            self.line()
        while self.line():
            pass
        return body

    def line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._more()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _more(self) -> None:
        piece = self.connection.recv(1 << 16)
        if not piece:
            raise Gone
        self._rest += piece


@dataclass
class Message:
    """A request or an answer."""

    first: str
    fields: dict[str, str]
    body: bytes = b""

    @classmethod
    def parse(cls, head: bytes) -> Message:
        first, *lines = head.decode("latin-1").strip().split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return cls(first, {name.strip().lower(): value.strip() for name, value in pairs})

    @property
    def length(self) -> int:
        return int(self.fields.get("content-length", "0"))

    @property
    def head(self) -> bytes:
        lines = [self.first, *(f"{name}: {value}" for name, value in self.fields.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass
class Rule:
    mode: str = ""
    method: str = ""
    part: str = ""
    times: int | None = None
    over: threading.Event = field(default_factory=threading.Event)


class Proxy:
    def __init__(self, upstream: tuple[str, int]) -> None:
        self._upstream = upstream
        self._rule = Rule()
        self._treated = 0
        self._mutex = threading.Lock()
        self._open: set[socket.socket] = set()
        self._heads: dict[str, Message] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address = self._listener.getsockname()
        self._start()
        self.endpoint = f"http://127.0.0.1:{self._address[1]}"

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def set(self, rule: Rule) -> int:
        """Treat requests by a new rule; the number that the old one has treated."""
        with self._mutex:
            old, self._rule = self._rule, rule
            treated, self._treated = self._treated, 0
            connections = list(self._open)
        old.over.set()
        if old.mode == "refuse" != rule.mode:
            self._listener = socket.create_server(self._address)
            self._start()
        if rule.mode == "refuse" != old.mode:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for connection in connections:
                abort(connection)
        return treated

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._mutex:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, contextlib.suppress(Gone, OSError):
                stream = Stream(connection)
                while True:
                    self._exchange(stream)
        finally:
            with self._mutex:
                self._open.discard(connection)

    def _matched(self, request: Message) -> Rule:
        method, target = request.first.split(" ")[:2]
        with self._mutex:
            rule = self._rule
            if not rule.mode or rule.method not in ("", method) or rule.part not in target:
                return Rule()
            if rule.times is not None:
                if not rule.times:
                    return Rule()
                rule.times -= 1
            self._treated += 1
            return rule

    def _exchange(self, client: Stream) -> None:
        request = Message.parse(client.head())
        rule = self._matched(request)
        if rule.mode == "stall request":
            rule.over.wait()
            raise Gone
        if rule.mode == "reset":
            abort(client.connection)
            raise Gone
        if request.fields.pop("expect", "").lower() == "100-continue":
            client.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.body = client.take(request.length)
        if rule.mode in ANSWERS:
            answer = refusal(*ANSWERS[rule.mode])
        else:
            if rule.mode == "delay":
                threading.Event().wait(random.uniform(0.02, 0.5))
            answer = self._ask(request, rule)
        self._reply(client, request, answer, rule)

    def _ask(self, request: Message, rule: Rule) -> Message:
        """What the server says; for a stale read what it said first."""
        method, target = request.first.split(" ")[:2]
        key = f"{method} {target}" if target.endswith("/HEAD") else ""
        if rule.mode == "stale" and key in self._heads:
            return self._heads[key]
        with socket.create_connection(self._upstream) as connection:
            connection.sendall(request.head + request.body)
            server = Stream(connection)
            answer = Message.parse(server.head())
            if method != "HEAD" and not answer.first.startswith(("HTTP/1.1 204", "HTTP/1.1 304")):
                if answer.fields.pop("transfer-encoding", "").lower() == "chunked":
                    answer.body = server.chunks()
                    answer.fields["content-length"] = str(len(answer.body))
                else:
                    answer.body = server.take(answer.length)
        if key and method == "GET":
            self._heads.setdefault(key, answer)
        return answer

    def _reply(self, client: Stream, request: Message, answer: Message, rule: Rule) -> None:
        connection, half = client.connection, len(answer.body) // 2
        match rule.mode:
            case "applied, closed":
                raise Gone
            case "applied, no answer":
                rule.over.wait()
                raise Gone
            case "applied, error":
                answer = refusal(*ANSWERS["500"])
            case "stall response":
                connection.sendall(answer.head + answer.body[:half] if half else answer.head[:20])
                rule.over.wait()
                raise Gone
            case "dribble":
                for byte in answer.head + answer.body:
                    if rule.over.wait(0.2):
                        raise Gone
                    connection.sendall(bytes([byte]))
                return
            case "truncated" if half:
                connection.sendall(answer.head + answer.body[:half])
                raise Gone
            case "flipped" if half:
                body = bytearray(answer.body)
                body[half] ^= 4
                answer = Message(answer.first, answer.fields, bytes(body))
        connection.sendall(answer.head + answer.body)
        if "close" in (answer.fields.get("connection", "").lower(), request.fields.get("connection", "").lower()):
            raise Gone


def refusal(status: str, code: str) -> Message:
    body = f"<Error><Code>{code}</Code><Message>by the proxy</Message></Error>".encode()
    fields = {
        "content-type": "application/xml",
        "content-length": str(len(body)),
        "date": "Thu, 01 Jan 2026 00:00:00 GMT",
    }
    return Message(f"HTTP/1.1 {status}", fields, body)


def abort(connection: socket.socket) -> None:
    """Close with RST."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
        connection.close()


def main() -> None:
    host, port = sys.argv[1].rsplit(":", 1)
    proxy = Proxy((host, int(port)))
    print(proxy.endpoint, flush=True)
    for line in sys.stdin:
        print(proxy.set(Rule(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
