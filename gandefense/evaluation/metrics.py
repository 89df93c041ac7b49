"""The figures themselves: accuracy with its interval, worst case, paired comparison, detection, restoration quality."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense.errors import UserError, reason

Z95 = 1.959964  # of a two-sided 95 % interval
LPIPS_BACKBONE_VARIABLE = "GANDEFENSE_LPIPS_BACKBONE"
LPIPS_SMALLEST = 32  # pixels
# torchvision's numbers of AlexNet's convolutions → the slices that lpips cuts its backbone into
LPIPS_SLICES = {0: "slice1", 3: "slice2", 6: "slice3", 8: "slice4", 10: "slice5"}


def wilson_interval(right: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion, `right` of `count`; (0, 1) when there is nothing to count."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    # at 0 and at `count` the formula gives exactly 0 and 1, but for rounding
    return (0.0 if right == 0 else centre - half), (1.0 if right == count else centre + half)


def accuracy(right: Tensor) -> dict[str, Any]:
    """Accuracy and its interval from flags (N,) bool."""
    count, total = int(right.sum()), right.numel()
    return {"accuracy": count / total if total else None, "ci95": list(wilson_interval(count, total))}


def worst_case(flags: list[Tensor]) -> Tensor:
    """Per image: right under every attack; each entry (N,) bool, at least one."""
    return torch.stack(flags).all(dim=0)


def clearly_above(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether an accuracy lies above another beyond noise: Newcombe's 95 % interval of the difference excludes zero."""
    p, q = first["accuracy"], second["accuracy"]
    return p - q - math.hypot(p - first["ci95"][0], second["ci95"][1] - q) > 0


def mcnemar(defended: Tensor, bare: Tensor) -> dict[str, Any]:
    """McNemar's exact test (1947): are two classifiers right equally often on the same images?

    Images on which both are right or both are wrong say nothing; of the others, each should fall to either side like a
    fair coin.

    Args:
        defended: right with the defence, (N,) bool.
        bare: right without it, (N,) bool, of the same images in the same order.

    Returns:
        "defended_only" and "bare_only": how many images only one of them gets right; "p": two-sided, 1 where they never
        differ.
    """
    from scipy.stats import binomtest

    defended_only, bare_only = int((defended & ~bare).sum()), int((bare & ~defended).sum())
    differ = defended_only + bare_only
    p = float(binomtest(defended_only, differ, 0.5).pvalue) if differ else 1.0
    return {"defended_only": defended_only, "bare_only": bare_only, "p": p}


def auroc(clean: Tensor, attacked: Tensor) -> float:
    """Probability that an attacked image scores higher than a clean one, ties counting half.

    Args:
        clean: scores (N,), at least one.
        attacked: scores (M,), at least one.
    """
    clean, attacked = clean.double().sort().values, attacked.double().contiguous()
    below = torch.searchsorted(clean, attacked, right=False)
    up_to = torch.searchsorted(clean, attacked, right=True)
    return ((below + up_to).double() / 2).mean().item() / len(clean)


def roc(clean: Tensor, attacked: Tensor, points: int = 101) -> dict[str, list[float]]:
    """The receiver operating characteristic: true against false positives over all thresholds, from (0, 0) to (1, 1).

    Every point is one that a threshold reaches. Points on a straight line between their neighbours are left out; where
    more than `points` remain, those nearest to even distances along the curve stand for all.

    Args:
        clean: scores (N,), at least one.
        attacked: scores (M,), at least one.
        points: how many at most, 2 or more.

    Returns:
        "fpr" and "tpr", both rising.
    """
    clean, attacked = clean.double().sort().values, attacked.double().sort().values
    limits = torch.cat([clean, attacked]).unique().flip(0)  # flagged: at or above the limit
    false = [0, *(len(clean) - torch.searchsorted(clean, limits)).tolist()]
    true = [0, *(len(attacked) - torch.searchsorted(attacked, limits)).tolist()]
    corners = [0]
    for i in range(1, len(false)):
        while len(corners) > 1:  # drop the last corner if it lies on the line from the one before it to this point
            a, b = corners[-2], corners[-1]
            if (false[b] - false[a]) * (true[i] - true[b]) != (true[b] - true[a]) * (false[i] - false[b]):
                break
            corners.pop()
        corners.append(i)
    fpr = torch.tensor([false[i] for i in corners]).double() / len(clean)
    tpr = torch.tensor([true[i] for i in corners]).double() / len(attacked)
    if len(corners) > points:
        chosen = torch.searchsorted(fpr + tpr, torch.linspace(0, 2, points).double()).unique()
        fpr, tpr = fpr[chosen], tpr[chosen]
    return {"fpr": fpr.tolist(), "tpr": tpr.tolist()}


def threshold(scores: Tensor, false_positive_rate: float) -> float:
    """The smallest of the scores (N,) of clean validation images that at most the given share of them (below 1) exceeds."""
    allowed = math.floor(false_positive_rate * len(scores) + 1e-9)  # 0.05 × 100 is 5, whatever binary fractions say
    return scores.double().sort().values[len(scores) - allowed - 1].item()


def share_above(scores: Tensor, limit: float) -> float:
    """The share of scores (N,) strictly above a limit: a false-positive rate on clean images, TPR on attacked ones."""
    return (scores.double() > limit).double().mean().item()


def quality(images: Tensor, reference: Tensor, lpips: nn.Module | None = None) -> dict[str, Tensor]:
    """How close images come to their references, image by image.

    PSNR and SSIM are piq's, which leaves out borders that others count. piq adds 1e-8 to the squared error, so that
    the PSNR of identical images is 80 dB, not infinite. LPIPS sees grey images in three equal channels, and those below
    32 pixels with reflected borders that bring them to 32: of smaller ones AlexNet's poolings leave nothing.

    Args:
        images: (B, C, H, W) in [0, 1].
        reference: the same shape and range.
        lpips: what `lpips_network` gives; None leaves LPIPS out.

    Returns:
        "psnr" (B,) in dB, "ssim" (B,), and with a network "lpips" (B,).
    """
    import piq

    with torch.no_grad():
        values = {
            "psnr": piq.psnr(images, reference, data_range=1.0, reduction="none"),
            "ssim": piq.ssim(images, reference, data_range=1.0, reduction="none"),
        }
        if lpips is not None:
            missing = max(0, LPIPS_SMALLEST - min(images.shape[-2:]))
            border = (missing // 2, missing - missing // 2) * 2
            colour = [F.pad(batch, border, mode="reflect").expand(-1, 3, -1, -1) for batch in (images, reference)]
            values["lpips"] = lpips(colour[0] * 2 - 1, colour[1] * 2 - 1).flatten()
    return values


def _backbone_file() -> Path | None:
    if named := os.environ.get(LPIPS_BACKBONE_VARIABLE):
        return Path(named)
    from torchvision.models import AlexNet_Weights

    cached = Path(torch.hub.get_dir()) / "checkpoints" / AlexNet_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]
    return cached if cached.is_file() else None


def has_lpips() -> bool:
    """Whether this machine has what `lpips_network` reads, without reading it."""
    return _backbone_file() is not None


def _lpips_backbone() -> dict[str, Tensor] | None:
    """AlexNet's convolutions by torchvision's names, from the file that the variable names or from torch hub's cache."""
    named, path = os.environ.get(LPIPS_BACKBONE_VARIABLE), _backbone_file()
    if named:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not Path(named).is_file():
            raise UserError(f"{LPIPS_BACKBONE_VARIABLE} names {named}, which is not there")
        try:
            return load_file(named)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{LPIPS_BACKBONE_VARIABLE}: {named} is not a whole safetensors file ({error})") from None
    try:
        return None if path is None else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file cut short may be refused by the zip reader, the unpickler, or the disk
        raise UserError(f"{path} is not a whole file of AlexNet's weights ({reason(error)}); remove it") from None


def lpips_network(device: torch.device | str = "cpu") -> nn.Module | None:
    """LPIPS (AlexNet) as a frozen module in eval mode, or None where its backbone is not on this machine.

    The module takes two batches (B, 3, H, W) in [-1, 1], not in [0, 1], and gives (B, 1, 1, 1). Gradients pass through
    it to the images. Nothing is downloaded, and random weights are never used: the backbone is the safetensors file
    that GANDEFENSE_LPIPS_BACKBONE names (torchvision's names), else the one in torch hub's cache.

    Raises:
        UserError: the variable names a file that is missing or does not fit.
    """
    tensors = _lpips_backbone()
    if tensors is None:
        return None
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # lpips calls torchvision in a way that torchvision calls deprecated
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = network.net.state_dict()
    for number, part in LPIPS_SLICES.items():
        for what in ("weight", "bias"):
            source, target = tensors.get(f"features.{number}.{what}"), f"{part}.{number}.{what}"
            if source is None or source.shape != state[target].shape:
                raise UserError(f"the LPIPS backbone has no fitting features.{number}.{what}; it must be torchvision's AlexNet")
            state[target] = source.float()
    network.net.load_state_dict(state)
    return network.eval().requires_grad_(False).to(device)
