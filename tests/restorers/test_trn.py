"""The Two-stream Restoration Network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gandefense.errors import UserError
from gandefense.restorers.base import DefendedClassifier
from gandefense.restorers.gradient_maps import GradientMaps, gradient_maps
from gandefense.restorers.layers import NORMS
from gandefense.restorers.trn import STREAMS, FusionBlock, TRNRestorer, TwoStreamRestorationNetwork, from_weights
from tests.helpers.networks import small_cnn

READS = [("both", True, True), ("image", True, False), ("maps", False, True), ("none", False, False)]


def _network(*, random: bool = True, **options: object) -> TwoStreamRestorationNetwork:
    """A small network; with `random` no layer is left at zero, and the residual stays below a tenth."""
    network = TwoStreamRestorationNetwork(**{"channels": 3, "labels": 4, "width": 8, "blocks": 2, **options})
    if random:
        for parameter in network.parameters():
            parameter.data.normal_(std=0.3)
        network.tail[-1].weight.data.mul_(0.002)
        network.tail[-1].bias.data.mul_(0.002)
    return network.eval()


@pytest.fixture
def images() -> Tensor:
    return torch.rand(3, 3, 6, 6) * 0.4 + 0.3


@pytest.fixture
def maps() -> GradientMaps:
    return GradientMaps(torch.rand(3, 12, 6, 6) * 2 - 1, torch.randn(3, 4) - 5)


@pytest.mark.parametrize("blocks", [0, 1, 3, 8])
@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("norm", NORMS)
def test_any_number_of_blocks_starts_as_the_identity(
    images: Tensor, maps: GradientMaps, blocks: int, streams: str, norm: str
) -> None:
    network = _network(random=False, blocks=blocks, streams=streams, norm=norm)
    assert len(network.blocks) == blocks
    assert torch.equal(network(images, maps), images)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_is_restored_the_same_alone_and_in_a_batch(images: Tensor, maps: GradientMaps, norm: str) -> None:
    network = _network(norm=norm)
    alone = network(images[:1], GradientMaps(maps.maps[:1], maps.log_norms[:1]))
    assert torch.allclose(network(images, maps)[:1], alone, atol=1e-5)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown norm 'layer'; known: group, batch"):
        _network(norm="layer")


@pytest.mark.parametrize(("channels", "labels", "height", "width"), [(1, 10, 28, 28), (3, 2, 9, 16), (3, 10, 32, 32)])
def test_shapes(channels: int, labels: int, height: int, width: int) -> None:
    images = torch.rand(2, channels, height, width)
    gradients = GradientMaps(torch.rand(2, labels * channels, height, width), torch.zeros(2, labels))
    restored = _network(channels=channels, labels=labels)(images, gradients)
    assert restored.shape == images.shape
    assert not torch.equal(restored, images)


def test_a_fusion_block_starts_as_the_identity_and_mixes_the_streams_once_trained() -> None:
    block, image, maps = FusionBlock(8), torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5)
    assert all(torch.equal(out, into) for out, into in zip(block(image, maps), (image, maps), strict=True))
    for parameter in block.parameters():
        parameter.data.normal_()
    first, second = block(image, maps), block(image, maps + torch.randn_like(maps))
    assert not torch.allclose(first[0], second[0]), "the maps reach the image stream through the Fusion Connection"
    first, second = block(image, maps), block(image + torch.randn_like(image), maps)
    assert not torch.allclose(first[1], second[1])


def test_restored_images_stay_in_range(maps: GradientMaps) -> None:
    network = _network()
    network.tail[-1].bias.data.copy_(torch.tensor([5.0, -5.0, 0.0]))
    restored = network(torch.rand(3, 3, 6, 6), maps)
    assert (restored[:, 0] == 1).all()
    assert (restored[:, 1] == 0).all()


@pytest.mark.parametrize(("streams", "reads_image", "reads_maps"), READS)
def test_a_blanked_stream_is_ignored(
    images: Tensor, maps: GradientMaps, streams: str, reads_image: bool, reads_maps: bool
) -> None:
    network = _network(streams=streams)
    other_images = torch.rand(3, 3, 6, 6) * 0.4 + 0.3

    def removed(images: Tensor, maps: GradientMaps) -> Tensor:
        return network(images, maps) - images

    with torch.no_grad():
        first = removed(images, maps)
        assert first.abs().max() > 1e-3
        for changed, reads in (
            (removed(other_images, maps), reads_image),
            (removed(images, maps._replace(maps=-maps.maps)), reads_maps),
            (removed(images, maps._replace(log_norms=maps.log_norms + 2)), reads_maps),
        ):
            assert torch.allclose(first, changed, rtol=0, atol=1e-6) != reads


def test_the_ablation_is_at_equal_parameters() -> None:
    assert len({sum(parameter.numel() for parameter in _network(streams=streams).parameters()) for streams in STREAMS}) == 1


@pytest.mark.parametrize(("halvings", "height", "width"), [(1, 6, 6), (2, 9, 13), (3, 28, 28)])
def test_with_halvings_it_starts_as_the_identity_at_any_size(halvings: int, height: int, width: int) -> None:
    shape = {"blocks": 1, "halvings": halvings}
    images, gradients = torch.rand(2, 3, height, width), GradientMaps(torch.rand(2, 12, height, width), torch.zeros(2, 4))
    assert torch.equal(_network(random=False, **shape)(images, gradients), images)
    network = _network(**shape)
    assert [len(blocks) for blocks in (*network.down_blocks, *network.up_blocks)] == [1] * 2 * halvings
    restored = network(images, gradients)
    assert restored.shape == images.shape and not torch.equal(restored, images)


def test_each_halving_lets_a_pixel_see_further() -> None:
    """Without norms, which see everything: how far from a changed pixel the result still changes, in float64."""
    reach = []
    for halvings in (0, 1, 2):
        network = _network(blocks=1, halvings=halvings).double()
        for parameter in network.parameters():
            parameter.data.abs_().mul_(0.1)  # no ReLU is off and nothing is clamped
        for block in network.modules():
            if isinstance(block, FusionBlock):
                block.image_norm, block.maps_norm = nn.Identity(), nn.Identity()
        images = torch.full((1, 3, 65, 65), 0.6, dtype=torch.float64)
        changed = images.clone()
        changed[..., 32, 32] += 0.1
        gradients = GradientMaps(torch.zeros(1, 12, 65, 65).double(), torch.zeros(1, 4).double())
        with torch.no_grad():
            moved = (network(changed, gradients) - network(images, gradients)).abs().amax((0, 1)) > 0
        reach.append(int(moved.any(0).sum()))
    assert reach[0] == 1 + 2 * 4, "stem, block and two convolutions of the tail, one pixel each on both sides"
    assert reach[0] < reach[1] < reach[2]


@pytest.mark.parametrize("halvings", [-1, 9])
def test_an_impossible_number_of_halvings_is_refused(halvings: int) -> None:
    with pytest.raises(UserError, match=f"halvings lies between 0 and 8, got {halvings}"):
        _network(halvings=halvings)


def test_unknown_streams_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown streams 'two'; known: both, image, maps, none"):
        _network(streams="two")


@pytest.fixture
def restorer() -> TRNRestorer:
    """In float64 before a smooth classifier, so that finite differences can tell right from wrong."""
    classifier = small_cnn(nn.Tanh).double()
    network = _network(blocks=1).double()
    network.tail[-1].weight.data.mul_(5)
    return TRNRestorer(network, classifier, threshold=0.5).eval()


def _probe(restorer: TRNRestorer, images: Tensor, view: str, weights: Tensor) -> Tensor:
    return (restorer.differentiable(images, view) * weights).sum()


def _gradient(restorer: TRNRestorer, images: Tensor, view: str, weights: Tensor) -> Tensor:
    point = images.clone().requires_grad_(True)
    return torch.autograd.grad(_probe(restorer, point, view, weights), point)[0]


def test_only_the_exact_view_agrees_with_finite_differences(restorer: TRNRestorer, images: Tensor) -> None:
    images, weights, step = images.double(), torch.randn(3, 3, 6, 6, dtype=torch.float64), 1e-6
    gradients = {view: _gradient(restorer, images, view, weights) for view in ("exact", "detached")}
    for _ in range(5):
        along = torch.randn_like(images)
        there, back = (restorer(images + sign * step * along).images for sign in (1, -1))
        measured = ((there - back) * weights).sum() / (2 * step)
        assert (gradients["exact"] * along).sum().item() == pytest.approx(measured.item(), rel=1e-4)
        assert (gradients["detached"] * along).sum().item() != pytest.approx(measured.item(), rel=1e-2)


def test_the_detached_view_holds_the_maps_constant(restorer: TRNRestorer, images: Tensor) -> None:
    images, weights = images.double(), torch.randn(3, 3, 6, 6, dtype=torch.float64)
    constant = gradient_maps(restorer.classifier, images)
    point = images.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad((restorer.network(point, constant) * weights).sum(), point)
    assert torch.allclose(_gradient(restorer, images, "detached", weights), expected)


def test_the_smooth_view_differs_for_a_relu_classifier_and_leaves_it_as_it_was(images: Tensor) -> None:
    classifier = small_cnn(nn.ReLU)
    restorer, weights, activations = TRNRestorer(_network(), classifier), torch.randn(3, 3, 6, 6), list(classifier)
    smooth, exact = (_gradient(restorer, images, view, weights) for view in ("smooth", "exact"))
    assert smooth.isfinite().all()
    assert not torch.allclose(smooth, exact, rtol=1e-2)
    assert all(now is then for now, then in zip(classifier, activations, strict=True))


@pytest.mark.parametrize("view", ["detached", "exact", "smooth", "straight_through"])
def test_every_view_restores_the_same_image(images: Tensor, view: str) -> None:
    classifier = small_cnn(nn.Tanh)
    restorer = TRNRestorer(_network(), classifier)
    network = DefendedClassifier(restorer, classifier).view(view)
    assert torch.allclose(network(images), classifier(restorer(images).images), atol=1e-5)


def test_no_view_touches_the_gradients_of_parameters(restorer: TRNRestorer, images: Tensor) -> None:
    for view in ("detached", "exact", "smooth"):
        _gradient(restorer, images.double(), view, torch.ones(3, 3, 6, 6, dtype=torch.float64))
    assert all(parameter.grad is None for parameter in restorer.parameters())


def test_restoration(restorer: TRNRestorer, images: Tensor) -> None:
    images = images.double()
    with torch.no_grad():
        restoration = restorer(images)
    removed = images - restoration.images
    assert torch.allclose(restoration.score, removed.square().mean(dim=(1, 2, 3)).sqrt() * 255)
    assert torch.equal(restoration.maps["residual"], removed)
    assert restoration.maps["gradient_maps"].shape == (3, 12, 6, 6)
    assert restoration.level.isnan().all()
    middle = restoration.score.sort().values[1].item()
    restorer.threshold = middle
    assert restorer(images).flagged.tolist() == (restoration.score > middle).tolist()
    assert restorer(images).flagged.sum() == 1


def test_top_k_before_a_classifier_with_more_classes(images: Tensor) -> None:
    classifier = small_cnn(nn.ReLU, classes=7)
    assert TRNRestorer(_network(labels=2), classifier, top_k=2)(images).maps["gradient_maps"].shape == (3, 6, 6, 6)


def test_from_weights_round_trip(images: Tensor) -> None:
    network, classifier = _network(), small_cnn(nn.ReLU)
    description = {"network": {"channels": 3, "labels": 4, "width": 8, "blocks": 2, "streams": "both"}, "threshold": 0.25}
    restorer = from_weights(network.state_dict(), description, classifier, Path("here")).eval()
    assert restorer.threshold == 0.25
    assert torch.equal(restorer(images).images, TRNRestorer(network, classifier)(images).images)
