"""`wsfs status`: how a mount is, how a workspace was left, or all mounts of this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import click

from wsfs.cli import daemon, mounts
from wsfs.cli.output import duration, files, json_option, kept, print_json, size
from wsfs.cli.store import opened_workspace, store_options
from wsfs.errors import FormatError, NotMountedError
from wsfs.text import printable

GOOD_STATES = ("STARTING", "RUNNING", "STOPPING", "STOPPED")


@click.command(short_help="Show how a mount, a workspace or all are.")
@click.argument("where", metavar="[MOUNTPOINT|URL]", required=False)
@click.option("--check", is_flag=True, help="Exit with 1 unless every state shown is RUNNING.")
@store_options
@json_option
def status(where: str | None, check: bool, as_json: bool, **options: Any) -> int:
    """Show the state of a mount, of a workspace in its store, or of all mounts on this machine.

    \b
    STARTING RUNNING STOPPING   a daemon is at work
    STOPPED                     everything is in the store
    SYNC_FAILED                 stopped, but some changes are only in the cache directory
    ERROR                       refused, died, or does not answer; the reason is shown

    The exit code is 0 whenever the question could be answered; --check makes it depend on the answer.

    \b
    Examples:
      wsfs status
      wsfs status /workspace --json
      wsfs status s3://bucket/ada       asks the store, from any machine
    """
    if where is None:
        found = list(of_all())
    elif "://" in where:
        found = [from_store(where, options)]
    else:
        found = [daemon.status(where)]
    if as_json:
        print_json(found if where is None else found[0])
    elif not found:
        click.echo("No workspace is mounted on this machine. Mount one: wsfs mount URL MOUNTPOINT")
    else:
        click.echo("\n\n".join(describe(one) for one in found))
    return int(check and (not found or any(one["state"] != "RUNNING" for one in found)))


def of_all() -> Iterator[dict[str, Any]]:
    """The state of each mount on this machine, without those that go away while the others are asked."""
    for mount in mounts.all_mounts():
        if mount.is_wsfs:
            with contextlib.suppress(NotMountedError):
                yield daemon.status(mount.mountpoint)


def from_store(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The state of the workspace at `url` as its store has it, with the field names of a mount's status."""
    with opened_workspace(url, options, deadline=20.0) as store:
        from wsfs.repo.head import read_head
        from wsfs.repo.workspace import read_format
        from wsfs.sync.lease import SILENT_SECONDS

        try:
            version = read_head(store)
        except FormatError:
            read_format(store)  # says so if it is only encrypted
            raise
    head = version.head
    holder = head.holder
    state, reason = str(head.state), head.reason
    if holder is not None and version.age is not None and version.age > SILENT_SECONDS:
        # Nobody has said ERROR: who died cannot. SYNC_FAILED says more than that, and stays.
        state = state if state == "SYNC_FAILED" else "ERROR"
        silent = (
            f"no sign of life from {holder.host} (process {holder.pid}) for {duration(version.age)}: if it died, what"
            " it had not saved is in its cache directory there, and the next mount with that cache saves it"
        )
        reason = f"{reason}; {silent}" if reason else silent
    return {
        "url": url,
        "state": state,
        "reason": reason,
        "epoch": head.epoch,
        "seq": head.seq,
        "host": holder.host if holder else None,
        "pid": holder.pid if holder else None,
        "since": holder.since if holder else None,
        "last_save": head.saved_at,
        "head_age": version.age,
        "files": head.files,
        "bytes": head.bytes,
    }


def describe(one: Mapping[str, Any]) -> str:
    """A status for people: the name and state, then a line for each thing that is known."""
    state = str(one["state"])
    shown = click.style(state, fg="green" if state in GOOD_STATES else "red", bold=True)
    lines = [f"{printable(str(one.get('mountpoint') or one.get('url')))}  {shown}"]
    for name, text in _lines(one):
        # What has several lines, such as the names of what is missing, is shown on as many, below each other.
        for number, line in enumerate(text.split("\n") if text else ()):
            lines.append(f"  {'' if number else name:<10} {printable(line)}")
    return "\n".join(lines)


def forecast(one: Mapping[str, Any]) -> str:
    """How long a stop would take now, and why."""
    if one.get("stop_seconds") is None or one["state"] not in ("STARTING", "RUNNING", "STOPPING", "SYNC_FAILED"):
        return ""
    what = "everything is saved"
    if one["unsaved_bytes"]:
        packs = "1 pack" if one["unsaved_packs"] == 1 else f"{one['unsaved_packs']:,} packs"
        what = f"{size(one['unsaved_bytes'])} in {packs} unsaved"
    elif one["unsaved_files"]:
        what = f"{files(one['unsaved_files'])} unsaved"
    age = one.get("last_save_age")
    last = "" if age is None else f"; last save {duration(age)} ago"
    if one["state"] == "SYNC_FAILED":
        what += ", and the last save failed"
    return f"stopping now takes about {duration(one['stop_seconds'])}: {what}{last}"


def _lines(one: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("reason", str(one.get("reason") or ""))]
    lines.append(("recovered", str(one.get("recovered") or "").removeprefix("recovered ")))
    lines.append(("notice", str(one.get("notice") or "")))
    if one.get("mountpoint"):
        lines.append(("workspace", str(one.get("url") or "")))
    lines.append(("mode", _mode(one)))
    if one.get("unsaved_files") is not None:
        unsaved = f"{files(one['unsaved_files'])}, {size(one.get('unsaved_bytes') or 0)}"
        lines.append(("forecast", forecast(one)))
        lines.append(("unsaved", unsaved if one["unsaved_files"] or one.get("unsaved_bytes") else "nothing"))
    lines.append(("local only", kept(one)))
    if one.get("last_save"):
        age = one.get("last_save_age")
        lines.append(("last save", f"{one['last_save']}" + (f", {duration(age)} ago" if age is not None else "")))
    if one.get("files") is not None:
        lines.append(("contents", f"{files(one['files'])}, {size(one.get('bytes') or 0)}"))
    if one.get("cache_dir"):
        lines.append(("cache", f"{one['cache_dir']}{_taken(one.get('cache_used'), one.get('cache_limit'))}"))
    lines.append(("quota", _quota(one)))
    if one.get("host"):
        holds = not one.get("read_only") and one.get("state") != "ERROR"
        lines.append(("held by" if holds else "served by", f"{one['host']}, process {one.get('pid')}"))
    return lines


def _taken(used: int | None, limit: int | None) -> str:
    """How much of its limit a cache takes, as far as that is known."""
    if used is None:
        return f" (at most {size(limit)})" if limit else ""
    return f" ({size(used)} of {size(limit)})" if limit else f" ({size(used)})"


def _quota(one: Mapping[str, Any]) -> str:
    """How much of what it may hold a workspace holds; empty without a limit."""
    parts = []
    if one.get("quota") is not None:
        parts.append(f"{size(one.get('bytes') or 0)} of {size(one['quota'])}")
    if one.get("quota_files") is not None:
        parts.append(f"{one.get('files') or 0:,} of {files(one['quota_files'])}")
    return ", ".join(parts)


def _mode(one: Mapping[str, Any]) -> str:
    """What a read-only mount shows; empty for any other."""
    if not one.get("read_only"):
        return ""
    if one.get("at"):
        return f"read-only, shows save point {one['at']}"
    if one.get("follow"):
        return f"read-only, looks for a newer save point every {duration(one['follow'])}"
    return "read-only, 'wsfs refresh' moves it to the newest save point"
