"""Images of one channel and 28×28 pixels on the whole road: classifier, TRN, GAN, rivals, evaluation, pictures, a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import gandefense
from gandefense.classifiers import CLASSIFIERS, SMALLEST, build
from gandefense.data import datasets
from gandefense.evaluation import cost, metrics
from gandefense.restorers.baselines import READY
from gandefense.restorers.baselines import build as ready
from tests.helpers import small_fashion_mnist

FEW = ("run.device=cpu", "run.precision=float32", "train.batch_size=4", "data.name=fashion_mnist")
ROWS = ("attacked.rows=6", "attacked.steps=1", "validation_rows=6", "train.steps=1")


@pytest.fixture
def road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: Callable) -> Callable[..., Path]:
    """Run a training tool on the small Fashion-MNIST; gives its run folder."""
    small_fashion_mnist.install(tmp_path / "data", monkeypatch)

    def train(name: str, recipe: str, *words: str) -> Path:
        status, _, err = tool(f"train_{name}", recipe, *FEW, *words, f"run.folder={tmp_path / name}")
        assert status == 0, err
        (folder,) = (tmp_path / name).iterdir()
        return folder

    return train


def test_the_whole_road(road: Callable[..., Path], tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LEAST_REPEATS", 1)
    classifier = road("classifier", "configs/classifier/fashion_mnist_resnet9.yaml", "architecture=tiny", "train.epochs=0.1")
    common = (*ROWS, f"classifier={classifier}")
    trn = road("trn", "configs/trn/fashion_mnist_trn.yaml", *common, "network.width=8", "network.blocks=1")
    widths = ("network.width=8", "network.discriminator_width=8", "distil.steps=1", "distil.batch_size=4")
    gan = road("gan", "configs/gan/cifar10_gan.yaml", *common, *widths)
    assert gandefense.load(str(trn))(torch.rand(2, 1, 28, 28)).shape == (2, 10)

    restorers = [str(trn), str(gan), "jpeg", "random_resize"]
    few = {"gray_box": [{"attack": "fgsm"}], "white_box": {"views": ["exact"], "attacks": [{"attack": "pgd", "steps": 1}]}}
    data = {"name": "fashion_mnist", "limit": 4}
    output = tmp_path / "evaluation"
    results = gandefense.evaluate(
        "configs/evaluate/fashion_mnist_quick.yaml",
        **few,
        data=data,
        classifier=str(classifier),
        restorers=restorers,
        output=str(output),
        validation_images=4,
        resubmissions=2,
        cost_batch_size=2,
        images=2,
        device="cpu",
    )
    assert {row["restorer"] for row in results["rows"]} == set(restorers)
    assert (output / "report.html").is_file() and list((output / "pictures").glob("*.png"))

    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (28, 28), 128).save(folder / "grey.png")
    status, _, err = tool(
        "restore_images", "--restorer", str(trn), "--input", str(folder), "--output", str(tmp_path / "restored")
    )
    assert status == 0, err
    restored = Image.open(tmp_path / "restored" / "grey.png")
    assert (restored.mode, restored.size) == ("L", (28, 28))
    assert json.loads((output / "results.json").read_text(encoding="utf-8"))["data"]["name"] == "fashion_mnist"


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if SMALLEST.get(name, 0) <= 28])
def test_every_classifier_takes_them(name: str) -> None:
    network = build(name, datasets.describe("fashion_mnist")).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("name", READY)
def test_every_restorer_without_training_takes_them(name: str) -> None:
    images = torch.rand(2, 1, 28, 28)
    restored = ready(name)(images).images
    assert restored.shape == images.shape
    assert restored.isfinite().all() and restored.min() >= 0 and restored.max() <= 1


def test_lpips_of_small_grey_images_is_that_of_their_reflected_borders() -> None:
    network = metrics.lpips_network()
    if network is None:
        pytest.skip("LPIPS's backbone is not here")
    images, reference = torch.rand(3, 1, 28, 28), torch.rand(3, 1, 28, 28)
    found = metrics.quality(images, reference, network)["lpips"]
    larger = [torch.nn.functional.pad(batch, (2, 2, 2, 2), mode="reflect") for batch in (images, reference)]
    assert torch.allclose(found, metrics.quality(*larger, network)["lpips"])
    assert found.min() > 0 and metrics.quality(images, images, network)["lpips"].abs().max() < 1e-6
