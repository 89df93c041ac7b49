"""Plots: drawn from every figure there is, without touching pyplot; TensorBoard gets the same numbers."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gandefense.evaluation import plots
from tests.helpers import results as made


def picture(data: bytes) -> np.ndarray:
    """A PNG as (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def has_colour(data: bytes, colour: str) -> bool:
    """Whether some pixel of a PNG has exactly this colour."""
    return bool((picture(data) == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).any())


def test_draws_every_curve_and_a_roc_for_every_detector() -> None:
    before = dict(matplotlib.rcParams)
    modules = set(sys.modules)
    found = plots.draw(made.complete())
    assert [(plot.name, plot.table) for plot in found] == [
        ("curve_eps", "curve_eps"),
        ("curve_steps", "curve_steps"),
        ("curve_eot", "curve_eot"),
        ("roc_00_cifar10_trn", "detection"),
        ("roc_01_cifar10_gan", "detection"),
    ]
    for plot in found:
        shape = picture(plot.png).shape
        assert shape[0] > 700 and shape[1] > 1000, "sharp at twice the size it is shown at"
        assert picture(plot.png)[0, 0].tolist() == [255, 255, 255], "white, whatever is behind it"
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in set(sys.modules) - modules


def test_every_restorer_has_a_colour_of_its_own_in_every_plot() -> None:
    results = made.complete()
    eps, _, eot = plots.KINDS
    curves = plots.curves_of(results, eps)
    assert list(curves) == ["none", made.TRN, made.GAN, made.RANDOM], "the classifier alone first"
    looks = plots.looks_of(results["curves"])
    colours = [looks[name][0] for name in curves]
    assert len(set(colours)) == 4 and colours[0] == plots.GREY
    drawn = {plot.name: plot.png for plot in made.drawn()}
    assert all(has_colour(drawn[eps.name], colour) for colour in colours)
    # grey is in every plot's lettering, so it tells nothing
    assert [has_colour(drawn[eot.name], colour) for colour in colours[1:]] == [False, False, True]


def test_more_lines_than_colours_are_drawn() -> None:
    curve = made.complete()["curves"][made.TRN]["eps"]
    curves = {f"restorer {i}": curve for i in range(9)}
    assert plots.accuracy_plot(plots.KINDS[0], curves, plots.looks_of(curves), None)
    entries = made.complete()["detection"][made.TRN]["attacks"]
    entry = next(entry for entry in entries if entry["roc"])
    assert plots.roc_plot("trn", [entry] * 30)


@pytest.mark.parametrize("values", [[0.0], [8 / 255], [0.0, 8 / 255], [1 / 255, 2 / 255], [0.5 / 255, 1.0]])
def test_any_number_of_points_can_be_drawn(values: list[float]) -> None:
    points = [{"eps": value, "accuracy": 0.5, "ci95": [0.4, 0.6]} for value in values]
    curve = {"title": "pgd", "view": "exact", "n": 9, "points": points}
    name = "$a_b$ \\frac"  # no formula
    assert plots.accuracy_plot(plots.KINDS[0], {name: curve}, plots.looks_of([name]), 10)


@pytest.mark.parametrize(
    ("places", "scale", "shown"),
    [
        ([1, 2, 3, 4], "linear", [1, 2, 3, 4]),
        ([1, 10, 100], "log", [1, 10, 100]),
        ([0, 1, 2, 64], "symlog", [0, 1, 2, 64]),
        ([0, 100, 101, 200], "linear", [0, 100, 200]),  # 101 would run into 100
    ],
)
def test_ticks_stand_at_the_points(places: list[float], scale: str, shown: list[float]) -> None:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    plots._place_ticks(axes, places)
    assert axes.get_xscale() == scale
    assert axes.get_xticks().tolist() == shown
    assert axes.get_xlim() == (places[0], places[-1])


@pytest.mark.parametrize(
    "results", [{"data": {}}, {"data": {}, "curves": {}, "detection": {}}, {"data": {}, "curves": {"a": {}}}]
)
def test_nothing_to_draw(results: dict[str, Any]) -> None:
    assert plots.draw(results) == []


def test_without_matplotlib_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots.importlib.util, "find_spec", lambda name: None)
    assert plots.draw(made.complete()) == []


def test_equal_results_give_equal_files() -> None:
    only = {**made.complete(), "detection": {}}
    only["curves"] = {name: {"eps": curves["eps"]} for name, curves in only["curves"].items()}
    (plot,) = plots.draw(only)
    assert plot.png == next(other.png for other in made.drawn() if other.name == plot.name)


def test_curves_and_pictures_go_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.full((3, 5, 3), 200, dtype=np.uint8)).save(tmp_path / "pictures" / "grey.png")
    (tmp_path / "tensorboard" / "stale").mkdir(parents=True)
    results = made.complete()
    results["curves"] = {**results["curves"], "../../outside": results["curves"].pop(made.GAN)}
    plots.log_curves(tmp_path, results)

    def events(name: str) -> EventAccumulator:
        accumulator = EventAccumulator(str(tmp_path / "tensorboard" / name))
        accumulator.Reload()
        return accumulator

    found = events("runs_00007-random_resize")
    assert found.Tags()["scalars"] == ["accuracy/eps", "accuracy/steps", "accuracy/eot"]
    logged = [(event.step, pytest.approx(event.value)) for event in found.Scalars("accuracy/eps")]
    points = results["curves"][made.RANDOM]["eps"]["points"]
    assert [(round(255 * point["eps"]), point["accuracy"]) for point in points] == logged
    assert [event.step for event in found.Scalars("accuracy/steps")] == [1, 2, 5, 10, 20, 100]
    assert [event.step for event in found.Scalars("accuracy/eot")] == [1, 2, 5, 10, 20, 50]
    assert events("none").Tags()["scalars"] == ["accuracy/eps", "accuracy/steps"]
    assert events("outside").Tags()["scalars"], "a path as a name stays within the folder"
    (image,) = events("pictures").Images("grey")
    assert (image.width, image.height) == (5, 3)
    assert not (tmp_path / "tensorboard" / "stale").exists(), "an earlier report's events would be drawn as well"


def test_nothing_to_log_leaves_no_folder(tmp_path: Path) -> None:
    plots.log_curves(tmp_path, {})
    assert list(tmp_path.iterdir()) == []
