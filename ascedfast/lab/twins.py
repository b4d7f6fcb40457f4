# SPDX-License-Identifier: MIT
"""Weak twins of a network: the same weights with fewer bits, or with the smallest ones removed. Nothing is trained.

    W8, W6, W4   weights rounded to so many bits, symmetric, a scale an output channel
    P30          the 30 % smallest weights (absolute value) of each layer set to 0

Weights of convolutions and linear layers only; biases, norms and embeddings stay. Everything runs in the original
dtype, so a twin shows the error of the rounded weights and nothing of a quantised kernel.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

BITS = {"W8": 8, "W6": 6, "W4": 4}
PRUNED = {"P30": 0.3}
TWINS = (*BITS, *PRUNED)


def twin(net: nn.Module, kind: str) -> nn.Module:
    """A weakened copy; the same weights give the same copy. ``net`` is not modified.

    Raises: ValueError for a kind not in ``TWINS``, or a network without a layer to weaken.
    """
    if kind not in TWINS:
        raise ValueError(f"unknown twin {kind!r}: choose one of {', '.join(TWINS)}")
    weak = copy.deepcopy(net)
    layers = [m for m in weak.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if not layers:
        raise ValueError("the network has no convolution and no linear layer")
    for layer in layers:
        if kind in BITS:
            with torch.no_grad():
                layer.weight.copy_(round_to_bits(layer.weight, BITS[kind]))
        else:
            prune.l1_unstructured(layer, "weight", PRUNED[kind])
            prune.remove(layer, "weight")
    return weak


def round_to_bits(weight: Tensor, bits: int) -> Tensor:
    """Symmetric rounding, a scale an output channel: s*round(w/s), s = max|w| of the channel / (2^(bits - 1) - 1).

    Halves go to the even integer, by torch's own fake quantisation. A channel of zeros stays zero.

    Args: weight: [out, ...], floating, finite. bits: 2 .. 16.
    Raises: ValueError.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"bits must lie in 2..16, got {bits}")
    if not bool(weight.isfinite().all()):
        raise ValueError("a weight is not finite")
    top = 2 ** (bits - 1) - 1
    single = weight.detach().float()
    largest = single.flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / top, 1.0)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(single, scale, zero, 0, -top, top).to(weight.dtype)
