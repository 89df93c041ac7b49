"""One perturbation for all images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gandefense import memory
from gandefense.attacks import universal
from gandefense.attacks.suite import AttackSpec, attack, predict, universal_perturbation
from gandefense.data.batches import to_float
from gandefense.errors import UserError
from tests.helpers.networks import Linear, small_cnn

EPS = 8 / 255


@pytest.fixture
def network() -> nn.Module:
    return small_cnn(nn.Tanh)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(60, 3, 6, 6)


def test_against_a_linear_classifier_it_is_the_sign_of_the_weights_for_most_labels() -> None:
    linear = Linear(0.1 * torch.randn(3, 4, 4))
    images = torch.rand(50, 3, 4, 4) * 0.8 + 0.1
    for majority, sign in ((0, 1), (1, -1)):
        labels = torch.where(torch.arange(50) < 40, majority, 1 - majority)
        delta = universal_perturbation(linear, images, labels, AttackSpec("universal", eps=EPS, steps=30))
        assert torch.allclose(delta, sign * EPS * linear.weight.detach().sign(), atol=1e-6)


def test_all_images_get_the_same_one_and_stay_in_range(network: nn.Module, images: Tensor) -> None:
    labels = predict(network, images)
    inside = images * 0.6 + 0.2
    attacked = attack(network, inside, labels, AttackSpec("universal", eps=0.1, steps=10))
    delta = attacked.images - inside
    assert torch.allclose(delta, delta[:1].expand_as(delta), atol=1e-6) and delta.abs().max() <= 0.1 + 1e-6
    black_and_white = attack(network, images.round(), labels, AttackSpec("universal", eps=0.1, steps=10)).images
    assert black_and_white.min() == 0 and black_and_white.max() == 1


def test_it_is_better_than_chance_on_images_that_it_was_not_made_from() -> None:
    network, images = small_cnn(nn.Tanh), torch.rand(600, 3, 6, 6)
    labels = predict(network, images)
    spec = AttackSpec("universal", eps=0.15, steps=60)
    delta = universal_perturbation(network, images[:300], labels[:300], spec)
    fooled = attack(network, images[300:], labels[300:], spec, perturbation=delta).success.float().mean()
    random = [(images[300:] + 0.15 * torch.randn(3, 6, 6).sign()).clamp(0, 1) for _ in range(10)]
    by_chance = max((predict(network, some) != labels[300:]).float().mean() for some in random)
    assert fooled > 1.3 * by_chance


def test_eight_bit_images_are_taken(network: nn.Module, images: Tensor) -> None:
    pixels = (images * 255).round().byte()
    labels, spec = predict(network, images), AttackSpec("universal", eps=0.1, steps=5)
    expected = universal_perturbation(network, to_float(pixels), labels, spec)
    assert torch.equal(universal_perturbation(network, pixels, labels, spec), expected)


def test_steps_see_batches_in_an_order_that_the_seed_decides(network: nn.Module) -> None:
    images = torch.rand(230, 3, 6, 6)
    labels, spec, seen = predict(network, images), AttackSpec("universal", eps=0.1, steps=6), []
    handle = network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    deltas = [universal_perturbation(network, images, labels, spec, seed=seed) for seed in (1, 1, 2)]
    handle.remove()
    assert seen == [universal.BATCH] * 18
    assert torch.equal(deltas[0], deltas[1]) and not torch.equal(deltas[0], deltas[2])


def test_no_image_counts_for_more_than_the_clip() -> None:
    """Two images pull one way with a loss beyond the clip, one the other way: the one is followed."""

    class Sure(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = images.flatten(1).sum(1) * 100 - 50
            return torch.stack([torch.zeros_like(score), score], dim=1)

    images, labels = torch.full((3, 1, 1, 1), 0.5), torch.tensor([0, 0, 1])
    images[:2] = 0.8  # logits of +30 for the wrong class
    delta = universal_perturbation(Sure(), images, labels, AttackSpec("universal", eps=0.1, steps=1))
    assert delta.item() < 0


def test_little_memory_makes_parts_of_the_same_step(network: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, spec = predict(network, images), AttackSpec("universal", eps=0.1, steps=3)
    expected = universal_perturbation(network, images, labels, spec)

    def first_refused(work, *tensors):  # type: ignore[no-untyped-def]
        def small(*parts: Tensor) -> tuple[Tensor, ...]:
            if len(parts[0]) > 20:
                raise torch.OutOfMemoryError
            return work(*parts)

        return memory.in_halves(small, *tensors)

    monkeypatch.setattr(universal, "in_halves", first_refused)
    with pytest.warns(UserWarning, match="memory does not do"):
        delta = universal_perturbation(network, images, labels, spec)
    assert (delta - expected).abs().max() < 1e-3


def test_the_network_and_the_random_state_are_left_alone(network: nn.Module, images: Tensor) -> None:
    network.train()
    before = torch.get_rng_state()
    with torch.no_grad():
        universal_perturbation(network, images, torch.zeros(60, dtype=torch.int64), AttackSpec("universal", steps=2))
    assert network.training and all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_universal_attack_adds_what_was_made_earlier(network: nn.Module, images: Tensor) -> None:
    labels, delta = predict(network, images), torch.full((3, 6, 6), 0.05)
    moved = attack(network, images, labels, AttackSpec("universal", eps=0.05), perturbation=delta).images
    assert torch.allclose(moved, (images + 0.05).clamp(0, 1))
    other = attack(network, images, labels, AttackSpec("fgsm", eps=0.05), perturbation=delta).images
    assert torch.equal(other, attack(network, images, labels, AttackSpec("fgsm", eps=0.05)).images)
    with pytest.raises(UserError, match="restarts=2 has no effect"):
        universal_perturbation(network, images, labels, AttackSpec("universal", restarts=2))
