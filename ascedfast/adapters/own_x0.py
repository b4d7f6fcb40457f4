# SPDX-License-Identifier: MIT
"""The scheduler's own prediction, where it is not a*x + b*m of what ``step`` was given."""

from typing import Any

from torch import Tensor

from ascedfast.adapters.per_token import TOKENS, x0_by_token
from ascedfast.adapters.support import facts_of
from ascedfast.process import Coefficients

CHURNED = ("EulerDiscreteScheduler", "EDMEulerScheduler")
"""They add noise to the state first, and return the prediction that they make from the noisier one. FlowMatchHeun does
so too, but its model never sees that state."""


def own_x0(scheduler: Any, base: type, call: dict[str, Any], out: Any, level: Coefficients) -> Tensor | None:
    """The scheduler's x0_hat of the step that it has just made at ``level`` with the result ``out``, in the sampler's
    layout; None where it is a*x + b*m, clamped or not. Dynamic thresholds depend on the whole sample, churn on noise,
    tokens may have levels of their own.
    """
    if call.get(TOKENS) is not None:
        return x0_by_token(scheduler, call)
    threshold = facts_of(scheduler).threshold
    if threshold and scheduler.config.get("thresholding") and getattr(scheduler, "predict_x0", True):
        if threshold == "returned":
            return _returned(out)
        if threshold == "remembered":
            return scheduler.model_outputs[-1]
        x = call["sample"]
        return scheduler._threshold_sample(level.a * x + level.b * prediction_of(call["model_output"], x))
    churned = base.__name__ in CHURNED and call.get("s_churn", 0) > 0
    if churned or call.get("pred_original_sample") is not None:
        return _returned(out)
    return None


def prediction_of(m: Tensor, x: Tensor) -> Tensor:
    """A model output without its variance: learned variances double the channels, whichever axis theirs is."""
    for axis, (given, wanted) in enumerate(zip(m.shape, x.shape, strict=False)):
        if given == 2 * wanted:
            return m.narrow(axis, 0, wanted)
    return m


def _returned(out: Any) -> Tensor:
    return out[1] if isinstance(out, tuple) else out.pred_original_sample
