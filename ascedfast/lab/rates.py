# SPDX-License-Identifier: MIT
"""Sound runs flagged by mode "calibrated", with a table of their own and with the package's; area; p-values."""

from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ascedfast.calibration.judge import RATE
from ascedfast.calibration.table import NullTable
from ascedfast.lab import detectors
from ascedfast.lab.calibrated import calibrated
from ascedfast.lab.contenders import RATE as RIVALS_RATE
from ascedfast.lab.contenders import levels_of, ours, seen_by
from ascedfast.lab.corrections import CONFIGS, Prefix, finish, t_c_of, watch
from ascedfast.lab.found import RATES, figure
from ascedfast.lab.statistics import Estimate, paired_bootstrap, wilson
from ascedfast.lab.steps import judged
from ascedfast.lab.subject import MissingAbility, Subject, ability
from ascedfast.lab.suites import Cell, Lab
from ascedfast.lab.tuned import own_table, packaged_table, sound

DKW = 1.3581
"""sqrt(n) times the distance that the empirical distribution of n keeps from the true one in 95 % of samples."""


def rates(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Null runs of one number of steps. What is left out, and why, stands in ``series``."""
    subject = ability(lab.subject(cell.family), "with_steps")(cell["steps"])
    check_window(subject)
    tables = {"own table": own_table(lab, cell.family, cell["runs"], usable(lab, cell))}
    if cell["packaged"]:
        tables["packaged table"] = packaged_table(lab, cell.family, cell["runs"], numbers(cell["packaged"]))
    left_out = {}
    levels = [level.logsnr for level in subject.schedule.before[: t_c_of(subject.schedule, CONFIGS["official"])]]
    for name, table in list(tables.items()):
        if (why := table.refusal(levels)) is not None:
            left_out[name] = why
            del tables[name]
    if not tables:
        raise MissingAbility(f"{cell.family}, {cell['steps']} steps: {'; '.join(left_out.values())}")
    severity: dict[str, list[Tensor]] = {name: [] for name in tables}
    areas: list[Tensor] = []
    # Their thresholds are of runs of the family's own number of steps.
    beside = bool(cell["judged"]) and cell["steps"] == len(lab.subject(cell.family).schedule)
    thresholds = levels_of(lab, cell.family, cell["nulls"]) if beside else {}
    rivals: dict[str, int] = dict.fromkeys(thresholds, 0)
    for seeds in lab.batches(lab.seeds(cell)):
        prefix = watch(subject, seeds)
        for name, table in tables.items():
            severity[name].append(ours(subject, prefix, table, RATE).severity.cpu())
        for name in rivals:
            rivals[name] += int(seen_by(name, subject, prefix, thresholds).flagged.sum())
        if cell["judged"] and "own table" in tables and "defects" not in left_out:
            try:
                areas.append(clean_areas(subject, prefix, tables["own table"]).cpu())
            except MissingAbility as error:
                left_out["defects"] = str(error)
    found = {name: torch.cat(parts).numpy() for name, parts in severity.items()}
    figures = []
    for name, one in found.items():
        null = tables[name].at(levels)
        for rate in RATES:
            above = int((one > null.threshold(rate)).sum())
            figures.append(figure(f"flagged, nominal {rate:.0%}", name, wilson(above, len(one))))
        p_values = np.array([null.p_value(float(value)) for value in one])
        figures.append(figure("p-values from uniform, KS", name, distance_from_uniform(p_values)))
    for name, flagged in rivals.items():
        figures.append(figure(f"flagged, nominal {RIVALS_RATE:.0%}", name, wilson(flagged, cell.count)))
    if areas:
        figures += area_figures(torch.cat(areas).numpy())
    result = {"figures": figures, "series": {"left out": left_out}}
    if cell["judged"] and "own table" in found:
        result["rows"] = {"severity": [round(float(one), 4) for one in found["own table"]]}
    return result


def check_window(subject: Subject) -> None:
    """Raises: MissingAbility for a run that every mode leaves alone."""
    try:
        t_c_of(subject.schedule, CONFIGS["official"])
    except ValueError as error:
        raise MissingAbility(f"{subject.name}, {len(subject.schedule)} steps: {error}") from error


def numbers(text: str) -> tuple[int, ...]:
    """Of "12 25"."""
    return tuple(map(int, text.split()))


def usable(lab: Lab, cell: Cell) -> tuple[int, ...]:
    """Those numbers of steps of its own table at which T_c leaves a window."""
    found = []
    for steps in numbers(cell["table"]):
        try:
            check_window(ability(lab.subject(sound(cell.family)), "with_steps")(steps))
        except MissingAbility:
            continue
        found.append(steps)
    return tuple(found)


def clean_areas(subject: Subject, prefix: Prefix, table: NullTable) -> Tensor:
    """Share of the locations flagged, before growth: of images that the judge calls clean, by mode "calibrated" at its
    default rate and by "official"; float64 [n, 2]. Raises: MissingAbility without a judge."""
    ability(subject, "defects")
    clean = ~judged(subject, subject.decode(finish(subject, prefix)))[0]
    configs = (calibrated(subject, table), CONFIGS["official"])
    masks = [detectors.by_mode(subject.schedule, prefix, config).mask for config in configs]
    return torch.stack([mask.double().flatten(1).mean(1)[clean] for mask in masks], 1)


def area_figures(areas: np.ndarray) -> list[dict[str, Any]]:
    """areas: float64 [n, 2], see ``clean_areas``."""
    if len(areas) < 2:
        return []
    return [
        figure("clean area flagged", name, paired_bootstrap(np.mean, areas[:, k]))
        for k, name in enumerate(("calibrated", "official"))
    ]


def distance_from_uniform(p_values: np.ndarray) -> Estimate:
    """Kolmogorov's distance of p-values [n] from the uniform distribution; interval by Dvoretzky, Kiefer, Wolfowitz and
    Massart: the true distance lies within 1.3581/sqrt(n) of the sample's in 95 % of samples."""
    value = float(stats.kstest(p_values, "uniform").statistic)
    half = DKW / np.sqrt(len(p_values))
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), len(p_values))
