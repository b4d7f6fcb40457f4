# SPDX-License-Identifier: MIT
"""What is repaired: corrections compared, diversity, the time of the correction, harm, evaluations, calls."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import ascedfast
from ascedfast.lab import detectors
from ascedfast.lab.cells import file_name
from ascedfast.lab.corrections import (
    CONFIGS,
    PERTURBATION,
    RUNS,
    Repaired,
    compare,
    finish,
    permuted,
    renoise,
    watch,
)
from ascedfast.lab.distributions import fd_local, kid_local, precision_recall
from ascedfast.lab.flags import bits
from ascedfast.lab.found import figure, more_detectors
from ascedfast.lab.regions import change_outside, diversity_inside, mean_pairwise_distance, seam_energy
from ascedfast.lab.seeds import REPORTING_START
from ascedfast.lab.statistics import Estimate, paired_bootstrap, wilson
from ascedfast.lab.steps import judged, second_judge
from ascedfast.lab.subject import MissingAbility, Subject, ability, in_chunks
from ascedfast.lab.suites import Cell, Lab

NEAREST = 3


class _Collected:
    """Of one run over many batches: features rather than images, and one number an image."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.defective: list[Tensor] = []
        self.numbers: dict[str, list[Tensor]] = {"area": [], "seam": [], "seam before": [], "change outside": []}

    def add(self, subject: Subject, result: Repaired, original: Tensor) -> None:
        self.features.append(features(subject, result.images).cpu())
        self.numbers["area"].append(result.mask.double().flatten(1).mean(1).cpu())
        if result.images.shape[-2:] == result.mask.shape[-2:]:
            self.numbers["seam"].append(seam_energy(result.images, result.mask).cpu())
            self.numbers["seam before"].append(seam_energy(original, result.mask).cpu())
            self.numbers["change outside"].append(change_outside(result.images, original, result.mask).cpu())
        with contextlib.suppress(MissingAbility):
            self.defective.append(judged(subject, result.images)[0].cpu())

    def values(self, real: Tensor | None, n: int) -> dict[str, float]:
        """Figures of this seed set; means leave images without a value out."""
        found = {
            name: float(values[values.isfinite()].mean())
            for name, parts in self.numbers.items()
            if parts and bool((values := torch.cat(parts)).isfinite().any())
        }
        if self.defective:
            found["defect rate"] = float(torch.cat(self.defective).double().mean())
        if real is not None:
            found |= distances(real, torch.cat(self.features), n)
        return found

    def flags(self) -> str:
        return bits(one for part in self.defective for one in part)


def features(subject: Subject, images: Tensor) -> Tensor:
    """Of clipped images, float32 [n, d]."""
    return in_chunks(lambda part: ability(subject, "features")(part.clamp(-1, 1)).float(), images)


def distances(real: Tensor, drawn: Tensor, n: int) -> dict[str, float]:
    """fd_local, kid_local, precision, recall; and "recall of 500" of the first 500 of each where there are more."""
    precision, recall = precision_recall(real, drawn, NEAREST)
    found = {"fd_local": fd_local(real, drawn), "kid_local": kid_local(real, drawn)}
    found |= {"precision": precision, "recall": recall}
    if n > 500:
        found["recall of 500"] = precision_recall(real[:500], drawn[:500], NEAREST)[1]
    return found


def _real(subject: Subject, cell: Cell, lab: Lab, which: Sequence[int] = (0, 1)) -> list[Tensor]:
    """Sets of real features of the cell's size: the seed set's own to compare with, the next for real against real."""
    images = getattr(subject, "reference", None) or ability(subject, "real")
    own = (cell.start - REPORTING_START) // cell.count
    return [features(subject, images(cell.count, (own + k) * cell.count)).to(lab.device) for k in which]


def _values(kept: Mapping[str, _Collected], real: Tensor, other: Tensor) -> dict[str, dict[str, float]]:
    """Figures of each run, and of real against real, of the same n."""
    for one in kept.values():
        one.features = [part.to(real.device) for part in one.features]
    values = {name: one.values(real, len(real)) for name, one in kept.items()}
    return values | {"real against real": distances(real, other, len(real))}


def corrections(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One seed set through every run. Features may be kept beside the results, in float16; images are not."""
    subject = lab.subject(cell.family)
    more = more_detectors(subject, lab, cell)
    runs = (*RUNS, *more)
    kept: dict[str, _Collected] = {name: _Collected() for name in runs}
    for seeds in lab.batches(lab.seeds(cell)):
        prefix = watch(subject, seeds)
        original = None
        for name, result in compare(subject, prefix, runs, more=more):
            original = result.images if original is None else original
            kept[name].add(subject, result, original)
    values = _values(kept, *_real(subject, cell, lab))
    if lab.keep_features:
        folder = lab.folder / "features"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: torch.cat(one.features).half().cpu().contiguous() for name, one in kept.items()}
        save_file(tensors, folder / file_name(cell).replace(".json", ".safetensors"))
    flags = {name: one.flags() for name, one in kept.items() if one.defective}
    return {"values": values, "flags": flags}


def diversity(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Spread inside the mask over noise draws of one state; "official" and the state replacement, the same masks."""
    subject = lab.subject(cell.family)
    draws = cell["draws"]
    grey: dict[str, list[Tensor]] = {"official": [], "state replacement": []}
    apart: dict[str, list[float]] = {name: [] for name in grey}
    for seeds in lab.batches(lab.seeds(cell)):
        prefix = watch(subject, seeds)
        original = finish(subject, prefix)
        found = detectors.by_mode(subject.schedule, prefix, CONFIGS["official"]).grown
        used = found.flatten(1).any(1)
        if not bool(used.any()):
            continue
        for name, scale in (("official", PERTURBATION), ("state replacement", 0.0)):
            images = [
                subject.decode(
                    finish(subject, prefix, renoise(subject, prefix, found, scale, k), mask=found, original=original)
                )[used]
                for k in range(draws)
            ]
            stacked = torch.stack(images)
            size = stacked.shape[-2:]
            masks = torch.nn.functional.interpolate(found[used][:, None].float(), size=size)[:, 0] > 0
            grey[name].append(diversity_inside(stacked, masks).cpu())
            shown = torch.where(masks[None, :, None], stacked, -1.0)
            every = features(subject, shown.flatten(0, 1)).unflatten(0, stacked.shape[:2])
            apart[name] += [mean_pairwise_distance(every[:, i]) for i in range(every.shape[1])]
    if not apart["official"]:
        raise MissingAbility(f"{cell.family}: no mask in {cell.count} states")
    figures = []
    for measure, source in (("diversity inside", {k: torch.cat(v).numpy() for k, v in grey.items()}),
                            ("feature distance inside", {k: np.array(v) for k, v in apart.items()})):  # fmt: skip
        for name, numbers in source.items():
            figures.append(figure(measure, name, paired_bootstrap(np.mean, numbers)))
        less = source["official"] - source["state replacement"]
        figures.append(figure(f"{measure} less replacement's", "official", paired_bootstrap(np.mean, less)))
    return {"figures": figures}


def timing(cell: Cell, lab: Lab) -> dict[str, Any]:
    """One seed set corrected at one share of the run: defects, precision, recall, and what the run is without."""
    subject = lab.subject(cell.family)
    steps = len(subject.schedule)
    t_c = max(3, min(steps - 1, round(float(cell.part) * steps)))
    kept = {name: _Collected() for name in ("original", "official", "permuted")}
    for seeds in lab.batches(lab.seeds(cell)):
        prefix = watch(subject, seeds, t_c=t_c)
        original = None
        for name, result in compare(subject, prefix, tuple(kept)):
            if original is None:
                original = result.images
                judged(subject, original[:2])  # without a judge there is nothing to measure
            kept[name].add(subject, result, original)
    level = subject.schedule.after[t_c - 1]
    logsnr = 2 * float(np.log(max(level[0], 1e-12) / max(level[1], 1e-12)))
    return {
        "values": _values(kept, *_real(subject, cell, lab)),
        "flags": {name: one.flags() for name, one in kept.items()},
        "series": {"t_c": t_c, "share": t_c / steps, "logsnr": logsnr},
    }


def harm(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Masks of other samples forced on null images. Defect rate and distances are those of all images: among images
    chosen for having no defect, whatever is drawn anew has more. What becomes of those stands beside it."""
    subject = lab.subject(cell.family)
    ability(subject, "defects")
    kept = {name: _Collected() for name in ("original", "forced")}
    clean: list[Tensor] = []
    for seeds in lab.batches(lab.seeds(cell)):
        prefix = watch(subject, seeds)
        first = finish(subject, prefix)
        original = subject.decode(first)
        clean.append(~judged(subject, original)[0].cpu())
        mask = permuted(detectors.by_mode(subject.schedule, prefix, CONFIGS["official"]).grown)
        final = finish(subject, prefix, renoise(subject, prefix, mask, PERTURBATION), mask=mask, original=first)
        for name, images, states in (("original", original, first), ("forced", subject.decode(final), final)):
            kept[name].add(subject, Repaired(images, states, mask), original)
    values = _values(kept, *_real(subject, cell, lab))
    chosen = torch.cat(clean)
    if bool(chosen.any()):
        values["forced"]["newly defective, of the clean"] = float(_share(kept["forced"].defective, chosen))
        if kept["forced"].numbers["change outside"]:
            change = torch.cat(kept["forced"].numbers["change outside"])[chosen]
            values["forced"]["change outside, of the clean"] = float(change[change.isfinite()].mean())
    return {"values": values, "flags": {name: one.flags() for name, one in kept.items()}}


def _share(parts: Sequence[Tensor], chosen: Tensor) -> Tensor:
    return torch.cat(list(parts))[chosen].double().mean()


def evaluations(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Defects of one seed set with another number of steps, and how many images are flagged."""
    subject = ability(lab.subject(cell.family), "with_steps")(cell["steps"])
    ability(subject, "defects")
    defective: list[Tensor] = []
    second, others = second_judge(lab, cell.family, cell.size), []
    flagged: dict[str, list[Tensor]] = {mode: [] for mode in CONFIGS}
    for seeds in lab.batches(lab.seeds(cell)):
        prefix = watch(subject, seeds)
        images = subject.decode(finish(subject, prefix))
        defective.append(judged(subject, images)[0].cpu())
        if second is not None:
            others.append(second(images)[0].cpu())
        for mode, config in CONFIGS.items():
            flagged[mode].append((detectors.by_mode(subject.schedule, prefix, config).severity > 0).cpu())
    one = torch.cat(defective)
    figures = [figure("defect rate", "original", wilson(int(one.sum()), len(one)))]
    if others:
        rate = wilson(int(torch.cat(others).sum()), len(one))
        figures.append(figure("defect rate, second judge", "original", rate))
    for mode, parts in flagged.items():
        figures.append(figure("flagged, own threshold", mode, wilson(int(torch.cat(parts).sum()), len(one))))
    return {"figures": figures, "flags": {"original": bits(one)}}


def calls(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Calls of the model in a plain run and in one that the engine watches and corrects, of the same seeds."""
    subject = lab.subject(cell.family)
    seeds = lab.seeds(cell)
    counts = {"original": 0} | dict.fromkeys(CONFIGS, 0)

    def loop(name: str) -> None:
        run = ascedfast.begin(subject.schedule, CONFIGS[name], seeds=list(seeds)) if name in CONFIGS else None
        x = subject.start(seeds)
        for step, (now, (alpha, sigma)) in enumerate(zip(subject.schedule.before, subject.schedule.after, strict=True)):
            m = subject.denoise(x, step)
            counts[name] += 1
            x0 = subject.schedule.x0_hat(step, x, m)
            if run is not None:
                run.observe(x, m)
            x = alpha * x0 + (sigma / now.sigma) * (x - now.alpha * x0)
            if run is not None:
                run.correct_(x)

    with torch.no_grad():
        for name in counts:
            loop(name)
    figures = [
        figure("calls more than the plain run", mode, Estimate(more, more, more, len(seeds)))
        for mode in CONFIGS
        for more in [counts[mode] - counts["original"]]
    ]
    return {"figures": figures, "series": {"calls": counts}}
