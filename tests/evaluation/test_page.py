"""The HTML page: whole, self-contained, and nothing of a name can break it."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from gandefense.evaluation import plots
from gandefense.evaluation.figures import Panel, Strip
from gandefense.evaluation.page import page
from tests.helpers import results as made

VOID = {"meta", "img", "br"}
PANEL = Panel("p", "trn — x", ["clean"], b"png", [Strip(b"png", ["<cat>"], [True])], [Strip(b"map", ["dog"], [None])])


class Reader(HTMLParser):
    """Checks that tags are nested properly, and collects ids, links and the text of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes["href"]] if "href" in attributes else []
        self.sources += [attributes["src"]] if "src" in attributes else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_page_is_whole_and_asks_for_no_other_file() -> None:
    results = made.complete()
    text = page(results, [PANEL], made.drawn())
    reader = read(text)
    assert {link.removeprefix("#") for link in reader.links} == set(reader.ids), "every link leads somewhere"
    assert len(set(reader.ids)) == len(reader.ids)
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert len(reader.sources) == 3 + 2 + 2, "curves, ROCs, a strip and its gradient maps"
    assert "http://" not in text and "https://" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_parts_stand_in_their_order() -> None:
    results = made.complete()
    order = ["headline", "gray_box", "black_box", "white_box", "curves", "detection", "four_ways", "restoration", "cost"]
    assert read(page(results, [PANEL])).ids == [*order, "images", "checks", "made"]
    assert read(page(results, [])).ids == [*order, "checks", "made"]


def test_rows_of_a_restorer_are_one_group() -> None:
    results = made.complete()
    start = page(results, []).split('<section id="gray_box">')[1].split("</section>")[0]
    heads = [attributes for tag, attributes in read(start + "").tags if tag == "th" and attributes.get("scope") == "rowgroup"]
    assert [head["rowspan"] for head in heads] == ["6", "6", "6"]


def test_bars_are_as_long_as_the_accuracy() -> None:
    text = page(made.complete(), [])
    trn = text.split('<section id="gray_box">')[1].split("82.5 %")[1]
    assert trn.split("</td>")[0].endswith('<i class="bar" style="--share: 82.5%"></i>')


def test_fired_checks_come_first_and_the_others_are_folded() -> None:
    results = made.complete()
    text = page(results, [])
    fired = [finding for finding in results["checks"] if finding["fired"]]
    assert f"{len(fired)} of {len(results['checks'])} checks fired: static rule, randomised, larger eps" in text
    top, folded = text.split('<section id="checks">')[1].split("</section>")[0].split("<details>")
    assert top.count('class="fired"') == len(fired)
    assert 'class="fired"' not in folded and folded.count("<li") == len(results["checks"]) - len(fired)
    assert text.split("</section>")[0].count("<em>static rule</em>") == 3, "right under the headline"


def test_names_cannot_break_the_page() -> None:
    results = made.complete()
    for row in results["rows"]:
        row["restorer"] = row["restorer"].replace("cifar10/trn", "<b>&\"'")
    for part in ("worst_case", "detection", "restoration", "cost", "curves"):
        results[part] = {name.replace("cifar10/trn", "<b>&\"'"): value for name, value in results[part].items()}
    results["checks"].append({"name": "<i>", "fired": True, "text": "x < y."})
    results["made"]["config"] = {"output": "</pre><script>"}
    panel = Panel("p", "<b> & x", ["<clean>"], b"png", [Strip(b"png", ["<cat>"], [True])], [])
    text = page(results, [panel], [plots.Plot("curve_eps", "curve_eps", 'a "plot" <b>', b"png")])
    read(text)
    assert "<b>&amp;" not in text and "<b> " not in text and "<cat>" not in text and "<script>" not in text and "<i>" not in text
    assert "&lt;b&gt;" in text and "&lt;cat&gt;" in text and "x &lt; y." in text


@pytest.mark.parametrize(("right", "kind"), [(True, "right"), (False, "wrong"), (None, "")])
def test_captions_say_whether_they_are_right(right: bool | None, kind: str) -> None:
    text = page(made.complete(), [Panel("p", "t", ["clean"], b"", [Strip(b"", ["cat"], [right])], [])])
    assert f'<span class="{kind}">cat</span>' in text


def test_numbers_of_a_curve_are_open_where_there_is_no_plot() -> None:
    results = made.complete()
    curves = page(results, []).split('<section id="curves">')[1].split("</section>")[0]
    assert curves.count("<details open>") == 3 and "<img" not in curves
    assert page(results, [], made.drawn()).split('<section id="curves">')[1].count("<details open>") == 0


def test_results_without_anything_new_make_a_page() -> None:
    results: dict[str, Any] = made.complete()
    for part in ("curves", "randomised"):
        del results[part]
    del results["data"]["classes"], results["made"]["config"], results["made"]["weights"]
    new = ("loss", "eot_samples", "queries", "survivors", "resubmissions", "resubmitted_accuracy", "mcnemar")
    for row in results["rows"]:
        for key in new:
            row.pop(key)
    for found in results["detection"].values():
        for entry in found["attacks"]:
            del entry["roc"]
    for threats in results["worst_case"].values():
        for entry in threats.values():
            entry.pop("mcnemar", None)
    text = page(results, [PANEL], [])
    assert "curves" not in read(text).ids
    assert "each time" not in text and ">gain<" not in text and ">white_box gain<" not in text
