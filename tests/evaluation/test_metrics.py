"""Known values of every figure, and LPIPS with and without its backbone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scipy import stats

from gandefense.errors import UserError
from gandefense.evaluation import metrics


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (0, 100, 0.0, 0.036994),  # z² / (n + z²)
        (100, 100, 0.963006, 1.0),
        (50, 100, 0.403832, 0.596168),
        (1, 10, 0.017876, 0.404150),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval(right: int, count: int, low: float, high: float) -> None:
    assert metrics.wilson_interval(right, count) == pytest.approx((low, high), abs=2e-6)


def test_wilson_interval_is_scipys() -> None:
    theirs = stats.binomtest(612, 1000).proportion_ci(method="wilson")
    assert metrics.wilson_interval(612, 1000) == pytest.approx((theirs.low, theirs.high), abs=1e-7)


def test_accuracy_counts_flags() -> None:
    figure = metrics.accuracy(torch.tensor([True, False, True, True]))
    assert figure["accuracy"] == 0.75
    assert figure["ci95"] == list(metrics.wilson_interval(3, 4))


def test_worst_case_needs_every_flag() -> None:
    flags = [torch.tensor(row) for row in ([True, True, False, True], [True, False, True, True], [True, True, True, False])]
    assert metrics.worst_case(flags).tolist() == [True, False, False, False]
    assert metrics.worst_case(flags[:1]).tolist() == flags[0].tolist()


def figure(right: int, count: int = 1000) -> dict[str, object]:
    return {"accuracy": right / count, "ci95": list(metrics.wilson_interval(right, count))}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [(600, 500, True), (500, 600, False), (510, 500, False), (500, 500, False), (10, 0, True), (2, 0, False)],
)
def test_clearly_above(first: int, second: int, expected: bool) -> None:
    assert metrics.clearly_above(figure(first), figure(second)) is expected


def flags(defended_only: int, bare_only: int, both: int = 5, neither: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    defended = [True] * defended_only + [False] * bare_only + [True] * both + [False] * neither
    bare = [False] * defended_only + [True] * bare_only + [True] * both + [False] * neither
    return torch.tensor(defended, dtype=torch.bool), torch.tensor(bare, dtype=torch.bool)


@pytest.mark.parametrize(
    ("defended_only", "bare_only", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 2**5),
        (0, 5, 2 / 2**5),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (2, 8, 2 * (1 + 10 + 45) / 2**10),
    ],
)
def test_mcnemar(defended_only: int, bare_only: int, p: float) -> None:
    expected = {"defended_only": defended_only, "bare_only": bare_only, "p": pytest.approx(p)}
    assert metrics.mcnemar(*flags(defended_only, bare_only)) == expected
    assert metrics.mcnemar(*flags(defended_only, bare_only, both=400, neither=0)) == expected, "agreement says nothing"


def test_mcnemar_of_no_images() -> None:
    assert metrics.mcnemar(*flags(0, 0, 0, 0)) == {"defended_only": 0, "bare_only": 0, "p": 1.0}


@pytest.mark.parametrize(
    ("clean", "attacked", "fpr", "tpr"),
    [
        ([0.0, 1.0], [2.0, 3.0], [0, 0, 1], [0, 1, 1]),  # perfect
        ([2.0, 3.0], [0.0, 1.0], [0, 1, 1], [0, 0, 1]),  # always wrong
        ([1.0, 1.0], [1.0], [0, 1], [0, 1]),  # a tie is one step for both
        ([0.0, 2.0], [1.0, 3.0], [0, 0, 0.5, 0.5, 1], [0, 0.5, 0.5, 1, 1]),
    ],
)
def test_roc(clean: list[float], attacked: list[float], fpr: list[float], tpr: list[float]) -> None:
    assert metrics.roc(torch.tensor(clean), torch.tensor(attacked)) == {"fpr": fpr, "tpr": tpr}


@pytest.mark.parametrize("points", [101, 20, 2])
def test_roc_is_thinned_to_points_that_thresholds_reach(points: int) -> None:
    clean, attacked = torch.randn(700), torch.randn(900) + 1
    curve = metrics.roc(clean, attacked, points)
    pairs = list(zip(curve["fpr"], curve["tpr"], strict=True))
    assert (pairs[0], pairs[-1]) == ((0, 0), (1, 1))
    assert len(pairs) <= points and pairs == sorted(pairs)
    limits = [-math.inf, *torch.cat([clean, attacked]).tolist()]
    reached = {(metrics.share_above(clean, limit), metrics.share_above(attacked, limit)) for limit in limits}
    assert set(pairs) <= reached


def test_area_under_the_roc_is_the_auroc() -> None:
    clean, attacked = torch.randint(0, 20, (300,)).float(), torch.randint(5, 25, (200,)).float()
    curve = {name: torch.tensor(values) for name, values in metrics.roc(clean, attacked).items()}
    assert torch.trapezoid(curve["tpr"], curve["fpr"]).item() == pytest.approx(metrics.auroc(clean, attacked), abs=1e-5)
    clean, attacked = torch.randn(2000), torch.randn(2000) + 1.5
    curve = {name: torch.tensor(values) for name, values in metrics.roc(clean, attacked).items()}
    assert len(curve["fpr"]) > 90, "a hundred points of a smooth curve"
    assert torch.trapezoid(curve["tpr"], curve["fpr"]).item() == pytest.approx(metrics.auroc(clean, attacked), abs=2e-3)


@pytest.mark.parametrize(
    ("clean", "attacked", "expected"),
    [
        ([0.0, 1.0], [2.0, 3.0], 1.0),
        ([2.0, 3.0], [0.0, 1.0], 0.0),
        ([1.0, 1.0], [1.0], 0.5),  # ties count half
        ([0.0, 1.0, 2.0, 3.0], [1.5, 3.0], (2 + 3.5) / 8),
    ],
)
def test_auroc(clean: list[float], attacked: list[float], expected: float) -> None:
    assert metrics.auroc(torch.tensor(clean), torch.tensor(attacked)) == pytest.approx(expected)


def test_auroc_is_mann_whitney_with_ties() -> None:
    clean, attacked = torch.randint(0, 20, (80,)).float(), torch.randint(5, 25, (50,)).float()
    theirs = stats.mannwhitneyu(attacked, clean).statistic / (80 * 50)
    assert metrics.auroc(clean, attacked) == pytest.approx(theirs)


@pytest.mark.parametrize(("rate", "passed"), [(0.01, 1), (0.05, 5), (0.5, 50)])
def test_threshold_keeps_the_false_positive_rate(rate: float, passed: int) -> None:
    scores = torch.randperm(100).float()
    limit = metrics.threshold(scores, rate)
    assert (scores > limit).sum() <= passed
    assert (scores >= limit).sum() > passed, "a lower threshold would have kept the rate too"


def test_threshold_of_equal_scores_flags_nobody() -> None:
    scores = torch.full((50,), 0.1)
    assert metrics.share_above(scores, metrics.threshold(scores, 0.05)) == 0


def test_share_above_is_strict() -> None:
    assert metrics.share_above(torch.tensor([1.0, 2.0, 3.0, 4.0]), 2.0) == 0.5


def test_quality_of_known_cases() -> None:
    images = torch.rand(2, 3, 32, 32) * 0.5
    values = metrics.quality(torch.stack([images[0], images[1] + 0.1]), images)
    assert values["psnr"][0].item() == pytest.approx(80, abs=1e-4)  # piq's end of the scale
    assert values["psnr"][1].item() == pytest.approx(20, abs=1e-3)  # 10 log10(1 / 0.01)
    assert values["ssim"][0].item() == pytest.approx(1)
    assert set(values) == {"psnr", "ssim"}


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    low, high = 0.2, 0.6
    flat = [torch.full((1, 3, 32, 32), level) for level in (low, high)]
    constant = 0.01**2
    expected = (2 * low * high + constant) / (low**2 + high**2 + constant)
    assert metrics.quality(flat[0], flat[1])["ssim"].item() == pytest.approx(expected, abs=1e-4)


SHAPES = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}


def _backbone(path: Path) -> Path:
    tensors = {}
    for layer, shape in SHAPES.items():
        tensors[f"features.{layer}.weight"] = torch.randn(shape) / math.sqrt(shape[1] * shape[2] * shape[3])
        tensors[f"features.{layer}.bias"] = torch.randn(shape[0]) / 10
    save_file(tensors, path)
    return path


def test_lpips_takes_its_backbone_from_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    path = _backbone(tmp_path / "backbone.safetensors")
    monkeypatch.setenv(metrics.LPIPS_BACKBONE_VARIABLE, str(path))
    network = metrics.lpips_network()
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    given = load_file(path)
    assert torch.equal(network.net.slice1[0].weight, given["features.0.weight"])
    assert torch.equal(network.net.slice5[-2].bias, given["features.10.bias"])
    images, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert metrics.quality(images, images, network)["lpips"].tolist() == [0, 0]
    assert metrics.quality(images, other, network)["lpips"].min() > 0
    grey = torch.rand(2, 1, 32, 32)
    assert metrics.quality(grey, grey, network)["lpips"].shape == (2,)


def test_lpips_without_a_backbone_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.LPIPS_BACKBONE_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert metrics.lpips_network() is None


def test_lpips_takes_the_cached_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    monkeypatch.delenv(metrics.LPIPS_BACKBONE_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    given = load_file(_backbone(tmp_path / "backbone.safetensors"))
    torch.save(given, folder / "alexnet-owt-7be5be79.pth")
    assert torch.equal(metrics.lpips_network().net.slice3[-2].weight, given["features.6.weight"])


@pytest.mark.parametrize("what", ["missing", "damaged", "foreign"])
def test_a_wrong_backbone_is_told_in_one_line(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "backbone.safetensors"
    if what == "damaged":
        path.write_bytes(b"no safetensors")
    if what == "foreign":
        save_file({"features.0.weight": torch.zeros(3)}, path)
    monkeypatch.setenv(metrics.LPIPS_BACKBONE_VARIABLE, str(path))
    with pytest.raises(UserError) as caught:
        metrics.lpips_network()
    assert "\n" not in str(caught.value)
