"""Calibrating the fused detector on clean images, and measuring what each signal is worth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks.suite import AttackSpec
from gandefense.data.datasets import Images
from gandefense.errors import UserError
from gandefense.restorers.fused_detector import Signal
from gandefense.restorers.gan import Judged
from gandefense.training.gan_detection import calibrate, measure, table
from tests.helpers.networks import small_cnn

CPU = torch.device("cpu")


class Smoothing(nn.Module):
    """Stands for GANNetworks: cleans by a blur; its logit says nothing."""

    def judge(self, images: Tensor) -> Judged:
        cleaned = nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        nothing = images[:, 0, 0, 0]
        return Judged(cleaned, images, nothing, nothing, images[:, :1])


def _images(count: int) -> Images:
    """Smooth images: a blur changes them little, noise stands out."""
    coarse = torch.rand(count, 3, 2, 2, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    fine = nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    return Images(
        (fine * 255).byte(), torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(2)), torch.arange(count)
    )


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_no_more_clean_images_are_flagged_than_asked_for(rate: float) -> None:
    networks = Smoothing().train()
    detector = calibrate(networks, small_cnn(nn.ReLU, size=8), _images(200), rate, CPU)
    assert networks.training, "the mode is put back"
    clean = _images(200).images / 255
    with torch.no_grad():
        scores = detector(clean, networks.judge(clean))
        columns = detector.marks(clean, networks.judge(clean))
    assert (scores > detector.threshold).float().mean().item() == pytest.approx(rate, abs=0.011)
    for signal, column in zip(detector.signals, columns.unbind(1), strict=True):
        scaled = (column - signal.centre) / signal.spread
        assert scaled.median().item() == pytest.approx(0, abs=1e-3), signal
        assert (scaled > 1 + 1e-4).float().mean().item() <= rate + 1e-6, signal


def test_a_signal_that_sees_noise_carries_the_fused_score() -> None:
    networks, classifier = Smoothing(), small_cnn(nn.ReLU, size=8)
    detector = calibrate(networks, classifier, _images(100), 0.05, CPU, (Signal("perturbation"), Signal("l1")))
    noise = (AttackSpec("gaussian[-1,1]", eps=0.4), AttackSpec("gaussian[-1,1]", eps=0.0))
    found, nothing = measure(networks, detector, _images(100), 0.05, CPU, noise)
    assert 20 < found["n"] <= 100
    assert found["signals"]["l1"]["auroc"] > 0.99 and found["signals"]["fused"]["auroc"] > 0.95
    assert found["signals"]["fused"]["tpr"] > 0.9 > 0.8 > found["signals"]["perturbation"]["auroc"]
    assert found["signals"]["fused"]["false_positive_rate"] == pytest.approx(0.05, abs=0.011)
    assert 0 <= found["level"] <= 1 and nothing["level"] is None
    assert nothing["n"] == 0 and nothing["signals"]["fused"]["auroc"] is None, "nothing was changed"
    header, rows = table([found, nothing])
    assert all(len(row) == len(header) for row in rows) and rows[-1][4] == "–"


def test_bad_settings_are_one_line() -> None:
    with pytest.raises(UserError, match="must lie between 0 and 1, got 1"):
        calibrate(Smoothing(), small_cnn(nn.ReLU, size=8), _images(4), 1.0, CPU)
    with pytest.raises(UserError, match="there are none"):
        calibrate(Smoothing(), small_cnn(nn.ReLU, size=8), _images(0), 0.1, CPU)
