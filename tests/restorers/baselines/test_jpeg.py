"""JPEG before the classifier: libjpeg's pixels, a differentiable codec's gradient, SHIELD's random blocks."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gandefense.config import DataConfig
from gandefense.data import datasets, sources
from gandefense.data.batches import to_float
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.baselines.jpeg import JPEG, Shield, compressed, softly_compressed
from tests.helpers.networks import small_cnn


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * ((a - b) ** 2).mean().log10().item()


def smooth(*shape: int) -> Tensor:
    """Images without the sharp edges that no codec keeps."""
    coarse = torch.rand(*shape[:2], 4, 4)
    return nn.functional.interpolate(coarse, size=shape[2:], mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (2, 3, 17, 23), (2, 1, 28, 28), (1, 3, 5, 40), (0, 3, 32, 32)])
def test_values_are_those_of_a_jpeg_file(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    restored = JPEG(quality=30)(images).images
    assert restored.shape == images.shape and restored.dtype == images.dtype
    for image, there in zip(images, restored, strict=True):
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels if shape[1] == 3 else pixels[:, :, 0]).save(file, "JPEG", quality=30)
        expected = np.asarray(Image.open(file)).reshape(pixels.shape)
        assert np.array_equal((there * 255).round().byte().permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("size", [(32, 32), (20, 37)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_differentiable_codec_is_near_the_real_one(size: tuple[int, int], channels: int) -> None:
    images = smooth(4, channels, *size)
    for quality in (20, 75, 95):
        real, soft = compressed(images, quality), softly_compressed(images, quality)
        assert soft.shape == images.shape
        assert psnr(real, soft) > max(35, psnr(real, images) + 1), quality


@pytest.mark.skipif(not (sources.data_root() / "cifar10" / "test_batch.bin").is_file(), reason="CIFAR-10 is not here")
@pytest.mark.parametrize("quality", [20, 40, 75])
def test_the_differentiable_codec_is_near_the_real_one_on_real_images(quality: int) -> None:
    images = to_float(datasets.load(DataConfig(limit=50), "test", seed=0).images)
    real, soft = compressed(images, quality), softly_compressed(images, quality)
    assert psnr(real, soft) > 35
    assert psnr(real, soft) > psnr(real, images) + 5


@pytest.mark.parametrize("restorer", [JPEG(50), Shield()])
@pytest.mark.parametrize("view", ["detached", "exact", "smooth"])
def test_views_have_real_values_and_the_soft_codecs_gradient(restorer: nn.Module, view: str) -> None:
    images = smooth(2, 3, 24, 24).requires_grad_(True)
    weights = torch.randn(2, 3, 24, 24)
    torch.manual_seed(1)
    values, score = restorer.scored(images, view)
    assert values.min() >= 0 and values.max() <= 1 and (score == 0).all()
    torch.manual_seed(1)
    assert torch.allclose(values, restorer(images.detach()).images, atol=1e-6)
    (gradient,) = torch.autograd.grad((values * weights).sum(), images)
    assert gradient.isfinite().all() and (gradient != 0).float().mean() > 0.9
    if isinstance(restorer, JPEG):
        expected = torch.autograd.grad((softly_compressed(images, 50) * weights).sum(), images)[0]
        assert torch.allclose(gradient, expected)


def test_the_soft_codecs_gradient_is_that_of_finite_differences() -> None:
    images = smooth(1, 3, 16, 16).double().requires_grad_(True)
    weights, direction = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((softly_compressed(images, 60) * weights).sum(), images)
    there, back = (softly_compressed(images.detach() + step * 1e-7 * direction, 60) for step in (1, -1))
    assert ((there - back) * weights).sum().item() / 2e-7 == pytest.approx((gradient * direction).sum().item(), rel=1e-3)


def test_straight_through_sees_real_values_and_the_identitys_gradient() -> None:
    network = small_cnn(nn.Tanh, size=16)
    images = smooth(2, 3, 16, 16)
    defended = DefendedClassifier(JPEG(40), network)
    point = images.clone().requires_grad_(True)
    logits = defended.view("straight_through")(point)
    assert torch.allclose(logits, defended(images), atol=1e-4)
    inner = compressed(images, 40).requires_grad_(True)
    expected = torch.autograd.grad(network(inner).sum(), inner)[0]
    assert torch.allclose(torch.autograd.grad(logits.sum(), point)[0], expected, atol=1e-4)


def test_shield_takes_every_block_from_one_quality() -> None:
    images = torch.rand(6, 3, 24, 20)
    torch.manual_seed(0)
    mixed = Shield((10, 50, 90))(images).images
    versions = torch.stack([compressed(images, quality) for quality in (10, 50, 90)])
    taken = torch.zeros(3)
    for i in range(6):
        for top in range(0, 24, 8):
            for left in range(0, 20, 8):
                part = (i, slice(None), slice(top, top + 8), slice(left, left + 8))
                same = torch.tensor([torch.equal(mixed[part], version[part]) for version in versions])
                assert same.sum() == 1
                taken += same
    assert (taken > 54 / 3 / 3).all(), "all qualities are drawn, about equally often"


def test_shield_is_random_and_a_seed_decides() -> None:
    images, draws = torch.rand(2, 3, 32, 32), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append(Shield()(images).images)
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(Shield([75])(images).images, JPEG()(images).images), "one quality leaves nothing to chance"


@pytest.mark.parametrize("restorer", [JPEG(), Shield()])
def test_nothing_is_detected(restorer: nn.Module) -> None:
    restoration = restorer(torch.rand(3, 3, 16, 16))
    assert restoration.score.tolist() == [0, 0, 0] and restoration.flagged.tolist() == [False] * 3
    assert restoration.level.isnan().all() and restoration.maps == {}


@pytest.mark.parametrize("quality", [0, 101, -5])
def test_qualities_that_there_are_none_of(quality: int) -> None:
    for make in (lambda: JPEG(quality), lambda: Shield([50, quality])):
        with pytest.raises(UserError, match=f"quality lies between 1 and 100, got {quality}"):
            make()
