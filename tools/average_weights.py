#!/usr/bin/env python3
"""Average the weights of classifiers that were trained on from the same one, and take their batch norms' statistics anew.

usage: python tools/average_weights.py CONFIG [key=value …]
       python tools/average_weights.py resume=RUN_FOLDER
"""

from gandefense.command_line import run_tool, training_config
from gandefense.training.averaging import AverageConfig, average


def main(arguments: list[str]) -> None:
    average(training_config(AverageConfig, "average", arguments, __doc__))


if __name__ == "__main__":
    run_tool(main, __doc__)
