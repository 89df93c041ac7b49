#!/usr/bin/env python3
"""Train the GAN defence: distilled student, ISMN, perturbation classifier, generator and discriminator.

usage: python tools/train_gan.py CONFIG [key=value …]
       python tools/train_gan.py resume=RUN_FOLDER
"""

from gandefense.command_line import run_tool, training_config
from gandefense.training.gan import train
from gandefense.training.gan_config import GANConfig


def main(arguments: list[str]) -> None:
    train(training_config(GANConfig, "gan", arguments, __doc__))


if __name__ == "__main__":
    run_tool(main, __doc__)
