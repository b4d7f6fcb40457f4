# SPDX-License-Identifier: MIT
"""The plots of the laboratory's page, in matplotlib. Each comes with words that say what it shows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure as Canvas

from ascedfast.lab.figures import Figure, Figures
from ascedfast.lab.suites import SUITES
from ascedfast.plots import svg_uri

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:grey")
MARKS = "os^Dv<>P"


class Plot(NamedTuple):
    """suite: where it belongs. uri: a ``data:`` address. alt: what it shows, with its figures, in words."""

    suite: str
    title: str
    uri: str
    alt: str


def plots(figures: Figures) -> list[Plot]:
    """Everything that the results allow, in the order of the suites."""
    made = [*_detection(figures), *_phases(figures), *_acceleration(figures), *_corrections(figures), *_t_c(figures)]
    made += [*_evaluations(figures), *_probe(figures), *_harm(figures), *_redraw(figures)]
    order = list(SUITES)
    return sorted(made, key=lambda plot: order.index(plot.suite))


def _families(figures: Figures, suite: str) -> list[str]:
    return sorted({one.family for one in figures.all if one.suite == suite})


def _rows(canvas_title: str, found: Sequence[Figure], labels: Sequence[str], zero: float | None, unit: str) -> Canvas:
    """One figure a line, with its interval."""
    canvas = Canvas(figsize=(6.4, 1.2 + 0.27 * len(found)), layout="constrained")
    axes = canvas.subplots()
    for i, one in enumerate(found):
        axes.plot([one.low, one.high], [i, i], color="tab:blue", linewidth=2)
        axes.plot([one.value], [i], "o", color="tab:blue", markersize=5)
    axes.set_yticks(range(len(found)), labels, fontsize="small")
    axes.invert_yaxis()
    if zero is not None:
        axes.axvline(zero, color="tab:red", linewidth=1, linestyle="--")
    axes.set_xlabel(unit)
    axes.set_title(canvas_title, fontsize="medium")
    axes.margins(y=0.05)
    return canvas


def _told(found: Sequence[Figure], labels: Sequence[str]) -> str:
    return "; ".join(
        f"{label} {one.value:.3g}, {one.low:.3g} to {one.high:.3g}" for one, label in zip(found, labels, strict=True)
    )


def _intervals(figures: Figures, suite: str, measure: str, title: str, zero: float | None, unit: str) -> Iterator[Plot]:
    """A plot a family of one measure over runs and parts, plants of mixed sizes where there are such."""
    for family in _families(figures, suite):
        found = [one for one in figures.all if (one.suite, one.family, one.measure) == (suite, family, measure)]
        mixed = [one for one in found if dict(one.settings).get("side", "mixed") == "mixed"]
        if not mixed:
            continue
        several = len({one.part for one in mixed}) > 1
        labels = [f"{one.part}, {one.run}" if several else one.run for one in mixed]
        heading = f"{family}: {title}"
        yield Plot(suite, heading, svg_uri(_rows(heading, mixed, labels, zero, unit)), _told(mixed, labels))


def _detection(figures: Figures) -> Iterator[Plot]:
    yield from _intervals(figures, "detection", "pixel auroc", "locations of plants told from the rest", 0.5, "AUROC")
    yield from _intervals(figures, "detection", "recall at 5%", "plants hit at 5 % of null runs flagged", None, "share")
    yield from _intervals(
        figures, "calibration", "flagged, nominal 5%", "null runs flagged at a nominal 5 %", 0.05, "share"
    )
    yield from _intervals(figures, "accuracy", "balanced accuracy", "accuracy on whole images", 0.65, "share right")


def _curves(title: str, x_label: str, y_label: str, t_c: float | None = None):
    canvas = Canvas(figsize=(6.4, 3.2), layout="constrained")
    axes = canvas.subplots()
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if t_c is not None:
        axes.axvline(t_c, color="tab:red", linewidth=1, linestyle="--", label="correction")
    return canvas, axes


def _phases(figures: Figures) -> Iterator[Plot]:
    for cell, result in figures.results.items():
        if cell.suite != "natural" or "series" not in result:
            continue
        series = result["series"]
        shares = series["abnormal"]
        steps = list(range(1, len(shares) + 1))
        title = f"{cell.family}: abnormal locations a step, null runs"
        canvas, axes = _curves(title, "executed step", "share of locations", series["t_c"] - 0.5)
        axes.bar(steps, shares, color="tab:blue")
        peak = steps[max(range(len(shares)), key=shares.__getitem__)]
        alt = f"{max(shares):.3f} at the most, at step {peak} of {len(shares) + 1}; correction after {series['t_c']}"
        yield Plot("natural", title, svg_uri(canvas), alt)
        if series.get("auroc"):
            title = f"{cell.family}: the dynamics of each step and the judge's final defects"
            canvas, axes = _curves(title, "executed step", "pixel AUROC", series["t_c"] - 0.5)
            _band(axes, steps, series["auroc"], "d")
            axes.axhline(0.5, color="tab:grey", linewidth=1)
            at = min(series["t_c"] - 2, len(series["auroc"]) - 1)
            alt = f"{float(series['auroc'][at]['value']):.3f} at the last step before the correction"
            yield Plot("natural", title, svg_uri(canvas), alt)


def _band(axes, steps: Sequence[float], curve: Sequence[dict], label: str, i: int = 0) -> None:
    values, low, high = ([float(one[name]) for one in curve] for name in ("value", "low", "high"))
    axes.plot(steps, values, f"-{MARKS[i % 8]}", color=COLOURS[i % 8], markersize=3, label=label)
    axes.fill_between(steps, low, high, color=COLOURS[i % 8], alpha=0.2, linewidth=0)


def _acceleration(figures: Figures) -> Iterator[Plot]:
    for cell, result in figures.results.items():
        if cell.suite != "acceleration" or "series" not in result:
            continue
        series = result["series"]
        title = f"{cell.family}: mean change above the twin's, {cell.part}"
        canvas, axes = _curves(title, "change of x0_hat, number", "A, units of x0_hat")
        steps = list(range(1, len(series["inside"]) + 1))
        _band(axes, steps, series["inside"], "inside")
        _band(axes, steps, series["outside"], "outside", 1)
        axes.axhline(0, color="tab:grey", linewidth=1)
        axes.legend(fontsize="small")
        alt = f"inside it is largest at number {series['peak'] + 1} of {len(steps)}, as chosen on tuning seeds"
        yield Plot("acceleration", title, svg_uri(canvas), alt)


def _corrections(figures: Figures) -> Iterator[Plot]:
    for measure, title in (
        ("fd_local less original's", "fd_local less the original's"),
        ("defect rate less original's", "defect rate less the original's"),
        ("recall less original's", "recall less the original's"),
    ):
        yield from _intervals(figures, "corrections", measure, title, 0.0, "difference, paired")


def _t_c(figures: Figures) -> Iterator[Plot]:
    for family in _families(figures, "t_c"):
        sets = figures.sets("t_c", family)
        for axis, unit in (("share", "share of the run"), ("logsnr", "logSNR of the corrected state")):
            title = f"{family}: defect rate by the time of the correction, {unit}"
            canvas, axes = _curves(title, unit, "defect rate")
            told = []
            for i, run in enumerate(("original", "official", "permuted")):
                found = [
                    (one[0][1]["series"][axis], figures.find("t_c", family, "defect rate", run, part))
                    for part, one in sets.items()
                ]
                found.sort(key=lambda pair: pair[0])
                _band(axes, [at for at, _ in found], [one.to_dict() for _, one in found], run, i)
                told.append(f"{run}: " + ", ".join(f"{one.value:.3f} at {at:.2f}" for at, one in found))
            axes.legend(fontsize="small")
            yield Plot("t_c", title, svg_uri(canvas), "; ".join(told))


def _evaluations(figures: Figures) -> Iterator[Plot]:
    families = _families(figures, "evaluations")
    if not families:
        return
    title = "Defect rate by the number of evaluations"
    canvas, axes = _curves(title, "evaluations of the model", "defect rate")
    axes.set_xscale("log")
    told = []
    for i, family in enumerate(families):
        found = [
            (int(one.part), one)
            for one in figures.all
            if (one.suite, one.family, one.measure, one.run) == ("evaluations", family, "defect rate", "original")
            and one.settings
        ]
        found.sort(key=lambda pair: pair[0])
        _band(axes, [at for at, _ in found], [one.to_dict() for _, one in found], family, i)
        told.append(f"{family}: " + ", ".join(f"{one.value:.3f} at {at}" for at, one in found))
    axes.legend(fontsize="small")
    yield Plot("evaluations", title, svg_uri(canvas), "; ".join(told))


def _probe(figures: Figures) -> Iterator[Plot]:
    for cell, result in figures.results.items():
        if cell.suite == "probe" and "series" in result:
            title = f"{cell.family}: a linear probe for the class, steps after the correction"
            canvas, axes = _curves(title, "steps after the correction", "accuracy")
            curves = result["series"]["accuracy"]
            for i, (path, curve) in enumerate(curves.items()):
                _band(axes, list(range(1, len(curve) + 1)), curve, path, i)
            axes.legend(fontsize="small")
            alt = "; ".join(f"{path} {float(curve[-1]['value']):.3f} at the last" for path, curve in curves.items())
            yield Plot("probe", title, svg_uri(canvas), alt)


def _harm(figures: Figures) -> Iterator[Plot]:
    yield from _intervals(figures, "harm", "defect rate less original's", "defects that forced masks add", 0.0, "share")


def _redraw(figures: Figures) -> Iterator[Plot]:
    """D11: what each way costs, and what it leaves."""
    for family in _families(figures, "redraw"):
        title = f"{family}: defect rate by what each way costs"
        canvas, axes = _curves(title, "evaluations an image", "defect rate")
        told = []
        for i, (name, spent) in enumerate(spent_by(figures, family).items()):
            one = figures.find("redraw", family, "defect rate", name)
            colour = COLOURS[i % 8]
            axes.plot([spent, spent], [one.low, one.high], color=colour, linewidth=1)
            axes.plot([spent], [one.value], MARKS[i % 8], color=colour, markersize=5, label=name)
            told.append(f"{name}: {one.value:.3f} at {spent:.1f}")
        axes.legend(fontsize="x-small")
        yield Plot("redraw", title, svg_uri(canvas), "; ".join(told))


def spent_by(figures: Figures, family: str) -> dict[str, float]:
    """Mean evaluations an image of each way of D11."""
    (sets,) = figures.sets("redraw", family).values()
    total = sum(cell.count for cell, _ in sets)
    return {
        name: sum(cell.count * result["values"][name]["evaluations"] for cell, result in sets) / total
        for name in sets[0][1]["values"]
    }
