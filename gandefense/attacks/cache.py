"""Attacked sets against a frozen classifier: made once, kept on disk, memory-mapped."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gandefense.attacks.drawn_back import drawn_back
from gandefense.attacks.suite import AttackSpec, attack, check_spec
from gandefense.data.batches import at_once, content_hash, to_float
from gandefense.data.datasets import Images
from gandefense.data.mapped import memory_mapped, remaining_chunks
from gandefense.data.sources import data_root
from gandefense.errors import StorageError, UserError
from gandefense.files import locked, write_text
from gandefense.precision import PRECISIONS, resolve

CHUNK = 256  # images of 32×32 attacked at a time with one attack and one budget; fewer if they are larger, or in few rows


@dataclass
class AttackedSetConfig:
    """Which attacked images a restorer is trained on. Chunks of 256 rows (16 of 128×128) take attacks and budgets in turn."""

    rows: int = 60_000  # attacked images in all; more than the data set's means several attacks on an image
    attacks: list[str] = field(default_factory=lambda: ["fgsm", "ffgsm", "bim", "pgd", "mim", "none"])  # "none": clean pairs
    budgets: list[float] = field(default_factory=lambda: [4 / 255, 8 / 255, 8 / 255, 12 / 255])  # eps, in pixel units
    steps: int = 10  # of the iterative attacks
    labels: list[str] = field(default_factory=lambda: ["true"])  # see AttackSpec.labels; taken in turn after the budgets
    seed: int = 0  # of the choice of images and of the attacks
    precision: str = "auto"  # of the classifier while it is attacked (training data only; evaluation attacks in float32)
    nearer: float = 0.0  # share of what broke the classifier that is drawn back to between there and the decision boundary
    transfer: list[str] = field(default_factory=list)  # training TRN alone: classifiers that some rows are attacked on instead
    transfer_share: float = 0.0  # of the attacked rows; which of the classifiers is drawn for a chunk


class _Autocast(nn.Module):
    def __init__(self, network: nn.Module, enabled: bool) -> None:
        super().__init__()
        self.network, self.enabled = network, enabled

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.enabled):
            return self.network(images).float()


@dataclass
class AttackedSet:
    """An attacked set on disk.

    Attributes:
        folder: where it lies.
        source: (N,) position of each row's clean image in the data it was made from.
        attacked: (N, C, H, W) float16 in [0, 1], memory-mapped.
        chunk: rows that share an attack.
        specs: one AttackSpec per chunk; None for clean rows.
    """

    folder: Path
    source: Tensor
    attacked: np.ndarray
    chunk: int
    specs: list[AttackSpec | None]

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, chosen: Tensor, device: torch.device | str = "cpu") -> Tensor:
        """The attacked images of some rows (B,), as float32 (B, C, H, W); only these rows are read and sent, in float16."""
        return torch.from_numpy(self.attacked[chosen.numpy()]).to(device).float()

    def is_attacked(self, chosen: Tensor) -> Tensor:
        """Whether each of some rows (B,) is attacked rather than clean, as bool (B,)."""
        flags = torch.tensor([spec is not None for spec in self.specs])
        return flags[chosen // self.chunk]


def plan(config: AttackedSetConfig, size: int = 32, *, transfers: bool = False) -> tuple[int, list[AttackSpec | None]]:
    """How many rows share an attack, and the attack of every chunk of rows; None for clean rows.

    Args:
        config: what is asked for.
        size: height and width of the images.
        transfers: whether rows may be attacked on other classifiers.

    Raises:
        UserError: an empty list, an unknown attack, a value out of range, `config.transfer` where that is not for it.
    """
    if not config.attacks or not config.budgets or not config.labels or config.rows < 1:
        raise UserError("an attacked set needs at least one attack, one budget, one kind of labels and one row")
    for name in config.attacks:
        for eps in config.budgets:
            for labels in config.labels:
                if name != "none":
                    spec = AttackSpec(name, eps=eps, steps=config.steps, labels=labels)
                    if spec.norm == "l2":
                        raise UserError(f"attacked.attacks: {name} has an L2 budget, attacked.budgets are those of every pixel")
                    check_spec(spec)
    for key, share in (("nearer", config.nearer), ("transfer_share", config.transfer_share)):
        if not 0 <= share <= 1:
            raise UserError(f"attacked.{key} is a share between 0 and 1, got {share}")
    if config.transfer and not transfers:
        raise UserError("attacked.transfer is for training TRN; leave it empty here")
    if bool(config.transfer) != (config.transfer_share > 0):
        raise UserError("attacked.transfer, a list of classifiers, and attacked.transfer_share above 0 go together")
    if config.precision not in PRECISIONS:
        raise UserError(f"attacked.precision must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, got {config.precision!r}")
    chunk_size = max(1, min(at_once(size, CHUNK), config.rows // len(config.attacks)))
    specs: list[AttackSpec | None] = []
    for chunk in range(-(-config.rows // chunk_size)):
        name = config.attacks[chunk % len(config.attacks)]
        turn = chunk // len(config.attacks)
        eps = config.budgets[turn % len(config.budgets)]
        labels = config.labels[(turn // len(config.budgets)) % len(config.labels)]
        specs.append(None if name == "none" else AttackSpec(name, eps=eps, steps=config.steps, labels=labels))
    return chunk_size, specs


def fingerprint(classifier: nn.Module, *parts: object) -> str:
    """Twelve hexadecimal digits that stand for a classifier's weights and whatever else is given."""
    digest = hashlib.sha256()
    for name, tensor in sorted(classifier.state_dict().items()):
        digest.update(name.encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:  # a module's extra state
            digest.update(repr(tensor).encode())
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:12]


def own_sources(network: nn.Module) -> list[str]:
    """SHA-256 of the source files of a network's modules that are neither ours nor of torch; weights alone do not tell them."""
    modules = {type(part).__module__ for part in network.modules()}
    modules = {module for module in modules if module.split(".")[0] not in ("gandefense", "torch")}
    sources = (getattr(sys.modules.get(module), "__file__", None) for module in sorted(modules))
    return [hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources if source and Path(source).is_file()]


@functools.cache
def made_with() -> dict[str, str]:
    """What an attacked set and its gradient maps depend on beside classifier, images and config: code and libraries."""
    package = Path(__file__).parent.parent
    paths = [*sorted((package / "attacks").glob("*.py")), *sorted((package / "restorers").glob("*_maps.py"))]
    return {"code": code_digest(paths), "torch": torch.__version__, "foolbox": importlib.metadata.version("foolbox")}


def provenance(classifier: nn.Module, *images: Images) -> dict[str, str]:
    """What a training on an attacked set was made from, so that its run never goes on with a set made otherwise."""
    return {
        "the images": content_hash(*images),
        "the defended classifier": fingerprint(classifier),
        "the attacks' code and libraries": json.dumps(made_with(), sort_keys=True),
    }


def code_digest(paths: Iterable[Path]) -> str:
    """SHA-256 of source files without comments and docstrings, so that a better explanation makes nothing anew."""
    digest = hashlib.sha256()
    for path in paths:
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
                node.body[0] = ast.Pass()
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


def _chunk(
    classifier: nn.Module,
    networks: Sequence[nn.Module],
    clean: Tensor,
    labels: Tensor,
    spec: AttackSpec | None,
    config: AttackedSetConfig,
    chunk: int,
) -> Tensor:
    """The attacked images (B, C, H, W) of a chunk: on networks[0], some of them on one of the others, some drawn back."""
    if spec is None:
        return clean
    seed, generator = config.seed + chunk, torch.Generator().manual_seed(2**32 + config.seed + chunk)
    draws = torch.rand(3, len(clean), generator=generator)
    whose = 1 + int(torch.randint(max(1, len(networks) - 1), (), generator=generator))  # drawn, as attacks come in turn
    foreign = (draws[0] < config.transfer_share).to(clean.device)
    attacked = clean.clone()
    for chosen, network in ((~foreign, networks[0]), (foreign, networks[whose] if len(networks) > 1 else None)):
        if chosen.any():
            attacked[chosen] = attack(network, clean[chosen], labels[chosen], spec, seed=seed).images
    back = ~foreign & (draws[1] < config.nearer).to(clean.device)
    if back.any():
        draw = draws[2].to(clean.device)[back]
        attacked[back] = drawn_back(classifier, clean[back], attacked[back], labels[back], draw)
    return attacked


def attacked_set(
    classifier: nn.Module,
    images: Images,
    config: AttackedSetConfig,
    *,
    device: torch.device,
    root: str | None = None,
    name: str = "set",
    transfer: Sequence[nn.Module] = (),
) -> AttackedSet:
    """Open the attacked set of a classifier, making it first where it is missing or incomplete.

    Every chunk is marked when it is on disk, so that a killed process goes on where it stopped.

    Args:
        classifier: images (B, C, H, W) in [0, 1] → logits; in eval mode.
        images: clean images.
        config: attacks, budgets, rows.
        device: to attack on.
        root: the data root; the set lies in its sub-folder `attacked`.
        name: begins the set's folder name.
        transfer: the classifiers of `config.transfer`, in its order, in eval mode.

    Raises:
        UserError: an unknown attack, an empty list, a value out of range, or a folder that cannot be written.
        ValueError: as many classifiers in `transfer` as `config.transfer` names are needed, no more and no fewer.
    """
    chunk_size, specs = plan(config, images.images.shape[-1], transfers=bool(transfer))
    config = replace(config, precision=resolve(device, config.precision))
    if len(transfer) != len(config.transfer):
        raise ValueError(f"{len(config.transfer)} classifiers are named in `config.transfer`, {len(transfer)} are given")
    others = [[fingerprint(other), *own_sources(other)] for other in transfer]
    key = fingerprint(classifier, asdict(config), content_hash(images), made_with(), *own_sources(classifier), *others)
    folder = data_root(root) / "attacked" / f"{name}-{key}"
    generator = torch.Generator().manual_seed(config.seed)
    copies = -(-config.rows // len(images.labels))
    source = torch.cat([torch.randperm(len(images.labels), generator=generator) for _ in range(copies)])[: config.rows]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, wait=True):
            shape = (config.rows, *images.images.shape[1:])
            done, attacked = memory_mapped(folder, len(specs), attacked=(shape, "float16"))
            with suppress(OSError):  # on a read-only disk nobody asks when a set was last used
                os.utime(folder)
            if not done.all():
                write_text(folder / "config.json", json.dumps(asdict(config), indent=2))
            networks = [_Autocast(each, enabled=config.precision == "bf16") for each in (classifier, *transfer)]
            for chunk, rows in remaining_chunks(config.rows, chunk_size, done, "attacked set"):
                clean = to_float(images.images[source[rows]].to(device))
                labels = images.labels[source[rows]].to(device)
                result = _chunk(classifier, networks, clean, labels, specs[chunk], config, chunk)
                attacked[rows] = result.cpu().numpy().astype(np.float16)
                attacked.flush()
    except OSError as error:
        raise StorageError(
            f"cannot write the attacked set {folder}: {error.strerror}; set data.root or GANDEFENSE_DATA"
        ) from None
    return AttackedSet(folder, source, np.load(folder / "attacked.npy", mmap_mode="r"), chunk_size, specs)
