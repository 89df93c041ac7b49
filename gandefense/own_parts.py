"""Users' own networks by dotted name: my_package.MyRestorer as a restorer, my_package.build as a classifier."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gandefense.data.batches import check_images
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier, Restoration, Restorer
from gandefense.restorers.trn import removed

KIND = "own"  # what a description says of such a part
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class ImageToImage(Restorer):
    """Somebody's image-to-image network as a restorer.

    What it gives is clamped to [0, 1]. The score is the root mean square of what it removed, in units of 1/255; there is
    no threshold, so that it flags nothing.

    Args:
        network: images (B, C, H, W) in [0, 1] → images of the same shape.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Restoration:
        """Restore a batch; raises UserError when the network does not give images of the same shape."""
        restored = self.network(images)
        if not isinstance(restored, Tensor) or restored.shape != images.shape:
            raise UserError(f"it made {_shape(restored)} of images {tuple(images.shape)}, not images of the same shape")
        restored = restored.clamp(0, 1)
        residual = images - restored
        score = removed(residual)
        nothing = torch.zeros_like(score)
        return Restoration(restored, score, nothing.bool(), torch.full_like(score, torch.nan), {"residual": residual})


def is_dotted(name: str | Path) -> bool:
    """Whether a name looks like package.module.attribute."""
    return isinstance(name, str) and _DOTTED.fullmatch(name) is not None


def resolve(name: str) -> Any:
    """What a dotted name stands for: its module is imported, from the working directory too, and the attribute taken.

    Raises:
        UserError: the module cannot be imported, or has no such attribute.
    """
    module_name, attribute = name.rsplit(".", 1)
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())  # as `python -m` has it; it stays, because a module may import others later
    importlib.invalidate_caches()  # the file may be younger than this process
    with blamed(name, "importing it"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module is there, but something that it imports is not
            raise UserError(
                f"no module {error.name} in {os.getcwd()} on PYTHONPATH or among the installed packages, "
                "nor is it a shipped network, a run folder or a .safetensors file"
            ) from None
        try:
            return getattr(module, attribute)
        except AttributeError:
            near = difflib.get_close_matches(attribute, [word for word in vars(module) if not word.startswith("_")], n=1)
            raise UserError(f"module {module_name} has no {attribute}{f'; it has {near[0]}' if near else ''}") from None


def describe(name: str) -> dict[str, Any]:
    """What can be said of a part before it is built; raises UserError where `resolve` does."""
    resolve(name)
    return {"kind": KIND, "name": name}


def load_classifier(name: str) -> nn.Module:
    """A user's own classifier in eval mode: a module, or what a factory makes when it is called without arguments.

    Raises:
        UserError: it cannot be imported or built, or is no classifier.
    """
    network = resolve(name)
    if not _is_restorer(network):
        network = _built(name, network, None)
    if _is_restorer(network) or not isinstance(network, nn.Module):
        raise UserError(f"{name}: expected a classifier (a torch.nn.Module: images → logits), got {_type(network)}")
    return network.eval()


def load_restorer(name: str, classifier: nn.Module) -> Restorer:
    """A user's own restorer in eval mode: an object, or what a class or factory makes.

    A factory is called with the classifier if it takes one (see `takes_classifier`), else without arguments.

    Raises:
        UserError: it cannot be imported or built, or is neither a restorer nor an image-to-image network.
    """
    part = _built(name, resolve(name), classifier)
    if isinstance(part, DefendedClassifier) or not isinstance(part, nn.Module):
        raise UserError(f"{name}: expected a gandefense.Restorer or a torch.nn.Module: images → images, got {_type(part)}")
    return (part if isinstance(part, Restorer) else ImageToImage(part)).eval()


def load(name: str) -> nn.Module:
    """A user's own classifier or whole defence in eval mode; raises UserError for a restorer, which needs a classifier."""
    part = resolve(name)
    if not _is_restorer(part) and "classifier" not in _arguments(part):
        part = _built(name, part, None)
    if _is_restorer(part) or "classifier" in _arguments(part):
        raise UserError(f"{name} does not say which classifier it defends; use gandefense.defend(classifier, {name!r})")
    if not isinstance(part, nn.Module):
        raise UserError(f"{name}: expected a classifier (a torch.nn.Module: images → logits), got {_type(part)}")
    return part.eval()


def takes_classifier(factory: Any) -> bool:
    """Whether a class or function wants the classifier: an argument of that name, or else a first one without a default."""
    arguments = _arguments(factory)
    if "classifier" in arguments or not arguments:
        return "classifier" in arguments
    first = next(iter(arguments.values()))
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return first.kind in positional and first.default is inspect.Parameter.empty


def _arguments(factory: Any) -> dict[str, inspect.Parameter]:
    """What a class or function can be called with; nothing for a module, which is there already."""
    if isinstance(factory, nn.Module) or not callable(factory):
        return {}
    try:
        return dict(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # some builtins have no signature
        return {}


def _is_restorer(part: Any) -> bool:
    """Whether something is a restorer, or a class of restorers."""
    return isinstance(part, Restorer) or (inspect.isclass(part) and issubclass(part, Restorer))


def _built(name: str, part: Any, classifier: nn.Module | None) -> Any:
    """A part itself, or what the factory makes of the classifier; None calls it without arguments."""
    if isinstance(part, nn.Module) or not callable(part):
        return part
    with blamed(name, "building it"):
        if classifier is None or not takes_classifier(part):
            return part()
        named = _arguments(part).get("classifier")
        if named is None or named.kind is inspect.Parameter.POSITIONAL_ONLY:
            return part(classifier)
        return part(classifier=classifier)


def content_hash(name: str, part: nn.Module | None = None) -> str:
    """SHA-256 of a part: its tensors, and the source files that define it, the modules in it and its factory.

    Args:
        name: its dotted name.
        part: what was built from it; None builds it, which works where no classifier is needed.
    """
    found = resolve(name)
    part = _built(name, found, None) if part is None else part
    if not isinstance(part, nn.Module):
        raise UserError(f"{name}: expected a torch.nn.Module, got {_type(part)}")
    digest = hashlib.sha256()
    for key, value in sorted(part.state_dict().items()):
        digest.update(key.encode())
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    modules = {name.rsplit(".", 1)[0], getattr(found, "__module__", None), *(type(inner).__module__ for inner in part.modules())}
    for module in sorted(filter(None, modules)):
        source = getattr(sys.modules.get(module), "__file__", None)
        if source is not None and Path(source).is_file():
            digest.update(module.encode() + Path(source).read_bytes())
    return digest.hexdigest()


def check_restoration(name: str, restoration: Any, images: Tensor) -> None:
    """Raise UserError unless a restorer's answer to images (B, C, H, W) is what `Restoration` promises."""
    if not isinstance(restoration, Restoration):
        raise UserError(f"{name}: a restorer must give a gandefense.Restoration, this one gave {_type(restoration)}")
    if not isinstance(restoration.images, Tensor) or restoration.images.shape != images.shape:
        raise UserError(f"{name}: it restored images {tuple(images.shape)} to {_shape(restoration.images)}")
    try:
        check_images(restoration.images)
    except UserError as error:
        raise UserError(f"{name}: its restored images: {error}") from None
    for field in ("score", "flagged", "level"):
        value = getattr(restoration, field)
        if not isinstance(value, Tensor) or value.shape != (len(images),):
            raise UserError(f"{name}: its {field} must have one value per image ({len(images)},), got {_shape(value)}")
    if restoration.flagged.dtype != torch.bool:
        raise UserError(f"{name}: its flagged must be bool, got {restoration.flagged.dtype}")
    if not restoration.score.isfinite().all():
        raise UserError(f"{name}: its score contains NaN or infinite values")
    for key, value in restoration.maps.items():
        if not isinstance(value, Tensor) or value.ndim != 4 or len(value) != len(images):
            raise UserError(f"{name}: its map {key!r} must be ({len(images)}, c, H, W), got {_shape(value)}")


def try_restorer(name: str, restorer: Restorer, images: Tensor) -> None:
    """Let a restorer of somebody's own meet images (B, C, H, W) in [0, 1]; raises UserError when the answer is no good."""
    with blamed(name, "restoring images"), torch.no_grad():
        restoration = restorer(images)
    check_restoration(name, restoration, images)


def try_classifier(name: str, classifier: nn.Module, images: Tensor, classes: int) -> None:
    """Let a classifier of somebody's own meet images (B, C, H, W) in [0, 1]; raises UserError when the answer is no good."""
    with blamed(name, "classifying images"), torch.no_grad():
        logits = classifier(images)
    if not isinstance(logits, Tensor) or logits.shape != (len(images), classes):
        raise UserError(f"{name}: expected logits ({len(images)}, {classes}) for {len(images)} images, got {_shape(logits)}")
    if not logits.is_floating_point() or not logits.isfinite().all():
        raise UserError(f"{name}: its logits are not all finite numbers ({logits.dtype})")


@contextmanager
def blamed(name: str, what: str) -> Iterator[None]:
    """Turn whatever a user's own code raises into one line that names the part, the error and where it came from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines()
        said = f"{type(error).__name__}{f': {lines[0]}' if lines else ''}"
        raise UserError(f"{name}: {what} raised {said}{_place(name, error)}") from error


def _place(name: str, error: BaseException) -> str:
    """Where in the user's own file an error came from, as " (my_defence.py, line 12)"; nothing where that is unknown."""
    if isinstance(error, SyntaxError):  # its text says it already
        return ""
    last = name.rsplit(".", 1)[0].rsplit(".", 1)[-1]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.stem == last or (path.name == "__init__.py" and path.parent.name == last):
            return f" ({path.name}, line {frame.lineno})"
    return ""


def _type(value: Any) -> str:
    kind = value if inspect.isclass(value) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else _type(value)
