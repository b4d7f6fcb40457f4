# SPDX-License-Identifier: MIT
"""Every tensor that an op makes for itself is on its inputs' device.

The "meta" device stands in for an accelerator: it holds no data, and refuses to be mixed with CPU tensors.
"""

import pytest
import torch

from ascedfast import detect, noise, ops, reference
from ascedfast.noise import Purpose

R, C, H, W = 2, 5, 12, 10


def on_meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


X, X0 = on_meta(R, C, H, W), on_meta(R, C, H, W)
ROW, SEEDS = on_meta(R), on_meta(R, dtype=torch.int64)
MASK = on_meta(R, H, W, dtype=torch.bool)
STATISTICS = {"mad_scale": 3.0, "mad_floor": 0.1, "blur_sigma": 1.0, "z_floor": 0.1}
COLUMNS = {"seeds": SEEDS, "steps": SEEDS, "draws": SEEDS}

CALLS = {
    "philox": lambda: noise.philox4x32((SEEDS, 0, 0, 1), (SEEDS, 7))[0],
    "normal": lambda: noise.normal(SEEDS, C, (H, W), step=3, purpose=Purpose.RENOISE, draw=SEEDS),
    "step_dynamics": lambda: ops.step_dynamics(X, X, ROW, ROW, X0, clip=1.0)[1],
    "robust_threshold": lambda: ops.robust_threshold(on_meta(3, R, C, H, W), **STATISTICS)[1],
    "temporal_scores": lambda: ops.temporal_scores(on_meta(3, R, H, W), [2.0, 1.5, 1.0])[1],
    "dilate_mask": lambda: ops.dilate_mask(MASK, 2),
    "renoise_": lambda: ops.renoise_(X, MASK, X0, ROW, ROW, **COLUMNS, x0_noise=ROW),
    "full_blocks": lambda: reference._full_blocks(MASK, 3),
    "gaussian_blur": lambda: reference.gaussian_blur(X, 1.5, (2, 3, 1)),
    "grey_levels": lambda: detect.grey_levels(X0),
    "weighted_score": lambda: detect.weighted_score(X, X0, ROW),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_results_stay_on_the_device(call):
    assert call().device.type == "meta"
