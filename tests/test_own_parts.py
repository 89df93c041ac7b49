"""Users' own restorers and classifiers by dotted name."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import gandefense
from gandefense import own_parts, zoo
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.restorers.base import IdentityRestorer
from gandefense.weights_io import save_weights

CIFAR10 = datasets.describe("cifar10")
HEAD = """
import torch
from torch import nn
from gandefense import DefendedClassifier, Restoration, Restorer

class Half(Restorer):
    def __init__(self, factor=0.5):
        super().__init__()
        self.factor = factor
    def forward(self, images):
        score = images.flatten(1).mean(1)
        return Restoration(images * self.factor, score, score > 0.5, torch.full_like(score, torch.nan), {})

class Reader(Half):
    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

class Darker(nn.Module):
    def forward(self, images):
        return images - 0.25

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
"""
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a module into the working directory, under a name that no test had before; its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != ""])

    def write(text: str, head: str = HEAD) -> str:
        name = f"own_part_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(head + text, encoding="utf-8")
        return name

    return write


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()


def test_a_factory_makes_a_classifier_that_loads_undefended(module: Callable) -> None:
    name = f"{module('')}.build"
    images = torch.rand(2, 3, 32, 32)
    defended = gandefense.load(name)
    torch.manual_seed(0)
    expected = linear()
    assert isinstance(defended.restorer, IdentityRestorer) and not defended.training
    assert torch.equal(defended(images), expected(images))
    assert torch.equal(zoo.load_classifier(name)(images), expected(images))
    assert zoo.describe(name) == {"kind": "own", "name": name}
    zoo.try_out(name, defended.classifier, CIFAR10)


@pytest.mark.parametrize(
    ("text", "attribute", "restored"),
    [
        ("", "Half", 0.5),
        ("def make(): return Half(0.3)", "make", 0.3),
        ("made = Half(0.2)", "made", 0.2),
        ("", "Reader", 0.5),
        ("def make(*, classifier): return Half(0.1 if isinstance(classifier, nn.Module) else 9)", "make", 0.1),
        ("def make(network, factor=0.4): return Half(factor if isinstance(network, nn.Module) else 9)", "make", 0.4),
        ("def make(factor=0.7, classifier=None): return Half(9 if classifier is None else factor)", "make", 0.7),
        ("", "Darker", 0.75),
        ("made = Darker()", "made", 0.75),
        ("def make(): return Darker()", "make", 0.75),
    ],
)
def test_restorers_by_class_factory_or_object(module: Callable, text: str, attribute: str, restored: float) -> None:
    name = f"{module(text)}.{attribute}"
    classifier = linear()
    defended = gandefense.defend(classifier, name)
    images = torch.ones(2, 3, 32, 32)
    assert torch.allclose(defended.restore(images).images, images * restored)
    assert defended.classifier is classifier and not defended.restorer.training
    assert defended(images).shape == (2, 10)
    zoo.try_out(name, defended.restorer, CIFAR10)


def test_the_classifier_reaches_the_restorer_that_asks_for_it(module: Callable) -> None:
    classifier = linear()
    assert gandefense.defend(classifier, f"{module('')}.Reader").restorer.classifier is classifier


def test_an_image_to_image_network_scores_what_it_removed_and_flags_nothing(module: Callable) -> None:
    defended = gandefense.defend(linear(), f"{module('')}.Darker")
    images = torch.stack([torch.full((3, 32, 32), value) for value in (1.0, 0.1, 0.0)])
    restoration = defended.restore(images)
    assert torch.allclose(restoration.images[:, 0, 0, 0], torch.tensor([0.75, 0.0, 0.0])), "clamped to [0, 1]"
    assert torch.allclose(restoration.score, torch.tensor([0.25, 0.1, 0.0]) * 255)
    assert not restoration.flagged.any() and restoration.level.isnan().all()
    assert torch.equal(restoration.maps["residual"], images - restoration.images)
    point = images.requires_grad_(True)
    (gradient,) = torch.autograd.grad(defended.restorer.scored(point, "exact")[1].sum(), point)
    assert gradient.isfinite().all(), "an image that nothing was removed from has a gradient too"


def test_a_module_in_a_package_may_import_its_neighbours(module: Callable, tmp_path: Path) -> None:
    module("")
    package = tmp_path / "own_package"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "first.py").write_text("from own_package.second import FACTOR\n" + HEAD, encoding="utf-8")
    (package / "second.py").write_text("FACTOR = 1\n", encoding="utf-8")
    assert gandefense.defend(linear(), "own_package.inner.first.Half").restorer.factor == 0.5


def test_a_whole_defence_of_ones_own_loads_as_it_is(module: Callable) -> None:
    name = f"{module('whole = DefendedClassifier(Half(), build())')}.whole"
    assert gandefense.load(name).restorer.factor == 0.5


def test_names_on_disk_and_in_the_zoo_win(module: Callable, tmp_path: Path) -> None:
    name = module("raise RuntimeError('imported')")
    run = tmp_path / f"{name}.build"
    run.mkdir()
    (run / "config.yaml").write_text("", encoding="utf-8")
    (run / "model.safetensors").write_bytes(b"")
    assert zoo.find(f"{name}.build") == Path(f"{name}.build/model.safetensors")
    assert not zoo.is_own(f"{name}.build") and not zoo.is_own("cifar10/trn") and not zoo.is_own("model.safetensors")
    assert zoo.is_own(f"{name}.third")


BROKEN = "def make(classifier=None):\n    "


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        ("", "Hlaf", "{m}.Hlaf: module {m} has no Hlaf; it has Half"),
        ("", "zzz", "module {m} has no zzz"),
        ("import no_such_package", "make", "raised ModuleNotFoundError: No module named 'no_such_package'"),
        ("def make(:", "make", "importing it raised SyntaxError: "),
        ("raise ValueError('bad\\nworse')", "make", "importing it raised ValueError: bad ({m}.py, line {n})"),
        ("raise SystemExit(3)", "make", "importing it raised SystemExit: 3"),
        (BROKEN + "raise OSError('no weights')", "make", "building it raised OSError: no weights ({m}.py, line {n1})"),
        (BROKEN + "raise KeyError", "make", "building it raised KeyError ({m}.py"),
        (BROKEN + "return 3", "make", "{m}.make: expected a gandefense.Restorer or a torch.nn.Module: images → images, got int"),
        (BROKEN + "return DefendedClassifier(Half(), build())", "make", "got gandefense.restorers.base.DefendedClassifier"),
        ("def make(a, b): return Half()", "make", "building it raised TypeError: make() missing 1 required positional argument"),
        ("made = 3", "made", "{m}.made: expected a gandefense.Restorer"),
    ],
)
def test_a_restorer_that_cannot_be_had_is_one_line(module: Callable, text: str, attribute: str, message: str) -> None:
    name = module(text)
    with pytest.raises(UserError) as caught:
        gandefense.defend(linear(), f"{name}.{attribute}")
    first = HEAD.count("\n") + 1
    assert message.format(m=name, n=first, n1=first + 1) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "attribute", "message"),
    [
        ("", "Half", "expected a classifier (a torch.nn.Module: images → logits), got {m}.Half"),
        ("made = Half()", "made", "expected a classifier (a torch.nn.Module: images → logits), got {m}.Half"),
        ("def make(): return Half()", "make", "expected a classifier (a torch.nn.Module: images → logits), got {m}.Half"),
        ("def make(): return 'network'", "make", "expected a classifier (a torch.nn.Module: images → logits), got str"),
        ("def make(): return gandefense", "make", "building it raised NameError: name 'gandefense' is not defined"),
        ("def make(classes): return build()", "make", "missing 1 required positional argument: 'classes'"),
    ],
)
def test_a_classifier_that_cannot_be_had_is_one_line(module: Callable, text: str, attribute: str, message: str) -> None:
    name = module(text)
    with pytest.raises(UserError) as caught:
        zoo.load_classifier(f"{name}.{attribute}")
    assert message.format(m=name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attribute", ["Half", "Reader", "made", "make"])
def test_a_restorer_alone_does_not_load(module: Callable, attribute: str) -> None:
    name = module("made = Half()\ndef make(): return Half()")
    with pytest.raises(UserError, match=r"does not say which classifier it defends; use gandefense\.defend"):
        gandefense.load(f"{name}.{attribute}")


@pytest.mark.parametrize("name", ["no_such_package.make", "own_part_absent.inner.make", "torch.absent_module.make"])
def test_a_module_that_is_not_there_says_where_was_looked(module: Callable, tmp_path: Path, name: str) -> None:
    module("")
    for look in (gandefense.load, zoo.describe, zoo.load_classifier, zoo.find, zoo.content_hash):
        with pytest.raises(
            UserError, match=f"^{name}: no module .* in {tmp_path} on PYTHONPATH or among the installed packages, nor is it a"
        ):
            look(name)


def test_an_own_part_has_no_weights_file(module: Callable) -> None:
    with pytest.raises(UserError, match="is a part of your own and has no weights file"):
        zoo.find(f"{module('')}.build")


RESTORATION = "images, images.flatten(1).mean(1), images.flatten(1).mean(1) > 9, images.flatten(1).mean(1), {}"
ANSWERS = {
    "nothing": ("None", "must give a gandefense.Restoration, this one gave NoneType"),
    "images alone": ("images", "must give a gandefense.Restoration, this one gave torch.Tensor"),
    "smaller": ("good(images=images[..., 1:])", "restored images (2, 3, 32, 32) to (2, 3, 32, 31)"),
    "out of range": ("good(images=images * 2)", "its restored images: images must lie in [0, 1]"),
    "NaN": ("good(images=images / 0 * 0)", "its restored images: images contain NaN"),
    "one score": ("good(score=images.mean())", "its score must have one value per image (2,), got ()"),
    "endless score": ("good(score=images.flatten(1).mean(1) / 0)", "its score contains NaN or infinite values"),
    "flags as numbers": ("good(flagged=images[:, 0, 0, 0])", "its flagged must be bool, got torch.float32"),
    "level as a number": ("good(level=0.5)", "its level must have one value per image (2,), got float"),
    "flat map": ("good(maps={'code': images.flatten(1)})", "its map 'code' must be (2, c, H, W), got (2, 3072)"),
    "error": ("images @ 3", "restoring images raised TypeError: "),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_trial_finds_answers_of_a_restorer_that_are_no_good(module: Callable, case: str) -> None:
    answer, message = ANSWERS[case]
    name = f"{module('')}.Odd"
    good = f"lambda **changes: Restoration({RESTORATION})._replace(**changes)"
    text = f"class Odd(Restorer):\n    def forward(self, images):\n        good = {good}\n        return {answer}\n"
    path = Path(f"{name.split('.')[0]}.py")
    path.write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        zoo.try_out(name, zoo.load_restorer(name, linear()), CIFAR10)
    assert str(caught.value).startswith(f"{name}: ") and "\n" not in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("nn.Flatten()", "expected logits (2, 10) for 2 images, got (2, 3072)"),
        ("nn.Linear(3, 10)", "classifying images raised RuntimeError: "),
        ("nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.Threshold(float('inf'), float('nan')))", "not all finite numbers"),
    ],
)
def test_a_trial_finds_classifiers_that_are_none(module: Callable, network: str, message: str) -> None:
    name = f"{module(f'def make(): return {network}')}.make"
    with pytest.raises(UserError) as caught:
        zoo.try_out(name, zoo.load_classifier(name), CIFAR10)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_classifier_in_a_restorers_place_is_found_by_the_trial(module: Callable) -> None:
    name = f"{module('')}.build"
    restorer = zoo.load_restorer(name, linear())
    with pytest.raises(UserError, match=r"made \(2, 10\) of images \(2, 3, 32, 32\), not images of the same shape"):
        zoo.try_out(name, restorer, CIFAR10)


def test_content_hash_follows_weights_and_sources(module: Callable, tmp_path: Path) -> None:
    name = module("")
    path = tmp_path / f"{name}.py"
    first = zoo.content_hash(f"{name}.build")
    assert len(first) == 64 and first == zoo.content_hash(f"{name}.build", zoo.load_classifier(f"{name}.build"))
    other = zoo.load_classifier(f"{name}.build")
    with torch.no_grad():
        other[1].bias += 1
    assert zoo.content_hash(f"{name}.build", other) != first, "other weights"
    assert zoo.content_hash(f"{name}.Half") != first, "another part of the same file"
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert zoo.content_hash(f"{name}.build") != first, "another source"


def test_content_hash_follows_the_file_that_really_defines_a_network(module: Callable, tmp_path: Path) -> None:
    inner = module("")
    outer = module(f"from {inner} import Half as Shown\n", head="")
    first = zoo.content_hash(f"{outer}.Shown")
    path = tmp_path / f"{inner}.py"
    path.write_text(path.read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    assert zoo.content_hash(f"{outer}.Shown") != first


def test_content_hash_takes_every_kind_of_tensor(module: Callable) -> None:
    text = "made = nn.Sequential(nn.BatchNorm2d(3).bfloat16(), nn.Embedding(0, 3))"
    name = f"{module(text)}.made"
    assert len(zoo.content_hash(name)) == 64


def test_content_hash_of_a_part_that_reads_a_classifier_needs_the_part(module: Callable) -> None:
    name = f"{module('')}.Reader"
    with pytest.raises(UserError, match="building it raised TypeError"):
        zoo.content_hash(name)
    assert len(zoo.content_hash(name, zoo.load_restorer(name, linear()))) == 64


def test_a_weights_file_cannot_choose_what_is_imported(module: Callable, tmp_path: Path) -> None:
    name = module("open('harm', 'w').close()")
    path = tmp_path / "foreign.safetensors"
    save_weights(path, {"weight": torch.zeros(1)}, {"kind": "trn", "data": "cifar10", "classifier": f"{name}.build"})
    with pytest.raises(UserError, match="a part of somebody's own; if you trust it: gandefense"):
        gandefense.load(path)
    assert not (tmp_path / "harm").exists()


def test_a_builtin_without_a_signature_takes_no_classifier() -> None:
    assert not own_parts.takes_classifier(dict) and not own_parts.takes_classifier(3)


@pytest.mark.parametrize("restorer", ["MedianRestorer", "soft_blur"])
def test_the_worked_example(monkeypatch: pytest.MonkeyPatch, restorer: str) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    name, classifier_name = f"docs.examples.my_defence.{restorer}", "docs.examples.my_defence.mirrored"
    classifier = zoo.load_classifier(classifier_name)
    zoo.try_out(classifier_name, classifier, CIFAR10)
    defended = zoo.defend(classifier, name)
    zoo.try_out(name, defended.restorer, CIFAR10)
    images = torch.rand(2, 3, 32, 32)
    restoration = defended.restore(images)
    assert not torch.equal(restoration.images, images)
    assert restoration.flagged.tolist() == [restorer == "MedianRestorer"] * 2, "noise is what a median filter removes"
    alone = gandefense.load("cifar10/classifier").classifier
    with torch.no_grad():
        logits = classifier(restoration.images)
        assert torch.allclose(logits, classifier(restoration.images.flip(3)), atol=1e-4)
        assert not torch.allclose(logits, alone(restoration.images), atol=1e-4)
