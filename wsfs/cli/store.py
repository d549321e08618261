"""The options by which commands that need no mount find a store."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsfs.config import load_settings
from wsfs.values import ADDRESSING_STYLES

if TYPE_CHECKING:
    from wsfs.repo.encryption import Wrapper
    from wsfs.store.base import Store

_Command = TypeVar("_Command", bound=Callable[..., Any])


def store_options(command: _Command) -> _Command:
    """Adds --endpoint-url, --addressing-style, --key-file and --kms-key, as `endpoint_url` and so on."""
    style = click.option(
        "--addressing-style",
        type=click.Choice(ADDRESSING_STYLES),
        help="Where S3 requests carry the bucket's name: in the path or in the host name.",
    )
    endpoint = click.option("--endpoint-url", metavar="URL", help="The S3 server, if it is not AWS.")
    file = click.option(
        "--key-file",
        metavar="FILE",
        type=click.Path(path_type=Path),
        callback=lambda _context, _option, path: path and path.absolute(),  # a daemon has another directory
        help="The key of an encrypted workspace.",
    )
    kms = click.option("--kms-key", metavar="ID", help="Likewise, in AWS's key management service.")
    return endpoint(style(file(kms(command))))


def mount_command(url: str, where: Mapping[str, Any]) -> str:
    """What mounts the workspace at `url`, with the store options that this command was given."""
    flags = ("endpoint_url", "addressing_style", "key_file", "kms_key")
    given = [f"--{name.replace('_', '-')} {shlex.quote(str(where[name]))}" for name in flags if where.get(name)]
    return " ".join(["wsfs mount", url, "/workspace", *given])


@contextlib.contextmanager
def opened(url: str, where: Mapping[str, Any]) -> Iterator[tuple[Store, Wrapper | None]]:
    """The bare store at `url`, as flags and the environment describe it, and the key if there is one; closed at the
    end."""
    store = bare_store(url, where)
    try:
        yield store, key_of(url, where)
    finally:
        store.close()


@contextlib.contextmanager
def opened_workspace(url: str, where: Mapping[str, Any], *, deadline: float = 60.0) -> Iterator[Store]:
    """The store of the workspace at `url`, which tries again for `deadline` seconds, decrypts, and has what a fork
    shares with its base. Raises StoreError, EncryptionKeyError."""
    from wsfs.repo.fork import open_whole
    from wsfs.store.retry import RetryingStore

    def bare(url: str) -> Store:
        return RetryingStore(bare_store(url, where), deadline=deadline)

    with contextlib.closing(bare(url)) as raw, contextlib.closing(open_whole(raw, key_of(url, where), bare)) as store:
        yield store


def bare_store(url: str, where: Mapping[str, Any]) -> Store:
    """The bare store at `url`, as flags and the environment describe it. Raises UsageError."""
    from wsfs.store.url import open_store

    settings = load_settings(url, "/", flags=where)
    return open_store(url, endpoint_url=settings.endpoint_url, addressing_style=settings.addressing_style)


def key_of(url: str, where: Mapping[str, Any]) -> Wrapper | None:
    """The key that flags and the environment name. Raises UsageError."""
    from wsfs.repo.encryption import wrapper_for

    settings = load_settings(url, "/", flags=where)
    return wrapper_for(settings.key_file, settings.kms_key)
