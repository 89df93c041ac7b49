"""Joint adversarial training of restorer and classifier: what is differentiated, a tiny run, stopped and resumed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gandefense
from gandefense import classifiers, zoo
from gandefense.attacks.cache import fingerprint
from gandefense.attacks.suite import AttackSpec
from gandefense.config import RunConfig
from gandefense.config import load as load_config
from gandefense.data import datasets
from gandefense.data.batches import batch_indices
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.restorers.gradient_maps import gradient_maps
from gandefense.restorers.trn import TRNRestorer, TwoStreamRestorationNetwork
from gandefense.training import adversarial, joint
from gandefense.training.adversarial import AdversarialConfig, WeightPerturbationConfig
from gandefense.training.adversarial_weights import perturbed_weights
from gandefense.training.gan_config import GANNetworkConfig
from gandefense.training.joint import train
from gandefense.training.joint_pass import PassConfig, RestoringConfig, losses, maps_now, misalignment, through
from gandefense.training.joint_start import JointConfig, JointTrainConfig, ViewShares, check, view_of
from gandefense.training.trn import TRNNetworkConfig
from gandefense.weights_io import load_weights, save_weights
from tests.helpers import small_cifar10 as small
from tests.helpers.networks import small_cnn

ROOT = Path(__file__).parent.parent.parent
STEPS = 4
LABELS = torch.tensor([0, 3])


# What is differentiated.


def _tiny_trn(*, norm: bool = False) -> DefendedClassifier:
    """TRN before a smooth classifier of four classes and 6×6 pixels, in float64; with `norm` it has a batch norm."""
    torch.manual_seed(1)
    classifier = small_cnn(nn.Tanh)
    if norm:
        classifier = nn.Sequential(nn.BatchNorm2d(3), *classifier)
    network = TwoStreamRestorationNetwork(channels=3, labels=4, width=8, blocks=1)
    nn.init.normal_(network.tail[-1].weight, std=0.02)
    return DefendedClassifier(TRNRestorer(network, classifier), classifier).double().train()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 6, 6, dtype=torch.float64) * 0.4 + 0.3


def _slope(objective: Callable[[], Tensor], tensors: list[Tensor], along: list[Tensor], step: float = 1e-5) -> float:
    """The central difference of an objective along a direction of some tensors, which are put back."""
    values = []
    with torch.no_grad():
        kept = [tensor.clone() for tensor in tensors]
        for sign in (1, -1):
            for tensor, before, direction in zip(tensors, kept, along, strict=True):
                tensor.copy_(before + sign * step * direction)
            values.append(objective().item())
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)
    return (values[0] - values[1]) / (2 * step)


@pytest.mark.parametrize("view", ["exact", "detached"])
def test_the_attackers_objective_agrees_with_finite_differences(images: Tensor, view: str) -> None:
    """detached: of the pipeline whose maps stay those of the image at hand."""
    defended = _tiny_trn().eval()
    maps = gradient_maps(defended.classifier, images)

    def exact(point: Tensor) -> Tensor:
        return defended(point)

    def held(point: Tensor) -> Tensor:
        return defended.classifier(defended.restorer.network(point, maps))

    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(defended.view(view)(point), LABELS), point)
    along, moved = torch.randn_like(images), images.clone()
    real = exact if view == "exact" else held
    expected = _slope(lambda: F.cross_entropy(real(moved), LABELS), [moved], [along])
    assert (gradient * along).sum().item() == pytest.approx(expected, rel=1e-5)
    other = held if view == "exact" else exact
    assert (gradient * along).sum().item() != pytest.approx(
        _slope(lambda: F.cross_entropy(other(moved), LABELS), [moved], [along]), rel=1e-3
    ), "the two views differ here"


@pytest.mark.parametrize("norm", [False, True])
def test_with_maps_gradient_weights_learn_through_the_maps(images: Tensor, norm: bool) -> None:
    """The maps keep the running statistics that they were made with, though the pass after them moves them."""
    defended, options = _tiny_trn(norm=norm), PassConfig(maps_gradient=True)
    start = copy.deepcopy(defended.state_dict())
    weights = [p for p in defended.classifier.parameters() if p.ndim > 1]

    def objective(chosen: PassConfig) -> Tensor:
        defended.load_state_dict({k: v for k, v in start.items() if "running" in k or "tracked" in k}, strict=False)
        return F.cross_entropy(through(defended, images, chosen).logits, LABELS)

    gradients = torch.autograd.grad(objective(options), weights)
    along = [torch.randn_like(weight) for weight in weights]
    slope = sum((g * d).sum().item() for g, d in zip(gradients, along, strict=True))
    assert slope == pytest.approx(_slope(lambda: objective(PassConfig()), weights, along), rel=1e-5)
    without = torch.autograd.grad(objective(PassConfig()), weights)
    assert any(not torch.allclose(*pair, rtol=1e-3) for pair in zip(gradients, without, strict=True))


def test_maps_are_those_of_the_classifier_as_it_stands_and_leave_it_alone(images: Tensor) -> None:
    defended = _tiny_trn(norm=True)
    before = copy.deepcopy(defended.state_dict())
    made = maps_now(defended.restorer, images, differentiable=False)
    assert defended.training and all(part.training for part in defended.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in defended.state_dict().items())
    assert all(parameter.grad is None for parameter in defended.parameters())
    with torch.no_grad():
        defended.classifier[-1].weight.mul_(-1)
    assert not torch.allclose(made.maps, maps_now(defended.restorer, images, differentiable=False).maps, atol=0.1)
    expected = gradient_maps(copy.deepcopy(defended.classifier).eval(), images)
    assert torch.equal(maps_now(defended.restorer, images, differentiable=False).maps, expected.maps)


def test_gradient_alignment_is_zero_of_a_linear_loss_and_has_a_gradient_elsewhere(images: Tensor) -> None:
    defended, options = _tiny_trn(), PassConfig()
    assert misalignment(defended, images, images, LABELS, options).item() == pytest.approx(0, abs=1e-12)
    bent = misalignment(defended, images, (images + 0.1 * torch.randn_like(images)).clamp(0, 1), LABELS, options)
    assert 0 < bent < 2
    bent.backward()
    assert defended.classifier[0].weight.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def gan() -> DefendedClassifier:
    torch.manual_seed(0)
    networks = GANNetworks(channels=3, size=32, width=8)
    for layer in (networks.ismn.out, networks.generator.out):
        nn.init.normal_(layer.weight, std=0.02)
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    return DefendedClassifier(GANRestorer(networks, threshold=0.1, rounds=2), classifier).eval()


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_the_soft_gate_is_the_mean_over_where_the_loop_may_leave(gan: DefendedClassifier, rounds: int) -> None:
    batch, networks, chances, given = torch.rand(3, 3, 32, 32), gan.restorer.networks, [], []
    point = batch
    with torch.no_grad():
        for _ in range(rounds):
            made = networks(point)
            chances.append(torch.sigmoid((made.logit - 0.1) / 0.5).view(-1, 1, 1, 1))
            given.append(point)
            point = made.regenerated
        expected, going_on = torch.zeros_like(batch), torch.ones(3, 1, 1, 1)
        for image, chance in zip(given, chances, strict=True):
            expected = expected + going_on * (1 - chance) * image
            going_on = going_on * chance
        expected = expected + going_on * point
        restored, first = gan.restorer.soft(batch, rounds=rounds, softness=0.5)
    assert torch.allclose(restored, expected, atol=1e-6)
    assert torch.equal(first.logit, networks(batch).logit)


def test_a_hard_gate_is_the_loops(gan: DefendedClassifier) -> None:
    """Towards no softness; one round, because the loop also asks whether two versions agree."""
    batch, restorer = torch.rand(4, 3, 32, 32), copy.deepcopy(gan.restorer)
    with torch.no_grad():
        restorer.threshold = restorer.networks.detect(batch).median().item() + 1e-4
        restorer.rounds = 1
        assert restorer(batch).flagged.tolist().count(True) == 2
        assert torch.allclose(restorer.soft(batch, softness=1e-6)[0], restorer(batch).images, atol=1e-5)


def test_the_detector_learns_from_the_classification_through_the_soft_gate(gan: DefendedClassifier) -> None:
    head = gan.restorer.networks.perturbation.head[-1].weight
    batch, labels = torch.rand(2, 3, 32, 32), torch.tensor([1, 2])
    (soft,) = torch.autograd.grad(F.cross_entropy(through(gan, batch, PassConfig()).logits, labels), head)
    assert soft[0].abs().sum() > 0, "row 0 makes the attack logit"
    restored = gan.restorer.scored(batch, "exact")[0]
    hard = torch.autograd.grad(F.cross_entropy(gan.classifier(restored), labels), head, allow_unused=True)[0]
    assert hard is None or not hard[0].any()


LOSSES = {"attacks": AdversarialConfig(method="pgd", clean_weight=0.25), "options": PassConfig(), "restoring": RestoringConfig()}


def test_losses_add_up_and_weigh_what_they_say(gan: DefendedClassifier) -> None:
    clean = torch.rand(2, 3, 32, 32) * 0.8 + 0.1
    attacked, labels = (clean + 0.03 * torch.randn_like(clean).sign()).clamp(0, 1), torch.tensor([1, 2])
    with torch.no_grad():
        found = losses(gan, clean, attacked, labels, **LOSSES)
        one, two = (through(gan, batch, PassConfig()) for batch in (clean, attacked))
    parts = {name: value for name, value in found.items() if name.startswith("loss_")}
    assert set(parts) == {f"loss_{name}" for name in ("class", "pixel", "cleaned", "sparsity", "detection", "level")}
    assert found["loss"].item() == pytest.approx(sum(parts.values()).item(), rel=1e-5)
    expected = 0.25 * F.cross_entropy(one.logits, labels) + 0.75 * F.cross_entropy(two.logits, labels)
    assert found["loss_class"].item() == pytest.approx(expected.item(), rel=1e-5)
    errors = [(made.restored - clean).abs().mean().item() for made in (one, two)]
    assert found["loss_pixel"].item() == pytest.approx(10 * sum(errors) / 2, rel=1e-5)
    assert found["pixel_error"].item() == pytest.approx(255 * errors[1], rel=1e-5)
    odds = F.softplus(one.first.logit - 0.1).mean() / 2 + F.softplus(0.1 - two.first.logit).mean() / 2
    assert found["loss_detection"].item() == pytest.approx(0.5 * odds.item(), rel=1e-5)


def test_perturbed_weights_of_both_networks_come_back(images: Tensor) -> None:
    defended = _tiny_trn(norm=True)
    attacked = (images + 0.03).clamp(0, 1)
    objective = partial(losses, defended, images, attacked, LABELS, **LOSSES)
    before = copy.deepcopy(defended.state_dict())
    plain = objective()["loss"].item()
    defended.load_state_dict(before)
    with perturbed_weights(defended, lambda: objective()["loss"], 0.05):
        worse = objective()["loss"]
        for name in ("restorer.network.image_stem.weight", "classifier.1.weight"):
            moved = (defended.state_dict()[name] - before[name]).norm()
            assert moved.item() == pytest.approx(0.05 * before[name].norm().item(), rel=1e-6), name
        worse.backward()
    assert worse.item() > plain
    after = {name: tensor for name, tensor in defended.state_dict().items() if "running" not in name and "tracked" not in name}
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


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
        for module in (adversarial, joint):  # validation by one step in place of ten
            patch.setattr(module, "CONTROL", AttackSpec("pgd", steps=1))
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
        ("classifier", "cifar10/trn", "is a 'trn', not a classifier"),
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
