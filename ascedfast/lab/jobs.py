# SPDX-License-Identifier: MIT
"""What is trained, one job a network: how it learns, from which data, and how well it does on what was held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ascedfast.lab import data, emoji, families, nets
from ascedfast.lab.data import ImageSet
from ascedfast.lab.extractors import RANDOM, Classifier, PatchNet, cut_and_paste, patch_loss
from ascedfast.lab.glyphs import BITMAPS, SIDE
from ascedfast.lab.loop import Loop
from ascedfast.lab.objectives import NoiseLoss, draw_logit_normal, draw_uniform_steps, velocity_loss

AVERAGE_LIMIT = 0.999
SMALL_LIMIT, SMALL_BATCH = 256, 8
NO_CLASS_SHARE = 0.1
KL_WEIGHT = 1e-6
EMOJI_SHIFT = 2  # pixels
LATENT_SHIFTS = (-2, 0, 2)


class Batches(Loop):
    """The loop on an image set that lies on the device: rows drawn by weight, with replacement."""

    def __init__(self, model: nn.Module, images: ImageSet, batch: int, device: torch.device, seed: int, **how: Any):
        super().__init__(model.to(device), device, seed, average_limit=AVERAGE_LIMIT, **how)
        self.images, self.labels = images.images.to(device), images.labels.to(device)
        self.chances = None if images.weights is None else images.weights.cumsum(0).float().to(device)
        self.x0 = torch.empty(batch, *images.images.shape[1:], device=device).to(memory_format=self.layout)
        self.y = torch.empty(batch, *images.labels.shape[1:], device=device, dtype=torch.int64)

    def draw_rows(self) -> Tensor:
        """Indices of a batch, int64 [B]."""
        count = len(self.x0)
        if self.chances is None:
            return torch.randint(len(self.images), (count,), device=self.device, generator=self.generator)
        chance = torch.rand(count, device=self.device, generator=self.generator)
        # Rounding may leave the last sum below 1.
        return torch.searchsorted(self.chances, chance).clamp_(max=len(self.images) - 1)

    def draw_images(self, rows: Tensor) -> Tensor:
        """The images of these rows; emoji (64 px) moved by up to EMOJI_SHIFT pixels."""
        picked = self.images[rows]
        if picked.shape[-1] != 64:
            return picked
        moved = F.pad(picked, [EMOJI_SHIFT] * 4, value=1.0)
        top, left = torch.randint(2 * EMOJI_SHIFT + 1, (2, len(rows), 1), device=self.device, generator=self.generator)
        lines = torch.arange(64, device=self.device)
        y, x = (top + lines)[:, None, :, None], (left + lines)[:, None, None, :]
        return moved[torch.arange(len(rows), device=self.device)[:, None, None, None], self._channel, y, x]

    @property
    def _channel(self) -> Tensor:
        return torch.arange(self.images.shape[1], device=self.device)[None, :, None, None]


class DenoiserLoop(Batches):
    """Learns a denoiser of images or of latents. classes: of a conditional one, which sees some batches without."""

    def __init__(self, *args: Any, objective: Callable, levels: Callable, classes: int | None = None, **how: Any):
        super().__init__(*args, **how)
        self.objective, self.levels, self.classes = objective, levels, classes
        self.noise = torch.empty_like(self.x0)
        self.t = torch.empty(len(self.x0), device=self.device)

    def refill(self) -> None:
        rows = self.draw_rows()
        self.x0.copy_(self.images[rows])
        if self.classes is not None:
            left_out = torch.rand(len(rows), device=self.device, generator=self.generator) < NO_CLASS_SHARE
            self.y.copy_(torch.where(left_out, self.classes, self.labels[rows]))
        self.noise.normal_(generator=self.generator)
        self.t.copy_(self.levels(len(rows), self.device, self.generator))

    def loss(self) -> Tensor:
        labels = None if self.classes is None else self.y
        return self.objective(self.network, self.x0, self.noise, self.t, labels)


class VaeLoop(Batches):
    """Learns an autoencoder: absolute error, its gradient's too, and a weak pull of the posterior to N(0, 1)."""

    def __init__(self, *args: Any, **how: Any):
        super().__init__(*args, **how)
        side = self.x0.shape[-1] // 4
        self.noise = torch.empty(len(self.x0), 4, side, side, device=self.device)

    def refill(self) -> None:
        self.x0.copy_(self.draw_images(self.draw_rows()))
        self.noise.normal_(generator=self.generator)

    def loss(self) -> Tensor:
        posterior = self.network.encode(self.x0).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        made = self.network.decode(mean + torch.exp(0.5 * logvar) * self.noise).sample.float()
        error = made - self.x0
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        pull = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        return error.abs().mean() + 0.5 * edges + KL_WEIGHT * pull


class ClassifierLoop(Batches):
    """Learns the labels."""

    def refill(self) -> None:
        rows = self.draw_rows()
        self.x0.copy_(self.draw_images(rows))
        self.y.copy_(self.labels[rows])

    def loss(self) -> Tensor:
        return F.cross_entropy(self.network(self.x0).float(), self.y)


class PatchLoop(Batches):
    """Learns which patches a rectangle of another image reaches into."""

    def __init__(self, *args: Any, **how: Any):
        super().__init__(*args, **how)
        self.change = torch.empty(len(self.x0), *self.x0.shape[2:], device=self.device)

    def refill(self) -> None:
        images, others = (self.draw_images(self.draw_rows()) for _ in range(2))
        random = torch.rand(len(images), RANDOM, device=self.device, generator=self.generator)
        strewn = torch.rand(len(images), *images.shape[2:], 2, device=self.device, generator=self.generator)
        made, change = cut_and_paste(images, others, random, strewn)
        self.x0.copy_(made)
        self.change.copy_(change)

    def loss(self) -> Tensor:
        return patch_loss(self.network, self.x0, self.change)


@dataclass(frozen=True)
class Job:
    """One network to train.

    name: of the folder. part: of the network's folder in it. minutes: default budget on one H100. make(device, seed,
    small, root): a loop; root is where earlier jobs wrote. check(model, small): figures on held-out images, for the
    card. family: whose samples the card shows. finish(model, small): what is written into the configuration. early:
    (share of the budget, folder) of a checkpoint that is kept.
    """

    name: str
    family: str | None
    part: str
    minutes: float
    summary: str
    source: str
    batch: int
    rate: float
    make: Callable[[torch.device, int, bool, Path], Loop]
    check: Callable[[nn.Module, bool], dict[str, float]] = field(default=lambda model, small: {})
    finish: Callable[[nn.Module, bool], None] = field(default=lambda model, small: None)
    early: tuple[float, str] | None = None

    @property
    def command(self) -> str:
        """What ``--family`` calls it."""
        return next(name for name, group in JOBS.items() if self in group)


def split_of(source: str, small: bool) -> data.Split:
    """The data; few of them for a small test."""
    return data.load(source, SMALL_LIMIT if small else None)


def _unet_job(name: str, minutes: float, early: tuple[float, str] | None = None) -> Job:
    family = families.FAMILIES[name]
    noise = "cosine schedule" if name == "F2" else "linear beta 1e-4 to 0.02 over 1000 steps"
    condition = "" if family.classes is None else f"; given one of {family.classes} classes or, one image in ten, none"
    batch, rate = 256, 1e-3

    def make(device: torch.device, seed: int, small: bool, root: Path) -> Loop:
        torch.manual_seed(seed)
        how = {"learning_rate": 4e-3 if small else rate, "channels_last": True, "classes": family.classes}
        objective = NoiseLoss(family.scheduler().alphas_cumprod)
        images = split_of(family.data, small).train
        args = (family.build(small), images, SMALL_BATCH if small else batch, device, seed)
        return DenoiserLoop(*args, objective=objective, levels=draw_uniform_steps, **how)

    summary = (
        f"U-Net (diffusers `UNet2DModel`), predicts the noise, {noise}; loss weighted by min(SNR, 5) / SNR{condition}"
    )
    return Job(family.folder, name, "unet", minutes, summary, family.data, batch, rate, make, early=early)


def _latent_job() -> Job:
    def make(device: torch.device, seed: int, small: bool, root: Path) -> Loop:
        vae = families.load_net(AutoencoderKL, root / "f4-vae", "vae", "F4-vae").to(device).eval()
        shown = split_of("emoji64", small).train
        pixels = F.pad(shown.images, [EMOJI_SHIFT] * 4, value=1.0)
        shifts = [(y, x) for y in LATENT_SHIFTS for x in LATENT_SHIFTS] if not small else [(0, 0)]
        latents = []
        with torch.no_grad():
            for y, x in shifts:
                moved = pixels[:, :, EMOJI_SHIFT + y :, EMOJI_SHIFT + x :][:, :, :64, :64]
                latents += [nets.to_latents(vae, part.to(device)).cpu() for part in moved.split(256)]
        n = len(shifts)
        images = ImageSet(torch.cat(latents), shown.labels.repeat(n), shown.weights.repeat(n) / n)
        torch.manual_seed(seed)
        args = (nets.latent_dit(small), images, SMALL_BATCH if small else 256, device, seed)
        how = {"objective": velocity_loss, "levels": draw_logit_normal, "learning_rate": 1e-3}
        return DenoiserLoop(*args, **how)

    summary = (
        "diffusion transformer (diffusers `PixArtTransformer2DModel` without captions, a token a location) on the "
        "latents of `f4-vae`; rectified flow, predicts noise - x0; logit(s) ~ N(0.5, 1), one draw in ten uniform"
    )
    return Job("f4-dit", "F4", "transformer", 5.0, summary, "emoji64", 256, 1e-3, make)


def _vae_job() -> Job:
    def make(device: torch.device, seed: int, small: bool, root: Path) -> Loop:
        torch.manual_seed(seed)
        images, batch = split_of("emoji64", small).train, 4 if small else 64
        return VaeLoop(nets.emoji_vae(small), images, batch, device, seed, learning_rate=1e-3, channels_last=True)

    def finish(model: nn.Module, small: bool) -> None:
        images = split_of("emoji64", small).train.images[:2048]
        nets.measure_latents(model, images.to(next(model.parameters()).device))

    def check(model: nn.Module, small: bool) -> dict[str, float]:
        images = split_of("emoji64", small).held_out.images.to(next(model.parameters()).device)
        made = torch.cat([nets.from_latents(model, nets.to_latents(model, part)) for part in images.split(128)])
        error = (made.clamp(-1, 1) - images).square().mean((1, 2, 3)).sqrt() * 127.5
        return {"RMS error of held-out images, grey levels": float(error.mean())}

    summary = "autoencoder (diffusers `AutoencoderKL` without attention), 3x64x64 to 4x16x16"
    return Job("f4-vae", None, "vae", 2.0, summary, "emoji64", 64, 1e-3, make, check, finish)


LABELS = {"fashion32": (10, 1), "emoji64": (len(emoji.CATEGORY_SHARES), 1), "glyphs32": (len(BITMAPS), SIDE * SIDE)}


def _classifier_job(source: str, minutes: float) -> Job:
    classes, parts = LABELS[source]
    size, channels = (64, 3) if source == "emoji64" else (32, 1)

    def make(device: torch.device, seed: int, small: bool, root: Path) -> Loop:
        torch.manual_seed(seed)
        model = Classifier(channels, size, classes, parts, width=8 if small else 32)
        images, batch = split_of(source, small).train, SMALL_BATCH if small else 128
        return ClassifierLoop(model, images, batch, device, seed, learning_rate=2e-3, weight_decay=0.05)

    def check(model: nn.Module, small: bool) -> dict[str, float]:
        held_out = split_of(source, small).held_out
        device = next(model.parameters()).device
        guesses = torch.cat([model(part.to(device)).argmax(1).cpu() for part in held_out.images.split(1000)])
        return {"accuracy on held-out images": float((guesses == held_out.labels).float().mean())}

    summary = (
        f"classifier of {classes} labels{f' at {parts} places' if parts > 1 else ''}; features before its last layer"
    )
    return Job(f"features-{source}", None, "net", minutes, summary, source, 128, 2e-3, make, check)


def _patch_job(source: str, minutes: float) -> Job:
    size, channels = (64, 3) if source == "emoji64" else (32, 1)

    def make(device: torch.device, seed: int, small: bool, root: Path) -> Loop:
        torch.manual_seed(seed)
        model = PatchNet(channels, size, width=8 if small else 32, features=4 if small else 8)
        images, batch = split_of(source, small).train, SMALL_BATCH if small else 128
        return PatchLoop(model, images, batch, device, seed, learning_rate=2e-3)

    summary = f"patch features ({size // 4} px and a ring), learnt by finding pasted rectangles (arXiv 2104.04015)"
    return Job(f"patches-{source}", None, "net", minutes, summary, source, 128, 2e-3, make)


JOBS: dict[str, tuple[Job, ...]] = {
    "F1": (_unet_job("F1", 4.0, early=(0.04, "f1-early")),),
    "F2": (_unet_job("F2", 4.0),),
    "F4-vae": (_vae_job(),),
    "F4": (_latent_job(),),
    "F5": (_unet_job("F5", 3.0),),
    "F1c": (_unet_job("F1c", 3.0),),
    "extractors": (
        _classifier_job("fashion32", 0.1),
        _classifier_job("emoji64", 0.1),
        _classifier_job("glyphs32", 0.1),
        _patch_job("fashion32", 0.75),
        _patch_job("emoji64", 0.75),
    ),
}
"""What ``--family`` takes. "F4" needs "F4-vae" done before; "all" runs them in this order."""
