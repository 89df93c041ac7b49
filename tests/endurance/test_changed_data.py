"""A run does not go on with other images, or in front of another classifier, than those that it was started with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gandefense.weights_io import load_weights, save_weights
from tests.helpers import small_cifar10 as small


@pytest.fixture
def stopped(tool: Callable, recipe: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A run whose weights are lost, so that it must go on from its last checkpoint."""

    def run(kind: str, *words: str) -> Path:
        status, _, err = tool(f"train_{kind}", recipe(f"train_{kind}"), *words)
        assert status == 0, err
        folder = tmp_path / "runs" / "00000-run"
        (folder / "model.safetensors").unlink()
        return folder

    return run


def test_other_images_are_refused_and_the_old_ones_taken(
    stopped: Callable[..., Path], tool: Callable, data: Path, tmp_path: Path
) -> None:
    folder = stopped("classifier", "train.epochs=1")
    shutil.copytree(data / "cifar10", tmp_path / "kept")
    with pytest.MonkeyPatch.context() as patch:
        small.write(data / "cifar10", seed=1)
        small.install(data, patch)
        status, _, err = tool("train_classifier", f"resume={folder}")
    assert status == 2
    assert err == (
        f"error: resume={folder}: the images changed since this run was started; put back what it was started with, "
        "or start a new run\n"
    )
    shutil.copytree(tmp_path / "kept", data / "cifar10", dirs_exist_ok=True)
    assert tool("train_classifier", f"resume={folder}")[0] == 0


def test_another_classifier_under_the_same_name_is_refused(
    stopped: Callable[..., Path], tool: Callable, _tiny_classifier: Path, tmp_path: Path
) -> None:
    mine = shutil.copy(_tiny_classifier, tmp_path / "classifier.safetensors")
    folder = stopped("trn", f"classifier={mine}", "train.steps=5")
    tensors, description = load_weights(mine)
    save_weights(Path(mine), {name: tensor * 1.01 for name, tensor in tensors.items()}, description)
    status, _, err = tool("train_trn", f"resume={folder}")
    assert status == 2
    assert "the defended classifier changed since this run was started" in err


def test_a_run_from_before_fingerprints_goes_on(stopped: Callable[..., Path], tool: Callable) -> None:
    folder = stopped("classifier", "train.epochs=1")
    lines = (folder / "config.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith(("made_from:", "  the images:", "  what run.precision comes to"))]
    assert len(kept) == len(lines) - 3
    (folder / "config.yaml").write_text("".join(kept), encoding="utf-8")
    assert tool("train_classifier", f"resume={folder}")[0] == 0
