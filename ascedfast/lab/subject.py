# SPDX-License-Identifier: MIT
"""What the laboratory asks of a model under test, and a toy whose denoiser is known in closed form."""

import dataclasses
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ascedfast import process
from ascedfast.lab.sampling import start_noise
from ascedfast.schedule import Schedule


@runtime_checkable
class Subject(Protocol):
    """A sampler under test. Rows never depend on each other.

    Optional, found by name with ``ability``:
        features(images [n, C, H, W]) -> [n, d]: of an extractor trained on real images only.
        defects(images) -> (score [n], map bool [n, H, W] at the grid of the state): the judge; an image is defective
            where its score is above 0.
        real(count, offset) -> images in [-1, 1]: real ones in a fixed order, round and round.
        reference(count, offset): those that drawn images are compared with, where real's are too few for that.
        with_steps(steps) -> Subject: the same model with another number of steps.
        conditional(seeds) -> (denoise, labels int64 [n]): the rows' classes, and a denoiser that is given them.
        last_conv: the torch.nn.Conv2d that gives the model output, for ``detectors.LastLayerLaplace``.
        latent: True where the state is no image; then decode is not the identity. fingerprint: of the weights.
    """

    name: str
    shape: tuple[int, int, int]
    schedule: Schedule

    def denoise(self, x: Tensor, step: int) -> Tensor:
        """Model output [R, C, H, W] for the states before ``step``."""
        ...

    def start(self, seeds: Sequence[int]) -> Tensor:
        """States at the first level, each from its own seed, on the device of the model."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Images in [-1, 1], not clipped, from final states."""
        ...


class MissingAbility(LookupError):
    """A subject cannot do what a measurement needs; the message says what."""


def ability(subject: Subject, name: str) -> Any:
    """The optional member. Raises: MissingAbility where the subject has none (or None)."""
    found = getattr(subject, name, None)
    if found is None:
        raise MissingAbility(f"{subject.name} has no {name}")
    return found


@torch.no_grad()
def in_chunks(f: Callable[[Tensor], Any], images: Tensor, chunk: int = 500) -> Any:
    """f over parts of a batch: a tensor, or a tuple of tensors, put together again."""
    parts = [f(part) for part in images.split(chunk)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(one) for one in zip(*parts, strict=True))
    return torch.cat(parts)


def load(name: str, device: str = "cpu") -> Subject:
    """A toy ("toy", "toy-blend"), a folder of a local pipeline, or a family of ``ascedfast.lab.families``.

    Raises: ValueError for an unknown name or a folder that cannot be sampled; what the families raise where their
    weights are missing."""
    if name in TOYS:
        return TOYS[name](device)
    if (Path(name) / "model_index.json").is_file():
        return importlib.import_module("ascedfast.lab.folder").load_folder(Path(name), device)
    families = importlib.import_module("ascedfast.lab.families")
    return families.load(name, device)


@dataclass(frozen=True, eq=False)
class Toy:
    """Independent tiles, each of one of two looks plus white noise: E[x0 | x] is exact.

        r_k = softmax_k(-|x - alpha*mu_k|^2 / (2*(v + haze^2))),  v = alpha^2*spread^2 + sigma^2
        x0_hat = sum_k r_k * (mu_k + (alpha*spread^2/v)*(x - alpha*mu_k))

    With haze above 0 the looks mix, as modes do in models (arXiv 2406.09358): the judge counts such tiles.

    Attributes: size, tile: side of image and tile in pixels. spread: of the white noise.
    """

    device: str = "cpu"
    name: str = "toy"
    steps: int = 20
    size: int = 16
    tile: int = 4
    spread: float = 0.05
    haze: float = 0.0
    linear_beta: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return 1, self.size, self.size

    @property
    def schedule(self) -> Schedule:
        logsnr = torch.linspace(-8.0, 5.0, self.steps, dtype=torch.float64).tolist()
        alphas = [1 / math.sqrt(1 + math.exp(-value)) for value in logsnr]
        levels = [process.eps(alpha, math.sqrt(1 - alpha * alpha)) for alpha in alphas]
        return Schedule.from_levels(levels, linear_beta=self.linear_beta)

    @property
    def looks(self) -> Tensor:
        """[2, tiles, tile*tile]: a bright block on dark ground, at two places."""
        side, half = self.size // self.tile, self.tile // 2
        bank = torch.full((2, self.tile, self.tile), -0.7, device=self.device)
        bank[0, :half], bank[1, :, half:] = 0.7, 0.5
        return bank.reshape(2, 1, -1).expand(2, side * side, -1)

    def denoise(self, x: Tensor, step: int) -> Tensor:
        level = self.schedule.before[step]
        x0 = self._posterior(x, level, allowed=None)
        return (x0 - level.a * x) / level.b

    def conditional(self, seeds: Sequence[int]) -> tuple[Callable[[Tensor, int], Tensor], Tensor]:
        """The class is the look of the first tile."""
        labels = torch.tensor([seed % 2 for seed in seeds], device=self.device)
        allowed = torch.zeros(len(seeds), 2, (self.size // self.tile) ** 2, device=self.device)
        allowed[torch.arange(len(seeds)), 1 - labels, 0] = -math.inf

        def denoise(x: Tensor, step: int) -> Tensor:
            level = self.schedule.before[step]
            return (self._posterior(x, level, allowed) - level.a * x) / level.b

        return denoise, labels

    def start(self, seeds: Sequence[int]) -> Tensor:
        return start_noise(seeds, self.shape).to(self.device)

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def with_steps(self, steps: int) -> "Toy":
        return dataclasses.replace(self, steps=steps)

    def real(self, count: int, offset: int = 0) -> Tensor:
        noise = start_noise(range(offset, offset + count), self.shape).to(self.device)
        tiles = (self.size // self.tile) ** 2
        picked = start_noise(range(offset + (1 << 26), offset + count + (1 << 26)), (tiles, 1)).to(self.device) > 0
        chosen = torch.where(picked, self.looks[0], self.looks[1])
        return self._join(chosen) + self.spread * noise

    def features(self, images: Tensor) -> Tensor:
        """Means of the quarters of the image and of their rows: 8 numbers."""
        quarters = F.adaptive_avg_pool2d(images, 2).flatten(1)
        return torch.cat([quarters, F.adaptive_avg_pool2d(images[:, :, ::2], 2).flatten(1)], 1)

    def defects(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles farther than 6 spreads (RMS) from both looks."""
        tiles = self._split(images)
        distance = (tiles[:, None] - self.looks).square().mean(-1).sqrt().amin(1) - 6 * self.spread
        side = self.size // self.tile
        marked = (distance > 0).reshape(-1, side, side)
        return distance.amax(1), marked.repeat_interleave(self.tile, 1).repeat_interleave(self.tile, 2)

    def _posterior(self, x: Tensor, level: process.Coefficients, allowed: Tensor | None) -> Tensor:
        tiles, looks = self._split(x), self.looks.to(x.dtype)
        variance = (level.alpha * self.spread) ** 2 + level.sigma**2
        difference = tiles[:, None] - level.alpha * looks
        logits = -difference.square().sum(-1) / (2 * (variance + self.haze**2))
        weights = (logits if allowed is None else logits + allowed.to(x.dtype)).softmax(1)
        means = looks + (level.alpha * self.spread**2 / variance) * difference
        return self._join((weights[..., None] * means).sum(1))

    def _split(self, x: Tensor) -> Tensor:
        side, tile = self.size // self.tile, self.tile
        return x.reshape(-1, side, tile, side, tile).transpose(2, 3).reshape(-1, side * side, tile * tile)

    def _join(self, tiles: Tensor) -> Tensor:
        side, tile = self.size // self.tile, self.tile
        return tiles.reshape(-1, side, side, tile, tile).transpose(2, 3).reshape(-1, 1, self.size, self.size)


TOYS: dict[str, Callable[[str], Toy]] = {
    "toy": Toy,
    "toy-blend": lambda device: Toy(device, "toy-blend", haze=1.1),
}
