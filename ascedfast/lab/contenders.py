# SPDX-License-Identifier: MIT
"""The detector under test and its rivals on the same runs, all at one share of flagged sound runs.

Rivals: mode "official", its sizes scaled, for each of SCALES; and two maps, the variance of the trajectory and the
largest robust z of mode "fast", whose regions are cut like those of mode "calibrated": above the largest value of every
second sound run, kept where they hold one above the threshold. Thresholds come from tuning seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ascedfast import AscedConfig
from ascedfast.calibration.regions import seeded
from ascedfast.lab import detectors
from ascedfast.lab.calibrated import calibrated
from ascedfast.lab.corrections import CONFIGS, Prefix, watch
from ascedfast.lab.found import HIT_IOU
from ascedfast.lab.planted import Planted
from ascedfast.lab.statistics import PooledScores, count_scores, threshold_at_rate
from ascedfast.lab.subject import MissingAbility, Subject
from ascedfast.lab.suites import Cell, Lab
from ascedfast.lab.tuned import kept, own_table, sound

OURS = "calibrated"
SCALES = (1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
MAPS = ("trajectory variance", "max z")
RIVALS = (*(f"official {scale:g}" for scale in SCALES), *MAPS)
RATE = 0.01
NULLS_FROM, PLANTS_FROM = 10_000, 30_000
"""First tuning seeds of the rivals' thresholds, and of the plants by which the best rival is chosen."""

BARREN = 1000
"""Images without a single place for a plant after which no more are tried."""

Levels = dict[str, tuple[float, float]]
"""Of each rival the scores that every second sound run exceeds, and a share RATE of them."""
Plant = Callable[[Subject, Sequence[int]], Planted | None]
Enough = Callable[[np.ndarray, np.ndarray], bool]


class Seen(NamedTuple):
    """What one detector says of R rows. scores: float32 [R, H, W]; severity: float64 [R], of the image; mask: bool
    [R, H, W]; flagged: bool [R]."""

    scores: Tensor
    severity: Tensor
    mask: Tensor
    flagged: Tensor


def seen_by(name: str, subject: Subject, prefix: Prefix, levels: Levels) -> Seen:
    """A rival's; with levels of minus infinity, its severities alone count."""
    low, high = levels[name]
    if name in MAPS:
        scores = _map(name, subject, prefix)
        severity = scores.double().flatten(1).amax(1)
        mask = seeded(scores, min(low, high), high, 4)[0]
        return Seen(scores, severity, mask, severity > high)
    config = AscedConfig.official(reference_size=256, mad_scale=float(name.split()[1]))
    found = detectors.by_mode(subject.schedule, prefix, config)
    return Seen(found.z, found.severity, found.mask, found.severity > high)


def _map(name: str, subject: Subject, prefix: Prefix) -> Tensor:
    if name == "max z":
        return detectors.by_mode(subject.schedule, prefix, CONFIGS["fast"]).z
    return detectors.trajectory_variance(prefix, prefix.x).float()


def ours(subject: Subject, prefix: Prefix, table: Any, rate: float = RATE) -> Seen:
    """Mode "calibrated" with this table. Raises: ValueError where the table does not know the window."""
    found = detectors.by_mode(subject.schedule, prefix, calibrated(subject, table, rate))
    return Seen(found.z, found.z.double().flatten(1).amax(1), found.mask, found.mask.flatten(1).any(1))


def levels_of(lab: Lab, family: str, count: int) -> Levels:
    """From the sound model's tuning runs."""
    of = sound(family)

    def make() -> Levels:
        subject = lab.subject(of)
        nothing = dict.fromkeys(RIVALS, (-np.inf, -np.inf))
        scores: dict[str, list[Tensor]] = {name: [] for name in RIVALS}
        for seeds in lab.batches(lab.tuning(count, NULLS_FROM)):
            prefix = watch(subject, seeds)
            for name in RIVALS:
                scores[name].append(seen_by(name, subject, prefix, nothing).severity.cpu())
        null = {name: torch.cat(parts).numpy() for name, parts in scores.items()}
        return {name: (float(np.median(one)), threshold_at_rate(one, RATE)) for name, one in null.items()}

    return {name: tuple(pair) for name, pair in kept(lab, of, f"levels {count} runs", make).items()}


class Trials(NamedTuple):
    """Planted rows as some detectors saw them: flagged, hit, severity [n] by detector; counts: for pixel AUROCs.
    contrast (in grey levels, of what is shown) and levels: float64 [n]."""

    flagged: dict[str, np.ndarray]
    hit: dict[str, np.ndarray]
    severity: dict[str, np.ndarray]
    scores: dict[str, Tensor]
    boxes: Tensor
    contrast: np.ndarray
    levels: np.ndarray

    def counts(self, name: str, chosen: np.ndarray) -> PooledScores:
        """Of the chosen rows, bool [n]. Raises: ValueError for none."""
        rows = torch.from_numpy(chosen).to(self.boxes.device)
        return count_scores(self.scores[name][rows], self.boxes[rows])


def try_plants(
    lab: Lab, cell: Cell, seeds: Sequence[int], plant: Plant, rivals: Sequence[str], enough: Enough | None = None
) -> Trials:
    """The detector under test and some rivals on planted rows.

    Args: enough: from the contrasts and levels [n] so far, whether later batches may be left.
    Raises: MissingAbility where no row could be planted, or the table does not know this window."""
    subject = lab.subject(cell.family)
    table, levels = own_table(lab, cell.family, cell["runs"]), levels_of(lab, cell.family, cell["nulls"])
    found: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in (OURS, *rivals)}
    boxes, contrast, final = [], [], []
    tried = 0
    for part in lab.batches(seeds):
        planted = plant(subject, part)
        tried += len(part)
        if planted is None:
            if not boxes and tried >= BARREN:
                break
            continue
        boxes.append(planted.boxes)
        contrast.append(planted.shown.cpu())
        final.append(planted.levels.cpu())
        for name, rows in found.items():
            if name == OURS:
                seen = ours(subject, planted.prefix, table)
            else:
                seen = seen_by(name, subject, planted.prefix, levels)
            hit = seen.flagged & (overlap(seen.mask, planted.boxes) >= HIT_IOU)
            rows.append((seen.scores, seen.severity.cpu(), seen.flagged.cpu(), hit.cpu()))
        if enough is not None and enough(torch.cat(contrast).numpy(), torch.cat(final).numpy()):
            break
    if not boxes:
        raise MissingAbility(f"{cell.family}: no place for such a plant in {tried} images")

    def joined(k: int) -> dict[str, np.ndarray]:
        return {name: torch.cat([row[k] for row in rows]).numpy() for name, rows in found.items()}

    scores = {name: torch.cat([row[0] for row in rows]) for name, rows in found.items()}
    both = (torch.cat(contrast).numpy(), torch.cat(final).numpy())
    return Trials(joined(2), joined(3), joined(1), scores, torch.cat(boxes), *both)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union, bool [R, H, W] twice -> float64 [R], where the tensors lie; 1 where both are empty."""
    union = (a | b).flatten(1).sum(1)
    return torch.where(union == 0, 1.0, (a & b).flatten(1).sum(1).double() / union.clamp(min=1))


def best_rival(
    lab: Lab,
    cell: Cell,
    name: str,
    plant: Plant,
    wanted: Callable[[Trials], np.ndarray],
    found: str = "hit",
    spare: int = 1,
) -> tuple[str, dict[str, float]]:
    """The rival that finds most of the wanted plants of tuning seeds, and what each of them finds.

    Args: name: of this choice. wanted: of trials bool [n]; where it is none, all rows count. found: "hit" or "flagged".
    spare: images that may be tried for each plant, where places are rare.
    """

    def enough(contrast: np.ndarray, levels: np.ndarray) -> bool:
        return len(contrast) >= cell["tuning"]

    def make() -> dict[str, float]:
        seeds = lab.tuning(spare * cell["tuning"], PLANTS_FROM)
        trials = try_plants(lab, cell, seeds, plant, RIVALS, enough)
        chosen = wanted(trials)
        chosen = chosen if chosen.any() else np.ones_like(chosen)
        return {rival: float(getattr(trials, found)[rival][chosen].mean()) for rival in RIVALS}

    shares = kept(lab, cell.family, f"rival {name} {cell['tuning']} of {cell['runs']}", make)
    return max(shares, key=shares.__getitem__), shares
