"""The options by which commands that need no mount find a store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from wsfs.config import ADDRESSING_STYLES, load_settings

if TYPE_CHECKING:
    from wsfs.store.base import Store

_Command = TypeVar("_Command", bound=Callable[..., Any])


def store_options(command: _Command) -> _Command:
    """Adds --endpoint-url and --addressing-style, as `endpoint_url` and `addressing_style`."""
    style = click.option(
        "--addressing-style",
        type=click.Choice(ADDRESSING_STYLES),
        help="Where S3 requests carry the bucket's name: in the path or in the host name.",
    )
    endpoint = click.option("--endpoint-url", metavar="URL", help="The S3 server, if it is not AWS.")
    return endpoint(style(command))


@contextlib.contextmanager
def opened(url: str, where: Mapping[str, Any]) -> Iterator[Store]:
    """The store at `url`, as flags and the environment describe it; closed at the end."""
    from wsfs.store.url import open_store

    settings = load_settings(url, "/", flags=where)
    store = open_store(url, endpoint_url=settings.endpoint_url, addressing_style=settings.addressing_style)
    try:
        yield store
    finally:
        store.close()
