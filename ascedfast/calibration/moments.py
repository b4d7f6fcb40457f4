# SPDX-License-Identifier: MIT
"""What x0_hat lacks: variances of sound runs at T_c, location by location."""

import math

import torch
from torch import Tensor


class StateMoments:
    """Sums over runs, float64 [4, C, *grid]: of the state at T_c, its square, the last x0_hat and its square."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._runs = 0

    def add(self, x: Tensor, x0: Tensor) -> None:
        """x: [R, C, *grid], states at T_c; x0: the last predictions before it. Any shape, the same for both. Runs with
        NaN or Inf in either do not count."""
        sound = (x.isfinite() & x0.isfinite()).flatten(1).all(1)
        x, x0 = x[sound].double(), x0[sound].double()
        sums = torch.stack([x.sum(0), x.square().sum(0), x0.sum(0), x0.square().sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._runs += len(x)

    def missing_deviation(self, alpha: float, sigma: float) -> float:
        """The standard deviation that x0_hat lacks, in its units; 0 where it lacks none, or of a single run.

        x0_hat is the mean of what x0 can be, so it varies less; a state of level alpha, sigma noised from it then
        varies less than a sound one. With noise of this deviation on x0_hat, alpha^2*(Var(x0_hat) + noise^2) + sigma^2
        is the variance of sound states. By location, since what all runs have in common says nothing of it."""
        if self._runs < 2:
            return 0.0
        n = self._runs
        x, x_squared, x0, x0_squared = self._sums
        of_x = float(((x_squared - x * x / n) / (n - 1)).mean())
        of_x0 = float(((x0_squared - x0 * x0 / n) / (n - 1)).mean())
        return math.sqrt(max(0.0, (of_x - sigma**2) / alpha**2 - of_x0))
