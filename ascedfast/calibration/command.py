# SPDX-License-Identifier: MIT
"""``ascedfast calibrate``: sound runs of a local pipeline, and the table of what they score, beside it."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ascedfast._version import __version__
from ascedfast.adapters.pipeline_folder import call_arguments, load_pipeline
from ascedfast.calibration import runs
from ascedfast.calibration.folder import NAME, fingerprint
from ascedfast.calibration.table import LEAST_RUNS, NullTable

Progress = Callable[[int, int], None]


def calibrate(
    folder: Path,
    *,
    steps: Sequence[int] = (12, 25, 50),
    count: int = 2000,
    batch: int = 16,
    seed: int = 0,
    prompts: Sequence[str] = (),
    device: str = "cpu",
    out: Path | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> tuple[NullTable, Path]:
    """Run the pipeline ``count`` times for each number of steps, up to T_c, and write the table.

    What was gathered is kept beside the table after every batch, so that the same call goes on where it was stopped.

    Args:
        prompts: taken in turn, for pipelines that need one: those of sound images, as various as the use.
        out: default ``asced_null.json`` in the folder. progress: (title) -> (done, total) called after every batch.
    Returns: the table and where it was written.
    Raises: FolderError, ValueError for a folder, arguments or runs that give no table; OSError.
    """
    if count < LEAST_RUNS:
        raise ValueError(f"{count} runs are too few for a table: at least {LEAST_RUNS}, and 2000 for a rate of 1 %")
    if not steps or any(one < 1 for one in steps):
        raise ValueError(f"numbers of steps are positive, got {list(steps)}")
    path = out or folder / NAME
    pipe = load_pipeline(folder, device)
    known = fingerprint(folder)
    key = {"pipeline": known, "seed": seed, "version": __version__}
    key["prompts"] = hashlib.sha256("\0".join(prompts).encode()).hexdigest() if prompts else ""
    state = path.with_name(f".{path.name}.part.json")
    gathered = runs.load_runs(state, key)
    for number in sorted(set(steps)):
        one = gathered.setdefault(number, runs.StepRuns(number))
        advance = progress(f"{number} steps") if progress else None
        for _ in runs.gather(pipe, _drawer(pipe, number, prompts, seed), one, count, batch, seed):
            runs.save_runs(state, key, list(gathered.values()))
            if advance:
                advance(min(len(one.still), count), count)
    nulls = {len(null.profile): null for null in (gathered[number].null() for number in sorted(set(steps)))}
    many = f"{count} runs of {', '.join(map(str, sorted(set(steps))))} steps, seeds from {seed}"
    note = f"ascedfast {__version__}: {many}" + (f", {len(prompts)} prompts" if prompts else "")
    table = NullTable(tuple(nulls[k] for k in sorted(nulls)), known, note)
    table.save(path)
    state.unlink(missing_ok=True)
    return table, path


def _drawer(pipe: Any, steps: int, prompts: Sequence[str], seed: int) -> runs.Draw:
    def draw(seeds: Sequence[int]) -> Any:
        chosen = [prompts[(one - seed) % len(prompts)] for one in seeds] if prompts else None
        first = chosen[0] if chosen else None
        arguments = call_arguments(pipe, n=len(seeds), steps=steps, prompt=first, seeds=list(seeds))
        if chosen:
            arguments["prompt"] = chosen
        return pipe(**arguments)

    return draw
