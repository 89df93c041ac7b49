#!/usr/bin/env python3
"""Give a trained GAN defence the fused detector: the same networks in a new file, flagging by several signals at once.

The signals are the perturbation classifier, the reconstruction error, and the Jensen-Shannon divergence of the classifier's
answers before and after cleaning at T = 10 and 40. Their scales and the threshold come from clean validation images alone, for
the false-positive rate `rate`. Then each signal, and all together, are tried on attacked test images.

RESTORER is a zoo name, a run folder or a .safetensors file. output= names the new file (a .safetensors that is not there yet);
without it nothing is written. limit= is how many test images are attacked (0: none).

usage: python tools/calibrate_detector.py RESTORER [output=FILE.safetensors] [rate=0.05] [limit=300] [device=auto]
"""

from dataclasses import replace
from pathlib import Path

import torch

from gandefense import zoo
from gandefense.command_line import run_tool, split_arguments
from gandefense.config import DataConfig
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.evaluation.report import text_table
from gandefense.restorers.gan import GANRestorer
from gandefense.training import gan_detection
from gandefense.training.state import choose_device
from gandefense.weights_io import load_weights, save_weights

DEFAULTS = {"output": "", "rate": "0.05", "limit": "300", "device": "auto"}


def number(text: str, kind: type, name: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{name} takes a number, got {text!r}") from None


def main(arguments: list[str]) -> None:
    name, words = split_arguments(arguments, __doc__)
    options = {**DEFAULTS, **dict(word.split("=", 1) for word in words)}
    if name is None or set(options) != set(DEFAULTS):
        raise UserError(f"expected a restorer and {', '.join(DEFAULTS)}; {__doc__.strip().splitlines()[-1]}")
    rate, limit = number(options["rate"], float, "rate"), number(options["limit"], int, "limit")
    if not 0 < rate < 1 or limit < 0:
        raise UserError(f"rate lies between 0 and 1 and limit is at least 0, got {rate:g} and {limit}")
    output = Path(options["output"]) if options["output"] else None
    if output is not None:
        if output.suffix != ".safetensors":
            raise UserError(f"output names a .safetensors file, got {output}")
        if output.exists():
            raise UserError(f"{output} is there already; nothing is overwritten, so name another file")
        if not output.parent.is_dir():
            raise UserError(f"{output.parent} is no folder; make it first")
    device = choose_device(options["device"])
    description = zoo.describe(name)
    if description.get("kind") != "gan":
        raise UserError(f"{name} is a {description.get('kind')!r}; the fused detector belongs to a GAN defence")
    defended = zoo.load(name).to(device).requires_grad_(False)
    restorer = defended.restorer
    assert isinstance(restorer, GANRestorer)
    config = description.get("config")
    trained_on = config.get("data") if isinstance(config, dict) else None
    kept = trained_on if isinstance(trained_on, dict) else {}
    data = DataConfig(description["data"], **{key: kept[key] for key in ("split", "images") if isinstance(kept.get(key), str)})
    validation = datasets.load(data, "validation")
    detector = gan_detection.calibrate(restorer.networks, defended.classifier, validation, rate, device)
    print(f"threshold {detector.threshold:.3f} for {rate:.1%} of {len(validation.labels):,} clean validation images")
    if output is not None:
        tensors, _ = load_weights(zoo.find(name))
        if description.get("classifier") in zoo.BESIDE:  # which does not lie beside the new file
            description["classifier"] = str(Path(zoo.classifier_of(name)).resolve())
        about = {key: value for key, value in description.items() if key != "measured"}  # that was the other detector's
        if isinstance(config, dict) and isinstance(config.get("loop"), dict):
            about["config"] = {**config, "loop": {**config["loop"], "detector": "fused"}}
        save_weights(output, tensors, {**about, "detector": detector.description()})
        print(f"written: {output}")
    if limit:
        torch.manual_seed(0)
        few = datasets.load(replace(data, limit=limit), "test", seed=0)
        found = gan_detection.measure(restorer.networks, detector, few, rate, device)
        print(text_table(*gan_detection.table(found)))
        print("n: attacks that changed the image and misled the classifier; they ignore the defence")


if __name__ == "__main__":
    run_tool(main, __doc__)
