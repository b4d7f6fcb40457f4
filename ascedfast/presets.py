# SPDX-License-Identifier: MIT
"""Settings by what the state of a sampler is, each number with its reason; the page is ``docs/presets.md``."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from ascedfast.config import HALF_GREY_LEVEL, AscedConfig, Mode

Layout = Literal["pixel", "latent", "packed", "video"]


@dataclass(frozen=True)
class Preset:
    """changes: settings of ``AscedConfig``. reasons: of each of them."""

    changes: Mapping[str, Any]
    reasons: Mapping[str, str]


_SIZE = "lengths are shares of the side: those of the released code, which are of 256 px"
_DECODER = (
    "of what one latent location changes in the image 59 % falls on its own place, 97 % within one location around it "
    "(squared; the laboratory's decoder, factor 4): a mask needs at least one location more than the pixels', which is "
    "what 8 of 256 gives from a grid of 16x16 on, two at 64x64"
)
_FLOOR = "half a grey level: smaller changes of x0_hat in [-1, 1] are not seen"
_FLOOR_LATENT = "the same number as of pixels: latents are scaled to a deviation near 1, images have one near .5"


def _preset(grow: int, why_grow: str, why_floor: str, connectivity: int, why_connectivity: str) -> Preset:
    settings = {
        "reference_size": (256, _SIZE),
        "grow": (grow, why_grow),
        "connectivity": (connectivity, why_connectivity),
        "mad_floor": (HALF_GREY_LEVEL, why_floor),
    }
    return Preset(
        MappingProxyType({name: value for name, (value, _) in settings.items()}),
        MappingProxyType({name: why for name, (_, why) in settings.items()}),
    )


_NEIGHBOURS = "the released code's: diagonal neighbours are no region"
PRESETS: Mapping[Layout, Preset] = MappingProxyType(
    {
        "pixel": _preset(5, "the released code's growth before it corrects", _FLOOR, 4, _NEIGHBOURS),
        "latent": _preset(8, _DECODER, _FLOOR_LATENT, 4, _NEIGHBOURS),
        "packed": _preset(
            8,
            "as of latents: a packed location is a patch of them, often 2x2, so on its grid 8 of 256 is one location "
            "from 16x16 on and two at 64x64 (1024 px), the decoder's spread and the patch's border",
            _FLOOR_LATENT,
            4,
            _NEIGHBOURS,
        ),
        "video": _preset(
            8,
            "as of latents, within a frame: in time a mask is what was found",
            _FLOOR_LATENT,
            4,
            "read as the 6 faces of a volume: a region goes on from frame to frame where it overlaps itself",
        ),
    }
)


def preset(layout: Layout, mode: Mode = "fast", **changes: Any) -> AscedConfig:
    """The configuration for states of this layout.

    Args: layout: "pixel" [B, C, H, W] in [-1, 1]; "latent" [B, C, H, W] of an autoencoder; "packed" [B, S, C]; "video"
        [B, C, F, H, W]. mode: "fast" or "calibrated" (which needs ``table``); the published modes have settings of
        their own. changes: settings that take precedence.
    Raises: ValueError for other names; TypeError, ValueError as ``AscedConfig``.
    """
    if not isinstance(layout, str) or layout not in PRESETS:
        raise ValueError(f"unknown layout {layout!r}: choose one of {', '.join(PRESETS)}")
    if mode not in ("fast", "calibrated"):
        raise ValueError(f"mode {mode!r} has the published settings: use AscedConfig.for_mode({mode!r})")
    return AscedConfig.for_mode(mode, **{**PRESETS[layout].changes, **changes})
