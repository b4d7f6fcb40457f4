# SPDX-License-Identifier: MIT
"""What correction by mode "calibrated" makes of weak twins: defects, distances, and the controls that explain a miss.

The table is of the sound model's runs. Every re-noised run takes x0_hat with the noise that the table gives, "state
replacement" the same masks without it; the part up to T_c is shared, and rows with an empty mask are not run again.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ascedfast import AscedConfig
from ascedfast.lab import detectors
from ascedfast.lab.calibrated import calibrated, noise_of
from ascedfast.lab.corrections import finish, permuted, renoise, watch
from ascedfast.lab.distributions import fd_local, precision_recall
from ascedfast.lab.flags import bits
from ascedfast.lab.found import figure, two_sample_auroc
from ascedfast.lab.repairs import NEAREST, features
from ascedfast.lab.seeds import REPORTING_START
from ascedfast.lab.statistics import count_scores, pooled_auroc
from ascedfast.lab.steps import judged
from ascedfast.lab.subject import MissingAbility, Subject, ability
from ascedfast.lab.suites import Cell, Lab
from ascedfast.lab.tuned import own_table

RUNS = ("original", "corrected", "state replacement")
CONTROLS = (*RUNS, "permuted", "oracle", "whole image")
"""Of the first seed set. oracle: the judge's own map of the uncorrected image's defects, grown as any mask."""


def mend(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One seed set through every run. Flags are the judge's; where it may not be used, distances are left."""
    subject = lab.subject(cell.family)
    config = calibrated(subject, own_table(lab, cell.family, cell["runs"]))
    runs = CONTROLS if cell.part == "controls" else RUNS
    drawn: dict[str, list[Tensor]] = {name: [] for name in RUNS}
    flags: dict[str, list[Tensor]] = {name: [] for name in runs}
    severity, maps, marks = [], [], []
    left_out: dict[str, str] = {}
    for seeds in lab.batches(lab.seeds(cell)):
        prefix = watch(subject, seeds)
        noise = noise_of(config, subject.schedule, prefix)
        found = detectors.by_mode(subject.schedule, prefix, config)
        first = finish(subject, prefix)
        original = subject.decode(first)
        try:
            defects = judged(subject, original)[1]
        except MissingAbility as error:
            defects, left_out["defects"] = None, str(error)
        for name, mask, scale in runs_of(runs, subject, config, found.grown, defects, noise):
            images = original
            if name != "original":
                x = renoise(subject, prefix, mask, scale)
                images = subject.decode(finish(subject, prefix, x, mask=mask, original=first))
            if name in drawn:
                drawn[name].append(features(subject, images))
            if defects is not None:
                flags[name].append(judged(subject, images)[0].cpu())
        if cell.part == "controls" and defects is not None:
            severity.append(found.z.double().flatten(1).amax(1).cpu())
            maps.append(found.z)
            marks.append(defects)
    result: dict[str, Any] = {"values": values_of(subject, cell, lab, drawn), "series": {"left out": left_out}}
    if flags["original"]:
        result["flags"] = {name: bits(torch.cat(parts).numpy()) for name, parts in flags.items()}
    if severity:
        result["figures"] = seen_defects(torch.cat(severity), torch.cat(maps), torch.cat(marks))
    return result


def runs_of(
    runs: tuple[str, ...],
    subject: Subject,
    config: AscedConfig,
    grown: Tensor,
    defects: Tensor | None,
    noise: float,
) -> Iterator[tuple[str, Tensor, float]]:
    """Name, mask and noise on x0_hat of each run; without a judge there is no oracle."""
    masks = {
        "original": torch.zeros_like(grown),
        "corrected": grown,
        "state replacement": grown,
        "permuted": permuted(grown),
        "whole image": torch.ones_like(grown),
    }
    if defects is not None:
        masks["oracle"] = grow(defects, config.sizes(tuple(subject.shape[1:])).grow)
    for name in runs:
        if name in masks:
            yield name, masks[name], 0.0 if name == "state replacement" else noise


def grow(mask: Tensor, by: int) -> Tensor:
    """bool [R, H, W] grown by a square, as masks are before they are re-noised."""
    return F.max_pool2d(mask[:, None].float(), 2 * by + 1, stride=1, padding=by)[:, 0] > 0


def values_of(subject: Subject, cell: Cell, lab: Lab, drawn: dict[str, list[Tensor]]) -> dict[str, dict[str, float]]:
    """fd_local, precision and recall of each run, against the seed set's own real images."""
    images = getattr(subject, "reference", None) or ability(subject, "real")
    real = features(subject, images(cell.count, cell.start - REPORTING_START)).to(lab.device)
    values = {}
    for name, parts in drawn.items():
        one = torch.cat(parts).to(real.device)
        precision, recall = precision_recall(real, one, NEAREST)
        values[name] = {"fd_local": fd_local(real, one), "precision": precision, "recall": recall}
    return values


def seen_defects(severity: Tensor, maps: Tensor, marks: Tensor) -> list[dict[str, Any]]:
    """How well severities tell defective images, and the map of severity the judge's map: the detector's share in a
    miss. Nothing where no image, or every one, is defective."""
    defective = marks.flatten(1).any(1).cpu().numpy()
    if defective.all() or not defective.any():
        return []
    numbers = severity.numpy()
    return [
        figure("image auroc for defects", "corrected", two_sample_auroc(numbers[defective], numbers[~defective])),
        figure("pixel auroc for defects", "corrected", pooled_auroc(count_scores(maps, marks))),
    ]
