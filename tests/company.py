# SPDX-License-Identifier: MIT
"""Tiny pipelines in company: caches, adapters, fake quantisation, offloading, compilation; with a planted artifact.

``COMPANY[name]()`` gives a ``Planted`` pipeline. Its last block moves the tokens of a square, another way each time it
is computed: so what a cache leaves out does not move.
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
from diffusers.models.cache_utils import CacheMixin
from torch import Tensor, nn

STEPS = 25
GRID = (24, 24)
SQUARE = (slice(6, 13), slice(10, 17))


@dataclass
class Planted:
    """full: steps at which the planted block was computed; states: latents after each step of the last run; share:
    (rank, ranks) of the tokens that this process computes."""

    pipe: Any
    arguments: dict[str, Any]
    full: list[int] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    share: tuple[int, int] = (0, 1)
    seed: int = 3

    def __call__(self) -> Tensor:
        """The final latents of a run with the same start each time."""
        self.full.clear()
        self.states.clear()
        self.pipe.set_progress_bar_config(disable=True)
        out = self.pipe(
            **self.arguments,
            num_inference_steps=STEPS,
            generator=tiny.generator(self.seed),
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
        pushes = 0.5 * where.flatten()[:, None] * tiny.randn(STEPS, 1, width, seed=11)

        def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            text, image = inner(*args, **kwargs)
            step = len(self.states)
            self.full.append(step)
            rank, ranks = self.share
            push = pushes[len(self.full) % len(pushes)].chunk(ranks)[rank]
            return text, image + push.to(image.dtype)

        block.forward = forward


def flux() -> Planted:
    """Packed latents [1, 24 * 24, 16]."""
    pipe, arguments = tiny.flux()
    made = Planted(pipe, {**arguments, "height": 16 * GRID[0], "width": 16 * GRID[1]})
    made.plant(pipe.transformer.single_transformer_blocks[-1], 32)
    return made


def sd3() -> Planted:
    """Guided: conditional and unconditional halves in one call; latents [1, 4, 24, 24]. The models that diffusers gives
    both this form and caches are of video: this one is lent the methods."""
    pipe, arguments = tiny.sd3()
    stock = type(pipe.transformer)
    pipe.transformer.__class__ = type(stock.__name__, (stock, CacheMixin), {})
    made = Planted(pipe, {**arguments, "height": 8 * GRID[0], "width": 8 * GRID[1]})
    made.plant(pipe.transformer.transformer_blocks[-1], 32)
    return made


def ours(module: nn.Module) -> list[str]:
    """Names of what is ascedfast's in a module's forwards and hooks."""
    found = []

    def look(name: str, value: Any) -> None:
        while hasattr(value, "func"):
            value = value.func
        if f"{type(value).__module__} {getattr(value, '__module__', '')}".count("ascedfast"):
            found.append(name)

    for name, part in module.named_modules():
        look(f"{name}.forward", part.__dict__.get("forward"))
        registry = part.__dict__.get("_diffusers_hook")
        for hook in () if registry is None else registry.hooks.values():
            for owner in (hook, hook.fn_ref, *registry._fn_refs):
                for key, value in vars(owner).items():
                    look(f"{name}.{type(owner).__name__}.{key}", value)
    return found


def _cached(made: Planted, config: Any) -> Planted:
    made.pipe.transformer.enable_cache(config)
    return made


def faster() -> Planted:
    made = sd3()
    inputs = ("hidden_states", "encoder_hidden_states", "timestep", "pooled_projections")
    config = FasterCacheConfig(
        current_timestep_callback=lambda: 1000 - 40 * len(made.states),
        unconditional_batch_skip_range=2,
        unconditional_batch_timestep_skip_range=(-1, 901),
        spatial_attention_timestep_skip_range=(-1, 901),
        spatial_attention_block_identifiers=("transformer_blocks.*attn",),
        tensor_format="BCHW",
        _unconditional_conditional_input_kwargs_identifiers=inputs,
    )
    return _cached(made, config)


def faster_distilled() -> Planted:
    made = flux()
    config = FasterCacheConfig(
        is_guidance_distilled=True,
        current_timestep_callback=lambda: int(made.pipe.current_timestep),
        spatial_attention_timestep_skip_range=(-1, 901),
        spatial_attention_block_identifiers=("transformer_blocks.*attn",),
    )
    return _cached(made, config)


def pyramid() -> Planted:
    made = flux()
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 901),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: int(made.pipe.current_timestep),
    )
    return _cached(made, config)


def mag() -> Planted:
    ratios = torch.ones(STEPS)
    return _cached(flux(), MagCacheConfig(0.3, 1, 0.1, STEPS, mag_ratios=ratios))


def taylor() -> Planted:
    blocks = [r"^transformer_blocks\.0$", r"^single_transformer_blocks\.0$"]
    return _cached(flux(), TaylorSeerCacheConfig(2, 2, cache_identifiers=blocks, taylor_factors_dtype=torch.float32))


class LowRank(nn.Module):
    """A linear layer with a loaded adapter: W x + B A x."""

    def __init__(self, base: nn.Linear, seed: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(0.1 * tiny.randn(4, base.in_features, seed=seed))
        self.up = nn.Parameter(0.1 * tiny.randn(base.out_features, 4, seed=seed + 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class FakeQuantised(nn.Module):
    """A linear layer with weights of ``bits`` bits a row, unpacked at each call."""

    def __init__(self, base: nn.Linear, bits: int) -> None:
        super().__init__()
        most = 2 ** (bits - 1) - 1
        scale = base.weight.detach().abs().amax(1, keepdim=True) / most
        self.register_buffer("scale", scale)
        self.register_buffer("codes", (base.weight.detach() / scale).round().to(torch.int8))
        self.bias = base.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes * self.scale, self.bias)


def _with_layers(replace: Any) -> Planted:
    """Every linear layer of the attentions in another form."""
    made = flux()
    attentions = [(n, m) for n, m in made.pipe.transformer.named_modules() if n.endswith("attn")]
    for _, attention in attentions:
        for name in ("to_q", "to_k", "to_v"):
            setattr(attention, name, replace(getattr(attention, name)))
    return made


def grouped() -> Planted:
    made = flux()
    made.pipe.transformer.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    return made


def layerwise() -> Planted:
    made = flux()
    made.pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    return made


def compiled(made: Planted) -> Planted:
    made.pipe.transformer.compile(backend="eager")
    return made


CACHED = {
    "first-block-cache": lambda: _cached(flux(), FirstBlockCacheConfig(threshold=0.3)),
    "faster-cache": faster,
    "faster-cache-distilled": faster_distilled,
    "pyramid-attention-broadcast": pyramid,
    "mag-cache": mag,
    "taylorseer-cache": taylor,
}
COMPANY = {
    **CACHED,
    "lora": lambda: _with_layers(lambda layer: LowRank(layer, 20)),
    "w8": lambda: _with_layers(lambda layer: FakeQuantised(layer, 8)),
    "w4": lambda: _with_layers(lambda layer: FakeQuantised(layer, 4)),
    "group-offloading": grouped,
    "layerwise-casting": layerwise,
    "compiled": lambda: compiled(flux()),
    "compiled-first-block-cache": lambda: compiled(CACHED["first-block-cache"]()),
}
