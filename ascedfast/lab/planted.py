# SPDX-License-Identifier: MIT
"""Batches of planted rows beside their twins."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ascedfast.lab.corrections import CONFIGS, Prefix, finish, t_c_of, watch
from ascedfast.lab.planting import Plant, colour_direction, hold_steps, stroke_start
from ascedfast.lab.regions import GREY_LEVEL, Box, draw_box, draw_boxes_on, largest_side, rms_difference
from ascedfast.lab.sampling import start_noise
from ascedfast.lab.subject import Subject, ability
from ascedfast.schedule import plan_run


class Planted(NamedTuple):
    """Rows that were planted, beside their twins. Images [R, C, H, W]; boxes as masks bool [R, H, W] at the grid.

    contrast, levels: float64 [R], ``docs/measures.md``'s contrast, and the difference of the final images that decides
    the outcome, in grey levels whatever the state. shown: the contrast of the decoded predictions, grey levels too;
    of images it is ``contrast``. kept: the rows of the seeds that found a place on the wanted ground."""

    prefix: Prefix
    images: Tensor
    twins: Tensor
    boxes: Tensor
    contrast: Tensor
    levels: Tensor
    shown: Tensor
    kept: tuple[int, ...]


def plant_rows(
    subject: Subject, seeds: Sequence[int], kind: str, side: str | int = "middle", ground: str = "any"
) -> Planted | None:
    """Plant one artifact in each row. None where no row has such a ground.

    Args:
        kind: "trap-before", "trap-after" (T_c), "trap" (either, by the seed), "jump" or "stroke". Traps hold foreign
            content, a mix of the twin's and the next row's final state, in rows of even seed; in the others their own
            prediction of two steps before. "trap or tint": as "trap", but every third seed's holds the twin's final
            state, tinted: on plain ground the next row is often of the same colour.
        side: locations; or "small" (8 locations, or a quarter of the grid), "middle", "large" (half of the area) or
            "mixed".
        ground: "plain", "textured" or "any", of the twin's final image, decoded where the state is a latent.
    """
    schedule, grid = subject.schedule, tuple(subject.shape[1:])
    first = stroke_step(subject) if kind == "stroke" else 0
    noise = None
    if kind == "stroke":
        images = held_out(subject, seeds)
        noise = start_noise([seed + (1 << 24) for seed in seeds], subject.shape).to(images)
        x = stroke_start(images, [Plant.null(Box(0, 0, 1, 1))] * len(seeds), schedule.before[first], noise)
    else:
        x = subject.start(seeds)
    twin = watch(subject, seeds, t_c=len(schedule) - first, x=x, first=first)
    sides = {"small": min(8, max(1, max(grid) // 4)), "large": largest_side(grid)}
    sides["middle"] = (sides["small"] + sides["large"]) // 2
    twins = subject.decode(twin.x)
    chosen = [("small", "middle", "large")[(seed // 4) % 3] if side == "mixed" else side for seed in seeds]
    lengths = [one if isinstance(one, int) else sides[one] for one in chosen]
    if ground == "any":
        drawn = [draw_box(seed, length, grid) for seed, length in zip(seeds, lengths, strict=True)]
    else:
        drawn = draw_boxes_on(seeds, lengths, twins, ground, grid)
    kept = [i for i, box in enumerate(drawn) if box is not None]
    boxes = [drawn[i] for i in kept]
    if not kept:
        return None
    t_c = watch_t_c(subject, first)
    plants = [_plant(subject, twin, i, seeds[i], box, kind, first, t_c) for i, box in zip(kept, boxes, strict=True)]
    rows = torch.tensor(kept, device=x.device)
    used = [seeds[i] for i in kept]
    if kind == "stroke":
        begin = stroke_start(images[rows], plants, schedule.before[first], noise[rows])
        prefix = watch(subject, used, t_c=t_c, x=begin, first=first)
    else:
        prefix = watch(subject, used, t_c=t_c, x=x[rows], plants=plants)
    return beside_twins(subject, prefix, plants, twin, twins, kept)


def beside_twins(
    subject: Subject, prefix: Prefix, plants: Sequence[Plant], twin: Prefix, twins: Tensor, kept: Sequence[int]
) -> Planted:
    """What became of planted rows.

    Args: prefix: of the planted rows. twin: whole runs with nothing planted, of which row kept[i] is row i's twin.
    twins: their final images, [., C, H, W].
    """
    grid, t_c, first = tuple(subject.shape[1:]), prefix.t_c, prefix.first
    rows = torch.tensor(kept, device=prefix.x.device)
    masks = torch.stack([plant.box.mask(grid) for plant in plants]).to(prefix.x.device)
    read = torch.tensor([min(plant.read_at - first, t_c - 1) for plant in plants], device=prefix.x.device)
    seen = prefix.x0[read, torch.arange(len(plants), device=prefix.x.device)]
    clean = twin.x0[read, rows]
    images, twins = subject.decode(finish(subject, prefix)), twins[rows]
    shown = F.interpolate(masks[:, None].float(), size=images.shape[-2:])[:, 0] > 0
    levels = rms_difference(images, twins, shown)
    contrast = rms_difference(seen, clean, masks, **scale_of(subject, twin.x))
    grey = contrast
    if getattr(subject, "latent", False):
        grey = rms_difference(subject.decode(seen), subject.decode(clean), shown)
    return Planted(prefix, images, twins, masks, contrast, levels, grey, tuple(kept))


def scale_of(subject: Subject, finals: Tensor) -> dict[str, Any]:
    """clip and unit of ``regions.rms_difference``: grey levels, or of latents the channels' standard deviation."""
    if getattr(subject, "latent", False):
        return {"clip": None, "unit": finals.double().std((0, 2, 3)).clamp(min=1e-12).view(-1, 1, 1)}
    return {"clip": 1.0, "unit": GREY_LEVEL}


def watch_t_c(subject: Subject, first: int) -> int:
    """T_c of "official", in executed steps of a run from ``first``."""
    return t_c_of(subject.schedule, CONFIGS["official"], first)


def stroke_step(subject: Subject) -> int:
    """Where strokes start: five steps before T_c, or as early as there are steps. Earlier, a model hardly sees them."""
    return max(1, watch_t_c(subject, 0) - 5)


def start_steps(subject: Subject, kind: str, first: int, t_c: int) -> range:
    """Steps at which a trap or a jump may begin: every compared detector's window holds the step before, and the step
    after. The last is two steps before T_c, of a jump three.

    Where a run is so short before T_c that there is none, the last of them, which some windows see from its onset on.
    Trajectory variance is watched over the second half, see ``detectors.trajectory_variance``."""
    windows = [plan_run(subject.schedule, config, first) for config in CONFIGS.values()]
    watched = max([min(t_c // 2, t_c - 2)] + [plan.start for plan in windows if plan.reason is None])
    least, last = (1, t_c - 3) if kind == "jump" else (2, t_c - 2)  # what a trap holds lies two steps back
    last = max(least, last)
    return range(max(least, min(watched + 1, last)), last + 1)


def held_out(subject: Subject, seeds: Sequence[int]) -> Tensor:
    """Clean states [n, C, H, W] that strokes are painted on: real ones, encoded where the state is no image."""
    if getattr(subject, "latent", False) and getattr(subject, "encode", None) is not None:
        return subject.encode(ability(subject, "real")(len(seeds), seeds[0]))
    if getattr(subject, "latent", False):
        return watch(subject, [seed + (1 << 25) for seed in seeds], t_c=len(subject.schedule)).x
    return ability(subject, "real")(len(seeds), seeds[0])


def _plant(subject: Subject, twin: Prefix, row: int, seed: int, box: Box, kind: str, first: int, t_c: int) -> Plant:
    random = np.random.default_rng((seed, 0x91))
    channels = subject.shape[0]
    colour = colour_direction(seed, channels)
    unit = 1.0 if not getattr(subject, "latent", False) else float(twin.x.std())
    if kind == "stroke":
        return Plant.stroke(box, first, colour.clamp(-1, 1) * random.uniform(0.3, 1.0) * unit)
    begins = start_steps(subject, kind, first, t_c)
    start = int(random.integers(begins.start, begins.stop))
    if kind == "jump":
        return Plant.jump(box, start, colour, unit * math.exp(random.uniform(math.log(0.05), 0)))
    total = len(subject.schedule)
    before = kind == "trap-before" or (kind in ("trap", "trap or tint") and seed // 2 % 2 == 0)
    steps = hold_steps(seed, start, t_c, total, before=before)
    if kind == "trap or tint" and seed % 3 == 0:
        return Plant.trap(box, start, steps, content=_tinted(twin.x[row], box, unit, random))
    if seed % 2:
        return Plant.trap(box, start, steps, source=start - 2)
    share = random.uniform(0.1, 1.0)
    foreign = twin.x[(row + 1) % len(twin.x)]
    return Plant.trap(box, start, steps, content=(1 - share) * twin.x[row] + share * foreign)


def _tinted(x0: Tensor, box: Box, unit: float, random: np.random.Generator) -> Tensor:
    """x0 with each channel moved by 24 to 96 grey levels (of latents: by that part of ``unit``, their deviation) away
    from the clip that the box is nearer to."""
    size = unit * GREY_LEVEL * math.exp(random.uniform(math.log(24), math.log(96)))
    nearer = x0[box.index].mean((-2, -1), keepdim=True)
    return x0 - size * torch.where(nearer < 0, -1.0, 1.0)
