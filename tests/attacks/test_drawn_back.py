"""Attacked images drawn back towards the decision boundary."""

from __future__ import annotations

import torch
from torch import nn

from gandefense.attacks.drawn_back import HALVINGS, drawn_back
from gandefense.attacks.spec import AttackSpec
from gandefense.attacks.suite import attack, predict
from tests.helpers.networks import Linear, small_cnn


def test_before_a_linear_classifier_they_land_as_far_beyond_the_boundary_as_drawn() -> None:
    linear = Linear(torch.randn(3, 4, 4))
    clean = torch.rand(50, 3, 4, 4) * 0.2 + 0.4
    labels = predict(linear, clean)
    attacked = attack(linear, clean, labels, AttackSpec("fgsm", eps=0.3)).images
    draw = torch.rand(50)
    back = drawn_back(linear, clean, attacked, labels, draw)
    with torch.no_grad():
        boundary = linear(clean)[:, 1] / (linear(clean)[:, 1] - linear(attacked)[:, 1])
    share = (back - clean).flatten(1).abs().sum(1) / (attacked - clean).flatten(1).abs().sum(1)
    expected = boundary + draw**3 * (1 - boundary)
    assert torch.allclose(share, expected, rtol=0, atol=0.5**HALVINGS + 1e-5)
    assert (predict(linear, back) != labels).all()
    assert torch.allclose(drawn_back(linear, clean, attacked, labels, torch.ones(50)), attacked, rtol=0, atol=1e-6)


def test_failed_attacks_and_images_wrong_from_the_start_stay_as_they_are() -> None:
    network = small_cnn(nn.ReLU)
    clean = torch.rand(40, 3, 6, 6)
    labels = predict(network, clean)
    labels[:10] = (labels[:10] + 1) % 4
    attacked = attack(network, clean, labels, AttackSpec("fgsm", eps=0.02)).images
    failed = predict(network, attacked) == labels
    assert 0 < failed[10:].sum() < 30, "some of both"
    back = drawn_back(network, clean, attacked, labels, torch.full((40,), 0.3))
    stays = failed | (torch.arange(40) < 10)
    assert torch.equal(back[stays], attacked[stays])
    assert ((back - attacked)[~stays].flatten(1).abs().amax(1) > 0).all()
    assert (predict(network, back)[~stays] != labels[~stays]).all()
