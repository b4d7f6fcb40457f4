# SPDX-License-Identifier: MIT
"""Writes ``docs/matrix.md`` from the cells that the tests run:

python tests/matrix_page.py
"""

from pathlib import Path

import scheduler_cells as cells
from layouts_page import NAMES
from matrix import CELLS, FEW_STEPS, made
from schedulers_page import table

from ascedfast.adapters.class_swap import stock_class
from ascedfast.adapters.support import REFUSED, SUPPORT

PAGE = Path(__file__).parent.parent / "docs" / "matrix.md"
TEXT = """# Schedulers by layouts

<!-- Written by `python tests/matrix_page.py` from tests/scheduler_cells.py and the cells of tests/matrix.py. -->

All {names} scheduler names of diffusers 0.42, on every layout of latents ([layouts.md](layouts.md)). **tested** is a
test of `tests/test_matrix_schedulers.py`: a plain loop of {steps} steps with the settings of the column "case"
(`tests/solvers.py`, `tests/multistep.py`, `tests/tiny.py`), {rows} rows of {channels} channels on a grid of
{grids}, and a denoiser that works location by location: the exact one of a Gaussian, but
for a spot where its prediction leaps to and fro. In every such cell

- ASCED off again, and on with nothing found, give the stock's bits at every call, and draw as much from the caller's
  generators;
- the spot is found in both rows, three predictions or more precede T_c, only the mask changes at T_c, and everything
  outside of it keeps the stock's bits to the end;
- what was injected is still there at the last step (*: in the next state, see below);
- a row alone has the bits, the mask and the severity of its row in the batch, where each row has a generator of its
  own.

**observed only**: the stock's bits, x0_hat is read, severity is "unavailable" (inverse schedulers). **refused**:
enabling raises a ValueError that says why (below). The column "pipelines" names the cases of
[layouts.md](layouts.md) that use the scheduler; "swapped into" those pipelines that were called with it in the place of
their own, with the case in brackets where it is another.

{matrix}

- **\\***: the solver draws each state anew from its prediction, with fresh noise. What was injected goes on through the
  predictions alone, and with this denoiser each of them keeps a small part of it.
- **five axes only**: {five_axes}; with fewer axes the stock itself returns a state of
  another shape.
- **RePaint** is given the first two columns; what is injected there is overwritten by its next step.
- **Dynamic thresholding** (the cases of [schedulers.md](schedulers.md) that end in "-threshold") flattens each sample,
  channels included, so it takes any layout. Run packed, as video and as sound: nothing found gives the stock's bits,
  and at T_c only the mask changes. After it the rest may move as well: the threshold depends on the whole sample.

## Swapped schedulers
`tests/test_matrix_swapped.py`, {swaps} pairs, tiny pipelines with random weights, {steps} steps: off again, and on with
nothing found, the stock's bits at every call of `step`; with a trap in the network's output it is found, only its mask
changes at T_c, and the change is there at the last step (or as *). sd15 was called with every scheduler that it can
call; sd3 with the flow schedulers and the flow settings of the other solvers; flux, which hands `sigmas` and `mu` to
the scheduler, with those that take both. The stock's StableDiffusionPipeline cannot call:

{not_in}

## Refused
{why}
"""


def used_by():
    """Names of the matrix of pipelines, by scheduler."""
    found = {}
    for name in (*CELLS, *FEW_STEPS):
        scheduler = stock_class(made(name)[0].scheduler).__name__
        found.setdefault(scheduler, []).append(f"{name} (left alone)" if name in FEW_STEPS else name)
    return found


def swapped_into():
    """Names of pipelines, by scheduler."""
    found = {}
    for pipeline, cases in cells.SWAPPED.items():
        for case in cases:
            scheduler = type(cells.make(case, slice(0, 1))).__name__
            usual = cells.CASES[scheduler] == case
            found.setdefault(scheduler, []).append(pipeline if usual else f"{pipeline} ({case})")
    return found


def cell(name, axes):
    kind = cells.kind_of(name, axes)
    if kind == "cannot":
        return "five axes only"
    return "tested *" if kind == "tested" and cells.CASES[name] in cells.FORGET else kind


def short(name):
    return name.removesuffix("Scheduler")


def page():
    used, swapped = used_by(), swapped_into()
    titles = [f"{NAMES[axes]} {axes}" for axes in cells.LAYOUTS]
    rows = [("scheduler", *titles, "case", "pipelines", "swapped into")]
    for name in (*SUPPORT, *REFUSED):
        found = [", ".join(names.get(name, ())) or "-" for names in (used, swapped)]
        rows.append((short(name), *(cell(name, axes) for axes in cells.LAYOUTS), cells.CASES.get(name, "-"), *found))
    classes = {case: short(name) for name, case in cells.CASES.items()}
    not_in = {}
    for case, why in cells.NOT_IN.items():
        not_in.setdefault(why, []).append(classes[case])
    return TEXT.format(
        names=len(SUPPORT) + len(REFUSED),
        steps=cells.STEPS,
        rows=cells.ROWS,
        channels=cells.CHANNELS,
        grids=", ".join(dict.fromkeys(" x ".join(map(str, grid)) for grid in cells.LAYOUTS.values())),
        matrix=table(*rows),
        five_axes=cells.FIVE_AXES,
        swaps=sum(len(cases) for cases in cells.SWAPPED.values()),
        not_in="\n".join(f"- {', '.join(names)}: {why}" for why, names in not_in.items()),
        why=table(("scheduler", "why"), *((short(name), why) for name, why in REFUSED.items())),
    )


if __name__ == "__main__":
    PAGE.write_text(page())
