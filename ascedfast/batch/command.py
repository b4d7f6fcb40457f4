# SPDX-License-Identifier: MIT
"""``ascedfast batch``: what is left of a table of requests is drawn by workers of Ray Data, then put together."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray.data

from ascedfast.batch.cluster import cluster
from ascedfast.batch.manifest import claimed, manifest_of
from ascedfast.batch.requests import Request, Requests, read_requests
from ascedfast.batch.results import RESULTS, Folder
from ascedfast.batch.worker import Settings, Worker
from ascedfast.calibration.folder import NAME, load_table
from ascedfast.calibration.packaged import packaged_table
from ascedfast.calibration.table import NullTable

PACKAGED = Path(__file__).parent.parent / "assets" / "emoji64-dit"
BATCH_SIZE = 4
BLOCKS = 1024
"""Most pieces in which the shards are given to workers."""


class StoppedError(RuntimeError):
    """Why a worker could not go on. What was finished is kept."""


Shard = list[tuple[int, Request]]


@dataclass(frozen=True)
class Summary:
    """statuses: how many requests ended so. drawn: how many of them this run drew. results: the table's file."""

    statuses: dict[str, int]
    drawn: int
    results: Path


def run_batch(
    source: Path,
    out: Path,
    *,
    pipeline: Path | None = None,
    table: Path | None = None,
    num_workers: int | None = None,
    num_gpus: float = 0,
    batch_size: int = BATCH_SIZE,
    exact: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Draw every request of a table once; what an earlier run of the same has finished is kept.

    Args:
        source: parquet, see ``requests.Request``. out: the folder of the results, made where it is missing.
        pipeline: folder of a diffusers pipeline with safetensors; default: the packaged transformer.
        table: of sound runs, for mode "calibrated"; default: that in the pipeline's folder.
        num_workers: processes with a pipeline each; default: one a core, or as many as the GPUs serve.
        num_gpus: of each worker; a part where workers share one, 0 for the CPU.
        batch_size: requests of a shard, which is finished as a whole.
        exact: each request is drawn by itself, so that it has the bits that it has alone; else the requests of a shard
            with the same settings are drawn together, which a GPU does faster.
        progress: called as progress(done, total), in requests.
    Raises: ValueError (TableError, FolderError, FolderInUseError, ClusterError), OSError: what cannot be used, and why.
        StoppedError, ray.exceptions.RayError: the run cannot go on; once the cause is mended the same call does.
    """
    if batch_size < 1 or num_gpus < 0 or (num_workers is not None and num_workers < 1):
        raise ValueError(
            f"batch_size and num_workers are 1 or more, num_gpus 0 or more: {batch_size}, {num_workers}, {num_gpus}"
        )
    folder = Folder(out.absolute())
    model = PACKAGED if pipeline is None else pipeline.absolute()
    nulls = _sound_runs(pipeline, table)
    requests = read_requests(source, nulls)
    device = "cuda" if num_gpus else "cpu"
    manifest = manifest_of(requests.sha256, model, nulls, batch_size=batch_size, exact=exact, device=device)
    with claimed(folder, manifest):
        shards = _shards(requests, batch_size)
        done = {number: folder.read_shard(number) for number in range(len(shards))}
        left = [number for number, finished in done.items() if finished is None]
        drawn = sum(len(shards[number]) for number in left)
        progress(len(requests) - drawn, len(requests))
        if left:
            with cluster(num_workers, num_gpus, len(left)) as workers:
                settings = Settings(model, folder.path, nulls, exact, device, workers)
                count = len(requests) - drawn
                for finished in _drawn({number: shards[number] for number in left}, settings, num_gpus):
                    if why := next(filter(None, finished["stopped"]), None):
                        raise StoppedError(str(why))
                    count += int(finished["requests"].sum())
                    progress(count, len(requests))
            done |= {number: folder.read_shard(number) for number in left}
        results = folder.write_results(requests, [finished for finished in done.values() if finished is not None])
        folder.tidy()
    return Summary(_counted(results), drawn, folder.path / RESULTS)


def _sound_runs(pipeline: Path | None, table: Path | None) -> NullTable | None:
    if table is None and pipeline is None:
        return packaged_table()
    if table is None and not (pipeline / NAME).exists():
        return None
    return load_table(PACKAGED if pipeline is None else pipeline, table)


def _shards(requests: Requests, size: int) -> list[Shard]:
    return [list(requests.good[i : i + size]) for i in range(0, len(requests.good), size)]


def _drawn(shards: dict[int, Shard], settings: Settings, num_gpus: float) -> Iterator[dict[str, np.ndarray]]:
    """Draw the shards; yields what ``Worker`` returns, as they are finished."""
    items = [
        {"shard": number, "requests": json.dumps([(row, one.model_dump(exclude_none=True)) for row, one in shard])}
        for number, shard in shards.items()
    ]
    data = ray.data.from_items(items, override_num_blocks=min(len(items), BLOCKS)).map_batches(
        Worker,
        fn_constructor_args=(settings,),
        batch_size=1,  # shard by shard: they are equal however Ray cuts its blocks
        compute=ray.data.ActorPoolStrategy(size=settings.workers),
        num_cpus=1,
        num_gpus=num_gpus,
    )
    yield from data.iter_batches(batch_size=None, batch_format="numpy")


def _counted(results: pa.Table) -> dict[str, int]:
    return dict(Counter(results["status"].to_pylist()).most_common())
