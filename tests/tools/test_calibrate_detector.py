"""tools/calibrate_detector.py"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import gandefense
from gandefense import zoo
from gandefense.restorers.gan import GANNetworks
from gandefense.weights_io import load_weights, save_weights
from tests.evaluation.conftest import Networks, networks  # noqa: F401  (a fixture)

SHAPE = {"channels": 3, "size": 32, "width": 8}


@pytest.fixture
def gan(networks: Networks, tmp_path: Path) -> str:  # noqa: F811
    torch.manual_seed(0)
    made = GANNetworks(**SHAPE)
    torch.nn.init.normal_(made.ismn.out.weight, std=0.02)
    about = {"kind": "gan", "data": "cifar10", "classifier": networks.classifier, "network": SHAPE}
    path = tmp_path / "gan.safetensors"
    save_weights(path, made.state_dict(), {**about, "loop": {"threshold": 0.5, "rounds": 2, "tolerance": 0.01}})
    return str(path)


def test_a_finished_defence_gets_the_fused_detector(gan: str, tmp_path: Path, tool: Callable) -> None:
    output = tmp_path / "fused.safetensors"
    status, out, err = tool("calibrate_detector", gan, f"output={output}", "rate=0.1", "limit=4", "device=cpu")
    assert status == 0, err
    assert "fused" in out and "jsd at T = 40" in out and str(output) in out
    (before, about), (after, fused) = load_weights(gan), load_weights(output)
    assert all(torch.equal(after[name], before[name]) for name in before) and fused["loop"] == about["loop"]
    assert [signal["kind"] for signal in fused["detector"]["signals"]] == ["perturbation", "l1", "jsd", "jsd"]
    defended = gandefense.load(output)
    images = torch.rand(3, 3, 32, 32)
    restoration = defended.restore(images)
    assert torch.equal(restoration.flagged, restoration.score > fused["detector"]["threshold"])
    assert not torch.equal(restoration.score, gandefense.load(gan).restore(images).score)
    content = output.read_bytes()
    status, _, err = tool("calibrate_detector", gan, f"output={output}", "limit=0")
    assert status == 2 and "nothing is overwritten" in err and output.read_bytes() == content


def test_the_new_file_finds_the_distilled_classifier_of_the_old_one(
    gan: str,
    networks: Networks,  # noqa: F811
    tmp_path: Path,
    tool: Callable,
) -> None:
    (tensors, about), (weights, card) = load_weights(gan), load_weights(networks.classifier)
    (tmp_path / "run").mkdir()
    save_weights(tmp_path / "run" / "gan.safetensors", tensors, {**about, "classifier": zoo.STUDENT})
    save_weights(tmp_path / "run" / zoo.STUDENT, weights, card)
    output = tmp_path / "fused.safetensors"
    status, _, err = tool("calibrate_detector", tmp_path / "run/gan.safetensors", f"output={output}", "limit=0", "device=cpu")
    assert status == 0, err
    assert torch.equal(gandefense.load(output).classifier.head.weight, weights["head.weight"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a restorer"),
        (["GAN", "speed=3"], "expected a restorer"),
        (["GAN", "rate=2"], "rate lies between 0 and 1"),
        (["GAN", "rate=much"], "rate takes a number, got 'much'"),
        (["GAN", "limit=-1"], "limit is at least 0"),
        (["GAN", "output=fused.pt"], "output names a .safetensors file"),
        (["GAN", "output=nowhere/fused.safetensors"], "nowhere is no folder"),
        (["CLASSIFIER"], "is a 'classifier'; the fused detector belongs to a GAN defence"),
    ],
)
def test_a_mistake_is_one_line(
    gan: str,
    networks: Networks,  # noqa: F811
    tool: Callable,
    words: list[str],
    message: str,
) -> None:
    named = {"GAN": gan, "CLASSIFIER": networks.classifier}
    status, _, err = tool("calibrate_detector", *(named.get(word, word) for word in words))
    assert status == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
