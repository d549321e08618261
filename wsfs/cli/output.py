"""How commands print: sizes and times for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from wsfs.text import files, size

__all__ = ["duration", "files", "json_option", "kept", "print_json", "saved", "size"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a sentence.")


def duration(seconds: float) -> str:
    """A time span for people: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, unit, step in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / step:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def kept(answer: Mapping[str, Any]) -> str:
    """How much `.wsfsignore` keeps on this machine; empty if nothing."""
    count = answer.get("kept_files") or 0
    stay = "stays" if count == 1 else "stay"
    return (
        f"{size(answer.get('kept_bytes') or 0)} in {files(count)} {stay} on this machine (.wsfsignore)" if count else ""
    )


def print_json(value: object, *, err: bool = False) -> None:
    click.echo(json.dumps(value, indent=2, default=str), err=err)


def saved(answer: Mapping[str, Any]) -> str:
    """The sentence at the end of a sync or stop."""
    point = "".join(f" {word}" for word in (answer.get("saved_at"), f"#{answer.get('seq', 0)}") if word)
    if not answer.get("files") and not answer.get("bytes"):
        return f"Saved: nothing has changed since save point{point}."
    what = f"{files(int(answer['files']))}, {size(float(answer['bytes']))}"
    return f"Saved: {what} in {duration(float(answer['seconds']))}. Save point{point}."
