"""The networks that are defended."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gandefense import classifiers
from gandefense.classifiers.paper_cnn import PaperCNN
from gandefense.classifiers.resnet import Normalize, Residual, wide_resnet
from gandefense.data import datasets
from gandefense.errors import UserError

CIFAR10 = datasets.describe("cifar10")
FITTING = [name for name in classifiers.CLASSIFIERS if classifiers.SMALLEST.get(name, 0) <= CIFAR10.size]


@pytest.mark.parametrize("architecture", FITTING)
def test_logits_are_one_row_an_image_and_gradients_reach_the_input(architecture: str) -> None:
    network = classifiers.build(architecture, CIFAR10).eval()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    logits = network(images)
    assert logits.shape == (2, 10)
    (gradient,) = torch.autograd.grad(logits[0].square().sum(), images)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0, "one image's logits depend on that image only"


@pytest.mark.parametrize("architecture", FITTING)
def test_normalisation_is_inside(architecture: str) -> None:
    """An image that equals the data set's mean is zero behind the normalisation, which takes no part in the weights."""
    network = classifiers.build(architecture, CIFAR10).eval()
    seen = []
    convolution = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(torch.tensor(CIFAR10.mean).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert seen[0].abs().max() < 1e-6
    assert not [name for name in network.state_dict() if name.endswith((".mean", ".std"))]


def test_the_network_for_faces_looks_at_averages_of_larger_images() -> None:
    small, large = (
        classifiers.build("resnet12_faces", datasets.describe(f"celeba-{size}-Male+Smiling")).eval() for size in (128, 512)
    )
    large.load_state_dict(small.state_dict())
    image = torch.rand(1, 3, 128, 128)
    enlarged = image.repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert small(image).shape == (1, 4) and torch.allclose(small(image), large(enlarged), atol=1e-5)


def test_normalize_known_value() -> None:
    normalised = Normalize((0.5, 0.25), (0.5, 0.125))(torch.tensor([1.0, 0.5]).view(1, 2, 1, 1))
    assert normalised.flatten().tolist() == [1.0, 2.0]


def test_residual_adds_its_input() -> None:
    assert Residual(nn.Flatten(0))(torch.tensor([1.0, 2.0])).tolist() == [2.0, 4.0]


def test_paper_cnn_has_the_layers_of_table_1() -> None:
    network = PaperCNN(classes=10, mean=CIFAR10.mean, std=CIFAR10.std)
    layers = [module for module in network.modules() if not list(module.children()) and not isinstance(module, Normalize)]
    described = []
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            described.append(f"conv {layer.out_channels} {layer.kernel_size[0]}x{layer.kernel_size[1]}")
        elif isinstance(layer, nn.Linear):
            described.append(f"dense {layer.out_features}")
        else:
            described.append(type(layer).__name__)
    assert described == [
        *("conv 128 3x3", "ReLU", "conv 256 3x3", "ReLU", "MaxPool2d", "BatchNorm2d"),
        *("conv 128 3x3", "ReLU", "conv 64 3x3", "ReLU", "MaxPool2d"),
        *("Flatten", "dense 1024", "ReLU", "dense 10"),
    ]


@pytest.mark.parametrize("size", [28, 32, 64])
def test_paper_cnn_follows_the_size_of_the_images(size: int) -> None:
    network = PaperCNN(classes=3, mean=(0.5,), std=(0.5,), size=size).eval()
    assert network(torch.rand(2, 1, size, size)).shape == (2, 3)


@pytest.mark.parametrize(("architecture", "millions"), [("resnet18", 11.17), ("wrn_16_2", 0.69), ("wrn_16_4", 2.75)])
def test_parameter_counts_are_those_of_the_literature(architecture: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in classifiers.build(architecture, CIFAR10).parameters())
    assert round(count / 1e6, 2) == pytest.approx(millions, abs=0.011)


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown classifier 'resnet12'; known: resnet9, resnet9_narrow, resnet11,"):
        classifiers.build("resnet12", CIFAR10)


def test_a_wide_resnet_of_impossible_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="6n \\+ 4"):
        wide_resnet(depth=17, width=2, classes=10, mean=CIFAR10.mean, std=CIFAR10.std)


def test_a_network_for_large_images_is_not_built_for_small_ones() -> None:
    with pytest.raises(UserError, match="resnet12_faces is for images of 64 pixels and more, cifar10 has 32×32"):
        classifiers.build("resnet12_faces", datasets.describe("cifar10"))
