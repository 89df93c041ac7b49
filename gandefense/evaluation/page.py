"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
import re
from itertools import groupby
from typing import Any

from gandefense.evaluation.figures import Panel, Strip
from gandefense.evaluation.page_style import STYLE
from gandefense.evaluation.plots import KINDS, Plot
from gandefense.evaluation.report_tables import all_tables, made
from gandefense.evaluation.wording import Table, aligned_right

COLUMN_WIDTH, MAP_WIDTH = 116, 69  # of one picture on the page, in pixels
CURVES = [kind.name for kind in KINDS]  # tables that are shown together
OPENED = 2  # panels that are open at first


def _cell(text: str, *, right: bool, share: float | None) -> str:
    """A table cell; figures are set to the right, an interval after its figure, and under a share a bar of its length."""
    split = re.fullmatch(r"(.*) (\[[^\]]*\])", text)
    shown = html.escape(text) if split is None else f'{html.escape(split[1])} <span class="ci">{html.escape(split[2])}</span>'
    bar = "" if share is None else f'<i class="bar" style="--share: {100 * share:.1f}%"></i>'
    return f'<td class="figure">{shown}{bar}</td>' if right else f"<td>{shown}</td>"


def _body(table: Table, right: list[bool]) -> str:
    """Rows in groups of the same first column, which is written once for each group."""
    groups, number = [], 0
    for name, rows in groupby(table.rows, key=lambda row: row[0]):
        lines = list(rows)
        parts = []
        for i, row in enumerate(lines):
            head = f'<th scope="rowgroup" rowspan="{len(lines)}">{html.escape(name)}</th>' if i == 0 else ""
            shares = [table.shares[column][number] if column in table.shares else None for column in range(1, len(row))]
            cells = zip(row[1:], right[1:], shares, strict=True)
            parts.append(f"<tr>{head}{''.join(_cell(text, right=flag, share=share) for text, flag, share in cells)}</tr>")
            number += 1
        groups.append(f"<tbody>{''.join(parts)}</tbody>")
    return "\n".join(groups)


def _title(text: str) -> str:
    return html.escape(text).replace(" %", "&nbsp;%")


def _table(table: Table) -> str:
    """A table in a box of its own, which scrolls where the screen is narrower."""
    right = aligned_right(table.header, table.rows)
    head = "".join(
        f'<th scope="col"{" class=figure" if flag else ""}>{_title(cell)}</th>'
        for cell, flag in zip(table.header, right, strict=True)
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n{_body(table, right)}</table></div>'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _plots(table: Table, drawn: list[Plot]) -> str:
    mine = [plot for plot in drawn if plot.table == table.name]
    return "".join(f'<img class="plot" alt="{html.escape(plot.title)}" src="{_data(plot.png)}">' for plot in mine)


def _section(table: Table, drawn: list[Plot], after: str = "") -> str:
    """A table under its heading, with the plots that belong to it."""
    plots = _plots(table, drawn)
    return (
        f'<section id="{table.name}"><h2>{html.escape(table.title)}</h2><p class="note">{html.escape(table.note)}</p>'
        f"{plots and f'<div class=cards>{plots}</div>'}{_table(table)}{after}</section>"
    )


def _curve(table: Table, drawn: list[Plot]) -> str:
    """One curve: the plot, and its numbers folded under it; open where there is no plot."""
    opened = "" if any(plot.table == table.name for plot in drawn) else " open"
    return (
        f'<figure><h3>{html.escape(table.title)}</h3><p class="note">{html.escape(table.note)}</p>{_plots(table, drawn)}'
        f"<details{opened}><summary>Numbers</summary>{_table(table)}</details></figure>"
    )


def _captions(texts: list[str], right: list[bool | None]) -> str:
    kinds = {True: "right", False: "wrong", None: ""}
    cells = "".join(f'<span class="{kinds[flag]}">{html.escape(text)}</span>' for text, flag in zip(texts, right, strict=True))
    return f'<div class="captions" style="grid-template-columns: repeat({len(texts)}, minmax(0, 1fr))">{cells}</div>'


def _strip(strip: Strip, alt: str, *, column_width: int, titles: list[str] | None = None) -> str:
    above = _captions(titles, [None] * len(titles)) if titles else ""
    picture = f'<img alt="{html.escape(alt)}" src="{_data(strip.png)}">'
    width = len(strip.captions) * column_width
    return f'<div class="strip" style="width: {width}px">{above}{picture}{_captions(strip.captions, strip.right)}</div>'


def _panel(panel: Panel, opened: bool) -> str:
    """One panel, folded or open: the pictures, and beside them the gradient maps where there are any."""
    pictures = [
        _strip(strip, panel.title, column_width=COLUMN_WIDTH, titles=panel.columns if i == 0 else None)
        for i, strip in enumerate(panel.strips)
    ]
    maps = [_strip(strip, f"gradient maps, {panel.title}", column_width=MAP_WIDTH) for strip in panel.map_strips]
    beside = (
        f'<div><p class="note">Gradient maps of the attacked images, label by label:</p>{"".join(maps)}</div>' if maps else ""
    )
    return (
        f"<details{' open' if opened else ''}><summary>{html.escape(panel.title)}</summary>"
        f'<div class="beside"><div>{"".join(pictures)}</div>{beside}</div></details>'
    )


def _images(panels: list[Panel]) -> str:
    note = "Under each picture the class that is seen in it, ✓ where right and ✗ where wrong."
    shown = "".join(_panel(panel, opened=i < OPENED) for i, panel in enumerate(panels))
    return f'<section id="images"><h2>Images</h2><p class="note">{note}</p>{shown}</section>'


def _checks(findings: list[dict[str, Any]]) -> str:
    """Every check: those that fired, then the others, folded."""
    fired, fine = ([found for found in findings if found["fired"] == flag] for flag in (True, False))
    folded = f"<details><summary>{len(fine)} checks that did not fire</summary>{_findings(fine)}</details>" if fine else ""
    return f'<p class="note">{len(fired)} of {len(findings)} fired.</p>{_findings(fired)}{folded}'


def _findings(findings: list[dict[str, Any]]) -> str:
    items = []
    for found in findings:
        name = html.escape(found["name"].replace("_", " "))
        kind, mark = ("fired", "!") if found["fired"] else ("", "✓")
        items.append(f'<li class="{kind}"><b>{mark}</b><span><em>{name}</em> {html.escape(found["text"])}</span></li>')
    return f'<ul class="checks">{"".join(items)}</ul>'


def _fired(findings: list[dict[str, Any]]) -> str:
    """One line that says how many checks fired, and which."""
    fired = [found["name"] for found in findings if found["fired"]]
    names = html.escape(", ".join(dict.fromkeys(name.replace("_", " ") for name in fired)))
    said = f"{len(fired)} of {len(findings)} checks fired" + (f": {names}" if names else "")
    return f'<p class="note"><a href="#checks">{said}</a>.</p>'


def _made(results: dict[str, Any]) -> str:
    lines = "".join(f"<li><code>{html.escape(line)}</code></li>" for line in made(results))
    config = results["made"].get("config")
    text = "" if config is None else html.escape(json.dumps(config, indent=1))
    whole = f'<details><summary>The whole config</summary><pre class="scroll">{text}</pre></details>' if text else ""
    return f'<section id="made"><h2>How it was made</h2><ul class="made">{lines}</ul>{whole}</section>'


def _sections(results: dict[str, Any], panels: list[Panel], drawn: list[Plot]) -> list[tuple[str, str, str]]:
    """The parts of the page in their order: name, title and HTML of each; the curves are one part."""
    first, *others = all_tables(results)
    checks = results["checks"]
    static = _findings([found for found in checks if found["name"] == "static_rule"]) + _fired(checks)
    parts = [(first.name, first.title, _section(first, [], after=static))]
    for curves, tables in groupby(others, key=lambda table: table.name in CURVES):
        if curves:
            cards = "".join(_curve(table, drawn) for table in tables)
            parts.append(("curves", "Curves", f'<section id="curves"><h2>Curves</h2><div class="cards">{cards}</div></section>'))
        else:
            parts += [(table.name, table.title, _section(table, drawn)) for table in tables]
    if panels:
        parts.append(("images", "Images", _images(panels)))
    parts.append(("checks", "Checks", f'<section id="checks"><h2>Checks</h2>{_checks(checks)}</section>'))
    return [*parts, ("made", "How it was made", _made(results))]


def page(results: dict[str, Any], panels: list[Panel], drawn: list[Plot] | None = None) -> str:
    """The report as one HTML page that asks for no other file; readable in light and dark, on a desk and on a phone."""
    title = html.escape(f"Evaluation on {results['data']['name']}")
    classifier = f"Defended classifier: {results['classifier']['name']}, {results['classifier']['parameters']:,} parameters."
    sections = _sections(results, panels, drawn or [])
    contents = "".join(f'<a href="#{name}">{html.escape(text)}</a>' for name, text, _ in sections)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f'<nav aria-label="contents">{contents}</nav><main>',
        f'<h1>{title}</h1><p class="note">{html.escape(classifier)}</p>',
        *(shown for _, _, shown in sections),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"
