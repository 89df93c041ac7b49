#!/usr/bin/env python3
"""Train a defence of another publication; the config's line `baseline: NAME` says which.

usage: python tools/train_baseline.py CONFIG [key=value …]
       python tools/train_baseline.py resume=RUN_FOLDER
"""

import os

from gandefense.command_line import run_tool, split_arguments, training_config
from gandefense.errors import UserError
from gandefense.training.baselines import BASELINES, chosen, resumed


def main(arguments: list[str]) -> None:
    path, overrides = split_arguments(arguments, __doc__)
    folders = [word.removeprefix("resume=") for word in overrides if word.startswith("resume=")]
    if path is None and not folders:
        raise UserError("no config file given; usage: python tools/train_baseline.py CONFIG [key=value …]")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("these small trainings run in one process; start them without torchrun")
    name = chosen(path) if path is not None else resumed(folders[0])
    schema, train = BASELINES[name]
    config = training_config(schema, name, arguments, __doc__)
    if config.baseline != name:
        raise UserError(f"the config file chooses the baseline ({name}), not the command line")
    train(config)


if __name__ == "__main__":
    run_tool(main, __doc__)
