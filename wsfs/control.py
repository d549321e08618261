"""How commands talk to the daemon of a mount: a unix socket, and beside it a note of the last known state.

One connection carries one request and one response, each a JSON object on one line. A request with "progress":
SECONDS gets a line {"progress": object} as often as that while it is at work, before its response; an empty line, when
there is nothing to tell, says that the daemon is alive. The socket is
open to root and the daemon's own user only: its directory is theirs alone, and the kernel names the caller
(SO_PEERCRED). An operator, if there is one, may ask for the state and a save, and for nothing else. The server side
runs in the daemon's trio loop; the client side blocks and needs no trio, so that commands start quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsfs.errors import MountError, NotMountedError, UsageError, WsfsError
from wsfs.log import REPORT, get_log

if TYPE_CHECKING:
    import trio

log = get_log(__name__)

MAX_REQUEST = 64 * 1024
REQUEST_TIMEOUT = 10.0  # seconds for the request line to arrive; an answer may take as long as it needs
PROGRESS_SECONDS = 0.1  # between two lines, at least
OPERATOR_MAY = frozenset({"status", "sync"})
Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Account = Callable[[], dict[str, Any] | None]
_PROGRESS = b'{"progress": '
HANGS = "If that stays so, end its process with 'kill -9' and mount it again: what it had received is in its cache"


# --- where --------------------------------------------------------------------------------------------------


def runtime_dir(uid: int | None = None) -> Path:
    """The directory for the sockets of `uid`'s mounts (default: ours). Only computes: it may not exist."""
    if os.environ.get("WSFS_RUNTIME_DIR"):
        return Path(os.environ["WSFS_RUNTIME_DIR"])
    own = os.geteuid()
    uid = own if uid is None else uid
    if uid == 0:
        return Path("/run/wsfs")
    if uid == own and os.environ.get("XDG_RUNTIME_DIR"):
        return Path(os.environ["XDG_RUNTIME_DIR"], "wsfs")
    login = Path(f"/run/user/{uid}")
    return login / "wsfs" if login.is_dir() else Path(f"/tmp/wsfs-{uid}")  # noqa: S108 - its owner is checked


def real_path(mountpoint: str | os.PathLike[str]) -> str:
    """The path of a mount point as the kernel names it, without any request to what is mounted there.

    realpath(3) would ask the mount for its attributes: that fails when its daemon is dead, and in the daemon itself it
    would wait for its own answer. readlink(2) of a directory is refused by the kernel alone.
    """
    path = os.path.abspath(mountpoint)
    for _ in range(40):  # the kernel's own limit for links
        try:
            target = os.readlink(path)
        except OSError:
            break
        path = os.path.abspath(os.path.join(os.path.realpath(os.path.dirname(path)), target))
    parent, name = os.path.split(path)
    return os.path.join(os.path.realpath(parent), name)


def socket_path(mountpoint: str | os.PathLike[str], uid: int | None = None) -> Path:
    """The control socket of the mount at `mountpoint` made by `uid` (default: us).

    Our own directory is made if it is missing. Raises MountError if somebody else owns the directory or may
    write to it: they could answer in the daemon's place.
    """
    directory = runtime_dir(uid)
    owners = {os.geteuid(), os.geteuid() if uid is None else uid}
    if uid is None or uid == os.geteuid():
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700, parents=True)
    try:
        found = directory.lstat()
    except FileNotFoundError:
        found = None
    if found is not None:
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in owners:
            raise MountError(f"{directory} is not a directory of yours: remove it, or set WSFS_RUNTIME_DIR")
        if found.st_mode & 0o022:
            raise MountError(f"{directory} can be written to by others: chmod 700 it, or set WSFS_RUNTIME_DIR")
    name = hashlib.blake2b(os.fsencode(real_path(mountpoint)), digest_size=8).hexdigest()
    return directory / f"{name}.sock"


# --- last known state ---------------------------------------------------------------------------------------


def write_record(mountpoint: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """Note the last known state of a mount, atomically. It lives as long as the machine is up."""
    import tempfile  # only the daemon needs it

    path = socket_path(mountpoint).with_suffix(".json")
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.stem, delete=False) as file:
        json.dump(record, file, default=str)
    Path(file.name).replace(path)


def read_record(mountpoint: str | os.PathLike[str], uid: int | None = None) -> dict[str, Any] | None:
    """What write_record noted last, or None; also None when the note is not readable."""
    try:
        record = json.loads(socket_path(mountpoint, uid).with_suffix(".json").read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


# --- errors -------------------------------------------------------------------------------------------------


def as_wsfs_error(exc: BaseException) -> WsfsError | None:
    """The WsfsError that `exc` is, or that a trio nursery wrapped alone; else None."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc if isinstance(exc, WsfsError) else None


def sentence(exc: WsfsError) -> str:
    """What to tell the user: the message, or what the class stands for."""
    return str(exc) or (type(exc).__doc__ or "").splitlines()[0].rstrip(".")


def error_with_code(exit_code: int, message: str) -> WsfsError:
    """The error of the tree with this exit code; a plain WsfsError that keeps the code where none has it."""
    classes: list[type[WsfsError]] = [WsfsError]
    for cls in classes:  # grows while it is walked: the whole tree
        if cls.exit_code == exit_code:
            return cls(message)
        classes.extend(cls.__subclasses__())
    error = WsfsError(message)
    error.exit_code = exit_code
    return error


def _failure(exc: WsfsError) -> dict[str, Any]:
    return {"ok": False, "error": sentence(exc), "exit_code": exc.exit_code}


# --- server -------------------------------------------------------------------------------------------------


async def serve(
    path: Path,
    handler: Handler,
    progress: Account = lambda: None,
    *,
    operator: int | None = None,
    task_status: trio.TaskStatus[None] | None = None,
) -> None:
    """Answer requests at `path` until cancelled; reports started once clients can connect.

    `progress` is what those who wait are told meanwhile; None: there is nothing to tell. `operator` is a user who may
    make the requests of OPERATOR_MAY.

    Whatever a client sends or leaves out ends at most its own connection. A WsfsError of the handler becomes
    {"ok": false, "error": sentence, "exit_code": n}, anything else a logged internal error. A response that
    the handler has returned is still delivered when `serve` is cancelled at that moment, so that a stop can
    be answered. Takes over the socket of a daemon that died; raises MountError while another one listens.
    """
    import trio

    listener = _listen(path, operator)
    identity = _identity(path)
    try:
        async with trio.open_nursery() as nursery:
            acceptor = trio.socket.from_stdlib_socket(listener)
            if task_status is not None:
                task_status.started()
            while True:
                try:
                    connection, _ = await acceptor.accept()
                except OSError as exc:  # out of descriptors or memory: others may give some back
                    log.warning(
                        "control socket cannot accept", path=path, error=exc, remedy="raise the limit of open files"
                    )
                    await trio.sleep(0.5)
                    continue
                nursery.start_soon(_converse, connection, handler, progress, operator)
    finally:
        listener.close()
        _remove(path, identity)


def _listen(path: Path, operator: int | None) -> socket.socket:
    if daemon_pid(path) is not None:
        raise MountError(f"another daemon already serves this mount point (control socket {path})")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        fresh.unlink(missing_ok=True)
        with _reachable(fresh) as address:
            listener.bind(address)
        fresh.chmod(0o600)
        if operator is not None:  # our group is for us, where root may not ignore permissions
            fresh.chmod(0o660)
            os.chown(fresh, operator, -1)
            path.parent.chmod(0o711)
        listener.listen(128)
        fresh.replace(path)  # clients see no socket or one that listens
    except OSError as exc:
        listener.close()
        raise MountError(f"the control socket {path} cannot be made: {exc.strerror}") from exc
    listener.setblocking(False)
    return listener


def _remove(path: Path, identity: tuple[int, int] | None) -> None:
    if _identity(path) == identity:  # not the one of a successor
        path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


async def _converse(
    connection: trio.socket.SocketType, handler: Handler, progress: Account, operator: int | None
) -> None:
    import trio

    with connection:
        try:
            response = await _respond(connection, handler, progress, operator)
            if response is None:
                return
            with trio.move_on_after(REQUEST_TIMEOUT, shield=True):
                data = memoryview(json.dumps(response, default=str).encode() + b"\n")
                while data:
                    data = data[await connection.send(data) :]
        except OSError as exc:
            log.debug("control client is gone", error=exc)


async def _respond(
    connection: trio.socket.SocketType, handler: Handler, progress: Account, operator: int | None
) -> dict[str, Any] | None:
    """The response to what the client sends, or None if it sends nothing."""
    try:
        # Read before a refusal: closing on unread bytes would reset the connection under the answer.
        line = await _read_line(connection)
        if not line:
            return None
        caller = peer_credentials(connection)[1]
        if caller not in {0, os.geteuid(), operator}:
            raise UsageError("only root and the user who mounted this workspace may control it")
        message = _parse(line)
        if caller not in {0, os.geteuid()} and message["op"] not in OPERATOR_MAY:
            raise UsageError("an operator may ask for the state and for a save: this is for root to do, try sudo")
        pause = _pause(message)
        return {"ok": True} | await _telling(connection, handler(message), pause, progress)
    except OSError:
        raise
    except Exception as exc:
        error = as_wsfs_error(exc)
        if error is None:
            log.exception("control request failed", remedy=REPORT)
            error = WsfsError(f"internal error: {type(exc).__name__}: {exc}; the daemon's log has the details")
        return _failure(error)


async def _telling(
    connection: trio.socket.SocketType, work: Awaitable[dict[str, Any]], pause: float | None, progress: Account
) -> dict[str, Any]:
    """The result of `work`, while the client is told every `pause` seconds how far it is."""
    if pause is None:
        return await work
    import trio

    async def tell(scope: trio.CancelScope) -> None:
        # Cancelled with the last request, and before the response is sent: its lines and that one do not mix.
        with scope, contextlib.suppress(OSError):
            while True:
                await trio.sleep(pause)
                account = progress()
                line = b"" if account is None else json.dumps({"progress": account}, default=str).encode()
                await connection.send(line + b"\n")

    result: list[dict[str, Any]] = []
    failed: list[Exception] = []
    with trio.CancelScope() as outer:
        async with trio.open_nursery() as nursery:
            telling = trio.CancelScope()
            nursery.start_soon(tell, telling)
            try:
                result.append(await work)
            except Exception as exc:  # the nursery would wrap it
                failed.append(exc)
            telling.cancel()
            outer.shield = True  # a stop cancels us right after it has answered: the answer must get out
    if failed:
        raise failed[0]
    return result[0]


def _pause(message: dict[str, Any]) -> float | None:
    """How often the client wants to be told, None for never. Raises UsageError."""
    wanted = message.get("progress")
    if wanted is None:
        return None
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not 0 < wanted < 1e6:
        raise UsageError('"progress" must be a positive number of seconds')
    return max(float(wanted), PROGRESS_SECONDS)


async def _read_line(connection: trio.socket.SocketType) -> bytes:
    import trio

    data = b""
    with trio.move_on_after(REQUEST_TIMEOUT):
        while b"\n" not in data:
            chunk = await connection.recv(MAX_REQUEST)
            if not chunk:
                return data
            data += chunk
            if len(data) > MAX_REQUEST:
                raise UsageError(f"the request is longer than {MAX_REQUEST} bytes")
        return data.partition(b"\n")[0]
    raise UsageError(f"no whole request arrived within {REQUEST_TIMEOUT:g} s")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise UsageError('the request must be an object with "op"')
    return message


def peer_credentials(connection: socket.socket | trio.socket.SocketType) -> tuple[int, int]:
    """The pid and uid at the other end, as the kernel knows them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid


# --- client -------------------------------------------------------------------------------------------------


class HungUpError(WsfsError):
    """The connection to a daemon ended before its answer."""


class SilentError(WsfsError):
    """A daemon gave no sign of life for so many seconds. `what` is the sentence without advice."""

    def __init__(self, seconds: float) -> None:
        self.what = f"the daemon did not answer within {seconds:g} s"
        super().__init__(f"{self.what}. {HANGS}")


def request(
    path: Path,
    message: dict[str, Any],
    timeout: float | None = None,
    *,
    limit: float | None = None,
    tell: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Ask the daemon behind `path` and return its answer. Blocks, at most `timeout` seconds between two signs
    of life, and `limit` seconds altogether. What it tells meanwhile, if the message asks for "progress", is given to
    `tell`.

    Raises NotMountedError if nothing listens there, SilentError after `timeout` or `limit`, HungUpError if there is no
    answer because the daemon ended or closed the connection, and for {"ok": false} the error that has this exit code.
    """
    began, waiting = time.monotonic(), timeout
    with _connect(path, timeout) as connection:
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
            answer = b""
            while True:
                if limit is not None:
                    left = limit - (time.monotonic() - began)
                    if timeout is None or left < timeout:
                        waiting = limit
                        connection.settimeout(max(left, 0.001))
                chunk = connection.recv(64 * 1024)
                if not chunk:
                    break
                answer += chunk
                while answer.startswith((_PROGRESS, b"\n")) and b"\n" in answer:
                    line, _, answer = answer.partition(b"\n")
                    if line and tell is not None:
                        tell(json.loads(line)["progress"])
        except TimeoutError:
            assert waiting is not None
            raise SilentError(waiting) from None
        except OSError as exc:
            raise HungUpError(f"the daemon hung up: {exc.strerror}; its log says why") from exc
    return parse_answer(answer)


def parse_answer(answer: bytes) -> dict[str, Any]:
    """What a daemon has answered. Raises WsfsError; for {"ok": false} the error that has this exit code."""
    try:
        response = json.loads(answer)
    except (ValueError, RecursionError):
        raise HungUpError("the daemon ended before it answered; its log says why") from None
    if not isinstance(response, dict):
        raise WsfsError("what answered on the control socket is not a wsfs daemon")
    if not response.get("ok"):
        code = response.get("exit_code")
        raise error_with_code(code if isinstance(code, int) else 1, str(response.get("error", "")))
    return response


def daemon_pid(path: Path) -> int | None:
    """The pid of the daemon that listens at `path`, from the kernel; None if none does. Raises if we may not
    ask.
    """
    try:
        with _connect(path, REQUEST_TIMEOUT) as connection:
            return peer_credentials(connection)[0]
    except NotMountedError:
        return None


def _connect(path: Path, timeout: float | None) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(timeout)
    try:
        with _reachable(path) as address:
            connection.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        raise NotMountedError("no wsfs daemon is running for this mount point") from None
    except PermissionError:
        connection.close()
        raise UsageError("only root and the user who mounted this workspace may do this: try sudo") from None
    except OSError as exc:
        connection.close()
        raise WsfsError(f"the daemon cannot be reached: {exc.strerror or exc}") from exc
    return connection


@contextlib.contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """An address for `path` that fits into the 108 bytes which the kernel has for one."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
