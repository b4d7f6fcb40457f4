# SPDX-License-Identifier: MIT
"""What is detected: plants of every kind, null runs, whole images. Measures: ``docs/measures.md``."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ascedfast.lab import detectors
from ascedfast.lab.contrast import contrast50
from ascedfast.lab.corrections import CONFIGS, STAND_IN, Prefix, finish, watch
from ascedfast.lab.detectors import Found
from ascedfast.lab.planted import held_out, plant_rows
from ascedfast.lab.planting import outcome
from ascedfast.lab.rivals import LastLayerLaplace, Segmenter, train_segmenter
from ascedfast.lab.sampling import start_noise
from ascedfast.lab.sources import trained_on
from ascedfast.lab.statistics import (
    Estimate,
    auroc,
    auroc_of_counts,
    bootstrap_of_means,
    count_scores,
    iou,
    pooled_auroc,
    recall_interval,
    threshold_at_rate,
    wilson,
)
from ascedfast.lab.subject import MissingAbility, Subject, ability
from ascedfast.lab.suites import Cell, Lab

HIT_IOU = 0.3
RATES = (0.01, 0.05)


def figure(measure: str, run: str, estimate: Estimate) -> dict[str, Any]:
    """A figure as a cell keeps it."""
    return {"measure": measure, "run": run, **estimate.to_dict()}


class Rows(NamedTuple):
    """Planted rows as a detector saw them.

    z: float32 [n, H, W], on the run's device; severity, iou: float64 [n], of each detector by name. boxes: bool
    [n, H, W]. contrast, levels: float64 [n], at planting and in the final image."""

    z: dict[str, Tensor]
    severity: dict[str, np.ndarray]
    iou: dict[str, np.ndarray]
    boxes: Tensor
    contrast: np.ndarray
    levels: np.ndarray


Scorer = Callable[[Prefix, Tensor], Found]


def scorers(subject: Subject, lab: Lab, cell: Cell) -> dict[str, Scorer]:
    """Every detector that this subject allows, by name."""
    made: dict[str, Scorer] = {
        mode: lambda prefix, images, config=config: detectors.by_mode(subject.schedule, prefix, config)
        for mode, config in CONFIGS.items()
    }
    scores = {"final variance": detectors.final_variance, "trajectory variance": detectors.trajectory_variance}
    for name, score in (scores | more_detectors(subject, lab, cell)).items():
        made[name] = lambda prefix, images, score=score: _with_scores(score(prefix, images))
    return made


def _with_scores(scores: Tensor) -> Found:
    found = detectors.by_map(scores, CONFIGS["fast"])
    return found._replace(z=scores.float(), severity=(scores.double() * found.mask).flatten(1).mean(1))


def more_detectors(subject: Subject, lab: Lab, cell: Cell) -> dict[str, detectors.Detector]:
    """Laplace where the subject shows its last layer and has real data; the stand-in, trained on another data set."""
    key = ("detectors", cell.family, cell.size)
    if key not in lab.cache:
        lab.cache[key] = {}
        with contextlib.suppress(MissingAbility):
            lab.cache[key]["laplace"] = _laplace(subject).detector(subject)
        lab.cache[key][STAND_IN] = stand_in(lab, trained_on(cell.family), cell.size).detector()
    return lab.cache[key]


def _laplace(subject: Subject) -> LastLayerLaplace:
    laplace = LastLayerLaplace(ability(subject, "last_conv"))
    real = held_out(subject, range(256))
    noise = start_noise(range(1 << 24, (1 << 24) + len(real)), subject.shape).to(real)
    for step in range(0, len(subject.schedule), max(1, len(subject.schedule) // 8)):
        level = subject.schedule.before[step]
        x = level.alpha * real + level.sigma * noise
        laplace.fit(lambda x=x, step=step: subject.denoise(x, step))
    return laplace


def stand_in(lab: Lab, family: str, size: str) -> Segmenter:
    """The segmenter trained on tuning seeds of one family's traps; trained once a process."""
    key = ("segmenter", family, size)
    if key not in lab.subjects:
        subject = lab.subject(family)
        small = size == "small"
        images, masks = [], []
        for seeds in lab.batches(lab.tuning(64 if small else 1024, 50_000)):
            planted = plant_rows(subject, seeds, "trap-after")
            grid, shown = planted.images.shape[-2:], planted.levels >= 2
            boxes = torch.nn.functional.interpolate(planted.boxes[:, None].float(), size=grid)[:, 0] > 0
            images.append(planted.images[shown])
            masks.append(boxes[shown])
        net = train_segmenter(torch.cat(images), torch.cat(masks), iterations=40 if small else 600)
        lab.subjects[key] = net
    return lab.subjects[key]


def _gather(cell: Cell, lab: Lab, kind: str, side: str, ground: str) -> Rows:
    subject = lab.subject(cell.family)
    using = scorers(subject, lab, cell)
    z: dict[str, list] = {name: [] for name in using}
    severity: dict[str, list] = {name: [] for name in using}
    overlap: dict[str, list] = {name: [] for name in using}
    boxes, contrast, levels = [], [], []
    for seeds in lab.batches(lab.seeds(cell)):
        planted = plant_rows(subject, seeds, kind, side, ground)
        if planted is None:
            continue
        for name, scorer in using.items():
            found = scorer(planted.prefix, planted.images)
            z[name].append(found.z.float())
            severity[name].append(found.severity.cpu())
            overlap[name].append(iou(found.mask.cpu().numpy(), planted.boxes.cpu().numpy()))
        boxes.append(planted.boxes.cpu())
        contrast.append(planted.contrast.cpu())
        levels.append(planted.levels.cpu())
    if not boxes:
        raise MissingAbility(f"no final image of {cell.family} has {ground} ground of that size")
    return Rows(
        {name: torch.cat(parts) for name, parts in z.items()},
        {name: torch.cat(parts).numpy() for name, parts in severity.items()},
        {name: np.concatenate(parts) for name, parts in overlap.items()},
        torch.cat(boxes),
        torch.cat(contrast).numpy(),
        torch.cat(levels).numpy(),
    )


def null_severities(cell: Cell, lab: Lab, count: int) -> dict[str, np.ndarray]:
    """Severities of null runs on tuning seeds, a scorer; computed once a family."""
    key = ("nulls", cell.family, count)
    if key not in lab.cache:
        lab.cache[key] = _nulls(cell, lab, lab.tuning(count, 10_000))
    return lab.cache[key]


def _nulls(cell: Cell, lab: Lab, seeds: range) -> dict[str, np.ndarray]:
    subject = lab.subject(cell.family)
    using = scorers(subject, lab, cell)
    found: dict[str, list] = {name: [] for name in using}
    for part in lab.batches(seeds):
        prefix = watch(subject, part)
        images = subject.decode(finish(subject, prefix))
        for name, scorer in using.items():
            found[name].append(scorer(prefix, images).severity.cpu())
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def detection(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Plants of one kind, side and ground: AUROCs, recall at fixed false-flag rates, IoU, contrast at half recall."""
    rows = _gather(cell, lab, cell.part, cell["side"], cell["ground"])
    nulls = null_severities(cell, lab, cell["nulls"])
    outcomes = np.array([outcome(level) for level in rows.levels])
    figures = []
    groups = {"all": np.ones(len(outcomes), bool)}
    groups["persisting"] = outcomes == "persisting"
    for group, chosen in groups.items():
        if chosen.sum() >= 8:
            figures += detected(rows, nulls, chosen, "" if group == "all" else f" {group}", cell["draws"])
    kinds = ("persisting", "between", "absorbed")
    counts = {name: int((outcomes == name).sum()) for name in kinds}
    for name in ("absorbed", "between"):
        if counts[name] >= 8:
            for mode in CONFIGS:
                found = wilson(int((rows.severity[mode][outcomes == name] > 0).sum()), counts[name])
                figures.append(figure(f"flagged, own threshold, {name}", mode, found))
    contrasts = np.quantile(rows.contrast, [0.1, 0.25, 0.5, 0.75, 0.9])
    return {"figures": figures, "series": {"outcomes": counts, "contrast": contrasts.round(3).tolist()}}


def detected(
    rows: Rows, nulls: dict[str, np.ndarray], chosen: np.ndarray, suffix: str, draws: int
) -> list[dict[str, Any]]:
    """Figures of the chosen rows against null runs.

    Args: nulls: severities [m] of null runs, a detector. chosen: bool [n]. suffix: of the measures' names. draws: of
    the bootstrap."""
    figures = []
    pools = {}
    picked = torch.from_numpy(chosen)
    boxes = rows.boxes[picked]
    for name in sorted(rows.z, key=lambda name: name != "final variance"):  # first what others are compared with
        z = rows.z[name][picked.to(rows.z[name].device)]
        pools[name] = count_scores(z, boxes)
        figures.append(figure(f"pixel auroc{suffix}", name, pooled_auroc(pools[name], draws=draws)))
        if name in CONFIGS:
            found = pooled_auroc(count_scores(z, boxes.roll(1, 0)), draws=draws)
            figures.append(figure(f"pixel auroc, boxes permuted{suffix}", name, found))
            less = pooled_auroc(pools[name], pools["final variance"], draws=draws)
            figures.append(figure(f"pixel auroc less final variance{suffix}", name, less))
        severity, overlap = rows.severity[name][chosen], rows.iou[name][chosen]
        # Nulls and plants are other images: each class is resampled on its own.
        figures.append(figure(f"image auroc{suffix}", name, two_sample_auroc(severity, nulls[name], draws // 4)))
        mean = bootstrap_of_means(lambda means: means[..., 0], overlap[:, None], draws)
        figures.append(figure(f"iou{suffix}", name, mean))
        for rate in RATES:
            hits = np.where(overlap >= HIT_IOU, severity, -np.inf)
            found = recall_interval(nulls[name], hits, rate, draws=draws // 4)
            figures.append(figure(f"recall at {rate:.0%}{suffix}", name, found))
            hit = hits > threshold_at_rate(nulls[name], rate)
            usable = rows.contrast[chosen] > 1e-6
            if usable.sum() >= 8:
                try:
                    half = contrast50(rows.contrast[chosen][usable], hit[usable])
                except (ArithmeticError, ValueError):
                    continue
                figures.append(figure(f"contrast at half recall, {rate:.0%}{suffix}", name, half))
    return figures


def two_sample_auroc(positive: np.ndarray, negative: np.ndarray, draws: int = 500, seed: int = 0) -> Estimate:
    """AUROC of two independent samples; each is resampled on its own. n: the smaller of the two."""
    generator = np.random.default_rng(seed)
    _, level = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    width = int(level.max()) + 1

    def counts(own: np.ndarray) -> np.ndarray:
        """[draws, width], of resamples of a class."""
        picked = own[generator.integers(0, len(own), (draws, len(own)))] + width * np.arange(draws)[:, None]
        return np.bincount(picked.ravel(), minlength=draws * width).reshape(draws, width).astype(float)

    values = auroc_of_counts(counts(level[: len(positive)]), counts(level[len(positive) :]))
    low, high = np.quantile(values, [0.025, 0.975])
    labels = np.arange(len(positive) + len(negative)) < len(positive)
    value = auroc(np.concatenate([positive, negative]), labels)
    return Estimate(value, float(low), float(high), min(len(positive), len(negative)))


def calibration(cell: Cell, lab: Lab) -> dict[str, Any]:
    """False flags of null runs: by the mode's own threshold, and at thresholds set on tuning seeds."""
    tuned = null_severities(cell, lab, cell["nulls"])
    reported = _nulls(cell, lab, lab.seeds(cell))
    figures = []
    for name, severity in reported.items():
        figures.append(figure("flagged, own threshold", name, wilson(int((severity > 0).sum()), len(severity))))
        for rate in RATES:
            above = int((severity > threshold_at_rate(tuned[name], rate)).sum())
            figures.append(figure(f"flagged, nominal {rate:.0%}", name, wilson(above, len(severity))))
    return {"figures": figures}


def accuracy(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Balanced accuracy on whole images at each mode's own threshold: persisting plants against as many nulls.

    Half of the seeds are planted, a quarter of those a kind, and half are null runs."""
    subject = lab.subject(cell.family)
    seeds = lab.seeds(cell)
    half = len(seeds) // 2
    flagged: dict[str, list[Tensor]] = {mode: [] for mode in CONFIGS}
    for i, kind in enumerate(("trap-before", "trap-after", "jump", "stroke")):
        for part in lab.batches(seeds[half * i // 4 : half * (i + 1) // 4]):
            planted = plant_rows(subject, part, kind)
            persisting = planted.levels >= 8
            for mode, config in CONFIGS.items():
                found = detectors.by_mode(subject.schedule, planted.prefix, config).severity > 0
                flagged[mode].append(found[persisting].cpu())
    nulls: dict[str, list[Tensor]] = {mode: [] for mode in CONFIGS}
    for part in lab.batches(seeds[half:]):
        prefix = watch(subject, part)
        for mode, config in CONFIGS.items():
            nulls[mode].append((detectors.by_mode(subject.schedule, prefix, config).severity > 0).cpu())
    figures = []
    for mode in CONFIGS:
        found, null = torch.cat(flagged[mode]), torch.cat(nulls[mode])
        n = min(len(found), len(null))
        if n < 8:
            raise MissingAbility(f"{cell.family}: {len(found)} plants persist, too few for an accuracy")
        right = int(found[:n].sum()) + int((~null[:n]).sum())
        figures.append(figure("balanced accuracy", mode, wilson(right, 2 * n)))
        figures.append(figure("flagged, own threshold", mode, wilson(int(null.sum()), len(null))))
    return {"figures": figures}
