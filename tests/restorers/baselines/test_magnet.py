"""MagNet: autoencoders, divergence, detectors, thresholds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.baselines.magnet import (
    AutoEncoder,
    DetectorConfig,
    MagNetRestorer,
    build_autoencoders,
    drop_threshold,
    from_weights,
    jensen_shannon,
    reconstruction_error,
)
from tests.helpers.networks import small_cnn

DETECTORS = [
    DetectorConfig("l1", 0),
    DetectorConfig("l2", 1),
    DetectorConfig("jsd", 0, temperature=10.0),
    DetectorConfig("jsd", 0, temperature=40.0),
]


class Constant(nn.Module):
    """An autoencoder that answers one grey image, whatever it sees."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.full_like(images, 0.5)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 3, 6, 6)


def _restorer(detectors: list[DetectorConfig] = DETECTORS, thresholds: list[float] | None = None) -> MagNetRestorer:
    return MagNetRestorer(build_autoencoders(3, [["4"], ["3", "average", "3"]]), small_cnn(nn.Tanh), detectors, thresholds).eval()


@pytest.mark.parametrize(
    ("structure", "widths"),
    [(["3"], [(3, 3), (3, 3), (3, 3)]), (["4", "average", "5"], [(3, 4), (4, 5), (5, 5), (5, 4), (4, 3)])],
)
def test_the_structure_is_mirrored(structure: list[str], widths: list[tuple[int, int]]) -> None:
    network = AutoEncoder(channels=3, structure=structure)
    layers = [*network.convolutions, network.out]
    assert [(layer.in_channels, layer.out_channels) for layer in layers] == widths
    assert all(layer.kernel_size == (3, 3) for layer in layers)


@pytest.mark.parametrize("size", [(6, 6), (9, 7), (32, 32)])
def test_reconstructions_have_the_images_shape_and_range(size: tuple[int, int]) -> None:
    network = AutoEncoder(channels=1, structure=["3", "average", "3", "average", "2"], activation="relu")
    for parameter in network.parameters():
        parameter.data.normal_(std=3)
    made = network(torch.rand(2, 1, *size))
    assert made.shape == (2, 1, *size)
    assert made.min() >= 0 and made.max() <= 1 and made.std() > 0


def test_the_activity_is_the_hidden_layers_sum_of_squares() -> None:
    network = AutoEncoder(channels=3, structure=["2"])
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    _, activity = network.with_activity(torch.rand(5, 3, 6, 6))
    assert activity.item() == pytest.approx(2 * 2 * 36 * 0.25), "two layers of two filters at sigmoid(0)"


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 0.0),
        ([1.0, 2.0, 3.0], [11.0, 12.0, 13.0], 0.0),  # the same distribution
        ([0.0, -200.0], [-200.0, 0.0], math.log(2)),  # disjoint
        # (1, 0) and (½, ½): ½ ln(1/¾) + ½ (½ ln(½/¾) + ½ ln(½/¼))
        ([0.0, -200.0], [0.0, 0.0], 0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3) + 0.25 * math.log(2)),
    ],
)
def test_divergence_has_known_values_and_is_symmetric(first: list[float], second: list[float], expected: float) -> None:
    pair = torch.tensor([first]), torch.tensor([second])
    assert jensen_shannon(*pair).item() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(jensen_shannon(*pair), jensen_shannon(*pair[::-1]))


def test_divergence_stays_within_its_limits_and_has_a_finite_gradient() -> None:
    first, second = torch.randn(200, 10) * 50, torch.randn(200, 10) * 50
    first.requires_grad_(True)
    values = jensen_shannon(first, second)
    assert (values > -1e-6).all() and (values < math.log(2) + 1e-6).all()
    assert torch.autograd.grad(values.sum(), first)[0].isfinite().all()


def test_reconstruction_error_is_a_mean_over_pixels(images: Tensor) -> None:
    moved = images + torch.tensor([0.0, 0.1, -0.2, 0.5]).view(4, 1, 1, 1)
    assert torch.allclose(reconstruction_error(images, moved, 1), torch.tensor([0.0, 0.1, 0.2, 0.5]), atol=1e-6)
    assert torch.allclose(reconstruction_error(images, moved, 2), torch.tensor([0.0, 0.01, 0.04, 0.25]), atol=1e-6)


@pytest.mark.parametrize("drop_rate", [0.0, 0.005, 0.01, 0.1])
def test_a_threshold_drops_its_share_of_clean_images_and_no_more(drop_rate: float) -> None:
    marks = torch.randn(1000).exp()
    threshold = drop_threshold(marks, drop_rate)
    assert (marks.double() > threshold).sum().item() == round(1000 * drop_rate)
    assert threshold in marks.double().tolist()


@pytest.mark.parametrize("kind", ["l1", "l2", "jsd"])
def test_a_stranger_image_gets_a_higher_mark(kind: str) -> None:
    """The further an image is from what the autoencoder makes of it, the higher the mark."""
    strength = torch.linspace(0, 0.5, 6).view(6, 1, 1, 1)
    images = 0.5 + strength * torch.ones(6, 3, 6, 6)
    restorer = MagNetRestorer(nn.ModuleList([Constant()]), small_cnn(nn.Tanh), [DetectorConfig(kind, 0, temperature=10.0)])
    marks = restorer.marks(images)[:, 0]
    assert marks[0].item() == pytest.approx(0, abs=1e-6)
    assert (marks.diff() > 0).all()


def test_the_score_is_the_largest_mark_over_its_threshold(images: Tensor) -> None:
    restorer = _restorer()
    marks = restorer.marks(images)
    assert marks.shape == (4, 4)
    assert not restorer(images).flagged.any(), "nothing is rejected before thresholds are chosen"
    restorer.thresholds = [marks[0, 0].item() * 2, marks[1, 1].item() / 3, 1.0, 1.0]
    restoration = restorer(images)
    assert torch.allclose(restoration.score, (marks / torch.tensor(restorer.thresholds)).max(1).values)
    assert restoration.score[1] >= 3 - 1e-4
    assert restoration.flagged.tolist() == (marks > torch.tensor(restorer.thresholds)).any(1).tolist()


def test_the_first_autoencoder_reforms(images: Tensor) -> None:
    restorer = _restorer()
    restoration = restorer(images)
    assert torch.equal(restoration.images, restorer.autoencoders[0](images))
    assert torch.equal(restoration.maps["reconstruction_1"], restorer.autoencoders[1](images))
    assert torch.equal(restoration.maps["residual"], images - restoration.images)
    assert restoration.level.isnan().all()


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: f"{detector.kind}-{detector.temperature:g}")
def test_image_and_score_have_a_true_gradient(detector: DetectorConfig) -> None:
    restorer = _restorer([detector], [0.01]).double()
    for parameter in restorer.autoencoders.parameters():
        parameter.data.mul_(2)
    images, step = torch.rand(2, 3, 6, 6, dtype=torch.float64) * 0.8 + 0.1, 1e-6
    weights = torch.randn_like(images)
    point = images.clone().requires_grad_(True)
    for view in ("exact", "detached", "smooth"):
        for pick in (lambda restored, _: (restored * weights).sum(), lambda _, score: score.sum()):
            (gradient,) = torch.autograd.grad(pick(*restorer.scored(point, view)), point)
            along = torch.randn_like(images)
            with torch.no_grad():
                there, back = (pick(*restorer.scored(images + sign * step * along, view)) for sign in (1, -1))
            assert (gradient * along).sum().item() == pytest.approx(((there - back) / (2 * step)).item(), rel=1e-4, abs=1e-7)


def test_a_joint_attack_sees_the_detector(images: Tensor) -> None:
    restorer = _restorer(thresholds=[0.01, 0.01, 0.001, 0.001])
    view = DefendedClassifier(restorer, restorer.classifier).view("exact", detector=(1.0, 0.5))
    outputs = view(images)
    assert outputs.shape == (4, 5)
    assert torch.allclose(outputs[:, -1], (restorer(images).score - 1) / 0.5, atol=1e-5)


def test_a_file_gives_the_same_restorer_again(images: Tensor) -> None:
    restorer = _restorer(thresholds=[0.1, 0.2, 0.3, 0.4])
    description = {
        "network": {"channels": 3, "structures": [["4"], ["3", "average", "3"]], "activation": "sigmoid"},
        "detectors": [vars(detector) for detector in DETECTORS],
        "thresholds": [0.1, 0.2, 0.3, 0.4],
    }
    again = from_weights(restorer.autoencoders.state_dict(), description, restorer.classifier, Path("a file"))
    assert torch.equal(again(images).score, restorer(images).score)
    for missing in description:
        with pytest.raises(UserError, match="a file: its description of the network is incomplete"):
            from_weights(
                {}, {key: value for key, value in description.items() if key != missing}, restorer.classifier, Path("a file")
            )


@pytest.mark.parametrize(
    ("detectors", "thresholds", "message"),
    [
        ([], None, "at least one detector"),
        ([DetectorConfig("l3")], None, "unknown detector 'l3'; known: l1, l2, jsd"),
        ([DetectorConfig("l1", 2)], None, "reads autoencoder 2, but they go from 0 to 1"),
        ([DetectorConfig("jsd", 0, temperature=0.0)], None, "temperature is above 0"),
        ([DetectorConfig("l1", drop_rate=1.0)], None, "drop_rate from 0 to below 1"),
        ([DetectorConfig(["l1"])], None, "unknown detector ..l1"),
        ([DetectorConfig("l1", "x")], None, "reads autoencoder 'x'"),
        ([DetectorConfig("l1", True)], None, "reads autoencoder True"),
        ([DetectorConfig("l1", 0.0)], None, "reads autoencoder 0.0"),
        ([DetectorConfig("jsd", 0, temperature="hot")], None, "detector's temperature must be a number"),
        ([DetectorConfig("jsd", 0, temperature=math.nan)], None, "detector's temperature must be a number"),
        ([DetectorConfig("l1", drop_rate=[0.1])], None, "detector's drop_rate must be a number"),
        ([DetectorConfig("l1")], [0.1, 0.2], "1 detectors need as many thresholds"),
        ([DetectorConfig("l1")], [0.0], "thresholds above 0"),
    ],
)
def test_bad_detectors_are_refused(detectors: list[DetectorConfig], thresholds: list[float] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _restorer(detectors, thresholds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detectors": [{"kind": ["l1"]}]}, "a file: unknown detector"),
        ({"detectors": [{"autoencoder": "x"}]}, "a file: a detector reads autoencoder 'x'"),
        ({"detectors": ["l1"]}, "incomplete"),
        ({"detectors": 3}, "incomplete"),
        ({"thresholds": ["0.1"]}, "a file: its threshold must be a number"),
        ({"thresholds": [math.nan]}, "a file: its threshold must be a number"),
        ({"thresholds": [-math.inf]}, "a file: 1 detectors need as many thresholds above 0"),
        ({"thresholds": None}, "incomplete"),
    ],
)
def test_a_file_with_values_of_other_types_is_refused(change: dict[str, object], message: str) -> None:
    network = {"channels": 3, "structures": [["4"], ["3", "average", "3"]], "activation": "sigmoid"}
    description = {"network": network, "detectors": [{"kind": "l1"}], "thresholds": [0.1]}
    tensors = _restorer().autoencoders.state_dict()
    assert from_weights(tensors, description, nn.Identity(), Path("a file")).thresholds == [0.1]
    with pytest.raises(UserError, match=message):
        from_weights(tensors, {**description, **change}, nn.Identity(), Path("a file"))


@pytest.mark.parametrize(
    ("structures", "activation", "message"),
    [
        ([], "sigmoid", "at least one autoencoder"),
        ([["3", "maximum"]], "sigmoid", "a number of filters or 'average', got 'maximum'"),
        ([["0"]], "sigmoid", "got '0'"),
        ([["3"]], "tanh", "unknown activation 'tanh'; known: sigmoid, relu"),
    ],
)
def test_bad_structures_are_refused(structures: list[list[str]], activation: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_autoencoders(3, structures, activation)
