"""Picture strips: what is in which column, right to the pixel."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from gandefense.attacks.suite import AttackSpec
from gandefense.evaluation import figures
from gandefense.evaluation.cells import Cell

NAMES = ("cat", "dog")


def pixels(data: bytes) -> torch.Tensor:
    """A PNG's bytes as (3, H, W) uint8."""
    picture = Image.open(io.BytesIO(data))
    return torch.tensor(list(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3).permute(2, 0, 1)


def test_png_keeps_every_pixel() -> None:
    picture = torch.randint(0, 256, (3, 5, 7))
    assert torch.equal(pixels(figures.png(picture / 255)), picture.byte())


def test_row_enlarges_to_squares() -> None:
    picture = torch.rand(3, 2, 2)
    drawn = figures.row([picture, torch.zeros(1, 2, 2)], 3)
    assert drawn.shape == (3, 3 + 6 + 3, 3 + 6 + 3 + 6 + 3)  # padding is one enlarged pixel
    assert torch.equal(drawn[:, 3:6, 3:6], picture[:, :1, :1].expand(3, 3, 3))
    assert drawn[:, 3:9, 12:18].sum() == 0


@pytest.mark.parametrize(("removed", "shown"), [(0.0, 0.5), (0.02, 0.7), (-0.02, 0.3), (0.4, 1.0), (-0.4, 0.0)])
def test_residual_is_grey_where_nothing_was_removed(removed: float, shown: float) -> None:
    attacked = torch.full((1, 3, 2, 2), 0.5)
    assert figures.residual_picture(attacked, attacked - removed).unique().tolist() == [pytest.approx(shown)]


def test_panel_shows_what_a_restorer_offers() -> None:
    clean = torch.rand(2, 3, 4, 4)
    pictures = {
        "attacked": torch.rand(3, 3, 4, 4),  # one image more than is shown
        "restored": torch.rand(3, 3, 4, 4),
        "map cleaned": torch.rand(3, 3, 4, 4),
        "map round_1": torch.rand(3, 3, 4, 4),
        "map sparsity": torch.rand(3, 1, 4, 4),
        "map residual": torch.rand(3, 3, 4, 4),
        "map gradient_maps": torch.rand(3, 6, 4, 4),
    }
    classes = {"label": [0, 1, 1], "clean": [0, 1, 1], "attacked": [1, 1, 0], "restored": [0, 0, 1]}
    cell = Cell("cifar10/trn", "white_box", "exact", AttackSpec("pgd"))
    panel = figures.panel(3, cell, clean, pictures, {name: torch.tensor(values) for name, values in classes.items()}, NAMES)
    assert panel.columns == ["clean", "attacked", "restored", "removed ×10", "cleaned", "round 1", "sparsity map"]
    assert [strip.captions[:3] for strip in panel.strips] == [["cat", "dog", "cat"], ["dog", "dog", "cat"]]
    assert [strip.right[:4] for strip in panel.strips] == [[True, False, True, None], [True, True, False, None]]
    assert [strip.captions for strip in panel.map_strips] == [list(NAMES)] * 2
    assert panel.title == "cifar10/trn — white_box, exact: pgd-20 8/255"
    assert panel.name == "03_cifar10_trn_white_box_exact_pgd-20_8_255"
    # two rows of seven 4 × 4 pictures, enlarged and padded by 4
    assert pixels(panel.png).shape == (3, 2 * (16 + 2 * 4), 7 * (16 + 4) + 4)
    assert torch.equal(pixels(panel.png)[:, 4, 4], (clean[0, :, 0, 0] * 255).round().byte())


def test_gradient_maps_by_rank_have_no_class_names() -> None:
    pictures = {
        "attacked": torch.rand(1, 3, 4, 4),
        "restored": torch.rand(1, 3, 4, 4),
        "map gradient_maps": torch.zeros(1, 9, 4, 4),
    }
    classes = {name: torch.tensor([0]) for name in ("label", "clean", "attacked", "restored")}
    panel = figures.panel(0, Cell("a", "gray_box", "oblivious"), torch.rand(1, 3, 4, 4), pictures, classes, NAMES)
    assert panel.map_strips[0].captions == ["rank 1", "rank 2", "rank 3"]
    assert figures.label_maps(pictures, 3).unique().tolist() == [0.5], "no gradient is grey"
    assert figures.label_maps({}, 3) is None


@pytest.mark.parametrize(
    ("cell", "title"),
    [
        (Cell("trn", "gray_box", "oblivious"), "trn — gray_box: clean"),
        (Cell("trn", "gray_box", "oblivious", AttackSpec("gaussian[-1,1]", eps=0.2)), "trn — gray_box: gaussian[-1,1] 0.2"),
        (Cell("trn", "black_box", "query", AttackSpec("square")), "trn — black_box, query: square-1000 8/255"),
        (Cell("trn", "black_box", "transfer: other", AttackSpec("fgsm")), "trn — black_box, transfer: other: fgsm 8/255"),
    ],
)
def test_a_panel_says_what_it_shows(cell: Cell, title: str) -> None:
    images = torch.rand(1, 3, 4, 4)
    classes = {name: torch.tensor([0]) for name in ("label", "clean", "attacked", "restored")}
    assert figures.panel(0, cell, images, {"attacked": images, "restored": images}, classes, NAMES).title == title


def test_long_names_make_file_names_that_a_disk_takes(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 4, 4)
    classes = {name: torch.tensor([0]) for name in ("label", "clean", "attacked", "restored")}
    cell = Cell("a/" * 100, "black_box", f"transfer: {'b/' * 100}", AttackSpec("fgsm"))
    panels = [figures.panel(i, cell, images, {"attacked": images, "restored": images}, classes, NAMES) for i in range(2)]
    for panel in panels:
        (tmp_path / f"{panel.name}.png").write_bytes(panel.png)
    assert len(list(tmp_path.iterdir())) == 2
