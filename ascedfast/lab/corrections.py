# SPDX-License-Identifier: MIT
"""Every run that is compared. The part up to T_c is computed once and shared; each run goes on from it.

Two names that are one thing in the released code: with its default, no noise on x0_hat before it is noised again,
re-noising is what the paper's Table 1 calls state replacement. So "state replacement" is the released code's mask and
default, and "official" is the same mask with the paper's perturbation of .1 (gamma of arXiv 2503.16218, Eq. 6).
Noise is ``ascedfast.noise``'s: a row's bits depend on its seed alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ascedfast import ops, reference
from ascedfast.config import AscedConfig
from ascedfast.detect import weighted_score
from ascedfast.lab import detectors
from ascedfast.lab.detectors import Detector, Found
from ascedfast.lab.planting import Plant, Planter
from ascedfast.lab.sampling import Denoiser, OnStep, sample
from ascedfast.lab.subject import Subject
from ascedfast.noise import seed_to_int64
from ascedfast.schedule import Schedule, plan_run

PERTURBATION = 0.1
CONFIGS: Mapping[str, AscedConfig] = {
    "official": AscedConfig.official(reference_size=256, x0_noise=PERTURBATION),
    "paper": AscedConfig.paper(),
    "fast": AscedConfig.fast(),
}
"""The modes under test; "official" with its sizes scaled to the image."""
STAND_IN = "segmenter (stand-in)"
RUNS = (
    "original",
    "other seeds",
    "state replacement",
    "score clipping",
    "official",
    "paper",
    "fast",
    "permuted",
    "rolled",
    "whole image",
    "final variance",
    "trajectory variance",
)
"""Runs of every subject; "laplace" and the stand-in join where their detectors are given."""
OTHER_SEEDS = 1 << 31
"""Added to the seeds of "other seeds". Not more: torch's CPU generator looks at the lower 32 bits of a seed alone."""


class Prefix(NamedTuple):
    """A run up to T_c.

    seeds: one a row. first: index of the first executed step. t_c: executed steps. x: the state after them, before:
    the one before the last of them, [R, C, H, W]. x0: predictions [t_c, R, C, H, W]; scores: w(t)*s_t, the same shape
    (without any clip), infinite where alpha is 0. denoiser: goes on with the run, its plants included.
    """

    seeds: tuple[int, ...]
    first: int
    t_c: int
    x: Tensor
    before: Tensor
    x0: Tensor
    scores: Tensor
    denoiser: Denoiser

    @property
    def step(self) -> int:
        """Index in the schedule of the next step."""
        return self.first + self.t_c


class Repaired(NamedTuple):
    """images: [R, C, H, W], final, decoded, not clipped. x: the final states. mask: bool [R, H, W], re-noised."""

    images: Tensor
    x: Tensor
    mask: Tensor


def t_c_of(schedule: Schedule, config: AscedConfig, first: int = 0) -> int:
    """Raises: ValueError where the plan leaves the run alone."""
    plan = plan_run(schedule, config, first)
    if plan.reason is not None:
        raise ValueError(plan.reason)
    return plan.t_c


@torch.no_grad()
def watch(
    subject: Subject,
    seeds: Sequence[int],
    *,
    t_c: int | None = None,
    x: Tensor | None = None,
    first: int = 0,
    plants: Sequence[Plant] | None = None,
    denoiser: Denoiser | None = None,
) -> Prefix:
    """Run up to T_c.

    Args:
        t_c: executed steps; default: the plan of "official".
        x, first: state to start from, and the step it stands before; default: ``subject.start``.
        plants: one a row. denoiser: instead of the subject's.
    Raises: ValueError.
    """
    schedule = subject.schedule
    t_c = t_c_of(schedule, CONFIGS["official"], first) if t_c is None else t_c
    if not 1 <= t_c <= len(schedule) - first:
        raise ValueError(f"t_c must lie in 1..{len(schedule) - first}, got {t_c}")
    run = subject.denoise if denoiser is None else denoiser
    if plants is not None:
        run = Planter(run, schedule, plants)
    part = Schedule(schedule.before[: first + t_c], schedule.after[: first + t_c], schedule.clip, schedule.linear_beta)
    states: list[Tensor] = []
    frames: list[Tensor] = []
    scores: list[Tensor] = []

    def seen(x: Tensor, step: int) -> Tensor:
        m = run(x, step)
        level = schedule.before[step]
        raw = level.a * x + level.b * m
        scores.append(weighted_score(x, raw, torch.tensor(level.alpha, dtype=x.dtype, device=x.device)))
        return m

    def keep(step: int, x: Tensor, x0: Tensor) -> None:
        states.append(x)
        frames.append(x0)

    x = subject.start(seeds) if x is None else x
    end = sample(seen, part, x, first, keep)
    return Prefix(tuple(seeds), first, t_c, end, states[-1], torch.stack(frames), torch.stack(scores), run)


@torch.no_grad()
def finish(
    subject: Subject,
    prefix: Prefix,
    x: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    original: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Final states from the states x after T_c; default: the prefix's own.

    Args:
        mask, original: rows with an empty mask are not run again: they are ``original``'s. Not with plants.
    """
    x = prefix.x if x is None else x
    if prefix.step >= len(subject.schedule):
        return x
    if mask is None or original is None or isinstance(prefix.denoiser, Planter):
        return sample(prefix.denoiser, subject.schedule, x, prefix.step, on_step)
    rows = mask.flatten(1).any(1).nonzero()[:, 0]
    final = original.clone()
    if len(rows) == len(x):
        return sample(prefix.denoiser, subject.schedule, x, prefix.step, on_step)
    if len(rows):
        final[rows] = sample(prefix.denoiser, subject.schedule, x[rows], prefix.step, on_step)
    return final


def prefix_at(subject: Subject, prefix: Prefix, t_c: int) -> Prefix:
    """The same runs watched on to a later T_c. Raises: ValueError for an earlier one."""
    if t_c == prefix.t_c:
        return prefix
    more = watch(subject, prefix.seeds, t_c=t_c - prefix.t_c, x=prefix.x, first=prefix.step)
    x0, scores = (torch.cat(pair) for pair in ((prefix.x0, more.x0), (prefix.scores, more.scores)))
    return more._replace(first=prefix.first, t_c=t_c, x0=x0, scores=scores)


def renoise(subject: Subject, prefix: Prefix, mask: Tensor, x0_noise: float = 0.0, draw: int = 0) -> Tensor:
    """The states after T_c, re-noised inside the mask as the engine does it; a new tensor.

    Args: mask: bool [R, H, W]. draw: another one gives other noise for the same seed.
    """
    rows, device = len(prefix.seeds), prefix.x.device
    alpha, sigma = subject.schedule.after[prefix.step - 1]

    def column(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device=device)

    return ops.renoise_(
        prefix.x.clone(),
        mask,
        prefix.x0[-1],
        column(alpha),
        column(sigma),
        seeds=torch.tensor([seed_to_int64(seed) for seed in prefix.seeds], dtype=torch.int64, device=device),
        steps=column(prefix.t_c, torch.int64),
        draws=column(draw, torch.int64),
        x0_noise=column(x0_noise) if x0_noise else None,
    )


def clip_score(subject: Subject, prefix: Prefix, mask: Tensor, mad_scale: float = 3.0) -> Tensor:
    """The states after T_c with the last step's change of x0_hat clamped, inside the mask, to the row's threshold.

    Our reading of a baseline that the paper names and does not define: tau = median + mad_scale*1.4826*MAD of the
    absolute change over the row; x0' = x0_prev + clamp(x0 - x0_prev, -tau, tau); the last step is taken again with it.
    Needs two predictions. Returns a new tensor, with the prefix's bits outside the mask.
    """
    old, new = prefix.x0[-2], prefix.x0[-1]
    change = new - old
    size = change.abs().flatten(1)
    centre = reference.median(size)
    spread = reference.median((size - centre[:, None]).abs())
    tau = (centre + mad_scale * reference.MAD_TO_SIGMA * spread).view(-1, 1, 1, 1)
    x0 = old + change.clamp(-tau, tau)
    level, (alpha, sigma) = subject.schedule.before[prefix.step - 1], subject.schedule.after[prefix.step - 1]
    x = alpha * x0 + (sigma / level.sigma) * (prefix.before - level.alpha * x0)
    return torch.where(mask[:, None], x, prefix.x)


def permuted(masks: Tensor) -> Tensor:
    """Each mask on the next sample of the batch, the last one's on the first."""
    return masks.roll(1, 0)


def rolled(masks: Tensor) -> Tensor:
    """Each mask moved by half the image both ways, round the border."""
    return masks.roll((masks.shape[-2] // 2, masks.shape[-1] // 2), (-2, -1))


def compare(
    subject: Subject,
    prefix: Prefix,
    runs: Sequence[str] = RUNS,
    *,
    more: Mapping[str, Detector] | None = None,
    x0_noise: float = PERTURBATION,
) -> Iterator[tuple[str, Repaired]]:
    """One run after another from the shared prefix; nothing of a run is kept here once it was given.

    Args:
        runs: of ``RUNS``, or names in ``more``. more: detectors whose masks are re-noised like "official"'s.
        x0_noise: of every re-noised run but "state replacement" and "paper" (which has its own).
    Raises: ValueError for an unknown run.
    """
    more = dict(more or {})
    unknown = set(runs) - set(RUNS) - set(more)
    if unknown:
        raise ValueError(f"unknown runs {sorted(unknown)}: choose of {', '.join((*RUNS, *more))}")
    first = finish(subject, prefix)
    images = subject.decode(first)
    none = torch.zeros(len(first), *first.shape[2:], dtype=torch.bool, device=first.device)
    found: dict[str, Found] = {}

    def masks(mode: str) -> Tensor:
        if mode not in found:
            found[mode] = detectors.by_mode(subject.schedule, prefix, CONFIGS[mode])
        return found[mode].grown

    def repaired(x: Tensor, mask: Tensor) -> Repaired:
        final = finish(subject, prefix, x, mask=mask, original=first)
        return Repaired(subject.decode(final), final, mask)

    for name in runs:
        if name == "original":
            yield name, Repaired(images, first, none)
        elif name == "other seeds":
            seeds = [seed + OTHER_SEEDS for seed in prefix.seeds]
            final = sample(prefix.denoiser, subject.schedule, subject.start(seeds))
            yield name, Repaired(subject.decode(final), final, none)
        elif name == "score clipping":
            yield name, repaired(clip_score(subject, prefix, masks("official")), masks("official"))
        else:
            mask = _mask_of(name, subject, prefix, images, masks, more)
            scale = {"state replacement": 0.0, "paper": CONFIGS["paper"].x0_noise}.get(name, x0_noise)
            yield name, repaired(renoise(subject, prefix, mask, scale), mask)


def _mask_of(name: str, subject: Subject, prefix: Prefix, images: Tensor, masks, more: Mapping[str, Detector]):
    if name in more:
        return detectors.by_map(more[name](prefix, images), CONFIGS["fast"]).grown
    if name in CONFIGS:
        return masks(name)
    official = masks("official")
    if name == "state replacement":
        return official
    if name == "permuted":
        return permuted(official)
    if name == "rolled":
        return rolled(official)
    if name == "whole image":
        return torch.ones_like(official)
    score = detectors.final_variance if name == "final variance" else detectors.trajectory_variance
    return detectors.by_map(score(prefix, images), CONFIGS["fast"]).grown
