"""FID with a feature extractor small enough to be checked by hand; Inception's weights are on few machines."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gandefense
from gandefense.errors import UserError
from gandefense.evaluation import fid
from tests.evaluation.conftest import Networks


@pytest.fixture(scope="module")
def extractor() -> str:
    torch_fidelity = pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Mean(FeatureExtractorBase):
        """One feature, the mean of an image's channels, and one that never changes."""

        def __init__(self, name: str, features_list: list[str], **options: object) -> None:
            super().__init__(name, features_list)

        def forward(self, images: Tensor) -> tuple[Tensor]:
            means = images.double().mean((1, 2, 3))
            return (torch.stack([means, torch.zeros_like(means)], dim=1),)

        @staticmethod
        def get_provided_features_list() -> tuple[str]:
            return ("2048",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "2048"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

    torch_fidelity.register_feature_extractor("mean-for-tests", Mean)
    return "mean-for-tests"


def flat(levels: list[int]) -> Tensor:
    """One-channel images of one grey level each."""
    return torch.tensor(levels, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


@pytest.mark.parametrize(
    ("images", "reference", "expected"),
    [
        ([10, 20, 30], [10, 20, 30], 0.0),
        ([15, 25, 35], [10, 20, 30], 25.0),  # the squared distance of the means; the spreads agree
        ([0, 20, 40], [10, 20, 30], 100.0),  # the means agree; standard deviations 20 and 10
    ],
)
def test_known_distances(extractor: str, images: list[int], reference: list[int], expected: float) -> None:
    assert fid.fid(flat(images), flat(reference), extractor=extractor) == pytest.approx(expected, abs=1e-3)


def test_without_torch_fidelity_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"pip install 'gandefense\[fid\]'"):
        fid.check_installed()


def test_an_evaluation_asks_for_it_and_the_report_shows_it(
    monkeypatch: pytest.MonkeyPatch, networks: Networks, tmp_path: Path
) -> None:
    seen = []

    def counted(images: Tensor, reference: Tensor, *, cuda: bool) -> float:
        seen.append((images.dtype, images.shape, torch.equal(images, reference)))
        return float(len(seen))

    monkeypatch.setattr(fid, "check_installed", lambda: None)
    monkeypatch.setattr(fid, "fid", counted)
    attacks = {"gray_box": [{"attack": "fgsm", "eps": "48/255"}], "white_box": {"views": [], "attacks": []}}
    fixed = {"classifier": networks.classifier, "restorers": [networks.trn], "limit": 6, "batch_size": 4, "images": 0}
    results = gandefense.evaluate(**fixed, **attacks, fid=True, device="cpu", output=str(tmp_path / "out"))
    clean, fgsm = results["restoration"][networks.trn]
    assert (clean["restored"]["fid"], fgsm["restored"]["fid"], fgsm["attacked"]["fid"]) == (1, 2, 3)
    assert {(dtype, tuple(shape)) for dtype, shape, _ in seen} == {(torch.uint8, (6, 3, 32, 32))}
    assert not any(same for *_, same in seen), "the TRN of the tests changes every image"
    assert "FID (less is better)" in (tmp_path / "out" / "report.md").read_text()
