"""Folders of images through a restorer."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gandefense import classifiers, restoring, zoo
from gandefense.data import datasets
from gandefense.errors import UserError
from gandefense.image_files import read_image
from gandefense.restorers.base import Restoration, Restorer
from gandefense.restorers.gan import GANNetworks, GANRestorer
from gandefense.restorers.trn import TwoStreamRestorationNetwork
from gandefense.weights_io import save_weights


class Inverse(Restorer):
    """Turns images over; the score is their brightness; remembers the batches that it met."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Restoration:
        self.met.append(tuple(images.shape))
        score = images.flatten(1).mean(1)
        level = torch.where(score > 0.5, score, torch.nan)
        return Restoration(1 - images, score, score > 0.5, level, {})


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write an evenly coloured image below the input folder."""

    def write(name: str, value: int, size: tuple[int, int] = (32, 32)) -> Path:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
        return path

    return write


def run(folder: Path, restorer: Restorer, *, size: int | None = 32, batch_size: int | None = 2) -> restoring.Summary:
    jobs = restoring.plan(restoring.find_images(folder / "in")[0])
    options = {"channels": 3, "size": size, "batch_size": batch_size, "device": torch.device("cpu")}
    return restoring.restore_folder("own", restorer, folder / "in", folder / "out", jobs, **options)


def scores(folder: Path) -> list[dict[str, str]]:
    with (folder / "out" / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_restored_under_the_same_names(save: Callable, tmp_path: Path) -> None:
    save("a.png", 10), save("sub/b.bmp", 200), save("sub/deep/c.png", 250)
    restorer = Inverse()
    summary = run(tmp_path, restorer)
    assert (summary.restored, summary.flagged, summary.unreadable, dict(summary.changes)) == (3, 2, [], {})
    assert restorer.met == [(2, 3, 32, 32), (1, 3, 32, 32)]
    written = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.*")}
    assert sorted(written) == ["a.png", "scores.csv", "sub/b.png", "sub/deep/c.png"]
    for name, value in (("a.png", 245), ("sub/b.png", 55), ("sub/deep/c.png", 5)):
        assert read_image(written[name], channels=3, size=None)[0].unique().tolist() == [value]
    rows = scores(tmp_path)
    assert [(row["file"], row["flagged"], row["rounds"], row["note"]) for row in rows] == [
        ("a.png", "false", "", ""),
        ("sub/b.bmp", "true", "", ""),
        ("sub/deep/c.png", "true", "", ""),
    ]
    assert [float(row["score"]) for row in rows] == pytest.approx([10 / 255, 200 / 255, 250 / 255], rel=1e-5)
    assert rows[0]["level"] == "" and float(rows[1]["level"]) == pytest.approx(200 / 255, rel=1e-5)


def test_what_cannot_be_read_is_skipped_and_told(save: Callable, tmp_path: Path) -> None:
    save("a.png", 10), save("c.png", 10)
    (tmp_path / "in" / "b.png").write_text("no picture", encoding="utf-8")
    summary = run(tmp_path, Inverse())
    assert summary.restored == 2
    assert summary.unreadable == [(Path("b.png"), "no PNG, JPEG, WebP or BMP image")]
    assert not (tmp_path / "out" / "b.png").exists()
    row = scores(tmp_path)[1]
    assert (row["file"], row["score"], row["note"]) == ("b.png", "", "skipped: no PNG, JPEG, WebP or BMP image")


def test_changes_are_counted_and_noted(save: Callable, tmp_path: Path) -> None:
    save("a.png", 10), save("b.png", 10, (64, 48)), save("c.png", 10, (20, 20))
    assert dict(run(tmp_path, Inverse()).changes) == {"resized to 32×32": 2}
    assert [row["note"] for row in scores(tmp_path)] == ["", "resized to 32×32 from 48×64", "resized to 32×32 from 20×20"]


def test_without_a_size_images_keep_theirs_and_share_batches_of_one_size(save: Callable, tmp_path: Path) -> None:
    save("a.png", 10), save("b.png", 10), save("c.png", 10, (20, 24)), save("d.png", 10, (20, 24)), save("e.png", 10)
    restorer = Inverse()
    run(tmp_path, restorer, size=None, batch_size=10)
    assert restorer.met == [(2, 3, 32, 32), (2, 3, 20, 24), (1, 3, 32, 32)]
    assert Image.open(tmp_path / "out" / "c.png").size == (24, 20)


def test_nothing_is_left_of_an_earlier_run_that_would_mislead(save: Callable, tmp_path: Path) -> None:
    broken = save("a.png", 10)
    save("b.png", 20)
    run(tmp_path, Inverse())
    broken.write_bytes(b"broken since")
    (tmp_path / "out" / "other.txt").write_text("stays", encoding="utf-8")
    run(tmp_path, Inverse())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.png", "other.txt", "scores.csv"]

    class Interrupted(Inverse):
        def forward(self, images: Tensor) -> Restoration:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.png", "other.txt"]


def test_an_interrupted_run_leaves_whole_files_alone(save: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        save(f"{name}.png", 10)
    written = []

    def interrupted(picture: Image.Image, path: Path, format: str) -> None:
        path.write_bytes(b"half a")
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Inverse())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("names", "targets"),
    [
        (["a.jpg", "b.PNG", "sub/a.webp"], ["a.png", "b.png", "sub/a.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png"]),
        (["a.jpg", "a.bmp", "sub/a.jpg"], ["a.jpg.png", "a.bmp.png", "sub/a.png"]),
        (["A.jpg", "a.bmp"], ["A.jpg.png", "a.bmp.png"]),  # one name on many file systems
    ],
)
def test_every_image_has_a_name_of_its_own(names: list[str], targets: list[str]) -> None:
    assert [str(job.target) for job in restoring.plan([Path(name) for name in names])] == targets


@pytest.mark.parametrize("names", [["a.png", "a.PNG"], ["a.jpg", "a.png", "a.jpg.png"]])
def test_names_that_cannot_be_told_apart_are_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match="would both become"):
        restoring.plan([Path(name) for name in names])


def test_which_files_are_images(save: Callable, tmp_path: Path) -> None:
    for name in ("b.PNG", "a.png", "sub/c.Jpeg.png", ".hidden.png", ".hidden/d.png"):
        save(name, 10)
    for name in ("notes.txt", "a.gif", "README"):
        (tmp_path / "in" / name).write_text("", encoding="utf-8")
    images, others = restoring.find_images(tmp_path / "in")
    assert images == [Path("a.png"), Path("b.PNG"), Path("sub/c.Jpeg.png")]
    assert others == [Path("README"), Path("a.gif"), Path("notes.txt")]


def test_a_folder_without_images_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="input folder not found"):
        restoring.find_images(tmp_path / "absent")
    with pytest.raises(UserError, match="no image in"):
        restoring.find_images(tmp_path)


@pytest.mark.parametrize(("source", "target"), [("a", "a"), ("a", "a/out"), ("a/in", "a"), ("a", "a/../a/b")])
def test_folders_in_one_another_are_refused(tmp_path: Path, source: str, target: str) -> None:
    (tmp_path / "a" / "in").mkdir(parents=True)
    with pytest.raises(UserError, match="must not lie in one another"):
        restoring.check_output(tmp_path / source, tmp_path / target, [], overwrite=True)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    jobs = restoring.plan([Path("a.jpg"), Path("sub/b.jpg")])
    source, target = tmp_path / "in", tmp_path / "out"
    (target / "sub").mkdir(parents=True)
    (target / "other.png").touch()
    restoring.check_output(source, target, jobs, overwrite=False)
    (target / "sub" / "b.png").touch()
    with pytest.raises(UserError, match=r"sub/b\.png would be overwritten; give another output folder, or --overwrite"):
        restoring.check_output(source, target, jobs, overwrite=False)
    (target / "scores.csv").touch()
    with pytest.raises(UserError, match=r"scores\.csv and 1 more would be overwritten"):
        restoring.check_output(source, target, jobs, overwrite=False)
    restoring.check_output(source, target, jobs, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        restoring.check_output(source, target / "other.png", jobs, overwrite=True)


def test_an_output_that_cannot_be_written_is_one_line(save: Callable, tmp_path: Path) -> None:
    save("sub/a.png", 10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file in the way", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write to .*out/sub"):
        run(tmp_path, Inverse())


def test_rounds_of_the_loop() -> None:
    images = torch.rand(4, 3, 8, 8)
    second = images.clone()
    second[1:3] /= 2
    third = second.clone()
    third[2] /= 2
    flags = torch.tensor([False, True, True, True])
    maps = {"sparsity": images[:, :1], "round_1": images, "round_2": second, "round_3": third}
    restoration = Restoration(third, torch.rand(4), flags, torch.rand(4), maps)
    assert restoring.rounds(restoration) == [0, 2, 3, 1]
    assert restoring.rounds(restoration._replace(maps={})) == [None] * 4


def test_rounds_agree_with_how_often_the_gan_regenerated() -> None:
    torch.manual_seed(0)
    restorer = GANRestorer(GANNetworks(channels=3, size=32, width=8), rounds=3, tolerance=0.0).eval()
    images = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        for parameter in restorer.networks.generator.parameters():  # a fresh one changes nothing
            parameter.normal_(std=0.1)
        restorer.threshold = restorer(images).score.median().item()
        flagged = restorer(images).flagged
        assert 0 < flagged.sum() < 6
        counted = restoring.rounds(restorer(images))
        restorer.rounds = 1
        once = restoring.rounds(restorer(images))
    assert once == flagged.int().tolist()
    assert counted == (3 * flagged.int()).tolist(), "with no tolerance every flagged image gets every round"


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, str]:
    """A small classifier and a TRN of it on disk, and parts of one's own in the working directory."""
    torch.manual_seed(0)
    paths = {kind: str(tmp_path / f"{kind}.safetensors") for kind in ("classifier", "trn")}
    network = classifiers.build("resnet9_narrow", datasets.describe("cifar10"))
    description = {"kind": "classifier", "architecture": "resnet9_narrow", "data": "cifar10"}
    save_weights(Path(paths["classifier"]), network.state_dict(), description)
    shape = {"channels": 3, "labels": 10, "width": 8, "blocks": 1}
    description = {"kind": "trn", "data": "cifar10", "network": shape, "classifier": paths["classifier"]}
    save_weights(Path(paths["trn"]), TwoStreamRestorationNetwork(**shape).state_dict(), description)
    return paths


OWN = """
from torch import nn
from gandefense import Restorer
from gandefense.restorers.base import IdentityRestorer
plain = IdentityRestorer
class Reader(IdentityRestorer):
    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier
class Wrong(Restorer):
    def forward(self, images):
        return images
def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_restorers", raising=False)
    (tmp_path / "own_restorers.py").write_text(OWN, encoding="utf-8")
    return "own_restorers"


def test_a_trained_restorer_brings_its_classifier_and_its_images(networks: dict[str, str]) -> None:
    restorer, data = restoring.load(networks["trn"], None)
    assert data == datasets.describe("cifar10") and isinstance(restorer.classifier, nn.Module)


def test_another_classifier_can_be_named(networks: dict[str, str], own: str) -> None:
    restorer, data = restoring.load(networks["trn"], f"{own}.build")
    assert isinstance(restorer.classifier[1], nn.Linear) and data.name == "cifar10"


def test_an_own_restorer_takes_images_of_any_size_unless_a_classifier_says(networks: dict[str, str], own: str) -> None:
    assert restoring.load(f"{own}.plain", None)[1] is None
    assert restoring.load(f"{own}.plain", f"{own}.build")[1] is None
    restorer, data = restoring.load(f"{own}.Reader", networks["classifier"])
    assert data.name == "cifar10" and restorer.classifier is not None


@pytest.mark.parametrize(
    ("name", "classifier", "message"),
    [
        ("{classifier}", None, "is a classifier, not a restorer"),
        ("none", None, "unknown network 'none'"),
        ("cifar10/nothing", None, "unknown network 'cifar10/nothing'"),
        ("{own}.Reader", None, "{own}.Reader wants a classifier; name one with --classifier"),
        ("{own}.Wrong", "{classifier}", "a restorer must give a gandefense.Restoration"),
        ("{trn}", "{trn}", "is a 'trn', not a classifier"),
        ("{trn}", "{other}", "is for 'cifar10', but {other} for 'svhn'"),
    ],
)
def test_mistaken_names_are_one_line(
    networks: dict[str, str], own: str, tmp_path: Path, name: str, classifier: str | None, message: str
) -> None:
    words = {**networks, "own": own, "other": str(tmp_path / "other.safetensors")}
    save_weights(Path(words["other"]), {"weight": torch.zeros(1)}, {"kind": "classifier", "data": "svhn", "architecture": "x"})
    with pytest.raises(UserError) as caught:
        restoring.load(name.format(**words), classifier and classifier.format(**words))
    assert message.format(**words) in str(caught.value) and "\n" not in str(caught.value)


def test_an_own_restorer_that_fails_on_the_way_is_one_line(save: Callable, tmp_path: Path, own: str) -> None:
    save("a.png", 10)
    restorer, _ = restoring.load(f"{own}.Wrong", None)
    jobs = restoring.plan([Path("a.png")])
    options = {"channels": 3, "size": None, "batch_size": 2, "device": torch.device("cpu")}
    with pytest.raises(UserError, match=rf"^{own}\.Wrong: a restorer must give a gandefense\.Restoration"):
        restoring.restore_folder(f"{own}.Wrong", restorer, tmp_path / "in", tmp_path / "out", jobs, **options)


def test_images_too_small_for_filters_are_skipped(save: Callable, tmp_path: Path) -> None:
    save("line.png", 9, (1, 40)), save("good.png", 9, (8, 40))
    summary = run(tmp_path, Inverse(), size=None)
    assert (summary.restored, [str(path) for path, _ in summary.unreadable]) == (1, ["line.png"])
    assert summary.unreadable[0][1] == "40×1 pixels; own needs 8 each way"


@pytest.mark.parametrize("name", ["gaussian:sigma=3", "mean:size=21", "bilateral:size=21", "median:size=21"])
def test_a_filter_skips_what_its_window_does_not_fit_and_restores_the_rest(save: Callable, tmp_path: Path, name: str) -> None:
    save("icon.png", 9, (9, 9)), save("fits.png", 9, (11, 11))
    summary = run(tmp_path, zoo.load_restorer(name, torch.nn.Identity()), size=None)
    assert ([str(path) for path, _ in summary.unreadable], summary.restored) == (["icon.png"], 1)


def test_large_images_come_in_smaller_batches(save: Callable, tmp_path: Path) -> None:
    for i in range(5):
        save(f"{i}.png", i, (160, 120))
    restorer = Inverse()
    run(tmp_path, restorer, size=None, batch_size=None)
    assert [shape[0] for shape in restorer.met] == [4, 1], "4 · 160² pixels are as many as 100 · 32²"


def test_a_long_name_can_be_written(save: Callable, tmp_path: Path) -> None:
    name = f"{'漢' * 83}.png"  # 253 bytes
    save(name, 3)
    assert run(tmp_path, Inverse()).restored == 1
    assert (tmp_path / "out" / name).is_file()


def test_rounds_are_those_that_a_restorer_names_so() -> None:
    images = torch.rand(2, 3, 8, 8)
    maps = {"round_final": images, "round_1": images, "round_3": torch.stack([images[0], images[1] + 1])}
    flagged = torch.tensor([True, True])
    assert restoring.rounds(Restoration(images, torch.zeros(2), flagged, torch.zeros(2), maps)) == [1, 2]
