"""Networks on disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gandefense.errors import UserError
from gandefense.files import write_atomically, write_text
from gandefense.weights_io import fill, load_weights, save_weights

METADATA = {"kind": "classifier", "nested": {"eps": 8 / 255, "names": ["ä", "b"]}, "none": None}


def test_round_trip(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(3, 4),
        "scalar": torch.tensor(2.5),
        "whole": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "strided": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "transposed": torch.randn(3, 4).t(),
    }
    save_weights(tmp_path / "a.safetensors", tensors, METADATA)
    loaded, metadata = load_weights(tmp_path / "a.safetensors")
    assert metadata == METADATA
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(10).to(dtype)
    save_weights(tmp_path / "a.safetensors", {"x": tensor}, {})
    loaded = load_weights(tmp_path / "a.safetensors")[0]["x"]
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded, tensor.float())


def test_a_writer_that_fails_leaves_the_old_file_whole_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n", encoding="utf-8")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stays_readable_while_the_new_one_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("new", encoding="utf-8")
        seen.append(path.read_text(encoding="utf-8"))

    write_atomically(path, write)
    assert (seen, path.read_text(encoding="utf-8"), list(tmp_path.iterdir())) == (["old"], "new", [path])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"weights not found: .*absent"):
        load_weights(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, -1], ids=["empty", "length", "header", "half", "all but one byte"])
def test_truncated_file_is_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "a.safetensors"
    save_weights(path, {"x": torch.randn(100)}, METADATA)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="is not a whole safetensors file") as caught:
        load_weights(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        None,
        {"format": "pt"},
        {"format": "gandefense-1"},
        {"format": "gandefense-1", "gandefense": "{"},
        {"format": "x", "gandefense": "{}"},
    ],
)
def test_foreign_file_is_refused(tmp_path: Path, header: dict[str, str] | None) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "a.safetensors", metadata=header)
    with pytest.raises(UserError, match="holds no gandefense network"):
        load_weights(tmp_path / "a.safetensors")


class _Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dump", [pickle.dumps, "torch"], ids=["pickle", "torch.save"])
def test_a_renamed_pickle_is_refused_and_not_run(tmp_path: Path, dump: object) -> None:
    path, sprung = tmp_path / "a.safetensors", tmp_path / "sprung"
    if dump == "torch":
        torch.save(_Trap(sprung), path)
    else:
        path.write_bytes(pickle.dumps(_Trap(sprung)))
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        load_weights(path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(_Trap(sprung)))
    assert sprung.exists(), "the trap itself works"


@pytest.mark.parametrize(
    "tensors",
    [{}, {"weight": torch.zeros(2, 3)}, {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, {"other": torch.zeros(1)}],
)
def test_weights_that_do_not_fit_are_refused_in_one_line(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UserError, match=r"^here\.safetensors does not fit") as caught:
        fill(nn.Linear(3, 2), tensors, source="here.safetensors")
    assert "\n" not in str(caught.value)
