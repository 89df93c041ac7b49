"""How the rivals of the defences are measured: their batch, and the extrapolation of the latent search."""

from __future__ import annotations

import time

import pytest
import torch

from gandefense.benchmark import restorers
from gandefense.benchmark.timing import Effort, flops
from gandefense.restorers.baselines.defense_gan import DefenseGANRestorer, ImageGenerator, LatentSearch
from gandefense.restorers.fused_detector import FusedDetector, Signal
from gandefense.restorers.gan import GANNetworks, GANRestorer

CPU = torch.device("cpu")


def test_the_extrapolated_search_has_the_operations_of_a_whole_one() -> None:
    """Steps are multiplied; the passes that choose and make the image are not."""
    generator = ImageGenerator(channels=3, size=8, latent=restorers.SEARCH_LATENT, width=2).requires_grad_(False)
    images = torch.rand(2, 3, 8, 8)

    def search(steps: int) -> int:
        restorer = DefenseGANRestorer(generator, LatentSearch(steps=steps, restarts=restorers.SEARCH_RESTARTS))
        with torch.no_grad():
            return flops(lambda: restorer(images))

    steps = flops(lambda: restorers._search_steps(generator, images))
    assert restorers.whole_search(search(1), steps) == search(restorers.SEARCH_STEPS)


def test_the_quickest_is_chosen_by_images_a_second_and_the_note_has_all_figures() -> None:
    works = {"small": lambda: time.sleep(0.01), "large": lambda: time.sleep(0.02)}
    best, note = restorers.quickest(works, {"small": 4, "large": 16}, CPU, Effort(2, 1.0))
    assert best == "large" and note.startswith("large, the best") and "small: " in note
    assert restorers.quickest(works, {"small": 4, "large": 4}, CPU, Effort(2, 1.0))[0] == "small"


def test_no_batch_is_larger_than_the_defences_own() -> None:
    assert [restorers.rival_batches(torch.zeros(count, 1, 1, 1)) for count in (2, 8, 32)] == [[2], [4, 8], [4, 16]]


@pytest.mark.parametrize("fused", [False, True])
def test_a_gan_flags_all_or_nothing_whichever_of_its_detectors_does_the_flagging(fused: bool) -> None:
    restorer = GANRestorer(GANNetworks(channels=3, size=16, width=8)).eval()
    if fused:
        restorer.detector = FusedDetector(torch.nn.Identity(), [Signal("perturbation")], threshold=4.7)
    images = torch.rand(3, 3, 16, 16)
    for limit, flagged in ((float("-inf"), 3), (float("inf"), 0)):
        restorers.flag_above(restorer, limit)
        with torch.no_grad():
            assert restorer(images).flagged.sum() == flagged
