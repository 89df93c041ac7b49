"""The report on disk: report.md for papers, report.html (page) that needs no other file, pictures; and the terminal's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gandefense.evaluation.figures import Panel
from gandefense.evaluation.page import page
from gandefense.evaluation.report_tables import Table, all_tables, headline, made, threat_tables
from gandefense.files import write_atomically, write_text


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """A table for the terminal: aligned columns, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def terminal(results: dict[str, Any]) -> str:
    """What the tool prints at the end: the tables by threat, the headline, and the checks that fired."""
    tables = [*threat_tables(results), headline(results)]
    parts = [f"{table.title}\n{text_table(table.header, table.rows)}" for table in tables]
    parts += ["\n".join(f"! {finding['text']}" for finding in results["checks"] if finding["fired"])]
    return "\n\n".join(part for part in parts if part)


def _markdown_table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "|".join("---" for _ in table.header) + "|"
    return "\n".join([f"## {table.title}", "", table.note, "", line(table.header), rule, *(line(row) for row in table.rows), ""])


def markdown(results: dict[str, Any], panels: list[Panel]) -> str:
    """The report as Markdown; pictures are linked from the folder `pictures`."""
    parts = [f"# Evaluation on {results['data']['name']}", ""]
    parts += [_markdown_table(table) for table in all_tables(results)]
    parts += [
        "## Checks",
        "",
        *(f"- {'**!** ' if finding['fired'] else ''}{finding['text']}" for finding in results["checks"]),
        "",
    ]
    if panels:
        parts += ["## Images", ""]
        parts += [
            f"**{panel.title}**: {' · '.join(panel.columns)}\n\n![{panel.title}](pictures/{panel.name}.png)\n" for panel in panels
        ]
    parts += ["## How it was made", "", *(f"- {line}" for line in made(results)), ""]
    return "\n".join(parts)


def write(folder: Path, results: dict[str, Any], panels: list[Panel]) -> None:
    """Write report.md, report.html and pictures/*.png into a folder, each atomically."""
    for panel in panels:
        write_atomically(folder / "pictures" / f"{panel.name}.png", lambda path, data=panel.png: path.write_bytes(data) and None)
    write_text(folder / "report.md", markdown(results, panels))
    write_text(folder / "report.html", page(results, panels))
