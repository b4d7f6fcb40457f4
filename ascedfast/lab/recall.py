# SPDX-License-Identifier: MIT
"""Traps found, by ground and size, beside the best rival; and jumps flagged, absorbed and persisting."""

import math
from typing import Any

import numpy as np

from ascedfast.lab.contenders import OURS, Trials, best_rival, try_plants
from ascedfast.lab.flags import bits
from ascedfast.lab.found import figure
from ascedfast.lab.planted import plant_rows
from ascedfast.lab.planting import ABSORBED_LEVELS, PERSISTING_LEVELS
from ascedfast.lab.regions import largest_side
from ascedfast.lab.statistics import pooled_auroc, wilson
from ascedfast.lab.subject import MissingAbility, Subject
from ascedfast.lab.suites import Cell, Lab

CONTRAST = 20.0
"""Grey levels from which on a trap counts."""
SMALLEST_PIXELS = 8
SHARES = {"10 %": 0.1, "20 %": 0.2, "30 %": 0.3, "40 %": 0.4}
"""Sides of boxes by the share of the area that they cover at the most; "8 px" and "50 %" stand beside them."""


def side_of(subject: Subject, name: str) -> int:
    """Locations of the grid."""
    grid = tuple(subject.shape[1:])
    if name in SHARES:
        return max(1, math.isqrt(int(SHARES[name] * grid[0] * grid[1])))
    if name == "50 %":
        return largest_side(grid)
    scale = pixels_of(subject) // grid[0]
    return max(1, min(SMALLEST_PIXELS // scale, largest_side(grid)))


def pixels_of(subject: Subject) -> int:
    """Side of the image."""
    family = getattr(subject, "family", None)
    return subject.shape[1] if family is None else family.image_shape[1]


def traps(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Traps of one ground and side: those that persist and show, hit at 1 % by the detector and by its best rival.

    The ground may be rare: seeds are taken until ``most`` of them show, or all are spent."""
    subject = lab.subject(cell.family)
    side = side_of(subject, cell["side"])

    def plant(subject, seeds):
        return plant_rows(subject, seeds, "trap or tint", side, cell["ground"])

    def anywhere(subject, seeds):
        return plant_rows(subject, seeds, "trap or tint", side)

    rival, shares = best_rival(lab, cell, f"traps {cell['side']}", anywhere, shown)

    def enough(contrast, levels):
        return bool(shows(contrast, levels).sum() >= cell["most"])

    trials = try_plants(lab, cell, lab.seeds(cell), plant, (rival,), enough)
    chosen = shown(trials)
    if chosen.sum() < cell["least"]:
        few = f"{int(chosen.sum())} traps persist at {CONTRAST:g} levels, {cell['least']} are needed"
        raise MissingAbility(f"{cell.family}, {cell.part}: {few}")
    figures = []
    for name, label in ((OURS, OURS), (rival, "rival")):
        hit = trials.hit[name][chosen]
        figures.append(figure("recall at 1%", label, wilson(int(hit.sum()), len(hit))))
        figures.append(figure("pixel auroc", label, pooled_auroc(trials.counts(name, chosen))))
        flagged = trials.flagged[name][chosen]
        figures.append(figure("flagged at 1%", label, wilson(int(flagged.sum()), len(flagged))))
    rows = {
        "hit": bits(trials.hit[OURS][chosen]),
        "rival": bits(trials.hit[rival][chosen]),
        "flagged": bits(trials.flagged[OURS][chosen]),
        "contrast": [round(float(one), 1) for one in trials.contrast[chosen]],
        "severity": [round(float(one), 4) for one in trials.severity[OURS][chosen]],
        "quarter": 4 * side >= subject.shape[1],
    }
    return {"figures": figures, "rows": rows, "series": {"rival": rival, "tuning": shares, "side": side}}


def shown(trials: Trials) -> np.ndarray:
    """Traps that persist, of the contrast that counts: bool [n]."""
    return shows(trials.contrast, trials.levels)


def shows(contrast: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """``shown`` of contrasts and levels [n]."""
    return (levels >= PERSISTING_LEVELS) & (contrast >= CONTRAST)


def jumps(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Jumps of all sizes and places, three steps before T_c or earlier: flagged at 1 %, by what became of them."""

    def plant(subject, seeds):
        return plant_rows(subject, seeds, "jump", "mixed")

    def persisting(trials: Trials) -> np.ndarray:
        return trials.levels >= PERSISTING_LEVELS

    rival, shares = best_rival(lab, cell, "jumps", plant, persisting, "flagged")
    trials = try_plants(lab, cell, lab.seeds(cell), plant, (rival,))
    rows = {}
    for group, chosen in (("persisting", persisting(trials)), ("absorbed", trials.levels < ABSORBED_LEVELS)):
        rows[group] = bits(trials.flagged[OURS][chosen])
        rows[f"{group}, rival"] = bits(trials.flagged[rival][chosen])
    figures = [
        figure(f"flagged at 1%, {group}", OURS if run == "" else "rival", wilson(one.count("1"), len(one)))
        for group in ("persisting", "absorbed")
        for run in ("", ", rival")
        if (one := rows[group + run])
    ]
    if not figures:
        raise MissingAbility(f"{cell.family}: no jump persists and none is absorbed")
    return {"figures": figures, "rows": rows, "series": {"rival": rival, "tuning": shares}}
