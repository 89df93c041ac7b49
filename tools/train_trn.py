#!/usr/bin/env python3
"""Train TRN, the Two-stream Restoration Network.

usage: python tools/train_trn.py CONFIG [key=value …]
       python tools/train_trn.py resume=RUN_FOLDER
"""

from gandefense.command_line import run_tool, training_config
from gandefense.training.trn import TRNConfig, train


def main(arguments: list[str]) -> None:
    train(training_config(TRNConfig, "trn", arguments, __doc__))


if __name__ == "__main__":
    run_tool(main, __doc__)
