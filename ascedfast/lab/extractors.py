# SPDX-License-Identifier: MIT
"""Features of images and of their patches, from small networks that are trained on real images and nothing else.

``Classifier``: one vector an image, for distances of distributions. ``PatchNet``: one vector a patch, for the judge of
natural defects. Trained by ``python -m ascedfast.lab.training --family extractors``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

RANDOM = 16  # numbers that ``cut_and_paste`` takes an image


class Classifier(ModelMixin, ConfigMixin):
    """Convolutions of stride 2 down to 4x4, a mean over what is left, ``features`` numbers, logits.

    Args:
        channels, size: of the images [n, channels, size, size] in [-1, 1]; size a power of two times 4.
        classes, parts: an image has ``parts`` labels of ``classes`` each; more than one where it is a grid of things,
            then the 4x4 places are kept apart instead of averaged.
    """

    @register_to_config
    def __init__(self, channels: int, size: int, classes: int, parts: int = 1, width: int = 32, features: int = 128):
        super().__init__()
        layers, wide, side = [], channels, size
        following = width
        while side > 4:
            layers += [nn.Conv2d(wide, following, 4, 2, 1), nn.GroupNorm(4, following), nn.SiLU()]
            wide, following, side = following, min(2 * following, 64), side // 2
        if parts > 1:
            layers += [nn.Conv2d(wide, 16, 1), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.squeeze = nn.Linear(16 * 16 if parts > 1 else wide, features)
        self.head = nn.Linear(features, classes * parts)

    def features(self, images: Tensor) -> Tensor:
        """[n, C, S, S] -> [n, features], what stands before the last layer."""
        maps = self.trunk(images)
        return F.silu(self.squeeze(maps.flatten(1) if self.config.parts > 1 else maps.mean((2, 3))))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, classes], or [n, classes, parts]."""
        logits = self.head(self.features(images))
        return logits if self.config.parts == 1 else logits.unflatten(1, (self.config.classes, self.config.parts))


class PatchNet(ModelMixin, ConfigMixin):
    """A vector for each of 8x8 patches of an image, and a logit: does something in it come from elsewhere?

    The patches are squares of a quarter of the image's side, half a side apart: 8 px of 32, 16 px of 64. A vector sees
    its patch and a ring of 8 px (of 32) or 14 px (of 64) around it. No normalisation over places, so that damage at one
    place leaves the vectors of the others alone. Few features on purpose: with 32, distances count what tells real
    patches apart as much as what tells them from damage.
    """

    GRID = 8

    @register_to_config
    def __init__(self, channels: int, size: int, width: int = 32, features: int = 8):
        super().__init__()
        if size not in (32, 64):
            raise ValueError(f"patches are those of images of 32 or 64 px, got {size}")
        layers = [nn.Conv2d(channels, width, 3, 1, 1), nn.SiLU(), nn.Conv2d(width, width, 4, 2, 1), nn.SiLU()]
        layers += [nn.Conv2d(width, 2 * width, 3, 1, 1), nn.SiLU(), nn.Conv2d(2 * width, 2 * width, 4, 2, 1), nn.SiLU()]
        if size == 64:
            layers += [nn.Conv2d(2 * width, 2 * width, 4, 2, 1), nn.SiLU()]
        layers += [nn.Conv2d(2 * width, 2 * width, 3, 1, 1), nn.SiLU(), nn.Conv2d(2 * width, features, 1), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(features, 1, 1)

    def embed(self, images: Tensor) -> Tensor:
        """[n, C, S, S] in [-1, 1] -> [n, features, 8, 8]."""
        return self.trunk(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [n, 8, 8]."""
        return self.head(self.embed(images))[:, 0]


def cut_and_paste(images: Tensor, others: Tensor, random: Tensor, strewn: Tensor) -> tuple[Tensor, Tensor]:
    """Half of the images with a rectangle of content that does not belong there (after CutPaste, arXiv 2104.04015).

    The content comes from another image or the same one, from anywhere, is magnified or shrunk by up to 5; in a quarter
    of the cases its pixels are strewn over up to an eighth of the side, and in half of them its contrast and brightness
    are changed. It is real content at the wrong place, size, order or level.

    Args:
        images, others: [n, C, S, S]. random: uniform [n, RANDOM] in [0, 1), what is done. strewn: uniform [n, S, S, 2],
            by how much each pixel is.
    Returns: images [n, C, S, S]; change [n, S, S], the RMS over channels of what was changed.
    """
    n, channels, size = images.shape[:3]
    r = random[:, :, None, None].unbind(1)
    lines = (torch.arange(size, device=images.device) + 0.5) / size
    height, width = 0.12 + 0.38 * r[0], 0.12 + 0.38 * r[1]
    y, x = lines[:, None] - r[2] * (1 - height), lines - r[3] * (1 - width)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (r[4] < 0.5)
    zoom = 5 ** (2 * r[5] - 1)
    origin = (x / zoom + r[6] * (1 - width / zoom), y / zoom + r[7] * (1 - height / zoom))
    grid = 2 * torch.stack([part.expand(n, size, size) for part in origin], -1) - 1
    reach = torch.where(r[14] < 0.25, 0.25 * r[15], 0.0)
    grid = grid + reach[..., None] * (2 * strewn - 1)
    content = torch.where(r[8][..., None] < 0.7, others, images)
    content = F.grid_sample(content, grid, padding_mode="reflection", align_corners=False)
    jitter = r[9][..., None] < 0.5
    gain = torch.where(jitter, 1.5 * r[10][..., None], 1.0)
    level = torch.where(jitter, 1.6 * random[:, 11 : 11 + channels, None, None] - 0.8, 0.0)
    made = torch.where(inside[:, None], (gain * content + level).clamp(-1, 1), images)
    return made, (made - images).square().mean(1).sqrt()


def patch_loss(net: PatchNet, images: Tensor, change: Tensor) -> Tensor:
    """Cross-entropy of telling patches that ``cut_and_paste`` changed, by 8 grey levels (RMS) or more, from others.

    Patches with a weaker change count for neither. Half of the weight to each class: most patches are untouched.
    """
    stride = images.shape[-1] // PatchNet.GRID
    power = F.avg_pool2d(change.square()[:, None], 2 * stride, stride, stride // 2)[:, 0]
    positive, negative = power.sqrt() >= 8 / 127.5, power == 0
    losses = F.binary_cross_entropy_with_logits(net(images).float(), positive.float(), reduction="none")
    return 0.5 * sum((losses * members).sum() / members.sum().clamp(min=1) for members in (positive, negative))


@torch.no_grad()
def extract(net: Classifier, images: Tensor, chunk: int = 500) -> Tensor:
    """Features of clipped images, float32 [n, features]."""
    return torch.cat([net.features(part.float().clamp(-1, 1)) for part in images.split(chunk)])
