"""tools/restore_images.py, on real test images where they are on this machine."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gandefense import zoo
from gandefense.attacks.suite import AttackSpec, attack
from gandefense.config import DataConfig
from gandefense.data import datasets, sources
from gandefense.data.batches import to_float

ROOT = Path(__file__).parent.parent.parent
GAN = ["--restorer", "cifar10/gan", "--input", "{in}", "--output", "{out}"]
TOOL = str(ROOT / "tools" / "restore_images.py")


@pytest.fixture
def restore(tool: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(ROOT)  # where docs.examples can be imported
    return partial(tool, "restore_images")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of images that anybody may have lying about."""
    random = np.random.default_rng(0)
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)

    def picture(*shape: int) -> Image.Image:
        return Image.fromarray(random.integers(0, 255, shape, np.uint8))

    picture(32, 32, 3).save(source / "fine.png")
    picture(32, 32, 3).save(source / "sub" / "fine.bmp")
    picture(32, 32).save(source / "grey.png")
    picture(120, 90, 3).save(source / "large.jpg")
    (source / "notes.txt").write_text("no image at all", encoding="utf-8")
    return source


def _break(source: Path) -> None:
    (source / "broken.jpeg").write_bytes((source / "large.jpg").read_bytes()[:1500])
    (source / "text.png").write_text("a text under an image's name", encoding="utf-8")


def _scores(target: Path) -> dict[str, dict[str, str]]:
    with (target / "scores.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row for row in csv.DictReader(file)}


def test_a_folder_of_all_kinds(restore: Callable, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    status, out, err = restore("--restorer", "cifar10/gan", "--input", folder, "--output", target, "--batch-size", 3)
    assert status == 0 and "Traceback" not in err
    files = sorted(path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file())
    assert files == ["fine.png", "grey.png", "large.png", "scores.csv", "sub/fine.png"]
    assert {Image.open(target / name).size for name in files if name.endswith(".png")} == {(32, 32)}
    assert "1 image(s) resized to 32×32" in out and "1 image(s) converted to RGB" in out
    assert "1 file(s) of other kinds left alone, such as notes.txt" in out
    assert re.search(r"^\d[\d.e+]* images/s, reading and writing included; at most \d+\.\d GiB of memory$", out, re.MULTILINE)
    assert "4 of 4 image(s) restored" in out and "4/4" in err and "image/s" in err
    rows = _scores(target)
    assert list(rows) == ["fine.png", "grey.png", "large.jpg", "sub/fine.bmp"]
    assert list(rows["fine.png"]) == ["file", "score", "flagged", "level", "rounds", "note"]
    assert rows["large.jpg"]["note"] == "resized to 32×32 from 90×120"
    assert all(row["flagged"] in ("true", "false") and float(row["level"]) > 0 for row in rows.values())
    assert all((row["rounds"] == "0") == (row["flagged"] == "false") for row in rows.values())


def test_unreadable_files_are_listed_and_skipped_and_the_status_says_so(restore: Callable, folder: Path, tmp_path: Path) -> None:
    _break(folder)
    target = tmp_path / "out"
    status, out, err = restore("--restorer", "cifar10/gan", "--input", folder, "--output", target)
    assert status == 1 and "Traceback" not in err
    assert "4 of 6 image(s) restored" in out
    told = [line for line in err.splitlines() if line.startswith("skipped ")]
    assert [line.split(":")[0] for line in told] == ["skipped broken.jpeg", "skipped text.png"]
    assert _scores(target)["text.png"]["note"] == "skipped: no PNG, JPEG, WebP or BMP image"
    assert len(list(target.rglob("*.png"))) == 4


def test_nothing_is_overwritten_unasked(restore: Callable, folder: Path, tmp_path: Path) -> None:
    words = ("--restorer", "docs.examples.my_defence.MedianRestorer", "--input", folder, "--output", tmp_path / "out")
    (tmp_path / "out").mkdir()
    kept = tmp_path / "out" / "grey.png"
    kept.write_text("mine", encoding="utf-8")
    status, out, err = restore(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err == f"error: {kept} would be overwritten; give another output folder, or --overwrite\n"
    assert [path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()] == ["mine"], "nothing was written"
    assert restore(*words, "--overwrite")[0] == 0
    assert Image.open(kept).size == (32, 32)


def test_an_own_restorer_keeps_sizes_and_knows_no_rounds(restore: Callable, folder: Path, tmp_path: Path) -> None:
    name, target = "docs.examples.my_defence.MedianRestorer", tmp_path / "out"
    assert restore("--restorer", name, "--input", folder, "--output", target)[0] == 0
    assert Image.open(target / "large.png").size == (90, 120)
    assert {(row["rounds"], row["level"]) for row in _scores(target).values()} == {("", "")}
    assert (
        restore("--restorer", name, "--classifier", "cifar10/classifier", "--input", folder, "--output", tmp_path / "o")[0] == 0
    )
    assert Image.open(tmp_path / "o" / "large.png").size == (32, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: --restorer, --input, --output; see python tools/restore_images.py --help"),
        (["--restorer", "cifar10/gan"], "the following arguments are required: --input, --output"),
        (["{in}"], "required"),
        ([*GAN, "--batch", "3"], "unrecognized arguments: --batch 3"),
        ([*GAN, "--batch-size", "0"], "--batch-size must be at least 1"),
        ([*GAN, "--batch-size", "x"], "invalid int value: 'x'"),
        ([*GAN, "--device", "gpu"], "unknown device 'gpu'"),
        (["--restorer", "cifar10/gun", "--input", "{in}", "--output", "{out}"], "unknown network 'cifar10/gun'"),
        (["--restorer", "cifar10/classifier", "--input", "{in}", "--output", "{out}"], "is a classifier, not a restorer"),
        (["--restorer", "absent.Part", "--input", "{in}", "--output", "{out}"], "absent.Part: no module absent in"),
        (["--restorer", "cifar10/gan", "--input", "{in}/absent", "--output", "{out}"], "input folder not found: {in}/absent"),
        (["--restorer", "cifar10/gan", "--input", "{in}/notes.txt", "--output", "{out}"], "input folder not found"),
        (["--restorer", "cifar10/gan", "--input", "{in}", "--output", "{in}/out"], "must not lie in one another"),
        (["--restorer", "cifar10/gan", "--input", "{empty}", "--output", "{out}"], "no image in {empty}"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    restore: Callable, folder: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    places = {"in": str(folder), "out": str(tmp_path / "out"), "empty": str(tmp_path / "empty")}
    (tmp_path / "empty").mkdir()
    status, out, err = restore(*(word.format(**places) for word in words))
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ") and message.format(**places) in err
    assert not (tmp_path / "out").exists() and not (folder / "out").exists()


def test_help_says_what_the_statuses_mean(restore: Callable) -> None:
    status, out, err = restore("--help")
    assert (status, err) == (0, "")
    assert "--restorer" in out and "1 some could not be read (they are listed and skipped, the others are restored)" in out


def test_a_real_process_ends_the_same_way(folder: Path, tmp_path: Path, python: Callable) -> None:
    _break(folder)
    done = python("tools/restore_images.py", "--restorer", "cifar10/gan", "--input", folder, "--output", tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (tmp_path / "out" / "scores.csv").is_file()


def test_real_images_clean_and_attacked(restore: Callable, tmp_path: Path) -> None:
    if not (sources.data_root() / "cifar10" / "test_batch.bin").is_file():
        pytest.skip("CIFAR-10 is not on this machine")
    count = 12
    data = datasets.load(DataConfig(limit=count, download=False), "test")
    classifier = zoo.load_classifier("cifar10/classifier")
    clean = to_float(data.images)
    attacked = attack(classifier, clean, data.labels, AttackSpec("pgd", steps=5)).images
    for name, images in (("clean", clean), ("attacked", attacked)):
        (tmp_path / "in" / name).mkdir(parents=True)
        for i, image in enumerate((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(tmp_path / "in" / name / f"{i:02d}.png")
    status, _, err = restore("--restorer", "cifar10/gan", "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert status == 0, err
    rows = _scores(tmp_path / "out")
    assert [row["flagged"] for name, row in rows.items() if name.startswith("attacked")] == ["true"] * count
    assert [row["flagged"] for name, row in rows.items() if name.startswith("clean")].count("true") < count / 2
    restored = [np.array(Image.open(tmp_path / "out" / "attacked" / f"{i:02d}.png")) for i in range(count)]
    restored = torch.from_numpy(np.stack(restored)).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        right = [(classifier(images).argmax(1) == data.labels).sum().item() for images in (attacked, restored)]
    assert right[0] == 0 and right[1] > count / 3, "the files on disk hold what the restorer made"
    untouched = next(name for name, row in rows.items() if name.startswith("clean") and row["flagged"] == "false")
    same = [np.array(Image.open(tmp_path / folder / untouched)) for folder in ("in", "out")]
    assert np.array_equal(*same), "an image that the GAN does not flag leaves as it came"


def test_photographs_are_resized(restore: Callable, tmp_path: Path) -> None:
    faces = sorted((sources.data_root() / "celeba" / "celeba_hq_1024").glob("*.jpg"))[:2]
    if not faces:
        pytest.skip("CelebA-HQ is not on this machine")
    (tmp_path / "in").mkdir()
    for face in faces:
        shutil.copy(face, tmp_path / "in")
    status, out, _ = restore("--restorer", "cifar10/gan", "--input", tmp_path / "in", "--output", tmp_path / "out")
    assert status == 0 and "2 image(s) resized to 32×32" in out
