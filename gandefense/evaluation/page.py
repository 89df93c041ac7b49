"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from typing import Any

from gandefense.evaluation.figures import Panel, Strip
from gandefense.evaluation.report_tables import Table, all_tables, made

COLUMN_WIDTH, MAP_WIDTH = 132, 68  # of one picture on the page, in pixels

STYLE = """
:root { color-scheme: light dark; --text: #1d1f23; --soft: #5c6370; --line: #dcdfe4; --back: #fdfdfc;
  --card: #f4f4f1; --good: #1b7f4b; --bad: #b3372f; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e6ea; --soft: #9aa2ae; --line: #363b43; --back: #16181c; --card: #1f2227; --good: #5fc48f; --bad: #f0857c; }
}
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 68rem; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .3rem; }
p.note, .soft { color: var(--soft); max-width: 48rem; margin: .2rem 0 .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: left; padding: .32rem 1.1rem .32rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
.headline table { font-size: 1.05rem; }
.headline td:first-child { font-weight: 600; }
ul.checks { list-style: none; padding: 0; }
ul.checks li { padding: .3rem .8rem; margin: .3rem 0; border-left: 3px solid var(--good); background: var(--card); }
ul.checks li.fired { border-color: var(--bad); }
.strip { display: inline-block; max-width: 100%; margin: 0 0 .9rem; }
.strip img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.captions { display: grid; font-size: .78rem; text-align: center; color: var(--soft); }
.right { color: var(--good); }
.wrong { color: var(--bad); }
details { margin: .6rem 0; }
summary { cursor: pointer; }
code { overflow-wrap: anywhere; }
"""


def _html_table(table: Table, kind: str = "") -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return (
        f'<section class="{kind}"><h2>{html.escape(table.title)}</h2><p class="note">{html.escape(table.note)}</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div></section>'
    )


def _captions(texts: list[str], right: list[bool | None]) -> str:
    kinds = {True: "right", False: "wrong", None: ""}
    cells = "".join(f'<span class="{kinds[flag]}">{html.escape(text)}</span>' for text, flag in zip(texts, right, strict=True))
    return f'<div class="captions" style="grid-template-columns: repeat({len(texts)}, 1fr)">{cells}</div>'


def _html_strip(strip: Strip, alt: str, *, column_width: int, titles: list[str] | None = None) -> str:
    data = base64.b64encode(strip.png).decode()
    above = _captions(titles, [None] * len(titles)) if titles else ""
    picture = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
    width = len(strip.captions) * column_width
    return f'<div class="strip" style="width: {width}px">{above}{picture}{_captions(strip.captions, strip.right)}</div>'


def _html_panel(panel: Panel, opened: bool) -> str:
    start = "<details open>" if opened else "<details>"
    parts = [f"{start}<summary>{html.escape(panel.title)}</summary>"]
    for i, strip in enumerate(panel.strips):
        titles = panel.columns if i == 0 else None
        parts.append(_html_strip(strip, panel.title, column_width=COLUMN_WIDTH, titles=titles) + "<br>")
    if panel.map_strips:
        parts.append('<p class="soft">Gradient maps of the attacked images, label by label:</p>')
    for strip in panel.map_strips:
        parts.append(_html_strip(strip, f"gradient maps, {panel.title}", column_width=MAP_WIDTH) + "<br>")
    return "".join(parts) + "</details>"


def _findings(findings: list[dict[str, Any]]) -> str:
    items = (f'<li class="{"fired" if found["fired"] else ""}">{html.escape(found["text"])}</li>' for found in findings)
    return f'<ul class="checks">{"".join(items)}</ul>'


def page(results: dict[str, Any], panels: list[Panel]) -> str:
    """The report as one HTML page that asks for no other file; readable in light and dark."""
    first, *others = all_tables(results)
    title = html.escape(f"Evaluation on {results['data']['name']}")
    classifier = f"Defended classifier: {results['classifier']['name']}, {results['classifier']['parameters']:,} parameters."
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{STYLE}</style></head><body>",
        f'<h1>{title}</h1><p class="soft">{html.escape(classifier)}</p>',
        _html_table(first, "headline"),
        _findings([found for found in results["checks"] if found["name"] == "static_rule"]),
        *(_html_table(table) for table in others),
        "<h2>Checks</h2>",
        _findings(results["checks"]),
    ]
    if panels:
        parts.append('<h2>Images</h2><p class="note">Under each picture the class that is seen in it, green where right.</p>')
        parts += [_html_panel(panel, opened=i < 2) for i, panel in enumerate(panels)]
    lines = "".join(f"<li><code>{html.escape(line)}</code></li>" for line in made(results))
    parts.append(f"<h2>How it was made</h2><ul>{lines}</ul></body></html>")
    return "\n".join(parts) + "\n"
