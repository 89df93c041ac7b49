"""The image-only denoiser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from gandefense.errors import UserError
from gandefense.restorers.baselines.denoiser import DenoiserRestorer, DenoisingUNet, from_weights
from gandefense.restorers.layers import NORMS


def _network(*, random: bool = True, **options: object) -> DenoisingUNet:
    network = DenoisingUNet(**{"channels": 3, "widths": [8, 16], **options})
    if random:
        nn.init.normal_(network.out.weight, std=0.1)
    return network.eval()


@pytest.mark.parametrize("widths", [[8], [8, 16], [8, 16, 16]])
@pytest.mark.parametrize("norm", NORMS)
def test_it_starts_as_the_identity(widths: list[int], norm: str) -> None:
    images = torch.rand(2, 3, 12, 12)
    assert torch.equal(_network(random=False, widths=widths, norm=norm)(images), images)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 9, 15), (3, 32, 32)])
def test_shapes_and_range(channels: int, height: int, width: int) -> None:
    images = torch.rand(2, channels, height, width)
    network = _network(channels=channels, widths=[8, 16, 16])
    nn.init.normal_(network.out.weight, std=3.0)
    restored = network(images)
    assert restored.shape == images.shape
    assert restored.min() >= 0 and restored.max() <= 1
    assert not torch.equal(restored, images)


def test_an_image_is_denoised_the_same_alone_and_in_a_batch() -> None:
    network, images = _network(), torch.rand(3, 3, 12, 12)
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-5)


def test_restoration_and_its_gradient() -> None:
    restorer = DenoiserRestorer(_network(), threshold=1.0).double().eval()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64) * 0.2 + 0.4
    restoration = restorer(images)
    assert torch.equal(restoration.maps["residual"], images - restoration.images)
    assert torch.allclose(restoration.score, restoration.maps["residual"].square().mean((1, 2, 3)).sqrt() * 255)
    assert torch.equal(restoration.flagged, restoration.score > 1)
    point, along = images.clone().requires_grad_(True), torch.randn_like(images)
    (gradient,) = torch.autograd.grad(restorer.scored(point, "exact")[1].sum(), point)
    with torch.no_grad():
        there, back = (restorer(images + sign * 1e-6 * along).score.sum() for sign in (1, -1))
    assert (gradient * along).sum().item() == pytest.approx(((there - back) / 2e-6).item(), rel=1e-3)


def test_the_untouched_image_has_no_score_and_no_gradient_that_is_no_number() -> None:
    restorer, point = DenoiserRestorer(_network(random=False)), torch.rand(2, 3, 8, 8, requires_grad=True)
    score = restorer(point).score
    assert (score == 0).all()
    assert torch.autograd.grad(score.sum(), point)[0].isfinite().all()


def test_a_file_gives_the_same_restorer_again() -> None:
    network, images = _network(), torch.rand(2, 3, 12, 12)
    description = {"network": {"channels": 3, "widths": [8, 16], "norm": "group"}, "threshold": 2.0}
    again = from_weights(network.state_dict(), description, nn.Identity(), Path("a file")).eval()
    assert torch.equal(again(images).images, network(images))
    assert again.threshold == 2.0
    with pytest.raises(UserError, match="a file: its description of the network is incomplete"):
        from_weights({}, {}, nn.Identity(), Path("a file"))


@pytest.mark.parametrize("widths", [[], [12], [0], [8, 20]])
def test_bad_widths_are_refused(widths: list[int]) -> None:
    with pytest.raises(UserError, match="multiples of 8"):
        _network(widths=widths)
