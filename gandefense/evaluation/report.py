"""The report on disk: report.md for papers, report.html (page) that needs no other file, pictures; and the terminal's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gandefense.evaluation.figures import Panel
from gandefense.evaluation.page import page
from gandefense.evaluation.plots import Plot, draw, log_curves
from gandefense.evaluation.report_tables import all_tables, made, markdown_table
from gandefense.evaluation.threat_tables import headline, threat_tables
from gandefense.evaluation.wording import Table, aligned_right
from gandefense.files import write_atomically, write_text

NOT_ON_TERMINAL = ("steps × restarts", "gain")  # columns of the tables by threat that only the report has


def text_table(header: list[str], rows: list[list[str]]) -> str:
    """A table for the terminal: aligned columns, figures to the right, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = aligned_right(header, rows)
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if flag else cell.ljust(width) for cell, width, flag in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )


def _static(results: dict[str, Any]) -> list[dict[str, Any]]:
    return [finding for finding in results["checks"] if finding["name"] == "static_rule"]


def terminal(results: dict[str, Any]) -> str:
    """What the tool prints at the end: the headline and whether it is a gain, the tables by threat, the checks that fired."""

    def shown(table: Table) -> str:
        kept = [i for i, name in enumerate(table.header) if name not in NOT_ON_TERMINAL]
        header, *rows = ([line[i] for i in kept] for line in (table.header, *table.rows))
        return f"{table.title}\n{text_table(header, rows)}"

    def lines(findings: list[dict[str, Any]]) -> str:
        return "\n".join(f"{'!' if finding['fired'] else ' '} {finding['text']}" for finding in findings)

    static = _static(results)
    fired = [finding for finding in results["checks"] if finding["fired"] and finding not in static]
    count = f"{results['data']['n']} images; 95 % intervals in brackets"
    parts = [f"{shown(headline(results))}\n{count}", lines(static), *map(shown, threat_tables(results)), lines(fired)]
    return "\n\n".join(part for part in parts if part)


def _markdown_findings(findings: list[dict[str, Any]]) -> list[str]:
    return [*(f"- {'**!** ' if finding['fired'] else ''}{finding['text']}" for finding in findings), ""]


def _markdown_table(table: Table, drawn: list[Plot]) -> list[str]:
    pictures = [f"![{plot.title}](pictures/{plot.name}.png)\n" for plot in drawn if plot.table == table.name]
    return [f"## {table.title}", "", table.note, "", *pictures, markdown_table(table.header, table.rows), ""]


def markdown(results: dict[str, Any], panels: list[Panel], drawn: list[Plot] | None = None) -> str:
    """The report as Markdown; pictures and plots are linked from the folder `pictures`."""
    first, *others = all_tables(results)
    parts = [f"# Evaluation on {results['data']['name']}", "", *_markdown_table(first, []), *_markdown_findings(_static(results))]
    for table in others:
        parts += _markdown_table(table, drawn or [])
    if panels:
        parts += ["## Images", ""]
        parts += [
            f"**{panel.title}**: {' · '.join(panel.columns)}\n\n![{panel.title}](pictures/{panel.name}.png)\n" for panel in panels
        ]
    parts += ["## Checks", "", *_markdown_findings(results["checks"])]
    parts += ["## How it was made", "", *(f"- {line}" for line in made(results)), ""]
    return "\n".join(parts)


def write(folder: Path, results: dict[str, Any], panels: list[Panel]) -> None:
    """Write report.md, report.html and pictures/*.png into a folder, each atomically, and TensorBoard events."""
    drawn = draw(results)
    (folder / "pictures").mkdir(exist_ok=True)
    for picture in [*panels, *drawn]:
        path = folder / "pictures" / f"{picture.name}.png"
        write_atomically(path, lambda temporary, data=picture.png: temporary.write_bytes(data) and None)
    write_text(folder / "report.md", markdown(results, panels, drawn))
    write_text(folder / "report.html", page(results, panels, drawn))
    log_curves(folder, results)
