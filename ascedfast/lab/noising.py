# SPDX-License-Identifier: MIT
"""What re-noising does to the state: variance and kurtosis of what it writes, and the seam in the final image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ascedfast.lab import detectors
from ascedfast.lab.calibrated import calibrated, noise_of
from ascedfast.lab.corrections import finish, permuted, renoise, watch
from ascedfast.lab.regions import seam_energy
from ascedfast.lab.subject import MissingAbility
from ascedfast.lab.suites import Cell, Lab
from ascedfast.lab.tuned import own_table

MASK_RATE = 0.5
"""Share of sound runs with a mask: the most that the mode allows, since this asks of the masks' inside alone."""
OTHERS = 64
"""Samples whose masks each run is re-noised in, one after another with noise of its own: masks are small."""


class Moments:
    """Sums of powers of masked values, by location: float64 [5, C, H, W], the powers 0 to 4.

    A run counts at a location as often as it is masked there, w times. Of W = sum(w) values, W^2/Q are independent, Q
    = sum(w^2); their squared distances from the mean sum up to W - Q/W variances."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None
        self.squared: Tensor | None = None  # Q, float64 [C, H, W]

    def add(self, x: Tensor, mask: Tensor) -> None:
        """x: [R, C, H, W]; mask: bool [R, H, W]."""
        x, inside = x.double(), mask[:, None].double().expand(x.shape)
        powers = torch.stack([(inside * x**k).sum(0) for k in range(5)])
        self.sums = powers if self.sums is None else self.sums + powers

    def count(self, times: Tensor) -> None:
        """How often each run was masked, whole numbers [R, H, W]: once for all that was added of these runs."""
        squared = times.double().square().sum(0).expand(self.sums.shape[1:])
        self.squared = squared if self.squared is None else self.squared + squared

    def pooled(self) -> tuple[float, float, int]:
        """Variance and excess kurtosis of the values less their location's mean, all locations pooled; how many of
        the values are independent.

        Locations of fewer than two runs say nothing. Raises: ValueError where there is no other."""
        total, *powers = self.sums.flatten(1)
        enough = total**2 > self.squared.flatten()  # more than one run
        if not bool(enough.any()):
            raise ValueError("no location has two values")
        total, squared = total[enough], self.squared.flatten()[enough]
        first, second, third, fourth = (power[enough] for power in powers)
        mean = first / total
        squares = float((second - total * mean**2).sum())
        fourths = float((fourth - 4 * mean * third + 6 * mean**2 * second - 3 * total * mean**4).sum())
        variance = squares / float((total - squared / total).sum())
        # Both moments over all values: what the mean takes of them cancels.
        kurtosis = float(total.sum()) * fourths / squares**2 - 3
        return variance, kurtosis, int((total**2 / squared).sum())


def noising(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One seed set of null runs, re-noised inside the masks of other samples, against the same runs as they were."""
    subject = lab.subject(cell.family)
    config = calibrated(subject, own_table(lab, cell.family, cell["runs"]), MASK_RATE)
    before, after = Moments(), Moments()
    seams = torch.zeros(2, dtype=torch.float64)
    for seeds in lab.batches(lab.seeds(cell)):
        prefix = watch(subject, seeds)
        own = detectors.by_mode(subject.schedule, prefix, config).grown
        mask = permuted(own)
        noise = noise_of(config, subject.schedule, prefix)
        x = renoise(subject, prefix, mask, noise)
        times = torch.zeros_like(own, dtype=torch.int32)
        for k in range(1, min(OTHERS, len(own) - 1) + 1):
            other = own.roll(k, 0)
            before.add(prefix.x, other)
            after.add(renoise(subject, prefix, other, noise, k), other)
            times += other
        before.count(times)
        after.count(times)
        first = finish(subject, prefix)
        final = finish(subject, prefix, x, mask=mask, original=first)
        seams += seam_sums(subject.decode(first), subject.decode(final), mask).cpu()
    try:
        (variance, kurtosis, n), (new_variance, new_kurtosis, _) = before.pooled(), after.pooled()
    except ValueError as error:
        raise MissingAbility(f"{cell.family}: no masks to speak of in {cell.count} runs: {error}") from error
    measures = {
        "variance over the original's": new_variance / variance,
        "kurtosis less that of the original": new_kurtosis - kurtosis,
        "values": float(n),
    }
    if seams[0] > 0:
        measures["seam over the original's"] = float(seams[1] / seams[0])
    return {"values": {"corrected": measures}}


def seam_sums(original: Tensor, corrected: Tensor, mask: Tensor) -> Tensor:
    """Sums of the seam energy over images whose mask has a border, [2]: of the original and of the corrected images.

    Masks of latents: bool [R, H, W] of the state's grid, shown on the image's."""
    shown = F.interpolate(mask[:, None].float(), size=original.shape[-2:])[:, 0] > 0
    energies = torch.stack([seam_energy(images, shown) for images in (original, corrected)])
    return torch.where(energies.isfinite(), energies, 0.0).sum(1)
