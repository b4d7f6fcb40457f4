# SPDX-License-Identifier: MIT
"""Traps of chosen contrasts: the contrast at which half of them are hit, beside the best rival's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ascedfast.lab.contenders import OURS, Trials, best_rival, try_plants
from ascedfast.lab.contrast import contrast50
from ascedfast.lab.corrections import watch
from ascedfast.lab.flags import bits
from ascedfast.lab.found import figure
from ascedfast.lab.planted import Planted, beside_twins, start_steps, watch_t_c
from ascedfast.lab.planting import Plant, hold_steps
from ascedfast.lab.regions import GREY_LEVEL, draw_boxes_on
from ascedfast.lab.statistics import Estimate, wilson
from ascedfast.lab.subject import MissingAbility, Subject
from ascedfast.lab.suites import Cell, Lab

CONTRASTS = (2.0, 3.0, 4.5, 7.0, 10.0, 15.0, 22.0, 32.0)
"""Grey levels; a row's by its seed."""
SPARE = 20
"""Images that may be tried for each plant of tuning seeds: places are rare."""
MARGIN = 32.0
"""Grey levels between the box's values and the clip: no contrast is cut off."""
BOXES_A_SIDE = 4
"""So many boxes fit into the image's side."""


def faint_traps(subject: Subject, seeds: Sequence[int], ground: str) -> Planted | None:
    """Traps that hold the twin's own prediction, read where the contrast is, shifted by a sign a channel times the
    row's contrast. None without a place on that ground, MARGIN from the clip.

    Of latents the shift is in their unit: by the ratio of the deviations of the final latents and images."""
    schedule, grid = subject.schedule, tuple(subject.shape[1:])
    x = subject.start(seeds)
    twin = watch(subject, seeds, t_c=len(schedule), x=x)
    twins = subject.decode(twin.x)
    side = max(1, grid[0] // BOXES_A_SIDE)
    boxes = draw_boxes_on(seeds, [side] * len(seeds), twins, ground, grid, MARGIN)
    kept = [i for i, box in enumerate(boxes) if box is not None]
    if not kept:
        return None
    unit = GREY_LEVEL if not getattr(subject, "latent", False) else GREY_LEVEL * float(twin.x.std() / twins.std())
    t_c = watch_t_c(subject, 0)
    plants = []
    for i in kept:
        random = np.random.default_rng((seeds[i], 0xFA))
        begins = start_steps(subject, "trap", 0, t_c)
        start = int(random.integers(begins.start, begins.stop))
        # Held for two steps or more, so that it is held where its contrast is read.
        steps = max(2, hold_steps(seeds[i], start, t_c, len(schedule), before=seeds[i] // 8 % 2 == 0))
        sign = torch.from_numpy(random.choice([-1.0, 1.0], subject.shape[0])).view(-1, 1, 1).to(x.device)
        content = twin.x0[min(start + 1, t_c - 1), i].double() + CONTRASTS[seeds[i] % len(CONTRASTS)] * unit * sign
        plants.append(Plant.trap(boxes[i], start, steps, content=content))
    prefix = watch(subject, [seeds[i] for i in kept], t_c=t_c, x=x[kept], plants=plants)
    return beside_twins(subject, prefix, plants, twin, twins, kept)


def faint(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Contrast at half recall at 1 %, of at most ``each`` plants a contrast."""

    def plant(subject, seeds):
        return faint_traps(subject, seeds, cell["ground"])

    def every(trials: Trials) -> np.ndarray:
        return np.ones(len(trials.levels), bool)

    rival, shares = best_rival(lab, cell, f"faint {cell['ground']}", plant, every, spare=SPARE)

    def enough(contrast, levels):
        return bool(first_of_each(contrast, cell["each"]).sum() == cell["each"] * len(CONTRASTS))

    trials = try_plants(lab, cell, lab.seeds(cell), plant, (rival,), enough)
    chosen = first_of_each(trials.contrast, cell["each"])
    if chosen.sum() < cell["least"]:
        few = f"{int(chosen.sum())} faint traps on {cell['ground']} ground, {cell['least']} are needed for a fit"
        raise MissingAbility(f"{cell.family}: {few}")
    figures = []
    for name, label in ((OURS, OURS), (rival, "rival")):
        try:
            half = half_recall(trials.contrast[chosen], trials.hit[name][chosen])
        except (ArithmeticError, ValueError) as error:
            raise MissingAbility(f"{cell.family}: no fit of the contrast at half recall: {error}") from error
        figures.append(figure("contrast at half recall, 1%", label, half))
    contrast = [round(float(one), 2) for one in trials.contrast[chosen]]
    hits = {"contrast": contrast, "hit": bits(trials.hit[OURS][chosen]), "rival": bits(trials.hit[rival][chosen])}
    return {"figures": figures, "rows": hits, "series": {"rival": rival, "tuning": shares}}


def half_recall(contrast: np.ndarray, hit: np.ndarray) -> Estimate:
    """``contrast50``, with an upper limit where the fit has none because hits hardly rise with contrast: the least of
    CONTRASTS up to which plants are hit in more than half, by Wilson's lower limit.

    Args, raises: as there."""
    fit = contrast50(contrast, hit)
    if fit.high < np.inf:
        return fit
    for most in CONTRASTS:
        weaker = hit[contrast <= most * (1 + 1e-6)]
        if len(weaker) and wilson(int(weaker.sum()), len(weaker)).low > 0.5:
            return Estimate(fit.value if fit.value <= most else 0.0, min(fit.low, most), most, fit.n)
    return fit


def first_of_each(contrast: np.ndarray, most: int) -> np.ndarray:
    """The first rows nearest to each of CONTRASTS, at most so many of each, none without contrast: bool [n]."""
    usable = contrast > 1e-6
    nearest = np.abs(np.log(np.maximum(contrast, 1e-6))[:, None] - np.log(CONTRASTS)).argmin(1)
    chosen = np.zeros(len(contrast), bool)
    for k in range(len(CONTRASTS)):
        chosen[np.flatnonzero(usable & (nearest == k))[:most]] = True
    return chosen
