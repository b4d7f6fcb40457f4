# SPDX-License-Identifier: MIT
"""The one algebra: every supported sampler is two linear forms at each noise level.

    x      = alpha * x0 + sigma * e        forward process, e ~ N(0, 1)
    x0_hat = a * x + b * m                 m: the model output that is stepped with

All scalars are Python floats (float64), known on the host before the run.
"""

import math
from typing import NamedTuple


class Coefficients(NamedTuple):
    """Both linear forms at one noise level.

    a, b: ``x0_hat = a*x + b*m``. alpha, sigma: ``x = alpha*x0 + sigma*e``. All float64, no unit.
    """

    a: float
    b: float
    alpha: float
    sigma: float

    @property
    def logsnr(self) -> float:
        """log(alpha^2 / sigma^2); -inf at pure noise, +inf at the clean sample."""
        if self.alpha == 0:
            return -math.inf
        if self.sigma == 0:
            return math.inf
        return 2 * (math.log(abs(self.alpha)) - math.log(abs(self.sigma)))


def eps(alpha: float, sigma: float) -> Coefficients:
    """Noise prediction, m = e (DDPM, arXiv 2006.11239, Eq. 15). Raises ValueError where alpha is 0: x0 is undefined."""
    if alpha == 0:
        raise ValueError("a noise prediction has no x0 at alpha = 0 (zero terminal SNR); use a v prediction")
    return Coefficients(1 / alpha, -sigma / alpha, alpha, sigma)


def v(alpha: float, sigma: float) -> Coefficients:
    """Velocity of the variance-preserving process, m = alpha*e - sigma*x0 (arXiv 2202.00512, App. D)."""
    return Coefficients(alpha, -sigma, alpha, sigma)


def sample(alpha: float, sigma: float) -> Coefficients:
    """The model predicts x0 itself."""
    return Coefficients(0.0, 1.0, alpha, sigma)


def flow(s: float) -> Coefficients:
    """Rectified flow, x = (1-s)*x0 + s*e, m = e - x0, s in [0, 1] (arXiv 2209.03003; diffusers' sign)."""
    return Coefficients(1.0, -s, 1 - s, s)


def inverted_flow(s: float) -> Coefficients:
    """Rectified flow with time turned round (Mochi), x = s*x0 + (1-s)*e, m = x0 - e, s in [0, 1]."""
    return Coefficients(1.0, 1 - s, s, 1 - s)


def ve_eps(s: float) -> Coefficients:
    """Variance-exploding process, x = x0 + s*e, m = e; s is sigma in units of the data (arXiv 2206.00364)."""
    return Coefficients(1.0, -s, 1.0, s)


def ve_v(s: float) -> Coefficients:
    """Variance-exploding coordinates around a v model: the input is x / sqrt(s^2 + 1), m its velocity."""
    return Coefficients(1 / (s * s + 1), -s / math.sqrt(s * s + 1), 1.0, s)


def ve_sample(s: float) -> Coefficients:
    """Variance-exploding process, the model predicts x0 itself."""
    return Coefficients(0.0, 1.0, 1.0, s)


def ve_score(s: float) -> Coefficients:
    """Variance-exploding process, m = -e/s, the score (arXiv 2011.13456; Tweedie: x0 = x + s^2*m)."""
    return Coefficients(1.0, s * s, 1.0, s)


def edm(s: float, sigma_data: float = 0.5) -> Coefficients:
    """EDM preconditioning, x0_hat = c_skip*x + c_out*m (arXiv 2206.00364, Table 1). s, sigma_data > 0, data units."""
    total = s * s + sigma_data * sigma_data
    return Coefficients(sigma_data * sigma_data / total, s * sigma_data / math.sqrt(total), 1.0, s)


def trigflow(s: float, sigma_data: float = 1.0) -> Coefficients:
    """TrigFlow, x = cos(s)*x0 + sin(s)*sigma_data*e, m already times sigma_data; s in radians (arXiv 2410.11081)."""
    return Coefficients(math.cos(s), -math.sin(s), math.cos(s), math.sin(s) * sigma_data)


def pfgmpp(r: float, dim: float, sigma_data: float = 0.5) -> Coefficients:
    """PFGM++ with EDM's preconditioning: that of sigma = r/sqrt(dim) (arXiv 2302.04265). dim: its D > 0.

    Its noise is no Gaussian: a sample's is stretched as a whole by sqrt(D/chi2_D), near 1 with a standard deviation of
    6 % for D = 128, 1.6 % for 2048. What is re-noised is not stretched. Raises ValueError for dim <= 0.
    """
    if dim <= 0:
        raise ValueError(f"dim must be PFGM++'s D > 0, got {dim}; the limit of large D is edm")
    return edm(r / math.sqrt(dim), sigma_data)


def interpolant(alpha: float, sigma: float, dalpha: float, dsigma: float) -> Coefficients:
    """Any path x = alpha(t)*x0 + sigma(t)*e whose model predicts the velocity m = alpha'(t)*x0 + sigma'(t)*e
    (stochastic interpolants, arXiv 2303.08797; SiT, arXiv 2401.08740).

    dalpha, dsigma: derivatives after the t of the model's training; its unit and direction follow from that.
    Raises ValueError where x and m are one equation: alpha*sigma' = sigma*alpha', the noise level stands still.
    """
    det = alpha * dsigma - sigma * dalpha
    if det == 0:
        raise ValueError("a velocity has no x0 where alpha*dsigma == sigma*dalpha: the noise level stands still there")
    return Coefficients(dsigma / det, -sigma / det, alpha, sigma)
