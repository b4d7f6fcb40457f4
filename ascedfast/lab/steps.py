# SPDX-License-Identifier: MIT
"""What happens step by step: phases, natural defects, scales, acceleration, strokes beside traps."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from ascedfast import reference
from ascedfast.lab import detectors
from ascedfast.lab.corrections import CONFIGS, Prefix, finish, watch
from ascedfast.lab.found import figure
from ascedfast.lab.plan import role_of
from ascedfast.lab.planted import held_out, scale_of, stroke_step, watch_t_c
from ascedfast.lab.planting import Plant, colour_direction, stroke_start
from ascedfast.lab.regions import Box, draw_box, largest_side, rms_difference
from ascedfast.lab.sampling import start_noise
from ascedfast.lab.statistics import (
    Estimate,
    bootstrap_of_means,
    count_scores,
    paired_bootstrap,
    pooled_auroc,
    wilson,
)
from ascedfast.lab.subject import MissingAbility, Subject, ability
from ascedfast.lab.suites import Cell, Lab
from ascedfast.lab.twins import TWINS

SCALES = ("s", "w*s", "x0_hat", "s'*v")
SCALE_RUNS = 500


def dynamics(x0: Tensor) -> Tensor:
    """d of each step but the first: [K, R, C, H, W] -> [K - 1, R, H, W]."""
    return torch.stack([reference.dynamics(new, old, "mean") for new, old in zip(x0[1:], x0[:-1], strict=True)])


def until(prefix: Prefix, t_c: int) -> Prefix:
    """What was seen up to another T_c of a run that was watched longer; its states are not those of T_c."""
    return prefix._replace(t_c=t_c, x0=prefix.x0[:t_c], scores=prefix.scores[:t_c])


def judged(subject: Subject, images: Tensor) -> tuple[Tensor, Tensor]:
    """The judge: defective bool [n], and the map at the grid of the state, bool [n, H, W]. Raises: MissingAbility."""
    judge = ability(subject, "defects")
    try:
        parts = [judge(part) for part in images.split(500)]
    except ValueError as error:
        if type(error).__name__ != "UnfitJudgeError":  # by name: the toy needs nothing of what that module imports
            raise
        raise MissingAbility(f"{subject.name} has no judge that may be used: {error}") from error
    score, marks = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    marks = marks.reshape(len(marks), 1, *marks.shape[-2:]).float()
    marks = F.adaptive_max_pool2d(marks, tuple(subject.shape[1:]))[:, 0] > 0
    return score > 0, marks


def second_judge(lab: Lab, family: str, size: str = "full") -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """``judge.DenoisingJudge`` in the form of ``judged``; None but for weak twins made at load. Its level comes from
    2,000 held-out images (small: 100), once a process."""
    of, kind = role_of(family).of, family.rpartition("-")[2]
    if of is None or kind not in TWINS:
        return None
    judge = importlib.import_module("ascedfast.lab.judge")  # what it imports, a toy does without
    full, twin = lab.subject(of), lab.subject(family)
    key = (of, size)
    if key not in lab.judges:
        lab.judges[key] = judge.DenoisingJudge.calibrated(full, full.real(100 if size == "small" else 2000))

    def second(images: Tensor) -> tuple[Tensor, Tensor]:
        score, cells = lab.judges[key].defects(twin, images)
        return score > 0, F.interpolate(cells[:, None].float(), size=tuple(twin.shape[1:]))[:, 0] > 0

    return second


def natural(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Null runs: share of abnormal locations a step, AUROC for the judge's defects a step, and the scale of signals."""
    subject = lab.subject(cell.family)
    schedule = subject.schedule
    t_c = watch_t_c(subject, 0)
    shares: list[Tensor] = []
    changes: list[Tensor] = []
    z: list[Tensor] = []
    marks: list[Tensor] = []
    variations: list[np.ndarray] = []
    second, other_marks = second_judge(lab, cell.family, cell.size), []
    missing = None
    for seeds in lab.batches(lab.seeds(cell)):
        whole = watch(subject, seeds, t_c=len(schedule))
        d = dynamics(whole.x0)
        shares.append(detectors.abnormal(d, CONFIGS["fast"]).cpu())
        if sum(map(len, variations)) < SCALE_RUNS:
            variations.append(variation(subject, whole))
        try:
            marks.append(judged(subject, subject.decode(whole.x))[1].cpu())
            z.append(detectors.by_mode(schedule, until(whole, t_c), CONFIGS["official"]).z)
            changes.append(d.cpu())
            if second is not None:
                other_marks.append(second(subject.decode(whole.x))[1].cpu())
        except MissingAbility as error:
            missing = str(error)
    share = torch.cat(shares, 1).T.numpy()
    figures = phase_figures(share)
    spread = np.concatenate(variations)[:SCALE_RUNS]
    for i, name in enumerate(SCALES):
        figures.append(figure("variation over t", name, paired_bootstrap(np.mean, spread[:, i])))
        if name != "w*s":
            less = spread[:, 1] - spread[:, i]
            figures.append(figure("variation of w*s less", name, paired_bootstrap(np.mean, less)))
    series: dict[str, Any] = {
        "abnormal": share.mean(0).round(6).tolist(),
        "logsnr": [round(level.logsnr, 4) for level in schedule.before[1:]],
        "t_c": t_c,
    }
    if missing is None:
        found, curve = natural_figures(torch.cat(z), torch.cat(changes, 1), torch.cat(marks))
        figures += found
        series["auroc"] = curve
        if other_marks:
            figures += second_figures(torch.cat(z), torch.cat(other_marks))
    else:
        series["no judge"] = missing
    return {"figures": figures, "series": series}


def natural_figures(z: Tensor, d: Tensor, marks: Tensor) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """AUROC of z at T_c and of each step's d for the judge's map, images resampled; and the defect rate.

    Args: z: [R, H, W]; d: [K, R, H, W]; marks: bool [R, H, W]."""
    defective = marks.flatten(1).any(1)
    figures = [figure("defect rate", "original", wilson(int(defective.sum()), len(marks)))]
    if not 0 < int(marks.sum()) < marks.numel():
        return figures, []
    figures.append(figure("pixel auroc for defects at t_c", "official", pooled_auroc(count_scores(z, marks))))
    device = z.device  # the changes of all steps at once would be too much for a GPU
    found = [pooled_auroc(count_scores(one.to(device), marks, 256), draws=500) for one in d]
    early = next((len(found) - 1 - k for k, one in enumerate(found) if one.low > 0.5), 0)
    figures.append(
        figure("steps from the first auroc above .5 to the last", "d", Estimate(early, early, early, len(z)))
    )
    return figures, [one.to_dict() for one in found]


def second_figures(z: Tensor, marks: Tensor) -> list[dict[str, Any]]:
    """The same of the second judge: defect rate, and AUROC of z at T_c. Args: as ``natural_figures``."""
    rate = wilson(int(marks.flatten(1).any(1).sum()), len(marks))
    figures = [figure("defect rate, second judge", "original", rate)]
    if 0 < int(marks.sum()) < marks.numel():
        area = pooled_auroc(count_scores(z, marks))
        figures.append(figure("pixel auroc for defects at t_c, second judge", "official", area))
    return figures


def phase_figures(share: np.ndarray) -> list[dict[str, Any]]:
    """The place of the peak of abnormal locations, as a share of the run, and whether there is a second one.

    Args: share: [n, K - 1], of each run at the steps 1 .. K - 1."""
    n, count = share.shape
    mean = share.mean(0)
    at = (np.arange(count) + 1.5) / (count + 1)

    def place(means: np.ndarray) -> np.ndarray:
        return at[np.argmax(means, -1)]

    figures = [figure("peak of abnormal locations, t/T", "fast", bootstrap_of_means(place, share))]
    figures.append(figure("height of the peak", "fast", bootstrap_of_means(lambda m: m.max(-1), share)))
    peak, second = int(mean.argmax()), 0
    for k in range(count):
        neighbours = mean[max(0, k - 1) : k + 2]
        low, high = sorted((k, peak))
        if k == peak or mean[k] < max(neighbours.max(), mean[peak] / 2) or high - low < 2:
            continue
        dip = low + 1 + int(mean[low + 1 : high].argmin())
        second += bootstrap_of_means(lambda m, k=k, dip=dip: m[..., k] - m[..., dip], share).low > 0
    figures.append(figure("further maxima of half the height", "fast", Estimate(second, second, second, n)))
    return figures


def variation(subject: Subject, whole: Prefix) -> np.ndarray:
    """Coefficient of variation over t of the median absolute change of ``SCALES``: float64 [R, 4]. Steps at which
    alpha is 0 are left out: w(t) has no value there."""
    levels = subject.schedule.before
    used = [k for k, level in enumerate(levels) if level.alpha > 0 and level.sigma > 0]
    signals: dict[str, list[Tensor]] = {name: [] for name in SCALES}
    for k in used:
        weighted, x0 = whole.scores[k].double(), whole.x0[k].double()
        alpha, sigma = levels[k].alpha, levels[k].sigma
        noise = -weighted * alpha / sigma
        signals["s"].append(-noise / sigma)
        signals["w*s"].append(weighted)
        signals["x0_hat"].append(x0)
        signals["s'*v"].append(noise - x0)
    columns = []
    for name in SCALES:
        sizes = []
        for i in range(1, len(used)):
            change = (signals[name][i] - signals[name][i - 1]).abs().flatten(1)
            level = levels[used[i]]
            flow = level.sigma / (level.alpha + level.sigma) if name == "s'*v" else 1.0
            sizes.append(change.median(1).values * flow)
        stacked = torch.stack(sizes)
        columns.append(stacked.std(0, correction=0) / stacked.mean(0).clamp(min=1e-12))
    return torch.stack(columns, 1).cpu().numpy()


def acceleration(cell: Cell, lab: Lab) -> dict[str, Any]:
    """A_k, the mean of d_k over R less the twin's, and a_k, its change: signs before and after its maximum k*.

    k* is the maximum of the mean of A on tuning seeds. "natural": over the judge's map, less the mean over images that
    it calls clean."""
    tuned = _curves(cell, lab, lab.tuning(cell["tuning"], 20_000))[0]
    inside, outside = _curves(cell, lab, lab.seeds(cell))
    peak = int(tuned.mean(0).argmax())
    n = len(inside)
    rise = inside[:, peak]
    fall = inside[:, -1] - inside[:, peak]
    figures = []
    for name, values, sign in (("rises up to k*", rise, 1), ("falls after k*", fall, -1)):
        right = int((sign * values > 0).sum())
        figures.append(figure(f"images whose A {name}", cell.part, wilson(right, n)))
        test = stats.binomtest(right, n, 0.5, alternative="greater").pvalue
        figures.append(figure(f"sign test, A {name}", cell.part, Estimate(float(test), float(test), float(test), n)))
    change = np.diff(outside, axis=1)
    quiet = np.array([estimate.low <= 0 <= estimate.high for estimate in map(_mean, change.T)])
    figures.append(figure("steps at which a outside includes 0", cell.part, wilson(int(quiet.sum()), len(quiet))))
    curve = [_mean(column).to_dict() for column in inside.T]
    beside = [_mean(column).to_dict() for column in outside.T]
    return {"figures": figures, "series": {"inside": curve, "outside": beside, "peak": peak}}


def _mean(values: np.ndarray) -> Estimate:
    return paired_bootstrap(np.mean, values, draws=500)


def _curves(cell: Cell, lab: Lab, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """A inside and outside of R: [n, K - 1] each."""
    subject = lab.subject(cell.family)
    make = _natural_curves if cell.part == "natural" else _planted_curves
    parts = [make(subject, cell.part, part) for part in lab.batches(seeds)]
    inside = torch.cat([part[0] for part in parts])
    if len(inside) < 8:
        raise MissingAbility(f"{cell.family}: {len(inside)} images with {cell.part} artifacts are too few")
    return inside.numpy(), torch.cat([part[1] for part in parts]).numpy()


def _inside_outside(d: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Means of d [K, R, H, W] over the masks bool [R, H, W] and over the rest: float64 [R, K] each."""
    d, masks = d.double(), masks.double()
    inside = (d * masks).flatten(2).sum(2) / masks.flatten(1).sum(1)
    rest = 1 - masks
    return inside.T.cpu(), ((d * rest).flatten(2).sum(2) / rest.flatten(1).sum(1).clamp(min=1)).T.cpu()


def _planted_curves(subject: Subject, kind: str, seeds: range) -> tuple[Tensor, Tensor]:
    schedule, grid = subject.schedule, tuple(subject.shape[1:])
    side = (min(8, max(1, max(grid) // 4)) + largest_side(grid)) // 2
    boxes = [draw_box(seed, side, grid) for seed in seeds]
    first, plants, x = 0, None, subject.start(seeds)
    if kind == "stroke":
        first = stroke_step(subject)
        x = _strokes(subject, seeds, boxes, first, painted=False)
        y = _strokes(subject, seeds, boxes, first, painted=True)
    else:
        start = max(2, watch_t_c(subject, 0) - 4)
        unit = scale_of(subject, x)["unit"] if getattr(subject, "latent", False) else 1.0
        height = 0.5 * float(torch.as_tensor(unit).mean())
        plants = [
            Plant.jump(box, start, colour_direction(seed, subject.shape[0]), height)
            for seed, box in zip(seeds, boxes, strict=True)
        ]
        y = x
    steps = len(schedule) - first
    twin = watch(subject, seeds, t_c=steps, x=x, first=first)
    run = watch(subject, seeds, t_c=steps, x=y, first=first, plants=plants)
    masks = torch.stack([box.mask(grid) for box in boxes]).to(x.device)
    mine, theirs = (_inside_outside(dynamics(one.x0), masks) for one in (run, twin))
    return mine[0] - theirs[0], mine[1] - theirs[1]


def _strokes(subject: Subject, seeds: range, boxes: list[Box], first: int, painted: bool) -> Tensor:
    images = held_out(subject, seeds)
    noise = start_noise([seed + (1 << 24) for seed in seeds], subject.shape).to(images)
    plants = [
        Plant.stroke(box, first, 0.6 * colour_direction(seed, subject.shape[0]).clamp(-1, 1))
        if painted
        else Plant.null(box, first)
        for seed, box in zip(seeds, boxes, strict=True)
    ]
    return stroke_start(images, plants, subject.schedule.before[first], noise)


def _natural_curves(subject: Subject, kind: str, seeds: range) -> tuple[Tensor, Tensor]:
    whole = watch(subject, seeds, t_c=len(subject.schedule))
    defective, marks = judged(subject, subject.decode(whole.x))
    d = dynamics(whole.x0)
    if not bool(defective.any()) or bool(defective.all()):
        return torch.zeros(0, len(d), dtype=torch.float64), torch.zeros(0, len(d), dtype=torch.float64)
    clean = d[:, ~defective].double().mean((1, 2, 3)).cpu()
    inside, outside = _inside_outside(d[:, defective], marks[defective])
    return inside - clean, outside - clean


def strokes(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Traps less strokes: mean square difference to the same twin over R in the final image.

    Both runs start from one held-out image noised to the same step. The trap holds what the stroke's run predicts at
    its first step, moved to the twin's prediction of the step that it is held from: the same contrast."""
    subject = lab.subject(cell.family)
    schedule, grid = subject.schedule, tuple(subject.shape[1:])
    first = stroke_step(subject)
    differences: list[Tensor] = []
    for seeds in lab.batches(lab.seeds(cell)):
        side = (min(8, max(1, max(grid) // 4)) + largest_side(grid)) // 2
        boxes = [draw_box(seed, side, grid) for seed in seeds]
        masks = torch.stack([box.mask(grid) for box in boxes])
        plain = _strokes(subject, seeds, boxes, first, painted=False)
        painted = _strokes(subject, seeds, boxes, first, painted=True)
        steps = len(schedule) - first
        twin = watch(subject, seeds, t_c=steps, x=plain, first=first)
        stroke = watch(subject, seeds, t_c=steps, x=painted, first=first)
        shift = stroke.x0[0] - twin.x0[0]
        plants = [
            Plant.trap(box, first + 1, min(3, steps - 2), content=twin.x0[2, i] + shift[i])
            for i, box in enumerate(boxes)
        ]
        # Read one step after planting began, as docs/measures.md has it; a stroke before its first step.
        prefix = watch(subject, seeds, t_c=steps - 1, x=plain, first=first, plants=plants)
        trap = finish(subject, prefix)
        scale = scale_of(subject, twin.x)
        masks = masks.to(plain.device)
        shown = rms_difference(stroke.x0[0], twin.x0[0], masks, **scale)
        held = rms_difference(prefix.x0[2], twin.x0[2], masks, **scale)
        matched = (held / shown.clamp(min=1e-9)).log().abs() <= np.log(1.25)
        left = [rms_difference(final, twin.x, masks, **scale).square() for final in (trap, stroke.x)]
        differences.append((left[0] - left[1])[matched].cpu())
    difference = torch.cat(differences).numpy()
    if len(difference) < 8:
        raise MissingAbility(f"{cell.family}: {len(difference)} pairs of equal contrast are too few")
    figures = [
        figure("traps less strokes, mean square", "original", paired_bootstrap(np.mean, difference)),
        figure("pairs matched", "original", wilson(len(difference), cell.count)),
    ]
    return {"figures": figures}
