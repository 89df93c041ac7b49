"""Trained networks by name: those shipped in weights/, a run folder, or a safetensors file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gandefense import classifiers
from gandefense.attacks.cache import fingerprint
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.restorers import gan, trn
from gandefense.restorers.base import DefendedClassifier, IdentityRestorer, Restorer
from gandefense.weights_io import fill, load_weights

WEIGHTS = Path(__file__).parent / "weights"

# kind in a file's description → (tensors, description, classifier, source) → restorer
RESTORERS: dict[str, Callable[[dict[str, Tensor], dict[str, Any], nn.Module, Path], Restorer]] = {
    "trn": trn.from_weights,
    "gan": gan.from_weights,
}


def names() -> list[str]:
    """The shipped networks, such as "cifar10/trn"."""
    return sorted(str(path.relative_to(WEIGHTS).with_suffix("")) for path in WEIGHTS.rglob("*.safetensors"))


def find(name: str | Path) -> Path:
    """The weights file behind a zoo name, a safetensors file or a finished run folder; raises UserError for none."""
    path = Path(name)
    if path.suffix == ".safetensors":
        return path
    if (path / "config.yaml").is_file():
        if not (path / "model.safetensors").is_file():
            raise UserError(f"run {path} is not finished (it has no model.safetensors); go on with resume={path}")
        return path / "model.safetensors"
    shipped = WEIGHTS / f"{name}.safetensors"
    if shipped.is_file():
        return shipped
    shipped_names = ", ".join(names()) or "none"
    raise UserError(f"unknown network {str(name)!r}; shipped: {shipped_names}; or give a run folder or a .safetensors file")


def describe(name: str | Path) -> dict[str, Any]:
    """The description stored with a network's weights."""
    return load_weights(find(name))[1]


def load_classifier(name: str | Path) -> nn.Module:
    """A trained classifier in eval mode; raises UserError when the file is none."""
    path = find(name)
    tensors, description = load_weights(path)
    if description.get("kind") != "classifier":
        raise UserError(f"{name} is a {description.get('kind')!r}, not a classifier")
    if not {"architecture", "data"} <= description.keys():
        raise UserError(f"{name}: its description names no architecture or no data set")
    network = classifiers.build(description["architecture"], datasets.describe(description["data"]))
    fill(network, tensors, source=path)
    return network.eval()


def load_restorer(name: str | Path, classifier: nn.Module) -> Restorer:
    """A trained restorer in eval mode, bound to a classifier.

    Args:
        name: zoo name, run folder or safetensors file; "none" leaves images as they are.
        classifier: images (B, C, H, W) in [0, 1] → logits (B, K).

    Raises:
        UserError: unknown name, or a file that holds no restorer.
    """
    if name == "none":
        return IdentityRestorer()
    path = find(name)
    tensors, description = load_weights(path)
    if description.get("kind") not in RESTORERS:
        raise UserError(f"{name} is a {description.get('kind')!r}, not a restorer ({', '.join(RESTORERS)})")
    return RESTORERS[description["kind"]](tensors, description, classifier, path).eval()


def defend(classifier: nn.Module, restorer: str | Path | Restorer) -> DefendedClassifier:
    """Put a restorer before a classifier.

    Args:
        classifier: any module, images (B, C, H, W) in [0, 1] → logits (B, K); normalisation belongs inside it.
        restorer: a restorer, or what `load_restorer` takes.

    Raises:
        UserError: see `load_restorer`.
    """
    device = next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))
    if isinstance(restorer, Restorer):
        return DefendedClassifier(restorer.to(device), classifier)
    channels = None if restorer == "none" else datasets.describe(describe(restorer).get("data", "")).channels
    return DefendedClassifier(load_restorer(restorer, classifier).to(device), classifier, channels=channels, name=str(restorer))


def load(name: str | Path) -> DefendedClassifier:
    """A trained defence with the classifier it was trained for.

    Args:
        name: "cifar10/trn", "cifar10/gan", a run folder or a safetensors file. A classifier's name gives that
            classifier undefended.

    Returns:
        A module, images (B, C, H, W) in [0, 1] → logits (B, K), in eval mode.

    Raises:
        UserError: unknown name, damaged or foreign file.
    """
    description = describe(name)
    if description.get("kind") == "classifier":
        classifier = load_classifier(name)
        channels = datasets.describe(description["data"]).channels
        return DefendedClassifier(IdentityRestorer(), classifier, channels=channels, name=str(name))
    if "classifier" not in description:
        raise UserError(f"{name} does not say which classifier it defends")
    classifier = load_classifier(description["classifier"])
    expected = description.get("classifier_fingerprint")
    if expected is not None and expected != fingerprint(classifier):
        raise UserError(
            f"{name} was trained for other weights than {description['classifier']} has now; "
            "train it again, or use gandefense.defend to put it before this classifier on purpose"
        )
    return defend(classifier, name)
