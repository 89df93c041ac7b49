"""Defense-GAN's latent search."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.baselines.defense_gan import (
    DefenseGANRestorer,
    ImageGenerator,
    LatentSearch,
    descend,
    distances,
    from_weights,
)
from tests.helpers.networks import small_cnn

SHAPE = {"channels": 3, "size": 8, "latent": 6, "width": 4}


def _generator() -> ImageGenerator:
    """A generator with weights of its own, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = ImageGenerator(**SHAPE)
    return generator.eval().requires_grad_(False)


def _restorer(**options: object) -> DefenseGANRestorer:
    return DefenseGANRestorer(_generator(), LatentSearch(**{"steps": 40, "restarts": 3, **options})).eval()


@pytest.fixture
def images() -> Tensor:
    """Images that the generator can make, (4, 3, 8, 8)."""
    torch.manual_seed(1)
    return _generator()(torch.randn(4, SHAPE["latent"]) * 0.4)


def test_one_step_by_hand() -> None:
    """With G(z) = z: v = 2 (z − x) / n, then v' = 0.5 v + the gradient at the new place."""
    generator = nn.Unflatten(1, (1, 1, 2))
    image, start = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[0.0, 0.0]])
    one = descend(generator, image, start, LatentSearch(steps=1, rate=0.5, momentum=0.5))
    assert torch.allclose(one, torch.tensor([[0.5, 0.0]]))
    two = descend(generator, image, start, LatentSearch(steps=2, rate=0.5, momentum=0.5))
    assert torch.allclose(two, torch.tensor([[0.5 + 0.5 * (0.5 * 1.0 + 0.5), 0.0]]))


def test_the_last_fifth_of_the_steps_is_ten_times_shorter() -> None:
    generator, image = nn.Unflatten(1, (1, 1, 1)), torch.ones(1, 1, 1, 1)
    search = LatentSearch(steps=5, rate=0.05, momentum=0.0)
    found = descend(generator, image, torch.zeros(1, 1), search)
    assert 1 - found.item() == pytest.approx(0.9**4 * 0.99, rel=1e-5)


def test_the_search_lowers_the_error_and_finds_an_image_of_the_generator(images: Tensor) -> None:
    torch.manual_seed(2)
    restorer = _restorer(steps=300, restarts=8)
    starts = restorer.starts(images)
    before = distances(restorer.generator(starts[:, 0]), images)
    restoration = restorer(images)
    after = distances(restoration.images, images)
    assert (after < 0.5 * before).all()
    assert after.median() < 1e-4, "G(z) is found again"
    assert torch.allclose(restoration.score, after.sqrt() * 255, rtol=1e-4, atol=1e-3)


def test_the_best_of_the_restarts_is_returned(images: Tensor) -> None:
    restorer = _restorer()
    torch.manual_seed(3)
    starts = restorer.starts(images)
    torch.manual_seed(3)
    latents, chosen = restorer.best(images)
    each = torch.stack([descend(restorer.generator, images, starts[:, number], restorer.search) for number in range(3)], dim=1)
    errors = torch.stack([distances(restorer.generator(each[:, number]), images) for number in range(3)], dim=1)
    best = errors.argmin(1)
    assert len(set(best.tolist())) > 1, "otherwise the test says little"
    assert torch.allclose(latents, each[torch.arange(4), best], atol=1e-4)
    assert torch.equal(chosen, starts[torch.arange(4), best])


def test_random_starts_come_from_torchs_generator_and_fixed_ones_do_not(images: Tensor) -> None:
    restorer = _restorer(steps=3)
    torch.manual_seed(4)
    first, second = restorer(images).images, restorer(images).images
    torch.manual_seed(4)
    assert torch.equal(restorer(images).images, first)
    assert not torch.equal(first, second)
    fixed = _restorer(steps=3, fixed_starts=True)
    state = torch.get_rng_state()
    assert torch.equal(fixed(images).images, fixed(images).images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(fixed.starts(images)[0], fixed.starts(images)[1])


def test_it_searches_where_no_gradients_are_kept_and_leaves_no_graph(images: Tensor) -> None:
    restorer = _restorer(fixed_starts=True)
    with torch.no_grad():
        quiet = restorer(images)
        surrogate = restorer.surrogate(images)
    assert torch.equal(quiet.images, restorer(images).images)
    assert torch.allclose(surrogate, quiet.images, atol=1e-6)
    assert not quiet.images.requires_grad and not quiet.score.requires_grad


@pytest.mark.parametrize("view", ["exact", "smooth", "detached"])
def test_views_differ_in_gradients_alone(images: Tensor, view: str) -> None:
    restorer = _restorer(fixed_starts=True)
    restored, score = restorer.scored(images, view)
    restoration = restorer(images)
    assert torch.allclose(restored, restoration.images, atol=1e-4)
    assert torch.allclose(score, restoration.score, rtol=1e-2, atol=0.05)


def test_exact_is_the_gradient_through_every_step() -> None:
    restorer = DefenseGANRestorer(_generator(), LatentSearch(steps=6, restarts=2, fixed_starts=True)).double().eval()
    torch.manual_seed(5)
    images, along = torch.rand(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    goal = torch.rand_like(images)

    def measured(point: Tensor) -> Tensor:
        restored, score = restorer.scored(point, "exact")
        return (restored * goal).sum() + score.sum()

    point = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(measured(point), point)
    there, back = (measured(images + sign * 1e-6 * along) for sign in (1, -1))
    assert (gradient * along).sum().item() == pytest.approx(((there - back) / 2e-6).item(), rel=1e-4)


def test_detached_differentiates_the_last_steps_alone(images: Tensor) -> None:
    gradients = {}
    for truncated in (1, 2, 10):
        restorer = _restorer(steps=10, restarts=1, fixed_starts=True, truncated=truncated)
        for view in ("detached", "exact"):
            point = images.clone().requires_grad_(True)
            (gradients[view, truncated],) = torch.autograd.grad(restorer.scored(point, view)[0].square().sum(), point)
    assert torch.equal(gradients["exact", 1], gradients["exact", 2])
    assert torch.equal(gradients["detached", 10], gradients["exact", 10]), "10 steps are all"
    assert not torch.allclose(gradients["detached", 1], gradients["detached", 2])
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients.values())


def test_one_recorded_step_by_hand() -> None:
    """With G(z) = z and one recorded step at a tenth of the rate r, dz*/dx = 2 r / (10 n)."""
    generator, image = nn.Unflatten(1, (1, 1, 2)), torch.rand(1, 1, 1, 2, requires_grad=True)
    found = descend(generator, image, torch.zeros(1, 2), LatentSearch(steps=10, rate=0.5), recorded=1)
    (gradient,) = torch.autograd.grad(found.sum(), image)
    assert torch.allclose(gradient, torch.full_like(gradient, 2 * 0.5 / 10 / 2))


def test_every_view_of_a_defence_has_a_gradient(images: Tensor) -> None:
    defended = DefendedClassifier(_restorer(steps=8), small_cnn(nn.Tanh, size=8))
    for view in ("straight_through", "detached", "exact", "smooth"):
        for detector in (None, (5.0, 2.0)):
            point = images.clone().requires_grad_(True)
            outputs = defended.view(view, detector)(point)
            assert outputs.shape == (4, 4 + (detector is not None))
            (gradient,) = torch.autograd.grad(outputs.sum(), point)
            assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_what_the_generator_cannot_make_is_flagged(images: Tensor) -> None:
    restorer = _restorer(steps=60, restarts=4)
    torch.manual_seed(6)
    foreign = torch.rand(4, 3, 8, 8).round()
    scores = restorer(torch.cat([images, foreign])).score
    assert scores[:4].max() < scores[4:].min()
    restorer.threshold = ((scores[:4].max() + scores[4:].min()) / 2).item()
    assert restorer(foreign).flagged.all()


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 9)])
def test_the_generators_shape_and_range(channels: int, size: int) -> None:
    made = ImageGenerator(channels=channels, size=size, latent=5, width=2)(torch.randn(2, 5) * 100)
    assert made.shape == (2, channels, size, size)
    assert made.min() >= 0 and made.max() <= 1


def test_at_the_start_layers_keep_a_signals_size() -> None:
    torch.manual_seed(0)
    generator = ImageGenerator(channels=3, size=32, latent=64, width=32)
    before_sigmoid = generator.layers[:-1](generator.expand(torch.randn(16, 64)).view(-1, *generator.start))
    assert 0.5 < before_sigmoid.std() < 3
    assert generator(torch.randn(16, 64)).std() > 0.1, "not grey"


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"makes images of shape \(3, 8, 8\), got \(3, 12, 12\)"):
        _restorer()(torch.rand(2, 3, 12, 12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"search\.steps must be a whole number and at least 1, got 0"),
        ({"restarts": 2.5}, r"search\.restarts must be a whole number"),
        ({"truncated": 0}, r"search\.truncated must be"),
        ({"rate": 0.0}, r"search\.rate must be positive"),
        ({"momentum": 1.0}, r"search\.momentum must be at least 0 and less than 1"),
        ({"fixed_starts": 1}, r"search\.fixed_starts must be true or false"),
    ],
)
def test_a_bad_search_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LatentSearch(**options)


def test_a_file_gives_the_same_restorer_again(images: Tensor) -> None:
    restorer = _restorer(fixed_starts=True)
    search = {"steps": 40, "restarts": 3, "rate": 10.0, "momentum": 0.7, "fixed_starts": True, "truncated": 5}
    description = {"network": SHAPE, "search": search, "threshold": 2.0}
    tensors = _generator().state_dict()
    again = from_weights(tensors, description, nn.Identity(), Path("a file")).eval()
    assert torch.equal(again(images).images, restorer(images).images)
    assert (again.threshold, again.search) == (2.0, restorer.search)
    for bad in ({**search, "rate": "fast"}, {**search, "steps": 10**9}, {**search, "other": 1}, {**search, "momentum": 2}, None):
        with pytest.raises(UserError, match="a file: "):
            from_weights(tensors, {**description, "search": bad}, nn.Identity(), Path("a file"))
