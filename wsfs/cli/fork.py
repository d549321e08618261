"""`wsfs fork`: a new workspace that begins as a save point of another one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import click

from wsfs.cli.output import files, json_option, print_json, size
from wsfs.cli.store import bare_store, key_of, mount_command, opened_workspace, store_options
from wsfs.errors import UsageError
from wsfs.values import parse_save_point

if TYPE_CHECKING:
    from wsfs.repo.manifest import Manifest
    from wsfs.store.base import Store


@click.command(short_help="Make a workspace out of a save point.")
@click.argument("url")
@click.argument("new_url", metavar="NEWURL")
@click.option("--at", "wanted", metavar="ID", help="The save point: a number, name or time. Default: the newest.")
@click.option("--release", is_flag=True, help="NEWURL was deleted: no longer keep in URL what it needed.")
@click.option("--keep", is_flag=True, help="Keep in URL again what the fork at NEWURL needs, if that mark was lost.")
@store_options
@json_option
def fork(url: str, new_url: str, wanted: str | None, release: bool, keep: bool, as_json: bool, **where: Any) -> None:
    """Make a workspace at NEWURL that begins as the one at URL is in its newest save point, or as it was in another.

    Nothing is copied, so this takes a few requests whatever the size. From then on both change independently. The
    fork reads what it has not changed from URL, which keeps it for as long as the fork is there. So URL must stay
    where it is, in the same store, and who mounts the fork needs to be able to read it. For a workspace that stands
    on its own use 'wsfs export' and 'wsfs import'.

    A fork of an encrypted workspace is encrypted, and has the same key file or KMS key.

    When a fork is not needed any more, delete its objects, and then let go of what URL keeps for it with --release.

    \b
    Examples:
      wsfs fork s3://bucket/ada s3://bucket/ada-experiment
      wsfs fork s3://bucket/course s3://bucket/student-17 --at handed-out
      wsfs fork s3://bucket/ada s3://bucket/ada-experiment --release

    \b
    Exit codes: 21 there is a workspace at NEWURL already, 27 there is no such save point.
    """
    if sum((release, keep, wanted is not None)) > 1:
        raise UsageError("--at, --release and --keep do not go together")
    from wsfs.repo import fork as forks
    from wsfs.store.retry import RetryingStore

    with (
        opened_workspace(url, where) as base,
        contextlib.closing(RetryingStore(bare_store(new_url, where))) as raw,
    ):
        if release:
            count = forks.release(base, raw)
            told: dict[str, Any] = {"url": url, "fork": new_url, "released": count}
            text = f"Released: {url} keeps nothing for {new_url} any more."
            if not count:
                text = f"{url} keeps nothing for {new_url}: if it was a fork, check the URL that it had."
        elif keep:
            forks.keep(base, raw)
            told = {"url": url, "fork": new_url, "kept": True}
            text = f"Kept: {url} keeps what {new_url} needs."
        else:
            of = _commit(base, wanted)
            made = forks.fork(base, base.url, of, raw, wrapper=key_of(new_url, where))
            told = {"url": new_url, "workspace_id": made.workspace_id, "base": url, "base_id": of.seq}
            told |= {"files": of.files, "bytes": of.bytes}
            text = (
                f"Forked: {files(of.files)}, {size(of.bytes)} of {url} #{of.seq}."
                f" Mount it: {mount_command(new_url, where)}"
            )
    if as_json:
        print_json(told)
    else:
        click.echo(text)


def _commit(base: Store, wanted: str | None) -> Manifest:
    """The save point to fork. HEAD's needs no list of all."""
    from wsfs.repo.head import State, read_head
    from wsfs.repo.workspace import read_format
    from wsfs.sync.history import find, save_points
    from wsfs.sync.load import read_manifest

    read_format(base)  # says so if the key is missing
    if wanted is None:
        head = read_head(base).head
        if head.state == State.SYNC_FAILED or (head.holder is not None and head.state != State.STOPPED):
            click.echo(
                f"wsfs: {base.url} is {head.state}: what is not saved there is not in the fork, which begins as save"
                f" point #{head.seq} of {head.saved_at}",
                err=True,
            )
        return read_manifest(base, head)
    return find(save_points(base), parse_save_point(wanted)).manifest
