# SPDX-License-Identifier: MIT
"""``ascedfast calibrate``: sound runs of a local pipeline, and the table of what they score, beside it."""

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ascedfast._version import __version__
from ascedfast.adapters.pipeline_folder import FolderError, call_arguments, load_pipeline
from ascedfast.calibration import FIRST_SEED, STEPS, runs
from ascedfast.calibration.folder import NAME, fingerprint
from ascedfast.calibration.table import LEAST_RUNS, VERSION, Null, NullTable

Progress = Callable[[int, int], None]


def calibrate(
    folder: Path,
    *,
    steps: Sequence[int] = STEPS,
    count: int = 2000,
    batch: int = 16,
    seed: int = FIRST_SEED,
    prompts: Sequence[str] = (),
    device: str = "cpu",
    out: Path | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> tuple[NullTable, Path]:
    """Run the pipeline ``count`` times for each number of steps, up to T_c, and write the table.

    What was gathered is kept beside the table after every batch, so that the same call goes on where it was stopped.

    Entries of other step counts stay, where the table that is there is of the same pipeline and prompts.

    Args:
        seed: far from those that images are drawn with, so that no run is compared with itself.
        prompts: taken in turn, for pipelines that need one: those of sound images, as various as the use.
        out: default ``asced_null.json`` in the folder; its own folder is made where it is missing.
        progress: (title) -> (done, total) called after every batch.
    Returns: the table and where it was written.
    Raises: FolderError, ValueError for a folder, arguments or runs that give no table; OSError.
    """
    numbers = sorted(set(steps))
    if count < LEAST_RUNS:
        raise ValueError(f"{count} runs are too few for a table: at least {LEAST_RUNS}, and 2000 for a rate of 1 %")
    if not numbers or numbers[0] < 1:
        raise ValueError(f"numbers of steps are positive, got {list(steps)}")
    path = out or folder / NAME
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the table's file")
    path.parent.mkdir(parents=True, exist_ok=True)
    pipe = load_pipeline(folder, device)
    if "prompt" in inspect.signature(type(pipe).__call__).parameters and not prompts:
        raise FolderError(f"{type(pipe).__name__} needs prompts: add --prompts FILE, a prompt a line")
    known = fingerprint(folder)
    used = hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:16] if prompts else ""
    key = {"pipeline": known, "seed": seed, "version": f"{__version__}, table {VERSION}", "prompts": used}
    # Other arguments have a file of their own: what was gathered with these stays.
    state = path.with_name(f".{path.name}.{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]}.part.json")
    gathered = runs.load_runs(state, key)
    for number in numbers:
        one = gathered.setdefault(number, runs.StepRuns(number))
        advance = progress(f"{number} steps") if progress else None
        for done in runs.gather(pipe, _drawer(pipe, number, prompts, seed), one, count, batch, seed):
            if one.still:
                runs.save_runs(state, key, [each for each in gathered.values() if each.still])
            if advance:
                advance(done, count)
    nulls = _earlier(path, known, used)
    made: dict[int, int] = {}
    for number in numbers:
        null = gathered[number].null(count)
        if len(null.profile) in made:
            raise ValueError(
                f"{made[len(null.profile)]} and {number} steps have the same number of changes before T_c: a table "
                "holds one of them, leave the other out (what was gathered is kept)"
            )
        made[len(null.profile)] = number
        nulls[len(null.profile)] = null
    many = f"{count} runs of {', '.join(map(str, numbers))} steps, seeds from {seed}"
    skipped = sum(gathered[number].skipped for number in numbers)
    note = f"ascedfast {__version__}: {many}" + f", {len(prompts)} prompts" * bool(prompts)
    note += f", {skipped} more left out that held NaN or Inf" * bool(skipped)
    note += "; other entries from earlier" * (len(nulls) > len(made))
    table = NullTable(tuple(nulls[k] for k in sorted(nulls)), known, note, used)
    table.save(path)
    state.unlink(missing_ok=True)
    return table, path


def _earlier(path: Path, pipeline: str, prompts: str) -> dict[int, Null]:
    """The nulls of the table that is there, by the number of changes, if it is of this pipeline and these prompts."""
    try:
        table = NullTable.load(path)
    except (OSError, ValueError):
        return {}
    same = table.pipeline == pipeline and table.prompts == prompts
    return {len(null.profile): null for null in table.nulls} if same else {}


def _drawer(pipe: Any, steps: int, prompts: Sequence[str], seed: int) -> runs.Draw:
    def draw(seeds: Sequence[int]) -> Any:
        chosen = [prompts[(one - seed) % len(prompts)] for one in seeds] if prompts else None
        first = chosen[0] if chosen else None
        arguments = call_arguments(pipe, n=len(seeds), steps=steps, prompt=first, seeds=list(seeds))
        if chosen:
            arguments["prompt"] = chosen
        return pipe(**arguments)

    return draw
