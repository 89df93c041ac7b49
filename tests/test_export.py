"""Export: the loop with masks, traced backward passes, and files that do what the eager defence does."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gandefense import export
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.export import FixedRounds
from gandefense.restorers.base import DefendedClassifier, IdentityRestorer, Restoration, Restorer
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.restorers.gradient_maps import loss_gradients
from gandefense.restorers.trn import TRNRestorer, TwoStreamRestorationNetwork
from tests.helpers.networks import small_cnn

SIZE = 16
IMAGES = torch.rand(9, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
needs_onnx = pytest.mark.skipif(not all(map(export.installed, export.ONNX_NEEDS)), reason="the extra `export` is not installed")


def _random(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every weight drawn, also those that start at zero, and running statistics that are not the usual ones."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            size = 0.5 / max(1, value[0].numel() if value.ndim > 1 else 16) ** 0.5
            value.copy_(size * torch.randn(value.shape, generator=generator) + (1.0 if name.endswith("running_var") else 0.0))
            if name.endswith("running_var"):
                value.abs_()
    return module.eval()


def _between(values: Tensor) -> float:
    """Half-way between the two values in the middle: on one of them, rounding alone would decide on which side it lies."""
    ordered = values.sort().values
    return ordered[len(values) // 2 - 1 : len(values) // 2 + 1].mean().item()


def _gan(rounds: int = 3) -> GANRestorer:
    """A defence that flags some images, of which some settle and some do not."""
    networks = _random(GANNetworks(channels=3, size=SIZE, width=8))
    with torch.no_grad():
        first = networks(IMAGES)
        threshold = _between(first.logit)
        distance = (first.regenerated - first.cleaned).abs().mean((1, 2, 3))
    return GANRestorer(networks, threshold=threshold, rounds=rounds, tolerance=_between(distance)).eval()


def _trn(classifier: nn.Module, top_k: int | None = None, halvings: int = 0) -> TRNRestorer:
    network = _random(TwoStreamRestorationNetwork(channels=3, labels=top_k or 4, width=8, blocks=1, halvings=halvings))
    return TRNRestorer(network, classifier, top_k=top_k, threshold=10.0).eval()


def _defended(restorer: Restorer | None = None) -> DefendedClassifier:
    classifier = small_cnn(nn.ReLU, size=SIZE)
    return DefendedClassifier(restorer or _gan(), classifier)


class Dimming(nn.Module):
    """Stands for GANNetworks: the attack logit is the brightness, and regenerating halves it."""

    def judge(self, images: Tensor) -> export.Judged:
        brightness = images.mean((1, 2, 3))
        return export.Judged(images * 0.9, images, brightness, brightness, images[:, :1])

    def regenerate(self, judged: export.Judged, *, constant_level: bool = False) -> Tensor:
        return judged.code * 0.5


@pytest.mark.parametrize("rounds", [1, 2, 3, 6])
@pytest.mark.parametrize("tolerance", [0.0, 0.1, 10.0])
def test_masks_do_what_a_shrinking_batch_does(rounds: int, tolerance: float) -> None:
    restorer = GANRestorer(Dimming(), threshold=0.2, rounds=rounds, tolerance=tolerance)
    images = torch.linspace(0, 1, 23).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    wanted, found = restorer(images), FixedRounds(restorer)(images)
    assert wanted.flagged.any() and not wanted.flagged.all()
    for name in ("images", "score", "flagged", "level"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name


def test_masks_agree_on_real_networks() -> None:
    restorer = _gan()
    with torch.no_grad():
        wanted, found = restorer(IMAGES), FixedRounds(restorer)(IMAGES)
    assert 0 < wanted.flagged.sum() < len(IMAGES)
    assert not torch.equal(wanted.maps["round_1"], wanted.maps["round_2"]), "some go on"
    torch.testing.assert_close(found.images, wanted.images, rtol=0, atol=1e-6)


CLASSIFIERS = {
    "convolutions": lambda: [
        *(nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3), nn.ReLU()),
        *(nn.ConvTranspose2d(6, 6, 3, stride=2, padding=1, output_padding=1), nn.LeakyReLU(0.1)),
        *(nn.Conv2d(6, 6, 3, dilation=2), nn.ReLU()),
        nn.Conv2d(6, 6, 4, stride=3),  # leaves pixels over
    ],
    "norms": lambda: [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.GroupNorm(2, 6), nn.SiLU()],
    "pooling": lambda: [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1), nn.MaxPool2d(2)],
}


class LossGradients(nn.Module):
    """What TRN asks of its classifier."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return loss_gradients(self.classifier, images)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_a_traced_backward_pass_is_autograds(kind: str) -> None:
    torch.manual_seed(0)
    layers = CLASSIFIERS[kind]()
    width = nn.Sequential(*layers)(IMAGES[:1]).flatten(1).shape[1]
    module = LossGradients(_random(nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 3))))
    traced = export.trace(module, (3, SIZE, SIZE)).module()
    for images in (IMAGES, IMAGES[:1]):
        wanted = module(images)
        assert wanted.abs().max() > 1e-4
        torch.testing.assert_close(traced(images), wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("top_k", "halvings"), [(None, 0), (2, 0), (None, 2)])
def test_trn_is_written_as_an_exported_program(tmp_path: Path, top_k: int | None, halvings: int) -> None:
    defended = _defended(_trn(small_cnn(nn.ReLU, size=SIZE), top_k, halvings))
    worst = export.export(defended, tmp_path / "deep" / "x.pt2", IMAGES, about={"name": "mine"})
    assert list(worst) == list(export.OUTPUTS) and max(worst.values()) <= export.TOLERANCE
    extra = {"gandefense.json": ""}
    program = torch.export.load(str(tmp_path / "deep" / "x.pt2"), extra_files=extra).module()
    assert json.loads(extra["gandefense.json"]) == {"name": "mine", "outputs": list(export.OUTPUTS)}
    found = program(IMAGES[:5])
    assert found[0].shape == (5, 3, SIZE, SIZE) and found[4].shape == (5, 4) and found[3].isnan().all()
    assert not torch.equal(found[0], IMAGES[:5])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.pt2"]


@needs_onnx
@pytest.mark.parametrize("kind", [pytest.param("gan", marks=pytest.mark.slow), "trn"])
def test_onnx_agrees_on_flagged_images_and_others(tmp_path: Path, kind: str) -> None:
    import onnx

    classifier = small_cnn(nn.ReLU, size=SIZE)
    defended = DefendedClassifier(_gan(rounds=2) if kind == "gan" else _trn(classifier, halvings=1), classifier)
    worst = export.export(defended, tmp_path / "x.onnx", IMAGES, about={"name": "mine"})
    assert list(worst) == list(export.OUTPUTS) and max(worst.values()) <= export.TOLERANCE
    restoration = defended.restore(IMAGES)
    found = dict(zip(export.OUTPUTS, export.run_onnx(tmp_path / "x.onnx", IMAGES[:4]), strict=True))
    torch.testing.assert_close(found["images"], restoration.images[:4], rtol=0, atol=1e-4)
    assert torch.equal(found["flagged"], restoration.flagged[:4])
    assert kind == "trn" or 0 < restoration.flagged.sum() < len(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(found["logits"], defended(IMAGES[:4]), rtol=0, atol=1e-4)
    model = onnx.load(tmp_path / "x.onnx")
    assert [value.name for value in model.graph.input] == [export.INPUT]
    assert [value.name for value in model.graph.output] == list(export.OUTPUTS)
    assert json.loads({entry.key: entry.value for entry in model.metadata_props}["gandefense"]) == {"name": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_a_fixed_batch_and_a_restorer_alone(tmp_path: Path) -> None:
    defended = _defended(IdentityRestorer())
    worst = export.export(defended, tmp_path / "x.pt2", IMAGES, batch=4, part="restorer")
    assert list(worst) == ["images", "score", "flagged", "level"]
    program = torch.export.load(str(tmp_path / "x.pt2")).module()
    assert torch.equal(program(IMAGES[:4])[0], IMAGES[:4]) and len(program(IMAGES[:4])) == 4
    with pytest.raises(Exception, match=r"(?i)shape|size"):
        program(IMAGES[:3])
    with pytest.raises(UserError, match="a batch of 10 cannot be compared on 9 images"):
        export.export(defended, tmp_path / "y.pt2", IMAGES, batch=10)


class Deciding(Restorer):
    """Looks at its data in Python."""

    def forward(self, images: Tensor) -> Restoration:
        restored = images * 0.5 if images.mean() > 0.5 else images
        nothing = torch.zeros(len(images))
        return Restoration(restored, nothing, nothing.bool(), nothing, {})


class Random(Restorer):
    """Adds noise, which no graph repeats."""

    def forward(self, images: Tensor) -> Restoration:
        nothing = images.mean((1, 2, 3))
        return Restoration((images + 0.1 * torch.rand_like(images)).clamp(0, 1), nothing, nothing > 1, nothing, {})


@pytest.mark.parametrize(
    ("restorer", "name", "message"),
    [
        (Deciding(), "x.pt2", "cannot be exported: its computation cannot be traced"),
        (Random(), "x.pt2", "it differs from the eager network by more than 0.0001"),
        (IdentityRestorer(), "x.pb", "ends in .onnx or .pt2, got 'x.pb'"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_no_file(tmp_path: Path, restorer: Restorer, name: str, message: str) -> None:
    (tmp_path / "x.pt2").write_bytes(b"earlier")
    with pytest.raises(UserError, match=message) as caught:
        export.export(_defended(restorer), tmp_path / name, IMAGES)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "x.pt2").read_bytes() == b"earlier", "an earlier file stays"
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'gandefense\[export\]'"):
        export.export(_defended(IdentityRestorer()), tmp_path / "x.onnx", IMAGES)


def test_differences_see_nan_and_shapes() -> None:
    nan = torch.tensor([torch.nan, 1.0])
    assert export.differences([nan], (nan,), ("level",)) == {"level": 0.0}
    assert export.differences([nan], (torch.ones(2),), ("level",)) == {"level": float("inf")}
    assert export.differences([torch.ones(1)], (torch.ones(2),), ("level",)) == {"level": float("inf")}
    assert export.differences([torch.tensor([True])], (torch.tensor([False]),), ("flagged",)) == {"flagged": 1.0}


def test_samples_are_real_images_and_attacked_ones(small_cifar10: Path) -> None:
    data = datasets.describe("cifar10")
    classifier = small_cnn(nn.ReLU, size=32, classes=10)
    images, real = export.samples(DefendedClassifier(IdentityRestorer(), classifier), data, 3)
    assert real and images.shape == (6, 3, 32, 32)
    distance = (images[3:] - images[:3]).abs().amax((1, 2, 3))
    assert (distance > 0).all() and distance.max() <= 8 / 255 + 1e-6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "usage: python tools/export.py"),
        ("cifar10/gan", "usage: python tools/export.py"),
        ("cifar10/gan output=x.onnx bacth=2", "usage: python tools/export.py"),
        ("cifar10/gan output=x.onnx batch=0", "batch must be dynamic or a number of images, got '0'"),
        ("cifar10/nothing output=x.onnx", "unknown network 'cifar10/nothing'"),
    ],
)
def test_the_tools_mistakes_are_one_line(words: str, message: str) -> None:
    tool = runpy.run_path(str(Path(__file__).parent.parent / "tools" / "export.py"))
    with pytest.raises(UserError, match=message):
        tool["main"](shlex.split(words))


@pytest.mark.slow
@needs_onnx
def test_the_shipped_gan_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool = runpy.run_path(str(Path(__file__).parent.parent / "tools" / "export.py"))
    tool["main"](["cifar10/gan", f"output={tmp_path / 'gan.onnx'}"])
    assert "largest difference: images " in capsys.readouterr().out
    assert (tmp_path / "gan.onnx").stat().st_size > 10**6
