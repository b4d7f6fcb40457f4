# SPDX-License-Identifier: MIT
"""Tiny pipelines in company: caches, adapters, fake quantisation, offloading, compilation; with a planted artifact.

``COMPANY[name]()`` gives a ``Planted`` pipeline. Its last block moves the tokens of a square to and fro, each time it is
computed: so what a cache leaves out does not move.
"""

from dataclasses import dataclass, field
from typing import Any

import tiny
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from torch import Tensor, nn

STEPS = 25
GRID = (24, 24)
SQUARE = (slice(6, 13), slice(10, 17))


@dataclass
class Planted:
    """full: steps at which the planted block was computed; states: latents after each step of the last run."""

    pipe: Any
    arguments: dict[str, Any]
    full: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)

    def __call__(self) -> Tensor:
        """The final latents of a run with the same start each time."""
        self.full.clear()
        self.states.clear()
        self.pipe.set_progress_bar_config(disable=True)
        out = self.pipe(
            **self.arguments,
            num_inference_steps=STEPS,
            generator=tiny.generator(3),
            callback_on_step_end=self._keep,
        )
        return out.images

    def _keep(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        self.states.append(tensors["latents"].clone())
        return tensors

    def plant(self, block: nn.Module, width: int) -> None:
        """Let a Flux block's output move within the square."""
        inner, where = block.forward, torch.zeros(GRID)
        where[SQUARE] = 1.0
        push = where.flatten()[:, None] * tiny.randn(width, seed=11)

        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            text, image = inner(*args, **kwargs)
            step = len(self.states)
            self.full.append(step)
            return text, image + (0.5 if len(self.full) % 2 else -0.5) * push.to(image.dtype)

        block.forward = forward


def flux() -> Planted:
    """Packed latents [1, 24 * 24, 16]."""
    pipe, arguments = tiny.flux()
    made = Planted(pipe, {**arguments, "height": 16 * GRID[0], "width": 16 * GRID[1]})
    made.plant(pipe.transformer.single_transformer_blocks[-1], 32)
    return made
