#!/usr/bin/env python3
"""Put a finished run's network into the package, with a card that says where every figure comes from.

usage: python tools/publish.py RUN_FOLDER NAME results=RESULTS.json [weights=model.safetensors]

NAME is a zoo name such as cifar10/gan. Weights are stored as float16 when that keeps the file under 16 MiB and float32
does not; measure after publishing, so that the figures are those of the stored network.
"""

import json
from pathlib import Path

import torch

from gandefense.command_line import run_tool
from gandefense.errors import UserError
from gandefense.weights_io import load_weights, save_weights, write_text
from gandefense.zoo import WEIGHTS

LARGEST = 16 * 2**20  # bytes a shipped file may have


def main(arguments: list[str]) -> None:
    words = [word for word in arguments if "=" not in word]
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    if len(words) != 2 or set(options) - {"results", "weights"}:
        raise UserError("usage: python tools/publish.py RUN_FOLDER NAME [results=RESULTS.json] [weights=model.safetensors]")
    run, name = Path(words[0]), words[1]
    tensors, description = load_weights(run / options.get("weights", "model.safetensors"))
    target = WEIGHTS / f"{name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > LARGEST:
        tensors = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    save_weights(target, tensors, description)
    card = {
        "name": name,
        "kind": description["kind"],
        "data": description["data"],
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "stored_as": str(next(t.dtype for t in tensors.values() if t.is_floating_point())).removeprefix("torch."),
        "recipe": description.get("config", description.get("recipe")),
        "seed": description.get("config", {}).get("run", {}).get("seed"),
        "versions": description.get("versions", {"torch": torch.__version__}),
        "validation": description.get("measured"),
    }
    if "results" in options:
        card["test"] = measured(json.loads(Path(options["results"]).read_text(encoding="utf-8")), name)
    write_text(target.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    print(f"{target} ({target.stat().st_size / 2**20:.1f} MiB) and its card {target.with_suffix('.json').name}")


def measured(results: dict, name: str) -> dict:
    """What a results.json says of one network: its rows, and how they were made."""
    keys = ("threat", "attack", "view", "eps", "n", "accuracy", "ci95", "undefended_accuracy")
    rows = [{key: row.get(key) for key in keys} for row in results["rows"] if row["restorer"] == name]
    return {"classifier": results["classifier"], "rows": rows, "made": results.get("made")}


if __name__ == "__main__":
    run_tool(main, __doc__)
