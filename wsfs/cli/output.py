"""How commands print: sizes and times for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a sentence.")


def size(count: float) -> str:
    """Bytes for people: 512 B, 1.2 MB (powers of 1000, as df -H)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """A time span for people: 0.4 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for limit, unit, step in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / step:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, default=str))


def saved(answer: Mapping[str, Any]) -> str:
    """The sentence at the end of a sync or stop."""
    what = f"{files(int(answer.get('files', 0)))}, {size(float(answer.get('bytes', 0)))}"
    sequence = f" Commit #{answer['seq']}." if answer.get("seq") is not None else ""
    return f"Saved: {what} in {duration(float(answer.get('seconds', 0)))}.{sequence}"
