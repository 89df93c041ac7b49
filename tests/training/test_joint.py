"""Joint adversarial training of restorer and classifier: what is differentiated, a tiny run, stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gandefense
from gandefense import classifiers, zoo
from gandefense.attacks.cache import fingerprint
from gandefense.attacks.suite import AttackSpec
from gandefense.config import DataConfig, RunConfig
from gandefense.config import load as load_config
from gandefense.data import datasets
from gandefense.data.batches import batch_indices
from gandefense.errors import UserError
from gandefense.training import adversarial, joint
from gandefense.training.adversarial import AdversarialConfig, WeightPerturbationConfig
from gandefense.training.gan_config import GANNetworkConfig
from gandefense.training.joint import train
from gandefense.training.joint_start import JointConfig, JointTrainConfig, ViewShares, check, view_of
from gandefense.training.trn import TRNNetworkConfig
from gandefense.weights_io import load_weights, save_weights
from tests.helpers import small_celeba
from tests.helpers import small_cifar10 as small

ROOT = Path(__file__).parent.parent.parent
STEPS = 4


def test_views_are_drawn_by_their_shares_and_by_the_step_alone() -> None:
    shares = ViewShares(exact=1, detached=2, straight_through=1)
    drawn = [view_of(step, shares, seed=3) for step in range(400)]
    assert drawn == [view_of(step, shares, seed=3) for step in range(400)] != [view_of(step, shares, 4) for step in range(400)]
    assert set(drawn) == {"exact", "detached", "straight_through"}
    assert drawn.count("detached") == pytest.approx(200, abs=40)


# A tiny training.


@pytest.fixture(scope="module")
def settings(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., JointConfig]]:
    """Configs of a few steps from an untrained classifier."""
    folder = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        patch.setattr(adversarial, "CONTROL", AttackSpec("pgd", steps=1))  # validation by one step in place of ten
        torch.manual_seed(0)
        network = classifiers.build("tiny", datasets.describe("cifar10"))
        description = {"kind": "classifier", "architecture": "tiny", "data": "cifar10"}
        save_weights(folder / "start.safetensors", network.state_dict(), description)

        def make(name: str, *, family: str = "trn", method: str = "trades", **train: object) -> JointConfig:
            attacks = AdversarialConfig(method=method, steps=1, validation_images=4)
            attacks.awp = WeightPerturbationConfig(gamma=train.pop("gamma", 0.01))
            options = {"steps": STEPS, "batch_size": 6, "warmup": 1, "ema_decay": 0.9, "adversarial": attacks, **train}
            every = {"log_every": 2, "image_every": 2, "checkpoint_every": 2}
            return JointConfig(
                run=RunConfig(folder=str(folder / name), device="cpu", precision="float32", seed=4, **every),
                family=family,
                classifier=str(folder / "start.safetensors"),
                trn=TRNNetworkConfig(width=8, blocks=1, top_k=2),
                gan=GANNetworkConfig(width=8),
                train=JointTrainConfig(**options),
            )

        yield make


@pytest.fixture(scope="module")
def finished(settings: Callable[..., JointConfig]) -> Path:
    """The folder of a run that nobody interrupted."""
    return train(settings("whole")).parent


def _log(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(line["step"], line[name]) for line in lines if name in line]


def test_the_run_folder_holds_both_and_loads_as_one_defence(finished: Path) -> None:
    names = {path.name.split(".")[0] for path in finished.iterdir() if path.name != ".lock"}
    assert names == {"config", "stats", "events", "checkpoint", "model", "classifier"}
    about = load_weights(finished / "model.safetensors")[1]
    assert (about["kind"], about["data"], about["classifier"], about["top_k"]) == ("trn", "cifar10", "classifier.safetensors", 2)
    assert about["kept_step"] in (2, 4)
    assert set(about["measured"]) == {
        f"validation/{name}" for name in ("clean", "robust", "robust_detached", "clean_alone", "robust_alone")
    }
    card = load_weights(finished / "classifier.safetensors")[1]
    assert (card["kind"], card["architecture"], card["adversarial"], card["trained_with"]) == (
        "classifier",
        "tiny",
        "trades",
        "trn",
    )
    defended, images = gandefense.load(finished), torch.rand(2, 3, 32, 32)
    assert zoo.classifier_of(finished) == str(finished / "classifier.safetensors")
    by_hand = gandefense.defend(zoo.load_classifier(finished / "classifier.safetensors"), finished)
    with torch.no_grad():
        assert torch.equal(defended(images), by_hand(images))
    assert [step for step, _ in _log(finished, "validation/robust")] == [2, 4]
    assert {step for step, _ in _log(finished, "train/loss_class")} == {2, 4}


def test_both_networks_have_learnt(finished: Path, settings: Callable[..., JointConfig]) -> None:
    start, end = (load_weights(path)[0] for path in (settings("x").classifier, finished / "classifier.safetensors"))
    assert not torch.equal(start["head.weight"], end["head.weight"])
    assert load_weights(finished / "model.safetensors")[0]["tail.2.weight"].any(), "it starts at zero"


def test_a_moved_run_folder_finds_its_classifier_and_another_classifier_is_refused(finished: Path, tmp_path: Path) -> None:
    for name in ("model", "classifier"):
        (tmp_path / f"{name}.safetensors").write_bytes((finished / f"{name}.safetensors").read_bytes())
    assert gandefense.load(tmp_path / "model.safetensors")(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    tensors, about = load_weights(tmp_path / "classifier.safetensors")
    save_weights(tmp_path / "classifier.safetensors", {name: tensor + 1 for name, tensor in tensors.items()}, about)
    with pytest.raises(UserError, match="was trained for other weights than"):
        gandefense.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(("stop", "free"), [(3, 1), (3, 2)])
def test_a_stopped_run_resumes_bit_for_bit(
    finished: Path, settings: Callable[..., JointConfig], monkeypatch: pytest.MonkeyPatch, stop: int, free: int
) -> None:
    """A step after a checkpoint; with replays in the middle of a batch's."""
    whole = finished if free == 1 else train(settings("whole free", free_replays=free)).parent
    steps = iter(range(stop + 1))

    def until(count: int, batch_size: int, step: int, seed: int) -> Tensor:
        if next(steps) == stop:
            raise KeyboardInterrupt
        return batch_indices(count, batch_size, step, seed)

    config = settings(f"stopped {free}", free_replays=free)
    with monkeypatch.context() as patch:
        patch.setattr(joint, "batch_indices", until)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    (folder,) = Path(config.run.folder).iterdir()
    assert (folder / "checkpoint.pt").exists() and not (folder / "model.safetensors").exists()
    config.resume = str(folder)
    torch.manual_seed(99)
    assert train(config).parent == folder
    for name in ("train/loss", "train/pixel_error", "validation/clean", "validation/robust"):
        assert _log(folder, name) == _log(whole, name)
    for name in ("model", "classifier"):
        resumed, expected = (load_weights(path / f"{name}.safetensors")[0] for path in (folder, whole))
        assert resumed.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.items())


def test_a_gan_trains_from_a_run_with_single_steps_and_alignment(settings: Callable[..., JointConfig]) -> None:
    """The last weights; its loop's threshold stays, and the run is a restorer that another can start from."""
    config = settings("gan", family="gan", method="fgsm", steps=1, alignment=0.2, gamma=0.0)
    config.keep = "last"
    folder = train(config).parent
    about = load_weights(folder / "model.safetensors")[1]
    assert (about["kind"], about["kept_step"], about["loop"]["threshold"], about["loop"]["rounds"]) == ("gan", 1, 0.0, 2)
    assert "validation/flagged_clean" in about["measured"]
    assert _log(folder, "train/loss_alignment") and _log(folder, "train/loss_detection")
    defended = gandefense.load(folder)
    assert fingerprint(defended.classifier) == about["classifier_fingerprint"]
    config = settings("gan again", family="gan", method="fgsm", steps=1, gamma=0.0)
    config.restorer, config.gan.width = str(folder), 16
    assert load_weights(train(config))[1]["network"]["width"] == 8, "a started restorer keeps its own shape"


def test_with_a_low_threshold_a_fresh_gan_restores_every_image(settings: Callable[..., JointConfig]) -> None:
    config = settings("always", family="gan", method="pgd", steps=1, gamma=0.0)
    config.threshold, config.restoring.detection, config.passing.rounds = -100.0, 0.0, 1
    path = train(config)
    assert load_weights(path)[1]["loop"]["threshold"] == -100
    assert gandefense.load(path.parent).restore(torch.rand(3, 3, 32, 32)).flagged.all()
    assert [value for _, value in _log(path.parent, "validation/flagged_clean")] == [1.0]
    config.threshold = float("-inf")
    with pytest.raises(UserError, match="threshold must be a finite number"):
        train(config)


def test_the_best_validation_is_kept(settings: Callable[..., JointConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    robust = iter([0.5, 0.25])
    figures = {"validation/clean": 0.5}
    monkeypatch.setattr(joint, "validate", lambda *_: {**figures, "validation/robust": next(robust)})
    monkeypatch.setattr(joint, "_grid", lambda *_: None)
    config = settings("best", method="fgsm", gamma=0.0)
    path = train(config)
    about = load_weights(path)[1]
    assert (about["kept_step"], about["measured"]["validation/robust"]) == (2, 0.5)


def test_the_tool_trains_a_pair_that_can_be_published(
    settings: Callable[..., JointConfig], tool: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["classifier=" + settings("x").classifier, "restorer=null", f"run.folder={tmp_path}", "run.precision=float32"]
    words += ["trn.width=8", "trn.blocks=1", "trn.top_k=2", "train.steps=1", "train.batch_size=4"]
    words += ["train.adversarial.steps=1", "train.adversarial.validation_images=2"]
    status, out, err = tool("train_joint", "configs/joint/cifar10_trn_robust.yaml", *words)
    assert status == 0, err
    (folder,) = tmp_path.iterdir()
    assert f"weights: {folder / 'model.safetensors'}" in out
    monkeypatch.setattr(zoo, "WEIGHTS", tmp_path / "weights")
    status, out, err = tool("publish", folder, "cifar10/trn-robust")
    assert status == 0, err
    assert zoo.names() == ["cifar10/trn-robust", "cifar10/trn-robust-classifier"]
    assert zoo.classifier_of("cifar10/trn-robust") == "cifar10/trn-robust-classifier"
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(gandefense.load("cifar10/trn-robust")(images), gandefense.load(folder)(images))
    tensors, about = load_weights(folder / "classifier.safetensors")
    save_weights(folder / "classifier.safetensors", {name: tensor + 1 for name, tensor in tensors.items()}, about)
    status, _, err = tool("publish", folder, "cifar10/other")
    assert (status, err.count("\n")) == (2, 1)
    assert "is not the classifier that this restorer was trained with" in err
    assert "cifar10/other" not in zoo.names()


@pytest.mark.parametrize(
    ("change", "value", "message"),
    [
        ("family", "magnet", "unknown family 'magnet'; known: trn, gan"),
        ("keep", "first", "unknown keep 'first'; known: best, last"),
        ("train.adversarial.method", "none", "joint training needs an attack"),
        ("train.views", ViewShares(0, 0, 0, 0, 0), "at least one view"),
        ("train.views.exact", -1.0, "train.views.exact must not be negative"),
        ("train.alignment", float("nan"), "train.alignment must not be negative, got nan"),
        ("train.free_replays", 0, "train.free_replays must be at least 1"),
        ("restoring.pixel", -1.0, "restoring.pixel must not be negative"),
        ("passing.rounds", 0, "passing.rounds must be at least 1"),
        ("passing.softness", 0.0, "passing.softness must be positive"),
        ("trn.top_k", 11, "trn.top_k lies between 1 and the 10 classes"),
        ("train.label_smoothing", 1.5, r"train.label_smoothing must lie in \[0, 1\], got 1.5"),
        ("train.weight_decay", -1.0, "train.weight_decay must not be negative"),
        ("train.gradient_clip", -1.0, "train.gradient_clip must be positive"),
        ("classifier", "cifar10/trn", "is a 'trn', not a classifier"),
        ("classifier", "celeba128/classifier", "celeba128/classifier is for 'celeba-128-Smiling', not for 'cifar10'"),
        ("restorer", "cifar10/gan", "restorer=cifar10/gan is a 'gan'"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(
    settings: Callable[..., JointConfig], change: str, value: object, message: str
) -> None:
    config = settings(f"bad {change}")
    *parents, last = change.split(".")
    owner = config
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, last, value)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not list(Path(config.run.folder).glob("*"))


def test_a_detector_that_belongs_to_another_classifier_is_refused(settings: Callable[..., JointConfig]) -> None:
    config = settings("fused", family="gan")
    config.restorer = "cifar10/gan-student"
    with pytest.raises(UserError, match="restorer=cifar10/gan-student flags by several signals"):
        train(config)


def test_a_restorer_without_its_generator_stays_so(settings: Callable[..., JointConfig], tmp_path: Path) -> None:
    tensors, about = load_weights(zoo.find("cifar10/gan"))
    save_weights(tmp_path / "cleaner.safetensors", tensors, {**about, "loop": {**about["loop"], "generator": False}})
    config = settings("cleaner", family="gan", method="pgd", steps=1, gamma=0.0, batch_size=2)
    config.restorer = str(tmp_path / "cleaner.safetensors")
    assert gandefense.load(train(config).parent).restorer.generator is False


def test_validation_faces_have_the_attributes_and_the_size_that_training_has(
    settings: Callable[..., JointConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_celeba.write(tmp_path / "celeba")
    config = settings("faces", method="pgd", steps=1, gamma=0.0, batch_size=2)
    config.data = DataConfig("celeba", root=str(tmp_path), size=32, attributes=["Male"], split="identity")
    network = classifiers.build("tiny", datasets.describe(config.data))
    described = {"kind": "classifier", "architecture": "tiny", "data": datasets.describe(config.data).name}
    save_weights(tmp_path / "start.safetensors", network.state_dict(), described)
    config.classifier, real, asked = str(tmp_path / "start.safetensors"), datasets.load, []

    def load(data: DataConfig, split: str, **options: object) -> datasets.Images:
        asked.append((split, data.attributes, data.size, data.split))
        return real(data, "train" if split == "validation" else split, **options)  # of ten people none need be in validation

    monkeypatch.setattr(datasets, "load", load)
    folder = train(config).parent
    assert asked == [(split, ["Male"], 32, "identity") for split in ("train", "validation")]
    assert load_weights(folder / "model.safetensors")[1]["data"] == "celeba-32-Male"


class Reached(Exception):
    """Far enough."""


@pytest.mark.parametrize(("name", "mirrored"), [("cifar10", True), ("svhn", False)])
def test_digits_are_not_mirrored(
    settings: Callable[..., JointConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mirrored: bool
) -> None:
    config, real = settings("mirrored"), datasets.load
    network = classifiers.build("tiny", datasets.describe(name))
    described = {"kind": "classifier", "architecture": "tiny", "data": name}
    save_weights(tmp_path / "start.safetensors", network.state_dict(), described)
    config.classifier, config.data.name = str(tmp_path / "start.safetensors"), name

    def augmentation(size: int, *, flip: bool) -> None:
        assert flip is mirrored
        raise Reached

    monkeypatch.setattr(joint, "augmentation", augmentation)
    monkeypatch.setattr(datasets, "load", lambda data, split, **options: real(DataConfig(), split, **options))
    with pytest.raises(Reached):
        train(config)


@pytest.mark.parametrize("name", ["cifar10_trn_robust", "cifar10_gan_robust"])
def test_the_shipped_recipes_are_fine_and_attack_more_than_one_view(name: str) -> None:
    recipe = load_config(JointConfig, ROOT / "configs" / "joint" / f"{name}.yaml")
    check(recipe)
    assert recipe.family in name
    assert {view_of(step, recipe.train.views, recipe.run.seed) for step in range(100)} >= {
        "exact",
        "detached",
        "straight_through",
    }
