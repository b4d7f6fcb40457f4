# SPDX-License-Identifier: MIT
"""What else the same evaluations could buy: drawing again, the best of several, steering, correction, a second pass.

Every way's cost is counted in evaluations of the network an image; what several ways share is computed once.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ascedfast import ops
from ascedfast.calibration.fit import fit
from ascedfast.calibration.table import Null, NullTable
from ascedfast.calibration.windows import smoothed
from ascedfast.lab import detectors
from ascedfast.lab.calibrated import calibrated, noise_of
from ascedfast.lab.corrections import Prefix, finish, renoise, watch
from ascedfast.lab.flags import bits
from ascedfast.lab.regions import draw_box, largest_side
from ascedfast.lab.seeds import TuningSeeds
from ascedfast.lab.steps import judged
from ascedfast.lab.subject import Subject, ability
from ascedfast.lab.suites import Cell, Lab
from ascedfast.lab.tuned import kept, own_table, sound

TRIES = 4
"""Draws at the most, and particles of the steering."""
APART = 1 << 28
"""Added to a row's seed for each further draw."""
TRIGGERS = (0.05, 0.2, 0.5)
"""Shares of sound runs above which a run is drawn again."""
AFTER = 5
"""Predictions after T_c that a second look takes."""
SECOND_RATE = 0.2
"""Share of sound re-noised regions that a second look calls abnormal."""
WORST = 1e6
"""Severity that stands for what is not finite."""


class Drawn(NamedTuple):
    """TRIES draws of each row: prefixes; severity float64 [TRIES, R]; defective bool [TRIES, R], uncorrected."""

    prefixes: list[Prefix]
    severity: Tensor
    defective: Tensor


def redraw(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One seed set by every way: the judge's flags, and evaluations an image."""
    subject = lab.subject(cell.family)
    ability(subject, "defects")
    table = own_table(lab, cell.family, cell["runs"])
    looks = {whole: second_null(lab, cell.family, cell["runs"], whole) for whole in (False, True)}
    flags: dict[str, list[Tensor]] = {}
    spent: dict[str, list[Tensor]] = {}
    for seeds in lab.batches(lab.seeds(cell)):
        drawn = draw(subject, seeds, table)
        found = choices(subject, drawn, table) | corrections(subject, drawn, table, looks[False])
        noise = noise_of(calibrated(subject, table), subject.schedule, drawn.prefixes[0])
        found["steering"] = steered(subject, drawn, looks[True], noise)
        for name, (defective, evaluations) in found.items():
            flags.setdefault(name, []).append(defective.cpu())
            spent.setdefault(name, []).append(evaluations.double().cpu())
    values = {name: {"evaluations": float(torch.cat(parts).mean())} for name, parts in spent.items()}
    return {"values": values, "flags": {name: bits(torch.cat(parts).numpy()) for name, parts in flags.items()}}


def draw(subject: Subject, seeds: range, table: NullTable) -> Drawn:
    """Raises: MissingAbility where there is no judge that may be used."""
    prefixes = [watch(subject, [seed + k * APART for seed in seeds]) for k in range(TRIES)]
    config = calibrated(subject, table)
    severity = [detectors.by_mode(subject.schedule, one, config).z.double().flatten(1).amax(1) for one in prefixes]
    defective = [judged(subject, subject.decode(finish(subject, one)))[0] for one in prefixes]
    return Drawn(prefixes, torch.stack(severity), torch.stack(defective))


def choices(subject: Subject, drawn: Drawn, table: NullTable) -> dict[str, tuple[Tensor, Tensor]]:
    """Ways that only choose among draws: defective bool [R], evaluations [R] of each."""
    t_c, steps = drawn.prefixes[0].t_c, len(subject.schedule)
    null = table.at([level.logsnr for level in subject.schedule.before[:t_c]])
    found = {"original": (drawn.defective[0], torch.full_like(drawn.severity[0], steps))}
    for rate in TRIGGERS:
        index, tries = first_below(drawn.severity, null.threshold(rate))
        found[f"redrawn above {rate:.0%}"] = (pick(drawn.defective, index), steps + t_c * (tries - 1))
    for count in (2, TRIES):
        index = drawn.severity[:count].argmin(0)
        cost = torch.full_like(drawn.severity[0], steps + t_c * (count - 1))
        found[f"best of {count}"] = (pick(drawn.defective, index), cost)
    return found


def first_below(severity: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Of severity [K, R]: the first draw not above the threshold, else the least severe; and how many were drawn."""
    fine = severity <= threshold
    first = fine.int().argmax(0)
    any_fine = fine.any(0)
    index = torch.where(any_fine, first, severity.argmin(0))
    return index, torch.where(any_fine, first + 1, len(severity))


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values [K, R, ...] at index [R] of each row."""
    return values[index, torch.arange(len(index), device=index.device)]


def corrections(subject: Subject, drawn: Drawn, table: NullTable, look: Null) -> dict[str, tuple[Tensor, Tensor]]:
    """The first draw corrected; and corrected with a second look at the old mask AFTER predictions later: where it is
    still abnormal the mask is re-noised once more, from T_c on, and the less severe of the two goes on."""
    prefix, steps = drawn.prefixes[0], len(subject.schedule)
    config = calibrated(subject, table)
    mask = detectors.by_mode(subject.schedule, prefix, config).grown
    noise = noise_of(config, subject.schedule, prefix)
    plain = torch.full_like(drawn.severity[0], steps)
    once, twice = drawn.defective[0].clone(), drawn.defective[0].clone()
    rows = mask.flatten(1).any(1).nonzero()[:, 0]
    cost = plain.clone()
    if len(rows):
        some = rows_of(prefix, rows)
        first, later = (renoised(subject, some, mask[rows], noise, draw) for draw in (0, 1))
        severity = [second_look(one, mask[rows], look) for one in (first, later)]
        defective = [judged(subject, subject.decode(finish(subject, one)))[0] for one in (first, later)]
        again = severity[0] > look.threshold(SECOND_RATE)
        once[rows] = defective[0]
        twice[rows] = torch.where(again & (severity[1] < severity[0]), defective[1], defective[0])
        cost[rows] += AFTER * again
    return {"corrected": (once, plain), "corrected, second look": (twice, cost)}


def rows_of(prefix: Prefix, rows: Tensor) -> Prefix:
    """Some rows of a run."""
    seeds = tuple(prefix.seeds[i] for i in rows.tolist())
    parts = {name: getattr(prefix, name)[rows] for name in ("x", "before")}
    return prefix._replace(seeds=seeds, x0=prefix.x0[:, rows], scores=prefix.scores[:, rows], **parts)


def renoised(subject: Subject, prefix: Prefix, mask: Tensor, noise: float, draw: int) -> Prefix:
    """The run from T_c on, AFTER steps, re-noised inside the mask; its x0 are the predictions after T_c alone."""
    x = renoise(subject, prefix, mask, noise, draw)
    return watch(subject, prefix.seeds, t_c=AFTER, x=x, first=prefix.step)


def second_look(prefix: Prefix, mask: Tensor, look: Null) -> Tensor:
    """Severity inside each row's mask by the predictions after T_c, float64 [R]; minus infinity without a mask."""
    severity = look.severity(ops.temporal_scores(smoothed(detectors.changes(prefix.x0)), look.profile))
    return severity.double().masked_fill(~mask, -torch.inf).flatten(1).amax(1)


def second_null(lab: Lab, family: str, runs: int, whole: bool) -> Null:
    """What regions of sound runs score that were re-noised at T_c: boxes of a quarter of the side to half the area,
    or whole images; from tuning runs of the sound model."""
    of = sound(family)

    def make() -> dict[str, Any]:
        subject = lab.subject(of)
        config = calibrated(subject, own_table(lab, of, runs))
        grid = tuple(subject.shape[1:])
        changes, masks = [], []
        for seeds in lab.batches(TuningSeeds.of(0, runs).seeds):
            prefix = watch(subject, seeds)
            spread = range(max(1, grid[0] // 4), largest_side(grid) + 1)
            boxes = [draw_box(seed, spread[seed % len(spread)], grid).mask(grid) for seed in seeds]
            mask = torch.ones_like(torch.stack(boxes)) if whole else torch.stack(boxes)
            later = renoised(subject, prefix, mask.to(prefix.x.device), noise_of(config, subject.schedule, prefix), 0)
            changes.append(smoothed(detectors.changes(later.x0)))
            masks.append(mask.to(prefix.x.device))
        d, mask = torch.cat(changes, 1), torch.cat(masks)
        profile = d.double().flatten(2).mean((1, 2)).tolist()
        scores = ops.temporal_scores(d, profile)
        still, jump = (one.masked_fill(~mask, 0).flatten(1).amax(1).double().cpu().numpy() for one in scores)
        levels = [level.logsnr for level in subject.schedule.before[prefix.step : prefix.step + AFTER]]
        return NullTable((fit(levels, grid, profile, still, jump),)).to_dict()

    found: Mapping[str, Any] = kept(lab, of, f"second look {runs} runs {'whole' if whole else 'boxes'}", make)
    return NullTable.from_dict(dict(found)).nulls[0]


def steered(subject: Subject, drawn: Drawn, look: Null, noise: float) -> tuple[Tensor, Tensor]:
    """Feynman-Kac steering (after arXiv 2501.06848) of TRIES particles an image by the potential -severity.

    At T_c particles are drawn by softmax(-severity), and each moves: it is re-noised as a whole with noise of its own,
    since copies of a deterministic run stay copies. AFTER predictions later one is drawn by softmax(-severity) of what
    was seen since, and goes on alone."""
    first, steps = drawn.prefixes[0], len(subject.schedule)
    rows = torch.arange(len(first.seeds), device=first.x.device)
    generator = torch.Generator().manual_seed(first.seeds[0])

    def drawn_by(severity: Tensor, count: int) -> Tensor:
        """[count, R], of severity [K, R]."""
        weights = (-severity.cpu().nan_to_num(nan=WORST, posinf=WORST)).softmax(0).T
        return torch.multinomial(weights, count, True, generator=generator).T.to(severity.device)

    ancestors = drawn_by(drawn.severity, TRIES)
    x = torch.stack([one.x for one in drawn.prefixes])
    x0 = torch.stack([one.x0[-1] for one in drawn.prefixes])
    whole = torch.ones(len(rows), *first.x.shape[2:], dtype=torch.bool, device=first.x.device)
    particles = []
    for k in range(TRIES):
        own = first._replace(x=x[ancestors[k], rows], x0=x0[ancestors[k], rows][None])
        particles.append(renoised(subject, own, whole, noise, k))
    severity = torch.stack([second_look(one, whole, look) for one in particles])
    chosen = drawn_by(severity, 1)[0]
    states = torch.stack([one.x for one in particles])[chosen, rows]
    images = subject.decode(finish(subject, particles[0]._replace(x=states)))
    cost = TRIES * (first.t_c + AFTER) + steps - first.t_c - AFTER
    return judged(subject, images)[0], torch.full_like(drawn.severity[0], cost)
