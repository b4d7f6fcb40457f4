# SPDX-License-Identifier: MIT
"""S6: rows for servers on a GPU, the packaged DiT in closed loops (``s6_loops``), ASCED on over off.

    python -m benchmarks.s6_rows --save            # on a GPU: 3 minutes; S6-nccl too where there are two
    python -m benchmarks.s6_rows --quick           # tiny counts, also on a CPU; nothing to save

Loops take turns at each step, with another first each time, so that they meet the same clocks; each turn waits for the
device, so that nothing the host does is hidden. A pair is ``TURNS`` steps of on and as many of off. Values are upper
95 % limits of the median ratio (``timing.upper_limit``): of the time a row (steps, and requests that leave and join
between them), and of p50 and p99 of a step. S6-nccl counts bits that differ between two ranks.
"""

import gc
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ascedfast.demo import load_model
from benchmarks import s6_nccl
from benchmarks.results import FOLDER, SERVING, gpu_name
from benchmarks.s6_loops import Loop, Network, Observing, Stock, Vectorised, Watched
from benchmarks.source import ROOT, source_sha256
from benchmarks.table import write_between_marks
from benchmarks.timing import upper_limit

ROWS = (1, 8, 64)
STEPS = 25
PAIRS = 20
TURNS = {1: 200, 8: 150, 64: 50}
BAR = 1.01
RIVALS = {"stock": Stock, "vectorised": Vectorised}
METRICS = ("time a row", "p50 of a step", "p99 of a step")
PAGE = ROOT / "docs" / "servers.md"
Record = dict[str, Any]


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least this share of them does not exceed."""
    return sorted(samples)[max(0, -(-len(samples) * int(share * 100) // 100) - 1)]


def numbers(loop: Loop, turns: int) -> tuple[float, float, float]:
    """METRICS of its last turns, in microseconds."""
    steps, between = loop.step_us[-turns:], loop.between_us[-turns:]
    return (sum(steps) + sum(between)) / (turns * loop.rows), quantile(steps, 0.5), quantile(steps, 0.99)


def check_bits(network: Network, scheduler: Any, rows: int, steps: int, device: torch.device) -> None:
    """Observed rows have the states of the stock loop, bit for bit. Raises: RuntimeError where they do not."""
    one, other = (kind(network, scheduler, rows, steps, device) for kind in (Observing, Stock))
    for _ in range(steps + 2):
        one.turn()
        other.turn()
        if not torch.equal(one.x, other.x):
            raise RuntimeError("observed rows differ from the stock's: nothing was measured")


def measure(
    rows: int, device: torch.device, steps: int, pairs: int, turns: int, blocks: int | None = None
) -> tuple[list[Record], str]:
    """The records of one number of rows, without what all have in common, and a line about the run. blocks: of the
    network, the first ones."""
    model, scheduler = load_model("dit", device)
    model.transformer_blocks = model.transformer_blocks[:blocks]
    model.requires_grad_(False)
    network = Network(model, rows, device)
    check_bits(network, scheduler, rows, steps, device)
    loops = {name: kind(network, scheduler, rows, steps, device) for name, kind in {"on": Watched, **RIVALS}.items()}
    order, found = list(loops.values()), {name: [] for name in loops}
    for _ in range(steps):  # the requests that began under way are gone
        for loop in order:
            loop.turn()
    gc.disable()
    try:
        for _ in range(pairs):
            gc.collect(0)
            for _ in range(turns):
                order.append(order.pop(0))
                for loop in order:
                    loop.turn()
            for name, loop in loops.items():
                found[name].append(numbers(loop, turns))
    finally:
        gc.enable()
    records = []
    for rival in RIVALS:
        for i, metric in enumerate(METRICS):
            ours, theirs = ([one[i] for one in found[name]] for name in ("on", rival))
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            records.append(
                {
                    "id": f"S6/{rows}/{rival}/{metric}",
                    "value": upper_limit(ratios),
                    "n": pairs,
                    "unit": "on over off, upper 95 % limit of the median",
                    "median": statistics.median(ratios),
                    "on_us": statistics.median(ours),
                    "off_us": statistics.median(theirs),
                    "rows_per_s": 1e6 / statistics.median(ours) if i == 0 else None,
                }
            )
    statuses = [report.status for report in loops["on"].reports]
    told = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    return records, f"{rows} rows: {pairs} pairs of {turns} steps, {loops['on'].asked} requests; the last ones: {told}"


def finished(found: Record, command: str, device: torch.device, bar: float | None) -> Record:
    """A record as it is saved."""
    value = found["value"]
    rounded = {key: float(f"{one:.6g}") if isinstance(one, float) else one for key, one in found.items()}
    met = None if bar is None else value <= bar
    tail = {"device": gpu_name(device), "torch": torch.__version__, "command": command}
    return {**rounded, "bar": bar, "met": met, **tail, "source_sha256": source_sha256()}


def save(records: Sequence[Record], path: Path) -> None:
    """Write records into the file of all serving figures; those of other ids stay as they are."""
    kept = {one["id"]: one for one in (json.loads(path.read_text()) if path.exists() else [])}
    kept |= {one["id"]: one for one in records}
    path.write_text("[\n" + ",\n".join(json.dumps(kept[id]) for id in sorted(kept)) + "\n]\n")


def markdown(records: Sequence[Record]) -> str:
    """S6 as a table, a figure a row."""
    lines = ["| | value | bar | | on, off in us | rows a second |", "|---|---|---|---|---|---|"]
    for one in records:
        if one["id"].startswith("S6"):
            times = f"{one['on_us']:.0f}, {one['off_us']:.0f}" if "on_us" in one else one["unit"]
            rate = f"{one['rows_per_s']:.0f}" if one.get("rows_per_s") else ""
            met = "met" if one["met"] else "missed"
            lines.append(f"| {one['id']} | {one['value']:.4g} | {one['bar']:g} | {met} | {times} | {rate} |")
    return "\n".join(lines)


def write_page(page: Path = PAGE, path: Path = FOLDER / SERVING) -> None:
    """Put the table of the file into the page."""
    write_between_marks(page, "figures", markdown(json.loads(path.read_text())))


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Tiny counts, to see that it works; also on a CPU.")] = False,
    to_save: Annotated[bool, typer.Option("--save", help="Write results/serving.json.")] = False,
    only: Annotated[str, typer.Option(help="rows, nccl, or both.")] = "rows,nccl",
    out: Annotated[Path, typer.Option(help="The file of --save.")] = FOLDER / SERVING,
) -> None:
    """Measure S6. Bars missed do not fail a run."""
    parts = only.split(",")
    if not set(parts) <= {"rows", "nccl"}:
        raise typer.BadParameter(f"there is no {only}: choose rows, nccl or rows,nccl")
    cuda = torch.cuda.is_available()
    if quick and to_save:
        raise typer.BadParameter("--quick measures tiny counts: nothing to save")
    if not cuda and not quick:
        raise typer.BadParameter("no CUDA device: the figures are about one; --quick tries the harness on the CPU")
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    command = " ".join(["python -m benchmarks.s6_rows", *sys.argv[1:]])
    records: list[Record] = []
    with torch.inference_mode():
        for rows in () if "rows" not in parts else (1, 2) if quick else ROWS:
            sizes = (8, 5, 2, 1) if quick else (STEPS, PAIRS, TURNS[rows])
            found, told = measure(rows, device, *sizes)
            print(told, flush=True)
            records += [finished(one, command, device, None if quick else BAR) for one in found]
    if "nccl" in parts:
        if torch.cuda.device_count() >= 2 or quick:
            records.append(finished(s6_nccl.differing_bits(quick), command, device, 0))
        else:
            print("S6-nccl: needs two CUDA devices; not measured", flush=True)
    for one in records:
        bar = "" if one["bar"] is None else f", bar {one['bar']:g}: {'met' if one['met'] else 'MISSED'}"
        times = f"; on {one['on_us']:.0f} us, off {one['off_us']:.0f} us" if "on_us" in one else ""
        print(f"{one['id']}: {one['value']:.4f}{bar}{times}", flush=True)
    if to_save:
        save(records, out)
        print(f"saved in {out}")
        if out == FOLDER / SERVING:
            write_page()


if __name__ == "__main__":
    typer.run(main)
