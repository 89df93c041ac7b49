"""The average of several classifiers' weights, of which all were trained on from the same one.

"Model soups" (Wortsman et al., ICML 2022) average fine-tuned networks, WiSE-FT (Wortsman et al., CVPR 2022) a fine-tuned one
with the one that it was tuned from, so that what is won under perturbations costs less on clean images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gandefense import classifiers, zoo
from gandefense.attacks.cache import fingerprint
from gandefense.config import DataConfig, RunConfig
from gandefense.data import datasets
from gandefense.data.batches import augmentation, batch_indices, content_hash, to_float
from gandefense.errors import UserError
from gandefense.training.classifier import accuracy, with_noise
from gandefense.training.run import check_settings, open_run
from gandefense.training.state import choose_device, require, seed_everything
from gandefense.weights_io import fill, load_weights


@dataclass
class AverageConfig:
    """tools/average_weights.py"""

    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)
    networks: list[str] = field(default_factory=list)  # classifiers of one architecture, by name, run folder or file
    shares: list[float] = field(default_factory=list)  # of each in the average; their sum is made 1; empty: equal ones
    batches: int = 16  # of training images, over which the statistics of batch norms are taken anew
    batch_size: int = 256  # images in each
    noise: float = 0.0  # largest level of Gaussian noise on these images, on the [-1, 1] scale; as the networks were trained
    resume: str | None = None  # a run folder to go on with; on the command line, alone


def averaged(states: list[dict[str, Tensor]], shares: list[float]) -> dict[str, Tensor]:
    """The weighted mean of state dictionaries, name by name; counters are those of the first.

    Raises:
        UserError: names or shapes differ.
    """
    first, total = states[0], sum(shares)
    if any({name: tensor.shape for name, tensor in state.items()} != {n: t.shape for n, t in first.items()} for state in states):
        raise UserError("networks to average must have the same architecture; names or shapes of their weights differ")
    return {
        name: sum(share / total * state[name].double() for share, state in zip(shares, states, strict=True)).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }


@torch.no_grad()
def renew_batch_norms(network: nn.Module, config: AverageConfig, images: datasets.Images, device: torch.device) -> None:
    """Take mean and variance of each batch norm anew, as the plain mean over augmented training images; in float32."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a mean over all batches
    augment = augmentation(images.images.shape[-1], flip=datasets.describe(config.data).flips)
    network.train()
    for step in range(config.batches):
        chosen = batch_indices(len(images.labels), min(config.batch_size, len(images.labels)), step, config.run.seed)
        batch = with_noise(augment(to_float(images.images[chosen].to(device))), config.noise)
        network(batch.contiguous(memory_format=torch.channels_last))
    network.eval()


def average(config: AverageConfig) -> Path:
    """Average classifiers and write the result as model.safetensors into a run folder; a minute on a CPU.

    Returns:
        The weights' path.

    Raises:
        UserError: bad data or config, networks of different architectures.
    """
    device = choose_device(config.run.device)
    data = datasets.describe(config.data)
    check_settings(config.run)
    shares = list(config.shares) or [1.0] * len(config.networks)
    require(counts={"batches": config.batches, "batch_size": config.batch_size}, not_negative={"noise": config.noise})
    require(positive={f"shares[{place}]": share for place, share in enumerate(shares)})
    if len(config.networks) < 2:
        raise UserError(f"networks must name at least two classifiers to average, got {len(config.networks)}")
    if len(shares) != len(config.networks):
        raise UserError(f"shares has {len(shares)} value(s) for {len(config.networks)} networks")
    seed_everything(config.run.seed)
    states, architectures = [], set()
    for name in config.networks:
        tensors, about = load_weights(zoo.find(name))
        if about.get("kind") != "classifier" or about.get("data") != data.name:
            raise UserError(f"{name} is no classifier for {data.name}: {about.get('kind')!r} for {about.get('data')!r}")
        states.append(tensors)
        architectures.add(about.get("architecture"))
    if len(architectures) > 1:
        raise UserError(f"networks to average must have the same architecture, these are {', '.join(sorted(architectures))}")
    (architecture,) = architectures
    network = classifiers.build(architecture, data)
    fill(network, averaged(states, shares), source="the average")
    network = network.to(device, memory_format=torch.channels_last)
    images = datasets.load(config.data, "train", seed=config.run.seed)
    validation = datasets.load(config.data.whole(), "validation")
    made_from = {"the images": content_hash(images, validation), "the weights to average": fingerprint(network)}
    with open_run("average", config, config.run, config.resume, made_from) as run:
        if run.finished:
            print(f"this run is finished: {run.folder / 'model.safetensors'}")
            return run.folder / "model.safetensors"
        run.restore(network=network)
        renew_batch_norms(network, config, images, device)
        measured = {"validation_accuracy": accuracy(network, validation, device), "validation_n": len(validation.labels)}
        metadata = {"kind": "classifier", "adversarial": "none", "architecture": architecture, "data": data.name}
        path = run.finish(network.state_dict(), {**metadata, "measured": measured})
        print(f"validation accuracy {measured['validation_accuracy']:.4f} (n = {measured['validation_n']}); weights: {path}")
        return path
