"""Attacked images drawn back towards their clean ones: smaller perturbations, which barely change the answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HALVINGS = 8  # of the line between a clean image and its attacked one, in search of the decision boundary


@torch.no_grad()
def drawn_back(network: nn.Module, clean: Tensor, attacked: Tensor, labels: Tensor, draw: Tensor) -> Tensor:
    """Attacked images moved towards their clean ones, to somewhere between the decision boundary and where they were.

    Attacks that spend their whole budget leave the boundary far behind; attacks that stop at the first success, or look for
    the smallest perturbation, end just beyond it. A restorer that shall undo both must have seen both.

    Args:
        network: images (B, C, H, W) in [0, 1] → logits (B, K), in eval mode.
        clean: (B, C, H, W) in [0, 1].
        attacked: (B, C, H, W) in [0, 1]; images that the network still answers rightly come back unchanged, as do those
            whose clean image it answers wrongly.
        labels: (B,) int64, true classes.
        draw: (B,) in [0, 1], how far each stays away from the boundary: of the way from there to the attacked image the share
            draw³, so that of uniform draws half keep less than an eighth of it.

    Returns:
        (B, C, H, W) in [0, 1]. On the line between clean and attacked images the boundary is found by halving, to a 256th.
    """

    def at(share: Tensor) -> Tensor:
        return clean + share.view(-1, 1, 1, 1) * (attacked - clean)

    def wrong(images: Tensor) -> Tensor:
        return network(images).argmax(1) != labels

    low, high = torch.zeros(len(clean), device=clean.device), torch.ones(len(clean), device=clean.device)
    moved = wrong(attacked) & ~wrong(clean)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = wrong(at(middle))
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    share = high + draw**3 * (1 - high)
    return torch.where(moved.view(-1, 1, 1, 1), at(share), attacked)
