# SPDX-License-Identifier: MIT
"""Draw D11: what each way of spending evaluations leaves of the defects.

tar -C DIR -xJf benchmarks/results/lab/detector-cells.tar.xz && python -m benchmarks.defects_chart DIR
"""

import re
from pathlib import Path
from typing import Annotated

import matplotlib as mpl
import typer

from ascedfast.lab.bar_page import SUITES
from ascedfast.lab.bars import Part
from ascedfast.lab.evidence import weighed
from ascedfast.lab.sources import source_hash
from ascedfast.lab.suites import read_results

PICTURE = Path(__file__).parent.parent / "docs" / "defects.png"
LABEL = re.compile(r"(?P<family>[^,]+), (?P<way>.+), (?P<evaluations>[\d.]+) evaluations")


def main(
    results: Annotated[Path, typer.Argument(help="Folder of the detector's cells.")],
    out: Annotated[Path, typer.Option(help="Picture to write.")] = PICTURE,
) -> None:
    """A panel a family with defects: defect rate with its 95 % interval against mean evaluations an image."""
    parts = [
        part for part in weighed(read_results(results, None, "full", source_hash(), SUITES))[0] if part.bar == "D11"
    ]
    families = [name for name in dict.fromkeys(part.family for part in parts) if worst(parts, name) > 0]
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(families), figsize=(4 * len(families), 4), layout="constrained")
    for axis, family in zip(axes, families, strict=True):
        for part in (one for one in parts if one.family == family):
            found = LABEL.fullmatch(part.label)
            value, low, high = part.estimate[:3]
            at = float(found["evaluations"])
            axis.errorbar(at, value, [[value - low], [high - value]], fmt="o", capsize=3, label=found["way"])
        axis.set_title(family)
        axis.set_xlabel("evaluations an image")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("defect rate")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(out, dpi=110)
    typer.echo(f"wrote {out}")


def worst(parts: list[Part], family: str) -> float:
    return max(part.estimate.value for part in parts if part.family == family)


if __name__ == "__main__":
    typer.run(main)
