#!/usr/bin/env python3
"""Train a classifier.

usage: python tools/train_classifier.py CONFIG [key=value …]
       python tools/train_classifier.py resume=RUN_FOLDER
"""

from gandefense.command_line import run_tool, training_config
from gandefense.training.classifier import ClassifierConfig, train


def main(arguments: list[str]) -> None:
    train(training_config(ClassifierConfig, "classifier", arguments, __doc__))


if __name__ == "__main__":
    run_tool(main, __doc__)
