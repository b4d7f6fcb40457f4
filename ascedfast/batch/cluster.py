# SPDX-License-Identifier: MIT
"""The Ray cluster that a batch runs on: the one that is there, or one of its own for the length of the run."""

import contextlib
import logging
import os
from collections.abc import Iterator

import ray
import ray.data

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what stops the run is raised, too
}
"""Taken where the environment says nothing."""
OBJECT_STORE = 128 << 20
"""Bytes. Requests and counts pass through it, no images."""


class ClusterError(ValueError):
    """A cluster that cannot serve the run, and what to do."""


@contextlib.contextmanager
def cluster(num_workers: int | None, num_gpus: float, most: int) -> Iterator[int]:
    """Connect, or begin a local cluster and end it afterwards.

    ``RAY_ADDRESS`` names a cluster that is there; one that this process is connected to already is taken as it is.

    Args: num_workers: default: as many as its cores, or its GPUs, serve. num_gpus: of a worker. most: workers that have
        anything to do.
    Yields: the number of workers. Raises: ClusterError where the cluster has less than they need.
    """
    mine = not ray.is_initialized()
    if mine:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        options = {} if os.environ.get("RAY_ADDRESS") else _local(min(num_workers or _cores(), most))
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    try:
        has = ray.cluster_resources()
        fit = int(has.get("CPU", 0))
        if num_gpus:
            fit = min(fit, int(has.get("GPU", 0) / num_gpus))
        wanted = min(num_workers or fit, most)
        if not 1 <= wanted <= fit:  # Ray would wait for more
            needs = f"{max(wanted, 1)} workers need a core" + f" and {num_gpus:g} GPUs" * bool(num_gpus)
            raise ClusterError(
                f"{needs} each, the cluster has {has.get('CPU', 0):g} cores and {has.get('GPU', 0):g} GPUs: "
                "give a smaller --num-workers or --num-gpus"
            )
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield wanted
    finally:
        if mine:
            ray.shutdown()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _local(num_workers: int) -> dict[str, object]:
    cores = max(_cores(), num_workers)  # more workers than cores are slow, not wrong
    return {"address": "local", "num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
