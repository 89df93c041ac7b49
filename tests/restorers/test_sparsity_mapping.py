"""The instance sparsity mapping network and its sparse code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.gan import GANNetworks
from gandefense.restorers.layers import NORMS
from gandefense.restorers.sparsity_mapping import ISMNS, Encoder, FullISMN, PaperISMN, SparseCode


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 32, 32) * 0.8 + 0.1


def _open(ismn: FullISMN) -> FullISMN:
    """The network with an output layer that is no longer zero."""
    nn.init.normal_(ismn.out.weight, std=0.1)
    return ismn


def test_the_running_mean_follows_its_formula_in_training_mode_only() -> None:
    code, features = SparseCode(6, 4), torch.randn(5, 6)
    assert torch.equal(code.mean_activation, torch.full((4,), 0.1))
    activation = code(features)
    assert torch.equal(activation, (features @ code.linear.weight.T + code.linear.bias).relu())
    first = 0.999 * 0.1 + 0.001 * activation.detach().mean(0)
    assert torch.allclose(code.mean_activation, first, atol=1e-7)
    activation = code(features * 3)
    assert torch.allclose(code.mean_activation, 0.999 * first + 0.001 * activation.detach().mean(0), atol=1e-7)
    before = code.mean_activation.clone()
    code.eval()(features)
    assert torch.equal(code.mean_activation, before)
    assert not code.mean_activation.requires_grad


def test_one_bias_update_is_the_rate_times_the_distance_from_the_target() -> None:
    code = SparseCode(6, 3, target=0.2)
    code.mean_activation.copy_(torch.tensor([0.2, 0.7, 0.0]))
    before = code.linear.bias.detach().clone()
    code.update_bias(0.5)
    assert torch.allclose(code.linear.bias.detach() - before, torch.tensor([0.0, -0.25, 0.1]), atol=1e-6)
    assert code.linear.bias.grad is None


@pytest.mark.parametrize("start", [-2.0, 2.0])
def test_bias_updates_move_the_mean_activation_to_the_target(start: float) -> None:
    code, features = SparseCode(8, 16), torch.randn(256, 8)
    nn.init.constant_(code.linear.bias, start)
    with torch.no_grad():
        before = (code(features).mean(0) - 0.1).abs()
        for _ in range(12000):  # what overshoots dies down by e every 2,000 steps
            code(features)
            code.update_bias(0.01)
        after = (code(features).mean(0) - 0.1).abs()
    assert before.min() > 0.09
    assert after.max() < 0.01


def test_the_encoder_is_table_2() -> None:
    encoder = Encoder(3)
    convolutions = [module for module in encoder.modules() if isinstance(module, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convolutions] == [
        (3, 64, (7, 7), (2, 2)),
        (64, 128, (3, 3), (2, 2)),
        (128, 256, (3, 3), (2, 2)),
        (256, 256, (5, 5), (2, 2)),
    ]
    slopes = [module.negative_slope for module in encoder.modules() if isinstance(module, nn.LeakyReLU)]
    assert slopes == [0.2, 0.2, 0.2]
    assert encoder.code.linear.out_features == 128


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_encoder_halves_four_times_at_every_size(size: int) -> None:
    features, code = Encoder(3)(torch.rand(1, 3, size, size))
    assert [tuple(feature.shape[1:]) for feature in features] == [
        (64, size // 2, size // 2),
        (128, size // 4, size // 4),
        (256, size // 8, size // 8),
        (256, size // 16, size // 16),
    ]
    assert code.shape == (1, 128)
    assert (code >= 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_the_full_ismn_starts_as_the_identity(images: Tensor, norm: str, training: bool) -> None:
    cleaned = FullISMN(channels=3, size=32, norm=norm).train(training)(images)
    assert torch.equal(cleaned.images, images)
    assert cleaned.sparsity.shape == (2, 1, 32, 32)


@pytest.mark.parametrize("kind", ISMNS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 64), (3, 128)])
def test_one_code_serves_every_size_and_norm(kind: str, norm: str, channels: int, size: int) -> None:
    ismn = ISMNS[kind](channels=channels, size=size, norm=norm)
    if kind == "full":
        _open(ismn)
    images = torch.rand(2, channels, size, size)
    cleaned = ismn(images)
    assert cleaned.images.shape == images.shape
    assert not torch.equal(cleaned.images, images)
    assert cleaned.code.shape == (2, 128)
    assert cleaned.sparsity.shape == (2, 1, size, size)
    for values in (cleaned.images, cleaned.sparsity):
        assert values.min() >= 0
        assert values.max() <= 1


def test_the_sparsity_map_gates_what_the_full_ismn_removes(images: Tensor) -> None:
    ismn = _open(FullISMN(channels=3, size=32)).eval()
    with torch.no_grad():
        assert not torch.equal(ismn(images).images, images)
        ismn.out.bias[-1] = -200.0  # the gate's logit: shut everywhere
        shut = ismn(images)
        assert torch.equal(shut.images, images)
        assert shut.sparsity.max() < 1e-6
        ismn.out.bias[-1] = 200.0
        ismn.out.weight.zero_()
        ismn.out.bias[:3] = torch.tensor([0.05, 0.0, -0.05])
        wide_open = ismn(images)
    assert torch.allclose((images - wide_open.images).mean((0, 2, 3)), torch.tensor([0.05, 0.0, -0.05]), atol=1e-6)
    assert wide_open.sparsity.min() == 1


def test_the_paper_ismn_sees_the_image_through_the_code_only(images: Tensor) -> None:
    ismn = PaperISMN(channels=3, size=32).eval()
    constant = torch.rand(2, 128)
    with torch.no_grad():
        seen = ismn(images).images
        assert not torch.equal(seen[0], seen[1]), "two images, two codes"
        ismn.encoder.forward = lambda images: ([], constant)
        assert torch.equal(ismn(images).images, ismn(images.flip(3)).images)


def test_the_paper_ismns_sparsity_map_is_the_mean_difference(images: Tensor) -> None:
    cleaned = PaperISMN(channels=3, size=32)(images)
    assert torch.allclose(cleaned.sparsity[:, 0], (images - cleaned.images).abs().mean(1))


@pytest.mark.parametrize("kind", ISMNS)
def test_gradients_reach_every_weight(images: Tensor, kind: str) -> None:
    ismn = ISMNS[kind](channels=3, size=32)
    if kind == "full":
        _open(ismn)
    cleaned = ismn(images)
    (cleaned.images.square().sum() + cleaned.sparsity.sum()).backward()
    for name, parameter in ismn.named_parameters():  # a bias before a normalisation has none
        assert name.endswith("bias") or parameter.grad.any(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ismn": "fulll"}, r"unknown ISMN 'fulll'; known: paper, full"),
        ({"norm": "layer"}, r"unknown norm 'layer'; known: (batch, group|group, batch)"),
    ],
)
def test_unknown_names_list_the_known_ones(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GANNetworks(channels=3, size=32, width=8, **options)
