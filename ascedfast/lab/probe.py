# SPDX-License-Identifier: MIT
"""A linear probe for the class, on the states around T_c of a corrected and of an uncorrected run (Fig. 9)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascedfast.lab import detectors
from ascedfast.lab.corrections import CONFIGS, PERTURBATION, renoise, watch
from ascedfast.lab.found import figure
from ascedfast.lab.sampling import sample
from ascedfast.lab.statistics import Estimate, paired_bootstrap
from ascedfast.lab.subject import Subject, ability
from ascedfast.lab.suites import Cell, Lab

AFTER = 5
RIDGE = 1e-2
PATHS = ("original", "official")


def probe(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Accuracy of a ridge classifier a step and a path, trained on tuning seeds of the same path.

    Raises: MissingAbility where the subject is not conditional."""
    subject = lab.subject(cell.family)
    trained, train_labels = _states(subject, lab, lab.tuning(cell["train"], 60_000))
    tested, labels = _states(subject, lab, lab.seeds(cell))
    right: dict[str, np.ndarray] = {}
    for path in PATHS:
        weights = [fit(states, train_labels) for states in trained[path]]
        columns = [predict(w, states) == labels for w, states in zip(weights, tested[path], strict=True)]
        right[path] = torch.stack(columns, 1).double().numpy()
    figures = []
    for path in PATHS:
        figures.append(figure("probe accuracy, mean of the steps after T_c", path, _mean(right[path].mean(1))))
        peak = int(right[path].mean(0).argmax()) + 1
        figures.append(figure("step of the highest accuracy", path, Estimate(peak, peak, peak, len(labels))))
    less = (right["official"] - right["original"]).mean(1)
    figures.append(figure("probe accuracy less original's", "official", _mean(less)))
    curves = {path: [_mean(column).to_dict() for column in right[path].T] for path in PATHS}
    return {"figures": figures, "series": {"accuracy": curves}}


def _mean(values: np.ndarray) -> Estimate:
    return paired_bootstrap(np.mean, values)


def _states(subject: Subject, lab: Lab, seeds: range) -> tuple[dict[str, list[Tensor]], Tensor]:
    """States after each of the ``AFTER`` steps from T_c on, float32 [n, C*H*W] on the CPU, and the labels."""
    states: dict[str, list[list[Tensor]]] = {path: [[] for _ in range(AFTER)] for path in PATHS}
    labels: list[Tensor] = []
    for part in lab.batches(seeds):
        denoiser, classes = ability(subject, "conditional")(part)
        labels.append(classes.cpu())
        prefix = watch(subject, part, denoiser=denoiser)
        mask = detectors.by_mode(subject.schedule, prefix, CONFIGS["official"]).grown
        for path in PATHS:
            x = prefix.x if path == "original" else renoise(subject, prefix, mask, PERTURBATION)
            kept: list[Tensor] = []
            sample(denoiser, subject.schedule, x, prefix.step, lambda step, x, x0, kept=kept: kept.append(x))
            # The state before a step is the one after the step before it; the first is the one that was corrected.
            for k in range(AFTER):
                states[path][k].append(kept[min(k + 1, len(kept) - 1)].flatten(1).float().cpu())
    return {path: [torch.cat(one) for one in steps] for path, steps in states.items()}, torch.cat(labels)


def fit(states: Tensor, labels: Tensor) -> Tensor:
    """Ridge regression on one-hot classes, with a constant: weights float64 [d + 1, classes].

    Args: states: [n, d]. labels: int64 [n]."""
    design = _design(states)
    target = torch.nn.functional.one_hot(labels, int(labels.max()) + 1).double()
    gram = design.T @ design / len(design)
    gram += RIDGE * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram, design.T @ target / len(design))


def predict(weights: Tensor, states: Tensor) -> Tensor:
    """Classes int64 [n]."""
    return (_design(states) @ weights).argmax(1)


def _design(states: Tensor) -> Tensor:
    return torch.cat([states.double(), torch.ones(len(states), 1, dtype=torch.float64)], 1)
