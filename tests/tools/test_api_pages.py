"""tools/api_pages.py: docstrings and config comments as Markdown."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import pytest

TOOL = runpy.run_path(str(Path(__file__).parent.parent.parent / "tools" / "api_pages.py"))

SOURCE = '''
def cut(images: Tensor, size: int = 4, *, eps: float = 8 / 255) -> Tensor:
    """Cut images.

    More about it.

    Args:
        images: (B, C, H, W),
            in [0, 1].
        size: of a side.

    Returns:
        What is left.

    Raises:
        UserError: too small.
    """
'''


def test_a_function_is_its_signature_and_its_docstring_with_lists() -> None:
    (node,) = ast.parse(SOURCE).body
    head, shown, text = TOOL["_function"](node, 3)
    assert head == "### cut"
    assert shown == "```text\ncut(images: Tensor, size: int=4, *, eps: float=8 / 255) -> Tensor\n```"
    assert text == (
        "Cut images.\n\nMore about it.\n\n*Args*\n\n- `images`: (B, C, H, W), in [0, 1].\n- `size`: of a side.\n\n"
        "*Returns*\n\n- What is left.\n\n*Raises*\n\n- `UserError`: too small."
    )


def test_a_class_shows_its_base_how_it_is_made_and_its_public_methods() -> None:
    (node,) = ast.parse(
        'class Blur(Restorer):\n    """Blurs."""\n    def __init__(self, size: int) -> None: ...\n'
        "    def forward(self, images): ...\n    def _own(self): ...\n    @property\n    def width(self) -> int: ...\n"
    ).body
    text = "\n".join(TOOL["_class"](node))
    assert "class Blur(Restorer)\nBlur(size: int)\n" in text and "_own" not in text
    assert "#### Blur.forward\n```text\nforward(images)\n```" in text and "```text\nwidth\n```" in text


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ("EvaluateConfig", ("data.limit", "int | None", "`1000`")),  # given where DataConfig is made
        ("TRNConfig", ("data.limit", "int | None", "`null`")),
        ("GANConfig", ("loop.tolerance", "float", "`4/255`")),
        ("GANConfig", ("attacked.attacks", "list[str]", "`[fgsm, ffgsm, bim, pgd, mim, none]`")),
        ("AttackEntry", ("attack", "str", "needed")),
        ("EvaluateConfig", ("overwrite", "bool", "`false`")),
    ],
)
def test_keys_have_their_types_and_defaults_as_written(config: str, row: tuple[str, str, str]) -> None:
    assert row in [found[:3] for found in TOOL["Source"]().keys(config)]


def test_comments_above_and_behind_a_field_are_its_explanation() -> None:
    about = {key: text for key, *_, text in TOOL["Source"]().keys("EvaluateConfig")}
    assert about["overwrite"] == "throw away what an earlier evaluation left in `output`"
    assert about["classifier"].startswith("the network that is defended")  # a line above
    assert about["restorers"].startswith("same, or")  # behind a field of three lines
