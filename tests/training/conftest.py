"""Fixtures of the tests of trainings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from gandefense.attacks.cache import AttackedSetConfig
from gandefense.config import RunConfig
from gandefense.training import gan
from gandefense.training.distillation import StudentConfig
from gandefense.training.gan_config import GANConfig, GANNetworkConfig, GANTrainConfig, LossConfig
from tests.helpers import small_cifar10 as small
from tests.helpers.short_training import classifier_file

GAN_DISTIL, GAN_STEPS = 8, 32  # steps of the GAN's two phases


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Sums are taken in the same order, whatever else the machine does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gan_settings(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., GANConfig]]:
    """Configs of a short training before a classifier that was itself trained for a second."""
    folder = tmp_path_factory.mktemp("gan")
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        path = classifier_file(folder)

        def make(name: str, *, distil: int = GAN_DISTIL, steps: int = GAN_STEPS, rows: int = 96, **run: object) -> GANConfig:
            options = {"folder": str(folder / name), "device": "cpu", "precision": "float32", "seed": 4}
            every = {"log_every": 4, "image_every": 16, "checkpoint_every": 4}
            return GANConfig(
                run=RunConfig(**{**options, **every, **run}),
                classifier=str(path),
                attacked=AttackedSetConfig(rows=rows, attacks=["fgsm", "pgd", "none"], budgets=[8 / 255], steps=2),
                validation_rows=96,
                network=GANNetworkConfig(width=8, discriminator_width=4),
                distil=StudentConfig(steps=distil, batch_size=16),
                train=GANTrainConfig(
                    steps=steps,
                    batch_size=13,
                    learning_rate=3e-3,
                    warmup=3,
                    ema_decay=0.8,
                    noise_share=0.35,
                    replay_share=0.08,
                ),
                loss=LossConfig(class_ramp=4, r1_every=4),
            )

        yield make


@pytest.fixture(scope="module")
def gan_finished(gan_settings: Callable[..., GANConfig]) -> Path:
    """The folder of a run that nobody interrupted."""
    return gan.train(gan_settings("whole")).parent
