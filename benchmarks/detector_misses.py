# SPDX-License-Identifier: MIT
"""What would have to change for the bars of mode "calibrated" that were missed: one experiment a miss.

    python -m benchmarks.detector_misses --device cuda --out benchmarks/results/lab/misses.json

On tuning seeds that no table, threshold or rival was made of. The records are read in docs/lab.md, "The misses".
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

from ascedfast.calibration import windows
from ascedfast.calibration.table import NullTable
from ascedfast.lab.calibrated import calibrated, noise_of
from ascedfast.lab.contenders import ours, overlap
from ascedfast.lab.corrections import CONFIGS, finish, prefix_at, renoise, t_c_of, watch
from ascedfast.lab.detectors import changes
from ascedfast.lab.found import HIT_IOU, RATES, two_sample_auroc
from ascedfast.lab.instant import times_of
from ascedfast.lab.mend import grow
from ascedfast.lab.nulls import nulls_at, table_of
from ascedfast.lab.planted import plant_rows
from ascedfast.lab.planting import ABSORBED_LEVELS, PERSISTING_LEVELS
from ascedfast.lab.recall import shows
from ascedfast.lab.seeds import TuningSeeds
from ascedfast.lab.statistics import Estimate, wilson
from ascedfast.lab.steps import judged
from ascedfast.lab.subject import Subject, load
from ascedfast.lab.suites import Lab
from ascedfast.lab.tuned import sound

FROM = 200_000
"""First tuning seed of what is scored here."""
BATCH = 500
Record = dict[str, Any]
"""id of the bar, experiment, family, value, low, high, n."""


def record(id: str, experiment: str, family: str, one: Estimate) -> Record:
    return {"id": id, "experiment": experiment, "family": family} | one.to_dict()


def batches(count: int, start: int = FROM) -> Iterator[range]:
    for first in range(start, start + count, BATCH):
        yield range(first, min(first + BATCH, start + count))


def severities(subject: Subject, table: NullTable, count: int) -> np.ndarray:
    return torch.cat([ours(subject, watch(subject, part), table).severity.cpu() for part in batches(count)]).numpy()


def rates(family: str, steps: int, table: NullTable, device: str, count: int, words: str, id: str) -> Iterator[Record]:
    subject = load(family, device).with_steps(steps)
    t_c = t_c_of(subject.schedule, CONFIGS["official"])
    null = table.at([level.logsnr for level in subject.schedule.before[:t_c]])
    found = severities(subject, table, count)
    for rate in RATES:
        flagged = wilson(int((found > null.threshold(rate)).sum()), len(found))
        yield record(id, f"{words}: flagged over nominal {rate:.0%}, {steps} steps", family, scaled(flagged, rate))


def scaled(one: Estimate, by: float) -> Estimate:
    return Estimate(one.value / by, one.low / by, one.high / by, one.n)


def foreign_tables(device: str, count: int) -> Iterator[Record]:
    """D1a: one model's table on another's sound runs, and how few runs of its own do."""
    for made_of, family in (("F1", "F3"), ("F3", "F1")):
        table = table_of(load(made_of, device), TuningSeeds.of(0, max(100, count // 2)))
        table = NullTable(tuple(dataclasses.replace(null, grid=()) for null in table.nulls))
        yield from rates(family, 25, table, device, count, f"{made_of}'s table", "D1a")
    for family, steps in (("F2", 50), ("F4", 25), ("F5", 25)):
        for runs in (100, 300):
            table = table_of(load(family, device), TuningSeeds.of(0, runs), (steps,))
            yield from rates(family, steps, table, device, count, f"own table of {runs} runs", "D1a")


def calibrated_steps(device: str, count: int) -> Iterator[Record]:
    """D1b: 37 steps with an entry of their own."""
    for family in ("F5", "F3"):
        table = table_of(load(family, device), TuningSeeds.of(0, min(2000, count)), (37,))
        yield from rates(family, 37, table, device, count, "37 steps calibrated", "D1b")


def larger_tables(device: str, count: int) -> Iterator[Record]:
    """D1b, D1c: twice the runs, which say more of the rarest per cent."""
    steps = (8, 12, 50)
    table = table_of(load("F3", device), TuningSeeds.of(0, count), steps)
    for number, id in zip(steps, ("D1c", "D1b", "D1c"), strict=True):
        yield from rates("F3", number, table, device, count, f"table of {count} runs", id)


def smoothing(device: str, count: int) -> Iterator[Record]:
    """D3, D6: small traps by the smoothing."""
    whole = windows.BLUR
    for family, side in (("F1", 8), ("F3", 8)):
        for part in (32, 48, 64):
            windows.BLUR = 1 / part
            subject = load(family, device)
            table, hit, shown = table_of(subject, TuningSeeds.of(0, min(2000, count))), [], []
            for seeds in batches(count // 2):
                planted = plant_rows(subject, seeds, "trap or tint", side)
                seen = ours(subject, planted.prefix, table)
                hit.append((seen.flagged & (overlap(seen.mask, planted.boxes) >= HIT_IOU)).cpu().numpy())
                shown.append(shows(planted.shown.cpu().numpy(), planted.levels.cpu().numpy()))
            found = np.concatenate(hit)[np.concatenate(shown)]
            yield record(
                "D6", f"smoothing of 1/{part} of the side: 8 px hit", family, wilson(int(found.sum()), len(found))
            )
    windows.BLUR = whole


def net_displacement(device: str, count: int) -> Iterator[Record]:
    """D5: of flagged jumps, how far the prediction stays from where it was before, by how far it leapt."""
    for family in ("F1", "F3", "F4", "F5"):
        subject = load(family, device)
        table = table_of(subject, TuningSeeds.of(0, min(2000, count)))
        flagged, ratio, levels = [], [], []
        for seeds in batches(count // 2):
            planted = plant_rows(subject, seeds, "jump", "mixed")
            seen = ours(subject, planted.prefix, table)
            flagged.append(seen.flagged.cpu().numpy())
            ratio.append(stays(planted.prefix.x0.float(), seen.scores))
            levels.append(planted.levels.cpu().numpy())
        flags, ratios, outcome = (np.concatenate(one) for one in (flagged, ratio, levels))
        lasting, passing = outcome >= PERSISTING_LEVELS, outcome < ABSORBED_LEVELS
        both = (ratios[flags & lasting], ratios[flags & passing])
        yield record("D5", "net over leap tells persisting from absorbed, AUROC", family, two_sample_auroc(*both))
        least = float(np.quantile(both[0], 0.1))  # a tenth of the persisting is given up
        for name, group in (("persisting", lasting), ("absorbed", passing)):
            kept = flags & (ratios > least)
            yield record(
                "D5",
                f"flagged with a net displacement, {name}",
                family,
                wilson(int(kept[group].sum()), int(group.sum())),
            )


def stays(x0: Tensor, severity: Tensor) -> np.ndarray:
    """Of each row's worst location, float64 [R]: |x0 two steps on - x0 before| / |x0 one step on - x0 before| at the
    step of its largest there and back. x0: [K + 1, R, C, H, W]."""
    d = windows.smoothed(changes(x0))
    rows, place = torch.arange(d.shape[1], device=d.device), severity.flatten(1).argmax(1)
    k = torch.minimum(d[:-1], d[1:]).flatten(2)[:, rows, place].argmax(0)
    before, leapt, after = (x0[k + j, rows] for j in range(3))
    net, leap = (windows.smoothed((one - before).abs().mean(1)).flatten(1)[rows, place] for one in (after, leapt))
    return (net / leap.clamp(min=1e-6)).double().cpu().numpy()


def oracle(device: str, count: int) -> Iterator[Record]:
    """D8, D10: the judge's own map of the final defects, corrected at each T_c, beside the detector's."""
    with TemporaryDirectory() as folder:
        lab = Lab(Path(folder), device)
        for family in ("F1-P30", "F2-W4", "F3-W4", "F5"):
            subject = lab.subject(family)
            rule = t_c_of(subject.schedule, CONFIGS["official"])
            nulls = nulls_at(lab.subject(sound(family)), TuningSeeds.of(0, min(1000, count)), times_of(subject), 500)
            flags: dict[str, list[Tensor]] = {}
            for seeds in batches(count):
                for name, one in repaired(subject, seeds, nulls).items():
                    flags.setdefault(name, []).append(one.cpu())
            for name, parts in flags.items():
                joined = torch.cat(parts)
                words = name.replace(f"T_c {rule}", f"T_c {rule}, the rule's")
                yield record("D10", words, family, wilson(int(joined.sum()), len(joined)))


def repaired(subject: Subject, seeds: Sequence[int], nulls: dict[int, Any]) -> dict[str, Tensor]:
    """Defective, bool [R]: uncorrected, and with the judge's map re-noised at each T_c."""
    first = finish(subject, watch(subject, seeds))
    defective, defects = judged(subject, subject.decode(first))
    found, prefix = {"uncorrected": defective}, None
    for t_c in sorted(nulls):
        config = calibrated(subject, NullTable((nulls[t_c],)))
        prefix = watch(subject, seeds, t_c=t_c) if prefix is None else prefix_at(subject, prefix, t_c)
        mask = grow(defects, config.sizes(tuple(subject.shape[1:])).grow)
        x = renoise(subject, prefix, mask, noise_of(config, subject.schedule, prefix))
        final = finish(subject, prefix, x, mask=mask, original=first)
        found[f"the judge's own map corrected at T_c {t_c}"] = judged(subject, subject.decode(final))[0]
    return found


EXPERIMENTS: dict[str, Callable[[str, int], Iterator[Record]]] = {
    one.__name__: one for one in (foreign_tables, calibrated_steps, larger_tables, smoothing, net_displacement, oracle)
}


def main(
    out: Annotated[Path, typer.Option(help="JSON to write; records of other experiments in it stay.")],
    device: Annotated[str, typer.Option()] = "cpu",
    only: Annotated[list[str] | None, typer.Option(help="Names; default: all.")] = None,
    count: Annotated[int, typer.Option(help="Runs of each.")] = 4000,
) -> None:
    """Run the experiments and write their records."""
    for name in only or EXPERIMENTS:
        if name not in EXPERIMENTS:
            raise typer.BadParameter(f"{name}: choose of {', '.join(EXPERIMENTS)}")
        command = (
            f"python -m benchmarks.detector_misses --device {device} --only {name} --count {count} --out {out.name}"
        )
        with torch.no_grad():
            records = [one | {"command": command} for one in EXPERIMENTS[name](device, count)]
        kept = json.loads(out.read_text()) if out.exists() else []
        others = [one for one in kept if f"--only {name} " not in one["command"]]
        out.write_text(json.dumps(others + records, indent=1) + "\n")
        for one in records:
            print(
                *(one[key] for key in ("id", "experiment", "family", "value", "low", "high", "n")),
                sep=" | ",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
