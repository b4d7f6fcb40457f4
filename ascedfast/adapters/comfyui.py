# SPDX-License-Identifier: MIT
"""ASCED in ComfyUI: a node between a SAMPLER and SamplerCustom. One file in ``custom_nodes`` brings it in:

    from ascedfast.adapters.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

Written from ComfyUI's source (comfy/samplers.py, comfy/model_sampling.py) and tested against stand-ins for what is used
of it: ``KSAMPLER.sampler_function``, ``model_sampling.noise_scaling``, ``extra_args["denoise_mask"]`` and ``["seed"]``;
a MASK is taken for the float [B, H, W] that its nodes give. It was never run inside ComfyUI. Nothing of ComfyUI is
imported.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ascedfast.adapters.k_diffusion import AscedSampler
from ascedfast.config import AscedConfig
from ascedfast.presets import preset
from ascedfast.protected import joined

logger = logging.getLogger("ascedfast")


class ComfySampler(AscedSampler):
    """A sampler function of ComfyUI that watches its runs; the report of each is logged at INFO.

    Args: protected: a MASK of what is never re-noised, in pixels, see ``keep_mask_from``.
    """

    def __init__(self, sampler_fn: Callable, config: AscedConfig, protected: Tensor | None = None) -> None:
        super().__init__(sampler_fn, config, None)
        self.protected = protected

    def __call__(self, model: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        last = self._engine
        out = super().__call__(model, x, *args, **kwargs)
        if self._engine is not last:  # the run was watched
            logger.info("ASCED in %s:\n%s", self.__name__, self.report)
        return out

    def _levels(self, model: Any, sigmas: list[float]) -> list[tuple[float, float]]:
        """What ``noise_scaling`` makes of one unit of clean latent and one of noise: flow models mix them by other
        rules than x0 + sigma*noise."""
        sampling = getattr(getattr(getattr(model, "inner_model", None), "inner_model", None), "model_sampling", None)
        if sampling is None:
            raise ValueError(
                "the model given to the sampler has no inner_model.inner_model.model_sampling, as ComfyUI's have; for "
                "other models use ascedfast.adapters.k_diffusion.asced_sampler"
            )
        none, one = torch.zeros(1, 1, 1, 1, dtype=torch.float64), torch.ones(1, 1, 1, 1, dtype=torch.float64)
        pairs = []
        for sigma in sigmas:
            at = torch.tensor(sigma, dtype=torch.float64)
            alpha, noise = sampling.noise_scaling(at, none.clone(), one), sampling.noise_scaling(at, one.clone(), none)
            pairs.append((float(alpha), float(noise)))
        return pairs

    def _keep_mask_of(self, x: Tensor, extra_args: Mapping[str, Any]) -> Tensor | None:
        """What the node was given, and where the denoise mask is 0: there the latent image stays."""
        drawn = extra_args.get("denoise_mask")
        known = None if drawn is None else (drawn == 0).any(1, keepdim=True)
        if self.protected is None:
            return known
        keep = keep_mask_from(self.protected, x.shape[2:])
        return keep if known is None else joined(keep, known.expand(len(x), *known.shape[1:]))

    def _row_seeds(self, extra_args: Mapping[str, Any]) -> int | None:
        return extra_args.get("seed")


def keep_mask_from(mask: Tensor, grid: Sequence[int]) -> Tensor:
    """A MASK as ``keep_mask``: a location is protected if any pixel that it covers, even in part, is above 0.

    Args: mask: float [.., H, W] in pixels; of a video's latents the images are frames: one for all, one a latent frame,
        or one a pixel frame, of which a causal VAE makes the first latent frame of the first and each other one of as
        many (1 + 4*k to 1 + k). grid: (H, W) or (F, H, W) of the latents.
    Returns: bool [images, 1, H, W], or [1, 1, F, H, W].
    Raises: ValueError for a number of images that is none of these.
    """
    marked = (mask > 0).float()
    images = marked.reshape(-1, 1, *mask.shape[-2:])
    kept = F.adaptive_max_pool2d(images, tuple(grid[-2:])) > 0
    return kept if len(grid) == 2 else _by_latent_frame(kept[:, 0], grid[0])[None, None]


def _by_latent_frame(kept: Tensor, frames: int) -> Tensor:
    """bool [frames, H, W] of latent frames from [images, H, W]."""
    count = len(kept)
    if count in (1, frames):
        return kept.expand(frames, *kept.shape[1:])
    ratio, rest = divmod(count - 1, frames - 1) if frames > 1 else (0, 0)
    if ratio < 1 or rest:
        raise ValueError(
            f"keep_mask has {count} images, the latents have {frames} frames: give one image for all, one a latent "
            f"frame ({frames}), or one a pixel frame (1 + r*{frames - 1} for a VAE that makes one latent frame of r; "
            f"{4 * frames - 3} for r = 4)"
        )
    return torch.cat([kept[:1], kept[1:].unflatten(0, (frames - 1, ratio)).any(1)])


class AscedSamplerNode:
    """SAMPLER in, SAMPLER out. Each queued run is watched anew; the seed of the correction is the run's noise seed."""

    CATEGORY = "sampling/custom_sampling/samplers"
    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "wrap"
    DESCRIPTION = "Finds regions that turn into artifacts while the sampler runs and re-noises them, once (ASCED)."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "sampler": ("SAMPLER",),
                "mode": (["fast", "official", "paper"],),
                "mad_scale": ("FLOAT", {"default": 3.0, "min": 0.0, "max": 100.0, "step": 0.1}),
                "correct": ("BOOLEAN", {"default": True}),
            },
            "optional": {"keep_mask": ("MASK",)},
        }

    def wrap(
        self, sampler: Any, mode: str, mad_scale: float, correct: bool, keep_mask: Tensor | None = None
    ) -> tuple[Any]:
        """A copy of the sampler whose runs are watched. The sampler given is not modified.

        Args: keep_mask: float [B, H, W] in pixels of any size, above 0 where nothing is to be re-noised; of a video B
            counts frames, see ``keep_mask_from``, which the sampler calls when it runs.
        Raises: TypeError for an object that is no ComfyUI SAMPLER, or no MASK; ValueError for a sampler function that
            cannot be corrected (adaptive steps, a corrector), with the one to take instead.
        """
        if not callable(getattr(sampler, "sampler_function", None)):
            raise TypeError(
                "expected a SAMPLER with a sampler_function, as KSamplerSelect gives in ComfyUI, got "
                f"{type(sampler).__name__}"
            )
        if keep_mask is not None and not (isinstance(keep_mask, Tensor) and keep_mask.dim() >= 2):
            raise TypeError(f"keep_mask must be a MASK, as LoadImageMask gives, got {type(keep_mask).__name__}")
        changes = {"mad_scale": mad_scale, "correct": correct}
        config = preset("latent", **changes) if mode == "fast" else AscedConfig.for_mode(mode, **changes)
        watched = copy.copy(sampler)
        watched.sampler_function = ComfySampler(sampler.sampler_function, config, keep_mask)
        return (watched,)


NODE_CLASS_MAPPINGS = {"AscedSampler": AscedSamplerNode}
NODE_DISPLAY_NAME_MAPPINGS = {"AscedSampler": "ASCED (repair artifacts)"}
