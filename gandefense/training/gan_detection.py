"""The GAN defence's fused detector after the training: its scales and threshold, and what each signal is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gandefense.attacks.level import perturbation_level, within_one_step
from gandefense.attacks.suite import AttackSpec, attack, predict
from gandefense.data import datasets
from gandefense.data.batches import at_once, batches, to_float
from gandefense.errors import UserError
from gandefense.evaluation.metrics import auroc, share_above, threshold
from gandefense.evaluation.wording import number, share
from gandefense.restorers.fused_detector import SIGNALS, FusedDetector, Signal
from gandefense.restorers.gan import GANNetworks

BATCH = 128  # of 32×32 pixels
NARROWEST = 1e-6  # spread of a signal that is the same on all images

# What a detector is tried on; it is not chosen by them.
TRIED = (
    AttackSpec("gaussian[-1,1]", eps=0.2),
    AttackSpec("gaussian[-1,1]", eps=0.4),
    AttackSpec("fgsm", eps=8 / 255),
    AttackSpec("pgd", eps=8 / 255, steps=10),
    AttackSpec("pgd", eps=2 / 255, steps=10),  # smaller than anything the shipped defence was trained on
)


@torch.no_grad()
def marks(networks: GANNetworks, detector: FusedDetector, images: Tensor) -> Tensor:
    """The detector's signals (N, S) on images (N, C, H, W) in [0, 1], batch by batch."""
    return torch.cat(
        [detector.marks(part, networks.judge(part)).float() for part in images.split(at_once(images.shape[-1], BATCH))]
    )


@torch.no_grad()
def calibrate(
    networks: GANNetworks,
    classifier: nn.Module,
    validation: datasets.Images,
    rate: float,
    device: torch.device,
    signals: tuple[Signal, ...] = SIGNALS,
) -> FusedDetector:
    """A fused detector whose scales and threshold come from clean validation images alone.

    Each signal is centred at its median and scaled so that 1 is the threshold at which it alone would reject the fraction
    `rate`; the threshold of the fused score is the one at which the whole rejects no more than that.

    Args:
        networks: trained, on the device.
        classifier: the defended classifier, on the device.
        validation: clean images.
        rate: false-positive rate of the whole, between 0 and 1.
        device: where to compute.
        signals: which; their scales are replaced.

    Raises:
        UserError: a rate outside (0, 1), or no images.
    """
    if not 0 < rate < 1:
        raise UserError(f"the false-positive rate must lie between 0 and 1, got {rate:g}")
    if not len(validation.labels):
        raise UserError("a detector's threshold needs clean validation images, there are none")
    was_training = networks.training
    networks.eval()
    raw = FusedDetector(classifier, list(signals))
    pieces = validation.images.split(at_once(validation.images.shape[-1], BATCH))
    found = torch.cat([marks(networks, raw, to_float(part.to(device))) for part in pieces]).cpu()
    networks.train(was_training)
    scaled = []
    for signal, column in zip(signals, found.unbind(1), strict=True):
        centre = column.double().median().item()
        spread = max(NARROWEST, threshold(column, rate) - centre)
        scaled.append(replace(signal, centre=centre, spread=spread))
    detector = FusedDetector(classifier, scaled)
    detector.threshold = threshold(detector.fuse(found), rate)
    return detector


def table(entries: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """What `measure` found as header and rows: a line for each attack and signal."""
    header = ["attack", "eps", "n", "signal", "AUROC", "detected", "clean images flagged", "level within one step"]
    rows = [
        [
            *(entry["attack"], f"{entry['eps']:.3g}", str(entry["n"]), name),
            *(number(found["auroc"], 4), share(found["tpr"]), share(found["false_positive_rate"])),
            share(entry["level"] if name == "fused" else None),
        ]
        for entry in entries
        for name, found in entry["signals"].items()
    ]
    return header, rows


def title(signal: Signal) -> str:
    """A signal's name for readers: "jsd at T = 10"."""
    return f"jsd at T = {signal.temperature:g}" if signal.kind == "jsd" else signal.kind


def measure(
    networks: GANNetworks,
    detector: FusedDetector,
    clean: datasets.Images,
    rate: float,
    device: torch.device,
    tried: tuple[AttackSpec, ...] = TRIED,
) -> list[dict[str, Any]]:
    """What each signal and all together tell apart, on images that the attack changed and with which it had success.

    Attacks know the classifier and ignore the defence. Every signal's threshold is its own, at the false-positive rate on
    these clean images, so that signals can be compared; it is not the calibrated one.

    Returns:
        One entry an attack: "attack", "eps", "n", "level" (the share of levels estimated at most one of the steps of
        attacks.level off) and "signals": name → "auroc" and "tpr"; None where the attack had no success. "fused" is the
        detector as it is, with "tpr" at its calibrated threshold and "false_positive_rate".
    """
    size = at_once(clean.images.shape[-1], BATCH)
    held = [(images.contiguous(memory_format=torch.channels_last), labels) for images, labels in batches(clean, size, device)]
    before = torch.cat([marks(networks, detector, images) for images, _ in held]).cpu()
    entries = []
    for spec in tried:
        met, near = [], []
        for images, labels in held:
            attacked = attack(detector.classifier, images, labels, spec).images
            kept = (predict(detector.classifier, attacked) != labels) & (attacked != images).flatten(1).any(1)
            if kept.any():
                met.append(marks(networks, detector, attacked[kept]).cpu())
                with torch.no_grad():
                    estimated = networks.judge(attacked[kept]).level.float()
                near.append(within_one_step(estimated, perturbation_level(attacked[kept], images[kept])).cpu())
        after = torch.cat(met) if met else before[:0]
        columns = {title(signal): (before[:, i], after[:, i], None) for i, signal in enumerate(detector.signals)}
        columns["fused"] = (detector.fuse(before), detector.fuse(after), detector.threshold)
        found = {}
        for name, (low, high, limit) in columns.items():
            limit = threshold(low, rate) if limit is None else limit
            found[name] = {
                "auroc": auroc(low, high) if len(high) else None,
                "tpr": share_above(high, limit) if len(high) else None,
                "false_positive_rate": share_above(low, limit),
            }
        level = torch.cat(near).float().mean().item() if near else None
        entries.append({"attack": spec.title(), "eps": spec.eps, "n": len(after), "level": level, "signals": found})
    return entries
