# SPDX-License-Identifier: MIT
"""One step of rows that need not agree: each with its own schedule, step and settings."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ascedfast import detect, ops
from ascedfast.noise import seed_to_int64
from ascedfast.protected import check_keep, keep_of_all, unprotected
from ascedfast.rows import Row
from ascedfast.schedule import Plan


def check_batch(x: Tensor, batch: list[Row]) -> None:
    """Raises: ValueError, TypeError for an x that is no state of these rows."""
    if x.dim() not in (4, 5) or x.shape[0] != len(batch):
        raise ValueError(f"x must be [{len(batch)}, C, H, W] for these {len(batch)} rows, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x must be of a float dtype, got {x.dtype}")
    if x.numel() == 0 and batch:
        raise ValueError(f"x has an empty axis: {tuple(x.shape)}")
    check_keep([row.keep for row in batch], x.shape[2:])
    for row in batch:
        if row.x0 is not None and (row.x0.shape != x.shape[1:] or row.x0.device != x.device):
            raise ValueError(
                f"row {row.id} was {tuple(row.x0.shape)} on {row.x0.device}, got {tuple(x.shape[1:])} on {x.device}"
            )


def previous_of(batch: list[Row], x: Tensor, last: tuple[tuple[int, ...], Tensor | None]) -> Tensor | None:
    """The batch's last predictions; a row without one stands in with zeros and its dynamics are not banked.

    Args: last: ids and predictions of the batch that was observed last.
    """
    known = [row.x0 is not None for row in batch]
    if not any(known):
        return None
    if all(known) and last[0] == tuple(row.id for row in batch):
        return last[1]
    blank = torch.zeros(x.shape[1:], dtype=work_dtype(x), device=x.device)
    return torch.stack([blank if row.x0 is None else row.x0 for row in batch])


def coefficients_of(batch: list[Row], tables: dict, device: torch.device) -> tuple[Tensor, Tensor]:
    """a and b of each row's coming step, [R] on the device. tables: by schedule and device; filled where one lacks."""
    entries = []
    for row in batch:
        key = (id(row.schedule), device)
        if key not in tables:
            tables[key] = row.schedule.table(device)
        entries.append(tables[key][row.first + row.step])
    pairs = torch.stack(entries) if entries else torch.zeros(0, 2, device=device)
    return pairs[:, 0], pairs[:, 1]


def dynamics_of(
    batch: list[Row], x: Tensor, m: Tensor, a: Tensor, b: Tensor, previous: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """ops.step_dynamics: once where all rows share its settings, the usual case, else row by row."""
    shared = {(row.schedule.clip, row.config.channels, row.config.backend) for row in batch}
    if len(shared) <= 1:
        clip, reduce, backend = shared.pop() if shared else (None, "mean", "auto")
        return ops.step_dynamics(x, m, a, b, previous, clip=clip, reduce=reduce, backend=backend)
    parts = []
    for i, row in enumerate(batch):
        one = slice(i, i + 1)
        old = None if previous is None else previous[one]
        settings = {"clip": row.schedule.clip, "reduce": row.config.channels, "backend": row.config.backend}
        parts.append(ops.step_dynamics(x[one], m[one], a[one], b[one], old, **settings))
    d = None if previous is None else torch.cat([part[1] for part in parts])
    return torch.cat([part[0] for part in parts]), d


def signal_of(mode: str, batch: list[Row], x: Tensor, m: Tensor, x0: Tensor) -> Tensor | None:
    """What a mode banks of a step for the whole batch; None where it banks the dynamics themselves."""
    if mode == "official":
        return detect.grey_levels(x0)
    if mode != "paper":
        return None
    levels = [row.schedule.before[row.first + row.step] for row in batch]
    if any(row.schedule.clip is not None for row in batch):  # the score is the model's, before any clipping
        pairs = torch.tensor([(level.a, level.b) for level in levels], dtype=torch.float32, device=x.device)
        x0, _ = ops.step_dynamics(x, m, *pairs.unbind(1))
    alphas = [level.alpha for level in levels]
    return detect.weighted_score(x, x0, torch.tensor(alphas, dtype=x0.dtype, device=x0.device))


def judged(batch: list[Row], grid: Sequence[int]) -> list[Row]:
    """Those that are due. One whose window cannot be judged is left alone from here on, and told why."""
    for row in batch:
        if row.due and row.gap is not None:
            row.plan = Plan(0, 0, row.gap)
        elif row.due and row.config.mode == "calibrated":
            why = row.config.table.refusal(row.window_logsnr, tuple(grid))
            row.plan = row.plan if why is None else Plan(0, 0, why)
    return [row for row in batch if row.due]


def detect_rows(group: list[Row]) -> list[tuple[Row, detect.Detection]]:
    """Detect in rows that share a configuration, a plan and the number of their maps; changes none of them."""
    config = group[0].config
    if config.mode == "calibrated":
        return [(row, _outside_keep(row, _detect_calibrated(row))) for row in group]
    frames = torch.stack([torch.stack(row.bank) for row in group], 1)
    maps = frames[:, :, None].float() if config.mode == "fast" else detect.maps_of(frames, config).float()
    found = detect.detect(maps, config, torch.stack([row.finite for row in group]))
    return [(row, _outside_keep(row, detect.Detection(*(part[i] for part in found)))) for i, row in enumerate(group)]


def _outside_keep(row: Row, found: detect.Detection) -> detect.Detection:
    """Of one row, without the axis of rows."""
    keep = keep_of_all([row.keep], found.mask.shape, found.mask.device)
    if keep is None:
        return found
    outside = unprotected(detect.Detection(*(part[None] for part in found)), keep, row.config)
    return detect.Detection(*(part[0] for part in outside))


def _detect_calibrated(row: Row) -> detect.Detection:
    """By what sound runs at this row's levels score."""
    d = torch.stack(row.bank)[:, None].float()
    found = detect.detect_calibrated(d, row.window_logsnr, row.config, row.finite.view(1))
    return detect.Detection(*(part[0] for part in found))


def renoise_rows_(
    x: Tensor, batch: list[Row], masks: dict[int, Tensor], predictions: Sequence[Tensor | None] | None = None
) -> Tensor:
    """Correct x in place inside the masks, by row id; the mask of the whole batch, bool [R, 1, *grid].

    Args: predictions: x0_hat of each row, [C, *grid]; default: the rows' last ones. None: not masked.
    """
    predictions = [row.x0 for row in batch] if predictions is None else predictions
    empty = torch.zeros(x.shape[2:], dtype=torch.bool, device=x.device)
    mask = torch.stack([masks.get(row.id, empty) for row in batch])
    levels = [row.schedule.after[row.first + row.step - 1] for row in batch]

    def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=x.device)

    x0_noise = [row.x0_noise if row.id in masks else 0.0 for row in batch]
    backends = {row.config.backend for row in batch if row.id in masks}
    ops.renoise_(
        x,
        mask,
        torch.stack([x[i].to(work_dtype(x)) if x0 is None else x0 for i, x0 in enumerate(predictions)]),
        column([alpha for alpha, _ in levels], torch.float32),
        column([sigma for _, sigma in levels], torch.float32),
        seeds=column([seed_to_int64(row.seed) for row in batch], torch.int64),
        steps=column([row.step for row in batch], torch.int64),
        draws=column([row.draw for row in batch], torch.int64),
        x0_noise=column(x0_noise, torch.float32) if any(x0_noise) else None,
        backend=backends.pop() if len(backends) == 1 else "auto",
    )
    return mask[:, None]


def work_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def groups_of(rows: list[Row]) -> list[list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.config, row.plan, len(row.bank)), []).append(row)
    return list(groups.values())
