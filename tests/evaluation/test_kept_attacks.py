"""Attacked images that the next evaluation finds ready."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gandefense
from gandefense.attacks.spec import AttackSpec
from gandefense.evaluation import kept_attacks, work
from gandefense.evaluation.kept_attacks import KeptAttacks
from tests.evaluation.conftest import Networks
from tests.helpers.evaluations import GRAY, without_timings

CLEAN = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
SPEC = AttackSpec("pgd", eps=8 / 255)
ATTACKED = (CLEAN + 4 / 255).clamp(0, 1)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., KeptAttacks]:
    """The kept sets of a data root, for an evaluation that may differ."""

    def make(contents: str = "abc", **options: Any) -> KeptAttacks:
        settings = {"batch_size": 4, "seed": 0, "device": "cpu", "largest": 0.1, "root": str(tmp_path)}
        return KeptAttacks(CLEAN, contents, **{**settings, **options})

    return make


def test_what_was_written_is_read_again(opened: Callable[..., KeptAttacks]) -> None:
    assert opened().read("abc", "none/pgd", SPEC, 0, CLEAN) is None
    opened().write("abc", "none/pgd", SPEC, 0, ATTACKED)
    assert torch.equal(opened().read("abc", "none/pgd", SPEC, 0, CLEAN), ATTACKED)
    assert opened().read("abc", "none/pgd", SPEC, 1, CLEAN) is None, "another batch"
    assert opened().read("abc", "none/mim", SPEC, 0, CLEAN) is None, "another attack"


@pytest.mark.parametrize("change", [{"contents": "def"}, {"batch_size": 2}, {"seed": 1}, {"device": "cuda"}])
def test_another_evaluations_images_are_not_taken(opened: Callable[..., KeptAttacks], change: dict[str, Any]) -> None:
    opened().write("abc", "none/pgd", SPEC, 0, ATTACKED)
    assert opened(**change).read("abc", "none/pgd", SPEC, 0, CLEAN) is None


def test_nor_those_of_another_network_or_other_code(opened: Callable[..., KeptAttacks], monkeypatch: pytest.MonkeyPatch) -> None:
    opened().write("abc", "none/pgd", SPEC, 0, ATTACKED)
    assert opened().read("def", "none/pgd", SPEC, 0, CLEAN) is None
    monkeypatch.setattr(kept_attacks, "_CODE", "another commit's")
    assert opened().read("abc", "none/pgd", SPEC, 0, CLEAN) is None


def test_every_part_between_images_and_attacked_ones_is_in_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(kept_attacks, "code_digest", lambda paths: read.extend(paths) or "digest")
    kept_attacks._digest()
    names = {path.relative_to(kept_attacks.PACKAGE).as_posix() for path in read if path.is_file()}
    wanted = {"attacks/stepwise.py", "classifiers/resnet.py", "data/datasets.py", "data/batches.py", "evaluation/work.py"}
    assert names >= wanted | {"restorers/base.py", "memory.py"} and len(names) == len(read)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-2] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.write_text("thesis", encoding="utf-8")])
def test_a_damaged_file_is_made_anew(opened: Callable[..., KeptAttacks], tmp_path: Path, damage: Callable[[Path], None]) -> None:
    opened().write("abc", "none/pgd", SPEC, 0, ATTACKED)
    damage(next(tmp_path.rglob("00000.safetensors")))
    assert opened().read("abc", "none/pgd", SPEC, 0, CLEAN) is None


@pytest.mark.parametrize(
    "images", [(CLEAN + 9 / 255).clamp(0, 1), torch.full_like(CLEAN, float("nan")), CLEAN - 2 / 255 - (CLEAN < 0.1) * 0.01]
)
def test_images_outside_budget_or_range_are_never_used(opened: Callable[..., KeptAttacks], images: Tensor) -> None:
    opened().write("abc", "none/pgd", SPEC, 0, images)
    assert opened().read("abc", "none/pgd", SPEC, 0, CLEAN) is None


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


def test_a_data_root_that_cannot_be_written_loses_nothing(opened: Callable[..., KeptAttacks], tmp_path: Path) -> None:
    (tmp_path / kept_attacks.FOLDER).write_text("a file where the folder should be", encoding="utf-8")
    opened().write("abc", "none/pgd", SPEC, 0, ATTACKED)
    assert opened().read("abc", "none/pgd", SPEC, 0, CLEAN) is None


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
    keeping: dict[str, Any], networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(networks.classifier).with_name("other.safetensors")
    shutil.copy(networks.classifier, other)
    keeping |= {"black_box": {"sources": [str(other)], "transfer": [{"attack": "bim", "eps": "48/255", "steps": 2}]}}
    first = gandefense.evaluate(**{**keeping, "restorers": ["none"]})
    made = _made(monkeypatch)
    found = gandefense.evaluate(**{**keeping, "output": str(tmp_path / "found")})
    assert set(made) == {"fgsm", "gaussian[-1,1]"}, "PGD's and BIM's images were there"
    assert (first["made"]["found"], found["made"]["found"]) == ({}, {"pgd-3": 8, f"bim-2 on {other}": 8})
    assert f"attacked images from earlier evaluations: pgd-3 (8), bim-2 on {other} (8)" in (
        tmp_path / "found" / "report.md"
    ).read_text(encoding="utf-8")
    made.clear()
    anew = gandefense.evaluate(**{**keeping, "output": str(tmp_path / "anew"), "keep_attacked": 0})
    assert {"pgd-3", "bim-2"} <= set(made) and anew["made"]["found"] == {}
    assert without_timings(found) == without_timings(anew)


def test_what_attacks_survivors_or_draws_a_curve_is_made_anew(
    keeping: dict[str, Any], small_cifar10: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keeping |= {"gray_box": [{"attack": "apgd-ce", "eps": "24/255", "steps": 3, "survivors": True}], "restorers": ["none"]}
    keeping |= {"curves": {"steps": [1, 3], "images": 4, "attack": {"attack": "pgd", "steps": 2}}}
    made = _made(monkeypatch)
    for folder in ("one", "two"):
        made.clear()
        assert gandefense.evaluate(**{**keeping, "output": str(tmp_path / folder)})["made"]["found"] == {}
        assert {"apgd-ce-3", "pgd-1", "pgd-3"} <= set(made)
    assert not (small_cifar10 / kept_attacks.FOLDER).exists()


OWN = """
from gandefense import zoo
from gandefense.restorers.base import Restoration, Restorer


def build():
    return zoo.load_classifier({classifier!r})


class Nothing(Restorer):
    def __init__(self, classifier):
        super().__init__()

    def forward(self, images):
        zeros = images.new_zeros(len(images))
        return Restoration(images, zeros, zeros > 0, zeros, {{}})
"""


@pytest.mark.parametrize("changes", [{"classifier": "build", "restorers": ["none"]}, {"restorers": ["Nothing"]}])
def test_where_a_part_is_ones_own_attacks_are_made_anew(
    keeping: dict[str, Any], networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Its code may have changed, or may change the classifier, which no file tells."""
    (tmp_path / "my_kept_parts.py").write_text(OWN.format(classifier=networks.classifier), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    dotted = {"build": "my_kept_parts.build", "Nothing": "my_kept_parts.Nothing"}
    own = {
        key: dotted[value] if isinstance(value, str) else [dotted.get(one, one) for one in value]
        for key, value in changes.items()
    }
    gandefense.evaluate(**{**keeping, "restorers": ["none"]})
    made = _made(monkeypatch)
    gandefense.evaluate(**{**keeping, **own, "output": str(tmp_path / "own")})
    assert "pgd-3" in made


def test_a_negative_size_is_refused(keeping: dict[str, Any]) -> None:
    with pytest.raises(gandefense.errors.UserError, match="keep_attacked must be at least 0"):
        gandefense.evaluate(**{**keeping, "keep_attacked": -1})
