"""What the tools say about bad input: exit status 2 and one clear line, never a traceback."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gandefense import classifiers
from gandefense.attacks.cache import AttackedSetConfig
from gandefense.config import RunConfig
from gandefense.data import datasets
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.training import classifier as classifier_training
from gandefense.training import gan as gan_training
from gandefense.training import trn as trn_training
from gandefense.training.distillation import StudentConfig
from gandefense.training.gan_config import GANConfig, GANNetworkConfig
from gandefense.weights_io import save_weights
from tests.helpers import small_cifar10 as small

ROOT = Path(__file__).parent.parent

# Runs many tools one after the other in one process, because most of a tool's time goes into its imports. Standard error
# is caught at its file descriptor, so that nothing gets past it.
DRIVER = """
import json, os, runpy, sys, traceback
from pathlib import Path
import pytest
from tests.helpers import small_cifar10

small_cifar10.install(Path(os.environ["GANDEFENSE_DATA"]), pytest.MonkeyPatch())
cases, report = Path(sys.argv[1]), []
for words in json.loads(cases.read_text(encoding="utf-8")):
    sys.argv = words
    with (cases.parent / "stderr").open("w+", encoding="utf-8") as caught:
        kept = os.dup(2)
        os.dup2(caught.fileno(), 2)
        status = 0
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stderr.flush()
        os.dup2(kept, 2)
        caught.seek(0)
        report.append([status, caught.read()])
(cases.parent / "report.json").write_text(json.dumps(report), encoding="utf-8")
"""

# name → (words, a part of the message); {f} is the folder that `folder` prepares
CASES = {
    **{
        f"{tool}: {name}": ([tool, *words], message)
        for tool in ("train_classifier", "train_trn", "train_gan")
        for name, words, message in (
            ("unknown key", ["{f}/empty.yaml", "run.sed=3"], "config: unknown key run.sed; the nearest known one is run.seed"),
            ("unknown key in the file", ["{f}/typo.yaml"], "config: unknown key run.polder; the nearest known one is run.folder"),
            ("missing config", ["{f}/absent.yaml"], "config file not found: {f}/absent.yaml"),
            ("no config", [], "no config file given; usage: python tools/"),
            ("config that is no YAML", ["{f}/broken.yaml"], "{f}/broken.yaml: not readable as YAML"),
            ("nameless override", ["{f}/empty.yaml", "=3"], "expected key=value, got '=3'"),
            ("override of a wrong type", ["{f}/empty.yaml", "run.seed=three"], "run.seed: "),
            (
                "corrupt data",
                ["{f}/empty.yaml" if tool == "train_classifier" else "{f}/ready.yaml", "data.root={f}/corrupt"],
                "corrupt data file: {f}/corrupt/cifar10/data_batch_3.bin",
            ),
            ("resume of no run", ["resume={f}"], "resume={f}: no run folder"),
            ("resume of an absent folder", ["resume={f}/absent"], "resume={f}/absent: no run folder"),
            ("resume with more words", ["resume={f}", "run.seed=3"], "resume=RUN_FOLDER stands alone"),
        )
    },
    "train_classifier: resume of another kind": (["train_classifier", "resume={f}/trn"], "a run of kind 'trn', not 'classifier'"),
    "train_trn: resume of another kind": (
        ["train_trn", "resume={f}/gan"],
        "a run of kind 'gan', not 'trn'; use tools/train_gan.py",
    ),
    "train_gan: resume of another kind": (
        ["train_gan", "resume={f}/trn"],
        "a run of kind 'trn', not 'gan'; use tools/train_trn.py",
    ),
    **{
        f"train_{kind}: {damage} checkpoint": (
            [f"train_{kind}", f"resume={{f}}/{kind} {damage}"],
            f"{{f}}/{kind} {damage}/checkpoint.pt is damaged or of another run",
        )
        for kind in ("classifier", "trn", "gan")
        for damage in ("scribbled", "truncated", "pickled", "foreign")
    },
    "train_trn: truncated classifier": (
        ["train_trn", "{f}/empty.yaml", "classifier={f}/truncated.safetensors"],
        "{f}/truncated.safetensors is not a whole safetensors file",
    ),
    "train_gan: a restorer as teacher": (["train_gan", "{f}/empty.yaml", "classifier={f}/trn.safetensors"], "not a classifier"),
    **{
        f"evaluate: {name}": (["evaluate", *words], message)
        for name, words, message in (
            ("unknown key", ["{f}/evaluate.yaml", "atacks=3"], "config: unknown key atacks"),
            ("missing config", ["{f}/absent.yaml"], "config file not found: {f}/absent.yaml"),
            ("no config", [], "no config file given"),
            ("nameless override", ["{f}/evaluate.yaml", "=3"], "expected key=value, got '=3'"),
            ("corrupt data", ["{f}/evaluate.yaml", "data.root={f}/corrupt"], "corrupt data file: {f}/corrupt/cifar10"),
            (
                "truncated classifier",
                ["{f}/evaluate.yaml", "classifier={f}/truncated.safetensors"],
                "{f}/truncated.safetensors is not a whole safetensors file",
            ),
            (
                "pickled classifier",
                ["{f}/evaluate.yaml", "classifier={f}/pickled.safetensors"],
                "{f}/pickled.safetensors is not a whole safetensors file",
            ),
            ("foreign classifier", ["{f}/evaluate.yaml", "classifier={f}/good.safetensors"], "holds no gandefense network"),
            ("unknown classifier", ["{f}/evaluate.yaml", "classifier=cifar10/nothing"], "unknown network 'cifar10/nothing'"),
            ("restorer as classifier", ["{f}/evaluate.yaml", "classifier={f}/trn.safetensors"], "is a 'trn', not a classifier"),
            (
                "truncated restorer",
                ["{f}/evaluate.yaml", "restorers=[{f}/truncated.safetensors]"],
                "not a whole safetensors file",
            ),
            ("unfinished run", ["{f}/evaluate.yaml", "restorers=[{f}/trn]"], "run {f}/trn is not finished"),
            (
                "images out of range",
                ["{f}/evaluate.yaml", "data.file={f}/range.safetensors"],
                "images must lie in [0, 1], got [0",
            ),
            ("images with NaN", ["{f}/evaluate.yaml", "data.file={f}/nan.safetensors"], "images contain NaN or infinite values"),
            ("grey images", ["{f}/evaluate.yaml", "data.file={f}/grey.safetensors"], "expected images with 3 channel(s), got 1"),
            ("large images", ["{f}/evaluate.yaml", "data.file={f}/large.safetensors"], "expected 32×32 pixels, got (64, 64)"),
            ("labels out of range", ["{f}/evaluate.yaml", "data.file={f}/labels.safetensors"], "labels must lie in 0 … 9"),
            ("no labels", ["{f}/evaluate.yaml", "data.file={f}/unlabelled.safetensors"], "needs the tensors images and labels"),
            ("truncated images", ["{f}/evaluate.yaml", "data.file={f}/truncated.safetensors"], "is not a whole safetensors file"),
            (
                "no images",
                ["{f}/evaluate.yaml", "data.file={f}/absent.safetensors"],
                "data.file not found: {f}/absent.safetensors",
            ),
            ("finished output", ["{f}/evaluate.yaml", "output={f}/evaluation"], "{f}/evaluation holds a finished evaluation"),
            (
                "output in the way",
                ["{f}/evaluate.yaml", "output={f}/empty.yaml"],
                "cannot write to the output folder {f}/empty.yaml",
            ),
            ("unknown attack", ["{f}/evaluate.yaml", "gray_box=[{{attack: fgms}}]"], "unknown attack 'fgms'"),
        )
    },
    "publish: no run": (["publish", "{f}/absent", "cifar10/mine"], "weights not found: {f}/absent/model.safetensors"),
    "fetch_data: unknown data set": (["fetch_data", "cifar11"], "cifar11"),
    "demo: a config": (["demo", "{f}/empty.yaml"], "the demo takes key=value words only"),
}


class Harmful:
    """An object whose unpickling would run a command."""

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {os.environ['HARM']}",)


def _runs(folder: Path) -> None:
    """A run of each kind that was stopped after one step, and copies of it with a damaged checkpoint each."""
    options = {
        "run": RunConfig(folder=str(folder / "made"), device="cpu", precision="float32"),
        "classifier": str(folder / "classifier.safetensors"),
        "attacked": AttackedSetConfig(rows=24, attacks=["fgsm"]),
        "validation_rows": 24,
    }
    trn = trn_training.TRNConfig(**options, network=trn_training.TRNNetworkConfig(width=8, blocks=1))
    gan = GANConfig(**options, distil=StudentConfig(steps=0), network=GANNetworkConfig(width=8))
    plain = classifier_training.ClassifierConfig(run=options["run"], architecture="tiny")
    for config in (trn, gan):
        config.train.steps, config.train.batch_size = 1, 8
    plain.train.epochs, plain.train.batch_size = 0.1, 8
    trained = {"classifier": (classifier_training, plain), "trn": (trn_training, trn), "gan": (gan_training, gan)}
    for kind, (module, config) in trained.items():
        path = module.train(config)
        path.unlink()
        path.parent.rename(folder / kind)
    for kind in trained:
        for damage in ("scribbled", "truncated", "pickled", "foreign"):
            copy = folder / f"{kind} {damage}"
            shutil.copytree(folder / kind, copy)
            checkpoint = copy / "checkpoint.pt"
            if damage == "scribbled":
                checkpoint.write_bytes(b"no checkpoint" * 100)
            elif damage == "truncated":
                checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
            elif damage == "pickled":
                checkpoint.write_bytes(pickle.dumps({"kind": kind, "parts": Harmful()}))
            else:
                shutil.copy(folder / {"classifier": "trn", "trn": "gan", "gan": "classifier"}[kind] / "checkpoint.pt", checkpoint)


def _images(folder: Path) -> None:
    """Files for data.file: a good one, and one for each mistake."""
    images, labels = torch.rand(5, 3, 32, 32), torch.arange(5)
    broken = images.clone()
    broken[2, 1, 3, 3] = torch.nan
    files = {
        "good": {"images": images, "labels": labels},
        "range": {"images": images * 255, "labels": labels},
        "nan": {"images": broken, "labels": labels},
        "grey": {"images": images[:, :1].contiguous(), "labels": labels},
        "large": {"images": torch.rand(5, 3, 64, 64), "labels": labels},
        "labels": {"images": images, "labels": labels + 6},
        "unlabelled": {"images": images},
    }
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-1000])
    (folder / "pickled.safetensors").write_bytes(pickle.dumps({"images": [0.5], "labels": [1]}))


@pytest.fixture(scope="module")
def folder(_small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything that the cases name."""
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        small.install(_small_root, patch)
        patch.setenv("HARM", str(folder / "harm"))
        torch.manual_seed(0)
        classifier = classifiers.build("tiny", datasets.describe("cifar10"))
        description = {"kind": "classifier", "architecture": "tiny", "data": "cifar10"}
        save_weights(folder / "classifier.safetensors", classifier.state_dict(), description)
        shape = {"channels": 3, "labels": 10, "width": 8, "blocks": 1}
        description = {"kind": "trn", "data": "cifar10", "network": shape, "classifier": str(folder / "classifier.safetensors")}
        save_weights(folder / "trn.safetensors", TwoStreamRestorationNetwork(**shape).state_dict(), description)
        _runs(folder)
        _images(folder)

        shutil.copytree(_small_root / "cifar10", folder / "corrupt" / "cifar10")
        content = bytearray((folder / "corrupt" / "cifar10" / "data_batch_3.bin").read_bytes())
        content[100] ^= 255
        (folder / "corrupt" / "cifar10" / "data_batch_3.bin").write_bytes(content)
        shutil.copy(folder / "corrupt" / "cifar10" / "data_batch_3.bin", folder / "corrupt" / "cifar10" / "test_batch.bin")
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "results.json").write_text("{}", encoding="utf-8")

        run = f"run: {{folder: {folder / 'runs'}, device: cpu}}\n"
        texts = {
            "empty": run,
            "ready": f"{run}classifier: {folder / 'classifier.safetensors'}\n",
            "typo": f"run: {{polder: {folder / 'runs'}}}\n",
            "broken": "run: [unclosed\n",
            "evaluate": f"classifier: {folder / 'classifier.safetensors'}\nrestorers: [none]\ndevice: cpu\n"
            f"output: {folder / 'fresh'}\n",
        }
        for name, text in texts.items():
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        yield folder


@pytest.fixture(scope="module")
def said(folder: Path, _small_root: Path) -> dict[str, tuple[int, str]]:
    """Exit status and standard error of every case."""
    words = [[f"tools/{tool}.py", *(word.format(f=folder) for word in rest)] for (tool, *rest), _ in CASES.values()]
    (folder / "cases.json").write_text(json.dumps(words), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GANDEFENSE_DATA": str(_small_root), "HARM": str(folder / "harm")}
    environment.pop("GANDEFENSE_LPIPS_BACKBONE", None)
    command = [sys.executable, "-c", DRIVER, str(folder / "cases.json")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return dict(zip(CASES, map(tuple, report), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_status_2_and_one_line(said: dict[str, tuple[int, str]], folder: Path, case: str) -> None:
    status, text = said[case]
    assert "Traceback" not in text
    lines = [line for line in text.replace("\r", "\n").split("\n") if line.strip()]
    assert len(lines) == 1, text
    assert lines[0].startswith("error: ")
    assert "weights_only" not in lines[0], "nobody is told to load a foreign file with the code in it"
    assert CASES[case][1].replace("{f}", str(folder)) in lines[0]
    assert status == 2


def test_no_mistake_makes_a_run_an_evaluation_or_harm(said: dict[str, tuple[int, str]], folder: Path) -> None:
    assert said
    assert not (folder / "runs").exists() or not list((folder / "runs").iterdir())
    assert not (folder / "fresh" / "results.json").exists()
    assert not (folder / "harm").exists(), "a checkpoint is never unpickled"
    assert (folder / "evaluation" / "results.json").read_text(encoding="utf-8") == "{}"


def test_a_real_process_ends_the_same_way(folder: Path, python: Callable) -> None:
    done = python("tools/train_gan.py", folder / "typo.yaml")
    message = "error: config: unknown key run.polder; the nearest known one is run.folder\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
