"""CelebA from the commands that a user types: classifier, GAN, evaluation, a folder of faces; on drawn faces of 64 pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gandefense import zoo
from gandefense.evaluation import cost, metrics
from gandefense.weights_io import load_weights
from tests.helpers import small_celeba as small

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small.write(tmp_path / "data" / "celeba")
    monkeypatch.setenv("GANDEFENSE_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(cost, "LEAST_REPEATS", 1)
    monkeypatch.setattr(metrics, "lpips_network", lambda *_: None)
    return tmp_path


SHORT = ["data.size=64", "run.device=cpu"]
SHORT_GAN = [
    *SHORT,
    *("attacked.rows=8", "attacked.steps=1", "validation_rows=4", "validation_images=3", "network.width=8"),
    *("network.discriminator_width=8", "distil.steps=1", "distil.batch_size=4", "train.steps=2", "train.batch_size=4"),
    *("loss.lpips=0", "run.image_every=2"),
]


def test_from_the_classifier_to_a_restored_folder(root: Path, tool: Callable) -> None:
    classifier, gan = Path("runs/00000-celeba128_smiling"), Path("runs/00001-celeba128_gan")
    status, out, err = tool(
        "train_classifier", CONFIGS / "classifier/celeba128_smiling.yaml", *SHORT, "train.epochs=1", "train.batch_size=16"
    )
    assert status == 0, err
    assert "celeba train: 32 of 40 aligned images" in out and "none of the 10 people is in two splits" in out
    described = load_weights(classifier / "model.safetensors")[1]
    assert described["data"] == "celeba-64-Smiling" and described["measured"]["validation_n"] == 4
    assert zoo.load_classifier(str(classifier)).head.out_features == 2

    status, out, err = tool("train_gan", CONFIGS / "gan/celeba128_gan.yaml", f"classifier={classifier}", *SHORT_GAN)
    assert status == 0, err
    described = load_weights(gan / "model.safetensors")[1]
    assert described["data"] == "celeba-64-Smiling" and described["network"]["size"] == 64
    events = EventAccumulator(str(gan), size_guidance={"images": 0}).Reload()
    assert {"pictures/attacked", "pictures/gaussian_0.3"} <= set(events.Tags()["images"])
    picture = events.Images("pictures/attacked")[-1]
    assert picture.width == 4 * 65 + 1, "four validation rows of 64 pixels side by side"

    own = [f"classifier={classifier}", f"restorers=[{gan}]"]
    status, out, err = tool(
        *("evaluate", CONFIGS / "evaluate/celeba128.yaml", "data.size=64", "data.limit=4", "validation_images=4", "output=eval"),
        *own,
        *("gray_box=[{attack: fgsm, eps: 0.3}, {attack: pgd, eps: 0.3, steps: 2}]", "device=cpu"),
        "white_box.attacks=[{attack: autoattack, eps: 8/255, steps: 2, queries: 4}]",  # of the suite for two classes
    )
    assert status == 0, err
    results = json.loads((root / "eval" / "results.json").read_text(encoding="utf-8"))
    assert results["data"]["name"] == "celeba-64-Smiling" and results["data"]["classes"] == 2 and results["data"]["n"] == 4
    assert {(row["attack"], row["eps"]) for row in results["rows"]} >= {("fgsm", 0.3), ("pgd", 0.3), ("autoattack", 8 / 255)}

    status, out, err = tool(
        "evaluate", CONFIGS / "evaluate/celeba128.yaml", "data.size=64", "data.split=identity", "output=other", *own
    )
    assert status == 2 and "was trained with data.split=official; under data.split=identity some of its training images" in err

    faces = root / "data/celeba"
    for name, note in (
        ("img_align_celeba", "cut to its middle, 178×178 from 178×218; resized to 64×64 from 178×178"),
        ("celeba_hq_1024", "resized to 64×64 from 1024×1024"),
    ):
        status, out, err = tool("restore_images", "--restorer", gan, "--input", faces / name, "--output", root / name)
        assert status == 0, err
        assert f"{len(list((faces / name).iterdir()))} of" in out and note in (root / name / "scores.csv").read_text("utf-8")
        assert Image.open(root / name / "000001.png").size == (64, 64)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.root=nowhere"], "error: nowhere/celeba/img_align_celeba: No such file or directory. CelebA is not downloaded"),
        (["data.attributes=[Smile]"], "error: data.attributes: CelebA has no attribute 'Smile'; did you mean Smiling?"),
        (["data.attributes=Smiling"], "takes a list, even of one: data.attributes=[…]"),
        (["data.size=500"], "error: data.size of celeba must be one of 32, 64, 128, 256, 512, 1024, got 500"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(root: Path, tool: Callable, words: list[str], message: str) -> None:
    status, _, err = tool("train_classifier", CONFIGS / "classifier/celeba128_smiling.yaml", *words)
    assert status == 2 and message in err and err.count("\n") == 1 and not (root / "runs").exists()


def test_a_classifier_of_another_size_is_refused(root: Path, tool: Callable) -> None:
    words = [*SHORT, "train.epochs=1", "train.batch_size=16"]
    assert tool("train_classifier", CONFIGS / "classifier/celeba128_smiling.yaml", "data.limit=16", *words)[0] == 0
    status, _, err = tool(
        "train_gan",
        CONFIGS / "gan/celeba128_gan.yaml",
        "data.size=128",
        "loss.lpips=0",
        "classifier=runs/00000-celeba128_smiling",
    )
    assert status == 2 and "is for 'celeba-64-Smiling', not for 'celeba-128-Smiling'" in err
