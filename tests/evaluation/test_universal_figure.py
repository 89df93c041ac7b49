"""The figure of a universal perturbation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from gandefense.attacks.suite import AttackSpec, predict
from gandefense.errors import UserError
from gandefense.evaluation import plots, universal_figure
from gandefense.evaluation.universal_figure import universal_figure as draw
from tests.helpers.networks import small_cnn

SPEC = AttackSpec("universal", eps=0.2, steps=10)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_and_what_it_shows(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    network, images = small_cnn(nn.Tanh, channels=channels), torch.rand(40, channels, 6, 6)
    labels = predict(network, images)
    labels[20] = (labels[20] + 1) % 4  # wrong clean, so never shown
    drawn: list[tuple] = []
    real = universal_figure._draw
    monkeypatch.setattr(universal_figure, "_draw", lambda *what: (drawn.append(what), real(*what)))
    figures = draw(network, images, labels, tmp_path / "new" / "figure.png", spec=SPEC, names=("a", "b", "c", "d"), shown=3)
    (_, pattern, caption, (clean, attacked), title) = drawn[0]
    assert figures["n"] == 20 and figures["clean_accuracy"] == 19 / 20 and figures["accuracy"] < 19 / 20
    assert (figures["eps"], figures["steps"], figures["gain"]) == (0.2, 10, 2.5) and caption == "perturbation\n×2.5"
    assert f"{100 * figures['accuracy']:.1f} %" in title and "51/255" in title
    assert [torch.equal(picture, images[21 + i]) for i, (picture, _, _) in enumerate(clean)] == [True] * 3
    delta = (pattern - 0.5) / figures["gain"]
    for (before, said, colour), (after, now, then) in zip(clean, attacked, strict=True):
        assert torch.allclose(after, (before + delta).clamp(0, 1), atol=1e-6)
        assert said in "abcd" and colour == universal_figure.RIGHT
        assert then == (universal_figure.RIGHT if now == said else universal_figure.WRONG)
    with Image.open(tmp_path / "new" / "figure.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 300


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, images, labels = small_cnn(nn.Tanh), torch.rand(4, 3, 6, 6), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(UserError, match="needs a universal attack and at least two images"):
        draw(network, images, labels, tmp_path / "x.png", spec=AttackSpec("pgd"))
    with pytest.raises(UserError, match="at least two images"):
        draw(network, images[:1], labels[:1], tmp_path / "x.png")
    monkeypatch.setattr(plots, "available", lambda: False)
    with pytest.raises(UserError, match="figures need matplotlib"):
        draw(network, images, labels, tmp_path / "x.png", spec=SPEC)
    assert not list(tmp_path.iterdir())
