"""Tells the service manager how we are: sd_notify(3), and nothing at all where nobody listens.

Never raises and never blocks for long: a message that cannot be delivered must not disturb a mount.
"""

from __future__ import annotations

import os
from typing import Protocol


class _Sender(Protocol):
    def notify(self, state: str) -> None: ...


class Notifier:
    """The way to systemd of this process. Safe to call from any thread."""

    def __init__(self, sender: _Sender | None) -> None:
        self._sender = sender

    @classmethod
    def from_environment(cls) -> Notifier:
        """One for $NOTIFY_SOCKET, or a silent one where the service manager wants no word from us."""
        if not os.environ.get("NOTIFY_SOCKET"):
            return cls(None)
        from sdnotify import SystemdNotifier

        return cls(SystemdNotifier())

    def ready(self, status: str = "") -> None:
        """The mount answers: units ordered after this one may start."""
        self._send("READY=1", status)

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(status=status)

    def stopping(self, status: str = "") -> None:
        """A stop has begun."""
        self._send("STOPPING=1", status)

    def extend_timeout(self, seconds: float, status: str = "") -> None:
        """Ask for `seconds` more from now before systemd ends a start or stop that makes progress."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}", status)

    def _send(self, message: str = "", status: str = "") -> None:
        if self._sender is None:
            return
        # The library encodes as Latin-1 and drops a whole message that it cannot encode.
        line = status.replace("\n", " ").encode("ascii", "replace").decode()
        self._sender.notify("\n".join(filter(None, [message, f"STATUS={line}" if line else ""])))
