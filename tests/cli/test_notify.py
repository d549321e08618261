"""Words to systemd: the protocol's lines on a datagram socket, and silence where nobody listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from wsfs.notify import Notifier


def test_messages_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notifier = Notifier.from_environment()
        notifier.ready("up")
        notifier.status("1 \u20ac\nsaved")
        notifier.stopping()
        notifier.extend_timeout(1.5, "saving")
        received = [manager.recv(4096).decode() for _ in range(4)]
        notifier._sender.socket.close()  # type: ignore[union-attr]
    assert received == [
        "READY=1\nSTATUS=up",
        "STATUS=1 ? saved",
        "STOPPING=1",
        "EXTEND_TIMEOUT_USEC=1500000\nSTATUS=saving",
    ]


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier.from_environment().ready("up")
