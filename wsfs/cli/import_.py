"""`wsfs import`: a directory or an archive as a workspace, without a mount."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsfs.cli.init import parse_labels, parse_owner
from wsfs.cli.output import json_option, print_json, saved
from wsfs.cli.progress import shown
from wsfs.cli.store import bare_store, key_of, store_options
from wsfs.errors import UsageError, WorkspaceExistsError

if TYPE_CHECKING:
    from wsfs.sources import Source
    from wsfs.store.base import Store


@click.command("import", short_help="Make a workspace out of a directory or an archive.")
@click.argument("source", metavar="DIR|FILE.tar", type=click.Path(path_type=Path))
@click.argument("url")
@click.option("--owner", metavar="UID:GID", help="Who owns everything. Default: whoever does in DIR or FILE.tar.")
@click.option("--framework", metavar="NAME", help="Note what the workspace is for, such as jupyter.")
@click.option("--label", "labels", metavar="K=V", multiple=True, help="Note something else; may be repeated.")
@click.option("--encrypt", is_flag=True, help="Encrypt everything, with the key that --key-file or --kms-key names.")
@store_options
@json_option
def import_(
    source: Path,
    url: str,
    owner: str | None,
    framework: str | None,
    labels: Sequence[str],
    encrypt: bool,
    as_json: bool,
    **where: Any,
) -> None:
    """Make a workspace at URL that holds what DIR or FILE.tar holds, straight in the store and as one save point.

    Needs neither a mount nor a cache, and is much quicker than copying into a mount: an environment for an image, or
    a home that moves in. The workspace is made; one that exists must be empty. Owners, modes, times, links, holes and
    extended attributes are kept, and equal blocks are stored once. Until everything is in the store the workspace
    stays empty, and the same command can be repeated. Nobody may write to DIR meanwhile.

    \b
    Examples:
      wsfs import /srv/environment s3://bucket/ada
      wsfs import home.tar s3://bucket/ada --owner 1000:100 --framework jupyter
      wsfs import ~/project file:///srv/workspaces/ada --encrypt --key-file ~/ada.key

    \b
    Exit codes: 21 the workspace has files already, 30 it is mounted.
    """
    pairs = parse_labels(labels)
    user = None if owner is None else parse_owner(owner)
    from wsfs.intake import take_in
    from wsfs.repo.fork import open_whole
    from wsfs.repo.workspace import initialise
    from wsfs.store.retry import RetryingStore
    from wsfs.sync.progress import Progress

    def bare(url: str) -> Store:
        return RetryingStore(bare_store(url, where))

    with contextlib.closing(_opened(source)) as tree, contextlib.closing(bare(url)) as raw:
        wrapper = key_of(url, where)
        if encrypt and wrapper is None:
            raise UsageError("--encrypt needs a key: name a file with --key-file, which is made if it is missing")
        made = encrypt or wrapper is None  # with a key alone it is for a workspace that exists
        if made:
            try:
                initialise(raw, framework=framework, labels=pairs, owner=user or parse_owner(None), wrapper=wrapper)
            except WorkspaceExistsError:
                made = False
        progress = Progress()
        with contextlib.closing(open_whole(raw, wrapper, bare)) as store, shown("importing", progress):
            taken = take_in(store, tree, owner=user, progress=progress)
    done = taken.saved
    told = {"files": done.files, "bytes": done.bytes, "seq": done.seq, "saved_at": taken.saved_at}
    told |= {"seconds": round(done.seconds, 3), "sent": done.sent, "requests": done.puts}
    if as_json:
        print_json({"url": url, "workspace_id": taken.workspace, "made": made, **told})
    else:
        click.echo(saved(told))


def _opened(path: Path) -> Source:
    from wsfs.sources import DirectorySource, TarSource

    return DirectorySource(path) if path.is_dir() else TarSource(path)
