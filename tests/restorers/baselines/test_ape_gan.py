"""APE-GAN's networks and losses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from gandefense.errors import UserError
from gandefense.restorers.baselines.ape_gan import (
    ADVERSARIAL_WEIGHT,
    MSE_WEIGHT,
    APEDiscriminator,
    APEGANRestorer,
    APEGenerator,
    discriminator_loss,
    from_weights,
    generator_loss,
)

WEIGHTS = {"mse_weight": MSE_WEIGHT, "adversarial_weight": ADVERSARIAL_WEIGHT}


def _generator(**options: int) -> APEGenerator:
    return APEGenerator(**{"channels": 3, "width": 4, **options}).eval()


def test_the_generators_loss_by_hand() -> None:
    clean, restored = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)
    fake = torch.tensor([0.0, math.log(3)])  # D = 1/2 and 3/4
    expected = 0.7 * 0.25 + 0.3 * (math.log(2) + math.log(4 / 3)) / 2
    assert generator_loss(restored, clean, fake, **WEIGHTS).item() == pytest.approx(expected, rel=1e-6)
    weighed = generator_loss(restored, clean, fake, mse_weight=2.0, adversarial_weight=0.0)
    assert weighed.item() == pytest.approx(0.5)


def test_the_discriminators_loss_by_hand() -> None:
    real, fake = torch.tensor([math.log(3), math.log(3)]), torch.tensor([0.0, -math.log(3)])  # D = 3/4, 3/4; 1/2, 1/4
    expected = math.log(4 / 3) + (math.log(2) + math.log(4 / 3)) / 2
    assert discriminator_loss(real, fake).item() == pytest.approx(expected, rel=1e-6)


def test_the_two_want_opposite_things_of_a_restored_image() -> None:
    fake, image = torch.tensor([0.3], requires_grad=True), torch.zeros(1, 1, 1, 1)
    (cheats,) = torch.autograd.grad(generator_loss(image, image, fake, **WEIGHTS), fake)
    (detects,) = torch.autograd.grad(discriminator_loss(torch.zeros(1), fake), fake)
    assert cheats < 0 < detects


def test_the_published_layers() -> None:
    convolutions = [layer for layer in APEGenerator(channels=3).layers if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [(type(layer).__name__, layer.out_channels) for layer in convolutions] == [
        ("Conv2d", 64),
        ("Conv2d", 128),
        ("ConvTranspose2d", 64),
        ("ConvTranspose2d", 3),
    ]
    assert all(layer.kernel_size == (4, 4) and layer.stride == (2, 2) for layer in convolutions)
    assert sum(isinstance(layer, nn.Conv2d) for layer in APEDiscriminator(channels=3, size=32).modules()) == 3


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 9, 15), (3, 32, 32)])
def test_shapes_and_range(channels: int, height: int, width: int) -> None:
    images, network = torch.rand(2, channels, height, width), _generator(channels=channels)
    nn.init.normal_(network.layers[-2].weight, std=10.0)
    restored = network(images)
    assert restored.shape == images.shape
    assert 0 <= restored.min() < 0.1 and 0.9 < restored.max() <= 1


@pytest.mark.parametrize("size", [28, 30, 32])
def test_the_discriminator_gives_one_logit_an_image(size: int) -> None:
    assert APEDiscriminator(channels=1, size=size, width=2)(torch.rand(3, 1, size, size)).shape == (3,)


def test_one_pass_that_detects_nothing_and_has_a_true_gradient() -> None:
    restorer = APEGANRestorer(_generator()).double().eval()
    images, along = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    restoration = restorer(images)
    assert torch.equal(restoration.images, restorer.network(images))
    assert (restoration.score == 0).all() and not restoration.flagged.any() and restoration.level.isnan().all()
    assert torch.equal(restoration.maps["residual"], images - restoration.images)
    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(restorer.differentiable(point, "exact").square().sum(), point)
    with torch.no_grad():
        there, back = (restorer(images + sign * 1e-6 * along).images.square().sum() for sign in (1, -1))
    assert (gradient * along).sum().item() == pytest.approx(((there - back) / 2e-6).item(), rel=1e-3)


def test_an_image_is_restored_the_same_alone_and_in_a_batch() -> None:
    network, images = _generator(), torch.rand(3, 3, 12, 12)
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-5)


def test_a_file_gives_the_same_restorer_again() -> None:
    network, images = _generator(), torch.rand(2, 3, 12, 12)
    description = {"network": {"channels": 3, "width": 4}}
    again = from_weights(network.state_dict(), description, nn.Identity(), Path("a file")).eval()
    assert torch.equal(again(images).images, network(images))
    with pytest.raises(UserError, match="a file: its description of the network is incomplete"):
        from_weights({}, {}, nn.Identity(), Path("a file"))
