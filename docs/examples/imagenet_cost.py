"""What training before an ImageNet-1k classifier would cost: FLOPs counted on the networks, bytes, hours.

python docs/examples/imagenet_cost.py [fraction=0.3] [gpus=8]

`fraction` of the peak is what one hopes for; measure it on the machine in question and put it in.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gandefense.restorers.discriminator import Discriminator
from gandefense.restorers.gan import GANNetworks
from gandefense.restorers.gradient_maps import GradientMaps
from gandefense.restorers.trn import TwoStreamRestorationNetwork

IMAGES, CLASSES, SIZE, TOP_K = 1_281_167, 1000, 224, 10
PEAK = 989e12  # dense bf16 FLOP/s of one H200 by its data sheet
ROWS, PASSES = IMAGES, 13  # attacked rows, one for every clean image; how often a training goes through them, as CIFAR-10's
ATTACK_PASSES = (1 + 1 + 10 + 10 + 10 + 0) / 6  # gradient passes an attacked row: fgsm, ffgsm, bim, pgd, mim, none


def flops(work: Callable[[], object]) -> float:
    """FLOPs (two for a multiplication and an addition) of what `work` does."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def classifier() -> nn.Module:
    """ResNet-50, frozen, on the meta device: shapes without numbers."""
    from torchvision.models import resnet50

    with torch.device("meta"):
        return resnet50().eval().requires_grad_(False)


def image() -> Tensor:
    return torch.rand(1, 3, SIZE, SIZE, device="meta", requires_grad=True)


def trn_step(labels: int) -> float:
    """FLOPs of TRN's training on one image, forward and backward, cached maps given; the classifier's apart."""
    with torch.device("meta"):
        network = TwoStreamRestorationNetwork(channels=3, labels=labels)
        maps = GradientMaps(torch.rand(1, 3 * labels, SIZE, SIZE), torch.rand(1, labels))
        return flops(lambda: network(torch.rand(1, 3, SIZE, SIZE), maps).sum().backward())


def gan_step() -> float:
    """FLOPs of one image's step of ISMN, perturbation classifier, generator and discriminator."""
    with torch.device("meta"):
        networks, judge = GANNetworks(channels=3, size=SIZE), Discriminator(channels=3, size=SIZE)

        def train() -> None:
            made = networks(torch.rand(1, 3, SIZE, SIZE)).regenerated
            judge.requires_grad_(False)
            (made.sum() + judge(made).sum()).backward()
            judge.requires_grad_(True)
            (judge(torch.rand(1, 3, SIZE, SIZE)) - judge(made.detach())).sum().backward()

        return flops(train)


def main(fraction: float, gpus: int) -> None:
    network = classifier()
    with torch.no_grad():
        forward = flops(lambda: network(image()))
    both = flops(lambda: network(image()).sum().backward())  # frozen: the backward pass to the image alone
    backward, pixels = both - forward, 3 * SIZE * SIZE
    speed = fraction * PEAK  # of one GPU
    trn, gan = trn_step(TOP_K) + both, gan_step() + 2 * both

    def line(name: str, an_image: float, used: int, passes: int = 1) -> None:
        total = an_image * ROWS * passes
        print(f"| {name} | {an_image / 1e9:,.1f} | {passes} | {total:.2e} | {used} | {total / (used * speed) / 3600:,.2f} |")

    print(f"{ROWS:,} attacked rows of {SIZE}×{SIZE}; GPUs at {fraction:.0%} of {PEAK / 1e12:.0f} TFLOP/s\n")
    print("| what | GFLOPs an image | passes | FLOPs in all | GPUs | hours |\n|---|---|---|---|---|---|")
    line("the classifier's forward pass", forward, gpus)
    line("attacked set", ATTACK_PASSES * both, 1)  # the first process makes it alone
    line(f"gradient maps, top {TOP_K}", forward + TOP_K * backward, 1)
    line(f"gradient maps, all {CLASSES}", forward + CLASSES * backward, 1)
    line(f"training TRN on cached top-{TOP_K} maps", trn, gpus, PASSES)
    line("training the GAN, teacher and student included", gan, gpus, PASSES)
    print("\n| on disk | an image | in all |\n|---|---|---|")
    for name, size in {
        "attacked images, float16": 2 * pixels,
        f"gradient maps, top {TOP_K}, int8": TOP_K * pixels,
        f"gradient maps, all {CLASSES}, int8": CLASSES * pixels,
    }.items():
        print(f"| {name} | {size / 1e6:,.2f} MB | {size * ROWS / 1e12:,.1f} TB |")
    read = gpus * speed / trn
    print(f"\nTraining TRN would read {read:,.0f} rows/s: {read * (2 + TOP_K) * pixels / 1e9:,.1f} GB/s of images and maps.")


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    main(float(given.get("fraction", 0.3)), int(given.get("gpus", 8)))
