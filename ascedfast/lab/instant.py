# SPDX-License-Identifier: MIT
"""The rule of T_c against the best of nine: chosen on tuning seeds, compared on reporting seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ascedfast.calibration.table import NullTable
from ascedfast.lab import detectors
from ascedfast.lab.calibrated import calibrated, noise_of
from ascedfast.lab.corrections import CONFIGS, Prefix, finish, prefix_at, renoise, t_c_of, watch
from ascedfast.lab.flags import bits
from ascedfast.lab.steps import judged
from ascedfast.lab.subject import MissingAbility, Subject, ability
from ascedfast.lab.suites import T_C_SHARES, Cell, Lab
from ascedfast.lab.tuned import kept, tables_at

TUNING_FROM = 60_000


def instant(cell: Cell, lab: Lab) -> dict[str, Any]:
    """Pairs: uncorrected, corrected at the rule's T_c, and at the grid's best."""
    subject = lab.subject(cell.family)
    ability(subject, "defects")
    rule = t_c_of(subject.schedule, CONFIGS["official"])
    shares = tried(cell, lab)
    best = int(min((t_c for t_c in shares if t_c != "original"), key=lambda t_c: shares[t_c]))
    if shares["original"] == 0:
        raise MissingAbility(f"{cell.family}: no defect in the tuning runs, nothing to gain at any T_c")
    tables = tables_at(lab, cell.family, cell["runs"], times_of(subject))
    flags: dict[str, list[Tensor]] = {name: [] for name in ("original", "rule", "best")}
    for seeds in lab.batches(lab.seeds(cell)):
        found = at_times(subject, seeds, {t_c: tables[t_c] for t_c in {rule, best}})
        for name, one in (("original", found["original"]), ("rule", found[rule]), ("best", found[best])):
            flags[name].append(one.cpu())
    joined = {name: bits(torch.cat(parts).numpy()) for name, parts in flags.items()}
    values: dict[str, dict[str, float]] = {name: {} for name in joined}
    return {"values": values, "flags": joined, "series": {"rule": rule, "best": best, "tuning": shares}}


def grid_of(subject: Subject) -> set[int]:
    """The grid's points in steps."""
    steps = len(subject.schedule)
    return {max(3, min(steps - 1, round(share * steps))) for share in T_C_SHARES}


def times_of(subject: Subject) -> tuple[int, ...]:
    """The grid's points and the rule's, earliest first."""
    return tuple(sorted(grid_of(subject) | {t_c_of(subject.schedule, CONFIGS["official"])}))


def tried(cell: Cell, lab: Lab) -> Mapping[str, float]:
    """Defect rate of tuning runs, uncorrected ("original") and corrected at each point of the grid."""

    def make() -> dict[str, float]:
        subject = lab.subject(cell.family)
        tables = tables_at(lab, cell.family, cell["runs"], times_of(subject))
        chosen = {t_c: tables[t_c] for t_c in grid_of(subject)}
        totals: dict[str, float] = {}
        seeds = lab.tuning(cell["tuning"], TUNING_FROM)
        for part in lab.batches(seeds):
            found = at_times(subject, part, chosen)
            for name, one in found.items():
                totals[str(name)] = totals.get(str(name), 0.0) + float(one.sum())
        return {name: total / len(seeds) for name, total in totals.items()}

    return kept(lab, cell.family, f"t_c {cell['tuning']} of {cell['runs']}", make)


def at_times(subject: Subject, seeds: Sequence[int], tables: Mapping[int, NullTable]) -> dict[Any, Tensor]:
    """Defective, bool [R], of the uncorrected runs ("original") and of runs corrected at each T_c, by one prefix.

    Of each T_c a mask and a state are kept: the predictions up to all of them would take gigabytes."""
    prefix: Prefix | None = None
    corrected: dict[int, tuple[Tensor, Tensor]] = {}
    for t_c in sorted(tables):
        prefix = watch(subject, seeds, t_c=t_c) if prefix is None else prefix_at(subject, prefix, t_c)
        config = calibrated(subject, tables[t_c])
        mask = detectors.by_mode(subject.schedule, prefix, config).grown
        corrected[t_c] = mask, renoise(subject, prefix, mask, noise_of(config, subject.schedule, prefix))
    first = finish(subject, prefix)
    found: dict[Any, Tensor] = {"original": judged(subject, subject.decode(first))[0]}
    for t_c, (mask, x) in corrected.items():
        final = finish(subject, prefix._replace(t_c=t_c), x, mask=mask, original=first)
        found[t_c] = judged(subject, subject.decode(final))[0]
    return found
