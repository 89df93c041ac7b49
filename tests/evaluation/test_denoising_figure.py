"""The figure of feature denoising."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks.suite import AttackSpec, attack
from gandefense.classifiers.feature_denoising import DenoisingBlock, feature_maps
from gandefense.errors import UserError
from gandefense.evaluation.denoising_figure import denoising_figure, noise

pytest.importorskip("matplotlib")
SPEC = AttackSpec("pgd", eps=0.1, steps=2)


@pytest.fixture
def network() -> nn.Module:
    first, second = DenoisingBlock("mean", 4), DenoisingBlock("none", 4)
    nn.init.ones_(first.norm.weight)  # the second stays the identity
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), first, nn.Conv2d(4, 4, 3, padding=1), second)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 64, 5)).train()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 8, 8)


def test_the_noise_is_the_relative_change() -> None:
    assert noise(torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 2.5)) == pytest.approx(0.25)
    assert noise(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)) == 0


def test_a_picture_is_drawn_and_its_figures_are_those_of_the_maps(network: nn.Module, images: Tensor, tmp_path: Path) -> None:
    from PIL import Image

    labels, path = torch.tensor([0, 1, 2]), tmp_path / "new" / "figure.png"
    found = denoising_figure(network, images, labels, path, spec=SPEC, shown=2)
    assert network.training, "the mode is put back"
    with Image.open(path) as picture:
        assert picture.width > 2 * picture.height > 400
    network.eval()
    attacked = attack(network, images, labels, SPEC).images
    clean, noisy = feature_maps(network, images), feature_maps(network, attacked)
    assert found["n"] == 3
    assert [block["before"] for block in found["blocks"]] == pytest.approx(
        [noise(c.before, n.before) for c, n in zip(clean, noisy, strict=True)]
    )
    first, second = found["blocks"]
    assert first["before"] != pytest.approx(first["after"], rel=1e-3)
    assert second["before"] == second["after"] > 0, "a fresh block is the identity"


@pytest.mark.parametrize("block", [-1, 2])
def test_a_block_that_is_not_there_is_refused(network: nn.Module, images: Tensor, tmp_path: Path, block: int) -> None:
    with pytest.raises(UserError, match=f"has 2 denoising blocks, and none of number {block}"):
        denoising_figure(network, images, torch.tensor([0, 1, 2]), tmp_path / "x.png", spec=SPEC, block=block)
    assert not (tmp_path / "x.png").exists()
