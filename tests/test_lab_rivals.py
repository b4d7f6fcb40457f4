# SPDX-License-Identifier: MIT
"""Last-layer uncertainty against the full sum by hand, and the stand-in on traps that it can see."""

import pytest
import torch
from torch import nn

from ascedfast.lab.corrections import watch
from ascedfast.lab.planted import plant_rows
from ascedfast.lab.rivals import LastLayerLaplace, Segmenter, train_segmenter
from ascedfast.lab.statistics import auroc
from ascedfast.lab.subject import Toy


class Conv(Toy):
    """The toy with a network around it: its output goes through a last layer that changes nothing."""

    def denoise(self, x, step):
        return self.last_conv(super().denoise(x, step))


@pytest.fixture(scope="module")
def net():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=1, stride=2))
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return net


def test_the_variance_is_the_sum_over_weights_of_squared_gradients(net):
    generator = torch.Generator().manual_seed(1)
    data, x = (torch.randn(4, 2, 6, 8, generator=generator) for _ in range(2))
    laplace = LastLayerLaplace(net[2], prior=2.0, noise=0.5).fit(lambda: net(data))
    weight = net[2].weight

    def squared_gradients(images):
        """[R, H', W', weights of one output channel], by automatic differentiation."""
        hidden = net[:2](images)
        out = net[2](hidden)
        grads = [torch.autograd.grad(one, weight, retain_graph=True)[0][0].flatten() for one in out[:, 0].flatten()]
        return torch.stack(grads).square().double().reshape(*out[:, 0].shape, -1)

    precision = 2.0 + squared_gradients(data).sum((0, 1, 2)) / 0.25
    expected = (squared_gradients(x) / precision).sum(-1)
    found = laplace.variance(lambda: net(x))
    assert found.shape == (4, 3, 4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_more_data_leaves_less_uncertainty(net):
    x = torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    laplace = LastLayerLaplace(net[2])
    before = laplace.variance(lambda: net(x))
    after = laplace.fit(lambda: net(x)).variance(lambda: net(x))
    assert bool((after < before).all())
    assert not net[2]._forward_pre_hooks


def test_the_detector_scales_the_uncertainty_to_predictions():
    subject = Conv()
    conv = nn.Conv2d(1, 1, 1, bias=False)
    conv.weight.data.fill_(1.0)
    object.__setattr__(subject, "last_conv", conv)
    laplace = LastLayerLaplace(conv, prior=4.0)
    prefix = watch(subject, range(3))
    score = laplace.detector(subject)(prefix, None)
    step = prefix.step - 1
    output = Toy().denoise(prefix.before, step)[:, 0]
    expected = abs(subject.schedule.before[step].b) * output.abs().double() / 2
    torch.testing.assert_close(score, expected, rtol=1e-5, atol=1e-7)


def test_a_layer_that_is_not_called_or_not_plain_is_refused(net):
    with pytest.raises(RuntimeError, match="not called"):
        LastLayerLaplace(net[2]).variance(lambda: None)
    for conv in (nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(1, 1, 3, padding="same")):
        with pytest.raises(ValueError, match="plain convolution"):
            LastLayerLaplace(conv)
    with pytest.raises(ValueError, match="above 0"):
        LastLayerLaplace(net[2], prior=0)


def test_the_stand_in_learns_traps_and_gives_scores_at_the_grid():
    toy = Toy()
    planted = plant_rows(toy, range(1000, 1160), "trap-after")
    shown = planted.levels >= 8
    assert int(shown.sum()) > 20
    images, masks = planted.images[shown], planted.boxes[shown]
    state = torch.get_rng_state()
    net = train_segmenter(images, masks, iterations=120)
    assert torch.equal(torch.get_rng_state(), state)
    logits = net(images)
    assert auroc(logits.numpy(), masks.numpy()) > 0.8
    prefix = watch(toy, range(4))
    score = net.detector()(prefix, torch.zeros(4, 3, 32, 32))
    assert score.shape == (4, 16, 16)
    assert bool(((score > 0) & (score < 1)).all())
    assert sum(p.numel() for p in Segmenter().parameters()) < 25_000
    with pytest.raises(ValueError, match="with and without"):
        train_segmenter(images, torch.zeros_like(masks))
