# SPDX-License-Identifier: MIT
"""Distances between a set of real and a set of drawn images, in features of an extractor trained here.

"local" in the names: these are no FID or KID, whose features are Inception's; those of two extractors do not compare.
All three depend on the number of samples: compare runs of the same n, beside real against real of that n.
"""

import warnings

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance


class _Given(nn.Module):
    """Stands where torchmetrics has its extractor: what it gets are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fd_local(real: Tensor, drawn: Tensor) -> float:
    """Fréchet distance of the two sets' normal distributions (Heusel et al., arXiv 1706.08500), by torchmetrics.

    |m1 - m2|^2 + tr(S1 + S2 - 2*(S1*S2)^(1/2)), covariances with n - 1.

    Args: real: [n, d], drawn: [m, d], any float dtype, computed in float64; n, m >= 2.
    Raises: ValueError.
    """
    # On a CPU: few numbers, and the eigenvalues of a matrix that is not symmetric need MAGMA on a GPU.
    real, drawn = (features.cpu() for features in _pair(real, drawn))
    metric = FrechetInceptionDistance(_Given(real.shape[1]), normalize=True)
    centre = real.mean(0)  # the sums of squares that torchmetrics keeps lose digits far from 0
    metric.update(real - centre, real=True)
    metric.update(drawn - centre, real=False)
    return float(metric.compute())


def fd_floor(covariance: Tensor, n: int) -> float:
    """What ``fd_local`` is expected to give for two sets of n from one normal distribution, to first order in 1/n.

    2*tr(S)/n + sum_ij l_i*l_j*(1 + [i = j]) / ((l_i + l_j)*(n - 1)), l the eigenvalues of S: the noise of the means,
    and the second-order term of the Bures distance with the variance of a sample covariance (Wishart).

    Args: covariance: [d, d]. n: samples in each set, well above d.
    """
    eigenvalues = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    products = torch.outer(eigenvalues, eigenvalues) * (1 + torch.eye(len(eigenvalues), dtype=torch.float64))
    sums = eigenvalues[:, None] + eigenvalues[None, :]
    spread = torch.where(sums > 0, products / sums.clamp(min=1e-300), 0.0).sum()
    return float(2 * eigenvalues.sum() / n + spread / (n - 1))


def kid_local(real: Tensor, drawn: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x.y/d + 1)^3 (Bińkowski et al., arXiv 1801.01401), by torchmetrics.

    One subset that holds all samples, so nothing is drawn at random.

    Args: real, drawn: [n, d] each, n >= 2; computed in float64. Memory: 3*n^2 float64.
    Raises: ValueError, also where the sets differ in size.
    """
    real, drawn = _pair(real, drawn)
    if len(real) != len(drawn):
        raise ValueError(f"kid_local compares sets of one size, got {len(real)} and {len(drawn)}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer")
        metric = KernelInceptionDistance(_Given(real.shape[1]), subsets=1, subset_size=len(real), normalize=True)
    metric = metric.to(real.device)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    with torch.random.fork_rng(devices=[]):  # it shuffles by the global generator, which is the caller's
        torch.default_generator.manual_seed(0)  # not torch.manual_seed, which seeds the GPUs' generators too
        return float(metric.compute()[0])


def precision_recall(real: Tensor, drawn: Tensor, k: int = 3, chunk: int = 1024) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991).

    A set's manifold: the balls around its points that reach to their k-th nearest neighbour in the set, itself not
    counted; the border belongs to the ball. Precision: share of drawn points in the manifold of the real ones;
    recall: share of real points in that of the drawn ones.

    Args:
        real, drawn: [n, d], [m, d], more than k points each; computed in float64.
        chunk: points whose distances are held at once.
    Raises: ValueError.
    """
    real, drawn = _pair(real, drawn)
    if not 1 <= k < min(len(real), len(drawn)):
        raise ValueError(f"k must lie in 1..{min(len(real), len(drawn)) - 1}, got {k}")
    return _covered(drawn, real, k, chunk), _covered(real, drawn, k, chunk)


def _covered(points: Tensor, centres: Tensor, k: int, chunk: int) -> float:
    # The k+1-th smallest: the smallest is the point itself, at distance 0.
    radii = torch.cat([_distances(part, centres).kthvalue(k + 1, dim=1).values for part in centres.split(chunk)])
    inside = [(_distances(part, centres) <= radii).any(1) for part in points.split(chunk)]
    return float(torch.cat(inside).double().mean())


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # By matrix products, the distance of a point to itself would not be 0.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _pair(real: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    for name, features in (("real", real), ("drawn", drawn)):
        if features.dim() != 2 or len(features) < 2 or features.shape[1] == 0 or not features.is_floating_point():
            raise ValueError(
                f"{name} features must be float [n, d], n >= 2, got {features.dtype} {tuple(features.shape)}"
            )
        if not bool(features.isfinite().all()):
            raise ValueError(f"{name} features hold NaN or Inf")
    if real.shape[1] != drawn.shape[1] or real.device != drawn.device:
        raise ValueError(f"features differ: {real.shape[1]} on {real.device}, {drawn.shape[1]} on {drawn.device}")
    return real.detach().double(), drawn.detach().double()
