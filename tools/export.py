#!/usr/bin/env python3
"""Write a defence as one ONNX file, or as torch's exported program, for programs without this package.

The file takes `input` (B, C, H, W) in [0, 1] and gives `images` (restored), `score`, `flagged`, `level` and `logits`. It is
compared with the eager network on real test images, clean and attacked, and only put in place if they agree to 1e-4.
batch=N fixes the batch; part=restorer leaves the logits out; classifier=NAME takes another classifier.

usage: python tools/export.py NAME output=FILE.onnx|FILE.pt2 [batch=dynamic|N] [part=defence|restorer] [classifier=NAME]
"""

from pathlib import Path

from gandefense import export, zoo
from gandefense.command_line import run_tool
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier

COMPARED = 8  # test images, and as many attacked ones


def main(arguments: list[str]) -> None:
    names = [word for word in arguments if "=" not in word]
    options = dict(word.split("=", 1) for word in arguments if "=" in word)
    if len(names) != 1 or "output" not in options or set(options) - {"output", "batch", "part", "classifier"}:
        raise UserError(__doc__.strip().splitlines()[-1])
    batch = options.get("batch", "dynamic")
    if batch != "dynamic" and not (batch.isascii() and batch.isdigit() and int(batch) > 0):
        raise UserError(f"batch must be dynamic or a number of images, got {batch!r}")
    size = None if batch == "dynamic" else int(batch)
    defended, about = load(names[0], options.get("classifier"))
    data = datasets.describe(about["data"])
    images, real = export.samples(defended, data, max(COMPARED, size or 0))
    path = Path(options["output"])
    part = options.get("part", "defence")
    worst = export.export(defended, path, images, batch=size, part=part, about=about)
    flagged = int(defended.restore(images).flagged.sum())
    kind = f"images of {data.name}'s test set, half of them attacked" if real else "random images (the data set is not here)"
    print(f"compared with the eager network on {len(images)} {kind}; {flagged} of them flagged")
    print("largest difference: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()))
    print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")


def load(name: str, classifier: str | None) -> tuple[DefendedClassifier, dict]:
    """A defence by name, before another classifier if one is given, and what the file's metadata says of it."""
    defended = zoo.load(name) if classifier is None else zoo.defend(zoo.load_classifier(classifier), name)
    known = [zoo.describe(part).get("data") for part in (name, classifier) if part is not None and part != "none"]
    data = next((found for found in known if found is not None), None)
    if data is None:
        raise UserError(f"{name} does not say for which images it is; name a classifier that does: classifier=NAME")
    classes = list(datasets.describe(data).classes)
    return defended.cpu(), {"name": name, "classifier": classifier, "data": data, "classes": classes}


if __name__ == "__main__":
    run_tool(main, __doc__)
