"""What TensorBoard is shown of a validation: levels taken for others, and the detector's ROC."""

from __future__ import annotations

import pytest
import torch

from gandefense.attacks.level import LEVELS
from gandefense.training.gan_looking import confusion, roc_picture
from gandefense.training.gan_validation import Validation


def test_the_confusion_counts_true_levels_in_lines() -> None:
    seen = Validation(true=torch.tensor([0, 0, 0, 0, 2, 2]), estimated=torch.tensor([0, 0, 0, 1, 2, 4]))
    counts = seen.confusion()
    assert counts.shape == (len(LEVELS), len(LEVELS)) and counts.sum() == 6
    assert counts[0].tolist() == [3, 1, 0, 0, 0] and counts[2].tolist() == [0, 0, 1, 0, 1]
    lines = confusion(seen).splitlines()
    assert lines[2] == "| 0 | 4 | 75.0 % | 25.0 % | 0.0 % | 0.0 % | 0.0 % |"
    assert lines[3] == "| 0.1 | 0 | – | – | – | – | – |", "nothing of that level was seen"
    assert len({line.count("|") for line in lines}) == 1


def test_the_roc_is_a_picture_of_what_there_is() -> None:
    pytest.importorskip("matplotlib")
    clean, apart = torch.arange(10.0), torch.arange(10.0) + 100
    picture = roc_picture({"clean": clean, "gaussian_0.2": apart, "attacked": torch.zeros(0)})
    other = roc_picture({"clean": clean, "gaussian_0.2": clean})
    assert picture.shape == (3, 450, 450) and picture.min() >= 0 and picture.max() == 1
    assert not torch.equal(picture, other), "what is told apart looks otherwise than what is not"
    assert roc_picture({"clean": clean}) is None and roc_picture({"attacked": apart}) is None
