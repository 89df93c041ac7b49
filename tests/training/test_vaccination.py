"""Training images that are JPEG-compressed at random."""

from __future__ import annotations

import pytest
import torch

from gandefense.errors import UserError
from gandefense.restorers.baselines.jpeg import compressed
from gandefense.training.vaccination import JpegConfig, check, vaccinated


def test_each_image_is_compressed_with_the_probability_at_a_quality_of_the_list() -> None:
    images, qualities = torch.rand(64, 3, 16, 16), [10, 90]
    found = vaccinated(images, JpegConfig(probability=0.5, qualities=qualities))
    versions = {None: images, **{quality: compressed(images, quality) for quality in qualities}}
    counts = {quality: sum(torch.equal(found[i], version[i]) for i in range(64)) for quality, version in versions.items()}
    assert sum(counts.values()) == 64
    assert 20 <= counts[None] <= 44
    assert min(counts[10], counts[90]) >= 6


@pytest.mark.parametrize(("probability", "changed"), [(0.0, 0), (1.0, 8)])
def test_none_and_all(probability: float, changed: int) -> None:
    images = torch.rand(8, 3, 16, 16)
    before = images.clone()
    found = vaccinated(images, JpegConfig(probability=probability))
    assert (found != images).flatten(1).any(1).sum() == changed
    assert torch.equal(images, before), "the batch itself is left alone"


def test_without_vaccination_no_random_number_is_drawn() -> None:
    state = torch.get_rng_state()
    vaccinated(torch.zeros(2, 3, 8, 8), JpegConfig())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, r"train.jpeg.probability must lie in \[0, 1\], got 1.5"),
        ({"qualities": []}, "at least one quality"),
        ({"qualities": [0]}, "between 1 and 100, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(JpegConfig(**options))
