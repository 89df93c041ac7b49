"""Figures of the committed results and cards, as the pages write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
USUAL = ("fgsm", "ffgsm", "bim-10", "pgd-20", "mim-10")  # the five attacks that every restorer meets, by title


def results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8"))


def card(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "gandefense" / "weights" / f"{name}.json").read_text(encoding="utf-8"))


def text_of(page: str) -> str:
    """A page as one line, so that it does not matter where its lines end."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def percent(figure: dict[str, Any]) -> str:
    return f"{100 * figure['accuracy']:.1f} %"


def interval(figure: dict[str, Any]) -> str:
    return f"[{', '.join(f'{100 * end:.1f}' for end in figure['ci95'])}]"


def spanned(figure: dict[str, Any]) -> str:
    return f"{percent(figure)} {interval(figure)}"


def in_a_table(figure: dict[str, Any]) -> str:
    return spanned(figure).replace(" %", "")


def signed(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def speaker(made: dict[str, Any], restorer: str) -> Callable[..., str]:
    """What a page says of a restorer under an attack: title and threat (gray_box if none is given) → accuracy and interval."""
    rows = {(row["title"], row["threat"]): row for row in made["rows"] if row["restorer"] == restorer}
    return lambda title, threat="gray_box": spanned(rows[title, threat])


def under_unseen_attacks(made: dict[str, Any], restorer: str, *, said_of_autoattack: str) -> str:
    """The sentence of docs/measured.md about a restorer under the attacks of configs/evaluate/cifar10_unseen.yaml."""
    spoken = speaker(made, restorer)
    return (
        f"{said_of_autoattack} {spoken('autoattack')}, Square {spoken('square-1000')}, another classifier's PGD-20 "
        f"{spoken('pgd-20', 'black_box')}, DeepFool {spoken('deepfool-50')}, C&W {spoken('cw-30')}, in the gray_box worst case "
        f"{spanned(made['worst_case'][restorer]['gray_box'])} (n = 1,000"
    )
