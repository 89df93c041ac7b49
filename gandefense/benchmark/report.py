"""The benchmark's table, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from gandefense.benchmark.settings import Row

HEADINGS = ("what", "images/s", "memory", "ratio", "target", "to", "note")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _memory(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:,.0f} MiB"


def _target(row: Row) -> str:
    if row.target is None:
        return ""
    kind, value = row.target
    return f"{'≤' if kind == 'at most' else '≥'} {value:g} {'met' if row.met else 'missed'}"


def table(rows: list[Row]) -> str:
    """Rows as Markdown tables, one for each part."""
    text = []
    for part in dict.fromkeys(row.part for row in rows):
        lines = [HEADINGS]
        for row in rows:
            if row.part == part:
                cells = (_number(row.images_per_second), _memory(row.memory), _number(row.ratio), _target(row))
                lines.append((row.name, *cells, row.ratio_to, row.note))
        kept = [i for i in range(len(HEADINGS)) if any(line[i] for line in lines[1:])]
        widths = [max(len(line[i]) for line in lines) for i in kept]
        text.append(f"## {part}\n")
        for number, line in enumerate(lines):
            text.append(f"| {' | '.join(line[i].ljust(width) for i, width in zip(kept, widths, strict=True))} |")
            if number == 0:
                text.append(f"| {' | '.join('-' * width for width in widths)} |")
        text.append("")
    return "\n".join(text)


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Rows as plain dictionaries, with what is computed from them."""
    return [{**asdict(row), "images_per_second": row.images_per_second, "met": row.met} for row in rows]
