# SPDX-License-Identifier: MIT
"""What a diffusers pipeline tells of its latents, by its call, its ``prepare_latents`` and its parts."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ascedfast.adapters.layout import PipelineContext

ORDERS = {
    "cogvideo": "BFCHW",
    "consisid": "BFCHW",
    "stable_video_diffusion": "BFCHW",
    "kandinsky5": "BFHWC",
    "kandinsky6": "BFHWC",
}
"""Families of diffusers whose video latents are not [B, C, F, H, W]."""
REHEARSE = ("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline")
"""They call ``step`` for its prediction, take one off the scheduler's index, and call it again."""


def told_by_call(pipe: Any, base: type, call: inspect.BoundArguments) -> PipelineContext:
    """Of a call of the pipeline, whose own class is ``base``; the call is filled with its defaults."""
    known = {name: call.arguments.get(name) for name in ("generator", "height", "width")}
    parameters = call.signature.parameters
    call.apply_defaults()
    frames = (call.arguments.get("num_frames") or 1) if "num_frames" in parameters else None
    return PipelineContext(
        **known,
        frames=frames,
        latent_frames=_latent_frames(pipe, frames),
        channels=_channels(pipe),
        scale=_pixels_a_location(pipe),
        order=order_of(base),
        audio=any(name.startswith("audio_") for name in parameters) and "num_frames" not in parameters,
        rehearses=base.__name__ in REHEARSE,
    )


def told_by_latents(pipe: Any, context: PipelineContext, given: Mapping[str, Any]) -> PipelineContext:
    """The same and what the arguments of ``prepare_latents`` add."""
    known = {key: given[key] for key in ("generator", "height", "width") if given.get(key) is not None}
    frames = given.get("num_frames")
    if context.frames is not None and frames:
        # Some pipelines are given the latents' own number here.
        more = (*_latent_frames(pipe, frames), frames)
        known["latent_frames"] = tuple(dict.fromkeys((*context.latent_frames, *more)))
    if given.get("layers"):
        # QwenImageLayered: the image that the layers make together comes first.
        known |= {"frames": given["layers"] + 1, "latent_frames": (given["layers"] + 1,)}
    channels = [given.get(name) for name in ("num_channels_latents", "num_channels_vae")]
    known["channels"] = tuple(dict.fromkeys((*context.channels, *(count for count in channels if count))))
    return replace(context, **known)


def order_of(base: type) -> str | None:
    """Of the axes of the family's video latents; None for a class that is none of diffusers'."""
    package, *folders = base.__module__.split(".")
    return next((ORDERS[name] for name in folders if name in ORDERS), "BCFHW") if package == "diffusers" else None


def _latent_frames(pipe: Any, frames: int | None) -> tuple[int, ...]:
    if frames is None:
        return ()
    for name in ("vae_scale_factor_temporal", "vae_temporal_compression_ratio"):
        apart = getattr(pipe, name, None)
        if apart is not None:
            # Pipelines round a number of frames that does not fit down or up.
            return tuple(dict.fromkeys(((frames - 1) // apart + 1, frames // apart + 1)))
    return (frames,)


def _channels(pipe: Any) -> tuple[int, ...]:
    config = getattr(getattr(pipe, "vae", None), "config", {})
    known = (config.get(name) for name in ("z_dim", "latent_channels", "decoder_input_channels"))
    return tuple(dict.fromkeys(count for count in known if count))


def _pixels_a_location(pipe: Any) -> int:
    """Side in pixels of the block that the pipeline's VAE decodes a latent location to."""
    for name in ("vae_spatial_compression_ratio", "vae_scale_factor_spatial"):
        if hasattr(pipe, name):
            return getattr(pipe, name)
    vae = getattr(pipe, "vae", None)
    if vae is None:
        return 1
    if hasattr(pipe, "vae_scale_factor"):
        return pipe.vae_scale_factor
    return 2 ** len(vae.config.get("block_out_channels", ())[1:])  # DiTPipeline does not state it
