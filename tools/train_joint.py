#!/usr/bin/env python3
"""Train a restorer and its classifier together, adversarially, through the whole pipeline.

The run folder holds both: model.safetensors, the restorer, and classifier.safetensors.

usage: python tools/train_joint.py CONFIG [key=value …]
       python tools/train_joint.py resume=RUN_FOLDER
"""

import os

from gandefense.command_line import run_tool, training_config
from gandefense.errors import UserError
from gandefense.training.joint import JointConfig, train


def main(arguments: list[str]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("joint training runs in one process; start it without torchrun")
    train(training_config(JointConfig, "joint", arguments, __doc__))


if __name__ == "__main__":
    run_tool(main, __doc__)
