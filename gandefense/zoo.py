"""Networks by name: shipped in weights/, a run folder, a safetensors file, a restorer without training, a user's own part."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gandefense import classifiers, own_parts
from gandefense.attacks.cache import fingerprint
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.restorers import baselines, gan, trn
from gandefense.restorers.base import DefendedClassifier, IdentityRestorer, Restorer
from gandefense.restorers.baselines import ape_gan, ddsa, defense_gan, denoiser, magnet
from gandefense.weights_io import load_weights, rebuild

WEIGHTS = Path(__file__).parent / "weights"
# As a restorer's classifier: the file of that name beside the restorer's own.
JOINT, STUDENT = "classifier.safetensors", "student.safetensors"  # a jointly trained one, and the one that a GAN distilled
BESIDE = (JOINT, STUDENT)
READY = "ready"  # what a description says of a restorer that needs no training

# kind in a file's description → (tensors, description, classifier, source) → restorer
RESTORERS: dict[str, Callable[[dict[str, Tensor], dict[str, Any], nn.Module, Path], Restorer]] = {
    "trn": trn.from_weights,
    "gan": gan.from_weights,
    "magnet": magnet.from_weights,
    "ddsa": ddsa.from_weights,
    "denoiser": denoiser.from_weights,
    "ape_gan": ape_gan.from_weights,
    "defense_gan": defense_gan.from_weights,
}


def names() -> list[str]:
    """The shipped networks, such as "cifar10/trn"."""
    return sorted(str(path.relative_to(WEIGHTS).with_suffix("")) for path in WEIGHTS.rglob("*.safetensors"))


def _on_disk(name: str | Path) -> Path | None:
    """The weights file behind a name, or None; raises UserError for a run that is not finished."""
    path = Path(name)
    if path.suffix == ".safetensors":
        return path
    if os.path.isfile(path / "config.yaml"):  # which, unlike Path.is_file, takes a name of any length
        if not (path / "model.safetensors").is_file():
            raise UserError(f"run {path} is not finished (it has no model.safetensors); go on with resume={path}")
        return path / "model.safetensors"
    if not re.fullmatch(r"[\w-]+/[\w-]+", str(name), flags=re.ASCII):  # so that no name leads out of the folder
        return None
    shipped = WEIGHTS / f"{name}.safetensors"
    return shipped if os.path.isfile(shipped) else None


def _listed(known: list[str]) -> str:
    """Names in a line, those of one data set together: cifar10/{gan, trn}, so that all of them fit into a message."""
    groups: dict[str, list[str]] = {}
    for name in known:
        data, own = name.split("/")
        groups.setdefault(data, []).append(own)
    return ", ".join(f"{data}/{{{', '.join(own)}}}" for data, own in groups.items()) or "none"


def find(name: str | Path) -> Path:
    """The weights file behind a zoo name, a safetensors file or a finished run folder; raises UserError for none."""
    path = _on_disk(name)
    if path is not None:
        return path
    if baselines.is_ready(name):
        raise UserError(f"{name} is a restorer that needs no training, so it has no weights file and is no classifier")
    if isinstance(name, str) and re.fullmatch(r"\w+=.*", name):
        raise UserError(
            f"{name!r} is no network but looks like an option; a comma ends an entry of a list, so put quotes around a name "
            "with several options: 'restorers=[\"random_resize:low=28,passes=10\"]'"
        )
    if own_parts.is_dotted(name):
        own_parts.describe(name)  # a mistaken name says so first
        raise UserError(f"{name} is a part of your own and has no weights file; give a zoo name, a run folder or such a file")
    nearest = difflib.get_close_matches(str(name)[:100], [*names(), *baselines.READY], n=1)
    meant = f"; did you mean {nearest[0]}?" if nearest else ";"
    raise UserError(
        f"unknown network {str(name)!r}{meant} shipped: {_listed(names())}; restorers without training: "
        f"{', '.join(baselines.READY)}; or give a run folder, a .safetensors file or package.module.attribute of your own"
    )


def is_own(name: str | Path) -> bool:
    """Whether a name can only be a part of the user's own; everything else wins over dotted names."""
    return own_parts.is_dotted(name) and not is_ready(name) and _on_disk(name) is None


def is_ready(name: str | Path) -> bool:
    """Whether a name is that of a restorer that needs no training, see `baselines.READY`; run folders and files win."""
    return baselines.is_ready(name) and _on_disk(name) is None


def describe(name: str | Path) -> dict[str, Any]:
    """The description stored with a network's weights.

    Of a restorer that needs no training {"kind": "ready", "name", "options"}, of a part of the user's own {"kind": "own", …}.

    Raises:
        UserError: an unknown name or option, a damaged file.
    """
    if is_ready(name):
        baselines.build(name)  # values out of range are found here
        return {"kind": READY, "name": name, "options": baselines.options(name)}
    return own_parts.describe(name) if is_own(name) else load_weights(find(name))[1]


def content_hash(name: str | Path, part: nn.Module | None = None) -> str:
    """SHA-256 of what a name stands for: of the weights file, of a ready restorer's options and source, or of an own part's
    tensors and source files.

    Args:
        name: what `load_classifier` or `load_restorer` takes.
        part: the network that was built from the name; of an own part only. None builds one without a classifier.

    Raises:
        UserError: an unknown name, or an own part that cannot be built.
    """
    if is_ready(name):
        return baselines.content_hash(name)
    if is_own(name):
        return own_parts.content_hash(name, part)
    with find(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_out(name: str | Path, network: nn.Module, data: datasets.Dataset, device: torch.device | str = "cpu") -> None:
    """Let a part of the user's own, or a ready restorer, meet two random images, so that mistakes come before any work.

    Of every other network it is only looked at which data set it is for.

    Args:
        name: what it was built from; shipped networks and files need no trial and get none.
        network: a restorer, or a classifier.
        data: the data set whose images it will meet.
        device: where the network is.

    Raises:
        UserError: it is for another data set (or size, or attributes), it raises something, or its answer has a wrong type,
            shape or range.
    """
    trained_on = describe(name).get("data")
    if trained_on not in (None, data.name):
        raise UserError(f"{name} is for {trained_on!r}, not for {data.name!r}")
    if not is_own(name) and not is_ready(name):
        return
    images = torch.rand(2, data.channels, data.size, data.size, generator=torch.Generator().manual_seed(0)).to(device)
    if isinstance(network, Restorer):
        own_parts.try_restorer(name, network, images)
    else:
        own_parts.try_classifier(name, network, images, len(data.classes))


def load_classifier(name: str | Path) -> nn.Module:
    """A classifier in eval mode, trained or of the user's own; raises UserError when the name stands for none."""
    if is_own(name):
        return own_parts.load_classifier(name)
    path = find(name)
    tensors, description = load_weights(path)
    if description.get("kind") != "classifier":
        raise UserError(f"{name} is a {description.get('kind')!r}, not a classifier")
    if not {"architecture", "data"} <= description.keys():
        raise UserError(f"{name}: its description names no architecture or no data set")
    about = datasets.describe(description["data"])
    network = rebuild(lambda: classifiers.build(description["architecture"], about), {}, tensors, source=path)
    return network.eval().to(memory_format=torch.channels_last)  # convolutions are faster so, on CPUs and on GPUs


def load_restorer(name: str | Path, classifier: nn.Module) -> Restorer:
    """A restorer in eval mode, bound to a classifier.

    Args:
        name: zoo name, run folder, safetensors file, or package.module.attribute of the user's own (see own_parts); "none"
            leaves images as they are; a key of `baselines.READY`, with options as in "jpeg:quality=40".
        classifier: images (B, C, H, W) in [0, 1] → logits (B, K).

    Raises:
        UserError: unknown name, or one that stands for no restorer.
    """
    if name == "none":
        return IdentityRestorer()
    if is_ready(name):
        return baselines.build(name)
    if is_own(name):
        return own_parts.load_restorer(name, classifier)
    path = find(name)
    tensors, description = load_weights(path)
    if not isinstance(description.get("kind"), str) or description["kind"] not in RESTORERS:
        raise UserError(f"{name} is a {description.get('kind')!r}, not a restorer ({', '.join(RESTORERS)})")
    return RESTORERS[description["kind"]](tensors, description, classifier, path).eval().to(memory_format=torch.channels_last)


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
    open_to_any = restorer == "none" or is_ready(restorer) or is_own(restorer)
    channels = None if open_to_any else datasets.describe(describe(restorer).get("data", "")).channels
    return DefendedClassifier(load_restorer(restorer, classifier).to(device), classifier, channels=channels, name=str(restorer))


def classifier_of(name: str | Path) -> str:
    """The classifier that a trained restorer was trained for, as `load_classifier` takes it.

    That of a jointly trained restorer, or of one that a distilled student answers for, lies beside it until both are published.

    Raises:
        UserError: an unknown name, or a restorer that does not say what it defends.
    """
    description = describe(name)
    if "classifier" not in description:
        raise UserError(f"{name} does not say which classifier it defends; use gandefense.defend(classifier, {str(name)!r})")
    if not isinstance(description["classifier"], str):
        raise UserError(f"{name}: its description names no classifier")
    own = description["classifier"] in BESIDE
    return str(find(name).parent / description["classifier"]) if own else description["classifier"]


def load(name: str | Path) -> DefendedClassifier:
    """A trained defence with the classifier it was trained for.

    Args:
        name: "cifar10/trn", "cifar10/gan", a run folder or a safetensors file. A classifier's name gives that
            classifier undefended, and so does package.module.attribute of the user's own, unless it is a whole
            DefendedClassifier already.

    Returns:
        A module, images (B, C, H, W) in [0, 1] → logits (B, K), in eval mode.

    Raises:
        UserError: unknown name, damaged or foreign file, a restorer that does not say what it defends.
    """
    if is_own(name):
        part = own_parts.load(name)
        whole = isinstance(part, DefendedClassifier)
        return part if whole else DefendedClassifier(IdentityRestorer(), part, name=str(name))
    description = describe(name)
    if description.get("kind") == "classifier":
        classifier = load_classifier(name)
        channels = datasets.describe(description["data"]).channels
        return DefendedClassifier(IdentityRestorer(), classifier, channels=channels, name=str(name))
    trained_for = classifier_of(name)
    if is_own(trained_for):  # a file from elsewhere must not choose what code is imported and run
        raise UserError(
            f"{name} was trained for {trained_for}, a part of somebody's own; "
            f"if you trust it: gandefense.defend(gandefense.load({trained_for!r}).classifier, {str(name)!r})"
        )
    classifier = load_classifier(trained_for)
    expected = description.get("classifier_fingerprint")
    if expected is not None and expected != fingerprint(classifier):
        raise UserError(
            f"{name} was trained for other weights than {trained_for} has now; "
            "train it again, or use gandefense.defend to put it before this classifier on purpose"
        )
    return defend(classifier, name)
