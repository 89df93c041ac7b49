"""CelebA: what is there, what the tables say, splits that share nobody, and what is said of mistakes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gandefense.config import DataConfig
from gandefense.data import celeba, datasets, decoded, sources
from gandefense.data.batches import content_hash, tensor_hash
from gandefense.errors import UserError
from tests.helpers import small_celeba as small

COUNTS = {"train": 32, "validation": 4, "test": 4}


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("celeba") / "celeba"
    small.write(folder)
    return folder


@pytest.fixture
def root(_made: Path, tmp_path: Path) -> Path:
    """A data root with a copy of the small CelebA that a test may spoil."""
    shutil.copytree(_made, tmp_path / "celeba")
    return tmp_path


def config(root: Path, **settings: object) -> DataConfig:
    return DataConfig("celeba", root=str(root), **{"size": 32, **settings})


@pytest.mark.parametrize("split", COUNTS)
def test_the_official_split_and_its_labels(root: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = datasets.load(config(root), split)
    assert (data.images.shape, data.images.dtype) == ((COUNTS[split], 3, 32, 32), torch.uint8)
    assert data.labels.tolist() == [0, 1] * (COUNTS[split] // 2)
    assert data.index.tolist() == list({"train": range(32), "validation": range(32, 36), "test": range(36, 40)}[split])
    said = f"celeba {split}: {COUNTS[split]} of 40 aligned images in {root / 'celeba/img_align_celeba'}"
    assert f"{said}; none of the 10 people is in two splits\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attributes", "labels", "last"),
    [
        (["Smiling"], [0, 1, 0, 1], "Smiling"),
        (["Male"], [0, 0, 1, 1], "Male"),
        (["Male", "Smiling"], [0, 1, 2, 3], "Male, Smiling"),
        (["Smiling", "Male"], [0, 2, 1, 3], "Smiling, Male"),
        (["Bald", "Smiling", "Male"], [0, 2, 1, 3], "Bald, Smiling, Male"),
    ],
)
def test_several_attributes_become_their_combinations(root: Path, attributes: list[str], labels: list[int], last: str) -> None:
    asked = config(root, attributes=attributes)
    assert datasets.load(asked, "test").labels.tolist() == labels
    classes = datasets.describe(asked).classes
    assert len(classes) == 2 ** len(attributes) and classes[-1] == last
    assert classes[labels[1]] == ", ".join(name if name == "Smiling" else f"not {name}" for name in attributes)


def test_names_of_several_attributes() -> None:
    assert celeba.class_names(["Male", "Smiling"]) == (
        "not Male, not Smiling",
        "not Male, Smiling",
        "Male, not Smiling",
        "Male, Smiling",
    )


@pytest.mark.parametrize("size", celeba.SIZES)
def test_a_name_says_size_and_attributes(size: int) -> None:
    described = datasets.describe(DataConfig("celeba", size=size, attributes=["Male", "5_o_Clock_Shadow"]))
    assert described.name == f"celeba-{size}-Male+5_o_Clock_Shadow" and described.size == size
    assert datasets.describe(described.name) == described
    assert datasets.describe("celeba").name == "celeba-128-Smiling"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attributes": ["smilling"]}, "data.attributes: CelebA has no attribute 'smilling'; did you mean Smiling?"),
        ({"attributes": ["Eye glasses"]}, "CelebA has no attribute 'Eye glasses'; did you mean Eyeglasses?"),
        ({"attributes": ["xyzzy"]}, "CelebA has no attribute 'xyzzy'; known: 5_o_Clock_Shadow, Arched_Eyebrows"),
        ({"attributes": []}, "data.attributes takes 1 … 6 different attributes, got none"),
        ({"attributes": ["Male", "Male"]}, "data.attributes takes 1 … 6 different attributes, got Male, Male"),
        ({"attributes": list(celeba.ATTRIBUTES[:7])}, "data.attributes takes 1 … 6 different attributes"),
        ({"size": 100}, "data.size of celeba must be one of 32, 64, 128, 256, 512, 1024, got 100"),
        ({"split": "random"}, "data.split must be official or identity, got 'random'"),
        ({"images": "raw"}, "data.images must be aligned or hq, got 'raw'"),
        ({"limit": 0}, "data.limit must be at least 1, got 0"),
        ({"images": "hq"}, "none of its 3 images belongs to the test split (data.split=official)"),
        ({"name": "celeba-77-Smiling"}, "data.size of celeba must be one of"),
        ({"name": "celeba-128-Smile"}, "did you mean Smiling?"),
        ({"name": "celeb"}, "unknown data set 'celeb'; known: cifar10, fashion_mnist, svhn, celeba"),
        ({"name": "cifar10", "size": 64}, "data.size: cifar10 has 32×32 pixels"),
        ({"name": "cifar10", "attributes": ["Male"]}, "data.attributes is for data.name=celeba, not for cifar10"),
        ({"name": "cifar10", "split": "identity"}, "data.split is for data.name=celeba, not for cifar10"),
    ],
)
def test_bad_requests_are_refused(root: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        datasets.load(DataConfig(**{"name": "celeba", "root": str(root), "size": 32, **settings}), "test")
    assert message in str(caught.value)
    assert not (root / "decoded").exists()


def _edit(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text(encoding="utf-8").splitlines())) + "\n", encoding="utf-8")


ATTRIBUTES, SPLITS, PEOPLE = (f"celeba/{name}" for name in (celeba.ATTRIBUTE_TABLE, celeba.SPLIT_TABLE, celeba.IDENTITY_TABLE))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "celeba"), "img_align_celeba: No such file or directory. CelebA is not downloaded"),
        (lambda root: shutil.rmtree(root / "celeba/img_align_celeba"), "non-commercial research only"),
        (lambda root: [f.unlink() for f in (root / "celeba/img_align_celeba").iterdir()], "img_align_celeba holds no .jpg file"),
        (lambda root: (root / ATTRIBUTES).unlink(), f"{celeba.ATTRIBUTE_TABLE}: No such file or directory"),
        (lambda root: (root / SPLITS).unlink(), f"{celeba.SPLIT_TABLE}: No such file or directory"),
        (lambda root: _edit(root / ATTRIBUTES, lambda lines: lines[:1]), "does not name the attribute Smiling"),
        (lambda root: _edit(root / ATTRIBUTES, lambda lines: lines[:9]), f"{celeba.ATTRIBUTE_TABLE} has no line for 000008.jpg"),
        (lambda root: _edit(root / ATTRIBUTES, lambda lines: [*lines[:5], lines[5][:-3], *lines[6:]]), "line 6 should be a file"),
        (lambda root: _edit(root / ATTRIBUTES, lambda lines: [line.replace("-1", "0") for line in lines]), "values of 1 or -1"),
        (
            lambda root: _edit(root / SPLITS, lambda lines: [*lines[:3], "000004.jpg"]),
            "line 4 should be a file name and a number",
        ),
        (
            lambda root: _edit(root / SPLITS, lambda lines: [*lines[:-1], "000040.jpg 7"]),
            "000040.jpg is in split 7, known: 0, 1, 2",
        ),
        (lambda root: _edit(root / SPLITS, lambda lines: lines[:38]), "has no line for 000039.jpg and 1 more image(s)"),
        (lambda root: _edit(root / PEOPLE, lambda lines: lines[:39]), f"{celeba.IDENTITY_TABLE} has no line for 000040.jpg"),
        (lambda root: (root / PEOPLE).write_bytes(bytes(range(256))), f"{celeba.IDENTITY_TABLE}: line 1 should be"),
    ],
    ids=range(14),
)
def test_missing_and_damaged_files_are_named(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(UserError) as caught:
        datasets.load(config(root), "test")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_fetching_says_where_to_get_it_and_how_to_lay_it_out() -> None:
    with pytest.raises(UserError) as caught:
        sources.fetch("celeba")
    assert "img_align_celeba/*.jpg, list_attr_celeba.txt, list_eval_partition.txt and identity_CelebA.txt" in str(caught.value)


def test_a_partial_copy_is_fine(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = datasets.load(config(root), "test")
    for name in (*small.names()[:30], small.names()[37]):
        (root / "celeba/img_align_celeba" / name).unlink()
    (root / "celeba/img_align_celeba" / "notes.txt").write_text("no image", encoding="utf-8")
    after = datasets.load(config(root), "test")
    assert torch.equal(after.images, before.images[[0, 2, 3]]) and torch.equal(after.labels, before.labels[[0, 2, 3]])
    assert "celeba test: 3 of 9 aligned images" in capsys.readouterr().out


def test_people_in_two_splits_are_found_and_avoided(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _edit(root / SPLITS, lambda lines: [f"{line[:-1]}{i % 3}" for i, line in enumerate(lines)])
    datasets.load(config(root), "test")
    assert "10 of 10 people are in two splits, such as number 100; data.split=identity avoids it" in capsys.readouterr().out
    seen: dict[str, set[int]] = {}
    for split in COUNTS:
        try:
            seen[split] = {i // small.EACH for i in datasets.load(config(root, split="identity"), split).index.tolist()}
        except UserError as error:  # so few people need not fill every split
            assert "none of its 40 images belongs to" in str(error)
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 10
    assert "none of the 10 people is in two splits" in capsys.readouterr().out


def test_the_identity_split_is_a_matter_of_the_person_alone() -> None:
    splits = [celeba.identity_split(number) for number in range(1, 10_178)]  # the official numbers
    shares = [splits.count(split) / len(splits) for split in celeba.SPLITS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.012)
    assert [celeba.identity_split(number) for number in (2937, 2879, 6145)] == [splits[n - 1] for n in (2937, 2879, 6145)]


def test_without_identities_the_official_split_says_that_it_does_not_know(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / PEOPLE).unlink()
    datasets.load(config(root), "test")
    assert "whether a person is in two splits is not known (no identity_CelebA.txt)" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"identity_CelebA\.txt: No such file"):
        datasets.load(config(root, split="identity"), "test")


@pytest.mark.parametrize("size", [32, 128, 256])
def test_images_are_cut_to_their_middle_and_resized_with_antialiasing(root: Path, size: int) -> None:
    image = Image.open(root / "celeba/img_align_celeba" / small.names()[36]).convert("RGB").crop((0, 20, 178, 198))
    expected = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))
    found = datasets.load(config(root, size=size), "test").images[0]
    assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_antialiasing_keeps_the_mean_of_a_fine_pattern(tmp_path: Path) -> None:
    pattern = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(pattern).save(tmp_path / "a.png")
    pixels, _ = decoded.decoded([tmp_path / "a.png"], size=512, folder=tmp_path / "decoded", name="pattern")
    assert (pixels.float() - 127.5).abs().max() < 4, "without antialiasing it would be black or white"


def test_hq_images_are_reduced_and_have_the_attributes_of_their_names(root: Path) -> None:
    data = datasets.load(config(root, images="hq", size=512), "train")
    assert data.images.shape == (small.HQ, 3, 512, 512) and data.labels.tolist() == [0, 1, 0]
    direct = Image.open(root / "celeba/celeba_hq_1024/000001.jpg").resize((512, 512), Image.Resampling.BICUBIC)
    assert np.array_equal(data.images[0].permute(1, 2, 0).numpy(), np.asarray(direct))


@pytest.mark.parametrize("kept", [0, 700])
def test_a_broken_jpeg_is_named(root: Path, kept: int) -> None:
    path = root / "celeba/img_align_celeba" / small.names()[38]
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError) as caught:
        datasets.load(config(root), "test")
    assert str(caught.value).startswith(f"cannot read {path}: ") and "or remove it" in str(caught.value)
    path.unlink()
    assert len(datasets.load(config(root), "test").labels) == 3


def test_a_dangling_link_is_named(root: Path) -> None:
    path = root / "celeba/img_align_celeba" / small.names()[38]
    path.unlink()
    path.symlink_to(root / "nowhere.jpg")
    with pytest.raises(UserError, match=f"cannot read {path}: No such file or directory"):
        datasets.load(config(root), "test")


# The images decoded once.


def test_decoding_happens_once_and_goes_on_after_a_kill(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "CHUNK", 8)
    read, calls = decoded.read_image, []

    def counted(path: Path, **settings: object) -> tuple[torch.Tensor, dict[str, str]]:
        if len(calls) == 19:
            raise KeyboardInterrupt
        calls.append(path.name)
        return read(path, **settings)

    monkeypatch.setattr(decoded, "read_image", counted)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        datasets.load(config(root), "train")
    monkeypatch.setattr(decoded, "read_image", lambda path, **settings: (calls.append(path.name), read(path, **settings))[1])
    again = datasets.load(config(root), "train")
    assert calls[19:] == small.names()[16:32], "the first two chunks were on disk"
    del calls[:]
    third = datasets.load(config(root), "train")
    assert not calls and torch.equal(third.images, again.images)
    whole = torch.stack(
        [read(root / "celeba/img_align_celeba" / name, channels=3, size=32, crop=True)[0] for name in small.names()[:32]]
    )
    assert torch.equal(third.images, whole)


def test_a_changed_image_is_decoded_again(root: Path) -> None:
    before = datasets.load(config(root), "test")
    path = root / "celeba/img_align_celeba" / small.names()[36]
    Image.new("RGB", (178, 218), "white").save(path)
    after = datasets.load(config(root), "test")
    assert (after.images[0] > 250).all() and torch.equal(after.images[1:], before.images[1:])
    assert content_hash(before) != content_hash(after)


def test_contents_are_told_apart_without_reading_the_pixels(root: Path) -> None:
    data = datasets.load(config(root), "test")
    assert content_hash(data) == content_hash(data._replace(images=torch.zeros(1))), "the images themselves are not looked at"
    swapped = data._replace(hashes=data.hashes[[1, 0, 2, 3]])
    assert len({content_hash(one) for one in (data, swapped, data._replace(labels=1 - data.labels))}) == 3
    held = data._replace(hashes=None)
    assert content_hash(held) == tensor_hash(held.images, held.labels, held.index)


def test_a_limit_decodes_only_what_it_leaves(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, whole = datasets.load(config(root, limit=5), "train", seed=3), datasets.load(config(root), "train")
    assert sorted(path.name.rsplit("-", 1)[0] for path in (root / "decoded").iterdir()) == ["celeba-aligned-train-32"] * 2
    assert (
        len(few.labels) == 5
        and torch.equal(few.images, whole.images[few.index])
        and torch.equal(few.labels, whole.labels[few.index])
    )
    assert "; 5 of them taken\n" in capsys.readouterr().out
    assert few.index.tolist() == np.random.default_rng(3).permutation(32)[:5].tolist()


def test_rows_are_read_from_disk_as_they_are_needed(root: Path) -> None:
    data = datasets.load(config(root), "train")
    chosen = torch.tensor([5, 0, 31])
    assert torch.equal(data.images[chosen], torch.stack([data.images[i] for i in (5, 0, 31)]))
    path = next((root / "decoded").iterdir()) / "images.npy"
    mapped = np.load(path, mmap_mode="r+")
    mapped[0] = 7
    mapped.flush()
    assert (data.images[0] == 7).all(), "nothing of it was held in memory"


def test_a_root_that_cannot_be_written_says_what_to_do(root: Path) -> None:
    (root / "decoded").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write the decoded images .*; set data.root or GANDEFENSE_DATA to a folder"):
        datasets.load(config(root), "test")


def test_the_real_images_where_they_are() -> None:
    folder = sources.data_root() / "celeba"
    if not (folder / "img_align_celeba").is_dir():
        pytest.skip("GANDEFENSE_DATA has no celeba")
    found = {split: celeba.listed(folder, split, attributes=["Smiling"]) for split in COUNTS}
    assert all(0.3 < listed.labels.mean() < 0.6 for listed in found.values()), "about every second face smiles"
    assert all("is in two splits" in listed.told and "none of the" in listed.told for listed in found.values())
