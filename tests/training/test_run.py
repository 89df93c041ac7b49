"""Run folders, checkpoints and logs."""

from __future__ import annotations

import json
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from gandefense import precision
from gandefense.config import RunConfig, build
from gandefense.errors import UserError
from gandefense.training import state as training_state
from gandefense.training.gan_config import GANConfig
from gandefense.training.run import Run, arithmetic, check_finite, open_run
from gandefense.training.state import Means, choose_device, exponential_average, seed_everything
from gandefense.weights_io import load_weights


@dataclass
class Example:
    run: RunConfig = field(default_factory=RunConfig)
    width: int = 3
    resume: str | None = None


@pytest.fixture
def config(tmp_path: Path) -> Example:
    return Example(run=RunConfig(folder=str(tmp_path / "runs"), name="example", seed=3))


@pytest.fixture
def run(config: Example) -> Run:
    return Run.start("example", config, config.run)


def _parts() -> dict[str, object]:
    """A network that has been trained for a few steps, with its average and optimiser."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    average = exponential_average(network, 0.9)
    optimiser = torch.optim.Adam(network.parameters())
    for _ in range(3):
        network(torch.randn(8, 3)).square().sum().backward()
        optimiser.step()
        average.update_parameters(network)
    return {"network": network, "average": average, "optimiser": optimiser}


def _flat(value: object, path: str = "") -> dict[str, object]:
    """Nested containers as one dictionary of leaves, tensors as lists."""
    if isinstance(value, dict):
        return {name: leaf for key, item in value.items() for name, leaf in _flat(item, f"{path}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return _flat(dict(enumerate(value)), path)
    return {path: value.tolist() if isinstance(value, torch.Tensor) else value}


def _resumed(run: Run, config: Example) -> Run:
    run.close()  # one process would hold the folder, so another could not
    return Run.resume(run.folder, "example", config, config.run)


def test_run_folders_are_numbered_and_hold_their_config(config: Example) -> None:
    folders = [Run.start("example", config, config.run).folder for _ in range(3)]
    assert [folder.name for folder in folders] == ["00000-example", "00001-example", "00002-example"]
    saved = Run.saved_config(folders[1], "example")
    assert build(Example, saved) == config
    assert OmegaConf.load(folders[1] / "config.yaml").kind == "example"


def test_numbers_go_on_after_the_highest_and_nothing_is_overwritten(config: Example) -> None:
    parent = Path(config.run.folder)
    for name in ("00007-other", "00003-example", "notes", "123-short"):
        (parent / name).mkdir(parents=True)
    (parent / "00007-other" / "kept").write_text("kept", encoding="utf-8")
    assert Run.start("example", config, config.run).folder.name == "00008-example"
    assert (parent / "00007-other" / "kept").read_text(encoding="utf-8") == "kept"


def test_runs_that_start_together_get_folders_of_their_own(config: Example) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: Run.start("example", config, config.run).folder, range(24)))
    assert len(set(folders)) == 24
    assert all(Run.saved_config(folder, "example") for folder in folders)


def test_a_folder_that_cannot_be_made_is_one_line(config: Example, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    config.run.folder = str(tmp_path / "file")
    with pytest.raises(UserError, match="cannot make a folder in"):
        Run.start("example", config, config.run)


def test_the_seed_decides_what_is_drawn() -> None:
    def draw(seed: int) -> tuple:
        seed_everything(seed)
        return random.random(), np.random.random(), torch.rand(1).item()

    assert draw(5) == draw(5)
    assert all(first != second for first, second in zip(draw(5), draw(6), strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no run folder"),
        ("kind: [", "its config.yaml is damaged"),
        ("", "its config.yaml is damaged"),
        ("width: 3\n", "its config.yaml is damaged"),
        ("kind: other\n", r"a run of kind 'other', not 'example'; use tools/train_other\.py"),
    ],
)
def test_what_is_no_run_of_this_kind_is_not_resumed(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        Run.saved_config(tmp_path, "example")
    assert f"resume={tmp_path}" in str(caught.value)


def test_checkpoint_round_trip(run: Run, config: Example) -> None:
    parts = _parts()
    run.restore(**parts)
    run.step, run.extra = 17, {"best": 0.5, "history": [1, 2]}
    run.save()
    expected = {name: _flat(part.state_dict()) for name, part in parts.items()}
    drawn = (random.random(), np.random.normal(), torch.rand(3).tolist())

    others = _parts()
    assert _flat(others["network"].state_dict()) != expected["network"]
    resumed = _resumed(run, config)
    resumed.restore(**others)
    assert (resumed.step, resumed.extra) == (17, {"best": 0.5, "history": [1, 2]})
    assert {name: _flat(part.state_dict()) for name, part in others.items()} == expected
    assert (random.random(), np.random.normal(), torch.rand(3).tolist()) == drawn, "random states come back too"


def test_a_checkpoint_holds_tensors_and_plain_containers_only(run: Run) -> None:
    run.restore(**_parts())
    run.save()
    saved = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    assert saved["kind"] == "example"
    assert saved["config"]["width"] == 3
    assert set(saved["parts"]) == {"network", "average", "optimiser"}


def test_random_states_round_trip() -> None:
    np.random.normal()  # leaves a second draw waiting inside numpy's generator
    states = training_state.random_states()
    first = (random.random(), np.random.normal(), np.random.random(), torch.randn(2).tolist())
    training_state.restore_random_states(states)
    assert (random.random(), np.random.normal(), np.random.random(), torch.randn(2).tolist()) == first


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "pickle", "other kind", "other parts", "other shapes"])
def test_a_damaged_or_foreign_checkpoint_is_named_and_never_run(run: Run, config: Example, tmp_path: Path, damage: str) -> None:
    path, sprung = run.folder / "checkpoint.pt", tmp_path / "sprung"
    run.restore(**_parts())
    run.save()
    whole = path.read_bytes()
    if damage == "other kind":
        run.kind = "another"
        run.save()
    elif damage == "other parts":
        run.parts = {"network": run.parts["network"]}
        run.save()
    elif damage == "other shapes":
        run.parts = {**run.parts, "network": nn.Linear(2, 2)}
        run.save()
    else:
        path.write_bytes(
            {"empty": b"", "half": whole[: len(whole) // 2], "garbage": b"x" * 500, "pickle": pickle.dumps(_Trap(sprung))}[damage]
        )
    with pytest.raises(UserError, match="is damaged or of another run") as caught:
        _resumed(run, config).restore(**_parts())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not sprung.exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_whole(run: Run, config: Example) -> None:
    run.restore(**_parts())
    run.step = 4
    run.save()
    run.step, run.extra = 5, {"unpicklable": lambda: None}
    with pytest.raises(Exception, match="pickle"):
        run.save()
    resumed = _resumed(run, config)
    resumed.restore(**_parts())
    assert resumed.step == 4
    assert [path.name for path in run.folder.iterdir() if "checkpoint" in path.name] == ["checkpoint.pt"]


def test_the_log_is_cut_back_to_the_checkpoint(run: Run, config: Example) -> None:
    run.restore(**_parts())
    for step in range(1, 9):
        run.step = step
        run.log({"loss": 1 / step})
        if step == 5:
            run.save()
    path = run.folder / "stats.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')  # the process was killed while it wrote
    resumed = _resumed(run, config)
    resumed.restore(**_parts())
    resumed.step = 6
    resumed.log({"loss": 0.0})
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 0.0]


def test_without_a_checkpoint_a_resumed_run_starts_its_log_again(run: Run, config: Example) -> None:
    run.step = 3
    run.log({"loss": 1.0})
    resumed = _resumed(run, config)
    resumed.restore(**_parts())
    assert resumed.step == 0
    assert (run.folder / "stats.jsonl").read_text(encoding="utf-8") == ""


def test_finish_writes_the_weights_with_their_recipe(run: Run, config: Example) -> None:
    parts = _parts()
    run.restore(**parts)
    assert not run.finished
    path = run.finish(parts["network"].state_dict(), {"kind": "example"})
    assert run.finished
    tensors, metadata = load_weights(path)
    assert _flat(tensors) == _flat(parts["network"].state_dict())
    assert build(Example, metadata["config"]) == config
    assert metadata["kind"] == "example"
    assert metadata["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("every", [1, 4])
def test_checkpoints_are_due_every_so_many_steps(run: Run, every: int) -> None:
    run.settings.checkpoint_every = every
    due = []
    for run.step in range(1, 13):
        if run.checkpoint_due():
            due.append(run.step)
    assert due == list(range(every, 13, every))


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_stops_the_run(run: Run, loss: float) -> None:
    means = Means()
    means.add(loss=torch.tensor(1.0), accuracy=torch.tensor(float("nan")))
    check_finite(means, run)
    run.step = 12
    means.add(loss=torch.tensor(loss))
    with pytest.raises(UserError, match=r"the loss became .* at step 12 of .*00000-example"):
        check_finite(means, run)


def test_means_are_taken_over_the_steps_since_the_last_time() -> None:
    means = Means()
    for value in (1.0, 2.0, 6.0):
        means.add(loss=torch.tensor(value))
    assert (means.steps, means.take()) == (3, {"train/loss": 3.0})
    means.add(loss=torch.tensor(5.0))
    assert means.take("student/") == {"student/loss": 5.0}


def test_weights_that_are_no_numbers_are_never_saved(run: Run) -> None:
    parts = _parts()
    run.restore(**parts)
    run.save()
    before = (run.folder / "checkpoint.pt").read_bytes()
    parts["network"][0].weight.data[0, 0] = float("inf")
    with pytest.raises(UserError, match="weights of network are no longer finite"):
        run.save()
    assert (run.folder / "checkpoint.pt").read_bytes() == before


def test_a_second_process_is_refused_and_a_closed_run_is_free(run: Run, config: Example) -> None:
    with pytest.raises(UserError, match="in use by another process"):
        Run.resume(run.folder, "example", config, config.run)
    run.close()
    Run.resume(run.folder, "example", config, config.run).close()


def test_the_average_follows_the_network_and_its_buffers() -> None:
    network = nn.BatchNorm1d(1, momentum=1.0)
    average = exponential_average(network, 0.75)
    average.update_parameters(network)
    network.weight.data.fill_(5.0)
    network.running_mean.fill_(4.0)
    average.update_parameters(network)
    decay = min(0.75, (1 + 1) / (10 + 1))  # warmed up
    assert average.module.weight.item() == pytest.approx(decay * 1 + (1 - decay) * 5)
    assert average.module.running_mean.item() == pytest.approx((1 - decay) * 4)
    for _ in range(40):
        average.update_parameters(network)
    network.weight.data.fill_(9.0)
    before = average.module.weight.item()
    average.update_parameters(network)
    assert average.module.weight.item() == pytest.approx(0.75 * before + 0.25 * 9, rel=1e-5), "full decay later on"


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="unknown device 'gpu'; known: auto, cpu, cuda, cuda:N"):
        choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="torch sees 0 CUDA device"):
            choose_device("cuda:1")
    if not torch.backends.mps.is_available():
        with pytest.raises(UserError, match="no Metal device"):
            choose_device("mps")


def test_a_run_is_not_gone_on_with_in_another_arithmetic(config: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """precision: auto is bf16 on one machine and float32 on the next."""
    monkeypatch.setattr(precision, "_computes_bf16", lambda device: False)
    assert list(arithmetic(GANConfig(), torch.device("cpu")).values()) == ["float32", "float32"], "of the attacked set, too"
    made = open_run("example", config, config.run, None)
    made.close()
    open_run("example", config, config.run, str(made.folder)).close()
    monkeypatch.setattr(precision, "_computes_bf16", lambda device: True)
    with pytest.raises(UserError, match=r"what run\.precision comes to on this device changed since this run was started"):
        open_run("example", config, config.run, str(made.folder))


def test_open_run_makes_or_opens(config: Example, capsys: pytest.CaptureFixture[str]) -> None:
    made = open_run("example", config, config.run, None)
    made.close()
    opened = open_run("example", config, config.run, str(made.folder))
    assert opened.folder == made.folder
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"run folder: {made.folder}"
    assert second.startswith("resuming")
    assert second.endswith(str(made.folder))
    assert len(list(Path(config.run.folder).iterdir())) == 1
