"""The perturbation classifier."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gandefense.attacks.level import perturbation_level
from gandefense.restorers.perturbation_classifier import PerturbationClassifier


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Images, what an ISMN left of them, and a code."""
    images = torch.rand(4, 3, 16, 16)
    return images, (images + 0.03 * torch.randn_like(images)).clamp(0, 1), torch.rand(4, 128)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 64)])
def test_a_logit_and_a_level_for_each_image(channels: int, size: int) -> None:
    images = torch.rand(3, channels, size, size)
    logit, level = PerturbationClassifier(channels=channels)(images, images, torch.rand(3, 128))
    assert (logit.shape, level.shape) == ((3,), (3,))
    assert (logit.dtype, level.dtype) == (torch.float32, torch.float32)


def test_the_level_is_never_negative(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    network = PerturbationClassifier(channels=3)
    for bias in (-100.0, 0.0, 5.0):
        network.head[-1].bias.data[1] = bias
        level = network(*inputs)[1]
        assert (level >= 0).all()
        assert (level.mean() > 0.4) == (bias == 5)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_image_difference_and_code_all_matter(inputs: tuple[Tensor, Tensor, Tensor], part: int) -> None:
    network = PerturbationClassifier(channels=3)
    changed = list(inputs)
    changed[part] = inputs[part].flip(-1)
    with torch.no_grad():
        for before, after in zip(network(*inputs), network(*changed), strict=True):
            assert not torch.allclose(before, after, rtol=0, atol=1e-6)


def test_each_image_is_judged_alone(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    network = PerturbationClassifier(channels=3)
    with torch.no_grad():
        together = torch.stack(network(*inputs))
        alone = torch.cat([torch.stack(network(*(part[i : i + 1] for part in inputs))) for i in range(4)], dim=1)
    assert torch.allclose(together, alone, atol=1e-6)


def test_it_learns_to_tell_attacked_from_clean_and_by_how_much() -> None:
    network = PerturbationClassifier(channels=3, width=8)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    clean = torch.full((32, 3, 8, 8), 0.5)
    truth = torch.arange(32) % 2
    for _ in range(60):
        noise = torch.randn_like(clean) * 0.1 * truth[:, None, None, None]
        logit, level = network(clean + noise, clean, torch.zeros(32, 128))
        wanted = perturbation_level(clean + noise, clean)
        loss = F.binary_cross_entropy_with_logits(logit, truth.float()) + 5 * (level - wanted).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert ((logit > 0) == (truth == 1)).all()
    assert (level - wanted).abs().mean() < 0.03, "the levels to tell apart are 0 and 0.2"
