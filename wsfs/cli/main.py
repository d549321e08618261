"""The `wsfs` command: the group of all commands, and how errors reach the user.
 Commands import what is heavy (boto3, pyfuse3, the core) inside their functions, so that `wsfs status` starts
quickly.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

import click

from wsfs import __version__
from wsfs.cli.data import data
from wsfs.cli.export import export
from wsfs.cli.fsck import fsck, verify
from wsfs.cli.init import init
from wsfs.cli.install import install_helpers
from wsfs.cli.mount import mount
from wsfs.cli.status import status
from wsfs.cli.stop import sync, umount
from wsfs.control import as_wsfs_error, sentence

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
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
    WSFS_ENDPOINT_URL or WSFS_CACHE_DIR), defaults. Credentials come from where the AWS tools look for them.
    WSFS_DEBUG=1 shows tracebacks.
    """


for command in (init, mount, umount, sync, status, data, fsck, verify, export, install_helpers):
    cli.add_command(command)


def guarded(body: Callable[[], object]) -> int:
    """Run `body` and return the exit code; each error becomes one sentence on stderr, never a traceback.

    An integer that `body` returns is the exit code.
    """
    for stream in (sys.stdout, sys.stderr):  # names are bytes: printing one must not fail
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        result = body()
        sys.stdout.flush()
    except click.UsageError as exc:
        _complain(exc.format_message())
        if exc.ctx is not None:
            _write(f"Try '{exc.ctx.command_path} --help' for help and examples.")
        return exc.exit_code
    except click.ClickException as exc:
        _complain(exc.format_message())
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, BaseExceptionGroup) as exc:
        return _failed(exc)
    return result if isinstance(result, int) else 0


def _failed(exc: BaseException) -> int:
    if os.environ.get("WSFS_DEBUG") == "1":
        traceback.print_exc()
    error = as_wsfs_error(exc)
    if error is not None:
        _complain(sentence(error))
        return error.exit_code
    if isinstance(exc, BaseExceptionGroup) and exc.subgroup(KeyboardInterrupt) is not None:
        _complain("interrupted")
        return INTERRUPTED
    if isinstance(exc, OSError) and exc.strerror:
        _complain(f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror)
        return 1
    _complain(f"internal error: {type(exc).__name__}: {exc}; set WSFS_DEBUG=1 to see where")
    return 1


def _complain(message: str) -> None:
    _write(f"wsfs: {message}")


def _write(line: str) -> None:
    click.echo(line, err=True)


def run() -> NoReturn:
    """The entry point of the `wsfs` program."""
    sys.exit(guarded(lambda: cli.main(prog_name="wsfs", standalone_mode=False)))


if __name__ == "__main__":
    run()
