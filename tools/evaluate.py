#!/usr/bin/env python3
"""Measure defences on real test images: accuracy under attack, detection, restoration, cost; a table and a report.

A killed evaluation goes on when it is started again with the same output=FOLDER.

usage: python tools/evaluate.py CONFIG [restorers=[cifar10/trn,cifar10/gan]] [output=FOLDER] [data.limit=N] [key=value …]
"""

import os

from gandefense import config
from gandefense.command_line import run_tool, split_arguments
from gandefense.errors import UserError
from gandefense.evaluation import evaluator, report


def main(arguments: list[str]) -> None:
    path, overrides = split_arguments(arguments, __doc__)
    if path is None:
        raise UserError("no config file given; usage: python tools/evaluate.py CONFIG [key=value …]")
    results = evaluator.evaluate(config.load(evaluator.EvaluateConfig, path, overrides))
    if os.environ.get("RANK", "0") != "0":  # one of several processes under torchrun says it
        return
    print(report.terminal(results))
    print(f"\nreport: {results['made']['output']}/report.html")


if __name__ == "__main__":
    run_tool(main, __doc__)
