#!/usr/bin/env python3
"""The whole road on real CIFAR-10: fetch the data, train a GAN defence for some minutes, measure it beside the shipped ones.

usage: python tools/demo.py [key=value …]        (the words change configs/gan/cifar10_demo.yaml, such as train.steps=600)
"""

import time
from pathlib import Path

from gandefense import config, zoo
from gandefense.command_line import run_tool, split_arguments
from gandefense.data import sources
from gandefense.errors import UserError
from gandefense.evaluation import report
from gandefense.evaluation.evaluator import evaluate
from gandefense.training.gan import GANConfig, train

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def main(arguments: list[str]) -> None:
    path, overrides = split_arguments(arguments, __doc__)
    if path is not None or any(word.startswith("resume=") for word in overrides):
        raise UserError("the demo takes key=value words only; for your own config use tools/train_gan.py")
    started = time.perf_counter()
    settings = config.load(GANConfig, CONFIGS / "gan" / "cifar10_demo.yaml", overrides)

    print("1/3  CIFAR-10")
    folder = sources.fetch("cifar10", root=settings.data.root)
    print(f"     complete and checked, in {folder}")

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
