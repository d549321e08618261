"""`wsfs fsck` and `wsfs verify`: is what lies in the store whole?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsfs.cli import mounts
from wsfs.cli.output import files, json_option, print_json, size
from wsfs.cli.store import opened_workspace, store_options
from wsfs.errors import CacheError, DamagedError, NotMountedError, UsageError
from wsfs.text import lines

if TYPE_CHECKING:
    from wsfs.fsck import Checked


@click.command(short_help="Check a workspace, and repair it.")
@click.argument("where", metavar="URL|MOUNTPOINT")
@click.option("--data", is_flag=True, help="Read and verify every byte of every file, too.")
@click.option("--all", "every_commit", is_flag=True, help="Check the older commits as well, not only the newest.")
@click.option("--repair", "repairs", is_flag=True, help="Make a new commit that is whole. Not while it is mounted.")
@click.option("--cache-dir", metavar="DIR", help="Check this cache directory of the workspace as well.")
@store_options
@json_option
def fsck(
    where: str,
    data: bool,
    every_commit: bool,
    repairs: bool,
    cache_dir: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Check the workspace at URL, or the one that is mounted at MOUNTPOINT, in its store.

    Reads all names and attributes, and looks whether all data is there; --data reads that as well. It changes
    nothing and may run beside a mount: it checks the newest commit. Damage is told with the files that it hits.

    --repair changes as little as it can. Files that have lost bytes get the suffix .damaged, and zeros where bytes
    are lost. What has lost its directory comes into /lost+found. Everything that was done is told. The commit before
    stays in the store for 30 days.

    A cache is checked, and never repaired. While the one of --cache-dir holds changes that a mount with it would save,
    --repair refuses: after its commit they would be set aside instead.

    The exit code is 0 when all is well or all was repaired, and 25 when there is damage.

    \b
    Examples:
      wsfs fsck s3://bucket/ada
      wsfs fsck /workspace --data
      wsfs fsck s3://bucket/ada --repair
    """
    if repairs and every_commit:
        raise UsageError("--repair is for the newest commit: leave --all away")
    with opened_workspace(url_of(where, repairs=repairs), options) as store:
        from wsfs.fsck import check

        checked = check(store, data=data, every_commit=every_commit)
        in_store = bool(checked.findings)
        held = None
        if cache_dir is not None:
            from wsfs.fsck_cache import check_cache

            held = check_cache(Path(cache_dir), checked, store)
        outcome = summary(checked)
        left = outcome["findings"]
        # A commit mends nothing in a cache, and the cache would not stand on the newest one any more.
        if in_store and repairs:
            from wsfs.repair import repair
            from wsfs.sync.lease import this_process

            if not as_json:
                _tell(checked)
            if held is not None and held.can_be_saved:
                raise CacheError(
                    f"the cache in {cache_dir} holds changes that are not saved, and a repair now would keep them from"
                    " being saved: mount with it and unmount, which saves them, and repair then. If it cannot be"
                    f" mounted, copy them with 'wsfs export --unsaved DIR --cache-dir {cache_dir}', and repair without"
                    " --cache-dir"
                )
            repaired = repair(store, checked, this_process())
            # With nothing of its own a cache is only a view of the commit that was repaired: a mount drops it.
            left = [one for one in left if one["kind"] == "cache"] if held is not None and held.only_here else []
            outcome |= {"repaired": repaired.done, "commit": repaired.seq, "kept": repaired.kept}
            if not as_json:
                for one in repaired.done:
                    click.echo(f"Repaired: {one}.")
                kept = f" The one before stays for 30 days, as {repaired.kept}." if repaired.kept else ""
                click.echo(f"Made commit #{repaired.seq}, which is whole.{kept}")
                if left:
                    click.echo("What is wrong in the cache is as it was.")
        elif not as_json:
            _tell(checked)
            for note in checked.notes:
                click.echo(note)
            click.echo(_verdict(outcome))
    if as_json:
        print_json(outcome)
    return DamagedError.exit_code if left else 0


@click.command(short_help="Read a random sample of the data.")
@click.argument("where", metavar="URL|MOUNTPOINT")
@click.option("--sample", default="1%", show_default=True, help="How much of the data is read and verified.")
@store_options
@json_option
def verify(where: str, sample: str, as_json: bool, **options: Any) -> int:
    """Read a random part of the data at URL, or of the workspace mounted at MOUNTPOINT, and verify it.

    Each time it is another part, so that a daily run finds rot before long. Names and attributes are all read.
    Changes nothing and may run beside a mount. The exit code is 0 when all is well, and 25 when there is damage.

    \b
    Examples:
      wsfs verify s3://bucket/ada
      wsfs verify /workspace --sample 5%
    """
    share = parse_share(sample)
    with opened_workspace(url_of(where), options) as store:
        from wsfs.fsck import check

        checked = check(store, sample=share)
    outcome = summary(checked)
    if as_json:
        print_json(outcome)
    else:
        _tell(checked)
        click.echo(_verdict(outcome))
    return DamagedError.exit_code if checked.findings else 0


def url_of(where: str, *, repairs: bool = False) -> str:
    """The URL that the user named, or that of the mount. Raises UsageError, NotMountedError."""
    if "://" in where:
        return where
    mount = mounts.find_wsfs(where)
    if mount is None:
        raise NotMountedError(f"no workspace is mounted at {where}: name its URL")
    if repairs:
        raise UsageError(f"{where} is mounted: unmount it, and then repair it by its URL, {mount.source}")
    return mount.source


def parse_share(text: str) -> float:
    """0.01 from "1%". Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    share = float(match[1]) / 100 if match else 0.0
    if not 0 < share <= 1:
        raise UsageError(f"{text!r} is not a share: write it as --sample 1%")
    return share


def summary(checked: Checked) -> dict[str, Any]:
    """The outcome of a check, for programs."""
    manifest = checked.manifest
    return {
        "clean": not checked.findings,
        "findings": [
            {"kind": one.kind, "what": one.what, "remedy": one.remedy, "paths": list(one.paths)}
            for one in checked.findings
        ],
        "seq": manifest.seq if manifest else None,
        "files": manifest.files if manifest else None,
        "bytes": manifest.bytes if manifest else None,
        "blocks_read": checked.frames,
        "older_commits": checked.older,
        "notes": checked.notes,
    }


def _tell(checked: Checked) -> None:
    for finding in checked.findings:
        click.echo(lines(str(finding)))


def _verdict(outcome: Mapping[str, Any]) -> str:
    found = len(outcome["findings"])
    if found:
        return f"{found} {'finding' if found == 1 else 'findings'}."
    read = f", {outcome['blocks_read']:,} blocks read" if outcome["blocks_read"] else ""
    older = f", {outcome['older_commits']} older commits" if outcome["older_commits"] else ""
    what = f"{files(outcome['files'])}, {size(outcome['bytes'])}{read}{older}"
    return f"All is well: save point #{outcome['seq']}, {what}."
