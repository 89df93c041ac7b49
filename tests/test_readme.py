"""The README's Python examples run as they stand, but on fewer images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gandefense import zoo
from gandefense.data import sources

README = Path(__file__).parent.parent / "README.md"
SHIPPED = {"cifar10/classifier", "cifar10/trn", "cifar10/gan", "cifar10/surrogate", "cifar10/adversarial-small"}


def _examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)


def test_what_the_readme_names_is_shipped() -> None:
    assert set(zoo.names()) >= SHIPPED
    for name in SHIPPED:
        assert (zoo.WEIGHTS / f"{name}.json").is_file(), "every network has a card"


@pytest.mark.slow
def test_python_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (sources.data_root() / "cifar10" / "test_batch.bin").is_file():
        pytest.skip("CIFAR-10 is not on this machine")
    monkeypatch.chdir(tmp_path)
    scope = {"my_classifier": nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()}
    for example in _examples():
        exec(example.replace("limit=100", "limit=10, validation_images=20"), scope)
    assert scope["logits"].shape == (2, 10)
    assert scope["restoration"].images.shape == (2, 3, 32, 32)
    assert 0 <= scope["results"]["worst_case"]["cifar10/trn"]["white_box"]["accuracy"] <= 1
    assert scope["defended"](torch.rand(1, 3, 32, 32)).shape == (1, 10), "somebody else's classifier behind our restorer"


def test_files_that_the_readme_names_exist() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:tools|configs|gandefense)/[\w/.-]+", text))
    assert len(named) > 10
    missing = [name for name in named if not (README.parent / name).exists()]
    assert not missing
