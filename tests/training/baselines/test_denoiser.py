"""The denoiser's guides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gandefense.errors import UserError
from gandefense.training.baselines.denoiser import GUIDES, guidance
from tests.helpers.networks import small_cnn


def test_what_each_guide_compares() -> None:
    classifier, images = small_cnn(nn.Tanh), torch.rand(2, 3, 6, 6)
    assert torch.equal(guidance("pixels", classifier, images), images.flatten(1))
    assert torch.equal(guidance("logits", classifier, images), classifier(images))
    features = guidance("features", classifier, images)
    assert torch.equal(classifier[-1](features), classifier(images)), "the last linear layer reads the features"


@pytest.mark.parametrize("guide", GUIDES)
def test_the_gradient_reaches_the_image(guide: str) -> None:
    classifier, images = small_cnn(nn.Tanh), torch.rand(2, 3, 6, 6, requires_grad=True)
    guidance(guide, classifier, images).abs().sum().backward()
    assert images.grad.abs().sum() > 0


def test_no_hook_is_left_behind() -> None:
    classifier = small_cnn(nn.Tanh)
    guidance("features", classifier, torch.rand(2, 3, 6, 6))
    assert not any(module._forward_pre_hooks for module in classifier.modules())


def test_bad_guides_are_refused() -> None:
    images = torch.rand(2, 3, 6, 6)
    with pytest.raises(UserError, match=r"unknown train\.guide 'nonsense'; known: logits, features, pixels"):
        guidance("nonsense", small_cnn(nn.Tanh), images)
    with pytest.raises(UserError, match="ends in a linear layer"):
        guidance("features", nn.Sequential(nn.Conv2d(3, 4, 6), nn.Flatten()), images)
