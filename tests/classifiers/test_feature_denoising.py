"""Feature denoising blocks, each operation against its definition."""

from __future__ import annotations

import math

import kornia
import pytest
import torch
from torch import Tensor, nn

from gandefense import classifiers
from gandefense.classifiers.feature_denoising import (
    OPERATIONS,
    DenoisingBlock,
    NonLocal,
    bilateral,
    dot_product,
    feature_maps,
    mean,
    median,
)
from gandefense.classifiers.resnet import ShallowResNet
from gandefense.data import datasets
from gandefense.errors import UserError

CIFAR10 = datasets.describe("cifar10")


def _network(denoise: str | None) -> ShallowResNet:
    torch.manual_seed(0)
    return ShallowResNet(
        classes=10, mean=CIFAR10.mean, std=CIFAR10.std, widths=(4, 6, 8, 8), residual_stages=(0,), denoise=denoise
    ).eval()


@pytest.fixture
def features() -> Tensor:
    return torch.randn(2, 3, 4, 5)


def _positions(features: Tensor) -> list[list[Tensor]]:
    """The feature vector of every position of every image."""
    height, width = features.shape[2:]
    return [[image[:, y, x] for y in range(height) for x in range(width)] for image in features]


@pytest.mark.parametrize("embedded", [True, False])
def test_non_local_against_a_double_loop(features: Tensor, embedded: bool) -> None:
    operation = NonLocal(3, embedded=embedded)
    theta = phi = torch.eye(3)
    if embedded:
        nn.init.normal_(operation.theta.weight)
        nn.init.normal_(operation.phi.weight)
        theta, phi = operation.theta.weight[:, :, 0, 0], operation.phi.weight[:, :, 0, 0]
        assert theta.shape == (1, 3), "half the channels"
    found = operation(features).flatten(2)
    for b, vectors in enumerate(_positions(features)):
        for i, query in enumerate(vectors):
            logits = torch.stack([(theta @ query) @ (phi @ key) / math.sqrt(len(theta)) for key in vectors])
            expected = sum(weight * value for weight, value in zip(logits.softmax(0), vectors, strict=True))
            assert torch.allclose(found[b, :, i], expected, atol=1e-5)


def test_keys_and_values_are_pooled_where_there_would_be_too_many_weights(features: Tensor) -> None:
    """20 positions and a 2×3 grid of keys: the same as attending to the pooled map."""
    found = NonLocal(3, embedded=False, most_weights=20 * 6)(features)
    pooled = nn.functional.max_pool2d(features, 2, ceil_mode=True).flatten(2)
    assert pooled.shape[2] == 6
    weights = (features.flatten(2).transpose(1, 2) @ pooled / math.sqrt(3)).softmax(2)
    assert torch.allclose(found.flatten(2), pooled @ weights.transpose(1, 2), atol=1e-6)
    assert not torch.allclose(found, NonLocal(3, embedded=False)(features), atol=1e-3)


def test_dot_product_weights_are_divided_by_the_number_of_positions(features: Tensor) -> None:
    found = dot_product(features).flatten(2)
    for b, vectors in enumerate(_positions(features)):
        for i, query in enumerate(vectors):
            expected = sum((query @ key) * key for key in vectors) / 20
            assert torch.allclose(found[b, :, i], expected, atol=1e-5)


def test_local_operations_by_hand() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    assert mean(image)[0, 0, 1, 1] == 4
    assert mean(image)[0, 0, 0, 0] == 2, "of the four inside: 0, 1, 3, 4"
    image[0, 0, 1, 1] = 100.0
    assert median(image)[0, 0, 1, 1] == 5, "of 0 1 2 3 5 6 7 8 100"
    flat = torch.full((1, 4, 5, 5), 3.0)
    assert torch.allclose(bilateral(flat), flat)


def test_the_bilateral_filter_keeps_edges_that_the_mean_blurs() -> None:
    image = torch.zeros(1, 2, 5, 6)
    image[..., 3:] = 20.0
    assert (bilateral(image) - image).abs().max() < 1e-3
    assert (mean(image) - image).abs().max() > 5


def test_bilateral_is_a_blur_for_small_differences() -> None:
    image = 1e-3 * torch.randn(1, 3, 6, 6)
    assert torch.allclose(bilateral(image), kornia.filters.gaussian_blur2d(image, (3, 3), (1.0, 1.0)), atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_fresh_block_is_the_identity_and_learns_to_be_more(operation: str, features: Tensor) -> None:
    block = DenoisingBlock(operation, 3).train()
    assert torch.equal(block(features), features)
    optimiser = torch.optim.SGD(block.parameters(), lr=0.5)
    for _ in range(2):  # the first step moves the norm's scale alone
        optimiser.zero_grad()
        block(features).square().sum().backward()
        optimiser.step()
    assert not torch.allclose(block(features), features, atol=1e-3)
    assert all(parameter.grad.any() for parameter in block.parameters())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_operations_keep_the_shape_in_either_memory_layout(operation: str, layout: torch.memory_format) -> None:
    module, features = OPERATIONS[operation](4), torch.randn(2, 4, 6, 5)
    found = module(features.contiguous(memory_format=layout))
    assert found.shape == features.shape
    assert torch.allclose(found, module(features), atol=1e-5)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_of_the_first_and_second_order(operation: str) -> None:
    module = OPERATIONS[operation](2).double()
    features = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, features)
    assert torch.autograd.gradgradcheck(module, features)


def test_a_denoising_network_starts_as_the_plain_one() -> None:
    plain, denoising = _network(None), _network("embedded_gaussian")
    blocks = [module for module in denoising.modules() if isinstance(module, DenoisingBlock)]
    assert [block.convolution.in_channels for block in blocks] == [4, 6, 8, 8], "after the stem and each stage"
    weights = iter(tensor for name, tensor in plain.state_dict().items())
    with torch.no_grad():
        inside = {id(tensor) for block in blocks for tensor in block.state_dict(keep_vars=True).values()}
        for tensor in denoising.state_dict(keep_vars=True).values():
            if id(tensor) not in inside:
                tensor.copy_(next(weights))
    images = torch.rand(3, 3, 32, 32)
    assert torch.allclose(denoising(images), plain(images), atol=1e-6)


def test_maps_before_and_after_every_block() -> None:
    network, images = _network("mean"), torch.rand(2, 3, 32, 32)
    blocks = [module for module in network.modules() if isinstance(module, DenoisingBlock)]
    for block in blocks:
        nn.init.ones_(block.norm.weight)
    seen = feature_maps(network, images)
    assert [tuple(maps.before.shape[1:]) for maps in seen] == [(4, 32, 32), (6, 16, 16), (8, 8, 8), (8, 4, 4)]
    with torch.no_grad():
        assert all(torch.equal(maps.after, block(maps.before)) for maps, block in zip(seen, blocks, strict=True))
        assert not any(torch.allclose(maps.after, maps.before) for maps in seen)
        network(images)
    assert len(seen) == 4, "the hooks are gone"
    assert feature_maps(_network(None), images) == []


def test_every_operation_is_an_architecture() -> None:
    for name in OPERATIONS:
        network = classifiers.build(f"resnet9_narrow_denoise_{name}", CIFAR10)
        assert sum(isinstance(module, DenoisingBlock) for module in network.modules()) == 4


def test_an_unknown_operation_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown denoising operation 'box'; known: embedded_gaussian, gaussian,"):
        DenoisingBlock("box", 3)
