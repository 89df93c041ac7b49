"""LAD's autoencoder, boundaries and steps across them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gandefense.errors import UserError
from gandefense.training.baselines.latent_boundary import AutoEncoder, Boundaries

CENTRES = torch.tensor([[4.0, 0.0, 1.0], [-4.0, 3.0, 1.0], [-4.0, -3.0, 1.0]])  # of three classes, far apart


def _toy(count: int = 300) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    return CENTRES[labels] + 0.5 * torch.randn(count, 3, generator=generator), labels


@pytest.fixture(scope="module")
def fitted() -> Boundaries:
    boundaries = Boundaries(3, 3)
    boundaries.fit(*_toy(), steps=300, penalty=0.01)
    return boundaries


def test_the_normals_separate_every_class_from_the_rest(fitted: Boundaries) -> None:
    latents, labels = _toy()
    distances = fitted.distances(latents)
    assert torch.equal(distances > 0, torch.nn.functional.one_hot(labels, 3).bool())
    assert torch.allclose(fitted.normals.norm(dim=1), torch.ones(3), atol=1e-5)


def test_between_two_equal_classes_the_boundary_is_the_perpendicular_bisector() -> None:
    """Of four points at (±1, ±1), two classes left and right: the widest margin is at 0."""
    latents = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) + torch.tensor([5.0, 0.0])
    boundaries = Boundaries(2, 2)
    boundaries.fit(latents, torch.tensor([0, 0, 1, 1]), steps=500, penalty=0.01)
    assert torch.allclose(boundaries.normals, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), atol=1e-2)
    assert torch.allclose(boundaries.distances(torch.tensor([[5.0, 7.0]])), torch.zeros(1, 2), atol=0.05)
    assert torch.allclose(boundaries.reach, torch.ones(2), atol=0.05)


def test_few_images_of_a_class_count_as_much_as_the_many_others() -> None:
    """Unweighed, "never class 0" would cost least: the classes overlap, and class 0 has one image in fifty."""
    generator = torch.Generator().manual_seed(1)
    labels = (torch.arange(1000) % 50 != 0).long()
    latents = torch.randn(1000, 2, generator=generator)
    latents[labels == 0, 0] += 1.5
    boundaries = Boundaries(2, 2)
    boundaries.fit(latents, labels, steps=200, penalty=0.01)
    right = (boundaries.distances(latents)[:, 0] > 0) == (labels == 0)
    assert right[labels == 0].float().mean() > 0.6
    assert right[labels == 1].float().mean() > 0.6


def test_moving_goes_across_the_boundary_along_the_normal(fitted: Boundaries) -> None:
    latents, labels = _toy()
    rows = torch.arange(len(labels))
    before = fitted.distances(latents)[rows, labels]
    for amount in (0.0, 0.5, 1.0, 2.0):
        moved = fitted.moved(latents, labels, amount)
        after = fitted.distances(moved)[rows, labels]
        assert torch.allclose(after, before - amount * fitted.reach[labels], atol=1e-4)
        assert torch.allclose((moved - latents).norm(dim=1), amount * fitted.reach[labels], atol=1e-4), "the shortest way"
    assert (after < 0).all(), "an amount of 2 takes them all to the other side"
    for label in range(3):
        at_boundary = fitted.distances(fitted.moved(latents, labels, 1.0))[rows, labels][labels == label]
        assert at_boundary.mean().abs() < 1e-4


def test_each_image_may_have_an_amount_of_its_own(fitted: Boundaries) -> None:
    latents, labels = (part[:3] for part in _toy())
    moved = fitted.moved(latents, labels, torch.tensor([0.0, 1.0, 2.0]))
    assert torch.equal(moved[0], latents[0])
    assert torch.equal(moved[2], fitted.moved(latents, labels, 2.0)[2])


def test_fitting_is_not_random_and_leaves_torchs_generator_alone(fitted: Boundaries) -> None:
    state, again = torch.get_rng_state(), Boundaries(3, 3)
    with torch.no_grad():
        again.fit(*_toy(), steps=300, penalty=0.01)
    assert torch.equal(again.normals, fitted.normals) and torch.equal(again.offsets, fitted.offsets)
    assert torch.equal(torch.get_rng_state(), state)
    assert not again.normals.requires_grad


def test_a_class_without_images_is_refused() -> None:
    with pytest.raises(UserError, match=r"every class needs an image for its boundary.*\[2, 1, 0\]"):
        Boundaries(3, 2).fit(torch.rand(3, 2), torch.tensor([0, 0, 1]), steps=2, penalty=0.1)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 9)])
def test_the_autoencoders_shapes_and_range(channels: int, size: int) -> None:
    autoencoder, images = AutoEncoder(channels=channels, size=size, width=4, features=2), torch.rand(3, channels, size, size)
    codes = autoencoder.encode(images)
    assert codes.shape == (3, torch.Size(autoencoder.shape).numel())
    decoded = autoencoder.decode(codes * 100)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0 and decoded.max() <= 1
    assert torch.equal(autoencoder(images), autoencoder.decode(codes))


def test_it_learns_to_reconstruct() -> None:
    torch.manual_seed(0)
    autoencoder, images = AutoEncoder(channels=1, size=8, width=8, features=8), torch.rand(4, 1, 8, 8)
    optimiser, errors = torch.optim.Adam(autoencoder.parameters(), lr=0.01), []
    for _ in range(40):
        error = (autoencoder(images) - images).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.5 * errors[0]
