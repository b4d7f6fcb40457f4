# SPDX-License-Identifier: MIT
"""The contrast at which half of the plants are found: a logistic fit on the logarithm of the contrast."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from ascedfast.lab.statistics import CONFIDENCE, Estimate


def contrast50(contrast: ArrayLike, found: ArrayLike, confidence: float = CONFIDENCE) -> Estimate:
    """The contrast c at which P(found) = 1/2 in logit P = b0 + b1 * ln c, with Fieller's interval.

    The fit maximises the likelihood with Firth's penalty, half the log determinant of the information (Firth,
    Biometrika 80, 1993), so it exists where found and missed do not overlap. Fieller's interval (1954) is the set of
    contrasts at which the fitted logit does not differ from 0; it is unbounded on a side that the data leave open.

    Args:
        contrast: [n], > 0, in the unit of the answer. found: bool [n].
    Returns: n plants. When none was found: value inf, interval from the largest contrast to inf; when all were: value
        0, interval from 0 to the smallest contrast; the figure then lies beyond the contrasts tried. When recall does
        not rise with contrast: value NaN, interval 0 to inf. A fitted value or an end of the interval beyond the
        contrasts tried is not given as a figure: it becomes inf, or 0, and the other end stays within them.
    Raises: ValueError.
    """
    contrast, found = np.asarray(contrast, dtype=float), np.asarray(found)
    if contrast.ndim != 1 or contrast.shape != found.shape or found.dtype != bool or contrast.size < 3:
        raise ValueError(f"need [n] contrasts and bool [n], n >= 3; got {contrast.shape}, {found.dtype} {found.shape}")
    if not (np.isfinite(contrast) & (contrast > 0)).all():
        raise ValueError("contrasts must be finite and above 0: a null plant has none")
    n = contrast.size
    if not found.any():
        return Estimate(math.inf, float(contrast.max()), math.inf, n)
    if found.all():
        return Estimate(0.0, 0.0, float(contrast.min()), n)
    at = np.log(contrast)
    if at.min() == at.max():
        raise ValueError("all contrasts are equal: nothing to fit")
    centre, spread = at.mean(), at.std()
    (b0, b1), covariance = firth_logistic((at - centre) / spread, found)
    if b1 <= 0:
        return Estimate(math.nan, 0.0, math.inf, n)
    low, high = _fieller(b0, b1, covariance, stats.norm.ppf((1 + confidence) / 2))
    return _within(*(_exp(centre + spread * x) for x in (-b0 / b1, low, high)), contrast, n)


def _within(value: float, low: float, high: float, contrast: NDArray, n: int) -> Estimate:
    """What the fit says beyond the contrasts tried is a bound, not a figure."""
    least, most = float(contrast.min()), float(contrast.max())
    if value > most:
        return Estimate(math.inf, min(low, most) if low >= least else 0.0, math.inf, n)
    if value < least:
        return Estimate(0.0, 0.0, max(high, least) if high <= most else math.inf, n)
    return Estimate(value, low if low >= least else 0.0, high if high <= most else math.inf, n)


def _exp(x: float) -> float:
    return float(np.exp(min(x, 700.0))) if x < math.inf else x


def firth_logistic(x: NDArray, found: NDArray) -> tuple[NDArray, NDArray]:
    """(b0, b1) of logit P(found) = b0 + b1*x with Firth's penalty, and their covariance, the inverse information.

    Args: x: [n], best of mean 0 and deviation 1. found: bool [n].
    Raises: ArithmeticError when the maximum is not found.
    """
    design = np.stack([np.ones_like(x), x], 1)

    def information(beta: NDArray) -> tuple[NDArray, NDArray]:
        p = special.expit(design @ beta)
        weighted = design * (p * (1 - p))[:, None]
        return p, weighted.T @ design

    def loss(beta: NDArray) -> tuple[float, NDArray]:
        eta = design @ beta
        p, inner = information(beta)
        leverage = np.einsum("ij,jk,ik->i", design, np.linalg.pinv(inner), design) * p * (1 - p)
        value = (found * eta - np.logaddexp(0, eta)).sum() + np.linalg.slogdet(inner)[1] / 2
        return -float(value), -design.T @ (found - p + leverage * (0.5 - p))

    best = optimize.minimize(loss, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8})
    # BFGS reports a loss of precision where it cannot get below gtol: what counts is how flat the place is.
    if not np.abs(best.jac).max() < 1e-5 * math.sqrt(len(x)):
        raise ArithmeticError(f"the logistic fit did not converge: {best.message}")
    return best.x, np.linalg.inv(information(best.x)[1])


def _fieller(b0: float, b1: float, v: NDArray, z: float) -> tuple[float, float]:
    """{x: (b0 + b1*x)^2 <= z^2 * Var(b0 + b1*x)}, a half line or the whole line where b1 may be 0."""
    a = b1 * b1 - z * z * v[1, 1]
    b = b0 * b1 - z * z * v[0, 1]
    c = b0 * b0 - z * z * v[0, 0]
    if a <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    return (-b - root) / a, (-b + root) / a
