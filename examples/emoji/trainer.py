# SPDX-License-Identifier: MIT
"""Batches of the emoji models and what their training writes; the loop itself is `ascedfast.lab.loop`."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import torch
from emoji.card import FIGURES_FILE, write_folder
from emoji.data import EmojiSet
from emoji.nets import Recipe
from emoji.samples import draw_samples
from torch import Tensor

from ascedfast.lab.loop import Loop

EMA_LIMIT = 0.9995
MAX_SHIFT = 2  # pixels
QUICK_STEPS = 25  # of the samples of a tiny network


class Batches:
    """Draws training batches on the device: weighted, with replacement, shifted by up to MAX_SHIFT pixels."""

    def __init__(self, emoji: EmojiSet, device: torch.device):
        images = torch.from_numpy(emoji.images).permute(0, 3, 1, 2)
        self.size = images.shape[-1]
        white = torch.nn.functional.pad(images, [MAX_SHIFT] * 4, value=255)
        self.images = white.contiguous().to(device)  # uint8 (N, 3, S + 4, S + 4): 54 MB for the whole font
        self.cumulative = torch.from_numpy(emoji.weights).cumsum(0).float().to(device)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float32 (count, 3, S, S) in [-1, 1]."""
        device = self.images.device
        chance = torch.rand(count, device=device, generator=generator)
        # Rounding may leave the last sum below 1.
        rows = torch.searchsorted(self.cumulative, chance).clamp_(max=len(self.cumulative) - 1)
        shift = torch.randint(2 * MAX_SHIFT + 1, (2, count, 1), device=device, generator=generator)
        y, x = shift + torch.arange(self.size, device=device)
        channel = torch.arange(3, device=device)[None, :, None, None]
        picked = self.images[rows[:, None, None, None], channel, y[:, None, :, None], x[:, None, None, :]]
        return picked.float() / 127.5 - 1


class Trainer(Loop):
    """The loop on emoji: draws images and noise levels as its recipe says."""

    def __init__(self, recipe: Recipe, emoji: EmojiSet, device: torch.device, seed: int, small: bool):
        torch.manual_seed(seed)
        self.recipe = recipe
        self.batches = Batches(emoji, device)
        self.sample_steps = QUICK_STEPS if small else recipe.sample_steps
        super().__init__(
            recipe.build(self.batches.size, small).to(device),
            device,
            seed,
            learning_rate=recipe.learning_rate,
            average_limit=EMA_LIMIT,
            channels_last=recipe.channels_last,
        )
        shape = (recipe.batch, 3, self.batches.size, self.batches.size)
        self.x0 = torch.empty(shape, device=device).to(memory_format=self.layout)
        self.noise = torch.empty_like(self.x0)
        self.t = torch.empty(recipe.batch, device=device)

    def refill(self) -> None:
        """New images, noise and levels, written where a captured step reads them."""
        self.x0.copy_(self.batches.draw(self.recipe.batch, self.generator))
        self.noise.normal_(generator=self.generator)
        self.t.copy_(self.recipe.draw_levels(self.recipe.batch, self.device, self.generator))

    def loss(self) -> Tensor:
        return self.recipe.loss(self.network, self.x0, self.noise, self.t)

    def compile(self) -> str:
        """Compiles the network if the recipe says so."""
        return super().compile() if self.recipe.compile else "not compiled, as its recipe says"

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint, or from a folder that an earlier run wrote (weights and figures only)."""
        self._load_folder(path) if path.is_dir() else super().load(path)

    def _load_folder(self, folder: Path) -> None:
        pipeline = self.recipe.pipeline_class.from_pretrained(folder)
        stored = next(m for m in pipeline.components.values() if isinstance(m, torch.nn.Module))
        self.model.load_state_dict(stored.float().state_dict())
        torch._foreach_copy_(self.average, [p.detach() for p in self.parameters])
        figures = json.loads((folder / FIGURES_FILE).read_text(encoding="utf-8"))
        self.iteration, self.seconds = figures["iterations"], figures["seconds"]
        self.curve = [tuple(point) for point in figures["curve"]]
        self.generator.manual_seed(self.seed + self.iteration)  # not the same batches again
        self.schedule_from = self.seconds
        self.continued = (
            f"; the first {self.iteration:,} in an earlier run of batch {figures['batch']}, continued from its stored "
            "weights with a new optimiser and a new cosine"
        )

    def export(self, folder: Path, images: int, sharing: str) -> None:
        """Writes the averaged weights as a pipeline folder, in fp16, with card and pictures."""
        self.use_average()
        recipe = self.recipe
        on_gpu = self.device.type == "cuda"
        figures = {
            "folder": recipe.folder,
            "summary": recipe.summary,
            "sampler": recipe.sampler,
            "steps": self.sample_steps,
            "size": self.batches.size,
            "images": images,
            "parameters": sum(p.numel() for p in self.parameters),
            "iterations": self.iteration,
            "batch": recipe.batch,
            "seconds": round(self.seconds, 1),
            "device": torch.cuda.get_device_name(self.device) if on_gpu else "the CPU",
            "sharing": sharing,
            "precision": "bf16 autocast" if on_gpu else "float32",
            "learning_rate": recipe.learning_rate,
            "continued": self.continued,
            "seed": self.seed,
            "torch_version": torch.__version__,
            "diffusers_version": diffusers.__version__,
            "curve": self.curve,
        }
        model = self.model.to(memory_format=torch.contiguous_format).eval().half()
        write_folder(recipe.pipeline(model), folder, figures)
        stored = recipe.pipeline_class.from_pretrained(folder).to(self.device)
        draw_samples(stored, folder, figures["steps"])
