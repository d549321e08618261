"""`wsfs completion`: the script by which a shell completes commands and options of wsfs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_WSFS_COMPLETE"


@click.command(short_help="Print the script for a shell's completion.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print a script that makes SHELL complete the commands and options of wsfs.

    \b
    Examples:
      wsfs completion bash > /etc/bash_completion.d/wsfs
      wsfs completion zsh > /usr/local/share/zsh/site-functions/_wsfs
      wsfs completion fish > ~/.config/fish/completions/wsfs.fish
    """
    from wsfs.cli.main import cli

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(cli, {}, "wsfs", VARIABLE).source())
