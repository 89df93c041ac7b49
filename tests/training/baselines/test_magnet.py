"""MagNet's thresholds."""

from __future__ import annotations

import torch
from torch import nn

from gandefense.data.datasets import Images
from gandefense.restorers.baselines.magnet import DetectorConfig, MagNetRestorer, build_autoencoders
from gandefense.training.baselines.magnet import choose_thresholds
from tests.helpers.networks import small_cnn


def test_every_detector_gets_its_own_drop_rate() -> None:
    rates = {"l1": 0.0, "l2": 0.05, "jsd": 0.1}
    detectors = [DetectorConfig(kind, 0, temperature=10.0, drop_rate=rate) for kind, rate in rates.items()]
    restorer = MagNetRestorer(build_autoencoders(3, [["3"]]), small_cnn(nn.Tanh), detectors).eval()
    images = Images(torch.rand(300, 3, 6, 6), torch.zeros(300).long(), torch.arange(300))
    restorer.thresholds = choose_thresholds(restorer, images, torch.device("cpu"))
    with torch.no_grad():
        above = (restorer.marks(images.images).double() > torch.tensor(restorer.thresholds).double()).float().mean(0)
        assert torch.allclose(above, torch.tensor(list(rates.values())), atol=1 / 300)
        assert restorer(images.images).flagged.float().mean() <= sum(rates.values()) + 1 / 300


def test_a_perfect_autoencoder_still_gets_a_threshold_to_divide_by() -> None:
    restorer = MagNetRestorer(nn.ModuleList([nn.Identity()]), small_cnn(nn.Tanh), [DetectorConfig("l1", 0)])
    images = Images(torch.rand(20, 3, 6, 6), torch.zeros(20).long(), torch.arange(20))
    restorer.thresholds = choose_thresholds(restorer, images, torch.device("cpu"))
    assert restorer.thresholds[0] > 0
    assert restorer(images.images).score.tolist() == [0.0] * 20
