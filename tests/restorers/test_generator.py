"""The generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.generator import Generator
from gandefense.restorers.layers import NORMS, norm_layer


def _generator(**options: object) -> Generator:
    """A small generator in eval mode; its output layer is not zero, but small enough that nothing is clipped."""
    generator = Generator(**{"channels": 3, "size": 32, "width": 8, **options}).eval()
    nn.init.normal_(generator.out.weight, std=0.005)
    return generator


@pytest.fixture
def cleaned() -> Tensor:
    return torch.rand(2, 3, 32, 32) * 0.4 + 0.3


@pytest.fixture
def code() -> Tensor:
    return torch.rand(2, 128)


@pytest.fixture
def level() -> Tensor:
    return torch.tensor([0.05, 0.3])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_it_starts_as_the_identity(cleaned: Tensor, code: Tensor, level: Tensor, norm: str, training: bool) -> None:
    generator = Generator(channels=3, size=32, width=8, norm=norm).train(training)
    assert torch.equal(generator(cleaned, code, level), cleaned)


@pytest.mark.parametrize(("size", "halvings"), [(8, 1), (16, 1), (32, 2), (64, 3), (128, 4), (256, 5), (512, 6), (1024, 6)])
def test_depth_follows_the_size(size: int, halvings: int) -> None:
    generator = Generator(channels=3, size=size, width=2, norm="batch")
    assert (len(generator.down), len(generator.up)) == (halvings, halvings)


@pytest.mark.parametrize(("channels", "size", "norm"), [(3, 32, "batch"), (1, 64, "group"), (3, 256, "group")])
def test_one_code_serves_every_size(channels: int, size: int, norm: str) -> None:
    cleaned = torch.rand(1, channels, size, size) * 0.4 + 0.3
    with torch.no_grad():
        made = _generator(channels=channels, size=size, norm=norm)(cleaned, torch.rand(1, 128), torch.rand(1))
    assert made.shape == cleaned.shape
    assert not torch.equal(made, cleaned)


def test_width_doubles_at_each_halving_up_to_eight_times() -> None:
    generator = Generator(channels=3, size=512, width=2, norm="batch")
    assert [block.conv2.out_channels for block in generator.down] == [4, 8, 16, 16, 16, 16]


def test_image_code_and_level_all_condition_the_output(cleaned: Tensor, code: Tensor, level: Tensor) -> None:
    generator = _generator()
    with torch.no_grad():
        made = generator(cleaned, code, level) - cleaned
        assert made.abs().max() > 1e-3
        for changed in (
            generator(cleaned, code.flip(1), level) - cleaned,
            generator(cleaned, code, level + 0.2) - cleaned,
            generator(cleaned.flip(3), code, level) - cleaned.flip(3),
        ):
            assert not torch.allclose(made, changed, rtol=0, atol=1e-5)


def test_each_image_is_conditioned_on_its_own_code_and_level(cleaned: Tensor, code: Tensor, level: Tensor) -> None:
    generator = _generator()
    with torch.no_grad():
        together = generator(cleaned, code, level)
        alone = torch.cat([generator(cleaned[i : i + 1], code[i : i + 1], level[i : i + 1]) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_regenerated_images_stay_in_range(cleaned: Tensor, code: Tensor, level: Tensor) -> None:
    generator = _generator()
    generator.out.bias.data.copy_(torch.tensor([5.0, -5.0, 0.0]))
    made = generator(cleaned, code, level)
    assert (made[:, 0] == 1).all()
    assert (made[:, 1] == 0).all()


def test_gradients_reach_every_weight_the_image_and_the_level(cleaned: Tensor, code: Tensor, level: Tensor) -> None:
    generator = _generator().train()
    inputs = [part.clone().requires_grad_(True) for part in (cleaned, code, level)]
    generator(*inputs).square().sum().backward()
    assert all(part.grad.abs().amax(tuple(range(1, part.ndim))).min() > 0 for part in inputs)
    for name, parameter in generator.named_parameters():  # a bias before a normalisation has none
        assert name.endswith("bias") or parameter.grad.any(), name


def test_a_width_without_groups_is_refused() -> None:
    with pytest.raises(UserError, match="multiples of 8, got 20 channels"):
        norm_layer("group", 20)
