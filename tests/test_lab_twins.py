# SPDX-License-Identifier: MIT
"""Weak twins against a hand-written oracle."""

import math

import pytest
import torch
from torch import nn

from ascedfast.lab.twins import BITS, TWINS, round_to_bits, twin


def rounded_by_hand(weight, bits):
    """Python's round goes to the even integer, as torch's fake quantisation does."""
    top = 2 ** (bits - 1) - 1
    rows = []
    for row in weight.flatten(1).tolist():
        scale = max(abs(v) for v in row) / top
        rows.append([scale * min(max(round(v / scale), -top), top) if scale else 0.0 for v in row])
    return torch.tensor(rows).reshape(weight.shape)


@pytest.mark.parametrize("bits", [*BITS.values(), 2, 3])
@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3)])
def test_rounding_equals_the_oracle(bits, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(bits))
    weight[1] *= 100  # its own scale, or the other rows lose all
    weight[2] = 0
    found = round_to_bits(weight, bits)
    torch.testing.assert_close(found, rounded_by_hand(weight, bits), rtol=1e-5, atol=1e-6)
    for row, original in zip(found.flatten(1), weight.flatten(1), strict=True):
        assert len(row.unique()) <= 2**bits - 1
        assert float((row - original).abs().max()) <= float(original.abs().max()) / (2 ** (bits - 1) - 1) / 2 * 1.001


def test_rounding_by_a_worked_example():
    weight = torch.tensor([[0.7, -0.34, 0.06, 0.0], [7.0, 2.5, 3.5, -6.6]])
    expected = torch.tensor([[0.7, -0.3, 0.1, 0.0], [7.0, 2.0, 4.0, -7.0]])  # 4 bits: steps of 0.1 and of 1
    torch.testing.assert_close(round_to_bits(weight, 4), expected)


@pytest.mark.parametrize("bits", [1, 17])
def test_odd_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits"):
        round_to_bits(torch.ones(1, 1), bits)


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        round_to_bits(torch.tensor([[1.0, math.nan]]), 8)


def small_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(16, 5))


@pytest.mark.parametrize("kind", TWINS)
def test_twin_changes_weights_of_layers_alone_and_is_deterministic(kind):
    net = small_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    weak, again = twin(net, kind), twin(net, kind)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert weak.state_dict().keys() == before.keys()
    changed = {name for name, value in weak.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "4.weight"}
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in weak.state_dict().items())


def test_pruning_removes_the_smallest_three_tenths_of_each_layer():
    net = small_net()
    weak = twin(net, "P30")
    for before, after in ((net[0].weight, weak[0].weight), (net[4].weight, weak[4].weight)):
        order = sorted(range(before.numel()), key=lambda i: abs(before.flatten()[i].item()))
        removed = set(order[: round(0.3 * before.numel())])
        expected = [0.0 if i in removed else v for i, v in enumerate(before.flatten().tolist())]
        assert after.flatten().tolist() == expected


def test_fewer_bits_are_further_away():
    net, x = small_net().requires_grad_(False), torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    errors = [float((twin(net, kind)(x) - net(x)).square().mean()) for kind in ("W8", "W6", "W4")]
    assert errors == sorted(errors)
    assert errors[0] < 0.01 * errors[2]


def test_unknown_kind_and_empty_net_are_refused():
    with pytest.raises(ValueError, match="unknown twin"):
        twin(small_net(), "W5")
    with pytest.raises(ValueError, match="no convolution"):
        twin(nn.ReLU(), "W8")
