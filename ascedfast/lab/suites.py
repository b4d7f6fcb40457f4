# SPDX-License-Identifier: MIT
"""Suites: which cells there are, what computes them, and what a computation may use.

A cell's result is a dict with some of: ``figures``, a list of {measure, run, value, low, high, n}; ``values`` {run:
{measure: number}} of one seed set; ``flags`` {run: "0110..."} of its images; ``series`` for plots; or ``absent``, a
reason why this family has no such measurement.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ascedfast.lab.bar_suites import BAR_SUITES
from ascedfast.lab.cells import StaleResultError, file_name, read_cells, run_cells
from ascedfast.lab.plan import MAIN, ROLES, WEAK, Cell
from ascedfast.lab.seeds import REPORTING_START, ReportingSeeds, TuningSeeds
from ascedfast.lab.sources import source_of
from ascedfast.lab.subject import MissingAbility, Subject, load

Size = Literal["small", "full"]
Result = dict[str, Any]


@dataclass
class Lab:
    """What a computation uses. folder: of the results; the log of looks and the features lie beside them.

    Seeds are handed out by ``seeds`` alone, which logs the look.

    Args: batch: rows at once; a part of the experiment, for a permuted mask and a trap's foreign content come from the
    next row of the batch. keep_features: of the corrections compared, about 4 MB a full cell.
    """

    folder: Path
    device: str = "cpu"
    source: str = "unknown"
    batch: int = 500
    keep_features: bool = True
    subjects: dict[str, Subject] = field(default_factory=dict)
    judges: dict[tuple[str, str], Any] = field(default_factory=dict)  # second ones, by full model and size
    cache: dict[tuple, Any] = field(default_factory=dict)

    def subject(self, name: str) -> Subject:
        if name not in self.subjects:
            self.subjects[name] = load(name, self.device)
        return self.subjects[name]

    def seeds(self, cell: Cell) -> range:
        """The cell's reporting seeds, after a line in the log of looks."""
        seeds = ReportingSeeds.of(cell.start, cell.count)
        label = f"{cell.family} {cell.part} {cell.start}"
        source = source_of(cell.family, self.source)
        return seeds.look(self.folder / "looks.jsonl", suite=cell.suite, cell=label, source=source)

    def tuning(self, count: int, start: int = 0) -> range:
        return TuningSeeds.of(start, count).seeds

    def batches(self, seeds: range) -> Iterator[range]:
        """Parts of at most ``batch`` rows, none of a single row: a permutation among one is none."""
        parts = max(1, -(-len(seeds) // self.batch))
        edges = [round(i * len(seeds) / parts) for i in range(parts + 1)]
        return (seeds[a:b] for a, b in itertools.pairwise(edges))


@dataclass(frozen=True)
class Suite:
    """compute: "module:function" of this package, (cell, lab) -> result. cells: (family, size) -> its cells. families:
    those of the full size."""

    name: str
    title: str
    compute: str
    cells: Callable[[str, str], list[Cell]]
    families: tuple[str, ...]

    def run(self, cell: Cell, lab: Lab) -> Result:
        module, _, function = self.compute.partition(":")
        try:
            return getattr(__import__(f"ascedfast.lab.{module}", fromlist=[function]), function)(cell, lab)
        except MissingAbility as error:
            return {"absent": str(error)}


def _cells(suite: str, parts: Sequence[str], small: int, full: int, sets: tuple[int, int] = (1, 1), **settings):
    """A maker of cells: for each part so many seed sets of so many seeds."""

    def make(family: str, size: str) -> list[Cell]:
        count = small if size == "small" else full
        chosen = {key: value[size == "full"] if isinstance(value, tuple) else value for key, value in settings.items()}
        return [
            Cell(suite, family, part, size, REPORTING_START + i * count, count, tuple(sorted(chosen.items())))
            for part in parts
            for i in range(sets[size == "full"])
        ]

    return make


def _plants(family: str, size: str) -> list[Cell]:
    """Every kind on every ground at every size apart, and, for claim C1, all sizes and places mixed. Of traps twice
    as many there: the claim is about those that persist."""
    small = size == "small"
    common = (("draws", 100 if small else 2000), ("nulls", 40 if small else 1000))
    strata = (
        [("any", "middle")] if small else [(g, s) for g in ("plain", "textured") for s in ("small", "middle", "large")]
    )
    cells = []
    for kind, count in (
        ("trap", 48 if small else 2000),
        ("jump", 24 if small else 1000),
        ("stroke", 24 if small else 1000),
    ):
        settings = (*common, ("ground", "any"), ("side", "mixed"))
        cells.append(Cell("detection", family, kind, size, REPORTING_START, count, settings))
    for kind in ("trap-before", "trap-after", "jump", "stroke"):
        for ground, side in strata:
            settings = (*common, ("ground", ground), ("side", side))
            cells.append(Cell("detection", family, kind, size, REPORTING_START, 24 if small else 334, settings))
    return cells


def _steps(family: str, size: str) -> list[Cell]:
    counts = (10, 15, 25) if size == "small" else (10, 15, 25, 50, 100, 200)
    count = 24 if size == "small" else 1000
    return [Cell("evaluations", family, str(k), size, REPORTING_START, count, (("steps", k),)) for k in counts]


T_C_SHARES = (0.20, 0.275, 0.35, 0.425, 0.50, 0.575, 0.65, 0.725, 0.80)
SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("detection", "Planted artifacts found", "found:detection", _plants, MAIN),
        Suite(
            "calibration",
            "Null runs flagged",
            "found:calibration",
            _cells("calibration", ("null",), 60, 2000, nulls=(40, 1000)),
            MAIN,
        ),
        Suite(
            "accuracy",
            "Accuracy on whole images",
            "found:accuracy",
            _cells("accuracy", ("planted",), 60, 8000),
            MAIN,
        ),
        Suite(
            "natural",
            "Null runs step by step: phases (Fig. 7), natural defects, scales",
            "steps:natural",
            _cells("natural", ("null",), 48, 2000),
            (*MAIN, *WEAK),
        ),
        Suite(
            "acceleration",
            "Acceleration inside and outside (Fig. 4)",
            "steps:acceleration",
            _cells("acceleration", ("jump", "stroke", "natural"), 48, 1000, tuning=(24, 500)),
            MAIN,
        ),
        Suite(
            "strokes",
            "Strokes and traps of equal contrast (Fig. 3)",
            "steps:strokes",
            _cells("strokes", ("pairs",), 32, 1000),
            MAIN,
        ),
        Suite(
            "corrections",
            "Corrections compared",
            "repairs:corrections",
            _cells("corrections", ("set",), 24, 1000, sets=(3, 10)),
            (*MAIN, *WEAK),
        ),
        Suite(
            "diversity",
            "Diversity inside the mask",
            "repairs:diversity",
            _cells("diversity", ("draws",), 12, 500, draws=(4, 16)),
            MAIN,
        ),
        Suite(
            "t_c",
            "Quality against T_c (Fig. 8)",
            "repairs:timing",
            _cells("t_c", tuple(f"{share:g}" for share in T_C_SHARES), 24, 500, sets=(2, 10)),
            (*MAIN, *WEAK),
        ),
        Suite(
            "harm",
            "Masks of other samples forced (Fig. 6)",
            "repairs:harm",
            _cells("harm", ("set",), 24, 1000, sets=(3, 10)),
            MAIN,
        ),
        Suite("evaluations", "Evaluations against defects", "repairs:evaluations", _steps, WEAK),
        Suite(
            "probe",
            "Linear probe (Fig. 9)",
            "probe:probe",
            _cells("probe", ("paths",), 60, 2000, train=(60, 4000)),
            ("F1c",),
        ),
        Suite("calls", "Calls of the model", "repairs:calls", _cells("calls", ("spy",), 8, 64), MAIN),
        *(Suite(*row) for row in BAR_SUITES),
    )
}


def cells_of(suites: Sequence[str], families: Sequence[str] | None, size: str) -> list[Cell]:
    """The cells of some suites. families: names in ``ROLES``, or folders of pipelines; None: each suite's own.

    Raises: ValueError for an unknown suite, family or size."""
    if size not in ("small", "full"):
        raise ValueError(f"size must be small or full, got {size!r}")
    for kind, names, known in (("suite", suites, SUITES), ("family", families or (), ROLES)):
        pipelines = [name for name in names if kind == "family" and (Path(name) / "model_index.json").is_file()]
        if unknown := [name for name in names if name not in known and name not in pipelines]:
            raise ValueError(f"unknown {kind} {unknown[0]!r}: choose of {', '.join(known)}")
    return [
        cell
        for name in suites
        for family in (SUITES[name].families if families is None else families)
        for cell in SUITES[name].cells(family, size)
    ]


def command_of(suites: Sequence[str], families: Sequence[str], size: str) -> str:
    """What to type to make these cells."""
    words = [f"--suite {name}" for name in suites] + [f"--family {name}" for name in families]
    return " ".join(["ascedfast lab run", *words, f"--size {size}"])


def run_suite(name: str, families: Sequence[str] | None, size: str, lab: Lab, console: Console | None = None):
    """Compute what is missing of a suite; {cell: result}. Raises: as ``cells.run_cells``."""
    results = {}
    for family in SUITES[name].families if families is None else families:
        results |= run_cells(
            cells_of([name], [family], size),
            functools.partial(SUITES[name].run, lab=lab),
            lab.folder / name,
            console,
            source=source_of(family, lab.source),
            command=command_of([name], [family], size),
            title=f"{name} {family}",
        )
        lab.cache.clear()
    return results


def read_results(
    folder: Path, families: Sequence[str] | None, size: str, source: str, suites: Sequence[str] = tuple(SUITES)
) -> dict[Cell, Result]:
    """What is there of the suites. Raises: StaleResultError, also for a result that is not what a suite writes."""
    results: dict[Cell, Result] = {}
    for name in suites:
        for family in SUITES[name].families if families is None else families:
            cells = cells_of([name], [family], size)
            found = read_cells(cells, folder / name, source=source_of(family, source))
            for cell, result in found.items():
                if not _whole(result):
                    path = folder / name / file_name(cell)
                    raise StaleResultError(f"{path} is damaged: move it away, and the cell is computed anew")
            results |= found
    return results


def _whole(result: Result) -> bool:
    """Whether a result has the form that this module's docstring says."""
    figures, values, flags = result.get("figures", []), result.get("values", {}), result.get("flags", {})
    if not isinstance(figures, list) or not isinstance(values, dict) or not isinstance(flags, dict):
        return False
    keys = {"measure", "run", "value", "low", "high", "n"}
    return (
        all(isinstance(one, dict) and keys <= one.keys() for one in figures)
        and all(isinstance(one, dict) for one in values.values())
        and all(isinstance(one, str) for one in flags.values())
    )
