"""A result as a table and as a picture. A result is what `Run.result` makes, or what was read from its JSON file."""

from __future__ import annotations

import math
from html import escape
from typing import Any, Final

from bench.goals import Goal, goals

_BAR: Final = 13
_LEFT: Final = 330
_WIDTH: Final = 520
_COLOURS: Final = ("#2a6fb0", "#c9742a", "#5a9a4a", "#8a5aa8", "#777777")


def table(result: dict[str, Any]) -> str:
    """Goal, figure, yardstick, ratio and peers, as a table in Markdown, below a line about the machine."""
    machine = result["machine"]
    loads = result["loads"].values()
    load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "unknown"
    names = ["wsfs", *peers(result)]
    head = ["what", "goal", "wsfs", "yardstick", "ratio", "reached", *names[1:]]
    lines = [
        f"{machine['processor']}, Linux {machine['kernel']}, store: {result['store']}, {machine['date']}, commit"
        f" {machine['commit']}, load average {load}. Medians of {result['sizes']['repeats']}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for goal, figures in found(result):
        ours = figures.get("wsfs", {}).get("median")
        beside = yardstick(goal, figures)
        ratio = ours / beside[1] if ours is not None and beside and beside[1] else None
        cells = [
            goal.title,
            goal.text,
            number(ours, goal.unit),
            f"{beside[0]}: {number(beside[1], goal.unit)}" if beside else "",
            "" if ratio is None else f"{ratio:.2f}",
            verdict(goal, ours, beside[1] if beside else None),
            *(number(figures.get(name, {}).get("median"), goal.unit) for name in names[1:]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\nFailed: {failure}" for failure in result["failures"]]
    return "\n".join(lines)


def peers(result: dict[str, Any]) -> list[str]:
    names = {name: None for systems in result["figures"].values() for name in systems}
    return [name for name in names if name not in ("native", "raw", "wsfs")]


def found(result: dict[str, Any]) -> list[tuple[Goal, dict[str, Any]]]:
    """The goals of which there are figures."""
    wanted = goals(*(result["sizes"][name] for name in ("few", "many", "wide")))
    return [(goal, result["figures"][goal.key]) for goal in wanted if goal.key in result["figures"]]


def yardstick(goal: Goal, figures: dict[str, Any]) -> tuple[str, float] | None:
    """What a figure is held against: the one that the goal names, else a native directory."""
    name = goal.against or "native"
    return (name, figures[name]["median"]) if name in figures else None


def verdict(goal: Goal, ours: float | None, beside: float | None) -> str:
    if goal.limit is None or ours is None:
        return ""
    if goal.against is not None and beside is None:
        return "?"
    limit = goal.limit * (beside if goal.against is not None and beside is not None else 1)
    return "yes" if (ours >= limit if goal.more else ours <= limit) else "no"


def number(value: float | None, unit: str) -> str:
    """Three digits and the unit."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def picture(result: dict[str, Any]) -> str:
    """An SVG: for each row that has a yardstick, how many times slower than it each system is, on a logarithmic
    scale."""
    names = ["wsfs", *peers(result)]
    rows = []
    for goal, figures in found(result):
        beside = yardstick(goal, figures)
        if not beside or not beside[1]:
            continue
        bars = []
        for name in names:
            value = figures.get(name, {}).get("median")
            if value:
                bars.append((name, beside[1] / value if goal.more else value / beside[1]))
        if bars:
            rows.append((f"{goal.title} ({beside[0]} = 1)", bars))
    slowest = max((factor for _, bars in rows for _, factor in bars), default=10.0)
    decades = max(1, math.ceil(math.log10(max(slowest, 10.0))))
    unit = _WIDTH / (decades + 0.5)

    def at(factor: float) -> float:
        return _LEFT + unit * (0.5 + math.log10(max(factor, 10**-0.5)))

    parts = []
    y = 46.0
    for title, bars in rows:
        parts.append(text(_LEFT - 8, y + _BAR * len(bars) / 2 + 4, title, "end"))
        for name, factor in bars:
            width = at(factor) - _LEFT
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            parts.append(f'<rect x="{_LEFT}" y="{y:.0f}" width="{width:.0f}" height="{_BAR - 2}" fill="{colour}"/>')
            parts.append(text(_LEFT + width + 4, y + _BAR - 3, f"{factor:.2g}"))
            y += _BAR
        y += 8
    for decade in range(decades + 1):
        x = at(10.0**decade)
        parts.insert(0, f'<line x1="{x:.0f}" y1="40" x2="{x:.0f}" y2="{y:.0f}" stroke="#cccccc"/>')
        parts.append(text(x, 36, f"{10**decade} x", "middle"))
    for index, name in enumerate(names):
        parts.append(f'<rect x="{_LEFT + 90 * index}" y="8" width="10" height="10" fill="{_COLOURS[index % 5]}"/>')
        parts.append(text(_LEFT + 90 * index + 14, 17, name))
    size = f'width="{_LEFT + _WIDTH + 60}" height="{y + 10:.0f}"'
    style = 'font-family="sans-serif" font-size="11"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


def text(x: float, y: float, content: str, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(content)}</text>'
