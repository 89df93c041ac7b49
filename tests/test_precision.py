from __future__ import annotations

import pytest
import torch
from torch import nn

from gandefense import precision as precisions
from gandefense.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_autocast(precision: str, dtype: torch.dtype) -> None:
    with precisions.autocast(CPU, precision):
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == dtype


def test_unknown_precision() -> None:
    with pytest.raises(UserError, match="unknown precision 'fp16'; known: auto, bf16, float32"):
        precisions.autocast(CPU, "fp16")


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [((), "float32"), (("_is_avx512_bf16_supported",), "bf16"), (("_is_amx_tile_supported",), "bf16")],
)
def test_auto_takes_bf16_only_where_a_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, instructions: tuple[str, ...], expected: str
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions, raising=False)
    assert precisions.resolve(CPU, "auto") == expected
    assert precisions.resolve(CPU, "bf16") == "bf16"
    assert precisions.resolve(CPU, "float32") == "float32"
