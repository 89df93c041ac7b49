"""Attacked sets on disk."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gandefense.attacks import cache
from gandefense.attacks.cache import AttackedSet, AttackedSetConfig, attacked_set, fingerprint, own_sources
from gandefense.attacks.suite import AttackSpec, predict
from gandefense.data.batches import Images
from gandefense.errors import UserError
from tests.helpers.networks import small_cnn

CHUNK = 4  # rows, so that a set of some chunks is made at once
EPS = 8 / 255


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", CHUNK)


@pytest.fixture
def images() -> Images:
    return Images((torch.rand(10, 3, 6, 6) * 255).byte(), torch.arange(10) % 4, torch.arange(10) * 3)


@pytest.fixture
def classifier() -> nn.Sequential:
    return small_cnn(nn.ReLU)


@pytest.fixture
def make(classifier: nn.Module, images: Images, tmp_path: Path) -> Callable[..., AttackedSet]:
    """An attacked set of six chunks (the last of two rows), with changes to its config."""

    def make(
        network: nn.Module = classifier,
        data: Images = images,
        root: Path = tmp_path,
        transferred_from: Sequence[nn.Module] = (),
        **changes: object,
    ) -> AttackedSet:
        options = {"rows": 22, "attacks": ["fgsm", "pgd", "none"], "budgets": [EPS], "steps": 2, "precision": "float32"}
        config = AttackedSetConfig(**{**options, **changes})
        place = {"device": torch.device("cpu"), "root": str(root), "name": "set"}
        return attacked_set(network, data, config, **place, transfer=transferred_from)

    return make


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[AttackSpec]:
    """The attacks that really run, in order."""
    made, attack = [], cache.attack

    def counted(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, **options: object) -> object:
        made.append(spec)
        return attack(network, images, labels, spec, **options)

    monkeypatch.setattr(cache, "attack", counted)
    return made


def _all(attacked: AttackedSet) -> Tensor:
    return attacked.rows(torch.arange(len(attacked)))


def _clean(attacked: AttackedSet, images: Images) -> Tensor:
    return images.images[attacked.source].float() / 255


def test_chunks_take_the_attacks_in_turn_then_the_budgets_then_the_labels(make: Callable) -> None:
    specs = make(
        rows=12 * CHUNK - 1, attacks=["fgsm", "none", "bim"], budgets=[0.01, 0.02], labels=["true", "predicted"], steps=3
    ).specs
    found = [spec and (spec.attack, spec.eps, spec.labels, spec.steps) for spec in specs]
    assert found == [
        *(("fgsm", 0.01, "true", 3), None, ("bim", 0.01, "true", 3)),
        *(("fgsm", 0.02, "true", 3), None, ("bim", 0.02, "true", 3)),
        *(("fgsm", 0.01, "predicted", 3), None, ("bim", 0.01, "predicted", 3)),
        *(("fgsm", 0.02, "predicted", 3), None, ("bim", 0.02, "predicted", 3)),
    ]


def test_few_rows_are_shared_out_among_the_attacks(make: Callable) -> None:
    attacked = make(rows=7)
    assert [spec and spec.attack for spec in attacked.specs] == ["fgsm", "pgd", None, "fgsm"]
    assert attacked.is_attacked(torch.arange(7)).tolist() == [True] * 4 + [False] * 2 + [True]
    assert [spec and spec.attack for spec in make(rows=2).specs] == ["fgsm", "pgd"]


def test_rows_say_whether_they_are_attacked_and_clean_ones_are_the_image(make: Callable, images: Images) -> None:
    attacked = make()
    flags = attacked.is_attacked(torch.arange(22))
    assert flags.tolist() == [True] * 8 + [False] * 4 + [True] * 8 + [False] * 2
    assert torch.equal(attacked.is_attacked(torch.tensor([21, 0, 9])), torch.tensor([False, True, False]))
    clean = _clean(attacked, images)
    assert torch.equal(_all(attacked)[~flags], clean[~flags].half().float())
    assert (_all(attacked)[flags] - clean[flags]).abs().amax((1, 2, 3)).min() > 0.9 * EPS


def test_the_set_fits_its_description(make: Callable, images: Images) -> None:
    attacked = make()
    assert len(attacked) == 22
    assert attacked.attacked.shape == (22, 3, 6, 6)
    assert attacked.attacked.dtype == np.float16
    assert _all(attacked).dtype == torch.float32
    assert json.loads((attacked.folder / "config.json").read_text(encoding="utf-8"))["attacks"] == ["fgsm", "pgd", "none"]
    counts = attacked.source[:20].bincount(minlength=10)
    assert (counts == 2).all(), "every image is used once before one is used again"
    assert attacked.source.tolist() != sorted(attacked.source.tolist())


def test_every_budget_is_respected(make: Callable, images: Images) -> None:
    budgets = [2 / 255, 0.1]
    attacked = make(rows=24, attacks=["pgd", "fgsm"], budgets=budgets, steps=5)
    size = (_all(attacked) - _clean(attacked, images)).abs().amax((1, 2, 3))
    for chunk, spec in enumerate(attacked.specs):
        rows = size[chunk * CHUNK : (chunk + 1) * CHUNK]
        assert spec.eps == budgets[(chunk // 2) % 2]
        assert (rows <= spec.eps + 5e-4).all(), "float16 rounds by up to 2.5e-4 just under 1"
        assert (rows > 0.8 * spec.eps).all()
    assert _all(attacked).min() >= 0
    assert _all(attacked).max() <= 1


def test_a_share_of_the_rows_is_drawn_back_and_the_rest_is_as_without(
    make: Callable, classifier: nn.Module, images: Images
) -> None:
    options = {"rows": 160, "attacks": ["pgd", "none"], "budgets": [0.2]}
    whole, some, every = (_all(make(**options, nearer=share)) for share in (0.0, 0.5, 1.0))
    labels = images.labels[make(**options).source]
    clean = _clean(make(**options), images)
    could = (predict(classifier, whole) != labels) & (predict(classifier, clean) == labels)
    moved = {name: (rows != whole).flatten(1).any(1) for name, rows in (("some", some), ("every", every))}
    assert could.sum() >= 20
    assert torch.equal(moved["every"], could)
    assert 0.2 < (moved["some"][could]).float().mean() < 0.8
    back = moved["some"]
    assert ((some - clean)[back].flatten(1).norm(dim=1) < (whole - clean)[back].flatten(1).norm(dim=1)).all()
    assert (predict(classifier, some)[back] != labels[back]).float().mean() > 0.9, "float16 may round one back over the boundary"


def test_a_share_of_the_rows_is_attacked_on_other_classifiers(make: Callable, classifier: nn.Module) -> None:
    others = [small_cnn(nn.ReLU, seed=seed) for seed in (1, 2)]
    names = {"transfer": ["one", "two"], "transfer_share": 0.5}
    options = {"rows": 64, "attacks": ["fgsm"]}
    own = _all(make(**options))
    theirs = [_all(make(other, **options)) for other in others]
    mixed = _all(make(**options, **names, transferred_from=others))
    foreign = (mixed != own).flatten(1).any(1)
    assert 0.2 < foreign.float().mean() < 0.8
    same = torch.stack([(mixed == rows).flatten(1).all(1) for rows in theirs])[:, foreign]
    assert same.any(0).all() and same.sum(1).min() > 3, "each is the work of one of the others, and both are asked"
    swapped = make(**options, **names, transferred_from=others[::-1])
    assert not torch.equal(_all(swapped), mixed), "other weights under the same names are another set"
    with pytest.raises(UserError, match=r"attacked\.transfer is for training TRN"):
        make(**options, **names)
    with pytest.raises(ValueError, match="2 classifiers are named"):
        make(**options, **names, transferred_from=others[:1])


def test_every_attack_meets_every_other_classifier(make: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks come in turn; classifiers that came in turn with them would always be met by the same ones."""
    others, met = [small_cnn(nn.ReLU, seed=seed) for seed in (1, 2, 3)], set()

    def noted(network: nn.Module, images: Tensor, labels: Tensor, spec: AttackSpec, **options: object) -> object:
        met.add((spec.attack, network.network))
        return attack(network, images, labels, spec, **options)

    attack = cache.attack
    monkeypatch.setattr(cache, "attack", noted)
    attacks = ["fgsm", "ffgsm", "bim", "pgd", "mim", "none"]
    make(rows=60 * CHUNK, attacks=attacks, transfer=["a", "b", "c"], transfer_share=0.7, transferred_from=others)
    assert {(name, other) for name in attacks[:5] for other in others} <= met


def test_a_set_is_made_once(make: Callable, calls: list[AttackSpec]) -> None:
    first = make()
    assert [spec.attack for spec in calls] == ["fgsm", "pgd", "fgsm", "pgd"]
    second = make()
    assert len(calls) == 4
    assert second.folder == first.folder
    assert torch.equal(second.source, first.source)
    assert torch.equal(_all(second), _all(first))


def test_an_interrupted_set_goes_on_where_it_stopped(
    make: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, calls: list[AttackSpec]
) -> None:
    make = functools.partial(make, nearer=0.5)
    whole = _all(make(root=tmp_path / "whole"))
    attack, asked = cache.attack, []

    def breaks(*words: object, **options: object) -> object:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return attack(*words, **options)

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(cache, "attack", breaks)
        with pytest.raises(KeyboardInterrupt):
            make()
    (folder,) = (tmp_path / "attacked").iterdir()
    assert np.load(folder / "done.npy").tolist() == [True, True, True, False, False, False], "two attacks and a clean chunk"
    calls.clear()
    assert torch.equal(_all(make()), whole)
    assert [spec.attack for spec in calls] == ["fgsm", "pgd"], "finished chunks are not made again"


def test_another_classifier_config_or_image_choice_is_another_set(
    make: Callable, classifier: nn.Module, images: Images, calls: list[AttackSpec]
) -> None:
    folder = make().folder
    others = [
        make(small_cnn(nn.ReLU, seed=1)),
        make(seed=1),
        make(rows=21),
        make(steps=3),
        make(budgets=[EPS / 2]),
        make(attacks=["fgsm", "mim", "none"]),
        make(labels=["predicted"]),
        make(precision="bf16"),
        make(data=images._replace(index=images.index + 1)),
    ]
    folders = {folder, *(other.folder for other in others)}
    assert len(folders) == 10
    assert make().folder == folder
    with torch.no_grad():
        next(classifier.parameters())[0] += 1e-3
    assert make().folder not in folders, "a classifier is known by its weights"


def test_a_fingerprint_tells_names_values_and_parts_apart() -> None:
    network = nn.Linear(2, 2)
    assert fingerprint(network, 1) == fingerprint(network, 1)
    assert len({fingerprint(network, part) for part in (1, 2, [1], {"a": 1}, None)}) == 5
    assert len(fingerprint(network)) == 12
    assert fingerprint(network) == fingerprint(copy.deepcopy(network)) != fingerprint(copy.deepcopy(network).bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attacks": []}, "at least one attack"),
        ({"budgets": []}, "at least one .* budget"),
        ({"labels": []}, "at least one .* labels"),
        ({"rows": 0}, "one row"),
        ({"attacks": ["fgsm", "fgms"]}, "unknown attack 'fgms'"),
        ({"budgets": [8]}, "eps is in pixel units"),
        ({"attacks": ["pgd", "pgd-l2"]}, "pgd-l2 has an L2 budget"),
        ({"labels": ["guessed"]}, "labels must be true, predicted or random_target"),
        ({"steps": 0}, "steps and restarts must be at least 1"),
        ({"nearer": 1.5}, "attacked.nearer is a share between 0 and 1, got 1.5"),
        ({"transfer_share": -0.1}, "attacked.transfer_share is a share between 0 and 1, got -0.1"),
        ({"transfer_share": 0.1}, "attacked.transfer, a list of classifiers, and attacked.transfer_share above 0 go together"),
        ({"transfer": ["one"], "transfer_share": 0.5}, "attacked.transfer is for training TRN"),
        ({"precision": "float16"}, "precision must be auto, bf16 or float32, got 'float16'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(
    make: Callable, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make(**change)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(make: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write the attacked set .*; set data.root or GANDEFENSE_DATA"):
        make(root=tmp_path / "file")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _scribble(path: Path) -> None:
    path.write_bytes(b"no array" * 20)


def _reshape(path: Path) -> None:
    np.save(path, np.zeros((3, 3), np.float16))


@pytest.mark.parametrize("damage", [_truncate, _empty, _scribble, _reshape, Path.unlink])
@pytest.mark.parametrize("name", ["attacked.npy", "done.npy"])
def test_a_damaged_set_is_made_again(make: Callable, calls: list[AttackSpec], damage: Callable, name: str) -> None:
    """A finished set's done.npy says that every chunk is there; it may not vouch for images that are lost."""
    attacked = make()
    whole, folder = _all(attacked), attacked.folder
    del attacked
    damage(folder / name)
    calls.clear()
    assert torch.equal(_all(make()), whole)
    assert calls


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_the_classifier_is_as_it_was(make: Callable, precision: str) -> None:
    network = small_cnn(nn.ReLU).requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    make(network, precision=precision)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_making_a_set_draws_nothing_from_the_global_random_state(make: Callable) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    make()
    assert torch.equal(torch.rand(3), expected)


def test_float_images_are_taken_as_they_are(make: Callable, images: Images, tmp_path: Path) -> None:
    floats = make(data=images._replace(images=images.images.float() / 255), root=tmp_path / "floats")
    assert torch.equal(_all(floats), _all(make()))


def test_the_code_of_an_own_network_is_part_of_what_a_set_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_network.py").write_text("from torch import nn\n\n\nclass Net(nn.Identity):\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import their_network

    first = own_sources(their_network.Net())
    assert len(first) == 1 and own_sources(nn.Sequential(nn.Linear(1, 1))) == []
    (tmp_path / "their_network.py").write_text("# changed", encoding="utf-8")
    assert own_sources(their_network.Net()) != first


def test_other_code_or_libraries_make_another_set(
    make: Callable, calls: list[AttackSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    made = len(calls)
    assert {"code", "torch", "foolbox"} == set(cache.made_with())
    others = {**cache.made_with(), "foolbox": "0"}
    monkeypatch.setattr(cache, "made_with", lambda: others)
    assert make().folder != first.folder and len(calls) == 2 * made


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ('"""Another."""\n\ndef half(x):\n    # halves\n    return x / 2\n', True),
        ('"""One."""\n\ndef half(x):\n    """Halves."""\n    return x / 3\n', False),
    ],
)
def test_of_code_comments_and_docstrings_do_not_count(text: str, same: bool, tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text('"""One."""\n\ndef half(x):\n    return x / 2\n', encoding="utf-8")
    other.write_text(text, encoding="utf-8")
    assert (cache.code_digest([one]) == cache.code_digest([other])) is same
