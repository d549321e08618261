"""The `wsfs` command: the group of all commands.

Each command is imported when it is called, and imports what is heavy (botocore, pyfuse3, the core) inside its
functions: `wsfs umount` and `wsfs status` start quickly.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from importlib import import_module
from keyword import iskeyword
from typing import NoReturn

import click

from wsfs import __version__
from wsfs.cli.process import guarded, keep_memory_private, leave
from wsfs.log import Text

MODULES = {
    "check-ignore": "ignore",
    "clean": "clean",
    "completion": "completion",
    "config": "config",
    "data": "data",
    "diff": "history",
    "doctor": "doctor",
    "export": "export",
    "fork": "fork",
    "fsck": "fsck",
    "gc": "gc",
    "import": "import_",
    "init": "init",
    "install-helpers": "install",
    "log": "history",
    "keep": "keep",
    "mount": "mount",
    "pin": "history",
    "refresh": "refresh",
    "restore": "restore",
    "start": "notebook",
    "stats": "stats",
    "run": "run",
    "status": "status",
    "stop": "notebook",
    "sync": "stop",
    "umount": "stop",
    "undo": "restore",
    "unsaved": "unsaved",
    "usage": "usage",
    "verify": "fsck",
}
"""Each command, and the module of this package that has it under its name."""


class Commands(MutableMapping[str, click.Command]):
    """All commands, each imported when it is asked for: a stop need not wait for what only a check needs."""

    def __init__(self, modules: dict[str, str]) -> None:
        self._modules = modules
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            module = import_module(f"wsfs.cli.{self._modules[name]}")
            attribute = name.replace("-", "_")
            self._loaded[name] = getattr(module, attribute + "_" * iskeyword(attribute))
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._modules.setdefault(name, "")
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._modules[name]
        self._loaded.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules


@click.group(
    commands=Commands(dict(MODULES)),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="wsfs")
def cli() -> None:
    """A notebook's home that survives a stop.

    wsfs mounts a workspace that is kept in object storage. What is written lands on the local disk at once,
    is saved in the background, and is whole in the store when a stop returns.

    \b
    Examples:
      wsfs init s3://bucket/home
      wsfs mount s3://bucket/home /workspace
      wsfs status
      wsfs umount /workspace

    Settings come from, in this order: flags, -o options, WSFS_* environment variables (such as
    WSFS_ENDPOINT_URL or WSFS_CACHE_DIR), configuration files, defaults; 'wsfs config' shows them. Credentials
    come from where the AWS tools look for them. WSFS_DEBUG=1 shows tracebacks.
    """


def run() -> NoReturn:
    """The entry point of the `wsfs` program."""
    keep_memory_private()
    if logging.lastResort is not None:  # where nothing else is set up, as in all commands but the daemon
        logging.lastResort.setFormatter(Text(stamped=False))
    leave(guarded(lambda: cli.main(prog_name="wsfs", standalone_mode=False)))


if __name__ == "__main__":
    run()
