#!/usr/bin/env python3
"""The whole road on real CIFAR-10: fetch the data, train a GAN defence for some minutes, measure it beside the shipped ones.

usage: python tools/demo.py [key=value …]        (the words change configs/gan/cifar10_demo.yaml, such as train.steps=600)
"""

import time
from pathlib import Path

import torch

from gandefense import config, zoo
from gandefense.command_line import run_tool, split_arguments
from gandefense.data import sources
from gandefense.errors import UserError
from gandefense.evaluation import report
from gandefense.evaluation.evaluator import evaluate
from gandefense.precision import autocast
from gandefense.training.gan import train
from gandefense.training.gan_config import GANConfig
from gandefense.training.state import choose_device

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
REFERENCE_SPEED = 900  # images/s that the recipe was timed with: forward and backward of the shipped classifier, two CPU cores
LEAST_STEPS = 80  # fewer would not show that anything is learnt


def speed(device: torch.device, precision: str) -> float:
    """Images/s that the shipped classifier trains with on this machine, from about two seconds of work."""
    classifier = zoo.load_classifier("cifar10/classifier").to(device, memory_format=torch.channels_last)
    images = torch.rand(64, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    done, start = 0, 0.0
    while done < 2 or time.perf_counter() - start < 2:
        with autocast(device, precision):
            classifier(images).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += 1
        if done == 1:  # the first pass warms up
            start = time.perf_counter()
    return (done - 1) * len(images) / (time.perf_counter() - start)


def fit_to_machine(settings: GANConfig, asked: list[str]) -> None:
    """Cut the training on machines slower than the recipe's, so that the demo stays a matter of minutes."""
    measured = speed(choose_device(settings.run.device), settings.run.precision)
    share = min(1.0, measured / REFERENCE_SPEED)
    if share == 1.0 or any(word.startswith(("train.steps=", "attacked.rows=", "distil.steps=")) for word in asked):
        return
    settings.train.steps = max(LEAST_STEPS, round(share * settings.train.steps))
    settings.distil.steps = max(LEAST_STEPS // 8, round(share * settings.distil.steps))
    if not any(word.startswith("data.limit=") for word in asked):
        settings.data.limit = max(2048, round(share * settings.data.limit))
    settings.attacked.rows = max(1024, round(share * settings.attacked.rows))
    settings.validation_rows = max(128, round(share * settings.validation_rows))
    settings.run.image_every = settings.train.steps // 2
    print(f"     cut to fit this machine: {measured:,.0f} images/s, where the recipe was timed with {REFERENCE_SPEED}")


def main(arguments: list[str]) -> None:
    path, overrides = split_arguments(arguments, __doc__)
    if path is not None or any(word.startswith("resume=") for word in overrides):
        raise UserError("the demo takes key=value words only; for your own config use tools/train_gan.py")
    started = time.perf_counter()
    settings = config.load(GANConfig, CONFIGS / "gan" / "cifar10_demo.yaml", overrides)

    print("1/3  CIFAR-10")
    folder = sources.fetch("cifar10", root=settings.data.root)
    print(f"     complete and checked, in {folder}")

    fit_to_machine(settings, overrides)
    shipped = zoo.describe("cifar10/gan")["config"]["train"]["steps"]
    print(f"2/3  training a GAN defence for {settings.train.steps} steps, to see it learn; the shipped one had {shipped}")
    run = train(settings).parent

    print("3/3  measuring the two shipped defences and the fresh one on real test images")
    output = run / "evaluation"
    restorers = ["cifar10/trn", "cifar10/gan", str(run)]
    changes = {"classifier": settings.classifier, "device": settings.run.device, "data": {"root": settings.data.root}}
    results = evaluate(CONFIGS / "evaluate" / "cifar10_demo.yaml", restorers=restorers, output=str(output), **changes)

    print(report.terminal(results))
    print(f"\nreport       {output / 'report.html'}")
    print(f"TensorBoard  .venv/bin/tensorboard --logdir {run}")
    print(f"done in {(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    run_tool(main, __doc__)
