"""What is measured: the shipped defences, a batch of images, networks of random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gandefense import zoo
from gandefense.benchmark.settings import BenchmarkConfig, batch_size
from gandefense.classifiers.resnet import ShallowResNet
from gandefense.data import datasets
from gandefense.data.batches import to_float
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.restorers.trn import TRNRestorer, TwoStreamRestorationNetwork


@dataclass
class Subjects:
    """What every part of the benchmark works on.

    Attributes:
        device: where.
        trn: the TRN defence.
        gan: the GAN defence.
        data: the data set of both.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) the classifier's own predictions, so that every image has to be attacked.
        real: whether the images are real test images; random ones else.
    """

    device: torch.device
    trn: DefendedClassifier
    gan: DefendedClassifier
    data: datasets.Dataset
    images: Tensor
    labels: Tensor
    real: bool

    @property
    def classifier(self) -> nn.Module:
        """The classifier whose gradient maps are taken and which is attacked."""
        return self.trn.classifier


def load(config: BenchmarkConfig, device: torch.device) -> Subjects:
    """Load defences and images; random images where the data set is not on disk.

    Raises:
        UserError: an unknown network, or one that is no TRN or no GAN defence.
    """
    trn, gan = zoo.load(config.trn), zoo.load(config.gan)
    if not isinstance(trn.restorer, TRNRestorer):
        raise UserError(f"trn={config.trn} is no TRN")
    if not isinstance(gan.restorer, GANRestorer):
        raise UserError(f"gan={config.gan} is no GAN defence")
    for defended in (trn, gan):
        defended.to(device).requires_grad_(False)
    data = datasets.describe(zoo.describe(config.trn)["data"])
    count = batch_size(config, device)
    images, real = _images(config, data, count)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        labels = trn.classifier(images).argmax(1)
    return Subjects(device, trn, gan, data, images, labels, real)


def _images(config: BenchmarkConfig, data: datasets.Dataset, count: int) -> tuple[Tensor, bool]:
    try:
        found = datasets.load(config.data, "test", seed=config.seed)
    except UserError:
        generator = torch.Generator().manual_seed(config.seed)
        return torch.rand(count, data.channels, data.size, data.size, generator=generator), False
    chosen = torch.arange(count) % len(found.labels)
    return to_float(found.images[chosen]), True


def random_classifier(labels: int, device: torch.device) -> nn.Module:
    """A small residual network of random weights, images (B, 3, H, W) of any size → logits (B, labels)."""
    network = ShallowResNet(classes=labels, mean=(0.5,) * 3, std=(0.25,) * 3, widths=(16, 32, 64, 64), residual_stages=(0,))
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def random_trn(*, labels: int, blocks: int, device: torch.device) -> TRNRestorer:
    """A TRN of random weights before `random_classifier`."""
    network = TwoStreamRestorationNetwork(channels=3, labels=labels, width=32, blocks=blocks).to(
        device, memory_format=torch.channels_last
    )
    return TRNRestorer(network.requires_grad_(False), random_classifier(labels, device)).eval()


def random_gan(*, size: int, device: torch.device) -> GANRestorer:
    """A GAN defence of random weights that flags every image, so that each goes through one whole round."""
    networks = GANNetworks(channels=3, size=size).to(device, memory_format=torch.channels_last)
    return GANRestorer(networks.requires_grad_(False), threshold=float("-inf"), rounds=1).eval()
