# SPDX-License-Identifier: MIT
"""Two rivals that need data: last-layer-Laplace uncertainty, and a stand-in for supervised artifact segmenters.

The segmenter is no published model: a small net trained here on planted traps. Wherever its figures stand they are
labelled "stand-in".
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascedfast.lab.corrections import Prefix
from ascedfast.lab.detectors import Detector
from ascedfast.lab.subject import Subject

CHUNK = 32
"""Rows whose patches are held at once: 9 float64 a channel and location with a 3x3 kernel."""


class LastLayerLaplace:
    """Uncertainty of the model output from its last layer alone (after BayesDiff, arXiv 2310.11142), written anew.

    The posterior of the last convolution's weights is normal with the diagonal of the generalised Gauss-Newton matrix
    of the squared error: precision_j = prior + sum over data and locations of phi_j^2 / noise^2, phi the patch that
    the kernel sees. The variance of an output location is sum_j phi_j^2 / precision_j, in each output channel alike.

    Args: conv: the layer. prior: precision of the weights. noise: standard deviation of the residuals.
    Raises: ValueError for a layer with groups, or with another padding than zeros of a given width.
    """

    def __init__(self, conv: nn.Conv2d, prior: float = 1.0, noise: float = 1.0) -> None:
        if conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise ValueError("only a plain convolution: groups 1, zeros as padding, its width a number")
        if prior <= 0 or noise <= 0:
            raise ValueError(f"prior and noise must be above 0, got {prior} and {noise}")
        self.conv, self.noise = conv, noise
        count = conv.in_channels * math.prod(conv.kernel_size)
        self.precision = torch.full((count,), prior, dtype=torch.float64, device=conv.weight.device)

    @torch.no_grad()
    def fit(self, call: Callable[[], object]) -> "LastLayerLaplace":
        """Add to the sums what ``call`` sends through the layer: forward passes on real data, noised."""
        with self._watched() as seen:
            call()
        for inputs in seen:
            for part in inputs.split(CHUNK):
                self.precision += self._squares(part).sum((0, 2)) / self.noise**2
        return self

    @torch.no_grad()
    def variance(self, call: Callable[[], object]) -> Tensor:
        """Variance of the outputs of the last pass that ``call`` makes: float64 [R, H, W].

        Raises: RuntimeError where the layer was not called."""
        with self._watched() as seen:
            call()
        if not seen:
            raise RuntimeError("the layer was not called: is it a part of this model?")
        conv, inputs = self.conv, seen[-1]
        grid = [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                inputs.shape[2:], conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
            )
        ]
        scale = 1 / self.precision
        found = [torch.einsum("rjl,j->rl", self._squares(part), scale) for part in inputs.split(CHUNK)]
        return torch.cat(found).reshape(-1, *grid)

    def detector(self, subject: Subject) -> Detector:
        """Standard deviation of x0_hat at the last step before T_c: |b| * sqrt(variance)."""

        def score(prefix: Prefix, images: Tensor) -> Tensor:
            step = prefix.step - 1
            variance = self.variance(lambda: subject.denoise(prefix.before, step))
            return abs(subject.schedule.before[step].b) * variance.sqrt()

        return score

    def _squares(self, inputs: Tensor) -> Tensor:
        conv = self.conv
        return F.unfold(inputs.double(), conv.kernel_size, conv.dilation, conv.padding, conv.stride).square()

    @contextmanager
    def _watched(self) -> Iterator[list[Tensor]]:
        seen: list[Tensor] = []
        handle = self.conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        try:
            yield seen
        finally:
            handle.remove()


class Segmenter(nn.Module):
    """A stand-in: grey image in, one logit a location out; dilated convolutions, about 20,000 parameters.

    Grey, so that a net trained on one data set takes the images of another.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for dilation in (1, 1, 2, 4):
            layers += [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.SiLU()]
            channels = width
        self.net = nn.Sequential(*layers, nn.Conv2d(width, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[R, C, H, W] in [-1, 1], clipped -> logits [R, H, W]."""
        return self.net(images.clamp(-1, 1).mean(1, keepdim=True))[:, 0]

    def detector(self) -> Detector:
        """Its probability, as a score; of a latent run, at the latents' grid."""

        @torch.no_grad()
        def score(prefix: Prefix, images: Tensor) -> Tensor:
            probability = self(images.float()).sigmoid()[:, None]
            return F.adaptive_avg_pool2d(probability, tuple(prefix.x.shape[2:]))[:, 0]

        return score


def train_segmenter(
    images: Tensor, masks: Tensor, *, iterations: int = 400, batch: int = 64, rate: float = 3e-3, seed: int = 0
) -> Segmenter:
    """A stand-in trained on final images with and without planted traps, by cross-entropy.

    Args: images: [n, C, H, W]. masks: bool [n, H, W], where a trap was planted; both classes must be there.
    Returns: on the images' device, in evaluation mode, without gradients. On a CPU a seed gives the same net again.
    Raises: ValueError.
    """
    share = float(masks.double().mean())
    if not 0 < share < 1:
        raise ValueError("the segmenter needs locations with and without a trap")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = Segmenter()
    net.to(images.device)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    weight = torch.tensor((1 - share) / share, device=images.device).sqrt()
    with torch.enable_grad():
        for _ in range(iterations):
            rows = torch.randint(len(images), (batch,), generator=generator).to(images.device)
            loss = F.binary_cross_entropy_with_logits(net(images[rows].float()), masks[rows].float(), pos_weight=weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
    return net.eval().requires_grad_(False)
