"""Gradient maps against naive loops and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gandefense import classifiers
from gandefense.data import datasets
from gandefense.restorers.gradient_maps import gradient_maps, loss_gradients, normalise, softplus_activations
from tests.helpers.networks import small_cnn


@pytest.fixture
def classifier() -> nn.Sequential:
    return small_cnn(nn.ReLU)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 3, 6, 6)


def _naive(classifier: nn.Module, images: Tensor, classes: int) -> Tensor:
    """One forward and one backward pass for every label."""
    gradients = []
    for label in range(classes):
        point = images.clone().requires_grad_(True)
        loss = F.cross_entropy(classifier(point), torch.full((len(images),), label), reduction="sum")
        gradients.append(torch.autograd.grad(loss, point)[0])
    return torch.stack(gradients, dim=1)


def test_equals_the_gradient_of_the_cross_entropy_of_every_label(classifier: nn.Module, images: Tensor) -> None:
    gradients = loss_gradients(classifier, images)
    assert gradients.shape == (5, 4, 3, 6, 6)
    assert gradients.abs().amax() > 0.01
    assert torch.allclose(gradients, _naive(classifier, images, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["resnet9", "wrn_16_2", "paper_cnn"])
def test_equals_the_naive_loop_on_real_architectures(architecture: str) -> None:
    torch.manual_seed(3)
    network = classifiers.build(architecture, datasets.describe("cifar10")).eval()
    images = torch.rand(2, 3, 32, 32)
    expected = _naive(network, images, 10)
    assert torch.allclose(loss_gradients(network, images), expected, rtol=1e-3, atol=1e-5 * expected.abs().amax().item())


def test_gradients_weighted_by_the_softmax_add_up_to_nothing(classifier: nn.Module, images: Tensor) -> None:
    classifier, images = classifier.double(), images.double()
    probabilities = classifier(images).softmax(1)
    total = (probabilities[:, :, None, None, None] * loss_gradients(classifier, images)).sum(1)
    assert total.abs().amax() < 1e-12


def test_the_predicted_class_of_a_confident_image_has_the_smallest_gradient(classifier: nn.Sequential, images: Tensor) -> None:
    classifier[-1].weight.data.mul_(1000)
    classifier[-1].bias.data.mul_(1000)
    norms = loss_gradients(classifier, images).flatten(2).norm(dim=2)
    assert torch.equal(norms.argmin(1), classifier(images).argmax(1))


def test_works_under_no_grad_and_touches_no_parameter_gradient(classifier: nn.Module, images: Tensor) -> None:
    expected = loss_gradients(classifier, images)
    with torch.no_grad():
        assert torch.equal(loss_gradients(classifier, images), expected)
        maps = gradient_maps(classifier, images)
    assert not maps.maps.requires_grad
    assert not images.requires_grad
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_one_forward_pass_whatever_the_number_of_classes(classifier: nn.Module, images: Tensor) -> None:
    calls = []
    classifier.register_forward_hook(lambda *_: calls.append(1))
    loss_gradients(classifier, images)
    assert len(calls) == 1


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_top_k_takes_the_most_probable_labels(classifier: nn.Module, images: Tensor, top_k: int) -> None:
    chosen = classifier(images).argsort(dim=1, descending=True)[:, :top_k]
    everything = loss_gradients(classifier, images)
    taken = torch.stack([everything[i, chosen[i]] for i in range(len(images))])
    assert torch.allclose(loss_gradients(classifier, images, top_k=top_k), taken, atol=1e-6)
    maps = gradient_maps(classifier, images, top_k=top_k)
    assert maps.maps.shape == (5, top_k * 3, 6, 6)
    assert torch.allclose(maps.maps, normalise(taken).maps, atol=1e-5)
    assert torch.allclose(maps.log_norms, normalise(taken).log_norms, atol=1e-4)


def test_without_top_k_all_labels_come_in_order(classifier: nn.Module, images: Tensor) -> None:
    maps = gradient_maps(classifier, images)
    assert torch.equal(maps.maps, normalise(loss_gradients(classifier, images)).maps)
    assert maps.log_norms.shape == (5, 4)


def test_normalise_known_values() -> None:
    gradients = torch.tensor([[3.0, -3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 2e-3]]).view(1, 2, 1, 2, 2)
    maps, log_norms = normalise(gradients)
    assert maps.shape == (1, 2, 2, 2)
    assert torch.allclose(maps[0, 0].flatten(), torch.tensor([0.5, -0.5, 0.5, 0.5]))
    assert torch.allclose(maps[0, 1].flatten(), torch.tensor([0.0, 0.0, 0.0, 2 / 3]))
    assert torch.allclose(log_norms.exp(), torch.tensor([[3.0, 1e-3]]))


@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e8])
def test_maps_carry_direction_and_log_norms_size(factor: float) -> None:
    gradients = torch.randn(2, 3, 1, 4, 4)
    maps, log_norms = normalise(gradients)
    scaled, scaled_norms = normalise(gradients * factor)
    assert torch.allclose(scaled, maps, atol=1e-4)
    assert torch.allclose(scaled_norms - log_norms, torch.tensor(factor).log(), atol=1e-3)
    assert scaled.abs().max() < 1


def test_an_all_zero_gradient_stays_finite_and_so_does_its_derivative() -> None:
    gradients = torch.zeros(1, 2, 1, 3, 3, requires_grad=True)
    maps, log_norms = normalise(gradients)
    assert maps.abs().max() == 0
    assert log_norms.isfinite().all()
    (derivative,) = torch.autograd.grad(maps.sum() + log_norms.sum(), gradients)
    assert derivative.isfinite().all()


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus])
def test_the_second_derivative_agrees_with_finite_differences(activation: type[nn.Module]) -> None:
    network = small_cnn(activation, channels=2, size=3, classes=3).double()
    images = torch.rand(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def maps(images: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(gradient_maps(network, images, create_graph=True))

    assert torch.autograd.gradcheck(maps, (images,), atol=1e-5)
    raw = loss_gradients(network, images, create_graph=True)
    assert torch.autograd.grad(raw.square().sum(), images)[0].abs().max() > 1e-3, "there is a second derivative to check"


def test_without_create_graph_the_maps_are_constants(classifier: nn.Module, images: Tensor) -> None:
    maps = gradient_maps(classifier, images.requires_grad_(True))
    assert not maps.maps.requires_grad
    assert not maps.log_norms.requires_grad


def test_softplus_gives_a_relu_network_second_derivatives(classifier: nn.Sequential, images: Tensor) -> None:
    """With ReLU the logits' Jacobian is piecewise constant; what is left comes from the softmax alone."""

    def jacobian_change() -> float:
        point = images[:1].double().requires_grad_(True)
        logits = classifier(point)
        (first,) = torch.autograd.grad(logits[0, 0], point, create_graph=True)
        if not first.requires_grad:
            return 0.0
        (second,) = torch.autograd.grad(first.sum(), point, allow_unused=True)
        return 0.0 if second is None else second.abs().max().item()

    classifier.double()
    assert jacobian_change() == 0
    with softplus_activations():
        assert jacobian_change() > 0


class ManyRelus(nn.Module):
    """A ReLU in every way of writing one."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.in_place = nn.ReLU(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> list[Tensor]:
        ways = [self.module, self.in_place, F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_]
        return [way(x.clone()) for way in ways]


def test_softplus_takes_the_place_of_every_relu_for_a_while() -> None:
    network, x = ManyRelus(), torch.tensor([-0.01, 0.01])
    with softplus_activations(beta=20):
        assert all(torch.allclose(output, F.softplus(x, beta=20)) for output in network(x))
    assert all(torch.equal(output, x.relu()) for output in network(x))


def test_relus_are_back_after_an_exception(classifier: nn.Sequential, images: Tensor) -> None:
    logits = classifier(images)
    with pytest.raises(ZeroDivisionError), softplus_activations():
        assert not torch.equal(classifier(images), logits)
        raise ZeroDivisionError
    assert torch.equal(classifier(images), logits)


def test_a_confident_images_own_gradient_is_not_rounding_error() -> None:
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 4))
    with torch.no_grad():
        classifier[1].bias += torch.tensor([18.0, 0.0, 0.0, 0.0])  # 1 − p is about 1e-8, below what float32 tells from 1
    images = torch.rand(2, 3, 4, 4)
    wanted = loss_gradients(classifier.double(), images.double())
    found = loss_gradients(classifier.float(), images)
    assert 0 < wanted[:, 0].abs().max() < 1e-7
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-13)
