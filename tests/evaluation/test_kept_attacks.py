"""Attacked images that the next evaluation finds ready."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gandefense
from gandefense.attacks.spec import AttackSpec
from gandefense.evaluation import kept_attacks, work
from gandefense.evaluation.kept_attacks import KeptAttacks
from tests.evaluation.conftest import Networks
from tests.helpers.evaluations import GRAY, without_timings
from tests.helpers.networks import small_cnn

CLEAN = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SPEC = AttackSpec("pgd", eps=8 / 255)
ATTACKED = (CLEAN + 4 / 255).clamp(0, 1)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return small_cnn(nn.ReLU)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., KeptAttacks]:
    """The kept sets of a data root, for an evaluation that may differ."""

    def make(contents: str = "abc", **options: Any) -> KeptAttacks:
        settings = {"batch_size": 4, "seed": 0, "device": "cpu", "largest": 0.1, "root": str(tmp_path)}
        return KeptAttacks(CLEAN, contents, **{**settings, **options})

    return make


def test_what_was_written_is_read_again(opened: Callable[..., KeptAttacks], network: nn.Module) -> None:
    assert opened().read(network, "none/pgd", SPEC, 0, CLEAN) is None
    opened().write(network, "none/pgd", SPEC, 0, ATTACKED)
    assert torch.equal(opened().read(network, "none/pgd", SPEC, 0, CLEAN), ATTACKED)
    assert opened().read(network, "none/pgd", SPEC, 1, CLEAN) is None, "another batch"
    assert opened().read(network, "none/mim", SPEC, 0, CLEAN) is None, "another attack"


@pytest.mark.parametrize("change", [{"contents": "def"}, {"batch_size": 2}, {"seed": 1}, {"device": "cuda"}])
def test_another_evaluations_images_are_not_taken(
    opened: Callable[..., KeptAttacks], network: nn.Module, change: dict[str, Any]
) -> None:
    opened().write(network, "none/pgd", SPEC, 0, ATTACKED)
    assert opened(**change).read(network, "none/pgd", SPEC, 0, CLEAN) is None


def test_nor_those_of_other_weights_another_network_or_other_code(
    opened: Callable[..., KeptAttacks], network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened().write(network, "none/pgd", SPEC, 0, ATTACKED)
    other = small_cnn(nn.Tanh)
    other.load_state_dict(network.state_dict())
    assert opened().read(other, "none/pgd", SPEC, 0, CLEAN) is None, "the same weights, other activations"
    monkeypatch.setattr(kept_attacks, "_code", lambda: "another commit's")
    assert opened().read(network, "none/pgd", SPEC, 0, CLEAN) is None
    monkeypatch.undo()
    with torch.no_grad():
        next(network.parameters()).add_(1e-3)
    assert opened().read(network, "none/pgd", SPEC, 0, CLEAN) is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-2] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.write_text("thesis", encoding="utf-8")])
def test_a_damaged_file_is_made_anew(
    opened: Callable[..., KeptAttacks], network: nn.Module, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    opened().write(network, "none/pgd", SPEC, 0, ATTACKED)
    damage(next(tmp_path.rglob("00000.safetensors")))
    assert opened().read(network, "none/pgd", SPEC, 0, CLEAN) is None


@pytest.mark.parametrize(
    "images", [(CLEAN + 9 / 255).clamp(0, 1), torch.full_like(CLEAN, float("nan")), CLEAN - 2 / 255 - (CLEAN < 0.1) * 0.01]
)
def test_images_outside_budget_or_range_are_never_used(
    opened: Callable[..., KeptAttacks], network: nn.Module, images: Tensor
) -> None:
    opened().write(network, "none/pgd", SPEC, 0, images)
    assert opened().read(network, "none/pgd", SPEC, 0, CLEAN) is None


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (AttackSpec("pgd"), True),
        (AttackSpec("autoattack"), True),
        (AttackSpec("square"), True),
        (AttackSpec("pgd-l2", eps=0.5), True),
        (AttackSpec("fgsm"), False),
        (AttackSpec("ffgsm"), False),
        (AttackSpec("universal"), False),
        (AttackSpec("gaussian[-1,1]", eps=0.2), False),
    ],
)
def test_only_what_was_expensive_and_is_not_too_large(opened: Callable[..., KeptAttacks], spec: AttackSpec, wanted: bool) -> None:
    assert opened().wanted(spec) is wanted
    assert not opened(largest=4 * CLEAN.numel() / 1e9 * 0.99).wanted(spec)
    assert opened(largest=4 * CLEAN.numel() / 1e9 * 1.01).wanted(spec) is wanted


def test_a_data_root_that_cannot_be_written_loses_nothing(
    opened: Callable[..., KeptAttacks], network: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / kept_attacks.FOLDER).write_text("a file where the folder should be", encoding="utf-8")
    opened().write(network, "none/pgd", SPEC, 0, ATTACKED)
    assert opened().read(network, "none/pgd", SPEC, 0, CLEAN) is None


@pytest.fixture
def keeping(settings: dict[str, Any], small_cifar10: Path) -> dict[str, Any]:
    """An evaluation under gray_box that keeps attacked images, of which there are none yet."""
    shutil.rmtree(small_cifar10 / kept_attacks.FOLDER, ignore_errors=True)
    return {
        **settings,
        "white_box": {"views": [], "attacks": []},
        "gray_box": GRAY,
        "keep_attacked": 0.1,
        "limit": 8,
        "validation_images": 8,
    }


def _made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the attacks that are carried out from here on."""
    real, made = work.attack, []

    def counted(network: Any, images: Any, labels: Any, spec: Any, **options: Any) -> Any:
        made.append(spec.title())
        return real(network, images, labels, spec, **options)

    monkeypatch.setattr(work, "attack", counted)
    return made


def test_the_next_evaluation_finds_them_and_ends_with_the_same_table(
    keeping: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gandefense.evaluate(**{**keeping, "restorers": ["none"]})
    made = _made(monkeypatch)
    found = gandefense.evaluate(**{**keeping, "output": str(tmp_path / "found")})
    assert set(made) == {"fgsm", "gaussian[-1,1]"}, "PGD's images were there"
    made.clear()
    anew = gandefense.evaluate(**{**keeping, "output": str(tmp_path / "anew"), "keep_attacked": 0})
    assert "pgd-3" in made
    assert without_timings(found) == without_timings(anew)


def test_attacks_on_ones_own_classifier_are_made_anew(
    keeping: dict[str, Any], networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code may have changed, which weights do not tell."""
    (tmp_path / "my_kept_classifier.py").write_text(
        f"from gandefense import zoo\n\n\ndef build():\n    return zoo.load_classifier({networks.classifier!r})\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    keeping |= {"classifier": "my_kept_classifier.build", "restorers": ["none"]}
    made = _made(monkeypatch)
    for folder in ("one", "two"):
        made.clear()
        gandefense.evaluate(**{**keeping, "output": str(tmp_path / folder)})
        assert "pgd-3" in made


def test_a_negative_size_is_refused(keeping: dict[str, Any]) -> None:
    with pytest.raises(gandefense.errors.UserError, match="keep_attacked must be at least 0"):
        gandefense.evaluate(**{**keeping, "keep_attacked": -1})
